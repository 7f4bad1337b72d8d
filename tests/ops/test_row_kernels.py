"""Kernels over rows against plain torch: on a GPU if there is one, else small shapes in Triton's interpreter."""

import itertools

import pytest
import torch

from lite_transformer import ops
from lite_transformer.errors import UnsupportedInputError, UnsupportedShapeError
from lite_transformer.ops import bias as bias_ops
from lite_transformer.ops import residual as norm_ops
from tests.helpers.compare import assert_same
from tests.helpers.kernels import dropout_keeps, relative_error

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
LAYOUTS = ("dense", "slice", "transposed")
HALVES = [torch.float16, pytest.param(torch.bfloat16, marks=on_a_gpu)]  # the interpreter's numpy has no bfloat16


def normal(shape, dtype, layout, seed):
    """(T, B, C): dense, a slice of channels, or with the batch first in memory."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    length, batch, channels = shape
    if layout == "slice":
        made = torch.randn(length, batch, channels + 6, generator=generator, device=DEVICE)[..., 6:]
    elif layout == "transposed":
        made = torch.randn(batch, length, channels, generator=generator, device=DEVICE).transpose(0, 1)
    else:
        made = torch.randn(shape, generator=generator, device=DEVICE)
    return made.to(dtype) if layout != "slice" else made.to(dtype, copy=True)[..., :]


def through(function, inputs, gradients, backend, compute):
    """Outputs of ``function(*inputs, backend=...)`` and the gradients of all inputs, computed in a dtype."""
    inputs = [None if value is None else value.to(compute).requires_grad_() for value in inputs]
    outputs = function(*inputs, backend=backend)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    given = [value for value in inputs if value is not None]
    upstream = [gradient.to(compute) for gradient in gradients]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, given, upstream)]


def check(function, inputs, gradients):
    """Fails if a fused result is further from fp64 than twice plain torch in the dtype of the inputs.

    Sums of a few fp32 numbers are allowed two units in the last place, of halves half a unit: plain torch may hit them
    exactly.
    """
    dtype = inputs[0].dtype
    units = 2 if dtype == torch.float32 else 0.5
    exact = through(function, inputs, gradients, "reference", torch.float64)
    plain = through(function, inputs, gradients, "reference", dtype)
    fused = through(function, inputs, gradients, "triton", dtype)
    for number, (right, torch_result, result) in enumerate(zip(exact, plain, fused, strict=True)):
        assert result.dtype == dtype and result.shape == right.shape, number
        allowed = max(2 * relative_error(torch_result, right), units * torch.finfo(dtype).eps)
        error = relative_error(result, right)
        assert error <= allowed, f"result {number}: error {error:.2e}, allowed {allowed:.2e}"


def check_linear(shape, out_channels, dtype=torch.float32, layout="dense"):
    x, grad = normal(shape, dtype, layout, 1), normal((*shape[:2], out_channels), dtype, layout, 2)
    weight, bias = (
        normal((1, out_channels, shape[2]), dtype, "dense", 3)[0],
        normal((1, 1, out_channels), dtype, "dense", 4),
    )
    check(ops.linear, [x, weight, bias.flatten()], [grad])


def check_norm(shape, dtype=torch.float32, layout="dense", residual=True):
    x, other = normal(shape, dtype, layout, 1), normal(shape, dtype, layout, 2)
    weight, bias = normal((1, 2, shape[2]), dtype, "dense", 3)[0].unbind()
    gradients = [normal(shape, dtype, layout, seed) for seed in (4, 5)]
    if residual:
        check(ops.residual_norm, [x, other, weight, bias], gradients)
    else:
        check(lambda *a, backend: ops.residual_norm(*a, backend=backend)[0], [x, None, weight, bias], gradients[:1])


# --- bias gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 5), (7, 3, 20), (50, 3, 62)])  # one row, one share of the rows, several
def test_linear_layers(shape, layout):
    check_linear(shape, 33, layout=layout)


@pytest.mark.parametrize("out_channels", [1, 64, 65, 130])  # blocks of columns are 64 wide
def test_linear_layers_of_any_width(out_channels):
    check_linear((5, 2, 8), out_channels)


@pytest.mark.parametrize("dtype", HALVES)
def test_linear_layers_in_half_precision(dtype):
    check_linear((40, 3, 20), 62, dtype, "transposed")


def test_linear_takes_any_number_of_dimensions_and_gradients_without_memory_of_their_own():
    for shape in ((6,), (3, 6), (2, 3, 2, 6)):
        x = torch.randn(shape, device=DEVICE)
        layers = [torch.nn.Linear(6, 4, device=DEVICE)]
        layers.append(torch.nn.Linear(6, 4, device=DEVICE))
        layers[1].load_state_dict(layers[0].state_dict())
        for layer, backend in zip(layers, ("reference", "triton"), strict=True):
            ops.linear(x, layer.weight, layer.bias, backend=backend).sum().backward()  # an expanded gradient
        assert_same(layers[1].bias.grad, layers[0].bias.grad, 1e-5)
        assert_same(layers[1].weight.grad, layers[0].weight.grad, 1e-5)


def test_a_frozen_bias_and_no_bias_stay_with_torch(monkeypatch):
    monkeypatch.setattr(bias_ops, "uses_row_kernels", lambda *_, **__: pytest.fail("asked"))
    x, weight, bias = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True), torch.randn(4)
    assert ops.linear(x, weight, None, backend="triton").requires_grad
    assert ops.linear(x, weight, bias, backend="triton").requires_grad
    with torch.no_grad():
        ops.linear(x, weight, bias.requires_grad_(), backend="triton")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_column_sums_of_any_strides(layout, dtype):
    x = normal((23, 5, 70), dtype, layout, 1)
    for value in (x, x[:1], x[:, :1], x[::2], x[0], x[0, 0], x[None]):
        right = value.double().reshape(-1, 70).sum(0)
        found = bias_ops.column_sum(value)
        assert found.dtype == dtype
        assert relative_error(found, right) < 4 * torch.finfo(dtype).eps


def test_column_sums_of_nothing_are_zero():
    for shape in ((0, 3, 4), (3, 0, 4)):
        assert_same(bias_ops.column_sum(torch.empty(shape, device=DEVICE)), torch.zeros(4, device=DEVICE), 0)
    assert bias_ops.column_sum(torch.empty(2, 3, 0, device=DEVICE)).shape == (0,)


# --- dropout, residual, layer norm ---------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 2, 62), (5, 7, 20)])
def test_residual_and_norm(shape, layout, residual):
    check_norm(shape, layout=layout, residual=residual)


@pytest.mark.parametrize("channels", [3, 17, 1025])  # blocks are powers of two, of 16 at least
def test_norms_of_any_width(channels):
    check_norm((3, 2, channels))


def test_the_norm_of_one_channel_is_its_bias():
    """Its gradient is zero, but for what rounding leaves of a difference, times 1 / sqrt(eps)."""
    x, residual, grad, grad_summed = (normal((3, 2, 1), torch.float32, "dense", seed) for seed in range(4))
    x, residual = x.requires_grad_(), residual.requires_grad_()
    weight, bias = torch.tensor([[1.7], [0.3]], device=DEVICE)
    normed, summed = ops.residual_norm(x, residual, weight, bias, backend="triton")
    assert_same(normed, bias.expand(3, 2, 1), 0)
    for found in torch.autograd.grad((normed, summed), (x, residual), (grad, grad_summed)):
        assert_same(found, grad_summed, 1e-3)


def test_a_program_takes_several_tiles_of_rows(monkeypatch):
    from lite_transformer.ops import triton_rows

    monkeypatch.setattr(triton_rows, "_NORM_PROGRAMS", 2)
    monkeypatch.setattr(triton_rows, "_BACKWARD_TILE", (64, 4))  # four rows of sixteen
    check_norm((7, 3, 16))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("residual", [True, False])
def test_norms_in_half_precision(dtype, residual):
    check_norm((6, 3, 62), dtype, "transposed", residual)


def test_a_gradient_of_one_output_only(monkeypatch):
    given = []
    backward = norm_ops._backward_op
    monkeypatch.setattr(norm_ops, "_backward_op", lambda *args: given.append(args[1]) or backward(*args))
    inputs = [normal((4, 2, 20), torch.float32, "dense", seed) for seed in (1, 2)]
    weight, bias = torch.randn(2, 20, device=DEVICE)
    grad = torch.randn(4, 2, 20, device=DEVICE)
    for output in (0, 1):
        found = []
        for backend in ("reference", "triton"):
            values = [value.detach().requires_grad_() for value in (*inputs, weight, bias)]
            out = ops.residual_norm(*values, backend=backend)[output]
            found.append(torch.autograd.grad(out, values, grad, allow_unused=True, materialize_grads=True))
        for mine, right in zip(found[1], found[0], strict=True):
            assert_same(mine, right, 1e-5)
    assert given[0] is None and given[1] is not None  # no zeros are made and added


def test_half_precision_beside_a_residual_in_fp32():
    """As under autocast: the sum and its norm are fp32."""
    x = torch.randn(5, 2, 20, device=DEVICE, dtype=torch.float16)
    others = [torch.randn(shape, device=DEVICE) for shape in ((5, 2, 20), (20,), (20,))]
    grads = [torch.randn(5, 2, 20, device=DEVICE) for _ in range(2)]
    found = []
    for backend in ("reference", "triton"):
        values = [value.detach().requires_grad_() for value in (x, *others)]
        outputs = ops.residual_norm(*values, backend=backend)
        found.append([*outputs, *torch.autograd.grad(outputs, values, grads)])
    for mine, right in zip(found[1], found[0], strict=True):
        assert_same(mine, right, 2e-3 if mine.dtype == torch.float16 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dropout_is_that_of_its_mixing_function(dtype):
    """With the kept entries known, outputs and gradients are those of plain torch on thinned-out input."""
    torch.manual_seed(0)
    shape, dropout = (5, 3, 20), 0.3
    x, residual, grad, grad_summed = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(4))
    weight, bias = torch.randn(2, 20, device=DEVICE).to(dtype)
    seed = torch.tensor(0x1234_5678_9ABC_DEF0, device=DEVICE)
    keeps = dropout_keeps(seed.item(), torch.arange(x.numel(), device=DEVICE).view(shape), dropout)
    assert keeps.any() and not keeps.all()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2

    def fused(x, residual, weight, bias):
        return ops.residual_norm(x, residual, weight, bias, dropout=dropout, seed=seed, backend="triton")

    def plain(x, residual, weight, bias):
        return ops.residual_norm(x * keeps / (1 - dropout), residual, weight, bias, backend="reference")

    def fused_sum(x, residual):
        return (ops.dropout_add(x, residual, dropout=dropout, seed=seed, backend="triton"),)

    def plain_sum(x, residual):
        return (residual + x * keeps / (1 - dropout),)

    for mine, right, inputs in ((fused, plain, (x, residual, weight, bias)), (fused_sum, plain_sum, (x, residual))):
        found = []
        for function in (mine, right):
            values = [value.detach().requires_grad_() for value in inputs]
            outputs = function(*values)
            found.append([*outputs, *torch.autograd.grad(outputs, values, (grad, grad_summed)[: len(outputs)])])
        for ours, theirs in zip(*found, strict=True):
            assert_same(ours, theirs, tolerance * max(1.0, theirs.abs().max().item()))


def test_dropout_draws_anew_from_torch_seed():
    x, weight, bias = torch.ones(4, 2, 16, device=DEVICE), torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)

    def draw(seed):
        torch.manual_seed(seed)
        sums = [ops.residual_norm(x, x, weight, bias, dropout=0.5, backend="triton")[1] for _ in range(3)]
        return [*sums, *(ops.dropout_add(x, x, dropout=0.5, backend="triton") for _ in range(3))]

    first = draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))
    assert set(first[0].unique().tolist()) == {1.0, 3.0}
    assert ops.draw_seeds(3, x.device).unique().numel() == 3


def test_without_dropout_nothing_is_drawn():
    x, weight = torch.ones(2, 2, 16, device=DEVICE), torch.ones(16, device=DEVICE)
    generator = torch.cuda.default_generators[0] if DEVICE == "cuda" else torch.default_generator
    before = generator.get_state()
    ops.residual_norm(x, x, weight, weight, backend="triton")
    ops.dropout_add(x, x, backend="triton")
    assert torch.equal(before, generator.get_state())


def test_empty_sequences_and_batches():
    for length, batch in ((0, 2), (3, 0)):
        x, residual = (torch.empty(length, batch, 4, device=DEVICE, requires_grad=True) for _ in range(2))
        weight, bias = (torch.ones(4, device=DEVICE, requires_grad=True) for _ in range(2))
        outputs = ops.residual_norm(x, residual, weight, bias, dropout=0.1, backend="triton")
        outputs = (*outputs, ops.dropout_add(x, residual, dropout=0.1, backend="triton"))
        assert all(out.shape == x.shape for out in outputs)
        sum(out.sum() for out in outputs).backward()
        assert x.grad.shape == x.shape and not weight.grad.any() and not bias.grad.any()


@pytest.mark.parametrize("channels", [16, 62])
def test_every_element_is_written(channels):
    """torch fills new tensors with NaN in this mode; what a kernel forgets stays NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.isnan(torch.empty(3, device=DEVICE)).all()
        x, residual, grad = (torch.randn(37, 2, channels, device=DEVICE) for _ in range(3))
        weight, bias = torch.randn(2, channels, device=DEVICE)
        seed = torch.tensor(3, device=DEVICE)
        outputs = norm_ops._forward_op(x, residual, weight, bias, seed, 1e-5, 0.2)
        gradients = norm_ops._backward_op(grad, grad, outputs[1], weight, seed, outputs[2], 0.2, x.dtype)
        summed = norm_ops._dropout_add_op(x, residual, seed, 0.2)
        grad_x = norm_ops._dropout_backward_op(grad, seed, 0.2, x.dtype)
        for result in (*outputs, *gradients, summed, grad_x, bias_ops.column_sum(x)):
            assert result.numel() and not torch.isnan(result).any()
    finally:
        torch.use_deterministic_algorithms(False)


