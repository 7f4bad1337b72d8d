"""The native engine: a compiled C++ step for exactly this model family. See `Engine` for what it computes.

int8 weights have a scale for each output, activations are coded at each layer: 8 bits with a scale and a zero for each
row, sums exact. The sources beside this file are compiled when the package is installed, if there is a compiler.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lite_transformer.edge.engine import Candidates, Floats, Ids
from lite_transformer.edge.folder import WEIGHTS_FILE, Manifest
from lite_transformer.edge.native.library import Library, compiled
from lite_transformer.edge.native.plan import plan
from lite_transformer.errors import CheckpointError, ConfigError, UnsupportedInputError

PRECISIONS = ("fp32", "int8")
_OLDEST_FORMAT = 2  # of folders; older ones keep small tensors in the graphs


def obstacle(manifest: Manifest) -> str | None:
    """Why the native engine cannot run a model here; None if it can."""
    if compiled() is None:
        return "it was not built: install a C++ compiler, then lite-transformer again"
    if manifest.format < _OLDEST_FORMAT:
        return f"the folder has format {manifest.format}, {_OLDEST_FORMAT} is needed: export the model again"
    if manifest.precision not in PRECISIONS:
        return f"it has no {manifest.precision} weights, only {' and '.join(PRECISIONS)}"
    return None


class NativeState:
    """Caches between two steps; memory of the compiled engine, released with this object."""

    def __init__(self, library: Library, handle: int):
        self.handle = handle
        weakref.finalize(self, library.call, "lt_release", handle)


class NativeEngine:
    """The engine of compiled code. Weights are read and packed once; nothing of the folder stays open.

    Args:
        threads: that share the work of a step, the caller's included; no more than there are processors.
        kernels: an instruction set of `Library.kernels`; None: the fastest.
    Raises: ConfigError if it cannot run here; CheckpointError if weights.bin is not what the manifest says.
    """

    name = "native"

    def __init__(self, folder: Path, manifest: Manifest, threads: int = 1, kernels: str | None = None):
        reason = obstacle(manifest)
        library = compiled()
        if reason is not None or library is None:
            raise ConfigError(f"the native engine cannot run: {reason}. The other one: --engine portable")
        if kernels is not None and kernels not in library.kernels():
            raise ConfigError(f"this processor has no {kernels}; it has {', '.join(library.kernels())}")
        self._library = library
        self._width = int(manifest.model["encoder"]["embed_dim"])
        path = folder / WEIGHTS_FILE
        numbers = plan(manifest)
        try:
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                weights = np.frombuffer(content, np.uint8)
                try:
                    handle = library.try_to(
                        "lt_open",
                        numbers.ctypes.data,
                        len(numbers),
                        weights.ctypes.data,
                        len(weights),
                        threads,
                        None if kernels is None else kernels.encode(),
                        error=lambda line: CheckpointError(f"{path}: {line}. Export the model again"),
                    )
                finally:
                    del weights  # a map that an array looks into cannot be closed
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise CheckpointError(f"{path}: cannot be read ({error}). Export the model again") from None
        self._handle = handle
        weakref.finalize(self, library.call, "lt_close", handle)

    @property
    def kernels(self) -> str:
        """The instruction set in use."""
        return self._library.call("lt_kernels_of", self._handle).decode()

    @property
    def threads(self) -> int:
        return self._library.call("lt_threads", self._handle)

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that a decoding step reads, all words allowed."""
        return self._library.call("lt_step_bytes", self._handle)

    def restrict(self, ids: Ids | None) -> None:
        """From the next `encode` on, only these words are written: rising, the end of a sentence among them."""
        if ids is None:
            self._library.try_to("lt_restrict", self._handle, None, 0, error=UnsupportedInputError)
            return
        own = np.ascontiguousarray(ids, np.int64)
        if own.ndim != 1:
            raise UnsupportedInputError(f"words allowed: a list is needed, not {own.ndim} dimensions")
        self._library.try_to("lt_restrict", self._handle, own.ctypes.data, len(own), error=UnsupportedInputError)

    def encode(self, source: Ids) -> NativeState:
        return self._encode(source, None)

    def encoder_states(self, source: Ids) -> Floats:
        """(B, S, C), the encoder's output, zeros at padding; for checks and other uses than translation."""
        states = np.empty((*source.shape, self._width), np.float32)
        self._encode(source, states)
        return states

    def _encode(self, source: Ids, states: Floats | None) -> NativeState:
        own = np.ascontiguousarray(source, np.int64)
        if own.ndim != 2:
            raise UnsupportedInputError(f"a source of {own.ndim} dimensions; two are needed")
        place = None if states is None else states.ctypes.data
        handle = self._library.try_to(
            "lt_encode", self._handle, own.ctypes.data, *own.shape, place, error=UnsupportedInputError
        )
        return NativeState(self._library, handle)

    def step(self, state: NativeState, tokens: Ids, order: Ids, sentences: Ids | None, count: int) -> Candidates:
        tokens, order = np.ascontiguousarray(tokens, np.int64), np.ascontiguousarray(order, np.int64)
        if tokens.ndim != 2 or tokens.shape != order.shape:
            raise UnsupportedInputError(f"tokens {tokens.shape} and their order {order.shape} do not fit together")
        if count < 1:
            raise UnsupportedInputError(f"{count} candidates: at least 1 is needed")
        batch, beams = tokens.shape
        kept = None if sentences is None else np.ascontiguousarray(sentences, np.int64)
        if kept is not None and kept.shape != (batch,):
            raise UnsupportedInputError(f"sentences {kept.shape} of a batch of {batch}")
        scores = np.empty((batch, beams, count), np.float32)
        found = np.empty((batch, beams, count), np.int64)
        end_scores = np.empty((batch, beams), np.float32)
        self._library.try_to(
            "lt_step",
            self._handle,
            state.handle,
            tokens.ctypes.data,
            order.ctypes.data,
            None if kept is None else kept.ctypes.data,
            batch,
            beams,
            count,
            scores.ctypes.data,
            found.ctypes.data,
            end_scores.ctypes.data,
            error=UnsupportedInputError,
        )
        return Candidates(scores, found, end_scores)

    def search(
        self, source: Ids, limits: Ids, beam: int, min_len: int, no_repeat_ngram_size: int, lenpen: float
    ) -> list[list[tuple[list[int], float]]]:
        """See `Searcher` in search.py. A call of compiled code for each step, so that an interrupt finds its way."""
        source, limits = np.ascontiguousarray(source, np.int64), np.ascontiguousarray(limits, np.int64)
        if source.ndim != 2 or limits.shape != source.shape[:1]:
            raise UnsupportedInputError(f"limits {limits.shape} of a source {source.shape}: one for each sentence")
        library = self._library
        handle = library.try_to(
            "lt_search", self._handle, source.ctypes.data, limits.ctypes.data, *source.shape, beam, min_len,
            no_repeat_ngram_size, lenpen, error=UnsupportedInputError,
        )  # fmt: skip
        try:
            while library.try_to("lt_search_step", handle, error=UnsupportedInputError) == 1:
                pass
            return [list(self._found(handle, sentence, int(limit) + 1)) for sentence, limit in enumerate(limits)]
        finally:
            library.call("lt_search_release", handle)

    def _found(self, search: int, sentence: int, most: int) -> Iterator[tuple[list[int], float]]:
        """Hypotheses of a finished search, of at most ``most`` tokens."""
        tokens, score = (ctypes.c_int64 * most)(), ctypes.c_float()
        for rank in itertools.count():
            length = self._library.call("lt_search_found", search, sentence, rank, tokens, most, ctypes.byref(score))
            if length == 0:
                return
            yield tokens[:length], score.value
