"""The outer form of a packed file: named sections with their hashes behind one table. FORMAT.md describes the bytes.

Whoever reads a file that somebody else wrote must not trust a byte of it. So the table is hashed, sections follow each
other without gap or overlap up to the end of the file, every size is checked against what is there before anything is
allocated, and a compressed section says how long it will be and is never inflated further than that.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_prep.io import atomic_bytes
from lite_transformer.errors import CheckpointError, UnsupportedInputError

MAGIC = b"LTPACKED"
VERSION = 1
MAX_SECTIONS = 64
_LONGEST_NAME = 48

_HEADER = struct.Struct("<8sHHI32s")  # magic, version, number of sections, zero, SHA-256 of the table
_ENTRY = struct.Struct("<48sIIQQ32s")  # name, compression, zero, stored size, size, SHA-256 of the stored bytes
_NAME = re.compile(r"[a-z]+(\.[a-z]+)?|text/[A-Za-z0-9][A-Za-z0-9_.-]{0,19}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,19})?")
_STORED, _DEFLATED = 0, 1

# How long sections may be once inflated: JSON grows about twentyfold when it is parsed, the others do not.
_LIMITS = {"meta": 2 << 20, "index": 2 << 20}
_LIMIT_OF_OTHERS = 1 << 30
_FREE_BYTES, _MOST_INFLATION = 1 << 20, 64


@dataclass(frozen=True)
class Section:
    """One section of a file: its content, and how many bytes of the file it takes."""

    content: bytes
    stored_bytes: int


def is_packed(path: Path) -> bool:
    """Whether a file begins like a packed one; False if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def is_name(name: str) -> bool:
    """Whether a section can be called so; such names of texts are safe as names of files."""
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None


def to_bytes(sections: Mapping[str, bytes]) -> bytes:
    """A whole file. Sections are deflated where that makes them smaller.

    Raises: UnsupportedInputError for a name or size that the reader would refuse.
    """
    if not 1 <= len(sections) <= MAX_SECTIONS:
        raise UnsupportedInputError(f"{len(sections)} sections: a packed file has 1 to {MAX_SECTIONS}")
    table, bodies = [], []
    for name, content in sections.items():
        if not is_name(name):
            raise UnsupportedInputError(f"'{name[:60]}' is no name of a section of a packed file")
        if len(content) > (limit := _LIMITS.get(name, _LIMIT_OF_OTHERS)):
            raise UnsupportedInputError(f"section {name} has {len(content):,} bytes, more than {limit:,}")
        deflated = zlib.compress(content, 9)
        smaller = len(deflated) < len(content) <= _limit(name, len(deflated))
        method, body = (_DEFLATED, deflated) if smaller else (_STORED, content)
        table.append(_ENTRY.pack(name.encode(), method, 0, len(body), len(content), hashlib.sha256(body).digest()))
        bodies.append(body)
    entries = b"".join(table)
    header = _HEADER.pack(MAGIC, VERSION, len(sections), 0, hashlib.sha256(entries).digest())
    return b"".join([header, entries, *bodies])


def header_bytes(sections: int) -> int:
    """Bytes before the first section."""
    return _HEADER.size + sections * _ENTRY.size


def write(path: Path, content: bytes) -> None:
    """Writes a file atomically: on a full disk the old one stays. Raises: CheckpointError."""
    try:
        with atomic_bytes(path) as stream:
            stream.write(content)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}. The old file, if any, is kept"
        ) from None


def read(path: Path) -> dict[str, Section]:
    """The sections of a file. Raises: CheckpointError that names the file and what is wrong with it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            return parse(stream, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}. Copy or compress the file again") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def parse(stream: IO[bytes], file_size: int) -> dict[str, Section]:
    """The sections of a file of that size. Raises: CheckpointError that says what is wrong."""
    head = stream.read(_HEADER.size)
    if head[: len(MAGIC)] != MAGIC:
        raise CheckpointError("not a packed model, it does not begin like one")
    if len(head) < _HEADER.size:
        raise CheckpointError("cut off in its header")
    _, version, count, zero, table_hash = _HEADER.unpack(head)
    if version != VERSION:
        raise CheckpointError(f"format version {version}, and this program reads version {VERSION}")
    if not 1 <= count <= MAX_SECTIONS or zero:
        raise CheckpointError("damaged header")
    table = stream.read(count * _ENTRY.size)
    if len(table) < count * _ENTRY.size:
        raise CheckpointError("cut off in its table of sections")
    if hashlib.sha256(table).digest() != table_hash:
        raise CheckpointError("damaged table of sections (SHA-256 differs)")
    entries = list(_ENTRY.iter_unpack(table))
    expected = header_bytes(count) + sum(entry[3] for entry in entries)
    if file_size != expected:
        what = "cut off" if file_size < expected else "longer than its sections"
        raise CheckpointError(f"{what} ({file_size:,} bytes, {expected:,} expected)")
    sections: dict[str, Section] = {}
    for raw_name, method, entry_zero, stored, size, digest in entries:
        name = raw_name.rstrip(b"\0").decode("ascii", "replace")
        if not is_name(name) or name in sections or entry_zero:
            raise CheckpointError("damaged table of sections (a name that is none, or twice the same)")
        if size > (limit := _limit(name, file_size)):
            raise CheckpointError(f"section {name} claims {size:,} bytes, more than {limit:,}")
        body = stream.read(stored)
        if len(body) != stored or hashlib.sha256(body).digest() != digest:
            raise CheckpointError(f"section {name} is damaged (SHA-256 differs)")
        sections[name] = Section(_inflated(name, body, method, size), stored)
    return sections


def _inflated(name: str, body: bytes, method: int, size: int) -> bytes:
    if method == _STORED:
        content = body
    elif method == _DEFLATED:
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(body, size + 1)
        except zlib.error:
            raise CheckpointError(f"section {name} cannot be inflated") from None
        if not inflater.eof or inflater.unused_data:
            raise CheckpointError(f"section {name} does not inflate to the size it claims")
    else:
        raise CheckpointError(f"section {name} is compressed in an unknown way ({method})")
    if len(content) != size:
        raise CheckpointError(f"section {name} does not have the size it claims")
    return content


def _limit(name: str, file_size: int) -> int:
    """The longest that a section of such a file may be."""
    return min(_LIMITS.get(name, _LIMIT_OF_OTHERS), _FREE_BYTES + _MOST_INFLATION * file_size)
