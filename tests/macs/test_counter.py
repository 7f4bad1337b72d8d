"""The counter against the closed form on odd configurations, and against hand-counted modules."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lite_transformer.errors import ConfigError, UnknownOperatorError
from lite_transformer.macs.closed_form import closed_form
from lite_transformer.macs.counter import FORMULAS, FREE, build_model, count_macs, count_model
from lite_transformer.models.lite_transformer import resolved_config
from lite_transformer.modules import DynamicConv, LightweightConv, MultiheadAttention
from lite_transformer.modules import attention as attention_module

_KINDS = ("attention", "lightweight", "dynamic")


@st.composite
def _side(draw, causal):
    """Branches of one side: kinds, widths, heads, kernel sizes of layers and branches."""
    kinds = draw(st.lists(st.sampled_from(_KINDS), min_size=1, max_size=3))
    heads = [draw(st.sampled_from([1, 2, 3])) for _ in kinds]
    # an even number of channels, at least 4: fairseq's sinusoidal positions take no less
    dims = [head * draw(st.sampled_from([2, 4])) for head in heads]
    if sum(dims) < 4:
        dims = [4]
    sizes = st.integers(1, 9) if causal else st.sampled_from([1, 3, 5, 9])
    layers = draw(st.integers(1, 3))
    return {
        "embed_dim": sum(dims),
        "branches": kinds,
        "branch_dims": dims,
        "branch_heads": heads,
        "branch_kernel_sizes": [draw(st.sampled_from([0, 3])) for _ in kinds],
        "kernel_sizes": [draw(sizes) for _ in range(layers)],
        "layers": layers,
        "ffn_embed_dim": draw(st.sampled_from([None, 6, 20])),
        "conv_gate": draw(st.sampled_from(["glu", "none"])),
        "normalize_before": draw(st.booleans()),
    }


@st.composite
def _options(draw):
    options = {}
    for side in ("encoder", "decoder"):
        options |= {f"{side}_{key}": value for key, value in draw(_side(side == "decoder")).items()}
    linear = draw(st.booleans())
    gates = {} if linear else {"encoder_conv_gate": "none", "decoder_conv_gate": "none"}
    return options | {
        "cross_attention_heads": draw(st.sampled_from([1, 2])),
        "no_conv_linear": not linear,
        "no_weight_softmax": draw(st.booleans()),
        "share_decoder_input_output_embed": draw(st.booleans()),
        "layernorm_embedding": draw(st.booleans()),
        "encoder_learned_pos": draw(st.booleans()),
        **gates,
    }


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    options=_options(), source=st.integers(1, 12), target=st.integers(1, 12), vocabs=st.tuples(*[st.integers(6, 9)] * 2)
)
def test_counter_agrees_with_closed_form_in_every_component(options, source, target, vocabs):
    config = resolved_config("lite_transformer", **options)
    model = build_model(config, *vocabs)
    counted = count_model(model, source, target)
    assert counted == closed_form(config, source, target, *vocabs)
    assert counted.params_total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_embed_dim": 24, "decoder_embed_dim": 16},
        {"encoder_normalize_before": True, "decoder_normalize_before": True, "layernorm_embedding": True},
        {"encoder_learned_pos": True, "decoder_learned_pos": True, "max_source_positions": 50},
        {"no_token_positional_embeddings": True, "share_decoder_input_output_embed": True},
        {"encoder_layers_to_keep": "0,2", "decoder_layers_to_keep": "1"},
        {"share_all_embeddings": True},
    ],
)
def test_counter_agrees_on_transformer_baselines(options):
    small = {
        "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 40, "decoder_ffn_embed_dim": 24, "encoder_layers": 3,
        "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
    }  # fmt: skip
    config = resolved_config("transformer_wmt_en_de_87m", **(small | options))
    model = build_model(config, 8, 8)
    if config.share_all_embeddings:
        assert model.encoder.embed_tokens is model.decoder.embed_tokens
    counted = count_model(model, 9, 4)
    assert counted == closed_form(config, 9, 4, 8, 8)
    assert counted.params_total == sum(parameter.numel() for parameter in model.parameters())
    assert FREE.isdisjoint(FORMULAS)


LM = {"decoder_embed_dim": 16, "decoder_layers": 3, "decoder_attention_heads": 2, "tokens_per_sample": 40}
BANDS = {"adaptive_input_cutoff": [6, 9], "adaptive_softmax_cutoff": [6, 9]}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lite_transformer_lm", BANDS | {"decoder_kernel_sizes": [3, 5, 9]}),
        ("lite_transformer_lm", BANDS | {"untie_adaptive_proj": True, "final_norm": True}),
        ("lite_transformer_lm", BANDS | {"untie_adaptive_weights": True, "decoder_branches": ["lightweight"]}),
        ("lite_transformer_lm", {"adaptive_softmax_cutoff": [5, 12], "decoder_learned_pos": True}),
        ("lite_transformer_lm", {"adaptive_input_cutoff": [5], "decoder_layers_to_keep": "1"}),
        ("transformer_lm_baseline", {"share_decoder_input_output_embed": True, "layernorm_embedding": True}),
        ("transformer_lm_baseline", BANDS | {"adaptive_factor": 2.0, "decoder_ffn_embed_dim": 40}),
    ],
)
def test_counter_agrees_on_language_models(name, options):
    config = resolved_config(name, **(LM | options))
    model = build_model(config, target_types=14)
    counted = count_model(model, 0, 7)
    assert counted == closed_form(config, 0, 7, 0, 14)
    assert counted.params_total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.source_length == 0


def test_language_model_by_hand():
    """Two layers of 16 channels, kernels 3 and 7, 2 heads of each branch, 5 tokens; bands of 6, 3 and 5 types."""
    options = {"decoder_layers": 2, "decoder_kernel_sizes": [3, 7]}
    report = closed_form(resolved_config("lite_transformer_lm", **(LM | BANDS | options)), 0, 5, 0, 14)
    layer = 4 * 64 * 5 + 2 * 25 * 8 + 3 * 64 * 5 + 2 * 256 * 5
    assert report.macs == 2 * layer + 2 * (3 + 7) * 8 * 5 + 256 * 5
    assert report.taps_macs == (3 + 7) * 8 * 5
    assert report.params_core == 2 * (7 * 64 + 7 * 8 + 2 * 256 + 2 * 16 + 4 * 16) + 2 * (3 + 7) * 8
    assert report.params_embeddings == 6 * 16 + 16 * 16 + 3 * 4 + 4 * 16 + 5 * 1 + 1 * 16
    assert report.params_output == 2 * 16
    assert report.output_macs == 5 * (16 * 8 + 16 * 4 + 4 * 3 + 16 * 1 + 1 * 5)


@pytest.mark.parametrize(
    ("options", "length", "vocab", "text"),
    [
        (BANDS, 0, 14, "length 0 is not a positive number"),
        (BANDS, 5, 8, "--adaptive-input-cutoff 6,9 does not fit a vocabulary of 8 types"),
        ({"decoder_learned_pos": True}, 41, 14, "length 41 is over max_target_positions 40"),
    ],
)
def test_language_model_sizes_that_do_not_fit(options, length, vocab, text):
    with pytest.raises(ConfigError, match=text):
        closed_form(resolved_config("lite_transformer_lm", **(LM | options)), 0, length, 0, vocab)


def test_hand_counted_modules():
    x = torch.randn(5, 2, 6)  # (T, B, C)
    assert count_macs(nn.Linear(6, 4), x).macs == {"": 5 * 2 * 6 * 4}
    # 4 projections, then Q K^T and P V: (T, B, C) with any number of heads
    attention = count_macs(MultiheadAttention(6, 2), x, x, x)
    projections = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), 5 * 2 * 36)
    assert attention.macs == projections | {"": 2 * 2 * 25 * 6}
    assert attention.taps == {}
    spelled_out = count_macs(MultiheadAttention(6, 2), x, x, x, need_weights=True)
    assert spelled_out == attention
    light = count_macs(LightweightConv(6, 9, 2, causal=True), x)
    assert light.taps == {"": 5 * 2 * 6 * 9}, "a kernel longer than the sequence costs its full width"
    assert light.macs == {"linear1": 5 * 2 * 36, "linear2": 5 * 2 * 36}
    dynamic = count_macs(DynamicConv(6, 3, 2, causal=False, gate=True), x)
    assert dynamic.taps == {"": 5 * 2 * 6 * 3}
    assert dynamic.macs == {"linear1": 5 * 2 * 72, "linear2": 5 * 2 * 36, "weight_linear": 5 * 2 * 6 * 6}


def test_torch_own_layers():
    x = torch.randn(2, 4, 10)
    assert count_macs(nn.Conv1d(4, 6, 3, groups=2), x).macs == {"": 2 * 6 * 8 * 2 * 3}
    assert count_macs(nn.ConvTranspose1d(4, 6, 3), x).macs == {"": 2 * 4 * 10 * 6 * 3}

    class Products(nn.Module):
        def forward(self, a, b):
            return torch.baddbmm(torch.zeros(2, 3, 3), a, b) + torch.einsum("bij,bjk->bik", a, b) + a @ b

    a, b = torch.randn(2, 3, 5), torch.randn(2, 5, 3)
    assert count_macs(Products(), a, b).macs == {"": 3 * (2 * 3 * 5 * 3)}


def test_composed_operators_are_taken_apart_in_inference_mode():
    x = torch.randn(5, 6)
    with torch.inference_mode():
        assert count_macs(nn.Linear(6, 4), x).macs == {"": 5 * 6 * 4}


@pytest.mark.parametrize(
    ("compute", "operator"),
    [
        (lambda x: torch.linalg.solve(x, x), "aten::_linalg_solve_ex"),
        (lambda x: torch.cdist(x, x), "aten::_cdist_forward"),
        (lambda x: torch.fft.fft(x), "aten::_fft_r2c"),
        (lambda x: F.bilinear(x, x, torch.ones(2, 4, 4)), "aten::_trilinear"),
    ],
)
def test_unknown_operator_is_an_error_and_not_zero(compute, operator):
    class Unknown(nn.Module):
        def forward(self, x):
            return compute(x)

    assert operator not in FORMULAS and operator not in FREE
    with pytest.raises(UnknownOperatorError, match=f"no formula for operator {operator}"):
        count_macs(Unknown(), torch.eye(4))


def test_product_in_an_unknown_place_is_an_error():
    model = build_model(resolved_config("transformer_iwslt_de_en_63m", encoder_layers=1, decoder_layers=1))
    model.encoder.add_module("extra", nn.Linear(128, 128))
    with pytest.raises(UnknownOperatorError, match=r"does not know what component module 'encoder\.extra'"):
        count_model(model, 3, 3)


def test_heads_that_a_gpu_pads_are_counted_at_their_width(monkeypatch):
    config = resolved_config("lite_transformer_iwslt_de_en", encoder_layers=1, decoder_layers=1)  # heads of 20 channels
    model = build_model(config, 30, 30)
    monkeypatch.setattr(attention_module, "_fuses", lambda x: True)
    assert count_model(model, 7, 5).macs == closed_form(config, 7, 5, 30, 30).macs
    assert all(module.fuse_projections for module in model.modules() if isinstance(module, MultiheadAttention))


def test_counting_leaves_the_model_as_it_was():
    model = build_model(resolved_config("lite_transformer_iwslt_de_en", encoder_layers=1, decoder_layers=1))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_model(model, 3, 4)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
