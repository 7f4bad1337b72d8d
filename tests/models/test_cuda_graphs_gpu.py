"""CUDA graphs on a real device: what they compute is what the eager pass computes, and they get out of the way."""

import logging
import math

import pytest
import torch

from lite_transformer.models import cuda_graphs
from tests.helpers.compare import assert_same
from tests.models.graph_cases import build, gradients, loss_of, sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("exact_products"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPES = [(3, 6, 5), (3, 6, 5), (40, 30, 27), (3, 7, 5), (40, 29, 27), (1, 1, 1), (17, 9, 30), (1, 1, 1), (40, 30, 28)]
# dtype of the parameters, autocast, how far a sum of about a hundred terms may be off (relative to the largest value)
PRECISIONS = {
    "fp32": (torch.float32, False, 2e-4),
    "bf16": (torch.bfloat16, False, 6e-2),
    "amp": (torch.float32, True, 2e-2),
}


def on_gpu(family, dtype=torch.float32, **options):
    return build(family, **options).to("cuda", dtype)


def close(actual, expected, relative):
    assert_same(actual, expected, relative * max(1.0, expected.abs().max().item()))


def captured(model):
    return len(model.graphs._passes)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["lite", "shared", "transformer"])
def test_losses_and_gradients_are_those_of_the_eager_pass(family, precision):
    dtype, autocast, relative = PRECISIONS[precision]
    model, plain = on_gpu(family, dtype), on_gpu(family, dtype, cuda_graphs="off")
    for step, shape in enumerate(SHAPES * 2):
        source, target = sample(shape, step, "cuda")
        losses = []
        for each in (model, plain):
            each.zero_grad()
            with torch.autocast("cuda", torch.float16, enabled=autocast):
                loss = loss_of(each, source, target)
            loss.backward()
            losses.append(loss.detach())
        close(*losses, relative)
        for ours, expected in zip(gradients(model).values(), gradients(plain).values(), strict=True):
            close(ours, expected, relative)
    assert captured(model) == 4
    assert captured(plain) == 0


@pytest.mark.parametrize("family", ["lite", "transformer"])
def test_gradients_of_two_batches_accumulate_and_survive_the_next_replay(family):
    model, plain = on_gpu(family), on_gpu(family, cuda_graphs="off")
    for update in range(4):
        for each in (model, plain):
            each.zero_grad()
            for part, shape in enumerate([(3, 6, 5), (40, 30, 27)]):
                loss_of(each, *sample(shape, 10 * update + part, "cuda")).backward()
        for ours, expected in zip(gradients(model).values(), gradients(plain).values(), strict=True):
            close(ours, expected, 2e-4)
    held = {name: p.grad for name, p in model.named_parameters()}
    before = gradients(model)
    model.zero_grad()
    loss_of(model, *sample((3, 6, 5), 99, "cuda")).backward()
    for name, value in held.items():
        assert_same(value, before[name], 0)


def test_two_forwards_before_a_backward():
    model, plain = on_gpu("lite"), on_gpu("lite", cuda_graphs="off")
    for each in (model, plain):
        for step in range(3):
            loss_of(each, *sample((3, 6, 5), step, "cuda")).backward()
        each.zero_grad()
        first, second = (loss_of(each, *sample((3, 6, 5), step, "cuda")) for step in (5, 6))
        second.backward(), first.backward()
    for ours, expected in zip(gradients(model).values(), gradients(plain).values(), strict=True):
        close(ours, expected, 2e-4)


def test_dropout_differs_between_replays_and_follows_the_seed():
    model = on_gpu("lite", dropout=0.3, attention_dropout=0.2, weight_dropout=0.2)
    batch = sample((3, 6, 5), 0, "cuda")

    def step(seed):
        torch.manual_seed(seed)
        loss = loss_of(model, *batch)
        loss.backward()
        return loss.item()

    eager = step(7)
    replayed = [step(seed) for seed in (7, 8, 7)]
    assert captured(model) == 1
    assert replayed[0] == replayed[2] != replayed[1]
    # captured or not, a batch draws the same numbers
    assert replayed[0] == pytest.approx(eager, rel=1e-4)


def test_updated_parameters_are_seen_by_the_graph():
    model, plain = on_gpu("lite"), on_gpu("lite", cuda_graphs="off")
    for each in (model, plain):
        optimizer = torch.optim.SGD(each.parameters(), lr=1e-3)
        for step in range(8):
            optimizer.zero_grad()
            loss_of(each, *sample((3, 6, 5), step, "cuda")).backward()
            optimizer.step()
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        close(ours.detach(), expected.detach(), 2e-3)


def test_evaluation_between_training_steps_leaves_the_graphs_alone():
    model, plain = on_gpu("lite"), on_gpu("lite", cuda_graphs="off")
    losses = []
    for each in (model, plain):
        for step in range(6):
            each.train()
            loss_of(each, *sample((3, 6, 5), step, "cuda")).backward()
            each.eval()
            with torch.no_grad():
                losses.append(loss_of(each, *sample((9, 12, 11), step, "cuda")))
    for ours, expected in zip(losses[:6], losses[6:], strict=True):
        close(ours, expected, 2e-4)
    for ours, expected in zip(gradients(model).values(), gradients(plain).values(), strict=True):
        close(ours, expected, 2e-4)


def test_a_capture_that_fails_leaves_nothing_behind(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    model, plain = on_gpu("lite", dropout=0.1), on_gpu("lite", dropout=0.1, cuda_graphs="off")
    features = model.decoder_features

    def asks(source, target):
        out = features(source, target)
        out.sum().item()
        return out

    monkeypatch.setattr(model, "decoder_features", asks)
    for step in range(5):
        for each in (model, plain):
            torch.manual_seed(step)
            loss = loss_of(each, *sample((3, 6, 5), step, "cuda"))
            loss.backward()
            assert math.isfinite(loss.item())
    assert captured(model) == 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    lines = [r.message for r in caplog.records if r.name == cuda_graphs.__name__]
    assert len(lines) == 1
    assert "capturing failed" in lines[0]
    torch.cuda.empty_cache()
    with torch.random.fork_rng(["cuda"]):
        torch.rand(3, device="cuda")
    # later batches run unpadded, with the random numbers of the plain model
    torch.manual_seed(1)
    ours = loss_of(model, *sample((5, 8, 8), 3, "cuda"))
    torch.manual_seed(1)
    plain.load_state_dict(model.state_dict())
    close(ours.detach(), loss_of(plain, *sample((5, 8, 8), 3, "cuda")).detach(), 1e-4)


def test_memory_is_shared_between_buckets():
    model = on_gpu("transformer", encoder_embed_dim=256, encoder_ffn_embed_dim=1024, decoder_ffn_embed_dim=1024)
    used = []
    for length in (40, 36, 32, 28, 24):
        for step in range(3):
            model.zero_grad()
            loss_of(model, *sample((64, length, length), step, "cuda")).backward()
        torch.cuda.empty_cache()
        used.append(torch.cuda.memory_reserved())
    assert captured(model) == 5
    # the first holds the activations, smaller ones find room in them
    assert used[-1] - used[0] < 0.5 * used[0]
