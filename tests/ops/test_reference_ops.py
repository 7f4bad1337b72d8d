"""The convolutions in plain torch against their definition, written as four nested loops."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lite_transformer.errors import UnsupportedShapeError
from lite_transformer.ops import reference as ops
from tests.helpers.compare import assert_same

CHANNELS = 6
# Shorter and longer than the kernel, one block, several with and without a rest.
CASES = [
    (length, heads, kernel_size, kind)
    for kernel_size in (1, 3, 7)
    for length in sorted({1, max(1, kernel_size - 1), kernel_size, kernel_size + 1, 31, 33, 70})
    for heads in (1, 2, CHANNELS)
    for kind in ("causal", "centred", "leftmost")
]


def by_definition(x, weight, left_padding):
    """weight: (T, B, H, K)."""
    length, batch, channels = x.shape
    heads, kernel_size = weight.shape[2:]
    out, taps, inputs = torch.zeros_like(x).tolist(), weight.tolist(), x.tolist()
    for t, b, c, k in itertools.product(range(length), range(batch), range(channels), range(kernel_size)):
        source = t + k - left_padding
        if 0 <= source < length:
            out[t][b][c] += taps[t][b][c // (channels // heads)][k] * inputs[source][b][c]
    return torch.tensor(out, dtype=x.dtype)


def padding(kind, kernel_size):
    return {"causal": kernel_size - 1, "centred": kernel_size // 2, "leftmost": 0}[kind]


def operands(length, batch, channels, heads, kernel_size, dtype=torch.float64):
    """x, weight of lightweight_conv, weight of dynamic_conv; every one of them differentiable."""
    generator = torch.Generator().manual_seed(length * 100 + heads * 10 + kernel_size)
    shapes = (length, batch, channels), (heads, kernel_size), (length, batch, heads, kernel_size)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


def assert_both_match_the_definition(length, batch, heads, kernel_size, left, channels=CHANNELS):
    x, weight, per_position = operands(length, batch, channels, heads, kernel_size)
    everywhere = weight.expand(length, batch, heads, kernel_size)
    assert_same(ops.lightweight_conv(x, weight, left), by_definition(x, everywhere, left), 1e-12)
    assert_same(ops.dynamic_conv(x, per_position, left), by_definition(x, per_position, left), 1e-12)


def assert_gradients_match(actual, expected, atol):
    """Compares two outputs of lists (function, inputs) and the gradients of all inputs for one random direction."""
    results = []
    for function, inputs in (actual, expected):
        out = function(*inputs)
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
        results.append([out, *torch.autograd.grad(out, inputs, direction)])
    for got, wanted in zip(*results, strict=True):
        assert_same(got.to(wanted), wanted, atol)


def test_the_grid_has_the_expected_size():
    assert len(CASES) == (5 + 7 + 7) * 3 * 3


@pytest.mark.parametrize(("length", "heads", "kernel_size", "kind"), CASES)
def test_convolutions_match_the_definition(length, heads, kernel_size, kind):
    assert_both_match_the_definition(length, 2, heads, kernel_size, padding(kind, kernel_size))


@pytest.mark.parametrize(
    ("length", "batch", "kernel_size", "left"),
    [
        (130, 1, 3, 2),  # more blocks than sequences
        (96, 2, 5, 1),  # no rest
        (70, 1, 90, 40),  # a kernel longer than the sequence
        (20, 2, 255, 254),
        (65, 1, 1, 0),
    ],
)
def test_unusual_sizes_match_the_definition(length, batch, kernel_size, left):
    assert_both_match_the_definition(length, batch, 2, kernel_size, left)


@pytest.mark.parametrize("length", [1, 31, 33, 64, 65, 70, 130])
@pytest.mark.parametrize("left", [0, 1, 2, 4])
@pytest.mark.parametrize("tile", [1, ops.TILE])
def test_gradients_are_those_of_the_sum_over_taps(length, left, tile, monkeypatch):
    """Autograd through `_by_taps` is the reference here; it equals the definition itself."""
    monkeypatch.setattr(ops, "TILE", tile)
    x, weight, per_position = operands(length, 2, 12, 2, 5)
    assert_same(ops._by_taps(x, per_position, left), by_definition(x, per_position, left), 1e-12)
    for kernels, function in ((weight, ops.lightweight_conv), (per_position, ops.dynamic_conv)):
        inputs = (x, kernels)
        assert_gradients_match(
            (lambda a, w, f=function: f(a, w, left), inputs), (lambda a, w: ops._by_taps(a, w, left), inputs), 1e-11
        )


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


def test_steps_refuse_a_window_longer_than_the_kernel():
    with pytest.raises(UnsupportedShapeError, match="4 inputs is longer than the kernel size 3"):
        ops.lightweight_conv_step(torch.ones(4, 1, 2), torch.ones(1, 3))


@pytest.mark.parametrize("length", [5, 70])
def test_strided_inputs(length):
    wide, weight, per_position = operands(length, 4, 12, 2, 3)
    x = wide[:, ::2, 6:]
    kernels, per_position = (
        weight.t().contiguous().t(),
        per_position.transpose(0, 1).contiguous().transpose(0, 1)[:, ::2],
    )
    assert not x.is_contiguous() and not kernels.is_contiguous() and not per_position.is_contiguous()
    assert_same(ops.lightweight_conv(x, kernels, 1), ops.lightweight_conv(x.contiguous(), weight, 1), 1e-12)
    dense = per_position.contiguous()
    assert_same(ops.dynamic_conv(x, per_position, 1), ops.dynamic_conv(x.contiguous(), dense, 1), 1e-12)


@pytest.mark.parametrize("shape", [(5, 0, 12), (70, 0, 12), (0, 4, 12), (0, 0, 12), (3, 2, 0)])
def test_empty_inputs_have_empty_outputs_and_zero_gradients(shape):
    x = torch.ones(shape, requires_grad=True)
    for weight, function in (
        (torch.ones(2, 3, requires_grad=True), ops.lightweight_conv),
        (torch.ones(*shape[:2], 2, 3, requires_grad=True), ops.dynamic_conv),
    ):
        out = function(x, weight, 1)
        assert out.shape == shape
        grad_x, grad_weight = torch.autograd.grad(out.sum(), (x, weight))
        assert_same(grad_x, torch.zeros(shape), 0)
        assert_same(grad_weight, torch.zeros(weight.shape), 0)


@pytest.mark.parametrize("left", [0, 1, 2])
@pytest.mark.parametrize(("short", "block"), [(64, 32), (0, 3)])
def test_gradients_by_finite_differences(left, short, block, monkeypatch):
    monkeypatch.setattr(ops, "SHORT", short)
    monkeypatch.setattr(ops, "BLOCK", block)
    x, weight, per_position = operands(7, 2, 4, 2, 3)
    strided = torch.randn(7, 2, 8, dtype=torch.float64, requires_grad=True)
    row = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(lambda a, w: ops.lightweight_conv(a, w, left), (x, weight))
    assert check(lambda a, w: ops.dynamic_conv(a, w, left), (x, per_position))
    assert check(
        lambda a, w: ops.lightweight_conv(a[..., ::2], w.t(), left), (strided, weight.detach().t().requires_grad_())
    )
    assert check(lambda a, w: ops.dynamic_conv(a[..., ::2], w.expand(7, -1, -1, -1), left), (strided, row))


def test_only_the_asked_gradient_is_computed():
    x, _, per_position = operands(70, 2, 4, 2, 3)
    (grad,) = torch.autograd.grad(ops.dynamic_conv(x, per_position.detach(), 1).sum(), x)
    assert_same(grad, torch.autograd.grad(ops._by_taps(x, per_position, 1).sum(), x)[0], 1e-12)
    (grad,) = torch.autograd.grad(ops.dynamic_conv(x.detach(), per_position, 1).sum(), per_position)
    assert_same(grad, torch.autograd.grad(ops._by_taps(x, per_position, 1).sum(), per_position)[0], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [33, 70])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, length):
    """And no more than the rounding of its result, for the sums are fp32."""
    x, weight, per_position = operands(length, 2, 12, 2, 31, dtype)
    for kernels, function in ((weight, ops.lightweight_conv), (per_position, ops.dynamic_conv)):
        inputs = [x, kernels]
        exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(dtype)

        def results(convolve, tensors, direction=direction):
            out = convolve(*tensors, 15)
            return [out, *torch.autograd.grad(out, tensors, direction.to(out.dtype))]

        triples = zip(
            results(function, inputs), results(ops._by_taps, inputs), results(ops._by_taps, exact), strict=True
        )
        for ours, plain, true in triples:
            assert ours.dtype == dtype
            error, usual = ((y.double() - true).abs().max().item() for y in (ours, plain))
            assert error <= 2 * usual
            assert error <= torch.finfo(dtype).eps * true.abs().max().item()


@pytest.mark.parametrize("length", [33, 70])
def test_autocast_changes_nothing(length):
    x, weight, per_position = operands(length, 2, 12, 2, 3, torch.float32)
    for kernels, function in ((weight, ops.lightweight_conv), (per_position, ops.dynamic_conv)):
        plain = function(x, kernels, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = function(x, kernels, 1)
        assert_same(cast, plain, 0)


class Largest(TorchDispatchMode):
    """Notes the largest number of elements that any operation inside returned in memory of its own."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize(("heads", "kernel_size"), [(4, 31), (16, 31), (1, 3)])
