"""Multi30k, task 1: English image captions with German and French translations, from files the user has fetched.

The captions may be used for research but not redistributed, so nothing is downloaded and nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_prep import parallel
from lite_transformer.errors import DataError

LANGUAGES = ("de", "en", "fr")
SPLIT_NAMES = {"train": ("train",), "valid": ("val",), "test": ("test_2016_flickr",)}
ADVICE = (
    "Fetch train, val and test_2016_flickr (.gz, each language of the pair) of the GitHub repository multi30k/dataset, "
    "folder data/task1/raw, then type: lite-transformer prepare multi30k --source DIR --dest OUT"
)


def find_sources(source: Path | None, pair: tuple[str, str]) -> dict[str, Path]:
    """The six files of a pair in the folder ``source``. Raises: DataError saying what to fetch."""
    if source is None:
        raise DataError(f"corpus multi30k needs --source DIR, the folder of its raw files. {ADVICE}")
    return parallel.find_files(source, pair, SPLIT_NAMES, ADVICE)


def read_splits(files: Mapping[str, Path], pair: tuple[str, str], seed: int) -> dict[str, tuple[list[str], list[str]]]:
    """The captions of every split, in the published split (val, test_2016_flickr)."""
    return parallel.read_splits(files, pair, seed)
