"""Small packed models for tests: every form, coding and way of writing zeros occurs."""

from __future__ import annotations

import numpy as np

from lite_transformer.compression.packed import PackedModel
from lite_transformer.compression.tensors import Quantized, Raw, Tensor, linear_levels


def codebook(shape: tuple[int, ...], levels: int, zeros: float = 0.0, scaled: bool = False, seed: int = 0) -> Quantized:
    """Codes for ``levels`` values, skewed so that entropy coding pays; part ``zeros`` of them for the value 0."""
    generator = np.random.default_rng(seed)
    values = np.linspace(-1, 1, levels).astype(np.float16)
    zero = levels // 2
    values[zero] = 0
    codes = np.clip(generator.normal(zero, levels / 8, shape), 0, levels - 1).astype(np.uint8)
    codes[generator.random(shape) < zeros] = zero
    scales = generator.random(shape[0]).astype(np.float32) if scaled else None
    return Quantized(codes, values, scales)


def linear(shape: tuple[int, ...], bits: int, seed: int = 0) -> Quantized:
    """Whole numbers of so many bits with a scale a row."""
    generator = np.random.default_rng(seed)
    levels = 2**bits - 1
    codes = generator.integers(0, levels, shape).astype(np.uint8)
    return Quantized(codes, linear_levels(levels), generator.random(shape[0]).astype(np.float16), linear=True)


def small_model() -> PackedModel:
    """A model of a few thousand weights; 'tied' and 'embed' are one tensor."""
    embed = linear((40, 16), 4)
    clustered = codebook((64, 64), 256, seed=1)
    clustered.codes[:, 8:] = 128  # long runs of zeros
    tensors: dict[str, Tensor] = {
        "embed": embed,
        "coded": codebook((80, 50), 16, seed=2),
        "masked": codebook((64, 64), 200, zeros=0.5, seed=3),
        "gaps": clustered,
        "fixed": codebook((6, 5), 200, seed=4),
        "scaled": codebook((8, 30), 16, scaled=True, seed=5),
        "constant": Quantized(np.full((3, 4), 1, np.uint8), np.array([0.5, 0.25], np.float32)),
        "bias": Raw(np.linspace(-1, 1, 30, dtype=np.float16)),
        "steps": Raw(np.array([3, -4], np.int64)),
        "flag": Raw(np.array(True)),
        "nothing": Raw(np.empty((0, 3), np.float32)),
        "tied": embed,
    }
    texts = {"dict.de.txt": b"der 3\ndie 2\n", "dict.en.txt": b"der 3\ndie 2\n", "bpe/codes": b"#version: 0.2\n"}
    return PackedModel({"config": {"model": {"_name": "tiny"}}}, tensors, frozenset({"embed", "tied"}), texts)


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same bits in the same form."""
    if isinstance(left, Raw) and isinstance(right, Raw):
        return left.values.dtype == right.values.dtype and _same(left.values, right.values)
    if not (isinstance(left, Quantized) and isinstance(right, Quantized)) or left.linear != right.linear:
        return False
    scales = (left.scales is None and right.scales is None) or (
        left.scales is not None and right.scales is not None and _same(left.scales, right.scales)
    )
    return scales and _same(left.codes, right.codes) and _same(left.levels, right.levels)


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()
