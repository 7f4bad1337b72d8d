"""Whole numbers of 1 to 8 bits, packed without gaps."""

from __future__ import annotations

import numpy as np

from lite_transformer.errors import CheckpointError, UnsupportedInputError

_CHUNK = 1 << 18  # numbers packed at a time, a multiple of 8: a bit is a whole byte in between


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` numbers take."""
    return -(-count * bits // 8)


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """``values`` (any shape, uint8, each below 2 ** bits) in row-major order, the lowest bit of the first one first.

    The last byte is filled up with zeros. Raises: UnsupportedInputError for other types, widths or larger values.
    """
    if values.dtype != np.uint8 or not 1 <= bits <= 8:
        raise UnsupportedInputError(f"{values.dtype} in {bits} bits: uint8 in 1 to 8 bits can be packed")
    flat = values.reshape(-1)
    if flat.size and int(flat.max()) >> bits:
        raise UnsupportedInputError(f"{int(flat.max())} does not fit into {bits} bits")
    if bits == 8:
        return flat.tobytes()
    parts = []
    for start in range(0, flat.size, _CHUNK):
        single = np.unpackbits(flat[start : start + _CHUNK, None], axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(single.reshape(-1), bitorder="little").tobytes())
    return b"".join(parts)


def unpack_bits(data: bytes | memoryview, bits: int, count: int) -> np.ndarray:
    """The ``count`` numbers of `pack_bits`, uint8, flat.

    Raises: CheckpointError if ``data`` is not exactly as long as that many numbers, or its last bits are not zero.
    """
    if not 1 <= bits <= 8 or count < 0 or len(data) != packed_size(count, bits):
        raise CheckpointError(f"{len(data)} bytes are not {count} numbers of {bits} bits")
    packed = np.frombuffer(data, np.uint8)
    if bits == 8:
        return packed.copy()
    values = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        first = start * bits // 8
        single = np.unpackbits(packed[first : first + packed_size(size, bits)], bitorder="little")
        if single[size * bits :].any():
            raise CheckpointError("bits behind the last packed number are not zero")
        values[start : start + size] = np.packbits(
            single[: size * bits].reshape(size, bits), axis=1, bitorder="little"
        )[:, 0]
    return values
