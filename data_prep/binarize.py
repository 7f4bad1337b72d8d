"""Dictionaries and binarized data in fairseq's format; the only file here that imports torch and fairseq."""

from __future__ import annotations

import functools
import logging
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.io import iterate_lines
from data_prep.workers import chunked, map_in_order

logger = logging.getLogger(__name__)

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's, in its order


def binarize(
    text_folder: Path,
    bin_folder: Path,
    pair: tuple[str, str],
    splits: Sequence[str],
    joined: bool,
    max_types: int | None = None,
    workers: int = 1,
) -> dict[str, int]:
    """Writes fairseq's dictionaries and indexed data sets of SPLIT.LANG files; returns dictionary sizes by language.

    The files are byte for byte those of `fairseq-preprocess`, written faster: a chunk of lines, not a token at a time.

    Args:
        text_folder: holds SPLIT.LANG, one line of subwords a sentence. The dictionaries come from ``train`` alone.
        bin_folder: an existing folder for dict.LANG.txt and SPLIT.SRC-TGT.LANG.{bin,idx}.
        joined: one dictionary for both languages, which shared embeddings need.
        max_types: size of a dictionary, fairseq's four special symbols included; None: every subword of train.
        workers: processes.
    """
    source, target = pair
    groups = [pair] if joined else [(source,), (target,)]
    sizes: dict[str, int] = {}
    for group in groups:
        dictionary = _dictionary([text_folder / f"train.{language}" for language in group], max_types)
        for language in group:
            sizes[language] = len(dictionary)
            path = bin_folder / f"dict.{language}.txt"
            dictionary.save(str(path))
            for split in splits:
                prefix = bin_folder / f"{split}.{source}-{target}.{language}"
                _index(path, len(dictionary), text_folder / f"{split}.{language}", prefix, workers)
    return sizes


def binarize_text(paths: Mapping[str, Path], bin_folder: Path, workers: int = 1) -> tuple[int, dict[str, int]]:
    """Writes dict.txt of train and SPLIT.{bin,idx} for language models; returns the types and the tokens by split.

    Byte for byte as `fairseq-preprocess --only-source`, which the task language_modeling reads. Tokens are counted with
    an end of line for each line.

    Args:
        paths: by split, one line of words or subwords a line.
    """
    dictionary = _dictionary([paths["train"]], None)
    path = bin_folder / "dict.txt"
    dictionary.save(str(path))
    tokens = {split: _index(path, len(dictionary), text, bin_folder / split, workers) for split, text in paths.items()}
    return len(dictionary), tokens


def _dictionary(files: Iterable[Path], max_types: int | None) -> Any:
    from fairseq.data import Dictionary

    counts: Counter[str] = Counter()
    for path in files:
        for line in tqdm(iterate_lines(path), desc=f"count {path.name}", unit="line", disable=None, leave=False):
            counts.update(line.split())
    dictionary = Dictionary()
    for token, count in counts.items():
        dictionary.add_symbol(token, count)
    dictionary.finalize(threshold=-1, nwords=max_types or -1, padding_factor=8)
    return dictionary


def _index(dictionary: Path, size: int, text: Path, prefix: Path, workers: int) -> int:
    """Writes PREFIX.bin and PREFIX.idx; returns the tokens, ends of lines counted."""
    from fairseq.data import indexed_dataset

    dtype = indexed_dataset.best_fitting_int_dtype(size)
    lengths = array("i")
    unknown = 0
    version = dictionary.stat().st_mtime_ns
    tasks = ((dictionary, version, np.dtype(dtype).str, chunk) for chunk in chunked(iterate_lines(text)))
    progress = tqdm(desc=f"binarize {text.name}", unit="line", disable=None, leave=False)
    with prefix.with_name(f"{prefix.name}.bin").open("wb") as stream, progress:
        for content, chunk_lengths, chunk_unknown in map_in_order(_encode, tasks, workers):
            stream.write(content)
            lengths.extend(chunk_lengths)
            unknown += chunk_unknown
            progress.update(len(chunk_lengths))
    sizes = np.frombuffer(lengths, dtype=np.int32)
    ends = np.cumsum(sizes, dtype=np.int64) * np.dtype(dtype).itemsize
    # fairseq's writer would make a Python list of these, 1.4 GB for 36 million lines
    with indexed_dataset.MMapIndexedDataset.Index.writer(f"{prefix}.idx", dtype) as index:
        index._file.write(struct.pack("<Q", len(sizes)))
        index._file.write(sizes.tobytes())
        index._file.write(np.concatenate([[0], ends[:-1]]).astype(np.int64).tobytes())
    tokens = int(sizes.sum())
    logger.info("%s: %d tokens, %.2f%% unknown", text.name, tokens, 100 * unknown / max(tokens, 1))
    return tokens


def _encode(task: tuple[Path, int, str, list[str]]) -> tuple[bytes, list[int], int]:
    """The token numbers of a chunk of lines as bytes, its lines' lengths, and how many tokens are unknown."""
    path, version, dtype, lines = task
    numbers = _numbers(path, version)
    end, unknown = SPECIALS.index("</s>"), SPECIALS.index("<unk>")
    tokens: list[int] = []
    lengths: list[int] = []
    for line in lines:
        encoded = [numbers.get(token, unknown) for token in line.split()]
        encoded.append(end)
        tokens += encoded
        lengths.append(len(encoded))
    return np.array(tokens, dtype=dtype).tobytes(), lengths, tokens.count(unknown)


@functools.lru_cache(maxsize=2)
def _numbers(path: Path, version: int) -> dict[str, int]:
    """{token: number} of a dictionary file as it was at ``version``; read here, for fairseq would take 300 MB."""
    tokens = [line.rpartition(" ")[0] for line in iterate_lines(path)]
    return {token: number for number, token in enumerate((*SPECIALS, *tokens))}
