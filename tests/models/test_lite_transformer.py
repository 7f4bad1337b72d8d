"""The whole model: what must not depend on what, step-by-step decoding, every named architecture."""

import pytest
import torch
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY

from lite_transformer.errors import ConfigError, UnknownArchitectureError
from lite_transformer.models.architectures import ARCHITECTURES, find_architecture
from lite_transformer.models.config import LiteTransformerConfig, default_kernel_sizes
from lite_transformer.models.lite_transformer import LiteTransformerModel, resolved_config
from tests.helpers.compare import assert_same
from tests.helpers.models import TINY, batch, tiny_model, tiny_task

MIXES = {
    "paper_wmt": {},
    "paper_iwslt": {
        "encoder_branches": ["attention", "lightweight"],
        "encoder_conv_gate": "none",
        "decoder_conv_gate": "none",
        "cross_attention_heads": 4,
        "ffn_init": "widened",
    },
    "dynamic_only": {"encoder_branches": ["dynamic"]},
    "lightweight_only": {"encoder_branches": ["lightweight"]},
    "attention_only": {"encoder_branches": ["attention"]},
    "three_uneven": {
        "encoder_branches": ["dynamic", "attention", "lightweight"],
        "encoder_branch_dims": [4, 8, 4],
        "encoder_branch_heads": [2, 4, 1],
        "decoder_branches": ["attention", "dynamic"],
    },
    "pre_norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "long_kernels": {"encoder_kernel_sizes": [31], "decoder_kernel_sizes": [31]},
    "wider_decoder": {"decoder_embed_dim": 24, "decoder_ffn_embed_dim": 40},
    "one_branch_kernel": {"encoder_branch_kernel_sizes": [0, 5], "no_weight_softmax": True},
    "no_conv_linear": {
        "no_conv_linear": True, "encoder_conv_gate": "none", "decoder_conv_gate": "none", "layernorm_embedding": True,
    },
}  # fmt: skip
PAD, EOS = 1, 2


def mixes(function):
    return pytest.mark.parametrize("mix", MIXES)(function)


@mixes
def test_real_tokens_do_not_depend_on_padding(mix):
    model = tiny_model(**MIXES[mix])
    together = batch([9, 4, 6], PAD, EOS, left_pad=True)
    alone = together[1:2, -4:]
    out = model.encoder(together, torch.tensor([9, 4, 6]))["encoder_out"][0]
    single = model.encoder(alone, torch.tensor([4]))["encoder_out"][0]
    assert_same(out[-4:, 1:2], single, 1e-5)
    target = batch([7, 3, 5], PAD, EOS, left_pad=False, seed=1)
    scores, _ = model(together, torch.tensor([9, 4, 6]), target)
    single_scores, _ = model(alone, torch.tensor([4]), target[1:2, :3])
    assert_same(scores[1:2, :3], single_scores, 2e-5)


def test_the_reference_mask_placement_leaks_padding():
    model = tiny_model(conv_padding_mask="before_linear")
    together = batch([9, 4], PAD, EOS, left_pad=True)
    out = model.encoder(together, torch.tensor([9, 4]))["encoder_out"][0]
    single = model.encoder(together[1:2, -4:], torch.tensor([4]))["encoder_out"][0]
    assert (out[-4:, 1:2] - single).abs().max() > 1e-3


@mixes
def test_the_decoder_does_not_see_the_future(mix):
    model = tiny_model(**MIXES[mix])
    source, lengths = batch([6, 6], PAD, EOS, left_pad=True), torch.tensor([6, 6])
    target = batch([8, 8], PAD, EOS, left_pad=False, seed=1)
    changed = target.clone()
    changed[:, 5:] = 7
    before, after = model(source, lengths, target)[0], model(source, lengths, changed)[0]
    assert_same(after[:, :5], before[:, :5], 1e-5)


