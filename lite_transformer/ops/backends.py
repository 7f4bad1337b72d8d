"""What all operations share that have fused kernels beside plain torch: the choice between them, layouts, seeds."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
from collections.abc import Callable

import torch
from torch import Tensor

from lite_transformer.errors import UnsupportedInputError

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "triton", "reference")

_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# tl.gather came with 3.3, which torch 2.7 brings.
_OLDEST_TRITON = (3, 3)


def _triton_version() -> tuple[int, int] | None:
    """Of the installed Triton, without importing it; None if there is none."""
    try:
        major, minor = importlib.metadata.version("triton").split(".")[:2]
        return int(major), int(minor)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


_TRITON = _triton_version()
# Triton then runs its kernels on the CPU; like Triton, decided once.
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def dtype_obstacle(**tensors: Tensor) -> str | None:
    """Why Triton, or a kernel's dtypes, cannot take these named tensors; None if they can."""
    if _TRITON is None:
        return "triton is not installed: it comes with the CUDA build of torch, or by `pip install triton`"
    if _TRITON < _OLDEST_TRITON:
        return f"triton {_TRITON[0]}.{_TRITON[1]} is older than 3.3: torch 2.7 and later bring one that will do"
    for name, tensor in tensors.items():
        if tensor.dtype not in _TRITON_DTYPES:
            return f"{name} is {tensor.dtype}; allowed: {', '.join(map(str, _TRITON_DTYPES))}"
    return None


def choose(x: Tensor, backend: str, obstacle: Callable[[], str | None], what: str, way_back: str) -> str:
    """'triton' or 'reference' for an operation on x.

    Args:
        backend: 'triton', 'reference' or 'auto': triton on a GPU where nothing stands in the way, logged once.
        obstacle: says why the fused kernels cannot take this input; None if they can.
        what: the operation, in the plural. way_back: what a user sets for plain torch.
    Raises: UnsupportedInputError for an unknown backend, or for 'triton' where it cannot be used.
    """
    if backend not in BACKENDS:
        raise UnsupportedInputError(f"unknown backend '{backend}'; allowed: {', '.join(BACKENDS)}")
    if backend == "reference" or (backend == "auto" and not x.is_cuda):
        return "reference"
    found = obstacle()
    if backend == "triton":
        if found is None and not x.is_cuda and not _INTERPRETED:
            found = f"x is on {x.device}; allowed: a CUDA device, or any with TRITON_INTERPRET=1 in the environment"
        if found is not None:
            raise UnsupportedInputError(f"backend 'triton': {found}")
        return "triton"
    if not torch.compiler.is_compiling():
        _log_choice(found, what, way_back)
    return "triton" if found is None else "reference"


@functools.cache
def _log_choice(obstacle: str | None, what: str, way_back: str) -> None:
    if obstacle is None:
        logger.info("%s: fused Triton kernels (%s for plain torch)", what, way_back)
    else:
        logger.warning("%s: plain torch instead of fused kernels: %s", what, obstacle)


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def last_contiguous(tensor: Tensor, dims: int) -> Tensor:
    """The tensor, copied if its last dimensions are not dense."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[-dims:]), reversed(tensor.stride()[-dims:]), strict=True):
        if size > 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def tile_side(size: int) -> int:
    """The power of two, 16 or more, that a kernel's tile has for ``size`` rows or columns held at once."""
    return max(16, 1 << (size - 1).bit_length())


def draw_seeds(count: int, device: torch.device) -> Tensor:
    """(count) int64 seeds, drawn on the device: nothing waits, and a captured graph draws anew at each replay."""
    return torch.empty(count, dtype=torch.int64, device=device).random_()
