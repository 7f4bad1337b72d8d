"""Attention of short sentences against plain torch: on a GPU if there is one, else in Triton's interpreter."""

import itertools
import math

import pytest
import torch

from lite_transformer import ops
from lite_transformer.errors import UnsupportedInputError, UnsupportedShapeError
from lite_transformer.ops import attention as attention_ops
from tests.helpers.compare import assert_same
from tests.helpers.kernels import dropout_keeps, relative_error

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
HALVES = [torch.float16, pytest.param(torch.bfloat16, marks=on_a_gpu)]  # the interpreter's numpy has no bfloat16
NAMES = ("output", "gradient of queries", "gradient of keys and values")


def normal(seed, *shape, strided=False):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    if strided:  # every second sentence, some channels in
        length, batch, channels = shape
        return torch.randn(length, batch * 2, channels + 6, generator=generator, device=DEVICE)[:, ::2, 6:]
    return torch.randn(shape, generator=generator, device=DEVICE)


def inputs(length, keys, batch, heads, head, *, kind="self", masked=False, strided=False):
    """Queries, keys and values (None for self-attention), gradient of the output, padding mask."""
    channels = heads * head
    queries = normal(1, length, batch, channels * (1 if kind == "cross" else 3), strided=strided)
    keys_values = normal(2, keys, batch, 2 * channels, strided=strided) if kind == "cross" else None
    mask = None
    if masked:
        mask = torch.zeros(batch, keys, dtype=torch.bool, device=DEVICE)
        mask[0, (keys + 1) // 2 :] = True  # right-padded
        mask[-1, : keys // 3] = True  # left-padded: with a causal mask, the first queries see no key
        mask[batch // 2] = True  # nothing but padding
    return queries, keys_values, normal(3, length, batch, channels, strided=strided), mask


def run(given, heads, dtype, backend, **options):
    """Output and gradients."""
    queries, keys_values, grad, mask = given
    values = [value.to(dtype).detach().requires_grad_() for value in (queries, keys_values) if value is not None]
    out = ops.short_attention(
        *values, *[None] * (2 - len(values)), heads, padding_mask=mask, backend=backend, **options
    )
    return [out.detach(), *torch.autograd.grad(out, values, grad.to(dtype))]


def check(given, heads, dtype=torch.float32, **options):
    """Fails if a fused result is further from fp64 than twice plain torch in the same dtype.

    Sums of a few fp32 numbers are allowed four units in the last place, of halves half a unit: plain torch may hit them
    exactly.
    """
    units = 4 if dtype == torch.float32 else 0.5
    rounded = [value if value is None or value.dtype == torch.bool else value.to(dtype) for value in given]
    exact = run(rounded, heads, torch.float64, "reference", **options)
    plain = run(rounded, heads, dtype, "reference", **options)
    fused = run(rounded, heads, dtype, "triton", **options)
    for name, right, torch_result, result in zip(NAMES, exact, plain, fused, strict=False):
        assert result.dtype == dtype and result.shape == right.shape, name
        allowed = max(2 * relative_error(torch_result, right), units * torch.finfo(dtype).eps)
        error = relative_error(result, right)
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
@pytest.mark.parametrize("length", [1, 16, 17, 33])
def test_lengths_and_masks(length, kind, masked):
    keys = 21 if kind == "cross" else length
    check(inputs(length, keys, 3, 2, 20, kind=kind, masked=masked), 2, causal=kind == "causal")


@pytest.mark.parametrize("heads,head", [(1, 5), (4, 16), (3, 62), (1, 124), (8, 1)])
def test_heads_of_any_width(heads, head):
    check(inputs(7, 7, 2, heads, head), heads)
    check(inputs(5, 9, 2, heads, head, kind="cross", masked=True), heads)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("kind", ["causal", "cross"])
def test_strided_inputs_and_gradients(kind, dtype):
    check(inputs(18, 18, 3, 4, 20, kind=kind, masked=True, strided=True), 4, dtype, causal=kind == "causal")


def test_gradients_without_memory_of_their_own():
    queries, keys_values, grad, mask = inputs(7, 9, 2, 2, 16, kind="cross", masked=True)
    check((queries, keys_values, grad[:1, :1, :1].expand_as(grad), mask), 2)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
@pytest.mark.parametrize("head", [20, 62, 124])
@pytest.mark.parametrize("length", [24, 64, 100])
def test_blocks_of_every_size(length, head, kind, dtype):
    given = inputs(length, length, 40, 4, head, kind=kind, masked=True)
    if not ops.uses_short_attention("triton", given[0].to(dtype), length, length, head):
        pytest.skip("too long for the kernel")
    check(given, 4, dtype, causal=kind == "causal")
    first, again = (run(given, 4, dtype, "triton", causal=kind == "causal") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))  # no races


def test_queries_without_keys_are_zero_and_have_no_gradient():
    given = inputs(9, 9, 3, 2, 16, masked=True)
    out, grad = run(given, 2, torch.float32, "triton", causal=True)
    assert torch.isfinite(out).all() and torch.isfinite(grad).all()
    assert not out[:, 1].any() and not grad[:, 1].any()
    assert not out[:3, 2].any() and out[3:, 2].all()


@pytest.mark.parametrize("kind", ["causal", "cross"])
def test_dropout_is_that_of_its_mixing_function(kind):
    """With the kept probabilities known, outputs and gradients are those of the definition."""
    length, keys, batch, heads, head, dropout = 5, 7 if kind == "cross" else 5, 3, 2, 16, 0.3
    queries, keys_values, grad, mask = inputs(length, keys, batch, heads, head, kind=kind, masked=True)
    seed = torch.tensor(0x1234_5678_9ABC_DEF0, device=DEVICE)
    count = batch * heads * length * keys
    keeps = dropout_keeps(seed.item(), torch.arange(count, device=DEVICE), dropout).view(batch, heads, length, keys)
    assert keeps.any() and not keeps.all()
    found = run(
        (queries, keys_values, grad, mask), heads, torch.float32, "triton", causal=kind == "causal", dropout=dropout,
        seed=seed,
    )  # fmt: skip

    values = [value.detach().requires_grad_() for value in (queries, keys_values) if value is not None]
    parts = [part for value in values for part in value.split(heads * head, dim=2)]
    q, k, v = (part.unflatten(2, (heads, head)).permute(1, 2, 0, 3) for part in parts)
    hidden = mask[:, None, None, :].expand(batch, heads, length, keys)
    if kind == "causal":
        hidden = hidden | torch.ones(length, keys, dtype=torch.bool, device=DEVICE).triu(1)
    weights = (q @ k.transpose(2, 3) / math.sqrt(head)).masked_fill(hidden, -1e30).softmax(-1)
    weights = weights.masked_fill(hidden.all(-1, keepdim=True), 0.0) * keeps / (1 - dropout)
    out = (weights @ v).permute(2, 0, 1, 3).flatten(2)
    for mine, right in zip(found, [out.detach(), *torch.autograd.grad(out, values, grad)], strict=True):
        assert_same(mine, right, 1e-5)


def test_dropout_draws_anew_from_torch_seed():
    queries, _, _, _ = inputs(6, 6, 2, 2, 16)

    def draw(seed):
        torch.manual_seed(seed)
        return [ops.short_attention(queries, None, 2, dropout=0.5, backend="triton") for _ in range(3)]

    first = draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))
    generator = torch.cuda.default_generators[0] if DEVICE == "cuda" else torch.default_generator
    before = generator.get_state()
    ops.short_attention(queries, None, 2, backend="triton")
    assert torch.equal(before, generator.get_state())