@mixes
def test_incremental_decoding_equals_the_full_pass_also_after_reordering(mix):
    model = tiny_model(**MIXES[mix])
    sentences = batch([6, 4, 5], PAD, EOS, left_pad=True)
    source, lengths = sentences.repeat_interleave(2, dim=0), torch.tensor([6, 4, 5]).repeat_interleave(2)
    target = batch([10] * 6, PAD, EOS, left_pad=False, seed=1)
    encoder_out = model.encoder(source, lengths)  # two beams a sentence
    state: dict = {}
    # as beam search does: a beam is dropped and the other one doubled; the second sentence is finished
    moves = {3: torch.tensor([1, 1, 2, 3, 5, 4]), 5: torch.tensor([0, 1, 5, 4]), 7: torch.tensor([0, 0, 3, 2])}
    for t in range(10):
        if t in moves:
            move = moves[t]
            target = torch.cat([target[move, :t], target[: len(move), t:]], dim=1)
            model.decoder.reorder_incremental_state_scripting(state, move)
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, move)
        step = model.decoder(target[:, : t + 1], encoder_out=encoder_out, incremental_state=state)[0]
        full = model.decoder(target[:, : t + 1], encoder_out=encoder_out)[0]
        assert_same(step[:, -1], full[:, t], 2e-5)


@mixes
def test_every_parameter_gets_a_gradient_and_state_is_saved_whole(mix):
    model = tiny_model(**MIXES[mix]).train()
    source, target = batch([9, 8], PAD, EOS, left_pad=True), batch([9, 8], PAD, EOS, left_pad=False)
    model(source, torch.tensor([9, 8]), target)[0].pow(2).sum().backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or (parameter.grad.abs().max() == 0 and not name.endswith("k_proj.bias"))
    ]
    assert without == []
    other = tiny_model(seed=1, **MIXES[mix])
    other.load_state_dict(model.state_dict())
    model.eval()
    lengths = torch.tensor([9, 8])
    assert_same(other(source, lengths, target)[0], model(source, lengths, target)[0], 0)


def test_activation_checkpointing_changes_no_gradient():
    plain, saving = tiny_model(), tiny_model(checkpoint_activations=True)
    saving.load_state_dict(plain.state_dict())
    source, target = batch([6, 5], PAD, EOS, left_pad=True), batch([6, 5], PAD, EOS, left_pad=False)
    for model in (plain, saving):
        model.train()
        model(source, torch.tensor([6, 5]), target)[0].pow(2).mean().backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert q.grad is not None, name
        assert_same(q.grad, p.grad, 1e-6)


def test_layer_drop_and_keeping_some_layers():
    model = tiny_model(encoder_layers=4, encoder_kernel_sizes=[3, 5, 7, 9], encoder_layerdrop=0.5).train()
    source, target = batch([6], PAD, EOS, left_pad=True), batch([6], PAD, EOS, left_pad=False)
    outputs = [model(source, torch.tensor([6]), target)[0] for _ in range(12)]
    assert any((out - outputs[0]).abs().max() > 1e-3 for out in outputs[1:])
    kept = tiny_model(encoder_layers=4, encoder_kernel_sizes=[3, 5, 7, 9], encoder_layers_to_keep="0,2")
    assert [layer.self_attn.branches[1].kernel_size for layer in kept.encoder.layers] == [3, 7]


def test_the_last_layers_attention_is_given_in_evaluation_and_skipped_in_training():
    model = tiny_model()
    source, target = batch([6], PAD, EOS, left_pad=True), batch([5], PAD, EOS, left_pad=False)
    attention = model(source, torch.tensor([6]), target)[1]["attn"][0]
    assert attention.shape == (1, 5, 6)
    assert_same(attention.sum(-1), torch.ones(1, 5), 1e-5)
    assert model.train()(source, torch.tensor([6]), target)[1]["attn"][0] is None


def test_feed_forward_initialisation():
    flat = LiteTransformerModel.build_model(LiteTransformerConfig(**(TINY | {"encoder_embed_dim": 256})), tiny_task())
    wide = LiteTransformerModel.build_model(
        LiteTransformerConfig(**(TINY | {"encoder_embed_dim": 256, "ffn_init": "widened"})), tiny_task()
    )
    assert flat.encoder.layers[0].fc1.weight.shape == (256, 256)
    assert flat.encoder.layers[0].fc1.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert wide.decoder.layers[1].fc2.weight.std().item() == pytest.approx((2 / 768) ** 0.5, rel=0.02)
    embedding = flat.encoder.embed_tokens.weight
    assert embedding[PAD].abs().max() == 0
    assert embedding[4:].std().item() == pytest.approx(256**-0.5, rel=0.1)


