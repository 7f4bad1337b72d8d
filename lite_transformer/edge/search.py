"""Beam search over an `Engine`, with the meaning of ``fairseq-generate`` and nothing but NumPy.

At each step the 2 N likeliest continuations of a sentence's N beams are looked at. Those that end the sentence and are
among the best N are finished hypotheses; the best N of those that do not end it go on. A sentence is done when it has N
hypotheses, and leaves the batch. Source: fairseq 0.12, ``SequenceGenerator``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from lite_transformer.edge.engine import Candidates, Engine, Floats, Ids
from lite_transformer.edge.vocabulary import END, PAD
from lite_transformer.errors import ConfigError
from lite_transformer.scoring.protocols import Search

MOST_LENPEN = 10  # length^lenpen stays within fp32 for any length that a model writes


@dataclass(frozen=True)
class Settings(Search):
    """Settings of a search: those of ``fairseq-generate``, checked against a model.

    A hypothesis has at most as many tokens as the model can write, and a source's length is its own, whatever it is
    batched with.
    """

    def check_for(self, vocabulary_size: int, longest: int) -> None:
        """Raises: ConfigError naming the setting that cannot be, and what is allowed.

        Args:
            longest: tokens that the model can write.
        """
        for name, least in (("beam", 1), ("max_len_b", 0), ("min_len", 0), ("no_repeat_ngram_size", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} {value}: a whole number of at least {least} is needed")
        widest = (vocabulary_size - 1) // 2
        if self.beam > widest:
            raise ConfigError(f"beam {self.beam} is too wide for {vocabulary_size} subwords: at most {widest}")
        if not (_is_number(self.max_len_a) and self.max_len_a >= 0):
            raise ConfigError(f"max_len_a {self.max_len_a}: a number of at least 0 is needed")
        if not _is_number(self.lenpen):
            raise ConfigError(f"lenpen {self.lenpen}: a finite number is needed")
        if abs(self.lenpen) > MOST_LENPEN:
            raise ConfigError(f"lenpen {self.lenpen}: a number from -{MOST_LENPEN} to {MOST_LENPEN} is needed")
        shortest_limit = min(int(self.max_len_a + self.max_len_b), longest - 1)  # of a source of one token
        if self.min_len > shortest_limit:
            raise ConfigError(
                f"min_len {self.min_len} is more than max_len_a {self.max_len_a:g}, max_len_b {self.max_len_b} and the "
                f"model's {longest} positions leave to a short sentence: at most {shortest_limit}"
            )


@dataclass(frozen=True)
class Found:
    """A finished hypothesis: its tokens, the end of the sentence included, and its score divided by length^lenpen."""

    tokens: tuple[int, ...]
    score: float


@runtime_checkable
class Searcher(Protocol):
    """An engine that goes through the steps of `search` by itself, with the same hypotheses."""

    def search(
        self, source: Ids, limits: Ids, beam: int, min_len: int, no_repeat_ngram_size: int, lenpen: float
    ) -> list[list[tuple[list[int], float]]]:
        """The hypotheses of each sentence, best first: tokens with the end of the sentence, and scores.

        Args:
            source: (B, S) ids, padded on the left. limits: (B), tokens before the end of a hypothesis, at most.
        """


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def collate(sources: Sequence[Sequence[int]]) -> Ids:
    """(B, S) ids, padded on the left as fairseq does for translation."""
    width = max(map(len, sources))
    batch = np.full((len(sources), width), PAD, np.int64)
    for row, source in enumerate(sources):
        batch[row, width - len(source) :] = source
    return batch


def search(
    engine: Engine, sources: Sequence[Sequence[int]], settings: Settings, vocabulary_size: int, longest: int
) -> list[list[Found]]:
    """The finished hypotheses of each source, best first; at least one, at most N.

    Args:
        sources: tokens of each, the end of the sentence included.
        vocabulary_size: V. longest: tokens that the model can write. `Settings.check` has seen both.
    """
    limits = np.array([min(int(settings.max_len_a * len(s) + settings.max_len_b), longest - 1) for s in sources])
    if isinstance(engine, Searcher):
        options = (settings.beam, settings.min_len, settings.no_repeat_ngram_size, settings.lenpen)
        by_sentence = engine.search(collate(sources), limits, *options)
        return [[Found(tuple(tokens), score) for tokens, score in hypotheses] for hypotheses in by_sentence]
    finished: list[list[Found]] = [[] for _ in sources]
    beam, width = settings.beam, 2 * settings.beam
    alive = np.arange(len(sources))  # the sentences that still have rows
    own_limits, shortest = limits, int(limits.min())  # of those
    state = engine.encode(collate(sources))
    tokens = np.full((len(sources), 1, 1), END, np.int64)  # (B, N, step + 1)
    scores = np.zeros((len(sources), 1), np.float32)  # (B, N), sums of log-probabilities
    rows = alive[:, None]
    order = rows.copy()
    sentences: Ids | None = None
    for step in range(int(limits.max()) + 1):
        too_short = step < settings.min_len
        forbidden = _repeats(tokens[:, :, 1:], settings.no_repeat_ngram_size)
        # beside what is forbidden, padding is never chosen, nor the end of a sentence that is too short
        spare = 1 + too_short + max(map(len, forbidden.values()), default=0)
        count = min(width + spare, vocabulary_size)
        candidates = engine.step(state, tokens[:, :, -1], order, sentences, count)
        must_end = own_limits <= step if shortest <= step else None
        cand_scores, cand_tokens, cand_beams = _best(candidates, scores, must_end, too_short, forbidden, rows, width)
        ends = cand_tokens == END
        sentences = None
        if must_end is None and not ends.any():  # most steps: all sentences go on, each with its best N
            chosen = (slice(None), slice(beam))
            scores, beams, newest = cand_scores[chosen], cand_beams[chosen], cand_tokens[chosen]
        else:
            ends &= cand_scores != -np.inf
            penalty = np.float32((step + 1) ** settings.lenpen)
            for row, column in zip(*np.nonzero(ends[:, :beam]), strict=True):
                found = finished[alive[row]]
                if len(found) < beam:
                    written = tokens[row, cand_beams[row, column], 1:]
                    found.append(Found((*written.tolist(), END), float(cand_scores[row, column] / penalty)))
            going = np.array([len(finished[sentence]) < beam for sentence in alive])
            if must_end is not None:
                going &= ~must_end
            if not going.any():
                break
            # the best N that do not end: a stable sort puts them first, in their order
            columns = np.argsort(ends, axis=1, kind="stable")[:, :beam][going]
            rows = np.flatnonzero(going)[:, None]
            scores, beams, newest = cand_scores[rows, columns], cand_beams[rows, columns], cand_tokens[rows, columns]
            if len(rows) < len(alive):
                sentences, alive, own_limits = rows[:, 0], alive[going], own_limits[going]
                shortest = int(own_limits.min())
        order = rows * tokens.shape[1] + beams
        tokens = np.concatenate([tokens[rows, beams], newest[:, :, None]], axis=2)
        rows = np.arange(len(alive))[:, None] if sentences is not None else rows
    return [sorted(found, key=lambda item: -item.score) for found in finished]


def _best(
    candidates: Candidates,
    scores: Floats,
    must_end: np.ndarray | None,
    too_short: bool,
    forbidden: dict[tuple[int, int], set[int]],
    rows: Ids,
    width: int,
) -> tuple[Floats, Ids, Ids]:
    """Scores, tokens and beams (B, width) of the best continuations, falling; equal ones in the order of the beams.

    Args:
        must_end: (B), which sentences have reached their limit; None: none has. rows: (B, 1), 0 and up.
    """
    tokens = candidates.tokens
    total = candidates.scores + scores[:, :, None]
    total[(tokens == PAD) | np.isnan(total)] = -np.inf
    if too_short:
        total[tokens == END] = -np.inf
    for (row, beam), banned in forbidden.items():
        total[row, beam, np.isin(tokens[row, beam], list(banned))] = -np.inf
    if must_end is not None:
        tokens = tokens.copy()
        total[must_end], tokens[must_end] = -np.inf, PAD
        total[must_end, :, 0] = candidates.end_scores[must_end] + scores[must_end]
        tokens[must_end, :, 0] = END
    total, tokens = total.reshape(len(rows), -1), tokens.reshape(len(rows), -1)
    best = (-total).argsort(axis=1, kind="stable")[:, :width]
    return total[rows, best], tokens[rows, best], best // candidates.tokens.shape[2]


def _repeats(written: Ids, size: int) -> dict[tuple[int, int], set[int]]:
    """For each (sentence, beam) the tokens that would complete an n-gram which (B, N, T) tokens hold already."""
    if size == 0 or written.shape[2] < size:
        return {}
    ngrams = np.lib.stride_tricks.sliding_window_view(written, size, axis=2)  # (B, N, T - size + 1, size)
    last = written[:, :, written.shape[2] - size + 1 :]
    again = (ngrams[..., :-1] == last[:, :, None]).all(axis=-1)
    found: dict[tuple[int, int], set[int]] = {}
    for row, beam, place in zip(*np.nonzero(again), strict=True):
        found.setdefault((int(row), int(beam)), set()).add(int(ngrams[row, beam, place, -1]))
    return found


def greedy(engine: Engine, source: Sequence[int], limit: int, min_len: int = 1) -> Iterator[int]:
    """The likeliest next token again and again, as each is known, until the sentence ends or has ``limit`` tokens."""
    state = engine.encode(collate([source]))
    token, order = END, np.zeros((1, 1), np.int64)
    for step in range(limit):
        candidates = engine.step(state, np.full((1, 1), token, np.int64), order, None, 3)
        hidden = {PAD, END} if step < min_len else {PAD}
        token = next(int(found) for found in candidates.tokens[0, 0] if int(found) not in hidden)
        if token == END:
            return
        yield token
