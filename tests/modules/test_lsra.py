import torch

from lite_transformer.modules import BranchConfig, DynamicConv, LongShortRangeAttention, MultiheadAttention
from tests.helpers.compare import assert_same


def branch(kind, dim, causal=False, kernel_size=3):
    return BranchConfig(kind, dim, num_heads=2, kernel_size=kernel_size, causal=causal)


def test_channels_are_cut_in_order_and_concatenated():
    torch.manual_seed(0)
    lsra = LongShortRangeAttention([branch("attention", 6), branch("dynamic", 4), branch("lightweight", 2)]).eval()
    x = torch.randn(5, 2, 12)
    out, weights = lsra(x)
    assert weights is None
    assert isinstance(lsra.branches[0], MultiheadAttention)
    assert isinstance(lsra.branches[1], DynamicConv)
    near, far, third = x[..., 6:10], x[..., :6], x[..., 10:]
    assert_same(out[..., :6], lsra.branches[0](far, far, far)[0], 1e-6)
    assert_same(out[..., 6:10], lsra.branches[1](near), 1e-6)
    assert_same(out[..., 10:], lsra.branches[2](third), 1e-6)


def test_the_order_of_branches_is_free():
    torch.manual_seed(0)
    lsra = LongShortRangeAttention([branch("lightweight", 4), branch("attention", 8)]).eval()
    x = torch.randn(5, 2, 12)
    far = x[..., 4:]
    assert_same(lsra(x)[0][..., 4:], lsra.branches[1](far, far, far)[0], 1e-6)


def test_step_by_step_equals_the_full_pass():
    torch.manual_seed(0)
    lsra = LongShortRangeAttention([branch("attention", 4, True), branch("dynamic", 4, True, kernel_size=5)]).eval()
    x = torch.randn(8, 3, 8)
    full, _ = lsra(x, attn_mask=torch.triu(torch.full((8, 8), float("-inf")), 1))
    state: dict = {}
    for t in range(8):
        assert_same(lsra(x[t : t + 1], incremental_state=state)[0], full[t : t + 1], 1e-5)
