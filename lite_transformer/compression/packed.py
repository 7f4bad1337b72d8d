"""The packed model file: tensors as codes of few bits, with all that a translation needs. FORMAT.md has the bytes.

Written with NumPy and the standard library alone, so that a runtime without torch can read it.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lite_transformer.compression import container, rans
from lite_transformer.compression.bits import pack_bits, packed_size, unpack_bits
from lite_transformer.compression.container import Section, is_packed
from lite_transformer.compression.tensors import (
    CODINGS,
    LEVEL_DTYPES,
    RAW_DTYPES,
    ZEROS,
    Quantized,
    Raw,
    Symbols,
    Tensor,
    check_counts,
    codes_of,
    fixed_bits,
    linear_levels,
    stream_alphabets,
    streams_of,
)
from lite_transformer.errors import CheckpointError, UnsupportedInputError

CORE, EMBEDDINGS = "core", "embeddings"
GROUPS = (CORE, EMBEDDINGS)
# What the sections of a group hold; in this order in the file.
PARTS = ("values", "levels", "tables", "fixed", "codes")
_TEXT = "text/"
PACKED_BY = "packed by recipe"

# The most elements that a file may hold: at least a quarter of a bit of the file for each, beyond some that are free.
_FREE_ELEMENTS, _ELEMENTS_A_BYTE, _MOST_ELEMENTS = 4 << 20, 32, 1 << 28
_LONGEST_SIDE = 1 << 31
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 300


@dataclass(frozen=True)
class PackedModel:
    """A model as a packed file holds it.

    Attributes:
        meta: plain JSON data about the model; "config" is fairseq's, see `lite_transformer.compression.checkpoint`.
        tensors: by parameter name; names that share one tensor hold the same object.
        embeddings: which of the names are embeddings or output matrix, that is, not core.
        texts: dictionaries, subword model and prepare.json, by file name.
    """

    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    embeddings: frozenset[str] = frozenset()
    texts: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """What a file's index says of one tensor: sizes without the values.

    Attributes:
        form: raw, quantized or same. zeros: see `tensors.streams_of`, None unless quantized.
        levels: how many values the elements can have, None unless quantized.
        codings: of the tensor's streams. nonzero: elements that are not zero; None where it is not stored.
    """

    name: str
    group: str
    shape: tuple[int, ...]
    form: str
    dtype: str | None = None
    same_as: str | None = None
    levels: int | None = None
    linear: bool = False
    level_dtype: str | None = None
    scale_dtype: str | None = None
    zeros: str | None = None
    streams: tuple[tuple[str, int], ...] = ()

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Only what is not at its default."""
        content: dict[str, Any] = {"name": self.name, "group": self.group, "shape": list(self.shape)}
        content["form"] = self.form
        for key in ("dtype", "same_as", "levels", "linear", "level_dtype", "scale_dtype", "zeros"):
            if getattr(self, key) not in (None, False):
                content[key] = getattr(self, key)
        if self.streams:
            content["streams"] = [list(item) for item in self.streams]
        return content


# --- writing -------------------------------------------------------------------------------------------------------