# --- the reference -------------------------------------------------------------------------------------------------


def test_gradients_of_the_reference():
    torch.manual_seed(0)
    x, residual = (torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    matrix = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.residual_norm, (x, residual, weight, bias))
    assert torch.autograd.gradcheck(lambda *a: ops.residual_norm(a[0], None, *a[1:])[0], (x, weight, bias))
    assert torch.autograd.gradcheck(ops.dropout_add, (x, residual))
    assert torch.autograd.gradcheck(ops.linear, (x, matrix, bias[:4]))


def test_the_reference_is_torchs_dropout_then_sum_then_norm():
    x, residual, weight, bias = torch.randn(5, 3, 8), torch.randn(5, 3, 8), torch.randn(8), torch.randn(8)
    torch.manual_seed(3)
    normed, summed = ops.residual_norm(x, residual, weight, bias, eps=1e-3, dropout=0.4)
    torch.manual_seed(3)
    assert torch.equal(summed, ops.dropout_add(x, residual, dropout=0.4))
    torch.manual_seed(3)
    right = residual + torch.nn.functional.dropout(x, 0.4)
    assert torch.equal(summed, right)
    assert torch.equal(normed, torch.nn.functional.layer_norm(right, (8,), weight, bias, 1e-3))


# --- as torch operators --------------------------------------------------------------------------------------------


