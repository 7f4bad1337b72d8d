"""Folders that say what is in them: every file there, and with the bytes that its list gives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep.io import sha256
from lite_transformer.errors import CheckpointError


@dataclass(frozen=True)
class File:
    """What a file's bytes must be."""

    sha256: str
    size_bytes: int


def describe_files(folder: Path, but: Collection[str] = ()) -> dict[str, File]:
    """The files of a folder by path within it, hidden ones too, without those named in ``but``."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: File(sha256(folder / name), (folder / name).stat().st_size) for name in names if name not in but}


def outside(names: Collection[str]) -> str | None:
    """The first of the names that would be a file outside of the folder; None if there is none."""
    paths = {name: PurePosixPath(name) for name in names}
    return next((name for name, path in paths.items() if path.is_absolute() or ".." in path.parts), None)


def check_files(folder: Path, files: Mapping[str, File], lists: Collection[str], again: str) -> None:
    """Compares a folder with the list of its files; hidden files do not matter.

    Args:
        lists: files that need not be listed, the first of which is the list. again: what to do about damage.
    Raises: CheckpointError naming the file that is missing, damaged, or not listed.
    """
    said_by = next(iter(lists))
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. {again}")
        try:
            size, digest = path.stat().st_size, sha256(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
        if size != expected.size_bytes:
            raise CheckpointError(f"{path} has {size} bytes, {said_by} says {expected.size_bytes}. {again}")
        if digest != expected.sha256:
            raise CheckpointError(
                f"{path} is damaged: its sha256 is {digest}, {said_by} says {expected.sha256}. {again}"
            )
    known = {folder / name for name in (*files, *lists)}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and not path.is_dir() and path not in known:
            raise CheckpointError(f"{path} is no part of the model: {said_by} does not list it. Move it elsewhere")
