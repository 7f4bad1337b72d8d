"""The fused convolutions against plain torch: on a GPU if there is one, else small shapes in Triton's interpreter."""

import dataclasses
import itertools
import logging

import pytest
import torch

from lite_transformer import ops
from lite_transformer.errors import UnsupportedInputError, UnsupportedShapeError
from lite_transformer.ops import backends, convolution
from tests.helpers.compare import assert_same
from tests.helpers.kernels import Case, dropout_keeps, relative_error

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def kinds():
    """Both convolutions, causal and centred, with and without softmax and mask."""
    return itertools.product((False, True), repeat=4)


@pytest.mark.parametrize(("dynamic", "causal", "softmax", "masked"), kinds())
@pytest.mark.parametrize("length", [1, 6, 33])  # one position, over K, over a tile
def test_outputs_and_gradients(length, dynamic, causal, softmax, masked):
    Case(length, 2, 6, 2, 5, dynamic, causal, softmax, masked).check(torch.float32, DEVICE)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("length", [4, 5])  # K - 1, K
def test_lengths_around_the_kernel(length, dynamic):
    Case(length, 2, 6, 2, 5, dynamic, softmax=True, masked=True).check(torch.float32, DEVICE)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("heads", [1, 70])
def test_one_head_and_a_head_for_each_channel(dynamic, heads):
    Case(7, 2, 70, heads, 3, dynamic, softmax=True).check(torch.float32, DEVICE)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 2, 40, 255])
def test_short_and_long_kernels(dynamic, kernel_size):
    Case(9, 1, 4, 2, kernel_size, dynamic, softmax=True, masked=True).check(torch.float32, DEVICE)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_fp32_sums(dynamic, dtype):
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter computes bfloat16 in numpy, which has none")
    Case(12, 2, 40, 2, 5, dynamic, softmax=True, masked=True).check(dtype, DEVICE)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_strided_inputs_and_gradients(dynamic, causal):
    Case(8, 3, 6, 2, 5, dynamic, causal, masked=True, strided=True).check(torch.float32, DEVICE)


def test_any_left_padding():
    torch.manual_seed(0)
    x, weight = torch.randn(9, 2, 6, device=DEVICE), torch.randn(2, 4, device=DEVICE)
    for left in range(4):
        fused = ops.lightweight_conv(x, weight, left, backend="triton")
        assert_same(fused, ops.lightweight_conv(x, weight, left, backend="reference"), 1e-5)


def test_strided_kernels():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 6, device=DEVICE)
    for weight in (
        torch.randn(5, 3, 2, 8, device=DEVICE)[..., ::2],
        torch.randn(3, 5, 2, 4, device=DEVICE).transpose(0, 1),
        torch.randn(2, 4, device=DEVICE).expand(5, 3, 2, 4),
    ):
        fused = ops.dynamic_conv(x, weight, 3, backend="triton")
        assert_same(fused, ops.dynamic_conv(x, weight, 3, backend="reference"), 1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_padding_may_hold_anything(dynamic):
    """NaN at padded positions reaches neither outputs nor gradients of real ones."""
    case = Case(6, 2, 4, 2, 3, dynamic, masked=True)
    x, weight, grad, mask = case.tensors(torch.float32, DEVICE)
    x[mask.T] = float("nan")
    x.requires_grad_(), weight.requires_grad_()
    convolve = ops.dynamic_conv if dynamic else ops.lightweight_conv
    out = convolve(x, weight, 2, padding_mask=mask, backend="triton")
    out.backward(grad)
    for result in (out, x.grad, weight.grad):
        assert torch.isfinite(result).all()
    assert not x.grad[mask.T].any()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("softmax", "kernel_size"), [(False, 3), (True, 3), (True, 40)])
