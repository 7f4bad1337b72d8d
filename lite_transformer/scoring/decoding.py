"""Translating a binarized test set with fairseq's own task and search, every sentence of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.logging import metrics
from fairseq.utils import resolve_max_positions, strip_pad
from fairseq_cli.generate import get_symbols_to_strip_from_output
from tqdm import tqdm

# Registers our models and tasks: fairseq skips a user-dir that is imported already.
import lite_transformer.models
import lite_transformer.tasks  # noqa: F401
from lite_transformer.compression.container import is_packed
from lite_transformer.errors import CheckpointError, DataError, LiteTransformerError
from lite_transformer.models import packed_checkpoint
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.scoring.generation import check_count
from lite_transformer.scoring.protocols import Search

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hypothesis:
    """The best translation of one sentence beside its reference, both in subwords.

    ``reference`` writes an unknown word as <<unk>>, so that an unknown word in the hypothesis never matches it.
    """

    id: int
    subwords: str
    reference: str


@dataclass(frozen=True)
class Loaded:
    """The models of an ensemble with their fairseq task and the configuration of the last one."""

    models: list[Any]
    task: Any
    config: Any
    device: torch.device

    @property
    def languages(self) -> tuple[str, str]:
        return self.task.cfg.source_lang, self.task.cfg.target_lang


def check_data(folder: Path, split: str, pair: tuple[str | None, str | None]) -> None:
    """Makes sure that the dictionaries and the split are there, whole.

    Raises: DataError naming the first missing file and the command that makes it.
    """
    source, target = pair
    dest = folder.parent if folder.name == "bin" else folder
    languages = f" --pair {source}-{target}" if source and target else ""
    advice = f"Run: lite-transformer prepare CORPUS{languages} --dest {dest}, then give --data {dest / 'bin'}"
    if not folder.is_dir():
        raise DataError(f"no binarized data in {folder} (no such folder). {advice}")
    if not source or not target:
        found = next(iter(sorted(folder.glob(f"{split}.*-*.*.idx"))), None)
        if found is None:
            raise DataError(f"no binarized data in {folder} ({split}.SOURCE-TARGET.LANGUAGE.idx is missing). {advice}")
        source, target = found.name.split(".")[-3].split("-", 1)
    order = (source, target)
    if (folder / f"{split}.{target}-{source}.{source}.idx").exists():  # binarized for the other direction
        order = (target, source)
    names = [f"dict.{language}.txt" for language in (source, target)]
    names += [f"{split}.{'-'.join(order)}.{side}.{end}" for side in (source, target) for end in ("idx", "bin")]
    for name in names:
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            what = "empty" if path.is_file() else "missing"
            raise DataError(f"no complete binarized data in {folder} ({name} is {what}). {advice}")


def languages_of(checkpoint: Path) -> tuple[str | None, str | None]:
    """Source and target language that a checkpoint was trained for, as far as it says."""
    state = load_checkpoint(checkpoint)
    if state.get("cfg") is not None:
        task = state["cfg"]["task"]
        return (task.get("source_lang"), task.get("target_lang")) if isinstance(task, dict) else _named(task)
    return _named(state["args"])


def _named(options: Any) -> tuple[str | None, str | None]:
    return getattr(options, "source_lang", None), getattr(options, "target_lang", None)


def load(checkpoints: Sequence[Path], data: Path, cpu: bool = False, fp16: bool = False) -> Loaded:
    """The models, ready for search, with the dictionaries of ``data``; packed files are models, too.

    Raises: CheckpointError if a checkpoint cannot be loaded or was trained with other dictionaries.
    """
    names = [str(path) for path in checkpoints]
    overrides = {"data": str(data)}
    models: list[Any] = []
    config = task = None
    try:
        for path in checkpoints:
            state = packed_checkpoint.fairseq_state(path, data) if is_packed(path) else None
            found, config, task = checkpoint_utils.load_model_ensemble_and_task(
                [str(path)], arg_overrides=overrides, task=task, state=state
            )
            models += found
    except LiteTransformerError:
        raise
    except Exception as error:  # fairseq and torch raise anything from KeyError to RuntimeError here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = ""
        if "size mismatch" in str(error):
            advice = f" The dictionaries of {data} are not those it was trained with: give the data it was trained on"
        raise CheckpointError(f"{', '.join(names)}: cannot be loaded ({reason}).{advice}") from error
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    return Loaded([_ready(model, device, fp16) for model in models], task, config, device)


def _ready(model: Any, device: torch.device, fp16: bool) -> Any:
    if fp16:
        model.half()
    model.to(device).eval()
    model.make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
    return model


def translate(
    loaded: Loaded, split: str, search: Search, max_tokens: int | None = None, batch_size: int | None = None
) -> list[Hypothesis]:
    """The best hypothesis for every sentence of a split, in the order of the file.

    Args:
        max_tokens, batch_size: limits of a batch, source tokens with padding and sentences.
    Raises: DataError if a sentence is longer than the model reads; ScoringError if a sentence is left out.
    """
    task, models = loaded.task, loaded.models
    if max_tokens is None and batch_size is None:
        max_tokens = 12000
    try:
        task.load_dataset(split, task_cfg=loaded.config.task)
        dataset = task.dataset(split)
        longest = max(int(dataset.src.sizes.max()), int(dataset.tgt.sizes.max()))
        dataset[len(dataset) - 1]  # a file that was cut off fails here
    except (OSError, ValueError) as error:
        raise DataError(f"the {split} split of {task.cfg.data} cannot be read ({error}). Prepare it again") from error
    limits = resolve_max_positions(task.max_positions(), *[model.max_positions() for model in models])
    if longest > min(limits):
        raise DataError(f"the {split} split has a sentence of {longest} tokens; the model reads at most {min(limits)}")
    batches = task.get_batch_iterator(
        dataset,
        max_tokens=max_tokens,
        max_sentences=batch_size,
        max_positions=limits,
        required_batch_size_multiple=1,  # with fairseq's default of 8 the last batch is silently dropped
    ).next_epoch_itr(shuffle=False)
    generator = task.build_generator(
        models,
        GenerationConfig(**asdict(search)),
    )
    if search.no_repeat_ngram_size:
        generator.repeat_ngram_blocker = NoRepeatedNgrams(search.no_repeat_ngram_size)
    found: list[Hypothesis] = []
    with tqdm(total=len(dataset), desc=f"translate {split}", unit="sentence", disable=None) as progress:
        for sample in batches:
            found += _translate_batch(loaded, generator, sample)
            progress.update(len(found) - progress.n)
    found.sort(key=lambda item: item.id)
    check_count([item.id for item in found], len(dataset))
    return found


class NoRepeatedNgrams(torch.nn.Module):
    """Forbids the token that would complete an n-gram which its hypothesis holds already.

    It takes the place of fairseq 0.12's own, which without its CUDA extension compares the padding behind the
    hypothesis instead of its end, and so forbids nothing (fairseq issues 4709, 5206).
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, tokens: torch.Tensor, lprobs: torch.Tensor, bsz: int, beam_size: int, step: int) -> torch.Tensor:
        """``lprobs`` (N, V), changed in place: -inf for the forbidden tokens.

        Args:
            tokens: (N, L) with N = bsz * beam_size; a mark of the beginning, ``step`` generated tokens, padding.
        """
        if step < self.size:
            return lprobs
        history = tokens[:, 1 : step + 1]
        ngrams = history.unfold(1, self.size, 1)  # (N, step - size + 1, size)
        last = history[:, step - self.size + 1 :]  # (N, size - 1)
        again = (ngrams[..., :-1] == last[:, None]).all(dim=-1)  # (N, step - size + 1)
        # a token may follow several n-grams: added up, as the order of assignments to one place is undefined
        count = torch.zeros_like(lprobs, dtype=torch.int32).scatter_add_(1, ngrams[..., -1], again.int())
        return lprobs.masked_fill_(count > 0, -torch.inf)


def _translate_batch(loaded: Loaded, generator: Any, sample: dict[str, Any]) -> list[Hypothesis]:
    dictionary = loaded.task.target_dictionary
    hidden = get_symbols_to_strip_from_output(generator)
    if loaded.device.type == "cuda":
        sample = utils.move_to_cuda(sample)
    with torch.no_grad(), metrics.aggregate(new_root=True):
        results = loaded.task.inference_step(generator, loaded.models, sample)
    found = []
    for row, (number, hypotheses) in enumerate(zip(sample["id"].tolist(), results, strict=True)):
        reference = strip_pad(sample["target"][row], dictionary.pad()).int().cpu()
        found.append(
            Hypothesis(
                number,
                dictionary.string(hypotheses[0]["tokens"].int().cpu(), extra_symbols_to_ignore=hidden),
                dictionary.string(reference, escape_unk=True, extra_symbols_to_ignore=hidden),
            )
        )
    return found