def test_memory_grows_with_the_inputs_and_not_with_the_square_of_the_length(heads, kernel_size):
    length, batch, channels = 512, 2, 16
    x, weight, per_position = operands(length, batch, channels, heads, kernel_size, torch.float32)
    for kernels, function in ((weight, ops.lightweight_conv), (per_position, ops.dynamic_conv)):
        with Largest() as largest:
            function(x, kernels, kernel_size - 1).sum().backward()
        assert x.numel() <= largest.elements <= 2 * (x.numel() + kernels.numel())


def test_many_heads_do_not_copy_their_kernels_to_every_position():
    x, weight, _ = operands(48, 16, 16, 16, 31, torch.float32)
    with Largest() as largest:
        ops.lightweight_conv(x, weight, 15).sum().backward()
    assert x.numel() <= largest.elements <= 2 * (x.numel() + weight.numel())


@pytest.mark.parametrize("length", [1, 33, 70])
def test_shapes_without_data(length):
    """Fake and meta tensors, as export and memory planning use them."""
    for mode, device in ((FakeTensorMode(), "cpu"), (torch.no_grad(), "meta")):
        with mode, torch.enable_grad():
            x = torch.ones(length, 2, 12, device=device, requires_grad=True)
            weight = torch.ones(2, 3, device=device, requires_grad=True)
            per_position = torch.ones(length, 2, 2, 3, device=device, requires_grad=True)
            for kernels, function in ((weight, ops.lightweight_conv), (per_position, ops.dynamic_conv)):
                out = function(x, kernels, 1)
                assert out.shape == x.shape
                assert [g.shape for g in torch.autograd.grad(out.sum(), (x, kernels))] == [x.shape, kernels.shape]