def test_opcheck():
    x, residual, grad = (torch.randn(3, 2, 8, device=DEVICE) for _ in range(3))
    weight, bias = torch.randn(2, 8, device=DEVICE)
    seed = torch.tensor(7, device=DEVICE)
    torch.library.opcheck(bias_ops.column_sum, (x,))
    torch.library.opcheck(norm_ops._dropout_add_op, (x, residual, seed, 0.5))
    torch.library.opcheck(norm_ops._dropout_backward_op, (grad, seed, 0.5, torch.float32))
    for other, dropout in ((residual, 0.5), (residual, 0.0), (None, 0.0)):
        arguments = (x, other, weight, bias, seed if dropout else None, 1e-5, dropout)
        torch.library.opcheck(norm_ops._forward_op, arguments)
        _, summed, statistics = norm_ops._forward_op(*arguments)
        backward = (
            grad,
            None,
            x if other is None else summed,
            weight,
            arguments[4],
            statistics,
            dropout,
            torch.float32,
        )
        torch.library.opcheck(norm_ops._backward_op, backward)


def test_compiled_models_keep_the_operators():
    torch.manual_seed(0)
    values = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in ((3, 2, 8), (8, 8), (8,), (8,), (8,))]

    def model(x, matrix, shift, weight, bias, backend):
        out = ops.linear(x, matrix, shift, backend=backend)
        normed, summed = ops.residual_norm(out, x, weight, bias, backend=backend)
        return normed.square().sum() + summed.sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*values, "triton"), values)
    for mine, right in zip(found, torch.autograd.grad(model(*values, "reference"), values), strict=True):
        assert_same(mine, right, 1e-4)


