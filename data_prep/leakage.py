"""Whether a split can be had from train without learning anything: repetitions are removed, what is left is measured.

A split by document is not enough where documents repeat each other: copying would score there, and a memory would be
measured instead of a model.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

logger = logging.getLogger(__name__)

Pairs = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Leakage:
    """How much of a split can be had from train without learning.

    Attributes:
        lines: size of the split.
        sources, targets: lines whose normalised text is in train.
        copy_bleu: sacreBLEU, 0 to 100, of giving every line the target of the nearest training source.
    """

    lines: int
    sources: int
    targets: int
    copy_bleu: float


def draw_split(document: str, shares: Mapping[str, float]) -> str:
    """The split of a document: a hash of its name decides; what ``shares`` leaves over is train's."""
    position = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64
    for split, share in shares.items():
        if position < share:
            return split
        position -= share
    return "train"


def normalise(text: str) -> str:
    """What is compared to find repetitions: the words of a text in lower case, every number as 0, no punctuation."""
    return " ".join(re.findall(r"\w+", re.sub(r"\d+", "0", unicodedata.normalize("NFKC", text).casefold())))


def without_leakage(pairs: Pairs, train: Pairs, min_words: int) -> Pairs:
    """The pairs of ``min_words`` words or more, on both sides, neither side of which is in ``train``; none twice."""
    seen = [{normalise(pair[side]) for pair in train} for side in (0, 1)]
    kept: Pairs = []
    for pair in pairs:
        texts = [normalise(text) for text in pair]
        if all(len(text.split()) >= min_words for text in texts) and not any(
            text in known for text, known in zip(texts, seen, strict=True)
        ):
            kept.append(pair)
            for text, known in zip(texts, seen, strict=True):
                known.add(text)
    return kept


def measure_leakage(train: Pairs, pairs: Pairs) -> Leakage:
    """What remains of ``pairs`` in ``train``: exact repetitions, and the score of copying from the nearest line."""
    from sacrebleu.metrics import BLEU

    known = [{normalise(pair[side]) for pair in train} for side in (0, 1)]
    repeated = [sum(normalise(pair[side]) in known[side] for pair in pairs) for side in (0, 1)]
    nearest = nearest_lines([source for source, _ in train], [source for source, _ in pairs])
    copied = [train[number][1] for number in nearest]
    score = BLEU(force=True).corpus_score(copied, [[target for _, target in pairs]]).score
    return Leakage(len(pairs), repeated[0], repeated[1], score)


def report_leakage(splits: Mapping[str, Pairs]) -> None:
    """Logs the leakage of valid and test."""
    for name in ("valid", "test"):
        found = measure_leakage(splits["train"], splits[name])
        logger.info(
            "leakage check of %s: %d lines, %d sources and %d targets of them in train; "
            "copying the target of the nearest training source scores %.1f sacreBLEU",
            name, found.lines, found.sources, found.targets, found.copy_bleu,
        )  # fmt: skip


def nearest_lines(lines: Sequence[str], queries: Iterable[str]) -> list[int]:
    """For every query the number of the most similar line: the cosine of their words, rare ones weighing more."""
    import numpy as np

    words = [collections.Counter(normalise(line).split()) for line in lines]
    frequency = collections.Counter(word for counts in words for word in counts)
    weight = {word: math.log(1 + len(lines) / count) for word, count in frequency.items()}
    postings: dict[str, tuple[list[int], list[float]]] = {word: ([], []) for word in frequency}
    for number, counts in enumerate(words):
        length = math.sqrt(sum((count * weight[word]) ** 2 for word, count in counts.items())) or 1.0
        for word, count in counts.items():
            postings[word][0].append(number)
            postings[word][1].append(count * weight[word] / length)
    arrays = {word: (np.array(numbers), np.array(values)) for word, (numbers, values) in postings.items()}
    nearest = []
    for query in queries:
        score = np.zeros(len(lines))
        for word, count in collections.Counter(normalise(query).split()).items():
            if word in arrays:
                numbers, values = arrays[word]
                score[numbers] += count * weight[word] * values  # a line has a word once, so no index repeats
        nearest.append(int(score.argmax()))
    return nearest
