"""What the search asks of a model, and the model as ONNX Runtime computes it from the two exported graphs.

Letters: B sentences, N beams of each, S source length, V vocabulary, k candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lite_transformer.edge.folder import DECODER_FILE, ENCODER_FILE, Manifest
from lite_transformer.errors import CheckpointError

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Candidates:
    """The likeliest next tokens of every beam.

    Attributes:
        scores: (B, N, k) log-probabilities, falling. tokens: (B, N, k), theirs.
        end_scores: (B, N) log-probability of the end of the sentence.
    """

    scores: Floats
    tokens: Ids
    end_scores: Floats


class Engine(Protocol):
    """A model that decodes batches; the search knows nothing else of it. The state is the engine's own affair."""

    def encode(self, source: Ids) -> Any:
        """The state before the first step. source: (B, S) ids, padded on the left."""

    def step(self, state: Any, tokens: Ids, order: Ids, sentences: Ids | None, count: int) -> Candidates:
        """One decoding step; ``state`` moves on by it.

        Args:
            tokens: (B, N), the newest token of every beam.
            order: (B, N), which beam of the step before each one goes on from, counted over all its B * N beams; zeros
                and up by sentence (one beam each) at the first step.
            sentences: (B), which sentences of the step before are still there; None: all.
            count: k; at most V.
        """


@dataclass
class OnnxState:
    """Caches between two steps of `OnnxEngine`: of rows (beams), of sentences, and the number of the step."""

    caches: list[NDArray]
    memory: list[NDArray]
    position: int = field(default=0)


class OnnxEngine:
    """The portable engine. Raises: CheckpointError if a graph is not one that ONNX Runtime can load."""

    name = "onnxruntime"

    def __init__(self, folder: Path, manifest: Manifest, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # threads that wait by spinning would take the processor from the caller between two steps
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        sessions = []
        for name in (ENCODER_FILE, DECODER_FILE):
            try:
                session = onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's errors have no common class of their own
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise CheckpointError(f"{folder / name}: cannot be loaded ({reason}). Export the model again") from None
            sessions.append(session)
        self._encoder, self._decoder = sessions
        self._shapes = [tuple(shape) for shape in manifest.caches]
        inputs = [item.name for item in self._decoder.get_inputs()]
        self._cache_names = [name for name in inputs if name.startswith("cache.")]
        self._memory_names = [name for name in inputs if name.startswith("memory.")]
        outputs = ["scores", "tokens_out", "end_scores", *(f"new.{name}" for name in self._cache_names)]
        known = {item.name for item in self._decoder.get_outputs()}
        found = {item.name for item in self._encoder.get_outputs()}
        if (
            not set(outputs) <= known
            or not set(self._memory_names) <= found
            or len(self._shapes) != len(self._cache_names)
        ):
            raise CheckpointError(f"{folder}: its graphs do not belong together. Export the model again")
        self._outputs = outputs

    def encode(self, source: Ids) -> OnnxState:
        memory = self._encoder.run(self._memory_names, {"source": source})
        batch = source.shape[0]
        caches = [np.zeros((batch, *shape), np.float32) for shape in self._shapes]
        return OnnxState(caches, memory)

    def encoder_states(self, source: Ids) -> Floats:
        """(B, S, C), the encoder's output; for checks and other uses than translation."""
        return self._encoder.run(["states"], {"source": source})[0]

    def step(self, state: OnnxState, tokens: Ids, order: Ids, sentences: Ids | None, count: int) -> Candidates:
        if sentences is not None:
            state.memory = [np.take(item, sentences, axis=0) for item in state.memory]
        feed = {
            "tokens": tokens,
            "order": order,
            "position": np.array([state.position], np.int64),
            "count": np.array([count], np.int64),
            **dict(zip(self._cache_names, state.caches, strict=True)),
            **dict(zip(self._memory_names, state.memory, strict=True)),
        }
        scores, found, end_scores, *caches = self._decoder.run(self._outputs, feed)
        # (B, N, ...) -> (B * N, ...), a view
        state.caches = [cache.reshape(tokens.size, *cache.shape[2:]) for cache in caches]
        state.position += 1
        return Candidates(scores, found, end_scores)
