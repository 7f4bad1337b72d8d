"""The convolutions against their definition, written as four nested loops."""

import itertools

import pytest
import torch

from lite_transformer import ops
from lite_transformer.errors import UnsupportedShapeError
from tests.helpers.compare import assert_same

LENGTHS = (1, 2, 6, 7, 8, 31)
CASES = list(itertools.product(LENGTHS, (1, 2, 6), (1, 3, 7), ("causal", "centred", "leftmost")))


def by_definition(x, weight, left_padding):
    """weight: (T, B, H, K)."""
    length, batch, channels = x.shape
    heads, kernel_size = weight.shape[2:]
    out = torch.zeros_like(x)
    for t, b, c, k in itertools.product(range(length), range(batch), range(channels), range(kernel_size)):
        source = t + k - left_padding
        if 0 <= source < length:
            out[t, b, c] += weight[t, b, c // (channels // heads), k] * x[source, b, c]
    return out


def padding(kind, kernel_size):
    return {"causal": kernel_size - 1, "centred": kernel_size // 2, "leftmost": 0}[kind]


def test_the_grid_has_the_expected_size():
    assert len(CASES) == 6 * 3 * 3 * 3


@pytest.mark.parametrize(("length", "heads", "kernel_size", "kind"), CASES)
def test_convolutions_match_the_definition(length, heads, kernel_size, kind):
    generator = torch.Generator().manual_seed(length * 100 + heads * 10 + kernel_size)
    x = torch.randn(length, 2, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(heads, kernel_size, generator=generator, dtype=torch.float64)
    left = padding(kind, kernel_size)
    everywhere = weight.expand(length, 2, heads, kernel_size)
    assert_same(ops.lightweight_conv(x, weight, left), by_definition(x, everywhere, left), 1e-12)
    per_position = torch.randn(length, 2, heads, kernel_size, generator=generator, dtype=torch.float64)
    assert_same(ops.dynamic_conv(x, per_position, left), by_definition(x, per_position, left), 1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_steps_equal_the_causal_convolution(kernel_size):
    torch.manual_seed(0)
    x = torch.randn(9, 3, 4, dtype=torch.float64)
    weight = torch.randn(2, kernel_size, dtype=torch.float64)
    dynamic = torch.randn(9, 3, 2, kernel_size, dtype=torch.float64)
    light_full = ops.lightweight_conv(x, weight, kernel_size - 1)
    dynamic_full = ops.dynamic_conv(x, dynamic, kernel_size - 1)
    for t in range(9):
        window = x[max(0, t - kernel_size + 1) : t + 1]
        assert_same(ops.lightweight_conv_step(window, weight), light_full[t : t + 1], 1e-12)
        assert_same(ops.dynamic_conv_step(window, dynamic[t : t + 1]), dynamic_full[t : t + 1], 1e-12)


def test_strided_views_and_empty_batches():
    torch.manual_seed(0)
    wide = torch.randn(5, 4, 12)
    x = wide[:, ::2, 6:]
    weight = torch.randn(2, 3)
    assert_same(ops.lightweight_conv(x, weight, 1), ops.lightweight_conv(x.contiguous(), weight, 1), 1e-6)
    per_position = torch.randn(5, 2, 2, 3)
    assert_same(ops.dynamic_conv(x, per_position, 1), ops.dynamic_conv(x.contiguous(), per_position, 1), 1e-6)
    assert ops.lightweight_conv(wide[:, :0], weight, 1).shape == (5, 0, 12)
    assert ops.dynamic_conv(wide[:, :0], per_position[:, :0], 1).shape == (5, 0, 12)
    assert ops.lightweight_conv(wide[:0], weight, 1).shape == (0, 4, 12)
    assert ops.dynamic_conv(wide[:0], torch.randn(0, 4, 2, 3), 1).shape == (0, 4, 12)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_gradients_by_finite_differences(left):
    torch.manual_seed(0)
    x = torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    dynamic = torch.randn(4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: ops.lightweight_conv(a, w, left), (x, weight))
    assert torch.autograd.gradcheck(lambda a, w: ops.dynamic_conv(a, w, left), (x, dynamic))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: ops.lightweight_conv(x, torch.ones(4, 3), 1), "4 heads do not divide C = 6"),
        (lambda x: ops.lightweight_conv(x, torch.ones(2, 3), 3), "left_padding = 3 is outside 0..2"),
        (lambda x: ops.lightweight_conv(x[0], torch.ones(2, 3), 1), r"x must be \(T, B, C\)"),
        (lambda x: ops.dynamic_conv(x, torch.ones(5, 2, 2, 3), 1), r"weight must be \(T, B, H, K\)"),
    ],
)
def test_unsupported_shapes_are_named(call, text):
    with pytest.raises(UnsupportedShapeError, match=text):
        call(torch.ones(4, 2, 6))