def pack(model: PackedModel, entropy_coding: bool = True) -> bytes:
    """The whole file; codes of fixed width alone without ``entropy_coding``.

    Raises: UnsupportedInputError if the model is beyond what the format can hold.
    """
    described: list[Described] = []
    parts = {group: {part: bytearray() for part in PARTS} for group in GROUPS}
    coded: dict[str, list[rans.Stream]] = {group: [] for group in GROUPS}
    first_name: dict[int, str] = {}
    for name, tensor in model.tensors.items():
        group = EMBEDDINGS if name in model.embeddings else CORE
        original = first_name.setdefault(id(tensor), name)
        if original != name:
            described.append(Described(name, group, tensor.shape, "same", same_as=original))
        elif isinstance(tensor, Raw):
            described.append(Described(name, group, tensor.shape, "raw", dtype=tensor.values.dtype.name))
            parts[group]["values"] += _planes(tensor.values)
        else:
            described.append(_pack_quantized(name, group, tensor, entropy_coding, parts[group], coded[group]))
    index: dict[str, Any] = {"tensors": [item.to_json() for item in described]}
    first_text: dict[bytes, str] = {}
    repeated = {
        name: first for name, text in model.texts.items() if (first := first_text.setdefault(text, name)) != name
    }
    if repeated:
        index["same_texts"] = repeated
    sections = {"meta": _to_json(model.meta), "index": _to_json(index)}
    for group in GROUPS:
        if coded[group]:
            lanes = rans.choose_lanes(sum(stream.symbols.size for stream in coded[group]))
            parts[group]["codes"] += rans.encode(coded[group], lanes)
        sections |= {f"{group}.{part}": bytes(content) for part, content in parts[group].items() if content}
    sections |= {_TEXT + name: content for name, content in model.texts.items() if name not in repeated}
    content = container.to_bytes(sections)
    elements = sum(item.elements for item in described if item.form != "same")
    if elements > _element_limit(len(content)):
        raise UnsupportedInputError(f"{elements:,} elements in {len(content):,} bytes: more than the reader takes")
    return content


def _pack_quantized(
    name: str,
    group: str,
    tensor: Quantized,
    entropy_coding: bool,
    parts: dict[str, bytearray],
    coded: list[rans.Stream],
) -> Described:
    if not tensor.linear:
        parts["levels"] += _planes(tensor.levels)
    if tensor.scales is not None:
        parts["levels"] += _planes(tensor.scales)
    zeros, streams = streams_of(tensor, entropy_coding=entropy_coding)
    for stream in streams:
        _pack_symbols(stream, parts, coded)
    return Described(
        name,
        group,
        tensor.shape,
        "quantized",
        levels=tensor.levels.size,
        linear=tensor.linear,
        level_dtype=None if tensor.linear else tensor.levels.dtype.name,
        scale_dtype=None if tensor.scales is None else tensor.scales.dtype.name,
        zeros=zeros,
        streams=tuple((stream.coding, stream.values.size) for stream in streams),
    )


def _pack_symbols(stream: Symbols, parts: dict[str, bytearray], coded: list[rans.Stream]) -> None:
    if stream.coding == "constant":
        parts["fixed"] += stream.values[:1].tobytes() or b"\0"
    elif stream.coding == "fixed":
        parts["fixed"] += pack_bits(stream.values, fixed_bits(stream.alphabet))
    else:
        assert stream.frequencies is not None
        parts["tables"] += _planes(stream.frequencies)
        coded.append(rans.Stream(stream.values, stream.frequencies))


def _planes(values: np.ndarray) -> bytes:
    """Little-endian elements, their lowest bytes first, then all second ones, ...: equal high bytes deflate well."""
    values = np.ascontiguousarray(values)
    little = values.astype(values.dtype.newbyteorder("<"), copy=False).reshape(-1)
    return little.view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()


def _from_planes(data: bytes | memoryview, dtype: str, count: int) -> np.ndarray:
    kind = np.dtype(dtype)
    planes = np.frombuffer(data, np.uint8).reshape(kind.itemsize, count)
    return np.ascontiguousarray(planes.T).view(kind.newbyteorder("<")).reshape(-1).astype(kind)


def _to_json(content: Any) -> bytes:
    try:
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UnsupportedInputError(f"metadata of a packed file is plain JSON: {error}") from None


def write(path: Path, model: PackedModel) -> int:
    """Writes the file atomically; returns its size in bytes. Raises: UnsupportedInputError, CheckpointError."""
    content = pack(model)
    container.write(path, content)
    return len(content)


# --- reading -------------------------------------------------------------------------------------------------------


