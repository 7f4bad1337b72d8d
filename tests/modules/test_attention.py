from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention as FairseqAttention
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lite_transformer import ops
from lite_transformer.errors import ConfigError
from lite_transformer.modules import MultiheadAttention
from lite_transformer.modules import attention as attention_module
from lite_transformer.modules.attention import CAUSAL
from tests.helpers.compare import assert_same

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where kernels run: there, or in Triton's interpreter


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return MultiheadAttention(8, 2).eval()


def future_mask(length):
    return torch.triu(torch.full((length, length), float("-inf")), 1)


def pad_mask():
    return torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [True] * 3 + [False] * 3])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_fairseqs_attention_with_the_same_weights(attention, masked, causal):
    theirs = FairseqAttention(8, 2, self_attention=True).eval()
    theirs.load_state_dict(attention.state_dict())
    x = torch.randn(6, 3, 8)
    padding = pad_mask() if masked else None
    mask = future_mask(6) if causal else None
    ours, _ = attention(x, x, x, padding, attn_mask=mask)
    expected, _ = theirs(x, x, x, padding, attn_mask=mask)
    visible = ~torch.isnan(expected)  # fairseq gives NaN where every key of a query is hidden
    assert visible.float().mean() > 0.8
    assert_same(ours[visible], expected[visible], 1e-5)
    assert not torch.isnan(ours).any()


def test_asking_for_weights_does_not_change_the_output(attention):
    x = torch.randn(6, 3, 8)
    plain, none = attention(x, x, x, pad_mask(), attn_mask=future_mask(6))
    out, mean = attention(x, x, x, pad_mask(), attn_mask=future_mask(6), need_weights=True)
    _, heads = attention(x, x, x, pad_mask(), attn_mask=future_mask(6), need_head_weights=True)
    assert none is None
    assert_same(out, plain, 1e-6)
    assert mean.shape == (3, 6, 6)
    assert heads.shape == (2, 3, 6, 6)
    assert_same(heads.mean(dim=0), mean, 1e-6)
    assert_same(mean[0].sum(dim=-1), torch.ones(6), 1e-5)
    assert mean[1, :, 4:].abs().max() == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_the_word_causal_is_the_mask_of_the_future(attention, masked, need_weights):
    x = torch.randn(6, 3, 8)
    padding = pad_mask() if masked else None
    out, weights = attention(x, x, x, padding, attn_mask=CAUSAL, need_weights=need_weights)
    expected, expected_weights = attention(x, x, x, padding, attn_mask=future_mask(6), need_weights=need_weights)
    assert_same(out, expected, 1e-6)
    assert (weights is None) == (expected_weights is None) == (not need_weights)
    if need_weights:
        assert_same(weights, expected_weights, 1e-6)


def test_an_unknown_word_for_a_mask_is_refused(attention):
    x = torch.randn(6, 3, 8)
    with pytest.raises(ConfigError, match="attn_mask 'past' is neither a tensor nor 'causal'"):
        attention(x, x, x, attn_mask="past")


@pytest.mark.parametrize("heads", [1, 2, 4])  # 12, 6 and 3 channels a head: none is a multiple of 8
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_projecting_together_changes_neither_output_nor_gradients(monkeypatch, heads, cross, need_weights):
    torch.manual_seed(0)
    attention = MultiheadAttention(12, heads, key_dim=10 if cross else None)
    x, memory = torch.randn(6, 3, 12, requires_grad=True), torch.randn(5, 3, 10, requires_grad=True)
    direction = torch.randn(6, 3, 12)

    def results():
        attention.zero_grad()
        x.grad = memory.grad = None
        key, padding = (memory, pad_mask()[:, 1:]) if cross else (x, pad_mask())
        out, weights = attention(x, key, key, padding, need_weights=need_weights)
        (out * direction).sum().backward()
        inputs = [x.grad, *([memory.grad] if cross else [])]
        return [out.detach(), *inputs, *(p.grad for p in attention.parameters())], weights

    expected, expected_weights = results()
    calls = []
    original = attention._project_together
    monkeypatch.setattr(attention, "_project_together", lambda *a: calls.append(1) or original(*a))
    monkeypatch.setattr(attention_module, "_fuses", lambda x: True)
    actual, weights = results()
    assert len(calls) == (2 if cross else 1)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_same(ours, theirs, 1e-5)
    if need_weights:
        assert_same(weights, expected_weights, 1e-6)
    attention.fuse_projections = False
    results()
    assert len(calls) == (2 if cross else 1)


