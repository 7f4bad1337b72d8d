"""The two ONNX graphs of a model, written operator by operator: standard operators only, few of them in the step.

Letters: B sentences, N beams, S source length, T steps so far, C channels, H heads, R = C / H, K kernel size, V
vocabulary.

The encoder gives every decoder layer's keys (B, H, R, S) and values (B, H, S, R) at once. In the step a row is a beam
of a sentence, and tensors are (rows, 1, C); only attention to the source is (B, H, N, ...), so that the beams of a
sentence share its keys and values without a copy. Caches are (rows, ...) and are gathered by ``order``, which is their
reordering. Windows of convolutions are (H, K, R): the convolution at the newest position is then one batched matrix
product. In the encoder it is a product with the band matrix of the kernels, which padding, a view of other shape and a
cut make of them.

A layer norm is an instance norm of one channel, and weight and bias of its own: ONNX Runtime 1.31 computes it of 4 rows
in half, of 128 rows in a quarter of the time of LayerNormalization.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lite_transformer.edge.engine import INT4_BLOCK
from lite_transformer.edge.parts import (
    Attention,
    Convolution,
    Layer,
    Linear,
    Model,
    Norm,
    Positions,
    Side,
    cache_shapes,
)
from lite_transformer.errors import UnsupportedInputError

OPSET = 17
OPSET_INT4 = 21  # the first one with blocks of int4
HIDDEN = -1e9  # added to the scores of padding
ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "linear": None, "sigmoid": "Sigmoid"}
_ALIGNMENT = 64
_SMALL = 64  # elements; smaller tensors are in the graph as well, where shape inference reads them
# AVX2 adds two products of uint8 and int8 in 16 bits: 2 * 255 * 64 fits, the full range of int8 does not.
MOST_CODE = 64
_LEAST_ROWS = 16  # of a matrix worth quantizing
_CLIPS = np.linspace(1, 0.7, 7, dtype=np.float32)  # of a block's largest value, that its codes are tried to reach to


@dataclass(frozen=True)
class Fixed:
    """Shapes of graphs for processors that want them known: one sentence of ``length`` tokens, padded, in and out, and
    ``beam`` beams. Keys and values have their full length from the start, and the step gives all log-probabilities."""

    length: int
    beam: int


class Weights:
    """The file of all tensors, which both graphs and the native engine read; equal bytes are stored once."""

    def __init__(self, path: Path):
        self._stream = path.open("wb")
        self._places: dict[bytes, int] = {}
        self.index: dict[str, dict[str, Any]] = {}
        self.file_name = path.name

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, name: str, array: NDArray) -> int:
        """Offset in bytes."""
        content = np.ascontiguousarray(array).tobytes()
        digest = hashlib.sha256(content).digest()
        if digest not in self._places:
            self._stream.write(b"\0" * (-self._stream.tell() % _ALIGNMENT))
            self._places[digest] = self._stream.tell()
            self._stream.write(content)
        offset = self._places[digest]
        self.index[name] = {"offset": offset, "dtype": str(array.dtype), "shape": list(array.shape)}
        return offset


class _Graph:
    """Nodes and initializers of a graph under construction; every operator returns the name of what it computes."""

    def __init__(self, name: str, weights: Weights, precision: str, fixed: Fixed | None = None):
        self.name = name
        self.fixed = fixed
        # what dimensions are called that differ from run to run
        self.sizes: dict[str, int | str] = {name: name for name in ("B", "N", "S", "rows")}
        if fixed is not None:
            self.sizes = {"B": 1, "N": fixed.beam, "S": fixed.length, "rows": fixed.beam}
        self.weights = weights
        self.precision = precision
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._count = 0
        self._quantized: dict[str, tuple[str, str, str]] = {}  # int8 form of activations that several products read

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> list[str]:
        self._count += 1
        names = list(outputs) or [f"{kind}.{self._count}.{index}" for index in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}.{self._count}", **attributes))
        return names

    def output(self, value: str, name: str) -> None:
        self.ops("Identity", 1, value, outputs=[name])

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """A small constant, the same name for the same values."""
        array = np.asarray(values, dtype)
        name = f"const.{array.dtype}.{'x'.join(map(str, array.shape))}.{array.ravel().tolist()}"
        self.initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, array: NDArray) -> str:
        if name in self.initializers:
            return name
        offset = self.weights.add(name, array)
        if array.size < _SMALL:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
            return name
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.initializers[name] = self._external(name, kind, array.shape, offset, array.nbytes)
        return name

    def _external(self, name: str, kind: int, shape: Sequence[int], offset: int, size: int) -> onnx.TensorProto:
        """A tensor that lies in the file of weights."""
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.weights.file_name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def packed(self, name: str, codes: NDArray, kind: int) -> str:
        """Codes (in, out) of int4, two in a byte, as what they are or, of kind UINT8, as bytes (in, out / 2)."""
        name = f"{name}.bytes" if kind == TensorProto.UINT8 else f"{name}.weight"
        content = pack(codes)
        shape = content.shape if kind == TensorProto.UINT8 else codes.shape
        self.initializers[name] = self._external(name, kind, shape, self.weights.add(name, content), content.nbytes)
        if kind == TensorProto.INT4:
            self.weights.index[name] |= {"dtype": "int4", "shape": list(shape)}
        return name

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps the dimension in its place, -1 is what is left."""
        return self.op("Reshape", x, self.constant(shape))

    def split(self, x: str, widths: Sequence[int]) -> list[str]:
        """Parts of the last dimension."""
        return self.ops("Split", len(widths), x, self.constant(widths), axis=-1) if len(widths) > 1 else [x]

    def add(self, x: str, y: str) -> str:
        return self.op("Add", x, y)

    # --- layers ---

    def linear(self, x: str, name: str, layer: Linear) -> str:
        """x (..., in) -> (..., out)."""
        product = self.product(x, name, layer.weight)
        if layer.bias is None:
            return product
        return self.add(product, self.weight(f"{name}.bias", layer.bias))

    def product(self, x: str, name: str, weight: NDArray, transposed: bool = True) -> str:
        """x (..., in) times weight (out, in); ``transposed``: stored as (in, out), which products read."""
        form = self.form(weight)
        if form == "int4":
            codes, scales = quantize_blocks(weight)
            matrix, scale = self.packed(name, codes, TensorProto.INT4), self.weight(f"{name}.scale", scales)
            # ONNX Runtime makes one operator of the two
            return self.op("MatMul", x, self.op("DequantizeLinear", matrix, scale, axis=0, block_size=INT4_BLOCK))
        if form == "fp32":
            if transposed:
                return self.op("MatMul", x, self.weight(f"{name}.weight", weight.T))
            stored = self.weight(f"{name}.weight", weight)
            return self.op("MatMul", x, self.op("Transpose", stored, perm=[1, 0]))
        codes, scales = quantize_rows(weight)
        if transposed:
            matrix = self.weight(f"{name}.weight", codes.T)
        else:
            matrix = self.op("Transpose", self.weight(f"{name}.weight", codes), perm=[1, 0])
        return self.integer_product(x, matrix, self.weight(f"{name}.scale", scales))

    def form(self, weight: NDArray) -> str:
        """The precision that a matrix (out, in) is stored in: int4 wants whole bytes."""
        if self.precision == "fp32" or len(weight) < _LEAST_ROWS:
            return "fp32"
        return "int8" if self.precision == "int4" and len(weight) % 2 else self.precision

    def integer_product(self, x: str, codes: str, scales: str) -> str:
        """x (..., in) times codes (in, out), each column of which has a scale."""
        if x not in self._quantized:
            found = self.ops("DynamicQuantizeLinear", 3, x)
            self._quantized[x] = (found[0], found[1], found[2])
        values, scale, zero = self._quantized[x]
        whole = self.op("MatMulInteger", values, codes, zero, self.constant(0, np.int8))
        return self.op("Mul", self.op("Cast", whole, to=TensorProto.FLOAT), self.op("Mul", scale, scales))

    def norm(self, x: str, name: str, norm: Norm) -> str:
        """x (rows, 1, C) -> (rows, 1, C)."""
        weight, bias = self.weight(f"{name}.weight", norm.weight), self.weight(f"{name}.bias", norm.bias)
        one, zero = self.constant([1], np.float32), self.constant([0], np.float32)
        normal = self.op("InstanceNormalization", x, one, zero, epsilon=norm.epsilon)
        return self.add(self.op("Mul", normal, weight), bias)

    def embed(self, tokens: str, name: str, side: Side) -> str:
        """tokens (...) -> (..., C), scaled."""
        scale = np.float32(side.scale)
        form = self.form(side.embedding)
        if form == "int4":
            return self._embed_int4(tokens, name, side.embedding, scale)
        if form == "fp32":
            x = self.op("Gather", self.weight(f"{name}.weight", side.embedding), tokens, axis=0)
            return x if scale == 1 else self.op("Mul", x, self.constant(scale, np.float32))
        codes, scales = quantize_rows(side.embedding)
        rows = self.op("Gather", self.weight(f"{name}.weight", codes), tokens, axis=0)
        own = self.weight(f"{name}.row_scale", (scales * scale)[:, None])
        return self.op("Mul", self.op("Cast", rows, to=TensorProto.FLOAT), self.op("Gather", own, tokens, axis=0))

    def _embed_int4(self, tokens: str, name: str, embedding: NDArray, scale: np.float32) -> str:
        """Rows of an embedding laid out as the output matrix, which it may be: columns of (C, V), two in a byte."""
        codes, scales = quantize_blocks(embedding)
        bytes_of_pairs = self.packed(name, codes, TensorProto.UINT8)
        two, four = self.constant(2), self.constant(4, np.uint8)
        pairs = self.op("Gather", bytes_of_pairs, self.op("Div", tokens, two), axis=1)  # (C, ...)
        is_second = self.op("Equal", self.op("Mod", tokens, two), self.constant(1))
        high = self.op("BitShift", pairs, four, direction="RIGHT")
        low = self.op("BitShift", self.op("BitShift", pairs, four, direction="LEFT"), four, direction="RIGHT")
        code = self.op("Cast", self.op("Where", is_second, high, low), to=TensorProto.FLOAT)  # 8 to 15 are -8 to -1
        is_negative = self.op("Greater", code, self.constant(7, np.float32))
        turn = self.op("Mul", self.op("Cast", is_negative, to=TensorProto.FLOAT), self.constant(16, np.float32))
        signed = self.op("Sub", code, turn)
        # under a name of its own: a product whose scales have another reader is not made one operator with them, and
        # ONNX Runtime then dequantizes the whole matrix at each step
        scales_again = self.weight(f"{name}.embedding_scale", scales)
        of_block = self.op("Gather", scales_again, tokens, axis=1)  # (C / INT4_BLOCK, ...)
        repeated = np.arange(embedding.shape[1]) // INT4_BLOCK
        x = self.op("Mul", signed, self.op("Gather", of_block, self.weight(f"{name}.blocks", repeated), axis=0))
        x = self.op("Transpose", x, perm=(1, 2, 0))
        return x if scale == 1 else self.op("Mul", x, self.constant(scale, np.float32))

    def positions(self, numbers: str, name: str, positions: Positions) -> str:
        """numbers (...), counted from 0 -> (..., C)."""
        index = self.add(numbers, self.constant(positions.offset))
        if positions.table is not None:
            return self.op("Gather", self.weight(f"{name}.positions", positions.table), index, axis=0)
        assert positions.frequencies is not None
        place = self.op("Unsqueeze", self.op("Cast", index, to=TensorProto.FLOAT), self.constant([-1]))
        angles = self.op("Mul", place, self.weight(f"{name}.frequencies", positions.frequencies))
        return self.op("Concat", self.op("Sin", angles), self.op("Cos", angles), axis=-1)

    def gate(self, x: str, width: int) -> str:
        """A gated linear unit: the first half times the sigmoid of the second."""
        value, gate = self.split(x, (width, width))
        return self.op("Mul", value, self.op("Sigmoid", gate))

    def feed_forward(self, x: str, name: str, layer: Layer) -> str:
        if layer.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UnsupportedInputError(f"activation '{layer.activation}' cannot be exported; these can: {known}")
        x = self.linear(x, f"{name}.fc1", layer.fc1)
        kind = ACTIVATIONS[layer.activation]
        return self.linear(x if kind is None else self.op(kind, x), f"{name}.fc2", layer.fc2)

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, list(self.initializers.values()))
        opset, version = (OPSET_INT4, 10) if self.precision == "int4" else (OPSET, 8)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version, producer_name="lite-transformer"
        )


