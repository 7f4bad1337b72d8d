"""Reading tar and zip archives as streams: nothing is unpacked to the disk, and unsafe members are refused.

Members are read one after the other, so an archive of any size needs little memory.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from data_prep.io import decode_line
from lite_transformer.errors import DataError

_BUFFER_BYTES = 1 << 20
_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def iterate_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, stream) of every file of a tar (plain, gz, bz2, xz) or zip archive, in the archive's order.

    A stream is valid until the next member is asked for. Folders are skipped.

    Raises: DataError if the archive is no archive, truncated or damaged, or holds a link, a device, an absolute name
        or a name that points outside the folder; the text names the member.
    """
    with _damage_named(archive):
        yield from _zip_members(archive) if _magic(archive).startswith(b"PK") else _tar_members(archive)


@contextlib.contextmanager
def open_member(archive: Path, name: str) -> Iterator[IO[bytes]]:
    """The stream of one member, decompressed if its name ends in .gz.

    Raises: DataError if there is no such member, and as ``iterate_members``.
    """
    members = iterate_members(archive)
    try:
        seen = []
        for found, stream in members:
            if _same(found, name):
                with _damage_named(archive, name):
                    yield gzip.GzipFile(fileobj=stream) if name.endswith(".gz") else stream  # type: ignore[misc]
                return
            seen.append(found)
        listed = ", ".join(seen[:8]) + (", ..." if len(seen) > 8 else "")
        raise DataError(f"{archive}: no member {name}; it has {listed or 'none at all'}. Fetch the right archive.")
    finally:
        members.close()  # type: ignore[attr-defined]


def iterate_member_lines(archive: Path, name: str) -> Iterator[str]:
    """The lines of a text member (.gz inside the archive too), strict UTF-8; only LF ends a line."""
    with open_member(archive, name) as stream:
        for number, raw in enumerate(stream, start=1):
            text = decode_line(raw, f"{archive}:{name}", number)
            yield text.removeprefix("\ufeff") if number == 1 else text


def check_name(archive: Path, name: str) -> None:
    """Raises DataError if a member's name is absolute or leaves the folder it would be unpacked to."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise DataError(
            f"{archive}: member '{name}' points outside the archive's folder. Do not use this archive; "
            "fetch it again from its publisher."
        )


def _same(found: str, wanted: str) -> bool:
    return found.removeprefix("./") == wanted.removeprefix("./")


@contextlib.contextmanager
def _damage_named(archive: Path, member: str = "") -> Iterator[None]:
    place = f"{archive}, {member}" if member else str(archive)
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(
            f"{place}: truncated or damaged archive ({error}). Delete it and fetch it again, then run the same command."
        ) from error


class _Member(io.RawIOBase):
    """The bytes of a member; damage met while reading them names the archive and the member."""

    def __init__(self, stream: IO[bytes], archive: Path, name: str) -> None:
        self._stream, self._archive, self._name = stream, archive, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _damage_named(self._archive, self._name):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _buffered(stream: IO[bytes], archive: Path, name: str) -> IO[bytes]:
    return io.BufferedReader(_Member(stream, archive, name), _BUFFER_BYTES)


def _magic(archive: Path) -> bytes:
    try:
        with archive.open("rb") as stream:
            return stream.read(6)
    except OSError as error:
        raise DataError(f"{archive}: cannot be read ({error.strerror or error}).") from error


def _decompressed(archive: Path) -> Any:
    """The tar inside, whatever packs it. tarfile's own stream decoder would take a truncated file for a whole one."""
    magic = _magic(archive)
    for start, open_packed in _PACKED.items():
        if magic.startswith(start):
            return open_packed(archive, "rb")
    if archive.stat().st_size % tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its size is no multiple of 512 bytes")
    return archive.open("rb")


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    # mode "r|" is a pipe: forward only
    with _decompressed(archive) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER_BYTES) as tar:
        for member in tar:
            tar.members.clear()  # type: ignore[attr-defined]  # kept by tarfile, a kilobyte each, never used here
            check_name(archive, member.name)
            if member.isdir():
                continue
            if not member.isreg():
                kind = "a link" if member.issym() or member.islnk() else "no plain file"
                raise DataError(
                    f"{archive}: member '{member.name}' is {kind}. Do not use this archive; "
                    "fetch it again from its publisher."
                )
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            yield member.name, _buffered(content, archive, member.name)
        while stream.read(_BUFFER_BYTES):  # checks the checksum at the end
            pass


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as container:
        for member in container.infolist():
            check_name(archive, member.filename)
            if member.is_dir():
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(
                    f"{archive}: member '{member.filename}' is a link. Do not use this archive; "
                    "fetch it again from its publisher."
                )
            with container.open(member) as content:
                yield member.filename, _buffered(content, archive, member.filename)