def test_compiled_in_one_graph_for_all_lengths():
    def both(x, weight, per_position):
        return ops.lightweight_conv(x, weight, 1) + ops.dynamic_conv(x, per_position, 1)

    graphs = []

    def count(module, _):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend=count)
    for length in (33, 70, 9):
        inputs = operands(length, 2, 12, 2, 3)
        assert_gradients_match((compiled, inputs), (both, inputs), 1e-11)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: ops.lightweight_conv(x, torch.ones(4, 3), 1), "4 heads do not divide C = 6"),
        (lambda x: ops.lightweight_conv(x, torch.ones(2, 3), 3), "left_padding = 3 is outside 0..2"),
        (lambda x: ops.lightweight_conv(x[0], torch.ones(2, 3), 1), r"x must be \(T, B, C\)"),
        (lambda x: ops.lightweight_conv(x, torch.ones(2, 3), -1), "left_padding = -1 is outside 0..2"),
        (lambda x: ops.lightweight_conv(x, torch.ones(2, 1, 3), 1), r"weight must be \(H, K\), got \(2, 1, 3\)"),
        (lambda x: ops.dynamic_conv(x, torch.ones(4, 2, 4, 3), 1), "4 heads do not divide C = 6"),
        (lambda x: ops.dynamic_conv(x, torch.ones(4, 2, 2, 3), 3), "left_padding = 3 is outside 0..2"),
        (lambda x: ops.dynamic_conv(x, torch.ones(5, 2, 2, 3), 1), r"weight must be \(T, B, H, K\)"),
    ],
)
def test_unsupported_shapes_are_named(call, text):
    with pytest.raises(UnsupportedShapeError, match=text):
        call(torch.ones(4, 2, 6))