@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.float16])
def test_autocast(residual_dtype):
    """Products are halves; on a GPU a norm is fp32 whatever it is given."""
    torch.manual_seed(0)
    x = torch.randn(4, 2, 8, device=DEVICE)
    values = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in ((8, 8), (8,), (8,), (8,))]
    found = []
    for backend in ("reference", "triton"):
        with torch.autocast(DEVICE, torch.float16):
            out = ops.linear(x, *values[:2], backend=backend)
            normed, _ = ops.residual_norm(out, x.to(residual_dtype), *values[2:], backend=backend)
        assert out.dtype == torch.float16
        assert normed.dtype == (torch.float32 if DEVICE == "cuda" else residual_dtype)
        found.append([normed, *torch.autograd.grad(normed.square().sum(), values)])
    for mine, right in zip(*found, strict=True):
        assert_same(mine, right, 5e-2)


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"backend": "cuda"}, UnsupportedInputError, "unknown backend 'cuda'; allowed: auto, triton, reference"),
        ({"dropout": 1.5}, UnsupportedInputError, r"dropout = 1.5 is no probability: give a value in \[0, 1\]"),
        ({"x": torch.ones(2, 4)}, UnsupportedShapeError, r"x must be \(T, B, C\), got \(2, 4\)"),
        (
            {"residual": torch.ones(3, 1, 4)},
            UnsupportedShapeError,
            r"residual must be as x, \(3, 2, 4\), got \(3, 1, 4\)",
        ),
        ({"bias": torch.ones(3)}, UnsupportedShapeError, r"weight and bias must be \(4,\), got \(4,\) and \(3,\)"),
        ({"residual": None, "dropout": 0.1}, UnsupportedInputError, "dropout needs a residual"),
        ({"weight": torch.ones(4).double()}, UnsupportedInputError, "weight is torch.float64; allowed: torch.float32"),
    ],
)
def test_unsupported_input_is_named(change, error, text):
    arguments = {
        "x": torch.ones(3, 2, 4),
        "residual": torch.ones(3, 2, 4),
        "weight": torch.ones(4),
        "bias": torch.ones(4),
    }
    with pytest.raises(error, match=text):
        ops.residual_norm(**(arguments | {"backend": "triton"} | change))