def test_nothing_to_attend_to():
    for length, keys, batch in ((0, 3, 2), (3, 0, 2), (3, 3, 0)):
        queries = torch.ones(length, batch, 4, device=DEVICE, requires_grad=True)
        keys_values = torch.ones(keys, batch, 8, device=DEVICE, requires_grad=True)
        out = ops.short_attention(queries, keys_values, 2, backend="triton")
        assert out.shape == queries.shape and not out.any()
        out.sum().backward()
        assert queries.grad.shape == queries.shape and not keys_values.grad.any()


def test_every_element_is_written():
    """torch fills new tensors with NaN in this mode; what a kernel forgets stays NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.isnan(torch.empty(3, device=DEVICE)).all()
        for kind, (queries, keys_values, grad, mask) in (
            (kind, inputs(19, 19, 2, 3, 20, kind=kind, masked=True)) for kind in ("self", "cross")
        ):
            arguments = (queries, keys_values, 3, mask, torch.tensor(3, device=DEVICE), kind == "self", 0.2)
            out = attention_ops._forward_op(*arguments)
            for result in (out, *attention_ops._backward_op(grad, *arguments)):
                assert not torch.isnan(result).any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_gradients_of_the_reference():
    torch.manual_seed(0)
    queries, keys_values = torch.randn(3, 2, 4).double(), torch.randn(5, 2, 8).double()
    mask = torch.tensor([[False] * 4 + [True], [False] * 5])
    values = [queries.requires_grad_(), keys_values.requires_grad_()]
    assert torch.autograd.gradcheck(lambda q, kv: ops.short_attention(q, kv, 2, padding_mask=mask), values)
    packed = torch.randn(4, 2, 12).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda q: ops.short_attention(q, None, 2, causal=True), [packed])


def test_the_reference_is_torchs_attention():
    queries, keys_values = torch.randn(5, 2, 12), torch.randn(7, 2, 24)
    q = queries.unflatten(2, (3, 4)).permute(1, 2, 0, 3)
    k, v = (part.unflatten(2, (3, 4)).permute(1, 2, 0, 3) for part in keys_values.chunk(2, dim=2))
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).flatten(2)
    assert_same(ops.short_attention(queries, keys_values, 3), right, 1e-6)


def test_opcheck():
    for kind in ("causal", "cross"):
        queries, keys_values, grad, mask = inputs(4, 4, 2, 2, 16, kind=kind, masked=True)
        for seed, dropout in ((None, 0.0), (torch.tensor(7, device=DEVICE), 0.5)):
            arguments = (queries, keys_values, 2, mask, seed, kind == "causal", dropout)
            torch.library.opcheck(attention_ops._forward_op, arguments)
            torch.library.opcheck(attention_ops._backward_op, (grad, *arguments))


def test_compiled_models_keep_the_operator():
    queries, _, _, mask = inputs(6, 6, 2, 2, 16, masked=True)

    def model(queries, backend):
        return ops.short_attention(queries * 2, None, 2, padding_mask=mask, causal=True, backend=backend).square().sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    queries.requires_grad_()
    (found,) = torch.autograd.grad(compiled(queries, "triton"), queries)
    (right,) = torch.autograd.grad(model(queries, "reference"), queries)
    assert_same(found, right, 1e-4)


def test_what_is_too_long_is_left_to_others():
    def fits(length, head, dtype):
        return ops.uses_short_attention("triton", torch.empty(1, 1, 1, device=DEVICE), length, length, head, dtype)

    assert fits(128, 62, torch.float16) and not fits(129, 20, torch.float16)
    assert fits(64, 128, torch.float16) and not fits(65, 128, torch.float16) and not fits(2, 129, torch.float16)
    assert fits(64, 62, torch.float32) and not fits(65, 20, torch.float32) and not fits(33, 65, torch.float32)
    assert not fits(4, 4, torch.float64)
    wide = torch.empty(1, 1, 1, device=DEVICE).expand(1, 2**16, 496)  # offsets are 32 bits wide
    assert not ops.uses_short_attention("triton", wide, 64, 64, 62, torch.float16)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"backend": "cuda"}, UnsupportedInputError, "unknown backend 'cuda'; allowed: auto, triton, reference"),
        ({"dropout": -0.1}, UnsupportedInputError, r"dropout = -0.1 is no probability: give a value in \[0, 1\]"),
        ({"num_heads": 3}, UnsupportedShapeError, "3 heads do not divide an attention of 4 channels"),
        ({"causal": True}, UnsupportedInputError, "causal needs self-attention: give queries, keys and values side"),
        (
            {"keys_values": None},
            UnsupportedShapeError,
            r"queries must be \(T, B, 3C\) without keys_values, got \(2, 1, 4",
        ),
        ({"keys_values": torch.ones(2, 1, 4)}, UnsupportedShapeError, r"keys_values must be .*= \(S, 1, 8\), got"),
        (
            {"padding_mask": torch.ones(1, 2)},
            UnsupportedShapeError,
            r"padding_mask must be bool \(B, S\) = \(1, 2\), got",
        ),
        (
            {"keys_values": torch.ones(2, 1, 8).half()},
            UnsupportedInputError,
            "both must be of one dtype and on one device",
        ),
        (
            {"queries": torch.ones(200, 1, 4), "backend": "triton"},
            UnsupportedInputError,
            r"backend 'triton': T, S, R = \(200, 2, 2\) is too long in torch.float32",
        ),
    ],
)
def test_what_is_refused(change, error, text):
    given = {"queries": torch.ones(2, 1, 4), "keys_values": torch.ones(2, 1, 8), "num_heads": 2} | change
    with pytest.raises(error, match=text):
        ops.short_attention(**given)
