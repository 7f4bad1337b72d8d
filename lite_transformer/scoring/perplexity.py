"""Perplexity of a language model over a whole split, by the published protocol: every token once, in a window of text.

A split is cut into blocks of ``tokens_per_sample - context_window`` tokens; each is scored with up to
``context_window`` tokens of text before it, and positions begin anew with each window. So does ``fairseq-eval-lm``, and
the results are the same. What is faster here: probabilities are computed for scored tokens alone, and of these only the
targets' (fairseq computes all types' at every position of a window, context too); windows that begin with the same
token, as all do until the first is full, are one pass; several windows go through the model together.

A cache of the context's keys, values and convolution inputs would not give these figures: when a window moves on, its
first token gets position 0 and its tokens lose what they saw before it, so everything computed of them is another.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lite_transformer.compression.training import TASK_PREFIX
from lite_transformer.errors import ConfigError, DataError, ScoringError
from lite_transformer.models.adaptive import BandedSoftmax
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.scoring.text_protocols import TextProtocol

logger = logging.getLogger(__name__)

TASK = "language_modeling"
_SCORED_AT_ONCE = 4096  # positions; their logits of the softmax' first band are the largest tensor


def is_language_model(checkpoint: Path) -> bool:
    """Whether a checkpoint was trained on fairseq's task language_modeling, or by a recipe. Raises: CheckpointError."""
    state = load_checkpoint(checkpoint)
    options = state["cfg"]["task"] if state.get("cfg") is not None else state["args"]
    if isinstance(options, dict):
        name = options.get("_name")
    else:
        name = getattr(options, "_name", None) or getattr(options, "task", None)
    return str(name).removeprefix(TASK_PREFIX) == TASK


