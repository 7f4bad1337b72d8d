"""The user's own parallel text: two files a split, plain or .gz; line n of one translates line n of the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_prep.io import find_text, read_parallel
from lite_transformer.errors import DataError

# our name of a split -> names that people give it
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}


def find_sources(source: Path | None, pair: tuple[str, str]) -> dict[str, Path]:
    """The six files of a pair in the folder ``source``. Raises: DataError naming every missing one."""
    if source is None:
        raise DataError(
            "corpus parallel is read from your own files: add --source DIR with train, valid and test files, "
            f"for example train.{pair[0]} and train.{pair[1]} (plain or .gz)."
        )
    return find_files(
        source, pair, SPLIT_NAMES, f"Put the files there, plain or .gz, one for each of {pair[0]} and {pair[1]}."
    )


def read_splits(files: Mapping[str, Path], pair: tuple[str, str], seed: int) -> dict[str, tuple[list[str], list[str]]]:
    """The lines of every split. Raises: DataError if files are not UTF-8, empty, or of unequal length."""
    del seed  # the user's own split
    return {split: read_parallel(files[f"{split}.{pair[0]}"], files[f"{split}.{pair[1]}"]) for split in SPLIT_NAMES}


def find_files(
    source: Path, pair: tuple[str, str], split_names: Mapping[str, tuple[str, ...]], advice: str
) -> dict[str, Path]:
    """{"train.de": path, ...} of a folder. Raises: DataError listing what is missing, then ``advice``."""
    if not source.is_dir():
        raise DataError(f"--source {source}: no such folder. {advice}")
    found: dict[str, Path] = {}
    missing: list[str] = []
    for split, names in split_names.items():
        for language in pair:
            path = find_text(source, [f"{name}.{language}" for name in names])
            if path is None:
                missing.append(f"{names[0]}.{language}")
            else:
                found[f"{split}.{language}"] = path
    if missing:
        raise DataError(f"--source {source}: missing {', '.join(missing)}. {advice}")
    return found
