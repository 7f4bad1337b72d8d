"""How sure a score is, and whether one system is better than another: sacreBLEU's resampling, for every metric."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import sacrebleu.metrics.base as package
from sacrebleu.significance import PairedTest

from lite_transformer.errors import ConfigError, ScoringError
from lite_transformer.scoring import bleu, rouge
from lite_transformer.scoring.score import Interval, Score

STEMMED = tuple(f"{name}_stem" for name in rouge.METRICS)
METRICS = (*bleu.METRICS, *rouge.METRICS, *STEMMED)
# our name -> sacreBLEU's, and how often it draws by default
TESTS = {"bootstrap": ("bs", 1000), "randomization": ("ar", 10000)}
RESAMPLES = 1000


@dataclass(frozen=True)
class System:
    """One system in a comparison.

    Attributes:
        name: such as the file of its hypotheses.
        score: with its interval.
        p_value: how likely a difference from the first system at least as large is if the two are equally good; None
            for the first system.
    """

    name: str
    score: Score
    p_value: float | None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **self.score.to_json(), "p_value": self.p_value}


@dataclass(frozen=True)
class Comparison:
    """Systems on one test set by one metric; the first is what the others are compared with.

    ``test`` is a key of TESTS, ``trials`` the number of resamples or shufflings, ``seed`` that of both.
    """

    metric: str
    signature: str
    test: str
    trials: int
    seed: int
    systems: tuple[System, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"systems": [system.to_json() for system in self.systems]}


def seed() -> int:
    """sacreBLEU's seed: 12345, or the environment's SACREBLEU_SEED.

    Raises: ConfigError if that is no whole number from 1: sacreBLEU would draw differently every time.
    """
    text = os.environ.get("SACREBLEU_SEED", "12345")
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(
            f"SACREBLEU_SEED={text}: a whole number from 1 is needed, or what is drawn cannot be repeated. Unset it"
        )
    return int(text)


def score(
    metric: str,
    hypotheses: Sequence[str],
    references: Sequence[str],
    lowercase: bool = False,
    compound_split: bool = False,
    confidence: bool = False,
) -> Score:
    """One score by the metric's name, with its 95 % interval on request.

    Args:
        metric: one of METRICS.
        hypotheses, references: tokenized lines for tokenized_bleu, otherwise detokenized ones.
        lowercase: ignore case; ROUGE always does. compound_split: for tokenized_bleu only.
    Raises: ScoringError if the numbers of lines differ or are zero; ConfigError for an unknown metric.
    """
    if metric == "tokenized_bleu":
        found = bleu.tokenized_bleu(hypotheses, references, compound_split, lowercase)
    elif metric in bleu.METRICS:
        found = getattr(bleu, metric)(hypotheses, references, lowercase)
    elif metric in METRICS:
        scores = rouge.rouge(hypotheses, references, stem=metric in STEMMED)
        found = next(item for item in scores if item.metric == metric)
    else:
        raise ConfigError(f"unknown metric '{metric}'. Known: {', '.join(METRICS)}")
    return with_interval(found, hypotheses, references, lowercase, compound_split) if confidence else found


def with_interval(
    found: Score,
    hypotheses: Sequence[str],
    references: Sequence[str],
    lowercase: bool = False,
    compound_split: bool = False,
) -> Score:
    """The score with its 95 % interval. The other arguments are those that it was computed from, see ``score``."""
    metric, (lines, targets) = _prepare(found.metric, lowercase, compound_split, hypotheses, references)
    number = seed()
    resampled = metric.corpus_score(lines, [targets], n_bootstrap=RESAMPLES)
    interval = Interval(float(resampled._mean), float(resampled._ci), RESAMPLES, number)
    return Score(found.metric, found.value, found.signature, interval)


def compare(
    metric: str,
    systems: Sequence[tuple[str, Sequence[str]]],
    references: Sequence[str],
    test: str = "bootstrap",
    trials: int = 0,
    lowercase: bool = False,
    compound_split: bool = False,
) -> Comparison:
    """The paired significance test of each system against the first.

    Args:
        metric, lowercase, compound_split: as for ``score``.
        systems: names with hypotheses, all of the same test set.
        test: 'bootstrap' (paired bootstrap resampling, Koehn 2004) or 'randomization' (approximate randomization,
            Riezler and Maxwell 2005), both two-sided.
        trials: resamples or shufflings; 0 for sacreBLEU's defaults, 1,000 and 10,000.
    Raises: ScoringError if a system has not a line for each reference; ConfigError if fewer than two systems, unknown
        metric or test.
    """
    if len(systems) < 2:
        raise ConfigError("a comparison needs two systems or more, the one to compare with first")
    if test not in TESTS:
        raise ConfigError(f"unknown test '{test}'. Known: {', '.join(TESTS)}")
    if trials < 0:
        raise ConfigError(f"{trials} trials: a positive number is needed, or 0 for the test's usual one")
    number = seed()
    for name, hypotheses in systems:
        if len(hypotheses) != len(references):
            raise ScoringError(
                f"{name}: {len(hypotheses)} hypotheses for {len(references)} references: not the same test set"
            )
    scores = [score(metric, hypotheses, references, lowercase, compound_split) for _, hypotheses in systems]
    measure, sides = _prepare(metric, lowercase, compound_split, references, *(lines for _, lines in systems))
    short, usual = TESTS[test]
    names = [str(position) for position in range(len(systems))]
    tested = PairedTest(
        list(zip(names, sides[1:], strict=True)),
        {metric: measure},
        [sides[0]],
        test_type=short,
        n_samples=trials,
        n_ar_confidence=RESAMPLES,  # the bootstrap test has intervals anyway
    )
    _, table = tested()
    results: list[Any] = next(rows for key, rows in table.items() if key != "System")
    resamples = (trials or usual) if test == "bootstrap" else RESAMPLES
    found = []
    for (name, _), plain, result in zip(systems, scores, results, strict=True):
        interval = Interval(float(result.mean), float(result.ci), resamples, number)
        p_value = result.p_value
        if p_value is not None and plain.value == scores[0].value:
            p_value = 1.0  # sacreBLEU counts differences above the one seen, and finds none above nothing
        found.append(System(name, Score(metric, plain.value, plain.signature, interval), p_value))
    return Comparison(metric, scores[0].signature, test, trials or usual, number, tuple(found))


def _prepare(
    metric: str, lowercase: bool, compound_split: bool, *sides: Sequence[str]
) -> tuple[package.Metric, list[Sequence[str]]]:
    """sacreBLEU's object of the metric, and the lines as it is to see them."""
    if metric not in bleu.METRICS:
        return _Rouge(metric), list(sides)
    if metric == "tokenized_bleu" and compound_split:
        sides = tuple([bleu.split_compounds(line) for line in side] for side in sides)
    return bleu.package_metric(metric, lowercase), list(sides)


class _Rouge(package.Metric):
    """ROUGE as sacreBLEU's resampling wants a metric: the mean of one number a summary."""

    _SIGNATURE_TYPE = package.Signature

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def _preprocess_segment(self, sent: str) -> str:
        return sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        return {"reference": refs[0]}

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict) -> list[float]:
        return [_rouge_of_one(hypothesis, ref_kwargs["reference"], self.name in STEMMED)[self.name], 1.0]

    def _compute_score_from_stats(self, stats: Sequence[float]) -> package.Score:
        return package.Score(self.name, float(stats[0] / stats[1]))

    def _aggregate_and_compute(self, stats: Sequence[Sequence[float]]) -> package.Score:
        return self._compute_score_from_stats(np.sum(np.asarray(stats, dtype="float64"), axis=0))


@lru_cache(maxsize=100_000)  # the four kinds of ROUGE of one summary come together
def _rouge_of_one(hypothesis: str, reference: str, stem: bool) -> dict[str, float]:
    return {item.metric: item.value for item in rouge.rouge([hypothesis], [reference], stem)}