# --- the text ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A split as it is scored.

    Attributes:
        source, target: (N,) token ids; target n is to be predicted from source n and what stands before it.
        ends: (blocks,) where each block ends.
        left_out: tokens of the split that are in no block: ends of the empty lines between documents.
    """

    source: Tensor
    target: Tensor
    ends: np.ndarray
    left_out: int


def check_data(folder: Path, split: str) -> None:
    """Makes sure that the dictionary and the split are there, whole.

    Raises: DataError naming the first missing file and the command that makes it.
    """
    dest = folder.parent if folder.name == "bin" else folder
    advice = f"Run: lite-transformer prepare CORPUS --dest {dest}, then give --data {dest / 'bin'}"
    if not folder.is_dir():
        raise DataError(f"no binarized data in {folder} (no such folder). {advice}")
    for name in ("dict.txt", f"{split}.idx", f"{split}.bin"):
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            what = "empty" if path.is_file() else "missing"
            raise DataError(f"no complete binarized data in {folder} ({name} is {what}). {advice}")


def read_text(folder: Path, split: str, dictionary: Any, protocol: TextProtocol) -> Text:
    """A binarized split, cut into blocks by fairseq's own rule.

    Raises: DataError if it is damaged or holds tokens that the dictionary does not have; ScoringError if it is empty.
    """
    from fairseq.data import TokenBlockDataset, data_utils

    file = folder / f"{split}.bin"
    if file.is_file() and not file.stat().st_size:
        raise ScoringError(f"the {split} split of {folder} is empty: there is no token to score")
    try:
        lines = data_utils.load_indexed_dataset(str(folder / split), dictionary)
        if lines is None:
            raise ValueError("no data set of fairseq's")
        tokens = torch.cat([lines[number] for number in range(len(lines))]).long()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"the {split} split of {folder} cannot be read ({error}). Prepare it again") from error
    if int(tokens.max()) >= len(dictionary):
        raise DataError(
            f"the {split} split of {folder} has token {int(tokens.max())}, and dict.txt has {len(dictionary)} types: "
            "they do not belong together. Prepare the data again"
        )
    try:
        cut = TokenBlockDataset(
            lines, lines.sizes, protocol.block, dictionary.pad(), dictionary.eos(), protocol.sample_break_mode
        )
    except ValueError:  # no document has a line
        raise ScoringError(
            f"the {split} split of {folder} holds empty documents alone: there is no token to score"
        ) from None
    slices = np.asarray(cut.slice_indices, dtype=np.int64)
    sizes = slices[:, 1] - slices[:, 0]
    # before the first token of a block stands an end of line, unless blocks end anywhere
    before = torch.cat([torch.tensor([dictionary.eos()]), tokens[:-1]])
    kept = torch.cat([torch.arange(start, end) for start, end in slices.tolist()])
    return Text(before[kept], tokens[kept], np.cumsum(sizes), len(tokens) - len(kept))


# --- windows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """One pass of the model: tokens ``start`` to ``end`` of the text, of which those from ``scored`` on are scored."""

    start: int
    scored: int
    end: int


def plan_windows(ends: Sequence[int], protocol: TextProtocol) -> list[Window]:
    """The passes that score every block once, in the text's order.

    Raises: DataError if a block is longer than a window: a line that nothing may cut.
    """
    windows: list[Window] = []
    scored = 0
    for end in map(int, ends):
        length = end - scored
        if length > protocol.tokens_per_sample:
            raise DataError(
                f"a line of {length} tokens is longer than --tokens-per-sample {protocol.tokens_per_sample}: "
                "give --sample-break-mode none, which cuts lines, or more tokens per sample"
            )
        start = max(0, scored - min(protocol.context_window, protocol.tokens_per_sample - length))
        if windows and windows[-1].start == start:  # what it computes is a part of this pass, too
            windows[-1] = Window(start, windows[-1].scored, end)
        elif end > scored:
            windows.append(Window(start, scored, end))
        scored = end
    return windows


def _batches(windows: Sequence[Window], max_tokens: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    longest = 0
    for window in windows:
        longest = max(longest, window.end - window.start)
        if batch and longest * (len(batch) + 1) > max_tokens:
            yield batch
            batch, longest = [], window.end - window.start
        batch.append(window)
    if batch:
        yield batch


# --- scores --------------------------------------------------------------------------------------------------------


def log_probabilities(
    model: Any, text: Text, windows: Sequence[Window], device: torch.device, max_tokens: int = 3072
) -> Tensor:
    """(N,) in fp64 on the CPU: the natural logarithm of the probability of every target.

    Args:
        model: a language model of fairseq's, in evaluation mode on ``device``.
        max_tokens: of the windows that go through it together, padding included.
    Raises: ScoringError if a token is scored twice or not at all, or a probability is no number.
    """
    decoder = model.decoder
    scores = torch.full((len(text.target),), math.nan, dtype=torch.float64)
    with tqdm(total=len(text.target), desc="score", unit="token", disable=None, leave=False) as progress:
        for batch in _batches(windows, max_tokens):
            longest = max(window.end - window.start for window in batch)
            tokens = torch.full((len(batch), longest), decoder.padding_idx)
            is_scored = torch.zeros(len(batch), longest, dtype=torch.bool)
            for row, window in enumerate(batch):
                tokens[row, : window.end - window.start] = text.source[window.start : window.end]
                is_scored[row, window.scored - window.start : window.end - window.start] = True
            places = torch.cat([torch.arange(window.scored, window.end) for window in batch])
            if not scores[places].isnan().all():
                raise ScoringError("a token was scored twice")
            with torch.no_grad():
                features = decoder.extract_features(tokens.to(device), encoder_out=None)[0]
                found = _of_targets(decoder, features[is_scored.to(device)], text.target[places].to(device))
            scores[places] = found.double().cpu()
            progress.update(len(places))
    if not torch.isfinite(scores).all():
        count = int((~torch.isfinite(scores)).sum())
        raise ScoringError(
            f"{count} of {len(scores)} tokens have no finite probability: the model is damaged or in fp16"
        )
    return scores


def _of_targets(decoder: Any, features: Tensor, targets: Tensor) -> Tensor:
    """(N,) fp32 log-probabilities of targets (N,), of features (N, C)."""
    parts = []
    for part, target in zip(features.split(_SCORED_AT_ONCE), targets.split(_SCORED_AT_ONCE), strict=True):
        if isinstance(decoder.adaptive_softmax, BandedSoftmax):
            parts.append(decoder.adaptive_softmax.target_log_probs(part, target))
            continue
        if decoder.adaptive_softmax is not None:
            of_types = decoder.adaptive_softmax.get_log_prob(part.unsqueeze(0), target.unsqueeze(0))[0]
        else:
            of_types = torch.log_softmax(decoder.output_projection(part).float(), dim=-1)
        parts.append(of_types.gather(1, target.unsqueeze(1)).squeeze(1).float())
    return torch.cat(parts)


@dataclass(frozen=True)
class Perplexity:
    """What a model makes of a split.

    Attributes:
        tokens: scored, ends of lines counted.
        words: of these, words and ends of lines; fewer than tokens where words are split into subwords.
        nats: the negative logarithm of the whole text's probability.
    """

    tokens: int
    words: int
    nats: float

    @property
    def per_token(self) -> float:
        return math.exp(self.nats / self.tokens)

    @property
    def per_word(self) -> float:
        """Renormalised: a word's probability is the product of its subwords'."""
        return math.exp(self.nats / self.words)

    @property
    def bits_per_token(self) -> float:
        return self.nats / self.tokens / math.log(2)


def count_words(target: Tensor, dictionary: Any, subword: str) -> int:
    """Words and ends of lines among token ids (N,): a word is counted where it ends.

    Args:
        subword: 'none', 'bpe' (a piece that ends in @@ goes on) or 'sentencepiece' (a word begins with U+2581).
    """
    if subword == "none":
        return len(target)
    types = [dictionary[number] for number in range(len(dictionary))]
    if subword == "bpe":
        counted = torch.tensor([not name.endswith("@@") for name in types])
    else:
        counted = torch.tensor([name.startswith("\u2581") or n == dictionary.eos() for n, name in enumerate(types)])
    return int(counted[target].sum())


def score_split(
    loaded: Any, folder: Path, split: str, protocol: TextProtocol, subword: str, max_tokens: int | None = None
) -> tuple[Perplexity, Text]:
    """The perplexity of a loaded model (`decoding.Loaded`) on a split.

    Raises: ConfigError, DataError, ScoringError; a split without tokens is an error, never perplexity 1.
    """
    model, dictionary = loaded.models[0], loaded.task.source_dictionary
    if len(loaded.models) > 1:
        raise ConfigError("perplexity is computed of one model: give one --checkpoint")
    if getattr(loaded.task.args, "add_bos_token", False):
        raise ConfigError("the model was trained with --add-bos-token, which is not supported: use fairseq-eval-lm")
    protocol.check(int(model.max_positions()))
    text = read_text(folder, split, dictionary, protocol)
    windows = plan_windows(text.ends.tolist(), protocol)
    if max_tokens is None:
        max_tokens = 8 * protocol.tokens_per_sample if loaded.device.type == "cuda" else protocol.tokens_per_sample
    scores = log_probabilities(model, text, windows, loaded.device, max_tokens)
    nats = -float(scores.sum())
    return Perplexity(len(scores), count_words(text.target, dictionary, subword), nats), text