def test_every_element_is_written(dynamic, softmax, kernel_size):
    """torch fills new tensors with NaN in this mode; what a kernel forgets stays NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.isnan(torch.empty(3, device=DEVICE)).all()
        case = Case(33, 2, 10, 2, kernel_size, dynamic, softmax=softmax, masked=True)
        x, weight, grad, mask = case.tensors(torch.float32, DEVICE)
        out, statistics = convolution.short_range_conv(x, weight, mask, None, 1, softmax, 0.0)
        results = convolution.short_range_conv_backward(grad, x, weight, mask, None, statistics, 1, softmax, 0.0)
        for result in (out, statistics, *results):
            assert not torch.isnan(result).any()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dynamic", [False, True])
def test_empty_sequences_and_batches(dynamic):
    convolve = ops.dynamic_conv if dynamic else ops.lightweight_conv
    for length, batch in ((0, 2), (3, 0)):
        x = torch.empty(length, batch, 4, device=DEVICE, requires_grad=True)
        weight = torch.ones(*((length, batch) if dynamic else ()), 2, 3, device=DEVICE, requires_grad=True)
        out = convolve(x, weight, 1, weight_softmax=True, backend="triton")
        assert out.shape == x.shape
        out.sum().backward()
        assert x.grad.shape == x.shape and not weight.grad.any()


# --- kernel dropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_dropout_is_that_of_its_mixing_function(dynamic, softmax):
    """With the kept entries known, outputs and gradients are those of plain torch on thinned-out kernels."""
    case = Case(7, 3, 6, 2, 5, dynamic, softmax=softmax)
    x, weight, grad, _ = case.tensors(torch.float32, DEVICE)
    x.requires_grad_(), weight.requires_grad_()
    seed = torch.tensor(0x1234_5678_9ABC_DEF0, device=DEVICE)
    out, _ = convolution.short_range_conv(x, weight, None, seed, 4, softmax, 0.3)
    fused = (out, *torch.autograd.grad(out, (x, weight), grad))
    index = torch.arange(weight.numel(), device=DEVICE).view(weight.shape)
    keeps = dropout_keeps(seed.item(), index, 0.3)
    assert keeps.any() and not keeps.all()
    thinned = (torch.softmax(weight, -1) if softmax else weight) * keeps / 0.7
    convolve = ops.dynamic_conv if dynamic else ops.lightweight_conv
    out = convolve(x, thinned, 4, backend="reference")
    for mine, right in zip(fused, (out, *torch.autograd.grad(out, (x, weight), grad)), strict=True):
        assert relative_error(mine, right.double()) < 1e-6


def test_dropout_keeps_the_right_share_and_knows_no_neighbours():
    index = torch.arange(200_000)
    for dropout in (0.1, 0.5):
        keeps = dropout_keeps(2**40 + 17, index, dropout)
        assert abs(keeps.double().mean().item() - (1 - dropout)) < 0.005
        other = dropout_keeps(2**40 + 18, index, dropout)
        for shifted in (keeps.roll(1), keeps.roll(31), other):
            both = (keeps & shifted).double().mean().item()
            assert abs(both - (1 - dropout) ** 2) < 0.005


def test_dropout_draws_anew_from_torch_seed():
    x, weight = torch.ones(4, 2, 4, device=DEVICE), torch.ones(2, 3, device=DEVICE)

    def draw(seed):
        torch.manual_seed(seed)
        return [ops.lightweight_conv(x, weight, 1, weight_dropout=0.5, backend="triton") for _ in range(4)]

    first = draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(1), strict=True))
    assert not all(torch.equal(first[0], other) for other in first[1:])
    assert not ops.lightweight_conv(x, weight, 1, weight_dropout=1.0, backend="triton").any()


# --- as torch operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("softmax", "masked", "dropout"), [(True, True, 0.0), (False, False, 0.5)])
def test_opcheck(dynamic, softmax, masked, dropout):
    x, weight, grad, mask = Case(5, 2, 4, 2, 3, dynamic, masked=masked).tensors(torch.float32, DEVICE)
    seed = torch.tensor(7, device=DEVICE) if dropout else None
    statistics = convolution.short_range_conv(x, weight, mask, seed, 2, softmax, dropout)[1]
    options = (2, softmax, dropout)
    torch.library.opcheck(
        convolution.short_range_conv, (x.requires_grad_(), weight.requires_grad_(), mask, seed, *options)
    )
    torch.library.opcheck(
        convolution.short_range_conv_backward,
        (grad, x.detach(), weight.detach(), mask, seed, statistics, *options),
    )


def test_compiled_and_exported_models_keep_the_operator():
    case = Case(5, 2, 4, 2, 3, dynamic=True, softmax=True)
    x, weight, grad, _ = case.tensors(torch.float32, DEVICE)
    x.requires_grad_(), weight.requires_grad_()

    class Convolution(torch.nn.Module):
        def forward(self, x, weight):
            return ops.dynamic_conv(x, weight, 2, weight_softmax=True, backend="triton") * 2

    compiled = torch.compile(Convolution(), fullgraph=True, backend="aot_eager")(x, weight)
    gradients = torch.autograd.grad(compiled, (x, weight), grad)
    plain = ops.dynamic_conv(x, weight, 2, weight_softmax=True, backend="reference") * 2
    assert_same(compiled, plain, 1e-5)
    for mine, right in zip(gradients, torch.autograd.grad(plain, (x, weight), grad), strict=True):
        assert_same(mine, right, 1e-5)
    exported = torch.export.export(Convolution(), (x.detach(), weight.detach()))
    assert "lite_transformer.short_range_conv" in str(exported.graph)


# --- the choice of a backend ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "text"), [(None, "triton is not installed"), ((3, 2), "triton 3.2 is older than 3.3")]
)
def test_the_choice_is_logged_once(monkeypatch, caplog, version, text):
    monkeypatch.setattr(backends, "_TRITON", version)
    backends._log_choice.cache_clear()
    x, weight = torch.ones(3, 1, 4), torch.ones(2, 3)
    with caplog.at_level(logging.INFO, "lite_transformer.ops.backends"):
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        for _ in range(3):
            ops.lightweight_conv(x, weight, 1)
    assert len(caplog.records) == 1
    assert f"plain torch instead of fused kernels: {text}" in caplog.text
    backends._log_choice.cache_clear()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"backend": "cuda"}, "unknown backend 'cuda'; allowed: auto, triton, reference"),
        ({"weight_dropout": 1.5}, "weight_dropout = 1.5 is no probability"),
        ({"x": torch.ones(3, 2, 4, dtype=torch.float64)}, "x is torch.float64; allowed: torch.float32, torch.float16"),
        ({"weight": torch.ones(2, 3, dtype=torch.float64)}, "weight is torch.float64; allowed: torch.float32"),
        ({"weight": torch.ones(2, 256)}, "kernel size 256 is over 255"),
    ],
)
def test_unsupported_input_is_named(change, text):
    arguments = {"x": torch.ones(3, 2, 4), "weight": torch.ones(2, 3), "backend": "triton"} | change
    with pytest.raises(UnsupportedInputError, match=text):
        ops.lightweight_conv(left_padding=1, **arguments)


def test_a_cpu_without_the_interpreter_is_named(monkeypatch):
    monkeypatch.setattr(backends, "_INTERPRETED", False)
    with pytest.raises(
        UnsupportedInputError, match="x is on cpu; allowed: a CUDA device, or any with TRITON_INTERPRET"
    ):
        ops.lightweight_conv(torch.ones(3, 2, 4), torch.ones(2, 3), 1, backend="triton")


def test_a_wrong_padding_mask_is_named():
    with pytest.raises(UnsupportedShapeError, match=r"padding_mask must be \(B, T\) = \(2, 3\), got \(3, 2\)"):
        ops.lightweight_conv(torch.ones(3, 2, 4), torch.ones(2, 3), 1, padding_mask=torch.zeros(3, 2, dtype=torch.bool))


# --- on a GPU ------------------------------------------------------------------------------------------------------


def gpu_grid():
    """Lengths around K and over several tiles; one head, four, one a channel; every option."""
    for (kernel_size, channels, heads), dynamic, softmax, masked in itertools.product(
        ((3, 64, 1), (31, 248, 4), (7, 20, 20), (63, 448, 7)), (False, True), (False, True), (False, True)
    ):
        yield Case(1, 3, channels, heads, kernel_size, dynamic, softmax=softmax, masked=masked)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", gpu_grid(), ids=str)
def test_the_whole_grid(case, dtype):
    k = case.kernel_size
    for length, causal, strided in itertools.product((1, k - 1, k, k + 1, 31, 33, 513), (True, False), (False, True)):
        dataclasses.replace(case, length=length, causal=causal, strided=strided).check(dtype, DEVICE)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("dynamic", [False, True])
def test_no_races(dynamic):
    case = Case(513, 8, 248, 4, 31, dynamic, softmax=True, masked=True)
    first = case.run(torch.float16, DEVICE, "triton")
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, case.run(torch.float16, DEVICE, "triton"), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("softmax", [False, True])
def test_peak_memory_of_the_dynamic_convolution(softmax):
    """Forward and backward need input, output, kernels and their gradients, and at most a tenth more."""
    x, weight, grad, _ = Case(512, 32, 248, 4, 31, dynamic=True).tensors(torch.float16, DEVICE)
    x.requires_grad_(), weight.requires_grad_()

    def step():
        ops.dynamic_conv(x, weight, 30, weight_softmax=softmax, backend="triton").backward(grad)
        x.grad = weight.grad = None

    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    outside = torch.cuda.memory_allocated() - 2 * x.nbytes - weight.nbytes  # x, its output's gradient, weight
    step()
    torch.cuda.synchronize()
    needed = 4 * x.nbytes + 2 * weight.nbytes
    assert torch.cuda.max_memory_allocated() - outside <= 1.1 * needed