def unpack(content: bytes) -> PackedModel:
    """The model of a whole file. Raises: CheckpointError that says what is wrong with it."""
    return _model_of(container.parse(io.BytesIO(content), len(content)), len(content))


def read(path: Path) -> PackedModel:
    """The model of a packed file. Raises: CheckpointError that names the file and what is wrong with it."""
    return _with_name(path, _model_of)


def read_index(path: Path) -> tuple[dict[str, Section], dict[str, Any], list[Described]]:
    """Sections, metadata and what the index says of the tensors; no tensor is decoded. Raises: CheckpointError."""

    def described(sections: dict[str, Section], size: int) -> tuple[dict[str, Section], Any, list[Described]]:
        return sections, _object(sections, "meta"), _described(_object(sections, "index"), size)

    return _with_name(path, described)


def origin(path: Path) -> str:
    """'packed by recipe NAME', for those who show a score. Raises: CheckpointError."""
    recipe = read_index(path)[1].get("recipe")
    return f"{PACKED_BY} {recipe.get('name') if isinstance(recipe, dict) else 'unknown'}"


_Found = TypeVar("_Found")


def _with_name(path: Path, use: Callable[[dict[str, Section], int], _Found]) -> _Found:
    sections = container.read(path)
    try:
        return use(sections, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}. Copy or compress the file again") from None


def _model_of(sections: dict[str, Section], file_size: int) -> PackedModel:
    known = {"meta", "index", *(f"{group}.{part}" for group in GROUPS for part in PARTS)}
    for name in sections:
        if name not in known and not name.startswith(_TEXT):
            raise CheckpointError(f"unknown section {name}")
    meta = _object(sections, "meta")
    described = _described(_object(sections, "index"), file_size)
    found: dict[str, Tensor] = {}
    for group in GROUPS:
        rows = [item for item in described if item.group == group and item.form != "same"]
        found |= _GroupReader(sections, group).tensors(rows)
    tensors: dict[str, Tensor] = {}
    for item in described:
        tensors[item.name] = found[item.same_as or item.name]
        if tensors[item.name].shape != item.shape:
            raise CheckpointError(f"{item.name[:80]} and {(item.same_as or '')[:80]} do not have the same shape")
    return PackedModel(
        meta, tensors, frozenset(item.name for item in described if item.group == EMBEDDINGS), _texts(sections)
    )


def _texts(sections: dict[str, Section]) -> dict[str, bytes]:
    """The texts by name, those that are written once for several names, too."""
    texts = {name.removeprefix(_TEXT): part.content for name, part in sections.items() if name.startswith(_TEXT)}
    repeated = _object(sections, "index").get("same_texts", {})
    if not isinstance(repeated, dict):
        raise CheckpointError("section index is damaged (same_texts)")
    for name, first in repeated.items():
        if not container.is_name(_TEXT + name) or name in texts or not isinstance(first, str) or first not in texts:
            raise CheckpointError(f"text {str(name)[:80]} is to be the same as one that is not there")
    return texts | {name: texts[first] for name, first in repeated.items()}


def _object(sections: dict[str, Section], name: str) -> dict[str, Any]:
    """The JSON object of a section."""
    if name not in sections:
        raise CheckpointError(f"section {name} is missing")
    try:
        content = json.loads(sections[name].content)
    except (ValueError, RecursionError):
        raise CheckpointError(f"section {name} is no JSON") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"section {name} is no JSON object")
    return content


def _element_limit(file_size: int) -> int:
    return min(_FREE_ELEMENTS + _ELEMENTS_A_BYTE * file_size, _MOST_ELEMENTS)