class _KeepsLayouts(torch.autograd.Function):
    """Attention whose output and gradients lie in memory as a GPU's kernels leave them: in the order of the queries."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        with _disable_current_modes():
            return torch.empty_like(q).copy_(torch.softmax(q @ k.transpose(2, 3) * scale, -1) @ v)

    @staticmethod
    def backward(ctx, grad):
        assert grad.stride() == torch.empty_like(grad.permute(2, 0, 1, 3)).permute(1, 2, 0, 3).stride()
        with _disable_current_modes(), torch.enable_grad():
            given = [value.detach().requires_grad_() for value in ctx.saved_tensors]
            out = torch.softmax(given[0] @ given[1].transpose(2, 3) * ctx.scale, -1) @ given[2]
            found = torch.autograd.grad(out, given, grad)
            return (*(torch.empty_like(g).copy_(f) for g, f in zip(given, found, strict=True)), None)


class _Writes(TorchDispatchMode):
    """Counts, by name, the operators that write as much as a (T, B, C) tensor and compute nothing."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        moves = name in ("clone", "copy_", "cat", "stack", "constant_pad_nd", "slice_backward", "fill_", "zeros")
        if moves and isinstance(out, torch.Tensor) and out.numel() >= self.size:
            self.found[name] += 1
        return out


@pytest.mark.parametrize("cross", [False, True])
def test_on_a_gpu_activations_are_not_moved_but_to_join_the_gradients_of_queries_keys_and_values(monkeypatch, cross):
    """Heads of 6 channels are padded to 8, and a slice of the channels comes in."""
    torch.manual_seed(0)
    attention = MultiheadAttention(12, 2, key_dim=10 if cross else None)
    x, memory = torch.randn(40, 30, 24)[..., :12].requires_grad_(), torch.randn(40, 30, 10, requires_grad=True)
    direction = torch.randn(40, 30, 24)[..., 12:]
    key = memory if cross else x
    inputs = [x, memory, *attention.parameters()] if cross else [x, *attention.parameters()]
    expected = torch.autograd.grad(attention(x, key, key)[0], inputs, direction)
    monkeypatch.setattr(attention_module, "_fuses", lambda x: True)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, scale, **_: _KeepsLayouts.apply(q, k, v, scale)
    )
    with _Writes(40 * 30 * 12) as writes:
        found = torch.autograd.grad(attention(x, key, key)[0], inputs, direction)
    assert writes.found == {"cat": 1}
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, 1e-3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_of_short_sentences_computes_the_same(monkeypatch, cross, causal, masked):
    pytest.importorskip("triton")
    if cross and causal:
        pytest.skip("the encoder has no future")
    torch.manual_seed(0)
    attention = (
        MultiheadAttention(12, 2, key_dim=10 if cross else None, dropout=0.5, backend="triton").eval().to(DEVICE)
    )
    x = torch.randn(6, 3, 24, device=DEVICE)[..., 12:].requires_grad_()
    memory = torch.randn(6, 3, 10, device=DEVICE, requires_grad=True)
    key, inputs = (memory, [x, memory]) if cross else (x, [x])
    arguments = {"key_padding_mask": pad_mask().to(DEVICE) if masked else None, "attn_mask": CAUSAL if causal else None}
    calls = []
    original = ops.short_attention
    monkeypatch.setattr(ops, "short_attention", lambda *a, **k: calls.append(k["dropout"]) or original(*a, **k))
    found = []
    for together in (False, True):
        monkeypatch.setattr(attention, "fuse_projections", together)
        out, _ = attention(x, key, key, **arguments)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), [*inputs, *attention.parameters()])])
    assert calls == [0.0]
    for ours, theirs in zip(*found, strict=True):
        assert_same(ours, theirs, 1e-4)
    attention.train()(x, key, key, **arguments)
    assert calls == [0.0, 0.5]


def test_what_the_kernel_of_short_sentences_does_not_compute_goes_another_way(monkeypatch):
    pytest.importorskip("triton")
    attention = MultiheadAttention(8, 2, backend="triton").eval().to(DEVICE)
    x, y = torch.randn(6, 3, 8, device=DEVICE), torch.randn(65, 1, 8, device=DEVICE)
    monkeypatch.setattr(ops, "short_attention", lambda *_, **__: pytest.fail("asked"))
    attention(x, x, x, pad_mask().to(DEVICE), need_weights=True)
    attention(x, x, x, attn_mask=future_mask(6).to(DEVICE))
    attention(x, x, x.clone())
    attention(y, y, y)
    attention(x[:1], x[:1], x[:1], incremental_state={})
    attention.backend = "reference"
    attention(x, x, x)


def test_under_autocast_the_kernel_of_short_sentences_takes_halves(monkeypatch):
    pytest.importorskip("triton")
    torch.manual_seed(0)
    attention = MultiheadAttention(16, 2, backend="triton").eval().to(DEVICE)
    x = torch.randn(90, 2, 16, device=DEVICE)  # too long in fp32
    calls = []
    original = ops.short_attention
    monkeypatch.setattr(ops, "short_attention", lambda *a, **k: calls.append(1) or original(*a, **k))
    right = attention(x, x, x)[0]
    assert not calls
    with torch.autocast(DEVICE, torch.float16):
        found = attention(x, x, x)[0]
    assert calls and found.dtype == torch.float16
    assert_same(found.float(), right, 1e-2)


def test_a_row_without_any_key_is_the_output_bias_and_its_gradient_is_finite(attention):
    x = torch.randn(4, 2, 8, requires_grad=True)
    nothing = torch.tensor([[True] * 4, [False] * 4])
    out, _ = attention(x, x, x, nothing)
    assert_same(out[:, 0], attention.out_proj.bias.expand(4, 8), 1e-6)
    out.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("on_gpu", [False, True])  # there heads are padded to a width of 8
