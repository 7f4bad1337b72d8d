"""Attention on a real device: its fused kernels against the plain computation."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lite_transformer.modules import MultiheadAttention
from lite_transformer.modules.attention import CAUSAL
from tests.helpers.compare import assert_same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("exact_products"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def results(attention, x, padding, attn_mask, direction):
    x = x.detach().requires_grad_()
    attention.zero_grad()
    out, _ = attention(x, x, x, padding, attn_mask=attn_mask)
    (out * direction).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in attention.parameters())]


# the head widths of the 160, 240 and 496 models: 20, 30 and 62
@pytest.mark.parametrize("dims", [(80, 4), (120, 4), (248, 4), (128, 4)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [33, 140])  # in our kernel, in torch's
def test_equals_the_fp32_computation_on_the_cpu(dims, dtype, causal, masked, length):
    torch.manual_seed(0)
    reference = MultiheadAttention(*dims)
    x, direction = torch.randn(length, 5, dims[0]), torch.randn(length, 5, dims[0])
    padding = torch.zeros(5, length, dtype=torch.bool)
    padding[1, 20:] = padding[2, :7] = padding[3, 1:] = True
    arguments = (padding if masked else None, CAUSAL if causal else None)
    if masked and causal:
        padding[2, :7] = False  # left padding leaves causal queries without any key, see below
    expected = results(reference, x, *arguments, direction)
    attention = MultiheadAttention(*dims)
    attention.load_state_dict(reference.state_dict())
    attention.to("cuda", dtype)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):  # and not several passes
        actual = results(
            attention, x.to("cuda", dtype), *(a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments),
            direction.to("cuda", dtype),
        )  # fmt: skip
    for ours, theirs in zip(actual, expected, strict=True):
        assert_same(ours.float().cpu(), theirs, TOLERANCE[dtype] * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [12, 140])
def test_rows_without_any_key_are_the_output_bias(dtype, causal, length):
    torch.manual_seed(0)
    attention = MultiheadAttention(80, 4).to("cuda", dtype)
    with torch.no_grad():
        attention.out_proj.bias.normal_()
    x = torch.randn(length, 3, 80, device="cuda", dtype=dtype)
    padding = torch.zeros(3, length, dtype=torch.bool, device="cuda")
    padding[0] = True
    padding[1, :5] = True
    found = results(attention, x, padding, CAUSAL if causal else None, torch.ones_like(x))
    assert all(torch.isfinite(value).all() for value in found)
    assert_same(found[0][:, 0], attention.out_proj.bias.detach().expand(length, 80), 1e-6)
    if causal:
        assert_same(found[0][:5, 1], attention.out_proj.bias.detach().expand(5, 80), 1e-6)