def _described(index: dict[str, Any], file_size: int) -> list[Described]:
    """The rows of the index, every field checked. Raises: CheckpointError."""
    rows = index.get("tensors")
    if not isinstance(rows, list):
        raise CheckpointError("section index lists no tensors")
    described: list[Described] = []
    first: set[str] = set()
    names: set[str] = set()
    elements = 0
    for row in rows:
        item = _one_described(row)
        if item.name in names:
            raise CheckpointError(f"two tensors are called {item.name[:80]}")
        names.add(item.name)
        if item.form == "same":
            if item.same_as not in first:
                raise CheckpointError(f"{item.name[:80]} is to be the same as a tensor that is not there")
        else:
            first.add(item.name)
            elements += item.elements
        described.append(item)
    if elements > (limit := _element_limit(file_size)):
        raise CheckpointError(f"{elements:,} elements are claimed, at most {limit:,} can be in a file of this size")
    return described


def _one_described(row: Any) -> Described:
    if not isinstance(row, dict):
        raise CheckpointError("an entry of the index is no object")
    damaged = CheckpointError(f"the entry of tensor {str(row.get('name'))[:80]} is damaged")
    unknown = set(row) - set(Described.__dataclass_fields__)
    name, shape, form = row.get("name"), row.get("shape"), row.get("form")
    if unknown or not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME or row.get("group") not in GROUPS:
        raise damaged
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise damaged
    if not all(type(side) is int and 0 <= side < _LONGEST_SIDE for side in shape):
        raise damaged
    basic = (name, str(row["group"]), tuple(shape))
    if form == "same" and isinstance(row.get("same_as"), str):
        return Described(*basic, "same", same_as=row["same_as"])
    if form == "raw" and row.get("dtype") in RAW_DTYPES:
        return Described(*basic, "raw", dtype=row["dtype"])
    levels, linear, zeros, streams = (row.get(key) for key in ("levels", "linear", "zeros", "streams"))
    if form != "quantized" or type(levels) is not int or not 1 <= levels <= 256 or zeros not in ZEROS:
        raise damaged
    if linear not in (None, True) or (linear and (levels % 2 == 0 or row.get("level_dtype") is not None)):
        raise damaged
    if not linear and row.get("level_dtype") not in LEVEL_DTYPES:
        raise damaged
    if row.get("scale_dtype") not in (None, *LEVEL_DTYPES) or (row.get("scale_dtype") and not shape):
        raise damaged
    if zeros != "symbol" and levels == 1:
        raise damaged
    if not isinstance(streams, list) or len(streams) != len(stream_alphabets(str(zeros), levels)):
        raise damaged
    for stream in streams:
        if not isinstance(stream, list) or len(stream) != 2 or stream[0] not in CODINGS:
            raise damaged
        if type(stream[1]) is not int or stream[1] < 0:
            raise damaged
    check_counts(str(zeros), [stream[1] for stream in streams], math.prod(shape))
    return Described(
        *basic,
        "quantized",
        levels=levels,
        linear=bool(linear),
        level_dtype=row.get("level_dtype"),
        scale_dtype=row.get("scale_dtype"),
        zeros=str(zeros),
        streams=tuple((coding, count) for coding, count in streams),
    )