def test_rows_wider_than_registers_are_named_or_left_to_torch():
    x, weight = torch.ones(1, 1, 8193, device=DEVICE), torch.ones(8193, device=DEVICE)
    with pytest.raises(UnsupportedInputError, match="C = 8193 is over 8192"):
        ops.residual_norm(x, x, weight, weight, backend="triton")
    assert ops.residual_norm(x, x, weight, weight)[0].shape == x.shape


# --- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [20, 62, 248, 496, 512, 640, 896, 1024, 3072, 8192])
def test_the_whole_grid(channels, dtype):
    for shape, layout in itertools.product(((1, 1), (31, 3), (100, 61)), LAYOUTS):
        check_norm((*shape, channels), dtype, layout)
        check_norm((*shape, channels), dtype, layout, residual=False)
        check_linear((*shape, 64), channels, dtype, layout)


@pytest.mark.gpu
@on_a_gpu
def test_no_races():
    x, residual, grad = (torch.randn(100, 61, 496, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    weight, bias = torch.randn(2, 496, device=DEVICE, dtype=torch.bfloat16)
    seed = torch.tensor(5, device=DEVICE)

    def run():
        outputs = norm_ops._forward_op(x, residual, weight, bias, seed, 1e-5, 0.1)
        gradients = norm_ops._backward_op(grad, grad, outputs[1], weight, seed, outputs[2], 0.1, x.dtype)
        return [*outputs, *gradients, bias_ops.column_sum(grad)]

    first = run()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
