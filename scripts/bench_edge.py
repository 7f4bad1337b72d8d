#!/usr/bin/env python
"""Translation on a CPU: CTranslate2, PyTorch and our two tiers, in interleaved rounds of one run.

  scripts/bench_edge.py
  scripts/bench_edge.py --systems ctranslate2:base,portable:lite,native:lite --rounds 7 --record results/edge/NAME.json
  scripts/bench_edge.py --trained lite=LITE.pt transformer=TRANSFORMER.pt --data DIR/bin
      --systems ctranslate2:transformer,portable:lite --record results/edge/NAME.json --plot results/plots/NAME.png

A system is ENGINE:MODEL or ENGINE:MODEL:PRECISION. Engines: ctranslate2 (converts Transformers only), pytorch, portable
(ONNX Runtime), native. Models are architectures of random weights, by default base and equal (Transformers) and lite,
or those of --trained. Ratios are to the first system in the same round and case. Each system is a process of its own.
Several threads are also held against one thread of the same system, measured right before and after; beside that stand
what the processors themselves give to as many threads, and one thread against itself: the noise of both.

A sample translates sentences of 25 tokens into 25 that are forced, ends of sentences counted. With --shortlist N every
system chooses among the same N tokens. Of trained models the test set is translated and scored as well.

Needs, in the checkout: pip install -e '.[edge,bench]'.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import logging
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import _edge_worker
import torch
from _benchmark import processor, provenance, summary
from tqdm import tqdm

from data_prep.io import read_json, read_lines, sha256, write_json
from data_prep.pipeline import RECORD_FILE, load_pipelines
from data_prep.text import TextPipeline
from lite_transformer import speed
from lite_transformer.edge.export import export
from lite_transformer.edge.vocabulary import Vocabulary
from lite_transformer.errors import LiteTransformerError
from lite_transformer.macs.counter import count_model
from lite_transformer.scoring.bleu import sacrebleu

MODELS = {
    "base": "transformer_wmt_en_de_base",
    "equal": "transformer_wmt_en_de_527m",
    "lite": "lite_transformer_wmt_en_de",
}
SYSTEMS = "ctranslate2:base,ctranslate2:equal,pytorch:lite,portable:lite,native:lite,native:equal,native:base"
TRAINED_SYSTEMS = "ctranslate2:transformer,pytorch:lite,portable:lite,native:lite,native:transformer"
CASES = "1:1:1,1:4:1,1:1:2,1:4:2,32:4:1"
PRECISIONS = ("fp32", "int8", "int4")
WORKER = Path(__file__).parent / "_edge_worker.py"
LARGE_BYTES = 256_000_000  # of an array that no cache holds
SMALL_BYTES = 128_000  # of weights that a thread has in its own cache
SCORED_BATCH = 32
PACKAGES = ("ctranslate2", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Name:
    """A system as it is typed."""

    engine: str
    model: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine}:{self.model}:{self.precision}"


@dataclass(frozen=True)
class Case:
    """What is translated at once; ``shortlist``: to how many tokens the output is restricted, 0: not at all."""

    batch: int
    beam: int
    threads: int
    shortlist: int


# --- models --------------------------------------------------------------------------------------------------------


def step_elements(loaded: Any) -> dict[str, int]:
    """What one decoding step reads: elements of matrices but the output's, rows and columns of that, other elements.

    Keys and values of the source are computed once a sentence; of the embedding, one row is read a token.
    """
    decoder = loaded.models[0].decoder
    matrices = others = 0
    for name, parameter in decoder.layers.named_parameters():
        if "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name:
            continue
        if parameter.dim() == 2:
            matrices += parameter.numel()
        else:
            others += parameter.numel()
    rows, columns = decoder.output_projection.weight.shape
    return {"matrices": matrices, "others": others, "output_rows": rows, "output_columns": columns}


def step_bytes(what: dict[str, int], precision: str, shortlist: int) -> int:
    """Bytes of weights that a step reads."""
    bits = {"fp32": 32, "int8": 8, "int4": 4}[precision]
    rows = shortlist or what["output_rows"]
    return (what["matrices"] + rows * what["output_columns"]) * bits // 8 + 4 * what["others"]


def text_pipelines(folder: Path) -> dict[str, TextPipeline]:
    """Of models of random weights: words as they stand."""
    return {
        language: TextPipeline(language, normalize=False, tokenizer="none", subword="none", folder=folder)
        for language in ("en", "de")
    }


def export_model(loaded: Any, data: str, precision: str, out: Path) -> None:
    """An exported folder; of random weights, with their numbered words."""
    if data:
        export(loaded, load_pipelines(Path(data)), Path(data), out, precision)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        loaded.task.source_dictionary.save(str(folder / "dict.en.txt"))
        loaded.task.target_dictionary.save(str(folder / "dict.de.txt"))
        export(loaded, text_pipelines(folder), folder, out, precision)


def convert_model(loaded: Any, out: Path, vmap: Path | None) -> None:
    """A Transformer converted for CTranslate2 with int8 weights, by its own functions for fairseq's modules.

    Args:
        vmap: CTranslate2's list of the words that each source word allows.
    """
    from ctranslate2.converters import fairseq as theirs
    from ctranslate2.converters.converter import Converter
    from ctranslate2.specs.common_spec import Activation
    from ctranslate2.specs.transformer_spec import TransformerSpec

    # a copy: the converter quantizes the arrays where they are
    model, task = copy.deepcopy(loaded.models[0]).requires_grad_(False), loaded.task
    encoder, decoder = model.encoder, model.decoder
    layer = decoder.layers[0]
    spec = TransformerSpec.from_config(
        (len(encoder.layers), len(decoder.layers)),
        int(layer.self_attn.num_heads),
        pre_norm=layer.normalize_before,
        activation=Activation.RELU,
        layernorm_embedding=encoder.layernorm_embedding is not None,
    )
    theirs.set_transformer_encoder(spec.encoder, encoder)
    theirs.set_transformer_decoder(spec.decoder, decoder)
    for register, words in (
        (spec.register_source_vocabulary, task.source_dictionary),
        (spec.register_target_vocabulary, task.target_dictionary),
    ):
        register(["<blank>" if word == "<pad>" else word for word in words.symbols])
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True

    class _Converter(Converter):
        def _load(self) -> Any:
            return spec

    _Converter().convert(str(out), vmap=str(vmap) if vmap else None, quantization="int8")


# --- processes -----------------------------------------------------------------------------------------------------


class Process:
    """A system in a process of its own, ready when made. Raises: RuntimeError with the last line of its errors."""

    def __init__(self, system: _edge_worker.System, errors: Path):
        self._errors = errors
        environment = os.environ | {"OMP_NUM_THREADS": str(system.threads), "OPENBLAS_NUM_THREADS": "1"}
        started = time.perf_counter()
        with errors.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(dataclasses.asdict(system))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment,
            )  # fmt: skip
        self.start = self._answer()
        self.start["start_to_first_token_seconds"] = time.perf_counter() - started

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            errors = self._errors.read_text(encoding="utf-8").strip().splitlines()
            raise RuntimeError(errors[-1] if errors else f"ended with exit code {self._process.returncode}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Running:
    """A system, what is known of it, and its processes by number of threads."""

    name: Name
    facts: dict[str, Any]
    processes: dict[int, Process]

    def can(self, case: Case) -> bool:
        return case.threads in self.processes and not (case.shortlist and self.name.engine == "pytorch")


class Against:
    """Several threads against one, which is measured right before and right after."""

    def __init__(self) -> None:
        self._ratios: list[float] = []
        self._noise: list[float] = []

    def measure(self, speed_with: Callable[[int], float], threads: int) -> float:
        """The speed with so many threads."""
        before, speed, after = speed_with(1), speed_with(threads), speed_with(1)
        self._ratios.append(2 * speed / (before + after))
        self._noise.append(after / before)
        return speed

    def summary(self) -> dict[str, Any]:
        """Times the speed of one thread, and one thread against itself."""
        return {"ratio": summary(self._ratios), "one_against_one": summary(self._noise)}


class MachineThreads:
    """What the processors give to several threads of nothing but int8 products, and of nothing but reading weights."""

    def __init__(self, threads: int, read_bytes: int):
        self.known = True
        self._threads = threads
        self._loads = {"products": (8, SMALL_BYTES), "reading": (1, read_bytes)}  # rows, bytes
        self._against = {name: Against() for name in self._loads}
        self._read_bytes = read_bytes

    def measure(self, meter: Process) -> None:
        for name, (rows, size) in self._loads.items():
            own = name == "products"  # then the weights of each thread fill its own cache

            def speed_with(threads: int, rows: int = rows, size: int = size, own: bool = own) -> float:
                request = [threads, rows, size * threads if own else size]
                return meter.ask(products=request)["multiply_adds_per_second"] or math.nan

            self.known = not math.isnan(self._against[name].measure(speed_with, self._threads))

    def summary(self) -> dict[str, Any]:
        found = {name: against.summary() for name, against in self._against.items()}
        return {**found, "read_bytes": self._read_bytes}


class Bench:
    """What a run makes: folders, processes, figures. Leaving it ends the processes."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder = Path()
        self.models: dict[str, dict[str, Any]] = {}
        self.systems: list[Running] = []
        self.left_out: dict[str, str] = {}
        self.allowed: list[int] = []
        self.words = args.vocabulary  # of the smallest source dictionary
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *_: object) -> None:
        for system in self.systems:
            for process in system.processes.values():
                process.close()
        self._stack.close()

    def prepare(self) -> None:
        """Converts every model for its engines and starts the processes; what cannot is left out, with the reason."""
        names = self.args.systems
        bar = tqdm(total=len(names), desc="models", unit="system", disable=None)
        for model in dict.fromkeys(name.model for name in names):
            arch, vocabulary = self.args.models.get(model, ""), self.args.vocabulary
            checkpoint = str(self.args.trained.get(model, ""))
            loaded = _edge_worker.load_model(arch, vocabulary, checkpoint, self.args.data)
            self.models[model] = {"step": step_elements(loaded), "macs": count_model(loaded.models[0], 30, 30).macs}
            self.models[model] |= {"checkpoint_sha256": sha256(Path(checkpoint))} if checkpoint else {"arch": arch}
            self.args.languages = loaded.languages
            self.words = min(self.words, len(loaded.task.source_dictionary))
            if not self.allowed and self.args.shortlist:
                self.allowed = self._draw_allowed(len(loaded.task.target_dictionary))
            for name in (name for name in names if name.model == model):
                try:
                    self._start(name, loaded, checkpoint)
                except (RuntimeError, ImportError, LiteTransformerError) as error:
                    self.left_out[str(name)] = " ".join(str(error).split())
                    print(f"{name} is left out: {self.left_out[str(name)]}", file=sys.stderr)
                bar.update()
        bar.close()
        order = [str(name) for name in names]
        self.systems.sort(key=lambda system: order.index(str(system.name)))
        if not self.systems:
            raise SystemExit("no system can be measured")

    def _draw_allowed(self, size: int) -> list[int]:
        """Random tokens, as many as the shortlist has, fairseq's special ones among them."""
        first = _edge_worker.FIRST_WORD
        drawn = random.Random(1).sample(range(first, size), min(self.args.shortlist, size) - first)
        return [*range(first), *sorted(drawn)]

    def _start(self, name: Name, loaded: Any, checkpoint: str) -> None:
        path = self.folder / str(name).replace(":", "-")
        source = self.folder / f"{name.model}-{name.precision}"  # both tiers of ours read one folder
        if name.engine == "ctranslate2":
            if hasattr(loaded.models[0].decoder.layers[0].self_attn, "branches"):
                raise RuntimeError("CTranslate2 knows no Lite Transformer")
            vmap = self.folder / "vmap.txt" if self.allowed else None
            if vmap is not None:
                words = loaded.task.target_dictionary.symbols
                vmap.write_text("\t" + " ".join(words[token] for token in self.allowed) + "\n", encoding="utf-8")
            convert_model(loaded, path, vmap)
        elif name.engine == "pytorch":
            path = Path(checkpoint)
        else:
            path = source
            if not path.is_dir():
                export_model(loaded, self.args.data, name.precision, path)
        processes: dict[int, Process] = {}
        facts: dict[str, Any] = {}
        for threads in sorted({case.threads for case in self.args.cases}):
            system = _edge_worker.System(
                name.engine, str(path) if path.name else "", self.models[name.model].get("arch", ""),
                self.args.vocabulary, self.args.data, threads,
            )  # fmt: skip
            try:
                processes[threads] = Process(system, self.folder / f"{name.model}-{threads}.errors")
            except RuntimeError:
                for process in processes.values():
                    process.close()
                raise
            if not facts:
                facts = dict(processes[threads].start)
                processes[threads].ask(**self.request(Case(1, 4, threads, 0), 3))
                facts |= processes[threads].ask(memory=True)
        if name.engine != "pytorch":
            files = [file for file in path.rglob("*") if file.is_file() and file.name != "vmap.txt"]
            facts["disk_bytes"] = sum(file.stat().st_size for file in files)
        self.systems.append(Running(name, facts, processes))

    def request(self, case: Case, sentences: int) -> dict[str, Any]:
        """Drawn sentences, the same ones for every system, in batches of the case."""
        rng = random.Random(2)
        first, length, size = _edge_worker.FIRST_WORD, self.args.length, self.words
        count = max(1, sentences // case.batch) * case.batch
        drawn = [[*(rng.randrange(first, size) for _ in range(length - 1)), _edge_worker.END] for _ in range(count)]
        batches = [drawn[start : start + case.batch] for start in range(0, count, case.batch)]
        allowed = self.allowed if case.shortlist else None
        return {"batches": batches, "beam": case.beam, "length": length, "allowed": allowed}

    def rounds(self) -> dict[str, Any]:
        """Tokens a second of every system in every case, and ratios to the first system's of the same round."""
        args = self.args
        speeds: dict[tuple[str, Case], list[float]] = {}
        ratios: dict[tuple[str, Case], list[float]] = {}
        requests = {case: self.request(case, args.sentences) for case in args.cases}
        for system, case in itertools.product(self.systems, args.cases):  # shapes and caches are warm from here on
            if system.can(case):
                system.processes[case.threads].ask(**self.request(case, 1))
        meter = Process(_edge_worker.System("machine", "", "", 0, "", 1), self.folder / "machine.errors")
        sizes = {*self._sizes(), LARGE_BYTES}
        reads: dict[int, list[float]] = {size: [] for size in sorted(sizes)}
        machine = {threads: MachineThreads(threads, self._read_bytes()) for threads in self._several()}
        threads_of: dict[tuple[str, Case], Against] = {}
        total = args.rounds * len(args.cases)
        with tqdm(total=total, desc="rounds", unit="case", disable=None) as bar:
            for number in range(args.rounds):
                for size, found in reads.items():
                    found.append(meter.ask(read=size)["bytes_per_second"])
                for threads in machine.values():
                    threads.measure(meter)
                for case in args.cases:
                    able = [system for system in self.systems if system.can(case)]
                    turn = number % len(able) if able else 0
                    found_here: dict[str, float] = {}
                    for system in able[turn:] + able[:turn]:

                        def speed_with(threads: int, case: Case = case, system: Running = system) -> float:
                            answer = system.processes[threads].ask(**requests[case])
                            return sum(map(len, requests[case]["batches"])) * args.length / answer["seconds"]

                        name = str(system.name)
                        if case.threads > 1 and 1 in system.processes:
                            against = threads_of.setdefault((name, case), Against())
                            found_here[name] = against.measure(speed_with, case.threads)
                        else:
                            found_here[name] = speed_with(case.threads)
                    first = str(able[0].name) if able else ""
                    for name, speed in found_here.items():
                        speeds.setdefault((name, case), []).append(speed)
                        ratios.setdefault((name, case), []).append(speed / found_here[first])
                    bar.update()
        meter.close()
        results = [self._result(system, speeds, ratios, reads) for system in self.systems]
        for result in results:
            for row in result["cases"]:
                against_one = threads_of.get((result["system"], Case(**row["case"])))
                row |= {} if against_one is None else {"threads": against_one.summary()}
        return {
            "bandwidth": {str(size): summary(found) for size, found in reads.items()},
            "machine_threads": {str(number): threads.summary() for number, threads in machine.items() if threads.known},
            "results": results,
        }

    def _several(self) -> list[int]:
        return sorted({case.threads for case in self.args.cases if case.threads > 1})

    def _read_bytes(self) -> int:
        """What a step of the last system reads, all words allowed: of the default ones, ours."""
        name = self.systems[-1].name
        return step_bytes(self.models[name.model]["step"], name.precision, 0)

    def _sizes(self) -> Iterator[int]:
        for system in self.systems:
            for shortlist in {case.shortlist for case in self.args.cases}:
                yield step_bytes(self.models[system.name.model]["step"], system.name.precision, shortlist)

    def _result(
        self,
        system: Running,
        speeds: dict[tuple[str, Case], list[float]],
        ratios: dict[tuple[str, Case], list[float]],
        reads: dict[int, list[float]],
    ) -> dict[str, Any]:
        found = []
        for case in self.args.cases:
            key = (str(system.name), case)
            if key not in speeds:
                continue
            size = step_bytes(self.models[system.name.model]["step"], system.name.precision, case.shortlist)
            row = {
                "case": dataclasses.asdict(case),
                "tokens_per_second": summary(speeds[key]),
                "ratio": summary(ratios[key]),
                "step_bytes": size,
            }
            if case.batch == 1 and case.threads == 1:  # of the time that reading the weights alone would take
                limit = statistics.median(reads[size])
                row["bandwidth_fraction"] = statistics.median(speeds[key]) * size / limit
            found.append(row)
        return {"system": str(system.name), **dataclasses.asdict(system.name), **system.facts, "cases": found}


# --- trained models ------------------------------------------------------------------------------------------------


def scores(bench: Bench) -> dict[str, dict[str, Any]]:
    """Of each system: sacreBLEU on the split, and milliseconds a sentence, one at a time, in interleaved rounds."""
    args = bench.args
    folder = Path(args.data)
    pipelines = load_pipelines(folder)
    source, target = (pipelines[language] for language in args.languages)
    words = {side.language: Vocabulary(folder / f"dict.{side.language}.txt") for side in (source, target)}
    raw = folder.parent / "raw"
    lines, references = (read_lines(raw / f"{args.split}.{language}")[: args.lines] for language in args.languages)
    sentences = [[*words[source.language].encode(source.encode(line)), _edge_worker.END] for line in lines]
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
    batches = [order[start : start + SCORED_BATCH] for start in range(0, len(order), SCORED_BATCH)]
    found: dict[str, dict[str, Any]] = {}
    threads = min(case.threads for case in args.cases)
    for system in tqdm(bench.systems, desc="test set", unit="system", disable=None):
        translations = [""] * len(lines)
        for batch in batches:
            request = {"batches": [[sentences[index] for index in batch]], "beam": args.beam, "length": None}
            answer = system.processes[threads].ask(**request, allowed=None)
            for index, tokens in zip(batch, answer["hypotheses"], strict=True):
                translations[index] = " ".join(target.decode(words[target.language].decode(tokens)).split())
        score = sacrebleu(translations, references)
        found[str(system.name)] = {"sacrebleu": score.value, "signature": score.signature}
    shown = order[:: max(1, len(order) // args.sentences)]
    request = {"batches": [[sentences[index]] for index in shown], "beam": args.beam, "length": None, "allowed": None}
    seconds: dict[str, list[float]] = {}
    for number in tqdm(range(args.rounds), desc="sentences", unit="round", disable=None):
        turn = number % len(bench.systems)
        for system in bench.systems[turn:] + bench.systems[:turn]:
            elapsed = system.processes[threads].ask(**request)["seconds"]
            seconds.setdefault(str(system.name), []).append(1000 * elapsed / len(shown))
    for name, times in seconds.items():
        found[name]["ms_per_sentence"] = summary(times)
    return found


def pareto_plot(record: dict[str, Any], path: Path) -> None:
    """sacreBLEU of every system against its time for a sentence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    names = list(record["models"])
    for number, result in enumerate(record["results"]):
        time_of, score = result["ms_per_sentence"], result["sacrebleu"]
        spread = [[time_of["median"] - time_of["min"]], [time_of["max"] - time_of["median"]]]
        marker = "osD^v"[names.index(result["model"]) % 5]
        axes.errorbar(time_of["median"], score, xerr=spread, fmt=marker, color=f"C{number}", label=result["system"])
    axes.set(xscale="log", xlabel="ms a sentence, one at a time, 1 thread", ylabel="sacreBLEU", title=record["corpus"])
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format=path.suffix[1:] or "png", metadata={"Software": None})
    pyplot.close(figure)


# --- the command ---------------------------------------------------------------------------------------------------


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", metavar="ENGINE:MODEL[:PRECISION],...", help=f"default {SYSTEMS}")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME=ARCH", help="more architectures to choose from"
    )
    parser.add_argument("--trained", nargs="+", default=[], metavar="NAME=PT", help="trained models, with --data")
    parser.add_argument("--data", default="", metavar="BIN", help="bin folder of their corpus")
    parser.add_argument("--cases", default=CASES, metavar="BATCH:BEAM:THREADS,...", help=f"default {CASES}")
    parser.add_argument("--shortlist", type=int, default=0, metavar="N", help="also with N tokens to choose from")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default 7")
    parser.add_argument("--sentences", type=int, default=4, metavar="N", help="of a sample (default 4)")
    parser.add_argument("--length", type=int, default=25, metavar="N", help="tokens of a sentence (default 25)")
    parser.add_argument("--vocabulary", type=int, default=32768, metavar="N", help="of random weights (default 32768)")
    parser.add_argument("--split", default="test", metavar="NAME", help="that trained models translate (default test)")
    parser.add_argument("--lines", type=int, metavar="N", help="of it (default all)")
    parser.add_argument("--beam", type=int, default=4, metavar="N", help="for it (default 4)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write all samples as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="of trained models: sacreBLEU against time")
    parser.add_argument("--commit", metavar="HASH", help="of the code, where there is no git checkout")
    args = parser.parse_args(words)
    try:
        args.trained = dict(item.split("=", 1) for item in args.trained)
        args.models = ({} if args.trained else MODELS) | dict(item.split("=", 1) for item in args.models)
        cases = [tuple(map(int, case.split(":"))) for case in args.cases.split(",")]
        args.cases = [Case(*case, shortlist) for shortlist in sorted({0, args.shortlist}) for case in cases]
    except (ValueError, TypeError):
        parser.error("--trained and --models want NAME=VALUE, --cases BATCH:BEAM:THREADS of whole numbers")
    if bool(args.trained) != bool(args.data) or (args.plot and not args.trained):
        parser.error("--trained and --data belong together, and --plot needs both")
    known = args.trained or args.models
    args.systems = [system_name(text) for text in (args.systems or default_systems(known)).split(",")]
    for name in args.systems:
        if name.engine not in _edge_worker.ENGINES or name.precision not in PRECISIONS or name.model not in known:
            parser.error(
                f"'{name}' is no system: ENGINE:MODEL[:PRECISION] with engines ctranslate2, pytorch, portable, native, "
                f"models {', '.join(known)}, precisions {', '.join(PRECISIONS)}"
            )
    if min(args.rounds, args.sentences, args.length - 1, *(min(c.batch, c.beam, c.threads) for c in args.cases)) < 1:
        parser.error("--rounds, --sentences and --cases are at least 1, --length at least 2")
    return args


def system_name(text: str) -> Name:
    engine, model, precision = (*text.split(":"), "", "")[:3]
    return Name(engine, model, precision or ("fp32" if engine == "pytorch" else "int8"))


def default_systems(known: Sequence[str] | dict[str, Any]) -> str:
    """Those of the default systems whose models there are."""
    listed = SYSTEMS if "base" in known else TRAINED_SYSTEMS
    found = [text for text in listed.split(",") if system_name(text).model in known]
    return ",".join(found) or ",".join(f"portable:{model}" for model in known)


def main(words: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if words is None else words)
    args = parse_args(words)
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # of this process, which only converts: tiny products
    with Bench(args) as bench:
        bench.prepare()
        record = bench.rounds()
        if args.trained:
            found = scores(bench)
            for result in record["results"]:
                result |= found[result["system"]]
        record = {
            "benchmark": "edge",
            "corpus": corpus_name(args),
            "length": args.length,
            "shortlist": args.shortlist,
            "models": bench.models,
            "left_out": bench.left_out,
            **record,
        }
    about = provenance("bench_edge.py", [word for word in words if word], "cpu", args.commit)
    about["device"] = processor()
    about["command"] = about["command"].replace(f"{Path.home()}/", "~/")
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            about["versions"][package] = metadata.version(package)
    record = about | record
    print("\n".join(speed.edge_tables(record)))
    if args.record is not None:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.record, record)
    if args.plot is not None:
        pareto_plot(record, args.plot)
    return 0


def corpus_name(args: argparse.Namespace) -> str:
    """Of trained models: the corpus and its languages."""
    if not args.data:
        return ""
    prepared = Path(args.data) / RECORD_FILE
    content = read_json(prepared) if prepared.is_file() else {}
    return f"{content.get('corpus', Path(args.data).parent.name)} {'-'.join(args.languages)}"


if __name__ == "__main__":
    sys.exit(main())
