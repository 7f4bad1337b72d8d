"""The language models: causality, step-by-step decoding, adaptive input and softmax, configuration."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.modules import AdaptiveInput, AdaptiveSoftmax

from lite_transformer.errors import ConfigError
from lite_transformer.models.adaptive import BandedInput, BandedSoftmax
from lite_transformer.models.architectures import ARCHITECTURES
from lite_transformer.models.language_model import TransformerLanguageModel
from lite_transformer.models.lite_transformer import resolved_config
from lite_transformer.models.lm_config import LiteTransformerLMConfig, TransformerLMConfig, default_lm_kernel_sizes
from lite_transformer.modules import LongShortRangeAttention
from tests.helpers.compare import assert_same
from tests.helpers.models import TINY_LM, randomize_biases, tiny_language_model, tiny_task

TYPES = 24


def transformer(**options) -> TransformerLanguageModel:
    torch.manual_seed(1)
    small = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_layers": 2, "decoder_attention_heads": 4}
    config = TransformerLMConfig(**(small | {"dropout": 0.0} | options))
    model = TransformerLanguageModel.build_model(config, tiny_task())
    randomize_biases(model)
    return model.eval()


MODELS = {
    "lite": tiny_language_model,
    "lite, lightweight": lambda: tiny_language_model(decoder_branches=["lightweight", "attention"]),
    "lite, one table": lambda: tiny_language_model(
        adaptive_input_cutoff=None, adaptive_softmax_cutoff=None, share_decoder_input_output_embed=True
    ),
    "transformer": transformer,
    "transformer, adaptive": lambda: transformer(adaptive_input_cutoff=[9], adaptive_softmax_cutoff=[9]),
}


def words(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, TYPES, (batch, length), generator=torch.Generator().manual_seed(seed))


def log_probs(model, tokens: torch.Tensor, **options) -> torch.Tensor:
    with torch.no_grad():
        return model.get_normalized_probs(model(tokens, **options), log_probs=True)


@pytest.mark.parametrize("name", MODELS)
def test_step_by_step_equals_the_full_pass(name):
    model = MODELS[name]()
    tokens = words(3, 12)
    full = log_probs(model, tokens)
    assert full.shape == (3, 12, TYPES)
    assert_same(full.exp().sum(-1), torch.ones(3, 12), atol=1e-5)
    state: dict = {}
    for step in range(12):
        one = log_probs(model, tokens[:, : step + 1], incremental_state=state)
        assert_same(one[:, 0], full[:, step], atol=1e-5)
        if step == 5:  # the rows change places, as the beams of a search do
            order = torch.tensor([2, 0, 0])
            tokens, full = tokens[order], full[order]
            model.decoder.reorder_incremental_state_scripting(state, order)


@pytest.mark.parametrize("name", MODELS)
def test_the_future_and_the_padding_do_not_touch_the_past(name):
    model = MODELS[name]()
    tokens = words(2, 10)
    changed = tokens.clone()
    changed[:, 6:] = words(2, 4, seed=5)
    padded = F.pad(tokens, (0, 5), value=1)
    expected = log_probs(model, tokens)
    assert_same(log_probs(model, changed)[:, :6], expected[:, :6], atol=1e-5)
    assert_same(log_probs(model, padded)[:, :10], expected, atol=1e-5)
    assert (log_probs(model, changed)[:, 6:] - expected[:, 6:]).abs().max() > 1e-2


def test_layers_are_the_papers():
    model = tiny_language_model(final_norm=True)
    first = model.decoder.layers[0]
    assert isinstance(first.self_attn, LongShortRangeAttention)
    assert (first.normalize_before, first.encoder_attn) == (True, None)
    assert [layer.self_attn.branches[1].kernel_size for layer in model.decoder.layers] == [3, 7]
    assert all(
        layer.self_attn.branches[1].gate and layer.self_attn.branches[1].causal for layer in model.decoder.layers
    )
    assert first.fc1.weight.shape == (16, 16)
    assert model.decoder.layer_norm is not None and tiny_language_model().decoder.layer_norm is None
    assert default_lm_kernel_sizes(12) == [15, 15, 31, 31, 31, 31, 63, 63, 63, 63, 63, 63]


def test_tables_and_projections_are_tied():
    decoder = tiny_language_model().decoder
    bands, softmax = decoder.embed_tokens.embeddings, decoder.adaptive_softmax
    assert softmax.head.word_proj.weight is bands[0][0].weight
    assert softmax.tail[0][2].weight is bands[1][0].weight and softmax.tail[0][0].weight is bands[1][1].weight
    assert softmax.tail[1][2].weight is bands[2][0].weight
    names = {name for name, _ in decoder.named_parameters()}
    assert {name for name in names if "softmax" in name} == {"adaptive_softmax.head.class_proj.weight"}
    untied = tiny_language_model(untie_adaptive_weights=True).decoder
    assert not hasattr(untied.adaptive_softmax.head, "word_proj")


def banded(cls_input, cls_softmax, tied: bool = True):
    torch.manual_seed(3)
    embedding = cls_input(TYPES, 1, 16, 4.0, 16, [8, 14])
    torch.manual_seed(4)
    return embedding, cls_softmax(
        TYPES, 16, [8, 14], dropout=0.0, adaptive_inputs=embedding if tied else None, tie_proj=tied
    )


def test_adaptive_input_is_fairseqs_on_both_ways():
    ours, theirs = banded(BandedInput, AdaptiveSoftmax)[0], banded(AdaptiveInput, AdaptiveSoftmax)[0]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    tokens = torch.cat([words(2, 30), torch.tensor([[0, 1, 2, 3, 7, 8, 13, 14, 23, 1]] * 2)], dim=1)
    upstream = torch.randn(2, 40, 16)
    results = []
    for module, compute in ((theirs, theirs), (ours, ours), (ours, ours.in_every_band)):
        module.zero_grad()
        out = compute(tokens)
        out.backward(upstream)
        results.append([out.detach(), *(p.grad.clone() for p in module.parameters())])
    for found in results[1:]:
        for one, other in zip(found, results[0], strict=True):
            assert_same(one, other, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_adaptive_softmax_is_fairseqs(tied):
    ours, theirs = banded(BandedInput, BandedSoftmax, tied)[1], banded(AdaptiveInput, AdaptiveSoftmax, tied)[1]
    x, target = torch.randn(2, 9, 16), words(2, 9)
    with torch.no_grad():
        expected = theirs.get_log_prob(x, None)
        assert_same(ours.get_log_prob(x, None), expected, atol=1e-6)
        chosen = expected.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        with_target = ours.get_log_prob(x, target).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        assert_same(with_target, chosen, atol=1e-6)
        assert_same(ours.target_log_probs(x.flatten(0, 1), target.flatten()), chosen.flatten(), atol=1e-6)
        frequent = torch.full((18,), 5)  # nothing in the narrow bands
        found = ours.target_log_probs(x.flatten(0, 1), frequent)
        assert_same(found, expected.flatten(0, 1)[:, 5], atol=1e-6)
        for one, other in zip(ours(x, target)[0], theirs(x, target)[0], strict=True):
            assert_same(one, other, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_summed_in_fp32(dtype):
    """16,384 tokens of a loss of about 5 are beyond fp16, and bf16 has three digits."""
    model = tiny_language_model(seed=2)
    tokens = words(64, 256, seed=1)
    sample = {"net_input": {"src_tokens": tokens}, "target": tokens.roll(1, 1)}
    criterion = AdaptiveLoss(SimpleNamespace(target_dictionary=tiny_task().target_dictionary), sentence_avg=False)
    loss, size, _ = criterion(model, sample)
    low, _, _ = criterion(model.to(dtype), sample)
    assert size == 16_384 and loss.item() > 65_504
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(loss.item(), rel=2e-3)
    low.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", [name for name, row in ARCHITECTURES.items() if row.is_language_model])
def test_named_architectures_are_built(name):
    config = resolved_config(name, tokens_per_sample=3072)
    types = 60_002 if config.has_adaptive_bands else 9
    with torch.device("meta"):
        model = ARCH_MODEL_REGISTRY[name].build_model(config, tiny_task(types - 4))
    core = sum(
        p.numel() for n, p in model.named_parameters() if not n.split(".")[1].startswith(("embed", "adap", "out"))
    )
    assert core == ARCHITECTURES[name].core_params
    assert model.max_positions() == 3072


def test_the_paper_s_dropouts():
    config = resolved_config("lite_transformer_lm_wikitext103")
    drops = (config.dropout, config.attention_dropout, config.weight_dropout, config.activation_dropout)
    assert drops == (0.21, 0.14, 0.14, 0.1)
    assert config.adaptive_softmax_dropout == 0.2


def build(**options):
    config = LiteTransformerLMConfig(**(TINY_LM | options))
    return ARCH_MODEL_REGISTRY["lite_transformer_lm"].build_model(config, tiny_task())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"adaptive_input_cutoff": [8, 25], "adaptive_softmax_cutoff": [8, 25]},
            "--adaptive-input-cutoff 8,25 does not fit a vocabulary of 24 types",
        ),
        ({"adaptive_softmax_cutoff": [14, 8]}, "--adaptive-softmax-cutoff 14,8: write growing numbers of types"),
        ({"adaptive_input_cutoff": []}, "--adaptive-input-cutoff (empty): write growing numbers"),
        ({"adaptive_input_cutoff": [8]}, "[8] and --adaptive-softmax-cutoff [8, 14] differ: tied tables need the same"),
        (
            {"adaptive_input_cutoff": [8, 23], "adaptive_softmax_cutoff": [8, 23]},
            "8,23: a band of one type (24 in all)",
        ),
        ({"adaptive_input_cutoff": [1, 9], "adaptive_softmax_cutoff": [1, 9]}, "1,9: a band of one type; each needs"),
        ({"adaptive_factor": 8.0}, "3 bands leave 0 of 16 channels to the last one at --adaptive-factor 8"),
        ({"share_decoder_input_output_embed": True}, "is for models without cutoffs"),
        ({"tokens_per_sample": 64, "max_target_positions": 32}, "--tokens-per-sample 64 is longer than the positions"),
        ({"decoder_branch_dims": [8, 4]}, "8 + 4 = 12 do not add up to --decoder-embed-dim 16"),
        ({"decoder_kernel_sizes": [3, 5, 7]}, "--decoder-kernel-sizes has 3 entries for --decoder-layers 2"),
        ({"weight_dropout": 2.0, "dropout": -1.0}, "--dropout -1.0 is not a probability; --weight-dropout 2.0 is not"),
        ({"decoder_layers": 0}, "--decoder-layers 0 is not a positive number"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(options, text):
    with pytest.raises(ConfigError) as error:
        build(**options)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_heads_of_the_baseline_divide_its_channels():
    with pytest.raises(ConfigError, match="--decoder-attention-heads 3 does not divide --decoder-embed-dim 16"):
        transformer(decoder_attention_heads=3)


def test_a_vocabulary_may_end_at_the_last_cutoff():
    model = build(adaptive_input_cutoff=[8, 24], adaptive_softmax_cutoff=[8, 24]).eval()
    assert len(model.decoder.embed_tokens.embeddings) == 2
    assert log_probs(model, words(1, 4)).shape == (1, 4, TYPES)


def test_layers_to_keep():
    model = build(decoder_layers_to_keep="1")
    assert [layer.self_attn.branches[1].kernel_size for layer in model.decoder.layers] == [7]
