"""A lexical shortlist: the target tokens that the tokens of a source are likely to be translated by, and no others.

The output projection is then computed for these alone. Built from sentences that were translated, at export; NumPy
alone reads it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.io import atomic_bytes
from lite_transformer.edge.vocabulary import END, PAD, UNKNOWN
from lite_transformer.errors import CheckpointError, ConfigError

SIZE = 100
MOST_SENTENCES = 1_000_000  # that are counted, spread over all
_SPECIAL = (PAD, END, UNKNOWN)
_MAGIC = b"lite-transformer shortlist 1\n"
_CHUNK = 4000  # sentences whose pairs are counted at once
_MOST_PAIRS = 50_000_000  # kept in memory; more than these, and pairs seen once are dropped

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Shortlist:
    """Which target tokens each source token allows.

    Attributes:
        always: allowed whatever the source is: special tokens and the most frequent ones, rising.
        starts: (V source + 1), where the tokens that a source token allows begin in ``tokens``.
        tokens: target tokens, rising for each source token.
        target_size: V of the target.
    """

    always: Ids
    starts: Ids
    tokens: Ids
    target_size: int

    def allowed(self, sources: Iterable[Sequence[int]]) -> Ids:
        """The tokens that translations of these sources may have, rising.

        Args:
            sources: tokens of the sentences that are translated together.
        """
        mask = np.zeros(self.target_size, bool)
        mask[self.always] = True
        for token in {token for source in sources for token in source}:
            mask[self.tokens[self.starts[token] : self.starts[token + 1]]] = True
        return np.flatnonzero(mask)


def build(
    sentences: Sequence[tuple[Ids, Ids]],
    sizes: tuple[int, int],
    size: int = SIZE,
    same: Mapping[int, int] | None = None,
) -> Shortlist:
    """The shortlist that translated sentences give: for each source token the ``size`` target tokens that stand beside
    it far more often than by chance, and the ``size`` most frequent ones.

    Target tokens are ranked by their count beside the source token times the logarithm of how many times chance that
    is; pairs that chance explains are left out.

    Args:
        sentences: source and target tokens of each. sizes: V of both sides.
        same: target tokens by the source tokens that are written alike, such as names; always allowed.
    Raises: ConfigError if ``size`` is no positive number, or there is no sentence.
    """
    if size < 1:
        raise ConfigError(f"shortlist size {size}: at least 1 is needed")
    if not len(sentences):
        raise ConfigError("no sentences to build a shortlist from")
    step = -(-len(sentences) // MOST_SENTENCES)
    chosen = range(0, len(sentences), step)
    counts, source_counts, target_counts = _count(sentences, chosen, sizes)
    order = np.argsort(-target_counts, kind="stable")
    frequent = order[target_counts[order] > 0][:size]
    always = np.union1d(frequent, _SPECIAL)
    keys, beside = counts
    rows, columns = np.divmod(keys, sizes[1])
    expected = source_counts[rows] * target_counts[columns] / len(chosen)
    scores = beside * np.log(beside / expected)
    kept = (scores > 0) & ~np.isin(columns, always)
    rows, columns, scores = rows[kept], columns[kept], scores[kept]
    if same:
        others = np.array([(row, column) for row, column in same.items() if column not in always], np.int64)
        others = others.reshape(-1, 2)
        rows, columns = np.concatenate([rows, others[:, 0]]), np.concatenate([columns, others[:, 1]])
        scores = np.concatenate([scores, np.full(len(others), np.inf)])
    ranked = np.lexsort((columns, -scores, rows))
    rows, columns = rows[ranked], columns[ranked]
    first = np.searchsorted(rows, rows)  # where each row begins
    best = np.arange(len(rows)) - first < size
    pairs = np.unique(rows[best] * sizes[1] + columns[best])
    rows, columns = np.divmod(pairs, sizes[1])
    starts = np.searchsorted(rows, np.arange(sizes[0] + 1))
    return Shortlist(always, starts, columns, sizes[1])


def _count(
    sentences: Sequence[tuple[Ids, Ids]], chosen: Sequence[int], sizes: tuple[int, int]
) -> tuple[tuple[Ids, Ids], Ids, Ids]:
    """In how many sentences each pair of tokens stands (key: source * V target + target), and each token."""
    single = [np.zeros(size, np.int64) for size in sizes]
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start in range(0, len(chosen), _CHUNK):
        found = []
        for index in chosen[start : start + _CHUNK]:
            source, target = (np.unique(side) for side in sentences[index])
            single[0][source] += 1
            single[1][target] += 1
            found.append((source[:, None] * sizes[1] + target).ravel())
        more, how_often = np.unique(np.concatenate(found), return_counts=True)
        keys, counts = _merged(keys, counts, more, how_often)
        if len(keys) > _MOST_PAIRS:
            often = counts > 1
            keys, counts = keys[often], counts[often]
    return (keys, counts), single[0], single[1]


def _merged(keys: Ids, counts: Ids, more: Ids, how_often: Ids) -> tuple[Ids, Ids]:
    """The sum of two lists of counts, both by rising key."""
    both, numbers = np.concatenate([keys, more]), np.concatenate([counts, how_often])
    order = np.argsort(both, kind="stable")
    both, numbers = both[order], numbers[order]
    first = np.flatnonzero(np.concatenate([[True], both[1:] != both[:-1]]))
    return both[first], np.add.reduceat(numbers, first)


# --- the file ------------------------------------------------------------------------------------------------------


def write(shortlist: Shortlist, path: Path) -> None:
    """Lengths and differences of successive tokens, low bytes apart from high ones, packed by zlib."""
    lengths = np.diff(shortlist.starts)
    # after the last token of a row comes the first of the next, which may be lower: differences modulo V
    gaps = np.diff(shortlist.tokens, prepend=0) % shortlist.target_size
    parts = [np.asarray(values, "<u4") for values in (shortlist.always, lengths, gaps)]
    planes = b"".join(np.ascontiguousarray(part.view(np.uint8).reshape(-1, 4).T).tobytes() for part in parts)
    head = {"target": shortlist.target_size, "counts": [len(part) for part in parts]}
    with atomic_bytes(path) as stream:
        stream.write(_MAGIC + json.dumps(head).encode() + b"\n" + zlib.compress(planes, 9))


def read(path: Path, sizes: tuple[int, int]) -> Shortlist:
    """The shortlist of a model with dictionaries of these sizes. Raises: CheckpointError if the file is another."""
    try:
        magic, head, packed = path.read_bytes().split(b"\n", 2)
        described = json.loads(head)
        counts = [int(count) for count in described["counts"]]
        if magic + b"\n" != _MAGIC or len(counts) != 3 or min(counts) < 0:
            raise ValueError("unknown head")
        wanted = 4 * sum(counts)
        unpacker = zlib.decompressobj()
        planes = np.frombuffer(unpacker.decompress(packed, wanted + 1), np.uint8)
        if len(planes) != wanted or not unpacker.eof:
            raise ValueError("wrong length")
        places = np.cumsum([0, *counts])
        always, lengths, gaps = (
            np.ascontiguousarray(planes[4 * places[i] : 4 * places[i + 1]].reshape(4, -1).T).view("<u4").ravel()
            for i in range(3)
        )
        tokens = np.cumsum(gaps.astype(np.int64)) % sizes[1]
        starts = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
        if described["target"] != sizes[1] or len(lengths) != sizes[0]:
            raise ValueError("it belongs to other dictionaries")
        if starts[-1] != len(tokens) or (always >= sizes[1]).any() or not set(_SPECIAL) <= set(always.tolist()):
            raise ValueError("tokens that cannot be")
    except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise CheckpointError(f"{path}: no shortlist of this model ({error}). Export the model again") from None
    return Shortlist(always.astype(np.int64), starts, tokens, sizes[1])
