"""Entropy coding of bytes by range asymmetric numeral systems (rANS; Duda 2013, arXiv:1311.2540).

A coder's state is one whole number. To code a symbol of probability f / 8192, the state grows by that symbol's share
of information; when it would overflow, its low 16 bits move to the output. Decoding runs the steps backwards.

Many independent states (*lanes*) work side by side, so that every step is a handful of NumPy operations over all of
them: lane i codes symbols i, i + lanes, i + 2 lanes, ... Several streams of symbols, each with its own probabilities,
share the lanes one after the other and so pay for the final states only once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lite_transformer.errors import CheckpointError

PROBABILITY_BITS = 13
TOTAL = 1 << PROBABILITY_BITS
MAX_LANES = 4096
_LOWEST_STATE = 1 << 16


@dataclass(frozen=True)
class Stream:
    """Symbols (uint8, flat) and how often, of 8192, each symbol of the alphabet is expected.

    Every symbol that occurs has a frequency of at least 1, and at least two symbols have one: a stream of a single
    symbol needs no code.
    """

    symbols: np.ndarray
    frequencies: np.ndarray


def quantized_frequencies(counts: np.ndarray) -> np.ndarray:
    """Frequencies (uint16) that sum to 8192, in proportion to ``counts``; 0 only where the count is 0.

    At least two counts must be positive.
    """
    counts = counts.astype(np.int64)
    present = counts > 0
    scaled = counts * TOTAL / counts.sum()
    frequencies = np.where(present, np.maximum(1, np.rint(scaled)), 0).astype(np.int64)
    while excess := int(frequencies.sum()) - TOTAL:
        # taken from (given to) the largest ones, where it changes the code least; no symbol loses its last chance
        order = np.argsort(-frequencies, kind="stable")
        changed = order[: min(abs(excess), int(present.sum()))]
        changed = changed[frequencies[changed] > 1] if excess > 0 else changed
        frequencies[changed] -= 1 if excess > 0 else -1
    return frequencies.astype(np.uint16)


def coded_bits(counts: np.ndarray, frequencies: np.ndarray) -> float:
    """Bits that symbols with these counts take when coded with these frequencies."""
    used = counts > 0
    return float((counts[used] * (PROBABILITY_BITS - np.log2(frequencies[used]))).sum())


def choose_lanes(symbols: int) -> int:
    """How many lanes code so many symbols: each costs 4 bytes for its final state, and saves steps of decoding."""
    return min(max(math.isqrt(symbols) // 4, 1), MAX_LANES)


def encode(streams: Sequence[Stream], lanes: int) -> bytes:
    """The streams in one piece: ``lanes`` final states (uint32), then the words (uint16) in the order of decoding."""
    states = np.full(lanes, _LOWEST_STATE, np.uint32)
    pieces: list[np.ndarray] = []
    for stream in reversed(streams):
        frequencies = stream.frequencies.astype(np.uint32)
        starts = (np.cumsum(frequencies) - frequencies).astype(np.uint32)
        limits = frequencies << (32 - PROBABILITY_BITS)
        symbols = stream.symbols
        for begin in range((symbols.size - 1) // lanes * lanes, -1, -lanes):
            step = symbols[begin : begin + lanes]
            state = states[: step.size]
            full = state >= limits[step]
            pieces.append(state[full].astype(np.uint16))
            state = np.where(full, state >> 16, state)
            frequency = frequencies[step]
            quotient = state // frequency
            states[: step.size] = (quotient << PROBABILITY_BITS) + (state - quotient * frequency) + starts[step]
    words = np.concatenate(pieces[::-1]) if pieces else np.empty(0, np.uint16)
    return states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def decode(data: bytes | memoryview, lanes: int, tables: Sequence[tuple[np.ndarray, int]]) -> list[np.ndarray]:
    """The symbols (uint8) of each stream, given its frequencies and how many symbols it has.

    Raises: CheckpointError if ``data`` ends too early or too late, or the states do not return to where they began.
    """
    if not 1 <= lanes <= MAX_LANES or len(data) < 4 * lanes or (len(data) - 4 * lanes) % 2:
        raise CheckpointError(f"{len(data)} bytes of entropy code are none of {lanes} lanes")
    states = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
    words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.uint32)
    position = 0
    decoded = []
    for table, count in tables:
        frequencies = table.astype(np.uint32)
        starts = (np.cumsum(frequencies) - frequencies).astype(np.uint32)
        symbol_at = np.repeat(np.arange(table.size, dtype=np.uint8), table)
        # per slot: the frequency of its symbol, and how far the slot lies behind that symbol's first one
        frequency_at = frequencies[symbol_at]
        offset_at = np.arange(TOTAL, dtype=np.uint32) - starts[symbol_at]
        symbols = np.empty(count, np.uint8)
        for begin in range(0, count, lanes):
            size = min(lanes, count - begin)
            state = states[:size]
            slot = state & (TOTAL - 1)
            symbols[begin : begin + size] = symbol_at[slot]
            state = frequency_at[slot] * (state >> PROBABILITY_BITS) + offset_at[slot]
            low = np.flatnonzero(state < _LOWEST_STATE)
            if low.size:
                if position + low.size > words.size:
                    raise CheckpointError("the entropy code ends before its symbols")
                state[low] = (state[low] << 16) | words[position : position + low.size]
                position += low.size
            states[:size] = state
        decoded.append(symbols)
    if position != words.size or (states != _LOWEST_STATE).any():
        raise CheckpointError("the entropy code does not end where its symbols do")
    return decoded
