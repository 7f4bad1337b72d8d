"""The parts of an encoder-decoder model as plain arrays: what the graphs are built from, whatever trained them.

Letters: C channels, H heads, K kernel size, V vocabulary. Weights of linear layers are (out, in), as in torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    weight: Array  # (out, in)
    bias: Array | None


@dataclass(frozen=True)
class Norm:
    """Layer norm over the channels."""

    weight: Array
    bias: Array
    epsilon: float


@dataclass(frozen=True)
class Attention:
    num_heads: int
    query: Linear
    key: Linear
    value: Linear
    out: Linear

    @property
    def head_dim(self) -> int:
        return self.query.weight.shape[0] // self.num_heads


@dataclass(frozen=True)
class Convolution:
    """A short-range branch; see `lite_transformer.modules.convolution`.

    Attributes:
        kernels: (H, K), normalised, of a lightweight convolution; None: `generator` predicts them, (H * K, C).
        softmax: whether predicted kernels are normalised.
    """

    num_heads: int
    kernel_size: int
    gate: bool
    softmax: bool
    mask_after_gate: bool
    linear1: Linear | None
    linear2: Linear | None
    kernels: Array | None
    generator: Linear | None


Branch = Attention | Convolution


@dataclass(frozen=True)
class Layer:
    """An encoder or decoder layer; the branches stand in channel order, `widths` says how many each has."""

    branches: tuple[Branch, ...]
    widths: tuple[int, ...]
    norm: Norm
    cross: Attention | None
    cross_norm: Norm | None
    fc1: Linear
    fc2: Linear
    final_norm: Norm
    normalize_before: bool
    activation: str


@dataclass(frozen=True)
class Positions:
    """Sinusoids of `frequencies` (C / 2), sines first; or a table (positions, C). Both are read at the position's
    number plus `offset`."""

    offset: int
    frequencies: Array | None = None
    table: Array | None = None


@dataclass(frozen=True)
class Side:
    """The encoder or the decoder."""

    embedding: Array  # (V, C)
    scale: float
    positions: Positions | None
    embedding_norm: Norm | None
    layers: tuple[Layer, ...]
    norm: Norm | None

    @property
    def embed_dim(self) -> int:
        return self.embedding.shape[1]


@dataclass(frozen=True)
class Model:
    """An encoder-decoder; `output` (V, C) is the decoder's embedding itself where the two are one matrix."""

    encoder: Side
    decoder: Side
    output: Array
    pad: int
    end: int


def cache_shapes(decoder: Side) -> Iterator[tuple[int, ...]]:
    """The shapes of a row's caches before the first step, in the order of the decoder's graph."""
    for layer in decoder.layers:
        for branch, width in zip(layer.branches, layer.widths, strict=True):
            if isinstance(branch, Attention):
                yield (branch.num_heads, 0, branch.head_dim)  # keys
                yield (branch.num_heads, 0, branch.head_dim)  # values
            else:  # the inputs that the next window begins with
                yield (branch.num_heads, branch.kernel_size - 1, width // branch.num_heads)
