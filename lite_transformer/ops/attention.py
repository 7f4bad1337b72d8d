"""Attention among few positions, one kernel a direction from packed projections to packed gradients."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_transformer.errors import UnsupportedInputError, UnsupportedShapeError
from lite_transformer.ops.backends import (
    choose,
    draw_seeds,
    dtype_obstacle,
    last_contiguous,
    on_device_of,
    tile_side,
)

# What a program holds on the chip: at most so many positions of two and of four bytes a number, channels of a head, and
# bytes of one head's queries or keys. The gradients then take up to 96 KB of shared memory.
_LONGEST = {2: 128, 4: 64}
_WIDEST = 128
_LARGEST = 16384


def short_attention(
    queries: Tensor,
    keys_values: Tensor | None,
    num_heads: int,
    *,
    padding_mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Returns dropout(softmax(q k^T / sqrt(R))) v, (T, B, C), its heads side by side; zero for queries without keys.

    Args:
        queries: (T, B, C); for self-attention (T, B, 3C): queries, keys and values side by side. Any strides.
        keys_values: (S, B, 2C), keys and values side by side; None for self-attention. Any strides.
        num_heads: H, divides C.
        padding_mask: (B, S) bool, True = hidden.
        causal: position t sees the positions up to t; needs self-attention.
        dropout: probability, on the attention probabilities; pass 0 when not training.
        seed: int64 scalar on the device, for the kernels' dropout; drawn from torch's generator where it is None.
        backend: 'reference' (plain torch), 'triton' (a GPU of compute capability 8.0 or later, or Triton's interpreter;
            fp16 and bf16: T and S up to 128, or 64 where R > 64; fp32: half of that; R up to 128) or 'auto': triton on
            a GPU for those.
    Returns: dtype of queries. Probabilities are fp32 in both, the kernels' scores too.
    Raises: UnsupportedShapeError, UnsupportedInputError naming the value and what is allowed.
    Source: Vaswani et al. 2017, section 3.2.
    """
    channels = _check(queries, keys_values, num_heads, padding_mask, causal, dropout)
    source = queries if keys_values is None else keys_values
    if source.device != queries.device or source.dtype != queries.dtype:
        raise UnsupportedInputError(
            f"queries are {queries.dtype} on {queries.device}, keys {source.dtype} on {source.device}: "
            "both must be of one dtype and on one device"
        )
    sizes = (queries.size(0), source.size(0), channels // num_heads)
    if not uses_short_attention(backend, queries, *sizes):
        if backend == "triton":
            raise UnsupportedInputError(f"backend 'triton': T, S, R = {sizes} is too long in {queries.dtype}")
        return _reference(queries, keys_values, num_heads, channels, padding_mask, causal, dropout)
    if dropout > 0 and seed is None:
        seed = draw_seeds(1, queries.device)[0]
    return _ShortAttention.apply(
        queries, keys_values, num_heads, padding_mask, seed if dropout > 0 else None, causal, float(dropout)
    )


def uses_short_attention(
    backend: str, x: Tensor, length: int, keys: int, head_channels: int, dtype: torch.dtype | None = None
) -> bool:
    """Whether kernels would compute attention of T = length, S = keys, R = head_channels on the device of x.

    Args:
        dtype: of queries and keys; that of x unless said.
    Raises: as `short_attention`, but for what is too long.
    """
    dtype = x.dtype if dtype is None else dtype
    longest = max(length, keys)
    if head_channels > _WIDEST or longest > _LONGEST.get(dtype.itemsize, 0):
        return False
    if tile_side(longest) * tile_side(head_channels) * dtype.itemsize > _LARGEST:
        return False
    if 3 * longest * x.size(1) * x.size(2) >= 2**31:  # the kernels' offsets within a sentence have 32 bits
        return False
    what = "attention of short sentences"
    return choose(x, backend, lambda: _obstacle(x), what, "conv_backend=reference") == "triton"


def _obstacle(x: Tensor) -> str | None:
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return dtype_obstacle(x=x)


def _check(
    queries: Tensor,
    keys_values: Tensor | None,
    num_heads: int,
    padding_mask: Tensor | None,
    causal: bool,
    dropout: float,
) -> int:
    """C."""
    if queries.dim() != 3 or (keys_values is None and queries.size(2) % 3):
        kind = "(T, B, C)" if keys_values is not None else "(T, B, 3C) without keys_values"
        raise UnsupportedShapeError(f"queries must be {kind}, got {tuple(queries.shape)}")
    length, batch, channels = queries.shape
    channels //= 3 if keys_values is None else 1
    if num_heads < 1 or channels % num_heads:
        raise UnsupportedShapeError(f"{num_heads} heads do not divide an attention of {channels} channels")
    if keys_values is not None and (keys_values.dim() != 3 or keys_values.shape[1:] != (batch, 2 * channels)):
        raise UnsupportedShapeError(
            f"keys_values must be (S, B, 2C) = (S, {batch}, {2 * channels}), got {tuple(keys_values.shape)}"
        )
    keys = length if keys_values is None else keys_values.size(0)
    if padding_mask is not None and (padding_mask.shape != (batch, keys) or padding_mask.dtype != torch.bool):
        raise UnsupportedShapeError(
            f"padding_mask must be bool (B, S) = ({batch}, {keys}), "
            f"got {padding_mask.dtype} {tuple(padding_mask.shape)}"
        )
    if causal and keys_values is not None:
        raise UnsupportedInputError("causal needs self-attention: give queries, keys and values side by side")
    if not 0.0 <= dropout <= 1.0:
        raise UnsupportedInputError(f"dropout = {dropout} is no probability: give a value in [0, 1]")
    return channels


def _reference(
    queries: Tensor,
    keys_values: Tensor | None,
    num_heads: int,
    channels: int,
    padding_mask: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    packed = (queries,) if keys_values is None else (queries, keys_values)
    parts = [part for tensor in packed for part in tensor.split(channels, dim=2)]
    q, k, v = (part.unflatten(2, (num_heads, -1)).permute(1, 2, 0, 3) for part in parts)  # (B, H, N, R)
    scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(q.size(3))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    hidden = torch.zeros(scores.shape[2:], dtype=torch.bool, device=scores.device)
    if causal:
        hidden = torch.ones_like(hidden).triu(1)
    hidden = hidden.expand_as(scores)
    if padding_mask is not None:
        hidden = hidden | padding_mask[:, None, None, :]
    weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
    weights = weights.masked_fill(hidden.all(dim=-1, keepdim=True), 0.0)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return torch.matmul(weights.to(v.dtype), v).permute(2, 0, 1, 3).flatten(2)


# --- the operators -------------------------------------------------------------------------------------------------
#
# Registered with torch, so that torch.compile and torch.export keep them as one node each.

torch.library.define(
    "lite_transformer::short_attention",
    "(Tensor queries, Tensor? keys_values, int num_heads, Tensor? padding_mask, Tensor? seed, bool causal,"
    " float dropout) -> Tensor",
)
torch.library.define(
    "lite_transformer::short_attention_backward",
    "(Tensor grad, Tensor queries, Tensor? keys_values, int num_heads, Tensor? padding_mask, Tensor? seed, bool causal,"
    " float dropout) -> (Tensor, Tensor)",
)
_forward_op = torch.ops.lite_transformer.short_attention.default
_backward_op = torch.ops.lite_transformer.short_attention_backward.default


def _as_bytes(padding_mask: Tensor | None) -> Tensor | None:
    return None if padding_mask is None else padding_mask.view(torch.uint8)


@torch.library.register_fake("lite_transformer::short_attention")
def _new_output(queries, keys_values, num_heads, padding_mask, seed, causal, dropout):
    length, batch, columns = queries.shape
    return queries.new_empty(length, batch, columns // 3 if keys_values is None else columns)


@torch.library.impl("lite_transformer::short_attention", ("CUDA", "CPU"))
def _forward(
    queries: Tensor,
    keys_values: Tensor | None,
    num_heads: int,
    padding_mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    """The output (T, B, C)."""
    out = _new_output(queries, keys_values, num_heads, padding_mask, seed, causal, dropout)
    if out.numel():
        if keys_values is not None and not keys_values.numel():
            return out.zero_()
        from lite_transformer.ops import triton_attention

        keys_values = None if keys_values is None else last_contiguous(keys_values, 1)
        with on_device_of(queries):
            triton_attention.forward(
                last_contiguous(queries, 1), keys_values, num_heads, _as_bytes(padding_mask), seed, causal, dropout, out
            )
    return out


@torch.library.register_fake("lite_transformer::short_attention_backward")
def _new_gradients(grad, queries, keys_values, num_heads, padding_mask, seed, causal, dropout):
    shape = (0,) if keys_values is None else tuple(keys_values.shape)
    return queries.new_empty(tuple(queries.shape)), queries.new_empty(shape)


@torch.library.impl("lite_transformer::short_attention_backward", ("CUDA", "CPU"))
def _backward(
    grad: Tensor,
    queries: Tensor,
    keys_values: Tensor | None,
    num_heads: int,
    padding_mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of queries and of keys_values (empty without)."""
    grad_queries, grad_keys_values = _new_gradients(
        grad, queries, keys_values, num_heads, padding_mask, seed, causal, dropout
    )
    if not queries.numel() or (keys_values is not None and not keys_values.numel()):
        return grad_queries.zero_(), grad_keys_values.zero_()
    from lite_transformer.ops import triton_attention

    with on_device_of(queries):
        triton_attention.backward(
            last_contiguous(grad, 1),
            last_contiguous(queries, 1),
            None if keys_values is None else last_contiguous(keys_values, 1),
            num_heads,
            _as_bytes(padding_mask),
            seed,
            causal,
            dropout,
            grad_queries,
            None if keys_values is None else grad_keys_values,
        )
    return grad_queries, grad_keys_values


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, keys_values, num_heads, padding_mask, seed, causal, dropout):
        ctx.save_for_backward(queries, keys_values, padding_mask, seed)
        ctx.options = (num_heads, causal, dropout)
        return _forward_op(queries, keys_values, num_heads, padding_mask, seed, causal, dropout)

    @staticmethod
    def backward(ctx, grad):
        queries, keys_values, padding_mask, seed = ctx.saved_tensors
        num_heads, causal, dropout = ctx.options
        found = _backward_op(grad, queries, keys_values, num_heads, padding_mask, seed, causal, dropout)
        return found[0], None if keys_values is None else found[1], None, None, None, None, None
