"""Tensors as a packed file holds them, and the streams of symbols that their codes become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lite_transformer.compression import rans
from lite_transformer.compression.bits import packed_size
from lite_transformer.errors import CheckpointError, UnsupportedInputError

RAW_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
LEVEL_DTYPES = ("float16", "float32")

ZEROS = ("symbol", "mask", "gaps")  # how a tensor's zeros are told from the rest
CODINGS = ("constant", "fixed", "rans")  # how a stream of symbols is written
_WHOLE_GAP = 255  # so many zeros, and no other element behind them
_FEW_ZEROS = 0.05  # a mask cannot pay for itself below


@dataclass(frozen=True, eq=False)
class Raw:
    """A tensor kept as it is."""

    values: np.ndarray

    def __post_init__(self) -> None:
        if self.values.dtype.name not in RAW_DTYPES:
            raise UnsupportedInputError(
                f"a tensor of {self.values.dtype} cannot be packed; possible are {', '.join(RAW_DTYPES)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def dense(self) -> np.ndarray:
        """The values; what was kept in half precision as float32."""
        return self.values.astype(np.float32) if self.values.dtype == np.float16 else self.values


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor whose elements are codes for a few values: levels[code], times the scale of the row if there is one.

    Attributes:
        codes: uint8, of the tensor's shape.
        levels: (L,) float16 or float32, 1 <= L <= 256; code c stands for levels[c].
        scales: (rows,) float16 or float32, one for each index of the first dimension, or None.
        linear: the levels are the whole numbers -q ... q, L = 2 q + 1, and need not be stored.
    """

    codes: np.ndarray
    levels: np.ndarray
    scales: np.ndarray | None = None
    linear: bool = False

    def __post_init__(self) -> None:
        count = self.levels.size
        if self.codes.dtype != np.uint8 or self.levels.ndim != 1 or not 1 <= count <= 256:
            raise UnsupportedInputError(f"{self.codes.dtype} codes of {count} levels: uint8 and 1 to 256 are possible")
        stored = [self.levels] if self.scales is None else [self.levels, self.scales]
        if any(values.dtype.name not in LEVEL_DTYPES for values in stored):
            raise UnsupportedInputError(f"levels and scales are {' or '.join(LEVEL_DTYPES)}")
        if self.codes.size and int(self.codes.max()) >= count:
            raise UnsupportedInputError(f"code {int(self.codes.max())} of {count} levels is out of range")
        if self.scales is not None and (not self.codes.ndim or self.scales.shape != self.codes.shape[:1]):
            raise UnsupportedInputError(f"scales {self.scales.shape} for codes {self.codes.shape}: one a row is needed")
        if self.linear and not (count % 2 and np.array_equal(self.levels, linear_levels(count))):
            raise UnsupportedInputError("linear levels are the whole numbers from -q to q")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def zero(self) -> int | None:
        """The code of the value 0, if there is one."""
        found = np.flatnonzero(self.levels == 0)
        return int(found[0]) if found.size else None

    def dense(self) -> np.ndarray:
        """The values, float32."""
        values = self.levels.astype(np.float32)[self.codes]
        if self.scales is not None:
            values *= self.scales.astype(np.float32).reshape(-1, *[1] * (self.codes.ndim - 1))
        return values


Tensor = Raw | Quantized


def linear_levels(count: int) -> np.ndarray:
    """The whole numbers -q ... q with count = 2 q + 1, float32."""
    return np.arange(count, dtype=np.float32) - count // 2


@dataclass(frozen=True)
class Symbols:
    """A stream of symbols and the coding that makes it shortest.

    Attributes:
        values: uint8, flat, each below ``alphabet``. frequencies: of rANS, None for the other codings.
    """

    values: np.ndarray
    alphabet: int
    coding: str
    bytes_estimate: float
    frequencies: np.ndarray | None = None

    @classmethod
    def shortest(cls, values: np.ndarray, alphabet: int, entropy_coding: bool = True) -> Symbols:
        """The stream with its best coding."""
        counts = np.bincount(values, minlength=alphabet)
        if np.count_nonzero(counts) <= 1:
            return cls(values, alphabet, "constant", 1)
        fixed = packed_size(values.size, fixed_bits(alphabet))
        if not entropy_coding:
            return cls(values, alphabet, "fixed", fixed)
        frequencies = rans.quantized_frequencies(counts)
        # a frequency takes two bytes before deflation, about three quarters of one after
        coded = rans.coded_bits(counts, frequencies) / 8 + 0.75 * alphabet
        if fixed <= coded:
            return cls(values, alphabet, "fixed", fixed)
        return cls(values, alphabet, "rans", coded, frequencies)


