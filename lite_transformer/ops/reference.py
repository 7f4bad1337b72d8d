"""The two short-range convolutions in plain torch: the definition that every faster version is tested against.

Letters: T time, B batch, C channels, H heads, K kernel size, P left padding, R = C / H channels per head, N = B * H.

`_by_taps` is the definition word for word; compilers are given it, for they fuse its taps. Eager torch computes the
same faster in blocks of time. The kernels of b neighbouring positions of one head, each in a row of its own and one
column further right, are a band matrix (here b = 3 positions, K = 3 taps)

    w w w . .
    . w w w .     times the b + K - 1 inputs that these positions see,
    . . w w w

and a block of the convolution is a small matrix product. A few such matrices are alive at a time, where one for the
whole sequence, made for short ones only, would be T x T. Both gradients are of the same kind: that of the input is a
convolution of the output's gradient with the kernels turned around, that of the kernels is the band of a product with
the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_transformer.errors import UnsupportedShapeError

# All three were measured on two x86 cores, K 3..31. Longer blocks multiply more zeros, shorter ones make more calls.
BLOCK = 32
# Up to this length a sequence is one block.
SHORT = 64
# Elements of all band matrices alive at a time (8 MB in fp32), so that memory does not grow with B * H.
TILE = 1 << 21


def check_shapes(x: Tensor, num_heads: int, kernel_size: int, left_padding: int) -> None:
    """Raises UnsupportedShapeError naming what does not fit."""
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
    Returns: (T, B, C), dtype and device of x, also under autocast; fp16 and bf16 are summed in fp32.
    Raises: UnsupportedShapeError if H does not divide C or left_padding is out of range.
    Source: Wu et al. 2019, "Pay Less Attention with Lightweight and Dynamic Convolutions", section 3.
    Cost: T * B * C * K MACs.
    """
    if weight.dim() != 2:
        raise UnsupportedShapeError(f"weight must be (H, K), got {tuple(weight.shape)}")
    num_heads, kernel_size = weight.shape
    check_shapes(x, num_heads, kernel_size, left_padding)
    length, batch, channels = x.shape
    inputs = _exact(x), _exact(weight, like=x)
    if torch.compiler.is_compiling() or x.numel() == 0:
        out = _by_taps(*inputs, left_padding)
    elif length <= SHORT and length < 2 * kernel_size <= 4 * channels // num_heads:
        # The image below would be padding for the most part, and there are few copies of the kernels to make.
        everywhere = inputs[1].expand(length, batch, num_heads, kernel_size)
        out = _InBlocks.apply(inputs[0], everywhere, left_padding)
    else:
        out = _as_image(*inputs, left_padding)
    return out.to(x.dtype)


def dynamic_conv(x: Tensor, weight: Tensor, left_padding: int) -> Tensor:
    """Depthwise convolution over time with a kernel of its own at every position.

    out[t, b, c] = sum_k weight[t, b, c // R, k] * x[t + k - left_padding, b, c], zero outside [0, T).

    Args:
        x: (T, B, C), any strides. Padded positions must already be zero.
        weight: (T, B, H, K), normalised by the caller.
        left_padding: K - 1 for causal, K // 2 for centred; any value in [0, K - 1].
    Returns: (T, B, C), dtype and device of x, also under autocast; fp16 and bf16 are summed in fp32.
    Raises: UnsupportedShapeError if H does not divide C, left_padding is out of range, or T and B differ.
    Source: Wu et al. 2019, "Pay Less Attention with Lightweight and Dynamic Convolutions", section 4.
    Cost: T * B * C * K MACs.
    """
    if weight.dim() != 4 or weight.shape[:2] != x.shape[:2]:
        raise UnsupportedShapeError(
            f"weight must be (T, B, H, K) with the T and B of x {tuple(x.shape)}, got {tuple(weight.shape)}"
        )
    num_heads, kernel_size = weight.shape[2:]
    check_shapes(x, num_heads, kernel_size, left_padding)
    convolve = _by_taps if torch.compiler.is_compiling() or x.numel() == 0 else _InBlocks.apply
    return convolve(_exact(x), _exact(weight, like=x), left_padding).to(x.dtype)


def _exact(y: Tensor, like: Tensor | None = None) -> Tensor:
    """y in fp64 if like (by default y itself) is, else in fp32."""
    return y.to(torch.float64 if (y if like is None else like).dtype == torch.float64 else torch.float32)


def _pad_time(x: Tensor, before: int, after: int) -> Tensor:
    """Zeros before and after the first of three dimensions."""
    return F.pad(x, (0, 0, 0, 0, before, after))


