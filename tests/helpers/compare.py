"""One comparison for all tests: shape, dtype, NaN and value; itself tested to fail on each."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_same(actual: Tensor, expected: Tensor, atol: float) -> None:
    """Fails unless both tensors have one shape and dtype, no NaN, and differ by at most ``atol`` anywhere."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} is not {tuple(expected.shape)}")
    if actual.dtype != expected.dtype:
        raise AssertionError(f"dtype {actual.dtype} is not {expected.dtype}")
    if torch.isnan(actual).any() or torch.isnan(expected).any():
        raise AssertionError("NaN")
    if actual.numel():
        difference = (actual.double() - expected.double()).abs().max().item()
        if difference > atol:
            raise AssertionError(f"largest difference {difference:.3e} is over {atol:.1e}")