def test_every_architecture_is_registered_with_its_own_defaults():
    assert len(ARCHITECTURES) >= 25
    for name, row in ARCHITECTURES.items():
        assert name in ARCH_MODEL_REGISTRY
        defaults = MODEL_DATACLASS_REGISTRY[name]()
        for key, value in row.settings.items():
            assert getattr(defaults, key) == value
        # a switch that is on by default would turn off when typed
        assert not any(value is True for value in vars(defaults).values()), name


# language models: test_language_model
@pytest.mark.parametrize("name", [name for name, row in ARCHITECTURES.items() if not row.is_language_model])
def test_core_parameters_are_the_published_ones(name):
    row = find_architecture(name)
    with torch.device("meta"):
        model = ARCH_MODEL_REGISTRY[name].build_model(resolved_config(name), tiny_task(6, 7))
    core = sum(
        parameter.numel()
        for key, parameter in model.named_parameters()
        if "embed_tokens" not in key and "output_projection" not in key
    )
    assert core == row.core_params


def test_kernel_sizes_grow_with_depth():
    assert default_kernel_sizes(6) == [3, 7, 15, 31, 31, 31]
    assert default_kernel_sizes(2) == [3, 7]
    model = tiny_model(encoder_layers=5, encoder_kernel_sizes=None)
    assert [layer.self_attn.branches[1].kernel_size for layer in model.encoder.layers] == [3, 7, 15, 31, 31]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"encoder_branch_dims": [8, 6]}, r"branch widths 8 \+ 6 = 14 do not add up to --encoder-embed-dim 16"),
        ({"encoder_branch_heads": [2, 3]}, "encoder: 3 heads do not divide the dynamic branch of 8 channels"),
        ({"decoder_attention_heads": 5}, "decoder: 5 heads do not divide the attention branch of 8 channels"),
        ({"encoder_kernel_sizes": [3, 7, 15]}, "--encoder-kernel-sizes has 3 entries for --encoder-layers 2"),
        ({"encoder_kernel_sizes": [3, 8]}, "--encoder-kernel-sizes: 8 is even"),
        ({"encoder_branches": ["attention", "wavelet"]}, "unknown kind 'wavelet'; known kinds: attention, lightweight"),
        ({"encoder_branches": []}, "--encoder-branches is empty"),
        ({"encoder_embed_dim": 17}, "--encoder-embed-dim 17 does not split evenly into 2 branches"),
        ({"cross_attention_heads": 3}, "--cross-attention-heads 3 does not divide --decoder-embed-dim 16"),
        ({"dropout": 1.5}, "--dropout 1.5 is not a probability"),
        ({"encoder_layers_to_keep": "0,5"}, "--encoder-layers-to-keep 0,5: layers are numbered 0 to 1"),
        ({"encoder_branch_dims": [16]}, r"--encoder-branch-dims has 1 entries for 2 branches"),
    ],
)
def test_configurations_that_cannot_be_built_say_why(options, text):
    with pytest.raises(ConfigError, match=text):
        LiteTransformerModel.build_model(LiteTransformerConfig(**(TINY | options)), tiny_task())


def test_all_problems_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        LiteTransformerConfig.resolved(TINY | {"encoder_branch_dims": [8, 6], "decoder_kernel_sizes": [3, 5, 7]})
    assert "do not add up" in str(caught.value)
    assert "--decoder-kernel-sizes has 3 entries" in str(caught.value)


def test_sharing_needs_a_joined_dictionary():
    with pytest.raises(ConfigError, match="--share-all-embeddings needs a joined dictionary"):
        LiteTransformerModel.build_model(
            LiteTransformerConfig(**(TINY | {"share_all_embeddings": True})), tiny_task(10, 12)
        )


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(UnknownArchitectureError, match=r"unknown architecture 'lite'.*lite_transformer_wmt_en_fr"):
        resolved_config("lite")
