"""ROUGE over Google's rouge-score, with and without stemming, each under its own name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from rouge_score.rouge_scorer import RougeScorer

from data_prep.cnn_dm import SENTENCE_MARK
from lite_transformer.errors import ScoringError
from lite_transformer.scoring.score import Score

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(
    hypotheses: Sequence[str], references: Sequence[str], stem: bool = False, sentence_mark: str = SENTENCE_MARK
) -> list[Score]:
    """ROUGE-1, -2, -L and -Lsum: F1, 0 to 100, the mean over all summaries.

    rouge-score lower-cases and knows only the letters a to z and digits: the scores are meant for English.

    Args:
        hypotheses, references: detokenized summaries in the same order, each on one line.
        stem: reduce words of four letters or more by Porter's rules first; the metrics' names then end in ``_stem``.
        sentence_mark: what stands between two sentences, on both sides; where there is none, rougeLsum equals rougeL.
    Raises: ScoringError if the numbers of lines differ or are zero.
    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    if len(hypotheses) != len(references):
        raise ScoringError(
            f"{len(hypotheses)} summaries for {len(references)} references: they do not belong together. "
            "Line n of one must be the summary that line n of the other is judged by"
        )
    if not references:
        raise ScoringError("nothing to score: no summaries and no references")
    scorer = RougeScorer(METRICS, use_stemmer=stem)
    sums = dict.fromkeys(METRICS, 0.0)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        found = scorer.score(
            _one_sentence_a_line(reference, sentence_mark), _one_sentence_a_line(hypothesis, sentence_mark)
        )
        for name in METRICS:
            sums[name] += found[name].fmeasure
    version = metadata.version("rouge-score")
    signature = f"nrefs:1|f1:mean|stem:{'porter' if stem else 'no'}|sents:{sentence_mark}|rouge-score:{version}"
    ending = "_stem" if stem else ""
    return [Score(f"{name}{ending}", 100 * sums[name] / len(references), signature) for name in METRICS]


def _one_sentence_a_line(summary: str, sentence_mark: str) -> str:
    return "\n".join(part.strip() for part in summary.split(sentence_mark))