def fixed_bits(alphabet: int) -> int:
    """Bits of a symbol of fixed width."""
    return max(1, (alphabet - 1).bit_length())


def streams_of(
    tensor: Quantized, ways: Sequence[str] = ZEROS, entropy_coding: bool = True
) -> tuple[str, list[Symbols]]:
    """How the tensor's zeros are written, the shortest of ``ways``, and its streams.

    symbol: one stream, the codes. mask: a bit an element, 1 where it is not zero, eight to a symbol, the first in the
    lowest bit; then the codes of the others. gaps: how many zeros are before each other element, 255 standing for that
    many zeros and going on; then the codes of the others. A code above that of zero is one less where zeros are left
    out. Only "symbol" is possible for a tensor without a level of zero.
    """

    def shortest(values: np.ndarray, alphabet: int) -> Symbols:
        return Symbols.shortest(values, alphabet, entropy_coding)

    codes = tensor.codes.reshape(-1)
    zero = tensor.zero
    other = codes != zero
    places = np.flatnonzero(other)
    dense = zero is None or tensor.levels.size == 1 or codes.size - places.size <= _FEW_ZEROS * codes.size
    candidates = []
    if dense or "symbol" in ways:
        candidates.append(("symbol", [shortest(codes, tensor.levels.size)]))
    if dense:
        return candidates[0]
    rest = codes[places]
    values = shortest(rest - (rest > zero), tensor.levels.size - 1)
    if "mask" in ways:
        candidates.append(("mask", [shortest(np.packbits(other, bitorder="little"), 256), values]))
    if "gaps" in ways:
        candidates.append(("gaps", [shortest(gaps_before(places), 256), values]))
    return min(candidates, key=lambda item: sum(stream.bytes_estimate for stream in item[1]))


def gaps_before(places: np.ndarray) -> np.ndarray:
    """The symbols of the gaps before elements whose places are ascending."""
    gaps = np.diff(places, prepend=-1) - 1
    whole = gaps // _WHOLE_GAP
    symbols = np.full(int(whole.sum()) + gaps.size, _WHOLE_GAP, np.uint8)
    symbols[np.cumsum(whole + 1) - 1] = gaps % _WHOLE_GAP
    return symbols


def stream_alphabets(zeros: str, levels: int) -> list[int]:
    """The sizes of the alphabets of a tensor's streams."""
    return [levels] if zeros == "symbol" else [256, levels - 1]


def check_counts(zeros: str, counts: list[int], elements: int) -> None:
    """Raises: CheckpointError if a tensor of that many elements cannot have streams of that many symbols."""
    if zeros == "symbol":
        possible = counts == [elements]
    elif zeros == "mask":
        possible = counts[0] == packed_size(elements, 1) and counts[1] <= elements
    else:
        possible = counts[1] <= counts[0] <= elements
    if not possible:
        raise CheckpointError("a tensor's streams do not have as many symbols as its shape asks for")


def codes_of(zeros: str, streams: Iterator[np.ndarray], elements: int, zero: int | None) -> np.ndarray:
    """The flat codes of a tensor from its streams, see `streams_of`. Raises: CheckpointError if they contradict."""
    first = next(streams)
    if zeros == "symbol":
        return first
    if zero is None:
        raise CheckpointError("zeros are left out of a tensor that has no level of zero")
    rest = next(streams)
    if zeros == "mask":
        mask = np.unpackbits(first, bitorder="little")
        places = np.flatnonzero(mask)
        if mask[elements:].any():
            raise CheckpointError("a mask is longer than its tensor")
    else:
        steps = np.where(first == _WHOLE_GAP, _WHOLE_GAP, first.astype(np.int64) + 1)
        places = np.cumsum(steps)[first != _WHOLE_GAP] - 1
        if first.size and (int(steps.sum()) > elements or first[-1] == _WHOLE_GAP):
            raise CheckpointError("gaps between elements reach beyond their tensor")
    if places.size != rest.size:
        raise CheckpointError("a mask and its values do not belong together")
    codes = np.full(elements, zero, np.uint8)
    codes[places] = rest + (rest >= zero)
    return codes
