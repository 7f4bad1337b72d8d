"""What the search asks of a model, and the model as ONNX Runtime computes it from the exported graphs.

Letters: B sentences, N beams of each, S source length, V vocabulary, k candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.workers import default_workers
from lite_transformer.edge.folder import DECODER_FILE, ENCODER_FILE, RESTRICTED_FILE, WEIGHTS_FILE, Manifest
from lite_transformer.edge.vocabulary import END
from lite_transformer.errors import CheckpointError

INT4_BLOCK = 32  # channels that share a scale
INT4_ACCURACY = "4"  # ONNX Runtime's name for int8 arithmetic, which products with int8 weights have, too

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

    def restrict(self, ids: Ids | None) -> None:
        """From the next `encode` on, only these tokens are candidates, and probabilities are over them; None: all.

        Args:
            ids: rising, with those of padding, the end of a sentence and the unknown token among them.
        """

    def encode(self, source: Ids) -> Any:
        """The state before the first step. source: (B, S) ids, padded on the left."""

    def step(self, state: Any, tokens: Ids, order: Ids, sentences: Ids | None, count: int) -> Candidates:
        """One decoding step; ``state`` moves on by it.

        Args:
            tokens: (B, N), the newest token of every beam.
            order: (B, N), which beam of the step before each one goes on from, counted over all its B * N beams; zeros
                and up by sentence (one beam each) at the first step.
            sentences: (B), which sentences of the step before are still there; None: all.
            count: k; at most V, or the number of ids that it is restricted to.
        """


def session_options(threads: int) -> Any:
    """ONNX Runtime's, for one graph after the other.

    Args:
        threads: no more are made than there are processors: those that wait for one another would hardly come on.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads = min(threads, default_workers())
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised; on the screen they would stand a second time
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", INT4_ACCURACY)
    # planning which tensors share memory takes a third of the loading; the allocator shares it as well without a plan
    options.enable_mem_reuse = False
    # threads that wait by spinning would take the processor from the caller between two steps
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    return options