@pytest.mark.parametrize("with_padding", [False, True])
def test_step_by_step_equals_the_full_pass(attention, monkeypatch, with_padding, on_gpu):
    monkeypatch.setattr(attention_module, "_fuses", lambda x: on_gpu)
    x = torch.randn(6, 3, 8)
    padding = pad_mask() if with_padding else None
    full, _ = attention(x, x, x, padding, attn_mask=future_mask(6))
    state: dict = {}
    for t in range(6):
        now = None if padding is None else padding[:, t : t + 1]
        # fairseq passes no mask at a step without padding
        now = None if now is None or not now.any() else now
        step, _ = attention(x[t : t + 1], x[t : t + 1], x[t : t + 1], now, state)
        assert_same(step, full[t : t + 1], 1e-5)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_attention_to_the_encoder_is_projected_once_and_follows_the_beams(monkeypatch, on_gpu):
    monkeypatch.setattr(attention_module, "_fuses", lambda x: on_gpu)
    torch.manual_seed(0)
    attention = MultiheadAttention(8, 2, key_dim=6).eval()
    source, padding = torch.randn(5, 3, 6), torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
    query = torch.randn(2, 3, 8)
    state: dict = {}
    attention(query[:1], source, source, padding, state, static_kv=True)
    # a sentence is finished, then another one is: the rows are fewer, and no longer those of before
    for order in (torch.tensor([2, 1]), torch.tensor([1])):
        attention.reorder_incremental_state(state, order)
        source, padding, query = source[:, order], padding[order], query[:, order]
        second, _ = attention(query[1:], None, None, None, state, static_kv=True)
        expected, _ = attention(query[1:], source, source, padding)
        assert_same(second, expected, 1e-5)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_weights_of_a_step_are_those_of_the_full_pass(monkeypatch, on_gpu):
    monkeypatch.setattr(attention_module, "_fuses", lambda x: on_gpu)
    torch.manual_seed(0)
    attention = MultiheadAttention(8, 2).eval()
    source, query = torch.randn(5, 3, 8), torch.randn(1, 3, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    for asked in ({"need_weights": True}, {"need_head_weights": True}):
        _, expected = attention(query, source, source, padding, **asked)
        _, weights = attention(query, source, source, padding, {}, static_kv=True, **asked)
        assert_same(weights, expected, 1e-5)
    assert weights.shape == (2, 3, 1, 5)
    assert attention(query, source, source, padding, {}, static_kv=True)[1] is None


def test_the_beams_of_a_sentence_share_what_is_kept_of_it(attention):
    """Beams change places within their sentence; moving the encoder's keys about for that would be in vain."""
    source, query = torch.randn(5, 2, 8).repeat_interleave(2, dim=1), torch.randn(1, 4, 8)
    state: dict = {}
    attention(query, source, source, None, state, static_kv=True)
    kept = attention.read_source(state)["keys_values"]
    attention.reorder_incremental_state(state, torch.tensor([1, 1, 2, 2]))
    assert attention.read_source(state)["keys_values"] is kept
    out, _ = attention(query, None, None, None, state, static_kv=True)
    assert_same(out, attention(query, source, source)[0], 1e-5)


def test_a_source_of_padding_alone_is_the_output_bias_at_each_step(attention, monkeypatch):
    source, padding = torch.randn(4, 2, 8), torch.tensor([[True] * 4, [False] * 4])
    state: dict = {}
    for _ in range(2):
        out, _ = attention(torch.randn(1, 2, 8), source, source, padding, state, static_kv=True)
        assert_same(out[:, 0], attention.out_proj.bias.expand(1, 8), 1e-6)
    # of a whole sequence too, on kernels that average over hidden keys
    right = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention_module, "_fuses", lambda x: True)
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: right(*a, **{**k, "attn_mask": None})
    )
    out, _ = attention(torch.randn(3, 2, 8), source, source, padding, static_kv=True)
    assert_same(out[:, 0], attention.out_proj.bias.expand(3, 8), 1e-6)


def test_a_search_sees_the_weights_it_began_with_and_the_next_one_new_weights(attention):
    x = torch.randn(1, 3, 8)
    first, _ = attention(x, x, x, incremental_state={})
    with torch.no_grad():
        attention.v_proj.weight.mul_(2)
    second, _ = attention(x, x, x, incremental_state={})
    assert_same(second, attention(x, x, x)[0], 1e-5)
    assert (first - second).abs().max() > 1e-3


def test_initial_weights_have_the_published_scale():
    torch.manual_seed(0)
    attention = MultiheadAttention(256, 4)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert projection.weight.std().item() == pytest.approx((1 / 2**0.5) * (2 / 512) ** 0.5, rel=0.03)
    assert attention.out_proj.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.03)
    assert attention.out_proj.bias.abs().max() == 0


def test_heads_must_divide():
    with pytest.raises(ConfigError, match="3 heads do not divide an attention of 8 channels"):
        MultiheadAttention(8, 3)