def _by_taps(x: Tensor, weight: Tensor, left_padding: int) -> Tensor:
    """The definition as a sum over the K taps: x (T, B, C), weight (T, B, H, K) or (H, K)."""
    num_heads, kernel_size = weight.shape[-2:]
    padded = _pad_time(x, left_padding, kernel_size - 1 - left_padding)  # (T + K - 1, B, C)
    heads = padded.unflatten(2, (num_heads, x.size(2) // num_heads))  # (T + K - 1, B, H, R)
    out = torch.zeros_like(heads[: x.size(0)])
    for k in range(kernel_size):
        out = out + heads[k : k + x.size(0)] * weight[..., k : k + 1]
    return out.flatten(2)


def _as_image(x: Tensor, weight: Tensor, left_padding: int) -> Tensor:
    """`_by_taps` for weight (H, K): (T, B, C) lies in memory as an image of T x B pixels in channels-last layout."""
    channels, (num_heads, kernel_size) = x.size(2), weight.shape
    padded = _pad_time(x, left_padding, kernel_size - 1 - left_padding)
    # Unsqueezed before it is permuted: the other way round the strides do not tell torch the layout.
    image = padded.unsqueeze(0).permute(0, 3, 1, 2)  # (1, C, T + K - 1, B)
    kernels = weight.repeat_interleave(channels // num_heads, dim=0).view(channels, 1, kernel_size, 1)
    device = x.device.type if torch.amp.is_autocast_available(x.device.type) else "cpu"  # meta tensors have none
    with torch.autocast(device, enabled=False):
        return F.conv2d(image, kernels, groups=channels).permute(0, 2, 3, 1).squeeze(0).contiguous()


class _InBlocks(torch.autograd.Function):
    """`_by_taps` for weight (T, B, H, K). The gradients are written out: autograd would keep every band matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, left_padding: int) -> Tensor:
        (length, batch, channels), (num_heads, kernel_size) = x.shape, weight.shape[2:]
        heads = x.reshape(length, batch * num_heads, channels // num_heads)  # (T, N, R)
        kernels = weight.reshape(length, batch * num_heads, kernel_size)  # (T, N, K)
        ctx.save_for_backward(heads, kernels)
        ctx.left_padding, ctx.shapes = left_padding, (x.shape, weight.shape)
        return _convolve(heads, kernels, left_padding).view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        heads, kernels = ctx.saved_tensors
        left_padding, (x_shape, weight_shape) = ctx.left_padding, ctx.shapes
        grad = grad.reshape(heads.shape)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _convolve_back(grad, kernels, left_padding).view(x_shape)
        if ctx.needs_input_grad[1]:
            grad_weight = _correlate(grad, heads, kernels, left_padding).view(weight_shape)
        return grad_x, grad_weight, None


def _is_one_block(kernels: Tensor) -> bool:
    length, num, kernel_size = kernels.shape
    return length <= SHORT and num * length * (length + kernel_size - 1) <= TILE


def _convolve(x: Tensor, kernels: Tensor, left_padding: int) -> Tensor:
    """x (T, N, R), kernels (T, N, K) -> (T, N, R)."""
    if _is_one_block(kernels):
        return _bmm(_one_block(kernels, left_padding), x.transpose(0, 1)).transpose(0, 1).contiguous()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    matrices = x.new_empty(0, 0, 0)
    for inputs, taps, outputs in _tiles(x, kernels.size(2), left_padding, kernels, out):
        n, block, kernel_size = taps.shape
        if matrices.size(1) != block:  # else the zeros beside the band are there from the tile before
            matrices = x.new_zeros(n, block, block + kernel_size - 1)
        _band(matrices[:n], kernel_size).copy_(taps)
        outputs.copy_(_bmm(matrices[:n], inputs))
    return out


def _convolve_back(grad: Tensor, kernels: Tensor, left_padding: int) -> Tensor:
    """The gradient of `_convolve` for its x, (T, N, R)."""
    if _is_one_block(kernels):
        grad_x = _bmm(_one_block(kernels, left_padding).transpose(1, 2), grad.transpose(0, 1))  # (N, T, R)
        return grad_x.transpose(0, 1).contiguous()
    # Position t takes from the outputs t + j + P - K + 1: turned[t, n, j] = kernels[t + j + P - K + 1, n, K - 1 - j].
    num, kernel_size = kernels.shape[1:]
    right_padding, step = kernel_size - 1 - left_padding, num * kernel_size
    padded = _pad_time(kernels, right_padding, left_padding)  # (T + K - 1, N, K)
    turned = padded.as_strided(kernels.shape, (step, kernel_size, step - 1), kernel_size - 1)
    return _convolve(grad, turned, right_padding)


def _correlate(grad: Tensor, x: Tensor, kernels: Tensor, left_padding: int) -> Tensor:
    """The gradient of `_convolve` for its kernels, (T, N, K): sum over R of grad[t, n, r] * x[t + k - P, n, r]."""
    out, kernel_size = torch.empty_like(kernels, memory_format=torch.contiguous_format), kernels.size(2)
    if _is_one_block(kernels):
        products = _bmm(grad.transpose(0, 1), x.permute(1, 2, 0))  # (N, T, T)
        products = F.pad(products, (left_padding, kernel_size - 1 - left_padding))
        return out.copy_(_band(products, kernel_size).transpose(0, 1))
    for inputs, grads, taps in _tiles(x, kernel_size, left_padding, grad, out):
        taps.copy_(_band(_bmm(grads, inputs.transpose(1, 2)), kernel_size))
    return out


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """torch.bmm that autocast leaves alone, as it does everything with an `out`."""
    return torch.bmm(a, b, out=a.new_empty(a.size(0), a.size(1), b.size(2)))


def _band(matrices: Tensor, kernel_size: int) -> Tensor:
    """The K places from the diagonal on, in each row of (n, b, b + K - 1): a view (n, b, K)."""
    n, block, width = matrices.shape
    return matrices.as_strided((n, block, kernel_size), (block * width, width + 1, 1))


def _one_block(kernels: Tensor, left_padding: int) -> Tensor:
    """kernels (T, N, K) -> (N, T, T): band matrices for all T positions, without the columns of the padding."""
    length, num = kernels.shape[:2]
    unused = max(0, left_padding + 1 - length)  # taps too early for any input; those too late go by the slice's end
    kernels, left_padding = kernels[:, :, unused : left_padding + length], left_padding - unused
    matrices = kernels.new_zeros(num, length, length + kernels.size(2) - 1)
    _band(matrices, kernels.size(2)).copy_(kernels.transpose(0, 1))
    return matrices[:, :, left_padding : left_padding + length]


def _tiles(x: Tensor, kernel_size: int, left_padding: int, *others: Tensor) -> Iterator[list[Tensor]]:
    """Cuts x (T, N, R) and others (T, N, D) into blocks of time, and yields some of the blocks at a time.

    Yields: views: the inputs (n, b + K - 1, R) which these n blocks of b positions see, then the positions themselves
        in each of the others (n, b, D).
    """
    length, num = x.shape[:2]
    padded = _pad_time(x, left_padding, kernel_size - 1 - left_padding)  # (T + K - 1, N, R)
    whole = length - length % BLOCK
    for start, stop, block in ((0, whole, BLOCK), (whole, length, length - whole)):
        if start == stop:
            continue
        width = block + kernel_size - 1
        windows = padded[start : stop + kernel_size - 1].unfold(0, width, block).transpose(2, 3)
        views = [windows, *(other[start:stop].unflatten(0, (-1, block)).transpose(1, 2) for other in others)]
        if windows.size(0) > num:  # (blocks, N, ...): the longer of the two is multiplied at once
            views = [view.transpose(0, 1) for view in views]
        many = max(1, TILE // (block * width))
        for i in range(views[0].size(0)):
            for j in range(0, views[0].size(1), many):
                yield [view[i, j : j + many] for view in views]


def lightweight_conv_step(window: Tensor, weight: Tensor) -> Tensor:
    """One causal step of `lightweight_conv`: the output at the newest of the positions seen so far.

    Args:
        window: (N, B, C), the last N <= K inputs, the newest last; earlier inputs count as zero.
        weight: (H, K), normalised by the caller over all K taps.
    Returns: (1, B, C), dtype of window.
    Raises: UnsupportedShapeError if H does not divide C or there are more inputs than taps.
    """
    return dynamic_conv_step(window, weight.expand(1, window.size(1), -1, -1))


def dynamic_conv_step(window: Tensor, weight: Tensor) -> Tensor:
    """One causal step of `dynamic_conv`: the output at the newest of the positions seen so far.

    Args:
        window: (N, B, C), the last N <= K inputs, the newest last; earlier inputs count as zero.
        weight: (1, B, H, K), the kernels of the newest position, normalised by the caller over all K taps.
    Returns: (1, B, C), dtype of window.
    Raises: UnsupportedShapeError if H does not divide C or there are more inputs than taps.
    """
    seen, batch, channels = window.shape
    num_heads, kernel_size = weight.shape[2:]
    check_shapes(window, num_heads, kernel_size, 0)
    if seen > kernel_size:
        raise UnsupportedShapeError(f"a window of {seen} inputs is longer than the kernel size {kernel_size}")
    dtype = window.dtype
    if window.is_cuda:  # its products of halves are summed in fp32 as they are
        weight = weight.to(dtype)
    else:
        weight, window = _exact(weight, like=window), _exact(window)
    if seen < kernel_size:
        weight = weight[..., kernel_size - seen :]
    taps = weight.reshape(batch * num_heads, 1, seen)
    heads = window.reshape(seen, batch * num_heads, channels // num_heads).transpose(0, 1)
    return torch.bmm(taps, heads).view(1, batch, channels).to(dtype)