def start_session(path: Path, options: Any) -> Any:
    """A graph, ready to run. Raises: CheckpointError if ONNX Runtime cannot load it."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: cannot be loaded ({reason}). Export the model again") from None


@dataclass(frozen=True)
class _Choice:
    """The allowed ids, rising, and what a restricted step is given for them."""

    ids: Ids
    feed: dict[str, NDArray]


@dataclass
class OnnxState:
    """Caches between two steps of `OnnxEngine`: of rows (beams), of sentences, and the number of the step."""

    caches: list[NDArray]
    memory: list[NDArray]
    choice: _Choice | None
    position: int = field(default=0)


class OnnxEngine:
    """The portable engine.

    Args:
        restricted: whether steps will be restricted; the other kind of step is loaded when it is first asked for.
    Raises: CheckpointError if a graph is not one that ONNX Runtime can load.
    """

    name = "onnxruntime"

    def __init__(self, folder: Path, manifest: Manifest, threads: int, restricted: bool = False):
        self._folder, self._manifest, self._options = folder, manifest, session_options(threads)
        self._encoder = start_session(folder / ENCODER_FILE, self._options)
        self._decoders: dict[str, Any] = {}
        self._choice: _Choice | None = None
        self._shapes = [tuple(shape) if isinstance(shape, list) else shape for shape in manifest.caches]
        decoder = self._decoder(RESTRICTED_FILE if restricted else DECODER_FILE)
        inputs = [item.name for item in decoder.get_inputs()]
        self._cache_names = [name for name in inputs if name.startswith("cache.")]
        self._memory_names = [name for name in inputs if name.startswith("memory.")]
        shapes = {item.name: item.shape[1:] for item in decoder.get_inputs()}
        # a dimension that grows from step to step has a name in the graph, and is 0 before the first
        wanted = [tuple(0 if isinstance(size, str) else size for size in shapes[name]) for name in self._cache_names]
        outputs = ["scores", "tokens_out", "end_scores", *(f"new.{name}" for name in self._cache_names)]
        known = {item.name for item in decoder.get_outputs()}
        found = {item.name for item in self._encoder.get_outputs()}
        if not set(outputs) <= known or not set(self._memory_names) <= found or self._shapes != wanted:
            raise CheckpointError(f"{folder}: its graphs do not belong together. Export the model again")
        self._outputs = outputs

    def _decoder(self, name: str) -> Any:
        if name not in self._decoders:
            self._decoders[name] = start_session(self._folder / name, self._options)
        return self._decoders[name]

    def restrict(self, ids: Ids | None) -> None:
        self._choice = None if ids is None else self._chosen(ids)

    def _chosen(self, ids: Ids) -> _Choice:
        """The rows of the output matrix, read from the weights."""
        model, decoder = self._manifest.model, self._decoder(RESTRICTED_FILE)
        name = "output"
        if model.get("tied_output"):
            name = "embedding" if model.get("shared_embeddings") else "decoder.embedding"
        inputs = {item.name for item in decoder.get_inputs()}
        matrix = self._tensor(f"{name}.weight")
        if matrix.dtype == np.uint8:  # two codes of int4 in a byte, with a scale for each block of channels
            codes = matrix[:, ids // 2] >> (4 * (ids % 2)).astype(np.uint8) & 15
            scales = self._tensor(f"{name}.scale")[:, ids]
            columns = (codes.astype(np.float32) - 16 * (codes > 7)) * scales[np.arange(len(codes)) // INT4_BLOCK]
        else:  # stored as (V, C) where it is the embedding, else as products read it
            columns = matrix[ids].T if model.get("tied_output") else matrix[:, ids]
        columns = np.ascontiguousarray(columns, np.int8 if matrix.dtype == np.int8 else np.float32)
        feed = {"output.weight": columns, "end": np.array(np.searchsorted(ids, END), np.int64)}
        if "output.scale" in inputs:
            feed["output.scale"] = self._tensor(f"{name}.scale")[ids]
        return _Choice(ids, feed)

    def _tensor(self, name: str) -> NDArray:
        """A tensor of the weights, mapped to memory."""
        try:
            place = self._manifest.tensors[name]
            dtype, shape, offset = place["dtype"], tuple(place["shape"]), place["offset"]
            if dtype == "int4":
                dtype, shape = "uint8", (shape[0], shape[1] // 2)
            return np.memmap(self._folder / WEIGHTS_FILE, np.dtype(dtype), "r", offset, shape)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{self._folder}: its weights hold no {name} ({error}). Export it again") from None

    def encode(self, source: Ids) -> OnnxState:
        memory = self._encoder.run(self._memory_names, {"source": source})
        batch = source.shape[0]
        caches = [np.zeros((batch, *shape), np.float32) for shape in self._shapes]
        return OnnxState(caches, memory, self._choice)

    def encoder_states(self, source: Ids) -> Floats:
        """(B, S, C), the encoder's output; for checks and other uses than translation."""
        return self._encoder.run(["states"], {"source": source})[0]

    def step(self, state: OnnxState, tokens: Ids, order: Ids, sentences: Ids | None, count: int) -> Candidates:
        if sentences is not None:
            state.memory = [np.take(item, sentences, axis=0) for item in state.memory]
        choice = state.choice
        decoder = self._decoder(DECODER_FILE if choice is None else RESTRICTED_FILE)
        feed = {
            "tokens": tokens,
            "order": order,
            "position": np.array([state.position], np.int64),
            "count": np.array([count], np.int64),
            **dict(zip(self._cache_names, state.caches, strict=True)),
            **dict(zip(self._memory_names, state.memory, strict=True)),
            **({} if choice is None else choice.feed),
        }
        scores, found, end_scores, *caches = decoder.run(self._outputs, feed)
        # of rows; graphs of format 1 and 2 give (B, N, ...)
        state.caches = [cache.reshape(tokens.size, *cache.shape[-3:]) for cache in caches]
        state.position += 1
        shape = (*tokens.shape, count)
        found = found.reshape(shape)
        found = found if choice is None else choice.ids[found]
        return Candidates(scores.reshape(shape), found, end_scores.reshape(tokens.shape))
