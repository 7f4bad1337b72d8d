"""The portable engine for graphs of fixed shapes: one sentence at a time, padded to the length they were made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lite_transformer.edge.engine import Candidates, Ids, session_options, start_session
from lite_transformer.edge.folder import DECODER_FILE, ENCODER_FILE, Manifest
from lite_transformer.edge.vocabulary import END, PAD
from lite_transformer.errors import CheckpointError, ConfigError, UnsupportedInputError


class FixedEngine:
    """As `OnnxEngine`; a state is a list of sentences, each with its caches, keys and values.

    Raises: CheckpointError if a graph is not one that ONNX Runtime can load.
    """

    name = "onnxruntime, fixed shapes"

    def __init__(self, folder: Path, manifest: Manifest, threads: int):
        try:
            fixed = manifest.model["fixed"]
            self.length, self.beam = int(fixed["length"]), int(fixed["beam"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{folder}: it does not say its fixed shapes. Export the model again") from None
        options = session_options(threads)
        self._encoder, self._decoder = (start_session(folder / name, options) for name in (ENCODER_FILE, DECODER_FILE))
        inputs = {item.name: item.shape for item in self._decoder.get_inputs()}
        sources = {item.name: item.shape for item in self._encoder.get_inputs()}
        if inputs.get("tokens") != [1, self.beam] or sources.get("source") != [1, self.length]:
            raise CheckpointError(f"{folder}: its graphs are not of its fixed shapes. Export the model again")
        self._caches = [name for name in inputs if name.startswith("cache.")]
        self._memory = [name for name in inputs if name.startswith("memory.")]
        self._empty = [np.zeros(inputs[name], np.float32) for name in self._caches]
        self._outputs = ["scores", *(f"new.{name}" for name in self._caches)]

    def restrict(self, ids: Ids | None) -> None:
        if ids is not None:
            raise ConfigError("a model of fixed shapes has no shortlist: export it without --static-length")

    def encode(self, source: Ids) -> list[dict[str, Any]]:
        """Raises: UnsupportedInputError naming the length that is too much."""
        state = []
        for row in source:
            sentence = row[row != PAD]
            if len(sentence) > self.length:
                raise UnsupportedInputError(
                    f"{len(sentence)} tokens, the exported model reads {self.length}: export it with a larger "
                    "--static-length"
                )
            padded = np.full((1, self.length), PAD, np.int64)
            padded[0, self.length - len(sentence) :] = sentence
            memory = self._encoder.run(self._memory, {"source": padded})
            feed = dict(zip(self._memory, memory, strict=True)) | dict(zip(self._caches, self._empty, strict=True))
            state.append(feed | {"position": np.zeros(1, np.int64), "beams": 1})
        return state

    def step(self, state: list[Any], tokens: Ids, order: Ids, sentences: Ids | None, count: int) -> Candidates:
        """Raises: UnsupportedInputError if there are more beams than the graphs have."""
        beams = tokens.shape[1]
        if beams > self.beam:
            raise UnsupportedInputError(f"{beams} beams, the exported model has {self.beam}")
        if sentences is not None:
            state[:] = [state[sentence] for sentence in sentences]
        scores = []
        for row, feed in enumerate(state):
            spare = self.beam - beams  # the graph's other beams compute the first one again
            feed["tokens"] = np.pad(tokens[row : row + 1], ((0, 0), (0, spare)), mode="edge")
            # the beams of all sentences of the step before are counted in one
            own = order[row : row + 1] % feed["beams"]
            feed["order"] = np.pad(own, ((0, 0), (0, spare)), mode="edge")
            inputs = {name: value for name, value in feed.items() if name != "beams"}
            found, *caches = self._decoder.run(self._outputs, inputs)
            for name, cache in zip(self._caches, caches, strict=True):
                feed[name] = cache.reshape(self.beam, *cache.shape[-3:])  # (1, N, ...) of graphs of format 2
            feed["position"], feed["beams"] = feed["position"] + 1, beams
            scores.append(found.reshape(self.beam, -1)[:beams])
        everything = np.stack(scores)  # (B, N, V)
        best = np.argpartition(-everything, count - 1, axis=-1)[..., :count]
        chosen = np.take_along_axis(everything, best, axis=-1)
        falling = np.argsort(-chosen, axis=-1, kind="stable")
        ranked = np.take_along_axis(best, falling, axis=-1)
        return Candidates(np.take_along_axis(chosen, falling, axis=-1), ranked, everything[..., END])
