"""What of an exported folder the compiled engine reads, in the order in which `model.cpp` reads it.

A plan is a list of 64-bit integers: sizes, flags, bits of doubles, and for each tensor where it begins in weights.bin
(-1: there is none). The tensors are those of the graphs, see `lite_transformer.edge.graphs`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lite_transformer.edge.folder import Manifest
from lite_transformer.errors import CheckpointError

_BEGIN = 0x4C54504C414E31
_ACTIVATIONS = ("relu", "tanh", "linear", "sigmoid")
_POSITIONS = ("none", "sinusoid", "table")


def plan(manifest: Manifest) -> NDArray[np.int64]:
    """Raises: CheckpointError naming the tensor or the entry that is missing or of another shape."""
    try:
        return np.array(_Plan(manifest).numbers, np.int64)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"edge.json does not describe a model ({error!r}). Export the model again") from None


class _Plan:
    def __init__(self, manifest: Manifest):
        self._tensors = manifest.tensors
        self.numbers: list[int] = [_BEGIN]
        model = manifest.model
        words = [int(model[f"{side}_vocabulary"]) for side in ("source", "target")]
        widths = [int(model[side]["embed_dim"]) for side in ("encoder", "decoder")]
        offset = int(manifest.special["pad"]) + 1
        self._add(*words, int(manifest.special["pad"]), int(manifest.special["end"]), *widths)
        is_shared, is_tied = bool(model["shared_embeddings"]), bool(model["tied_output"])
        names = ["embedding"] * 2 if is_shared else ["encoder.embedding", "decoder.embedding"]
        self._linear(names[1] if is_tied else "output", widths[1], words[1], transposed=not is_tied, bias=False)
        self._embedding(names[1], words[1], widths[1], float(model["decoder"]["embed_scale"]), is_tied)
        self._add(int(is_shared))
        if not is_shared:
            self._embedding(names[0], words[0], widths[0], float(model["encoder"]["embed_scale"]), False)
        self._side("encoder", model["encoder"], offset, None)
        self._side("decoder", model["decoder"], offset, widths[0])

    def _add(self, *numbers: int) -> None:
        self.numbers += numbers

    def _real(self, value: float) -> None:
        self._add(struct.unpack("<q", struct.pack("<d", value))[0])

    def _tensor(self, name: str, shape: Sequence[int], dtype: str = "float32", optional: bool = False) -> None:
        item = self._tensors.get(name)
        if item is None and optional:
            self._add(-1)
            return
        if item is None:
            raise CheckpointError(f"weights.bin has no {name}. Export the model again")
        found = [int(size) for size in item["shape"]]
        if item["dtype"] != dtype or math.prod(found) != math.prod(shape):
            raise CheckpointError(
                f"{name} of weights.bin is {item['dtype']} {found}, the model needs {dtype} {list(shape)}. Export the "
                "model again"
            )
        self._add(int(item["offset"]))

    def _is_int8(self, name: str) -> bool:
        return name in self._tensors and self._tensors[name]["dtype"] == "int8"

    def _linear(self, name: str, inputs: int, outputs: int, transposed: bool = True, bias: bool = True) -> None:
        weight = f"{name}.weight"
        is_int8 = self._is_int8(weight)
        self._add(int(is_int8), int(transposed))
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        self._tensor(weight, shape, "int8" if is_int8 else "float32")
        if is_int8:
            self._tensor(f"{name}.scale", (outputs,))
        else:
            self._add(-1)
        if bias:
            self._tensor(f"{name}.bias", (outputs,), optional=True)
        else:
            self._add(-1)

    def _embedding(self, name: str, count: int, width: int, scale: float, is_tied: bool) -> None:
        is_int8 = self._is_int8(f"{name}.weight")
        self._real(scale)
        self._add(int(is_int8), int(is_tied))
        if is_int8:
            self._tensor(f"{name}.row_scale", (count,))
        if not is_tied:
            self._tensor(f"{name}.weight", (count, width), "int8" if is_int8 else "float32")

    def _norm(self, name: str, width: int, is_there: bool = True) -> None:
        if not is_there:
            self._add(-1, -1)
            return
        for part in ("weight", "bias"):
            self._tensor(f"{name}.{part}", (width,))

    def _side(self, name: str, side: Mapping[str, Any], offset: int, memory_width: int | None) -> None:
        width, layers = int(side["embed_dim"]), side["layers"]
        epsilons = side["norm_epsilon"]
        if len(epsilons) > 1:
            raise CheckpointError(f"the {name}'s norms have several epsilons: {epsilons}; the native engine takes one")
        self._add(int(bool(side["normalize_before"])))
        self._real(float(epsilons[0]) if epsilons else 0.0)
        self._positions(name, side["positions"], width, offset)
        self._norm(f"{name}.embedding_norm", width, bool(side["embedding_norm"]))
        self._add(len(layers))
        for number, layer in enumerate(layers):
            self._layer(f"{name}.{number}", layer, width, memory_width)
        self._norm(f"{name}.norm", width, bool(side["final_norm"]))

    def _positions(self, name: str, kind: str, width: int, offset: int) -> None:
        rows = 0
        if kind == "table":
            rows = int(self._tensors[f"{name}.positions"]["shape"][0])
        self._add(_POSITIONS.index(kind), offset, rows)
        if kind == "sinusoid":
            self._tensor(f"{name}.frequencies", (width // 2,))
        elif kind == "table":
            self._tensor(f"{name}.positions", (rows, width))

    def _layer(self, name: str, layer: Mapping[str, Any], width: int, memory_width: int | None) -> None:
        self._add(len(layer["branches"]))
        for number, branch in enumerate(layer["branches"]):
            own, where = int(branch["width"]), f"{name}.branch{number}"
            self._add(int(branch["kind"] == "attention"), own)
            if branch["kind"] == "attention":
                inner = int(self._tensors[f"{where}.qkv.weight"]["shape"][1]) // 3
                self._add(int(branch["heads"]), inner)
                self._linear(f"{where}.qkv", own, 3 * inner)
                self._linear(f"{where}.out", inner, own)
            else:
                self._convolution(where, branch, own)
        self._norm(f"{name}.norm", width)
        if memory_width is not None:
            self._norm(f"{name}.cross_norm", width)
            inner = int(self._tensors[f"{name}.cross.query.weight"]["shape"][1])
            self._add(int(layer["cross_heads"]), inner)
            self._linear(f"{name}.cross.query", width, inner)
            self._linear(f"{name}.cross.keys", memory_width, inner)
            self._linear(f"{name}.cross.values", memory_width, inner)
            self._linear(f"{name}.cross.out", inner, width)
        self._norm(f"{name}.final_norm", width)
        hidden = int(layer["ffn"])
        self._add(hidden)
        self._linear(f"{name}.fc1", width, hidden)
        self._linear(f"{name}.fc2", hidden, width)
        self._add(_ACTIVATIONS.index(layer["activation"]))

    def _convolution(self, name: str, branch: Mapping[str, Any], width: int) -> None:
        heads, size = int(branch["heads"]), int(branch["kernel_size"])
        is_dynamic, has_linear = branch["kind"] == "dynamic", bool(branch["linear"])
        gate = bool(branch["gate"])
        self._add(heads, size)
        self._add(*(int(bool(flag)) for flag in (gate, branch["softmax"], branch["mask_after_gate"])))
        self._add(int(has_linear), int(is_dynamic))
        if has_linear:
            self._linear(f"{name}.linear1", width, 2 * width if gate else width)
            self._linear(f"{name}.linear2", width, width)
        if is_dynamic:
            self._linear(f"{name}.generator", width, heads * size, bias=False)
        else:
            self._tensor(f"{name}.kernels", (heads, size))
