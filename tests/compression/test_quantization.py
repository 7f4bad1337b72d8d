"""Codebooks and whole numbers: within the error that their bits allow, zeros kept, the same on every run."""

import numpy as np
import pytest
import torch

from lite_transformer.compression import packed, quantization
from lite_transformer.compression.packed import PackedModel
from lite_transformer.errors import UnsupportedInputError

METHODS = sorted(quantization.METHODS)


def weights(shape=(64, 80), seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def relative_error(weight: torch.Tensor, codes: quantization.Codes) -> float:
    return float((codes.dense() - weight).square().mean() / weight.square().mean())


@pytest.mark.parametrize("bits", range(2, 9))
def test_kmeans_is_near_the_best_quantizer_of_its_bits(bits):
    weight = weights((300, 300))
    # Panter and Dite 1951: the least error of many levels for a Gaussian; few levels do a little better
    limit = np.pi * np.sqrt(3) / 2 / 4**bits
    error = relative_error(weight, quantization.kmeans(weight, bits))
    assert 0.6 * limit < error < 1.1 * limit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_bit_more_is_an_error_less(method, bits):
    weight = weights()
    codes = quantization.METHODS[method](weight, bits)
    assert codes.codes.dtype == torch.uint8 and codes.codes.shape == weight.shape and codes.levels.numel() <= 2**bits
    assert relative_error(weight, codes) < 4.5 / 4**bits


@pytest.mark.parametrize("method", METHODS)
def test_zeros_stay_zeros_and_nothing_else_becomes_one_in_a_codebook(method):
    weight = weights()
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.6] = 0
    dense = quantization.METHODS[method](weight, 4).dense()
    assert (dense[weight == 0] == 0).all()
    if method != "linear":
        assert (dense[weight != 0] != 0).all()


@pytest.mark.parametrize("bits", [3, 8])
def test_several_weights_side_by_side_become_what_each_becomes_alone(bits):
    several = [weights((5, 16), 1), weights((7, 4, 4), 2), weights((6, 3), 3), weights((16,), 4), torch.zeros(2, 16)]
    for values, weight in zip(quantization.linear_values(several, bits), several, strict=True):
        assert torch.equal(values, quantization.linear(weight, bits).dense())


def test_kmeans_finds_what_was_tied_before():
    levels = torch.tensor([-0.5, -0.25, 0, 0.125, 1.0])
    weight = levels[torch.randint(0, 5, (40, 40), generator=torch.Generator().manual_seed(0))]
    codes = quantization.kmeans(weight, 3)
    assert torch.equal(codes.dense(), weight) and codes.levels.dtype == torch.float16
    fine = weight + 1e-4  # more digits than half precision has
    assert relative_error(fine, quantization.kmeans(fine, 3)) < 1e-6


def test_scales_of_rows_follow_the_rows():
    weight = weights() * torch.logspace(-3, 3, 64)[:, None]
    for method in ("linear", "kmeans_rows"):
        codes = quantization.METHODS[method](weight, 8)
        rows = (codes.dense() - weight).square().mean(1) / weight.square().mean(1)
        assert rows.max() < 2e-4, method
    assert (quantization.kmeans(weight, 8).dense() - weight)[0].abs().max() > weight[0].abs().max() / 10


def test_few_bits_are_clipped_where_that_is_better():
    weight = weights((1, 4000))
    weight[0, 0] = 1.0  # ten standard deviations
    codes = quantization.linear(weight, 4)
    assert float(codes.scales[0]) < 1.0 / 7 * 0.7
    assert relative_error(weight, codes) < 0.8 * relative_error(weight, unclipped(weight, 4))
    assert torch.equal(codes.dense(), unclipped(weight, 4, float(codes.scales[0])).dense())


def unclipped(weight, bits, scale=None):
    largest = 2 ** (bits - 1) - 1
    scale = float(weight.abs().max()) / largest if scale is None else scale
    numbers = (weight / scale).round().clamp(-largest, largest)
    levels = torch.arange(-largest, largest + 1).float()
    return quantization.Codes((numbers + largest).to(torch.uint8), levels, torch.tensor([scale]), linear=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "weight",
    [torch.zeros(5, 7), torch.full((5, 7), 3.0), torch.full((5, 7), 1e-30), torch.full((4, 4), 1e30), torch.ones(6)],
    ids=["zeros", "equal", "tiny", "huge", "vector"],
)
def test_odd_tensors_are_exact_and_can_be_packed(method, weight):
    codes = quantization.METHODS[method](weight, 8)
    torch.testing.assert_close(codes.dense(), weight, rtol=1e-3, atol=0)
    tensor = codes.packed()
    found = packed.unpack(packed.pack(PackedModel({}, {"a": tensor}))).tensors["a"]
    assert found.dense().tobytes() == tensor.dense().tobytes() == codes.dense().numpy().tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_weights_give_the_same_codes(method):
    first, second = (quantization.METHODS[method](weights(), 5) for _ in range(2))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.levels, second.levels)


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_quantized_is_said(method):
    quantize = quantization.METHODS[method]
    for bits in (0, 9):
        with pytest.raises(UnsupportedInputError, match=f"{bits} bits: 1 to 8 are possible"):
            quantize(weights(), bits)
    for value in (float("nan"), float("inf")):
        with pytest.raises(UnsupportedInputError, match="not finite"):
            quantize(torch.full((2, 2), value), 8)
    with pytest.raises(UnsupportedInputError, match="1 bit"):
        quantization.linear(weights(), 1)
