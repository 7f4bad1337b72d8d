#!/usr/bin/env python
"""One engine with one model in a process of its own, for scripts/bench_edge.py: its memory is then its alone.

The only argument is a `System` as JSON. The process answers a line of JSON when the model is loaded, and one for each
line of JSON that it reads: see `answer`. Tokens are ids of the project's dictionaries.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

END = 2
FIRST_WORD = 4  # after fairseq's special tokens
MOST_TOKENS = 200  # of a translation that is not forced to a length
PRODUCTS_SECONDS = 0.05


@dataclass(frozen=True)
class System:
    """What a process runs.

    Attributes:
        engine: one of ENGINES.
        path: folder of the exported or converted model; of 'pytorch' the checkpoint, or '' for random weights.
        arch, vocabulary: of random weights. data: bin folder of a trained model.
        threads: that it may use.
    """

    engine: str
    path: str
    arch: str
    vocabulary: int
    data: str
    threads: int


class Model(Protocol):
    def translate(
        self, sources: Sequence[Sequence[int]], beam: int, length: int | None, allowed: Sequence[int] | None
    ) -> list[list[int]]:
        """The best hypothesis of each source without its end; of exactly ``length`` steps unless it is None."""

    def first_token(self, source: Sequence[int]) -> None:
        """Computes the first token of a translation."""


def random_model(arch: str, vocabulary: int) -> Any:
    """A named architecture of random weights, ready for search, as `decoding.load` gives a trained one."""
    import torch
    from fairseq.data import Dictionary
    from fairseq.models import MODEL_REGISTRY
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    import lite_transformer.models  # noqa: F401  (registers the architectures)
    from lite_transformer.models.architectures import find_architecture
    from lite_transformer.models.lite_transformer import resolved_config
    from lite_transformer.scoring.decoding import Loaded

    words = Dictionary()
    for number in range(vocabulary - len(words)):
        words.add_symbol(f"w{number}", n=vocabulary - number)
    task = TranslationTask(TranslationConfig(source_lang="en", target_lang="de"), words, words)
    shared = find_architecture(arch).data.shared_embeddings
    config = resolved_config(arch, share_all_embeddings=shared)
    torch.manual_seed(1)
    model = MODEL_REGISTRY[arch].build_model(config, task).eval()
    model.make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
    return Loaded([model], task, None, torch.device("cpu"))


def load_model(arch: str, vocabulary: int, checkpoint: str, data: str) -> Any:
    """A trained model if there is a checkpoint, else one of random weights."""
    if not checkpoint:
        return random_model(arch, vocabulary)
    from lite_transformer.scoring import decoding

    return decoding.load([Path(checkpoint)], Path(data), cpu=True)


class Eager:
    """PyTorch as fairseq-generate runs it, fp32."""

    def __init__(self, system: System):
        import torch

        torch.set_num_threads(system.threads)
        self._torch = torch
        self._loaded = load_model(system.arch, system.vocabulary, system.path, system.data)

    def translate(
        self, sources: Sequence[Sequence[int]], beam: int, length: int | None, allowed: Sequence[int] | None
    ) -> list[list[int]]:
        from fairseq.data import data_utils
        from fairseq.dataclass.configs import GenerationConfig

        torch, task, models = self._torch, self._loaded.task, self._loaded.models
        limits = {"max_len_b": MOST_TOKENS} if length is None else {"min_len": length - 1, "max_len_b": length - 1}
        generator = task.build_generator(models, GenerationConfig(beam=beam, **limits))
        pad, end = task.source_dictionary.pad(), task.source_dictionary.eos()
        rows = [torch.tensor(source) for source in sources]
        batch = data_utils.collate_tokens(rows, pad, end, left_pad=True)
        lengths = torch.tensor([len(source) for source in sources])
        with torch.no_grad():
            sample = {"net_input": {"src_tokens": batch, "src_lengths": lengths}}
            found = task.inference_step(generator, models, sample)
        return [hypotheses[0]["tokens"].tolist()[:-1] for hypotheses in found]

    def first_token(self, source: Sequence[int]) -> None:
        torch, model = self._torch, self._loaded.models[0]
        with torch.no_grad():
            model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([[END]]))


class Exported:
    """An exported folder in one of the engines of `lite_transformer.edge`."""

    def __init__(self, system: System):
        import inspect

        from lite_transformer.edge import Translator
        from lite_transformer.edge.search import greedy, search

        self._greedy, self._search = greedy, search
        options: dict[str, Any] = {"threads": system.threads}
        if "engine" in inspect.signature(Translator.load).parameters:
            options["engine"] = system.engine
        elif system.engine != "portable":
            raise SystemExit("there is no native engine in this checkout")
        self._translator = Translator.load(system.path, **options)

    def translate(
        self, sources: Sequence[Sequence[int]], beam: int, length: int | None, allowed: Sequence[int] | None
    ) -> list[list[int]]:
        import numpy as np

        manifest, engine = self._translator.manifest, self._translator.engine
        engine.restrict(None if allowed is None else np.array(allowed, np.int64))  # a request before left its own
        size = manifest.model["target_vocabulary"] if allowed is None else len(allowed)
        limits = {"max_len_b": MOST_TOKENS} if length is None else {"min_len": length - 1, "max_len_b": length - 1}
        settings = self._translator.settings(beam=beam, max_len_a=0, lenpen=1.0, **limits)
        found = self._search(engine, sources, settings, size, manifest.max_target_tokens)
        return [list(hypotheses[0].tokens[:-1]) for hypotheses in found]

    def first_token(self, source: Sequence[int]) -> None:
        next(self._greedy(self._translator.engine, source, 1))


def _symbols(folder: Path, side: str) -> list[str]:
    """The words of a converted model's source or target."""
    own, shared = folder / f"{side}_vocabulary.json", folder / "shared_vocabulary.json"
    return json.loads((own if own.is_file() else shared).read_text(encoding="utf-8"))


