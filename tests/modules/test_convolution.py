import pytest
import torch

from lite_transformer.errors import ConfigError
from lite_transformer.modules import DynamicConv, LightweightConv
from tests.helpers.compare import assert_same

KINDS = {"lightweight": LightweightConv, "dynamic": DynamicConv}


def build(kind, causal, kernel_size=5, **options):
    torch.manual_seed(0)
    module = KINDS[kind](8, kernel_size, 2, causal, **options).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_convolution_does_not_see_the_future(kind):
    module = build(kind, causal=True)
    x = torch.randn(9, 2, 8)
    changed = x.clone()
    changed[5:] += 1
    assert_same(module(changed)[:5], module(x)[:5], 1e-6)
    assert (module(changed)[5] - module(x)[5]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_centred_convolution_sees_both_sides_and_no_further(kind):
    module = build(kind, causal=False)
    x = torch.randn(11, 1, 8)
    for moved, seen in ((3, True), (7, True), (2, False), (8, False)):
        changed = x.clone()
        changed[moved] += 1
        difference = (module(changed)[5] - module(x)[5]).abs().max()
        assert (difference > 1e-3) == seen, moved


@pytest.mark.parametrize("kind", KINDS)
def test_shifting_the_input_shifts_the_output(kind):
    module = build(kind, causal=False)
    x = torch.randn(20, 1, 8)
    assert_same(module(x[1:])[4:-4], module(x)[5:-4], 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_softmax_kernels_keep_a_constant_signal_away_from_the_edges(kind):
    module = build(kind, causal=False, linear=False)
    x = torch.ones(15, 1, 8)
    assert_same(module(x)[2:-2], x[2:-2], 1e-6)
    assert (module(x)[0] - x[0]).abs().max() > 1e-3


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_reach_real_tokens(kind, gate):
    module = build(kind, causal=False, gate=gate)
    x = torch.randn(6, 1, 8)
    padded = torch.cat([x, torch.randn(4, 1, 8)])
    mask = torch.arange(10)[None] >= 6
    assert_same(module(padded, mask)[:6], module(x), 1e-5)


def test_the_reference_place_of_the_mask_lets_padding_in():
    module = build("dynamic", causal=False, gate=True, mask_after_gate=False)
    x = torch.randn(6, 1, 8)
    padded = torch.cat([x, torch.randn(4, 1, 8)])
    mask = torch.arange(10)[None] >= 6
    assert (module(padded, mask)[:6] - module(x)).abs().max() > 1e-3


@pytest.mark.parametrize("kernel_size", [1, 2, 5, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_equals_the_full_pass(kind, kernel_size):
    module = build(kind, causal=True, kernel_size=kernel_size)
    x = torch.randn(9, 3, 8)
    state: dict = {}
    steps = [module(x[t : t + 1], None, state) for t in range(9)]
    assert_same(torch.cat(steps), module(x), 1e-5)


def test_reordering_the_beams_reorders_the_window():
    module = build("dynamic", causal=True)
    x = torch.randn(6, 3, 8)
    order = torch.tensor([2, 0, 0])
    state: dict = {}
    for t in range(5):
        module(x[t : t + 1], None, state)
    module.reorder_incremental_state(state, order)
    last = module(x[5:6, order], None, state)
    assert_same(last, module(x[:, order])[5:6], 1e-5)


def test_initial_weights_have_the_published_scale():
    torch.manual_seed(0)
    light = LightweightConv(512, 31, 16, causal=True)
    assert light.weight.shape == (16, 31)
    assert light.weight.abs().max() <= (6 / (16 + 31)) ** 0.5
    assert light.weight.std().item() == pytest.approx((2 / (16 + 31)) ** 0.5, rel=0.1)
    dynamic = DynamicConv(256, 31, 4, causal=True, gate=True)
    assert dynamic.weight_linear.bias is None
    assert dynamic.weight_linear.weight.std().item() == pytest.approx((2 / (256 + 4 * 31)) ** 0.5, rel=0.05)
    assert dynamic.linear1.weight.shape == (512, 256)
    assert dynamic.linear1.bias.abs().max() == 0


def test_weight_dropout_acts_in_training_only():
    module = LightweightConv(8, 5, 2, causal=True, weight_dropout=0.5)
    x = torch.randn(6, 2, 8)
    assert (module(x) - module(x)).abs().max() > 0
    module.eval()
    assert_same(module(x), module(x), 0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((8, 5, 3, True), "3 heads do not divide a convolution branch of 8 channels"),
        ((8, 4, 2, False), "kernel size 4 is even"),
        ((8, 0, 2, True), "kernel size 0 is not a positive number"),
    ],
)
def test_sizes_that_do_not_fit(arguments, text):
    with pytest.raises(ConfigError, match=text):
        DynamicConv(*arguments)
