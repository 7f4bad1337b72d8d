"""Layers with kernels between their sublayers against fairseq's: on a GPU if there is one, else in the interpreter."""

import pytest
import torch

from lite_transformer import ops
from lite_transformer.models import sublayers
from lite_transformer.models.language_model import TransformerLanguageModel
from lite_transformer.models.lm_config import TransformerLMConfig
from lite_transformer.modules import MultiheadAttention
from lite_transformer.modules.convolution import ShortRangeConv
from tests.helpers.compare import assert_same
from tests.helpers.models import TINY_LM, randomize_biases, tiny_model, tiny_task
from tests.models.graph_cases import gradients, loss_of, sample

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("exact_products")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
LM_BASELINE = {name: value for name, value in TINY_LM.items() if name != "decoder_kernel_sizes"}


@pytest.fixture
def calls(monkeypatch):
    """How often each operation of a passage ran."""
    counts = {"residual_norm": 0, "dropout_add": 0}

    def counted(name):
        original = getattr(ops, name)

        def call(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(sublayers.ops, name, call)

    for name in counts:
        counted(name)
    return counts


def translation_model(backend, **options):
    """In training, without graphs; convolutions, which have tests of their own, stay with plain torch."""
    model = tiny_model(cuda_graphs="off", **options)
    choose(model, backend)
    return model.to(DEVICE).train()


def choose(model, backend):
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = "reference" if isinstance(module, ShortRangeConv) else backend


def step(model):
    """Loss and gradients of one batch; dropout draws from the same seed each time."""
    torch.manual_seed(0)
    loss = loss_of(model, *sample((2, 4, 3), 0, DEVICE))
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("options", [{}, PRE_NORM], ids=["post", "pre"])
def test_losses_and_gradients_are_those_of_fairseqs_layers(calls, options):
    plain, plain_gradients = step(translation_model("reference", **options))
    assert not any(calls.values())
    loss, found = step(translation_model("triton", **options))
    # two layers of two sublayers and two of three; a layer that norms first ends without a norm
    assert calls == {"residual_norm": 10, "dropout_add": 4 if options else 0}
    assert_same(loss, plain, 1e-3)
    for name, right in plain_gradients.items():
        assert_same(found[name], right, 1e-4 * max(1.0, right.abs().max().item()))


def test_language_models_take_the_kernels(calls):
    torch.manual_seed(0)
    model = TransformerLanguageModel.build_model(TransformerLMConfig(**LM_BASELINE), tiny_task())
    randomize_biases(model)
    model.to(DEVICE).train()
    tokens = torch.arange(4, 16, device=DEVICE).view(2, 6)
    found = []
    for backend in ("reference", "triton"):
        choose(model, backend)
        model.zero_grad()
        features = model.decoder.extract_features(tokens, None)[0]
        features.square().sum().backward()
        found.append([features.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert calls == ({"residual_norm": 4, "dropout_add": 2} if backend == "triton" else dict.fromkeys(calls, 0))
    assert len(found[0]) > 20
    for mine, right in zip(found[1], found[0], strict=True):
        assert_same(mine, right, 1e-4 * max(1.0, right.abs().max().item()))


@pytest.mark.parametrize("options", [{}, PRE_NORM], ids=["post", "pre"])
def test_dropout_is_drawn_anew_at_each_place_and_each_pass(monkeypatch, options):
    model = translation_model("triton", dropout=0.5, **options)
    seeds = []
    original = ops.residual_norm, ops.dropout_add

    def recorded(function):
        def call(*args, dropout=0.0, seed=None, **kwargs):
            seeds.extend([] if seed is None else [seed.item()])
            assert (dropout == 0.5) == (seed is not None)
            return function(*args, dropout=dropout, seed=seed, **kwargs)

        return call

    monkeypatch.setattr(sublayers.ops, "residual_norm", recorded(original[0]))
    monkeypatch.setattr(sublayers.ops, "dropout_add", recorded(original[1]))
    batch = sample((2, 4, 3), 0, DEVICE)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            losses.append(loss_of(model, *batch).item())
    first, again, other = seeds[:10], seeds[10:20], seeds[20:]
    assert len({*first, *other}) == 20 and first == again  # ten sublayers
    assert losses[0] == losses[1] != losses[2]


def test_activation_checkpointing_sees_the_same_dropout_again():
    """The layer first runs without recording gradients, then with."""
    plain, plain_gradients = step(translation_model("triton", dropout=0.3))
    loss, found = step(translation_model("triton", dropout=0.3, checkpoint_activations=True))
    assert_same(loss, plain, 1e-4)
    for right, mine in zip(plain_gradients.values(), found.values(), strict=True):
        assert_same(mine, right, 1e-4 * max(1.0, right.abs().max().item()))


def test_evaluation_and_decoding_are_left_to_fairseqs_layers(calls):
    model = translation_model("triton")
    source, target = sample((2, 4, 3), 0, DEVICE)
    memory = model.encoder(source)  # of training: kernels
    assert calls["residual_norm"] == 4
    model.decoder(target[:, :1], memory, incremental_state={})
    model.decoder(target, memory, alignment_layer=0)  # asks for attention weights of the first layer
    assert calls["residual_norm"] == 7
    model.eval()
    with torch.no_grad():
        model(source, None, target)
    assert calls["residual_norm"] == 7


def test_on_auto_a_cpu_trains_as_ever(calls):
    model = tiny_model(cuda_graphs="off").train()
    loss_of(model, *sample((2, 4, 3), 0)).backward()
    assert not any(calls.values())


def test_the_option_reaches_every_part():
    model = tiny_model(conv_backend="reference")
    layers = [*model.encoder.layers, *model.decoder.layers]
    attentions = [module for module in model.modules() if isinstance(module, MultiheadAttention)]
    chosen = [module.backend for layer in layers for module in layer.modules() if hasattr(module, "backend")]
    assert len(attentions) == 6 and {*chosen} == {"reference"}
    # the layer, fc1 and fc2, a convolution with three linear layers, attentions with four
    assert len(chosen) == 4 * 3 + 4 * 4 + 6 * 5
