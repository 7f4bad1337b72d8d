"""BLEU and chrF over sacreBLEU, each under the name of its protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from lite_transformer.errors import ScoringError
from lite_transformer.scoring.score import Score

METRICS = ("tokenized_bleu", "sacrebleu", "chrf")

_COMPOUND = re.compile(r"(\S)-(\S)")


def split_compounds(line: str) -> str:
    """``a-b`` -> ``a ##AT##-##AT## b``, the compound split of the WMT En-De scores (not of any other pair)."""
    return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", line)


def package_metric(name: str, lowercase: bool = False) -> Metric:
    """sacreBLEU's own object for 'tokenized_bleu', 'sacrebleu' or 'chrf'. Raises: KeyError for another name."""
    # force only silences the warning about text that looks tokenized; it changes no number
    make: dict[str, Callable[[], Metric]] = {
        "tokenized_bleu": lambda: BLEU(lowercase=lowercase, force=True, tokenize="none", smooth_method="none"),
        "sacrebleu": lambda: BLEU(lowercase=lowercase, force=True),
        "chrf": lambda: CHRF(lowercase=lowercase),
    }
    return make[name]()


def tokenized_bleu(
    hypotheses: Sequence[str], references: Sequence[str], compound_split: bool = False, lowercase: bool = False
) -> Score:
    """BLEU-4 over the words that white space gives: the protocol of the paper, equal to ``fairseq-score``.

    Without smoothing: if no 4-gram matches anywhere, the score is 0.

    Args:
        hypotheses, references: tokenized lines with subwords merged, in the same order.
        compound_split: split hyphenated words on both sides first.
        lowercase: ignore case (``fairseq-score --ignore-case``); not needed for text that is lower-cased already.
    Raises: ScoringError if the numbers of lines differ or are zero.
    """
    _check(hypotheses, references)
    if compound_split:
        hypotheses, references = ([split_compounds(line) for line in side] for side in (hypotheses, references))
    metric = package_metric("tokenized_bleu", lowercase)
    value = metric.corpus_score(hypotheses, [references]).score
    split = "yes" if compound_split else "no"
    return Score("tokenized_bleu", value, f"{metric.get_signature()}|compound_split:{split}")


def sacrebleu(hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = False) -> Score:
    """BLEU on detokenized text with sacreBLEU's own tokenization (13a).

    Args:
        hypotheses: detokenized lines.
        references: lines of the raw reference, never tokenized ones.
        lowercase: ignore case, for models whose data is lower-cased; the signature says so.
    """
    _check(hypotheses, references)
    metric = package_metric("sacrebleu", lowercase)
    return Score("sacrebleu", metric.corpus_score(hypotheses, [references]).score, str(metric.get_signature()))


def chrf(hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = False) -> Score:
    """chrF2, the F-score of character n-grams, on detokenized text."""
    _check(hypotheses, references)
    metric = package_metric("chrf", lowercase)
    return Score("chrf", metric.corpus_score(hypotheses, [references]).score, str(metric.get_signature()))


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ScoringError(
            f"{len(hypotheses)} hypotheses for {len(references)} references: they do not belong together. "
            "Line n of one must be the translation that line n of the other is judged by"
        )
    if not references:
        raise ScoringError("nothing to score: no hypotheses and no references")