def quantize_rows(weight: NDArray) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (out, in) in -MOST_CODE..MOST_CODE and a scale for each row: weight is about codes * scale."""
    largest = np.abs(weight).max(axis=1)
    scales = np.where(largest > 0, largest / MOST_CODE, 1).astype(np.float32)
    return np.clip(np.rint(weight / scales[:, None]), -MOST_CODE, MOST_CODE).astype(np.int8), scales


def quantize_blocks(weight: NDArray) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (in, out) in -8..7 of a matrix (out, in), and scales (blocks, out), each of INT4_BLOCK inputs.

    The value of a block that is largest without its sign gets code -8, or is clipped a little if that makes the sum of
    squared errors smaller.
    """
    rows, width = weight.shape
    blocks = np.zeros((rows, -(-width // INT4_BLOCK) * INT4_BLOCK), np.float32)
    blocks[:, :width] = weight
    blocks = blocks.reshape(rows, -1, INT4_BLOCK)
    place = np.abs(blocks).argmax(axis=2, keepdims=True)
    extreme = np.take_along_axis(blocks, place, axis=2)
    best, least = np.ones_like(extreme), np.full(extreme.shape, np.inf, np.float32)
    for clip in _CLIPS:
        scale = np.where(extreme == 0, 1, extreme * clip / -8).astype(np.float32)
        error = np.square(np.clip(np.rint(blocks / scale), -8, 7) * scale - blocks).sum(axis=2, keepdims=True)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    codes = np.clip(np.rint(blocks / best), -8, 7).astype(np.int8).reshape(rows, -1)[:, :width]
    return codes.T, np.ascontiguousarray(best[:, :, 0].T)


def pack(codes: NDArray) -> NDArray[np.uint8]:
    """Codes (in, out) of int4 as bytes (in, out / 2), the first of two in the lower half."""
    halves = codes.astype(np.uint8) & 15
    return np.bitwise_or(halves[:, ::2], halves[:, 1::2] << 4, dtype=np.uint8)


def _joined(attention: Attention) -> Linear:
    """Query, key and value as one layer, the query divided by sqrt(R)."""
    scale = np.float32(1 / np.sqrt(attention.head_dim))
    parts = [_scaled(attention.query, scale), attention.key, attention.value]
    biases = [np.zeros(len(part.weight), np.float32) if part.bias is None else part.bias for part in parts]
    return Linear(np.concatenate([part.weight for part in parts]), np.concatenate(biases))


def _scaled(layer: Linear, factor: np.float32) -> Linear:
    return Linear(layer.weight * factor, None if layer.bias is None else layer.bias * factor)


# --- encoder -------------------------------------------------------------------------------------------------------


class _Encoder(_Graph):
    """source (B, S) -> states (B, S, C), memory.bias (B, 1, 1, S), memory.keys.i and memory.values.i."""

    def build(self, model: Model) -> onnx.ModelProto:
        side = model.encoder
        padding = self.op("Equal", "source", self.constant(model.pad))  # (B, S)
        real = self.op("Cast", self.op("Not", padding), to=TensorProto.INT64)
        mask = self.op("Unsqueeze", self.op("Cast", real, to=TensorProto.FLOAT), self.constant([-1]))  # (B, S, 1)
        hidden = self.op("Mul", self.op("Cast", padding, to=TensorProto.FLOAT), self.constant(HIDDEN, np.float32))
        bias = self.op("Unsqueeze", hidden, self.constant([1, 2]))  # (B, 1, 1, S)
        fixed, batch, length = self.fixed, self.sizes["B"], self.sizes["S"]
        self._length = self.constant([fixed.length]) if fixed else self.op("Shape", "source", start=1, end=2)  # (1)
        self._of_states = self._around_length([-1], [side.embed_dim])
        x = self.embed("source", _embedding_name(model, "encoder"), side)
        if side.positions is not None:
            counted = self.op("CumSum", real, self.constant(1))  # real tokens count from 1; padding is hidden later
            numbers = self.op("Mul", self.op("Sub", counted, self.constant(1)), real)
            x = self.add(x, self.positions(numbers, "encoder", side.positions))
        if side.embedding_norm is not None:
            x = self.norm(x, "encoder.embedding_norm", side.embedding_norm)
        x = self.op("Mul", x, mask)
        for number, layer in enumerate(side.layers):
            x = self._layer(x, f"encoder.{number}", layer, mask, bias)
        if side.norm is not None:
            x = self.norm(x, "encoder.norm", side.norm)
        self.output(x, "states")
        self.output(bias, "memory.bias")
        outputs = [_floats("states", (batch, length, side.embed_dim)), _floats("memory.bias", (batch, 1, 1, length))]
        for number, layer in enumerate(model.decoder.layers):
            cross = layer.cross
            assert cross is not None
            for what, part, perm, shape in (
                ("keys", cross.key, (0, 2, 3, 1), (batch, cross.num_heads, cross.head_dim, length)),
                ("values", cross.value, (0, 2, 1, 3), (batch, cross.num_heads, length, cross.head_dim)),
            ):
                heads = self._heads(self.linear(x, f"decoder.{number}.cross.{what}", part), cross, perm)
                self.output(heads, f"memory.{what}.{number}")
                outputs.append(_floats(f"memory.{what}.{number}", shape))
        return self.model([helper.make_tensor_value_info("source", TensorProto.INT64, (batch, length))], outputs)

    def norm(self, x: str, name: str, norm: Norm) -> str:
        """x (B, S, C) -> (B, S, C)."""
        rows = self.reshape(x, -1, 1, len(norm.weight))
        return self.op("Reshape", super().norm(rows, name, norm), self._of_states)

    def _layer(self, x: str, name: str, layer: Layer, mask: str, bias: str) -> str:
        before = layer.normalize_before
        y = self.norm(x, f"{name}.norm", layer.norm) if before else x
        x = self.add(x, self._self_attention(y, name, layer, mask, bias))
        if not before:
            x = self.norm(x, f"{name}.norm", layer.norm)
        y = self.norm(x, f"{name}.final_norm", layer.final_norm) if before else x
        x = self.add(x, self.feed_forward(y, name, layer))
        return x if before else self.norm(x, f"{name}.final_norm", layer.final_norm)

    def _self_attention(self, x: str, name: str, layer: Layer, mask: str, bias: str) -> str:
        outputs = []
        parts = self.split(x, layer.widths)
        for number, (branch, part, width) in enumerate(zip(layer.branches, parts, layer.widths, strict=True)):
            if isinstance(branch, Attention):
                outputs.append(self._attention(part, f"{name}.branch{number}", branch, bias))
            else:
                outputs.append(self._convolution(part, f"{name}.branch{number}", branch, mask, width))
        return self.op("Concat", *outputs, axis=-1) if len(outputs) > 1 else outputs[0]

    def _heads(self, x: str, attention: Attention, perm: Sequence[int]) -> str:
        return self.op("Transpose", self.reshape(x, 0, 0, attention.num_heads, attention.head_dim), perm=perm)

    def _attention(self, x: str, name: str, branch: Attention, bias: str) -> str:
        width = branch.num_heads * branch.head_dim
        q, k, v = self.split(self.linear(x, f"{name}.qkv", _joined(branch)), (width,) * 3)
        q, k, v = (
            self._heads(part, branch, perm) for part, perm in ((q, (0, 2, 1, 3)), (k, (0, 2, 3, 1)), (v, (0, 2, 1, 3)))
        )
        scores = self.add(self.op("MatMul", q, k), bias)  # (B, H, S, S)
        out = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)  # (B, H, S, R)
        out = self.reshape(self.op("Transpose", out, perm=(0, 2, 1, 3)), 0, 0, width)
        return self.linear(out, f"{name}.out", branch.out)

    def _convolution(self, x: str, name: str, branch: Convolution, mask: str, width: int) -> str:
        heads, size = branch.num_heads, branch.kernel_size
        if not branch.mask_after_gate:
            x = self.op("Mul", x, mask)
        if branch.linear1 is not None:
            x = self.linear(x, f"{name}.linear1", branch.linear1)
            if branch.gate:
                x = self.gate(x, width)
        masked = self.op("Mul", x, mask) if branch.mask_after_gate else x
        if branch.kernels is not None:
            one = self.weight(f"{name}.kernels", branch.kernels[None, :, None])  # (1, H, 1, K)
            shape = self._around_length([1, heads], [size])
            kernels = self.op("Expand", one, shape)
        else:
            assert branch.generator is not None
            # from masked inputs or not: a padded position's output is never read
            logits = self.reshape(self.linear(masked, f"{name}.generator", branch.generator), 0, 0, heads, size)
            logits = self.op("Transpose", logits, perm=(0, 2, 1, 3))  # (B, H, S, K)
            kernels = self.op("Softmax", logits, axis=-1) if branch.softmax else logits
        inputs = self.op("Transpose", self.reshape(masked, 0, 0, heads, width // heads), perm=(0, 2, 1, 3))
        left = size // 2
        inputs = self.op(
            "Pad", inputs, self.constant([0, 0, left, 0, 0, 0, size - 1 - left, 0])
        )  # (B, H, S + K - 1, R)
        out = self.op("MatMul", self._band(kernels), inputs)  # (B, H, S, R)
        out = self.reshape(self.op("Transpose", out, perm=(0, 2, 1, 3)), 0, 0, width)
        return out if branch.linear2 is None else self.linear(out, f"{name}.linear2", branch.linear2)

    def _band(self, kernels: str) -> str:
        """(.., H, S, K) -> (.., H, S, S + K - 1), row s moved s columns to the right.

        With S zeros behind each row, S values cut off the end, and rows of one column less, each begins one further on.
        """
        padded = self.op("Pad", kernels, self._around_length([0] * 7))  # (.., H, S, K + S)
        flat = self.reshape(padded, 0, 0, -1)
        ends = self.constant([-self.fixed.length]) if self.fixed else self.op("Neg", self._length)
        cut = self.op("Slice", flat, self.constant([0]), ends, self.constant([2]))
        return self.op("Reshape", cut, self._around_length([0, 0], [-1]))

    def _around_length(self, before: list[int], after: Sequence[int] = ()) -> str:
        """The length of the source between other numbers."""
        if self.fixed is not None:
            return self.constant([*before, self.fixed.length, *after])
        parts = [self.constant(before), self._length, *([self.constant(after)] if after else [])]
        return self.op("Concat", *parts, axis=0)


# --- decoding step -------------------------------------------------------------------------------------------------


class _Step(_Graph):
    """One step: see `lite_transformer.edge.engine.Engine.step` for inputs and outputs.

    ``position`` (1) is the number of the step; caches are in the order of `parts.cache_shapes`. Outputs are of rows:
    ``scores`` and ``tokens_out`` (rows, 1, k), ``end_scores`` (rows, 1). Of a restricted step the allowed columns of
    the output matrix are inputs, ``output.weight`` (C, n) with ``output.scale`` (n) if it is quantized, and so is
    ``end``, the column of the end of the sentence; the tokens that it gives are columns. With fixed shapes the only
    output beside the caches is ``scores`` (N, 1, V).
    """

    def build(self, model: Model, restricted: bool = False) -> onnx.ModelProto:
        side = model.decoder
        self._old = iter([f"cache.{index}" for index, _ in enumerate(cache_shapes(side))])
        self._order = self.reshape("order", -1)  # (rows)
        self._shape = None if self.fixed else self.op("Shape", "tokens")  # B, N
        if self.fixed is not None:
            places = self.constant(np.arange(self.fixed.length))
            is_newest = self.op("Equal", places, "position")  # (T)
            self._is_newest = self.op("Unsqueeze", is_newest, self.constant([1]))  # (T, 1)
            later = self.op("Cast", self.op("Greater", places, "position"), to=TensorProto.FLOAT)
            self._hidden = self.op("Mul", later, self.constant(HIDDEN, np.float32))  # (T)
        x = self.embed(self.reshape("tokens", -1, 1), _embedding_name(model, "decoder"), side)  # (rows, 1, C)
        if side.positions is not None:
            x = self.add(x, self.positions("position", "decoder", side.positions))
        if side.embedding_norm is not None:
            x = self.norm(x, "decoder.embedding_norm", side.embedding_norm)
        for number, layer in enumerate(side.layers):
            x = self._layer(x, number, layer)
        if side.norm is not None:
            x = self.norm(x, "decoder.norm", side.norm)
        name, is_tied = output_name(model)
        chosen: list[onnx.ValueInfoProto] = []
        if not restricted:
            logits = self.product(x, name, model.output, transposed=not is_tied)
        else:
            is_whole = self.form(model.output) != "int8"
            kind = TensorProto.FLOAT if is_whole else TensorProto.INT8
            chosen.append(helper.make_tensor_value_info("output.weight", kind, (side.embed_dim, "n")))
            if is_whole:
                logits = self.op("MatMul", x, "output.weight")
            else:
                chosen.append(_floats("output.scale", ("n",)))
                logits = self.integer_product(x, "output.weight", "output.scale")
            chosen.append(helper.make_tensor_value_info("end", TensorProto.INT64, ()))
        if self.fixed is not None:
            self.ops("LogSoftmax", 1, logits, outputs=["scores"], axis=-1)
            return self.model(*self._interface(model))
        scores = self.op("LogSoftmax", logits, axis=-1)  # (rows, 1, V or n)
        self.ops("TopK", 2, scores, "count", outputs=["scores", "tokens_out"], axis=-1)
        end = "end" if restricted else self.constant(model.end)
        self.ops("Gather", 1, scores, end, outputs=["end_scores"], axis=-1)
        inputs, outputs = self._interface(model)
        return self.model([*inputs, *chosen], outputs)

    def _interface(self, model: Model) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
        batch, beams, length, rows = (self.sizes[name] for name in ("B", "N", "S", "rows"))
        shapes: list[tuple[str, Sequence[int | str]]]
        shapes = [("tokens", (batch, beams)), ("order", (batch, beams)), ("position", (1,)), ("count", (1,))]
        if self.fixed is not None:
            shapes.pop()
            outputs = [_floats("scores", (rows, 1, len(model.output)))]
        else:
            outputs = [
                _floats("scores", (rows, 1, "k")),
                helper.make_tensor_value_info("tokens_out", TensorProto.INT64, (rows, 1, "k")),
                _floats("end_scores", (rows, 1)),
            ]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes]
        for index, shape in enumerate(cache_shapes(model.decoder)):
            # of all caches only those of keys and values grow
            grows = 0 in shape and len(shape) == 3
            before, after = (self.fixed.length,) * 2 if self.fixed else (f"T{index}", f"T{index}_next")
            named = [before if grows and size == 0 else size for size in shape]
            inputs.append(_floats(f"cache.{index}", (rows, *named)))
            later = [after if grows and size == 0 else size for size in shape]
            outputs.append(_floats(f"new.cache.{index}", (rows, *later)))
        inputs.append(_floats("memory.bias", (batch, 1, 1, length)))
        for number, layer in enumerate(model.decoder.layers):
            assert layer.cross is not None
            heads, head_dim = layer.cross.num_heads, layer.cross.head_dim
            inputs.append(_floats(f"memory.keys.{number}", (batch, heads, head_dim, length)))
            inputs.append(_floats(f"memory.values.{number}", (batch, heads, length, head_dim)))
        return inputs, outputs

    def _layer(self, x: str, number: int, layer: Layer) -> str:
        name, before = f"decoder.{number}", layer.normalize_before
        y = self.norm(x, f"{name}.norm", layer.norm) if before else x
        x = self.add(x, self._self_attention(y, name, layer))
        if not before:
            x = self.norm(x, f"{name}.norm", layer.norm)
        assert layer.cross is not None and layer.cross_norm is not None
        y = self.norm(x, f"{name}.cross_norm", layer.cross_norm) if before else x
        x = self.add(x, self._cross_attention(y, name, number, layer.cross))
        if not before:
            x = self.norm(x, f"{name}.cross_norm", layer.cross_norm)
        y = self.norm(x, f"{name}.final_norm", layer.final_norm) if before else x
        x = self.add(x, self.feed_forward(y, name, layer))
        return x if before else self.norm(x, f"{name}.final_norm", layer.final_norm)

    def _self_attention(self, x: str, name: str, layer: Layer) -> str:
        outputs = []
        parts = self.split(x, layer.widths)
        for number, (branch, part, width) in enumerate(zip(layer.branches, parts, layer.widths, strict=True)):
            if isinstance(branch, Attention):
                outputs.append(self._attention(part, f"{name}.branch{number}", branch))
            else:
                outputs.append(self._convolution(part, f"{name}.branch{number}", branch, width))
        return self.op("Concat", *outputs, axis=-1) if len(outputs) > 1 else outputs[0]

    def _grown(self, newest: str) -> str:
        """The next cache (rows, H, T, R), in the order of the beams, with what is new behind it: an output of the graph
        as well."""
        cache = next(self._old)
        old = self.op("Gather", cache, self._order, axis=0)
        if self.fixed is None:
            return self.ops("Concat", 1, old, newest, outputs=[f"new.{cache}"], axis=2)[0]
        return self.ops("Where", 1, self._is_newest, newest, old, outputs=[f"new.{cache}"])[0]

    def _attention(self, x: str, name: str, branch: Attention) -> str:
        heads, head_dim = branch.num_heads, branch.head_dim
        joined = self.reshape(self.linear(x, f"{name}.qkv", _joined(branch)), 0, 3 * heads, 1, head_dim)
        q, k, v = self.ops("Split", 3, joined, self.constant([heads] * 3), axis=1)  # (rows, H, 1, R)
        keys, values = self._grown(k), self._grown(v)
        # ONNX Runtime makes one operator of the two
        scores = self.op("MatMul", q, self.op("Transpose", keys, perm=(0, 1, 3, 2)))  # (rows, H, 1, T)
        if self.fixed is not None:
            scores = self.add(scores, self._hidden)
        out = self.op("MatMul", self.op("Softmax", scores, axis=-1), values)
        return self.linear(self.reshape(out, 0, 1, heads * head_dim), f"{name}.out", branch.out)

    def _convolution(self, x: str, name: str, branch: Convolution, width: int) -> str:
        heads, size = branch.num_heads, branch.kernel_size
        if branch.linear1 is not None:
            x = self.linear(x, f"{name}.linear1", branch.linear1)
            if branch.gate:
                x = self.gate(x, width)
        cache = next(self._old)
        newest = self.reshape(x, 0, heads, 1, width // heads)
        window = self.op("Concat", self.op("Gather", cache, self._order, axis=0), newest, axis=2)  # (rows, H, K, R)
        cut = [self.constant([place]) for place in (1, size, 2)]
        self.ops("Slice", 1, window, *cut, outputs=[f"new.{cache}"])
        if branch.kernels is not None:
            kernels = self.weight(f"{name}.kernels", branch.kernels[:, None])  # (H, 1, K)
        else:
            assert branch.generator is not None
            logits = self.reshape(self.linear(x, f"{name}.generator", branch.generator), 0, heads, 1, size)
            kernels = self.op("Softmax", logits, axis=-1) if branch.softmax else logits
        out = self.reshape(self.op("MatMul", kernels, window), 0, 1, width)
        return out if branch.linear2 is None else self.linear(out, f"{name}.linear2", branch.linear2)

    def _cross_attention(self, x: str, name: str, number: int, cross: Attention) -> str:
        heads, head_dim = cross.num_heads, cross.head_dim
        query = _scaled(cross.query, np.float32(1 / np.sqrt(head_dim)))
        q = self.op("Reshape", self.linear(x, f"{name}.cross.query", query), self._by_sentence(heads, head_dim))
        q = self.op("Transpose", q, perm=(0, 2, 1, 3))  # (B, H, N, R)
        scores = self.add(self.op("MatMul", q, f"memory.keys.{number}"), "memory.bias")  # (B, H, N, S)
        out = self.op("MatMul", self.op("Softmax", scores, axis=-1), f"memory.values.{number}")
        out = self.reshape(self.op("Transpose", out, perm=(0, 2, 1, 3)), -1, 1, heads * head_dim)
        return self.linear(out, f"{name}.cross.out", cross.out)

    def _by_sentence(self, heads: int, head_dim: int) -> str:
        """The shape (B, N, H, R)."""
        if self.fixed is not None:
            return self.constant([1, self.fixed.beam, heads, head_dim])
        assert self._shape is not None
        return self.op("Concat", self._shape, self.constant([heads, head_dim]), axis=0)


def _embedding_name(model: Model, side: str) -> str:
    shared = model.encoder.embedding is model.decoder.embedding
    return "embedding" if shared else f"{side}.embedding"


def output_name(model: Model) -> tuple[str, bool]:
    """What the output matrix is called in the weights, and whether it is the decoder's embedding, stored as (V, C)."""
    is_tied = model.output is model.decoder.embedding
    return (_embedding_name(model, "decoder") if is_tied else "output"), is_tied


def _floats(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def write_graphs(model: Model, folder: Path, precision: str, fixed: Fixed | None = None) -> dict[str, dict[str, Any]]:
    """Writes the graphs of the encoder, of a step and, if shapes are not fixed, of a restricted one, and the weights.

    Returns: where each tensor lies in weights.bin.

    Raises: UnsupportedInputError naming what has no operator.
    """
    from lite_transformer.edge.folder import DECODER_FILE, ENCODER_FILE, RESTRICTED_FILE, WEIGHTS_FILE

    with Weights(folder / WEIGHTS_FILE) as weights:
        written = {
            ENCODER_FILE: _Encoder("encoder", weights, precision, fixed).build(model),
            DECODER_FILE: _Step("decoder_step", weights, precision, fixed).build(model),
        }
        if fixed is None:
            restricted = _Step("decoder_step_restricted", weights, precision)
            written[RESTRICTED_FILE] = restricted.build(model, restricted=True)
    for name, graph in written.items():
        onnx.save(graph, str(folder / name))
        onnx.checker.check_model(str(folder / name))
    return weights.index
