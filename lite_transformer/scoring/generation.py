"""The one reader of what ``fairseq-generate`` and ``fairseq-interactive`` print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lite_transformer.errors import ScoringError

_LINE = re.compile(r"([STHDP])-(\d+)\t(.*)", re.DOTALL)
_USUAL_CAUSE = (
    "The usual cause: fairseq drops the last batch when its size is not a multiple of "
    "--required-batch-size-multiple; pass --required-batch-size-multiple 1"
)


@dataclass(frozen=True)
class Translation:
    """What was printed for one sentence; None for what was not.

    Attributes:
        id: line number in the test set, from 0.
        source, target: S- and T- lines: subwords merged if --post-process was given.
        hypothesis: H- line, the best one; the same merging.
        detokenized: D- line.
        score: of the hypothesis, log2 probability normalised by length.
        token_scores: P- line.
    """

    id: int
    source: str | None = None
    target: str | None = None
    hypothesis: str | None = None
    detokenized: str | None = None
    score: float | None = None
    token_scores: tuple[float, ...] = ()


def read_generation(path: Path, expected: int | None = None) -> list[Translation]:
    """As ``parse_generation``, from a file. Raises also if it cannot be read; every message names the file."""
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            return parse_generation(stream, expected)
    except UnicodeDecodeError as error:
        raise ScoringError(f"{path}: not UTF-8 ({error.reason}), so no output of fairseq-generate") from None
    except OSError as error:
        raise ScoringError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ScoringError as error:
        raise ScoringError(f"{path}: {error}") from None


def parse_generation(lines: Iterable[str], expected: int | None = None) -> list[Translation]:
    """The translations in the order of the test set, whatever the order of printing; other lines are log, skipped.

    Of several hypotheses for a sentence (--nbest) the first, which is the best, counts.

    Args:
        expected: number of lines of the source file; without it, the numbers of the sentences must have no gap.
    Raises: ScoringError if a sentence is missing or surplus, or a line is malformed.
    """
    found: dict[int, Translation] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line.rstrip("\n"))
        if not match:
            continue
        kind, sentence, rest = match[1], int(match[2]), match[3]
        found[sentence] = _with(found.get(sentence, Translation(sentence)), kind, rest, number)
    translations = [found[sentence] for sentence in sorted(found)]
    check_count([row.id for row in translations if row.hypothesis is not None], expected)
    return translations


def _with(row: Translation, kind: str, rest: str, number: int) -> Translation:
    if kind == "S":
        return replace(row, source=rest)
    if kind == "T":
        return replace(row, target=rest)
    try:
        if kind == "P":
            return row if row.token_scores else replace(row, token_scores=tuple(map(float, rest.split())))
        score, _, text = rest.partition("\t")
        if kind == "H":
            return row if row.hypothesis is not None else replace(row, hypothesis=text, score=float(score))
        return row if row.detokenized is not None else replace(row, detokenized=text)
    except ValueError:
        raise ScoringError(f"line {number}: '{kind}-{row.id}' is followed by no number") from None


def check_count(ids: Sequence[int], expected: int | None = None) -> None:
    """Makes sure that every sentence was translated once: ids 0 to expected - 1, in order.

    Args:
        ids: numbers of the sentences that have a hypothesis, sorted.
        expected: number of source lines; the largest id + 1 unless given.
    Raises: ScoringError naming both counts and the usual cause.
    """
    if not ids and not expected:
        raise ScoringError("no hypothesis found: this is no output of fairseq-generate, or it was run with --quiet")
    wanted = ids[-1] + 1 if expected is None else expected
    if len(ids) == wanted and list(ids) == list(range(wanted)):
        return
    missing = sorted(set(range(wanted)) - set(ids))
    first = f" (first missing: sentence {missing[0]})" if missing else ""
    raise ScoringError(f"{len(ids)} hypotheses for {wanted} source lines{first}. {_USUAL_CAUSE}")