class CTranslate2:
    """A converted model in CTranslate2."""

    def __init__(self, system: System):
        import ctranslate2

        self._translator = ctranslate2.Translator(
            system.path, device="cpu", compute_type="int8", inter_threads=1, intra_threads=system.threads
        )
        self._symbols, targets = (_symbols(Path(system.path), side) for side in ("source", "target"))
        self._ids = {symbol: number for number, symbol in enumerate(targets)}

    def translate(
        self, sources: Sequence[Sequence[int]], beam: int, length: int | None, allowed: Sequence[int] | None
    ) -> list[list[int]]:
        words = [[self._symbols[token] for token in source[:-1]] for source in sources]
        limits = {"max_decoding_length": MOST_TOKENS}
        if length is not None:
            limits = {"min_decoding_length": length, "max_decoding_length": length}
        found = self._translator.translate_batch(words, beam_size=beam, use_vmap=allowed is not None, **limits)
        return [[self._ids[word] for word in result.hypotheses[0]] for result in found]

    def first_token(self, source: Sequence[int]) -> None:
        words = [self._symbols[token] for token in source[:-1]]
        self._translator.translate_batch([words], beam_size=1, max_decoding_length=1)


class Machine:
    """No model: what the processors give. ``first_token`` is there for the other systems' sake."""

    def __init__(self, system: System):
        import numpy as np

        from lite_transformer.edge.native import compiled

        self._numpy, self._native = np, compiled()

    def read(self, size_bytes: int) -> float:
        """Bytes a second that a dot product with itself reads of an array, the best of several passes."""
        values = self._numpy.ones(max(1, size_bytes // 4), self._numpy.float32)
        passes = max(5, 400_000_000 // values.nbytes)
        best = float("inf")
        for _ in range(passes):
            started = time.perf_counter()
            values.dot(values)
            best = min(best, time.perf_counter() - started)
        return values.nbytes / best

    def products(self, threads: int, rows: int, size_bytes: int) -> float | None:
        """See `Library.machine`; None if the native engine was not built."""
        return None if self._native is None else self._native.machine(threads, rows, size_bytes, PRODUCTS_SECONDS)

    def translate(
        self, sources: Sequence[Sequence[int]], beam: int, length: int | None, allowed: Sequence[int] | None
    ) -> list[list[int]]:
        return []

    def first_token(self, source: Sequence[int]) -> None:
        pass


ENGINES: dict[str, Any] = {
    "pytorch": Eager,
    "portable": Exported,
    "native": Exported,
    "ctranslate2": CTranslate2,
    "machine": Machine,
}


def memory() -> dict[str, int]:
    """Bytes that the process holds now and held at most, as Linux tells them; nothing elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {"resident_bytes": "VmRSS", "peak_bytes": "VmHWM"}
    return {name: int(fields[field].split()[0]) * 1024 for name, field in names.items() if field in fields}


def answer(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What a request asks for: {'read': bytes}, {'products': [threads, rows, bytes]}, {'memory': true}, or sources to
    translate with beam, length, allowed.

    Sources come as batches; the answer to them has the seconds of all, and their hypotheses.
    """
    if "read" in request:
        return {"bytes_per_second": model.read(request["read"])}
    if "products" in request:
        return {"multiply_adds_per_second": model.products(*request["products"])}
    if "memory" in request:
        return memory()
    hypotheses: list[list[int]] = []
    started = time.perf_counter()
    for batch in request["batches"]:
        hypotheses += model.translate(batch, request["beam"], request["length"], request["allowed"])
    return {"seconds": time.perf_counter() - started, "hypotheses": hypotheses}


def main(words: Sequence[str]) -> int:
    system = System(**json.loads(words[0]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what a library prints goes elsewhere
    os.dup2(2, 1)

    def say(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    started = time.perf_counter()
    model = ENGINES[system.engine](system)
    loaded = time.perf_counter()
    model.first_token([*range(FIRST_WORD, FIRST_WORD + 24), END])
    say({"load_seconds": loaded - started, "first_token_seconds": time.perf_counter() - loaded})
    for line in sys.stdin:
        say(answer(model, json.loads(line)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
