"""Reading and writing text: strict UTF-8 with file and line in every error, equal lengths, atomic writes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from lite_transformer.errors import DataError


def decode_line(raw: bytes, name: str | Path, number: int) -> str:
    """The line as text, without its line end (LF or CR LF).

    Raises: DataError if the bytes are not UTF-8; the text holds the file, the line and the byte.
    """
    try:
        return raw.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"0x{raw[error.start]:02x}"
        raise DataError(
            f"{name}, line {number}: not UTF-8 (byte {byte} at position {error.start + 1}). "
            f"Convert the file first, for example: iconv -f ISO-8859-1 -t UTF-8 {name} > NEW_FILE"
        ) from None


def iterate_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, plain or gzip-compressed (by its .gz ending); only LF ends a line."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                text = decode_line(raw, path, number)
                yield text.removeprefix("\ufeff") if number == 1 else text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}). Fetch it again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def read_lines(path: Path) -> list[str]:
    """All lines of a text file, see ``iterate_lines``."""
    return list(iterate_lines(path))


def read_parallel(source: Path, target: Path) -> tuple[list[str], list[str]]:
    """The lines of two files that are translations of each other.

    Raises: DataError if either is not UTF-8, is empty, or the numbers of lines differ; the text holds both counts.
    """
    source_lines, target_lines = read_lines(source), read_lines(target)
    if len(source_lines) != len(target_lines):
        raise DataError(
            f"parallel files of unequal length: {source} has {len(source_lines)} lines, {target} has "
            f"{len(target_lines)}. Line n of one must be the translation of line n of the other."
        )
    if not source_lines:
        raise DataError(f"{source} and {target} are empty: there is nothing to learn from.")
    return source_lines, target_lines


def iterate_parallel(*sides: Iterable[str], names: Sequence[str | Path]) -> Iterator[tuple[str, str]]:
    """(line n of one, line n of the other) of two ``sides``, without keeping any.

    Raises: DataError after the last pair if one has more lines; the text holds both ``names`` and counts.
    """
    source, target = sides
    counts = [0, 0]
    for source_line, target_line in zip_longest(source, target):
        counts[0] += source_line is not None
        counts[1] += target_line is not None
        if counts[0] == counts[1]:
            yield source_line, target_line
    if counts[0] != counts[1]:
        raise DataError(
            f"parallel files of unequal length: {names[0]} has {counts[0]} lines, {names[1]} has {counts[1]}. "
            "Line n of one must be the translation of line n of the other."
        )


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 text stream that appears under ``path`` only when the block ends without an error."""
    with atomic_bytes(path) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as stream:
        yield stream


@contextlib.contextmanager
def atomic_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A stream of bytes that appears under ``path`` only when the block ends without an error."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes files for its owner only
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes one line per item, atomically."""
    with atomic_open(path) as stream:
        stream.writelines(f"{line}\n" for line in lines)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON, atomically."""
    with atomic_open(path) as stream:
        json.dump(content, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises: DataError if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_text(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of ``names`` that is a file in ``folder``, plain or with .gz; None if there is none."""
    candidates = [folder / f"{name}{ending}" for name in names for ending in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)