class _GroupReader:
    """Reads the tensors of a group from its sections, each of which must be used up in the end."""

    def __init__(self, sections: dict[str, Section], group: str):
        self._group = group
        names = {part: f"{group}.{part}" for part in PARTS}
        self._content = {
            part: memoryview(sections[name].content) if name in sections else memoryview(b"")
            for part, name in names.items()
        }
        self._position = dict.fromkeys(PARTS, 0)

    def _take(self, part: str, size: int) -> memoryview:
        start = self._position[part]
        if size > len(self._content[part]) - start:
            raise CheckpointError(f"section {self._group}.{part} is shorter than the index says")
        self._position[part] = start + size
        return self._content[part][start : start + size]

    def _take_array(self, part: str, dtype: str, count: int) -> np.ndarray:
        return _from_planes(self._take(part, count * np.dtype(dtype).itemsize), dtype, count)

    def tensors(self, rows: Iterable[Described]) -> dict[str, Tensor]:
        """The tensors by name. Raises: CheckpointError."""
        rows = list(rows)
        raw: dict[str, Tensor] = {}
        levels: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        streams: dict[str, list[np.ndarray | None]] = {}
        tables: list[tuple[np.ndarray, int]] = []
        for item in rows:
            if item.form == "raw":
                assert item.dtype is not None
                raw[item.name] = Raw(self._raw(item))
            else:
                levels[item.name] = self._levels(item)
                assert item.levels is not None and item.zeros is not None
                alphabets = stream_alphabets(item.zeros, item.levels)
                streams[item.name] = [
                    self._symbols(coding, count, alphabet, tables)
                    for (coding, count), alphabet in zip(item.streams, alphabets, strict=True)
                ]
        decoded = iter(self._decoded(tables))
        found: dict[str, Tensor] = {}
        for item in rows:
            if item.form == "raw":
                found[item.name] = raw[item.name]
                continue
            values, scales = levels[item.name]
            filled = (next(decoded) if stream is None else stream for stream in streams[item.name])
            zero = np.flatnonzero(values == 0)
            assert item.zeros is not None
            codes = codes_of(item.zeros, filled, item.elements, int(zero[0]) if zero.size else None)
            found[item.name] = Quantized(codes.reshape(item.shape), values, scales, item.linear)
        for part in PARTS:
            if self._position[part] != len(self._content[part]):
                raise CheckpointError(f"section {self._group}.{part} is longer than the index says")
        return found

    def _raw(self, item: Described) -> np.ndarray:
        assert item.dtype is not None
        if item.dtype == "bool":
            bits = self._take_array("values", "uint8", item.elements)
            if (bits > 1).any():
                raise CheckpointError(f"{item.name[:80]} holds neither true nor false")
            return bits.astype(bool).reshape(item.shape)
        return self._take_array("values", item.dtype, item.elements).reshape(item.shape)

    def _levels(self, item: Described) -> tuple[np.ndarray, np.ndarray | None]:
        assert item.levels is not None
        if item.level_dtype is None:
            values = linear_levels(item.levels)
        else:
            values = self._take_array("levels", item.level_dtype, item.levels)
        scales = None
        if item.scale_dtype is not None:
            scales = self._take_array("levels", item.scale_dtype, item.shape[0])
        for numbers in (values, scales):
            if numbers is not None and not np.isfinite(numbers).all():
                raise CheckpointError(f"levels or scales of {item.name[:80]} are not finite")
        return values, scales

    def _symbols(
        self, coding: str, count: int, alphabet: int, tables: list[tuple[np.ndarray, int]]
    ) -> np.ndarray | None:
        """The symbols of a stream; None if they come from the entropy code, whose table is added to ``tables``."""
        if coding == "rans":
            frequencies = self._take_array("tables", "uint16", alphabet)
            if int(frequencies.sum(dtype=np.int64)) != rans.TOTAL or int(frequencies.max()) == rans.TOTAL:
                raise CheckpointError("a table of frequencies does not sum up")
            tables.append((frequencies, count))
            return None
        if coding == "constant":
            symbols = np.full(count, self._take("fixed", 1)[0], np.uint8)
        else:
            bits = fixed_bits(alphabet)
            symbols = unpack_bits(self._take("fixed", packed_size(count, bits)), bits, count)
        if symbols.size and int(symbols.max()) >= alphabet:
            raise CheckpointError(f"code {int(symbols.max())} is out of range, there are {alphabet} levels")
        return symbols

    def _decoded(self, tables: list[tuple[np.ndarray, int]]) -> list[np.ndarray]:
        if not tables:
            return []
        code = self._take("codes", len(self._content["codes"]))
        return rans.decode(code, rans.choose_lanes(sum(count for _, count in tables)), tables)


__all__ = ["Described", "PackedModel", "is_packed", "origin", "pack", "read", "read_index", "unpack", "write"]
