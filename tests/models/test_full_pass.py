"""The pass that never asks the device equals fairseq's own, and really never asks."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase
from torch._subclasses.fake_tensor import FakeTensorMode

from lite_transformer.models import full_pass
from lite_transformer.models.config import LiteTransformerConfig, TransformerBaselineConfig
from lite_transformer.models.lite_transformer import LiteTransformerModel, TransformerBaselineModel
from lite_transformer.modules import attention
from tests.helpers.compare import assert_same
from tests.helpers.models import TINY, batch, randomize_biases, tiny_model, tiny_task

PAD, EOS = 1, 2
BASELINE = {
    "encoder_embed_dim": 12,
    "encoder_ffn_embed_dim": 24,
    "decoder_ffn_embed_dim": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "dropout": 0.0,
}
FAMILIES = {
    "lite": (LiteTransformerModel, LiteTransformerConfig, TINY),
    "light": (LiteTransformerModel, LiteTransformerConfig, TINY | {"encoder_branches": ["attention", "lightweight"]}),
    "transformer": (TransformerBaselineModel, TransformerBaselineConfig, BASELINE),
    "pre_norm": (
        TransformerBaselineModel,
        TransformerBaselineConfig,
        BASELINE
        | {
            "encoder_normalize_before": True,
            "decoder_normalize_before": True,
            "encoder_learned_pos": True,
            "decoder_learned_pos": True,
            "layernorm_embedding": True,
            "share_all_embeddings": True,
        },
    ),
}  # fmt: skip


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Takes the paths of a GPU: values are not asked for, projections are fused."""
    monkeypatch.setattr(full_pass, "may_ask", lambda tensor: False)
    monkeypatch.setattr(attention, "_fuses", lambda x: True)


def build(family, left_pad_target=False, **options):
    model_class, config_class, settings = FAMILIES[family]
    torch.manual_seed(0)
    task = tiny_task()
    task.cfg = SimpleNamespace(left_pad_target=left_pad_target)
    model = model_class.build_model(config_class(**(settings | options)), task)
    randomize_biases(model)
    return model.train()


def stock(model, source, target):
    """Features by fairseq's own code, over the same layers."""
    encoder_out = TransformerEncoderBase.forward_scriptable(model.encoder, source, None, True)
    return encoder_out, TransformerDecoderBase.extract_features_scriptable(model.decoder, target, encoder_out)


