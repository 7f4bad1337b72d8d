"""Where the kernels over rows (`bias`, `residual_norm`) run: one rule for all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lite_transformer.errors import UnsupportedInputError
from lite_transformer.ops import convolution

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def takes_kernels(backend: str, *tensors: Tensor | None) -> bool:
    """Whether fused kernels compute these tensors.

    'auto' takes them on a GPU where gradients are recorded: a pass without gradients saves nothing there and, step by
    step, waits for launches, of which plain torch needs the shortest. 'triton' takes them always.

    Raises: UnsupportedInputError naming what the backend does not take, and what it takes.
    """
    if backend not in convolution.BACKENDS:
        raise UnsupportedInputError(f"unknown backend '{backend}'; allowed: {', '.join(convolution.BACKENDS)}")
    first = tensors[0]
    assert first is not None
    if backend == "reference" or (backend == "auto" and not (first.is_cuda and torch.is_grad_enabled())):
        return False
    found = _obstacle(*tensors)
    if found is not None and backend == "triton":
        raise UnsupportedInputError(f"backend 'triton': {found}")
    return found is None


def _obstacle(*tensors: Tensor | None) -> str | None:
    """Why the fused kernels cannot take these tensors, with what they take; None if they can."""
    if convolution._TRITON is None or convolution._TRITON < convolution._OLDEST_TRITON:
        return "triton 3.3 or later is not installed: it comes with the CUDA build of torch, or by `pip install triton`"
    given = [tensor for tensor in tensors if tensor is not None]
    if not given[0].is_cuda and not convolution._INTERPRETED:
        return f"the input is on {given[0].device}; allowed: a CUDA device, or any with TRITON_INTERPRET=1"
    for tensor in given:
        if tensor.dtype not in DTYPES:
            return f"a tensor is {tensor.dtype}; allowed: {', '.join(map(str, DTYPES))}"
        if tensor.device != given[0].device:
            return f"tensors are on {given[0].device} and {tensor.device}: all must be on one device"
    return None
