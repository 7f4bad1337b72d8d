"""The two short-range convolutions in plain torch: the definition that every faster version is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_transformer.errors import UnsupportedShapeError


def _check(x: Tensor, num_heads: int, kernel_size: int, left_padding: int) -> None:
    if x.dim() != 3:
        raise UnsupportedShapeError(f"x must be (T, B, C), got {tuple(x.shape)}")
    if num_heads < 1 or x.size(2) % num_heads != 0:
        raise UnsupportedShapeError(f"{num_heads} heads do not divide C = {x.size(2)} channels")
    if not 0 <= left_padding < kernel_size:
        raise UnsupportedShapeError(
            f"left_padding = {left_padding} is outside 0..{kernel_size - 1} (kernel size {kernel_size})"
        )


def lightweight_conv(x: Tensor, weight: Tensor, left_padding: int) -> Tensor:
    """Depthwise convolution over time whose kernel is shared by the R channels of a head.

    out[t, b, c] = sum_k weight[c // R, k] * x[t + k - left_padding, b, c], zero outside [0, T).

    Args:
        x: (T, B, C), any strides. Padded positions must already be zero.
        weight: (H, K), normalised by the caller.
        left_padding: K - 1 for causal, K // 2 for centred; any value in [0, K - 1].
    Returns: (T, B, C), dtype and device of x.
    Raises: UnsupportedShapeError if H does not divide C or left_padding is out of range.
    Source: Wu et al. 2019, "Pay Less Attention with Lightweight and Dynamic Convolutions", section 3.
    Cost: T * B * C * K MACs.
    """
    num_heads, kernel_size = weight.shape
    _check(x, num_heads, kernel_size, left_padding)
    if x.numel() == 0:
        return torch.zeros_like(x)
    channels = x.size(2)
    kernels = weight.to(x.dtype).repeat_interleave(channels // num_heads, dim=0).unsqueeze(1)  # (C, 1, K)
    padded = F.pad(x.permute(1, 2, 0), (left_padding, kernel_size - 1 - left_padding))  # (B, C, T + K - 1)
    return F.conv1d(padded, kernels, groups=channels).permute(2, 0, 1)


def dynamic_conv(x: Tensor, weight: Tensor, left_padding: int) -> Tensor:
    """Depthwise convolution over time with a kernel of its own at every position.

    out[t, b, c] = sum_k weight[t, b, c // R, k] * x[t + k - left_padding, b, c], zero outside [0, T).

    Args:
        x: (T, B, C), any strides. Padded positions must already be zero.
        weight: (T, B, H, K), normalised by the caller.
        left_padding: K - 1 for causal, K // 2 for centred; any value in [0, K - 1].
    Returns: (T, B, C), dtype and device of x.
    Raises: UnsupportedShapeError if H does not divide C, left_padding is out of range, or T and B differ.
    Source: Wu et al. 2019, "Pay Less Attention with Lightweight and Dynamic Convolutions", section 4.
    Cost: T * B * C * K MACs.
    """
    if weight.dim() != 4 or weight.shape[:2] != x.shape[:2]:
        raise UnsupportedShapeError(
            f"weight must be (T, B, H, K) with the T and B of x {tuple(x.shape)}, got {tuple(weight.shape)}"
        )
    num_heads, kernel_size = weight.shape[2:]
    _check(x, num_heads, kernel_size, left_padding)
    if x.numel() == 0:
        return torch.zeros_like(x)
    length, batch, channels = x.shape
    padded = F.pad(x, (0, 0, 0, 0, left_padding, kernel_size - 1 - left_padding))  # (T + K - 1, B, C)
    windows = padded.unfold(0, kernel_size, 1)  # (T, B, C, K), a view
    windows = windows.reshape(length * batch * num_heads, channels // num_heads, kernel_size)
    kernels = weight.to(x.dtype).reshape(length * batch * num_heads, kernel_size, 1)
    return torch.bmm(windows, kernels).view(length, batch, channels)


def lightweight_conv_step(window: Tensor, weight: Tensor) -> Tensor:
    """One causal step of `lightweight_conv`: the output at the newest of the positions seen so far.

    Args:
        window: (N, B, C), the last N <= K inputs, the newest last; earlier inputs count as zero.
        weight: (H, K), normalised by the caller over all K taps.
    Returns: (1, B, C).
    """
    seen, batch, channels = window.shape
    num_heads, kernel_size = weight.shape
    _check(window, num_heads, kernel_size, 0)
    taps = weight[:, kernel_size - seen :].to(window.dtype)  # (H, N)
    heads = window.view(seen, batch, num_heads, channels // num_heads)
    return torch.einsum("nbhr,hn->bhr", heads, taps).reshape(1, batch, channels)


def dynamic_conv_step(window: Tensor, weight: Tensor) -> Tensor:
    """One causal step of `dynamic_conv`: the output at the newest of the positions seen so far.

    Args:
        window: (N, B, C), the last N <= K inputs, the newest last; earlier inputs count as zero.
        weight: (1, B, H, K), the kernels of the newest position, normalised by the caller over all K taps.
    Returns: (1, B, C).
    """
    seen, batch, channels = window.shape
    num_heads, kernel_size = weight.shape[2:]
    _check(window, num_heads, kernel_size, 0)
    taps = weight[0, :, :, kernel_size - seen :].to(window.dtype)  # (B, H, N)
    heads = window.view(seen, batch, num_heads, channels // num_heads)
    return torch.einsum("nbhr,bhn->bhr", heads, taps).reshape(1, batch, channels)