BATCHES = {
    "left_padded_source": ([6, 3, 5], True, [4, 7, 2], False),
    "right_padded_source": ([6, 3, 5], False, [4, 7, 2], False),
    "no_padding": ([5, 5], True, [4, 4], False),
    "one_token": ([1], True, [1], False),
    "left_padded_target": ([6, 3, 5], True, [4, 7, 2], True),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_equals_fairseqs_pass_at_real_positions(family, name, device, request):
    source_lengths, left_source, target_lengths, left_target = BATCHES[name]
    source = batch(source_lengths, PAD, EOS, left_source)
    target = batch(target_lengths, PAD, EOS, left_target, seed=1)
    model = build(family, left_pad_target=left_target)
    real = target.ne(PAD)
    direction = torch.randn(*target.shape, model.decoder.embed_dim) * real.unsqueeze(-1)

    expected_encoder, (expected, expected_extra) = stock(model, source, target)
    (expected * direction).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    if device == "gpu":
        request.getfixturevalue("as_on_a_gpu")
    encoder_out = model.encoder(source, None, return_all_hiddens=True)
    features, extra = model.decoder.extract_features(target, encoder_out)
    (features * direction).sum().backward()

    assert_same(features[real], expected[real], 1e-5)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(gradients)
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert_same(parameter.grad, gradients[name], 1e-4)
    assert encoder_out.keys() == expected_encoder.keys()
    for key, values in expected_encoder.items():
        assert len(encoder_out[key]) == len(values)
        for ours, theirs in zip(encoder_out[key], values, strict=True):
            if theirs is None:
                assert ours is None
            elif theirs.dtype == torch.float32:
                at = (
                    source.ne(PAD).T if ours.shape[:2] == source.T.shape and key != "encoder_embedding" else slice(None)
                )
                assert_same(ours[at], theirs[at], 1e-5)
            else:
                assert torch.equal(ours, theirs)
    assert_same(encoder_out["encoder_states"][0], expected_encoder["encoder_states"][0], 0)  # zeros where padded
    assert extra.keys() == expected_extra.keys()
    assert len(extra["inner_states"]) == len(expected_extra["inner_states"])
    assert extra["attn"] == [None]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_weights_in_evaluation_are_fairseqs(family):
    model = build(family).eval()
    source, target = batch([6, 3], PAD, EOS, True), batch([4, 5], PAD, EOS, False)
    encoder_out, (_, expected) = stock(model, source, target)
    _, extra = model.decoder.extract_features(target, encoder_out)
    assert extra["attn"][0].shape == (2, 5, 6)
    assert_same(extra["attn"][0], expected["attn"][0], 1e-5)
    _, one_head = model.decoder.extract_features(target, encoder_out, alignment_layer=0, alignment_heads=1)
    _, (expected) = TransformerDecoderBase.extract_features_scriptable(
        model.decoder, target, encoder_out, alignment_layer=0, alignment_heads=1
    )
    assert_same(one_head["attn"][0], expected["attn"][0], 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_context_keeps_the_mask_of_padding(family, as_on_a_gpu):
    model = build(family)
    source, target = batch([6, 3], PAD, EOS, True), batch([4, 7], PAD, EOS, False)
    memory = model.encoder(source)
    features, _ = model.decoder.extract_features(target, memory, full_context_alignment=True)
    alone, _ = model.decoder.extract_features(target[:1, :4], model.encoder(source[:1]), full_context_alignment=True)
    if not family.startswith("li"):  # a convolution in the decoder stays causal
        assert_same(features[:1, :4], alone, 1e-5)
    assert not torch.isnan(features[target.ne(PAD)]).any()


@pytest.mark.parametrize("left_pad_target", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_value_of_the_batch_is_asked_for(family, left_pad_target, as_on_a_gpu):
    """Tensors without values make every question an error; a CUDA graph would not survive one either."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        model = build(family, left_pad_target, dropout=0.1, attention_dropout=0.1)
        source, target = torch.full((3, 8), 4), torch.full((3, 6), 5)
        features = model.decoder_features(source, target)
        assert features.shape == (3, 6, model.decoder.embed_dim)
        features.sum().backward()


def test_the_fake_tensors_would_notice_a_question():
    with FakeTensorMode(allow_non_fake_inputs=False):
        model = build("lite")
        with pytest.raises(Exception, match=r"data-dependent|aten\._local_scalar_dense"):
            model.decoder_features(torch.full((3, 8), 4), torch.full((3, 6), 5))


@pytest.mark.parametrize(("value", "expected"), [("True", True), (True, True), ("False", False), (None, False)])
def test_the_task_tells_how_targets_are_padded(value, expected):
    task = tiny_task()
    task.cfg = SimpleNamespace(left_pad_target=value)
    assert LiteTransformerModel.build_model(LiteTransformerConfig(**TINY), task).decoder.left_pad_target is expected


def test_a_task_that_does_not_say_pads_targets_on_the_right():
    model = LiteTransformerModel.build_model(LiteTransformerConfig(**TINY), tiny_task())
    assert model.decoder.left_pad_target is False


def test_training_mode_reaches_every_module_also_after_one_was_changed_alone():
    model = tiny_model()
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())
    model.decoder.layers[0].fc1.eval()
    model.train()
    assert all(module.training for module in model.modules())
    model.eval()
    assert not any(module.training for module in model.modules())


def test_modules_that_count_updates_are_told(monkeypatch):
    model = tiny_model()
    told = []
    monkeypatch.setattr(type(model.encoder), "set_num_updates", lambda self, n: told.append((self, n)), raising=False)
    model.set_num_updates(7)
    assert told == [(model.encoder, 7)]
