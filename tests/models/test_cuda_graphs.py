"""Everything about CUDA graphs but the capture: an eager pass over the same fixed tensors stands in for the graphs."""

import copy
import io
import itertools
import logging
import pickle
from typing import ClassVar

import pytest
import torch

from lite_transformer.models import cuda_graphs
from lite_transformer.models.cuda_graphs import (
    Bucket,
    BucketPass,
    FlatGradients,
    TrainingGraphs,
    bucket_of,
    fill_padded,
    round_up,
)
from tests.helpers.compare import assert_same
from tests.models.graph_cases import EOS, PAD, build, gradients, loss_of, sample

SHAPES = [(3, 6, 5), (3, 6, 5), (8, 4, 9), (3, 7, 5), (1, 1, 1), (8, 3, 9), (1, 1, 1), (2, 8, 8)]


class RecordedPass(BucketPass):
    made: ClassVar[list[Bucket]] = []

    def __init__(self, model, bucket, device):
        super().__init__(model, bucket, device)
        self.made.append(bucket)


@pytest.fixture
def on_cpu(monkeypatch):
    """Lets the graphs of a model work on a CPU, through eager passes; gives the list of the passes' buckets."""
    monkeypatch.setattr(RecordedPass, "made", [])
    monkeypatch.setattr(TrainingGraphs, "_on_device", staticmethod(lambda tokens: True))
    monkeypatch.setattr(TrainingGraphs.__init__, "__defaults__", (True, 256, RecordedPass))
    return RecordedPass.made


# --- buckets ---


def test_buckets_are_multiples_a_step_apart():
    lengths = sorted({round_up(size, 4, 1 / 8) for size in range(1, 1025)})
    assert lengths[:12] == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48]
    assert all(length % 4 == 0 for length in lengths)
    assert all(b - a <= max(4, a / 8) for a, b in itertools.pairwise(lengths))
    assert len(lengths) == 41
    for size in range(1, 1025):
        bucket = round_up(size, 4, 1 / 8)
        assert bucket >= size
        assert round_up(bucket, 4, 1 / 8) == bucket


def test_a_bucket_never_exceeds_the_positions_of_the_model():
    source, target = sample((5, 30, 30), 0)
    assert bucket_of(source, target, 31, 1024) == Bucket(8, 31, 32, None)
    assert bucket_of(source, target, 1024, 30) == Bucket(8, 32, 30, None)
    assert bucket_of(source, target, 29, 1024) is None
    assert bucket_of(source[:0], target[:0], 64, 64) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bucket_of(source, target, 64, 64).autocast is torch.bfloat16


def test_rows_that_fill_up_a_bucket_have_a_real_token():
    tokens = torch.tensor([[5, 6, EOS], [7, EOS, PAD]])
    out = fill_padded(torch.full((4, 5), 99), tokens, PAD, EOS)
    one = [EOS, PAD, PAD, PAD, PAD]
    assert out.tolist() == [[5, 6, EOS, PAD, PAD], [7, EOS, PAD, PAD, PAD], one, one]


def test_flat_gradients_are_handed_out_as_copies():
    parameters = [torch.randn(3, 5), torch.randn(7).bfloat16(), torch.randn(2), torch.randn(())]
    flat = FlatGradients(parameters)
    flat.write([p * 2 for p in parameters])
    first = flat.copies()
    flat.write([torch.zeros_like(p) for p in parameters])
    for copied, parameter in zip(first, parameters, strict=True):
        assert_same(copied, parameter * 2, 0)
        assert copied.is_contiguous()
        assert copied.data_ptr() % 16 == 0
    # gradients that are not contiguous find their places too
    flat.write([torch.ones(5, 3).T, *(torch.ones_like(p) for p in parameters[1:])])
    assert all((copied == 1).all() for copied in flat.copies())


# --- the same training ---


@pytest.mark.parametrize("family", ["lite", "shared", "transformer"])
def test_losses_and_gradients_are_those_of_the_plain_pass(family, on_cpu):
    model, plain = build(family), build(family, cuda_graphs="off")
    for step, shape in enumerate(SHAPES):
        source, target = sample(shape, step)
        results = []
        for each in (model, plain):
            each.zero_grad()
            loss = loss_of(each, source, target)
            loss.backward()
            results.append((loss.detach(), gradients(each)))
        (loss, ours), (expected_loss, expected) = results
        assert_same(loss, expected_loss, 1e-3)
        for name, value in expected.items():
            assert_same(ours[name], value, 1e-3)
    # the buckets that came twice: three rows, eight rows (4 and 3 are one source bucket), a single token
    assert on_cpu == [Bucket(8, 8, 8, None), Bucket(8, 4, 12, None), Bucket(8, 4, 4, None)]


def test_gradients_accumulate_over_batches(on_cpu):
    model, plain = build(), build(cuda_graphs="off")
    for step in range(6):
        for each in (model, plain):
            loss_of(each, *sample((3, 6, 5), step)).backward()
    assert len(on_cpu) == 1
    for (name, ours), expected in zip(gradients(model).items(), gradients(plain).values(), strict=True):
        assert ours is not None, name
        assert_same(ours, expected, 1e-3)


def test_frozen_parameters_get_no_gradient(on_cpu):
    model = build()
    for step in range(3):
        loss_of(model, *sample((3, 6, 5), step)).backward()
    frozen = model.encoder.layers[0].fc1.weight
    model.zero_grad()
    frozen.requires_grad_(False)
    for step in range(3):
        loss_of(model, *sample((3, 6, 5), step)).backward()
    assert frozen.grad is None
    assert model.encoder.layers[0].fc2.weight.grad is not None
    assert len(on_cpu) == 2  # captured anew


def test_a_moved_parameter_is_captured_anew(on_cpu):
    model = build()
    for _ in range(3):
        loss_of(model, *sample((3, 6, 5), 0)).backward()
    with torch.no_grad():
        weight = model.encoder.layers[0].fc1.weight
        weight.data = weight.data.clone() * 2
    for _ in range(2):
        loss_of(model, *sample((3, 6, 5), 0)).backward()
    model.double().float()
    assert model.graphs._passes == {}
    for _ in range(2):
        loss_of(model, *sample((3, 6, 5), 0)).backward()
    assert len(on_cpu) == 3


def test_autocast_has_buckets_of_its_own(on_cpu):
    model, plain = build(), build(cuda_graphs="off")
    for step in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step % 2 == 1):
            losses = [loss_of(each, *sample((3, 6, 5), 0)) for each in (model, plain)]
        assert_same(*losses, 0.5)
        losses[0].backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert [bucket.autocast for bucket in on_cpu] == [None, torch.bfloat16]


# --- turns ---


def capture(model, shape=(3, 6, 5)):
    for step in range(2):
        loss_of(model, *sample(shape, step)).backward()
    model.zero_grad()


def test_a_second_forward_before_the_backward_runs_eagerly(on_cpu, caplog):
    caplog.set_level(logging.INFO)
    model, plain = build(), build(cuda_graphs="off")
    capture(model), capture(plain)
    for each in (model, plain):
        first, second, third = (loss_of(each, *sample((3, 6, 5), step)) for step in (5, 6, 7))
        second.backward(), first.backward(), third.backward()
    for ours, expected in zip(gradients(model).values(), gradients(plain).values(), strict=True):
        assert_same(ours, expected, 1e-3)
    lines = [r.message for r in caplog.records if "before the backward pass of the last one" in r.message]
    assert len(lines) == 1


def test_a_forward_without_a_backward_does_not_block_the_next(on_cpu, caplog):
    caplog.set_level(logging.INFO)
    model = build()
    capture(model)
    for step in range(3):
        loss_of(model, *sample((3, 6, 5), step))
    assert not any("before the backward" in r.message for r in caplog.records)


def test_a_second_backward_is_an_error(on_cpu):
    model = build()
    capture(model)
    loss = loss_of(model, *sample((3, 6, 5), 0))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward pass of this batch has run already"):
        loss.backward()


# --- when not to ---


def off_lines(caplog):
    return [r.message for r in caplog.records if r.name == cuda_graphs.__name__ and "off" in r.message]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"encoder_layerdrop": 0.1}, "layer drop"),
        ({"checkpoint_activations": True}, "activation checkpointing"),
        ({"conv_padding_mask": "before_linear"}, "padding reaches real tokens"),
    ],
)
def test_models_that_cannot_be_captured_say_why_once(options, reason, on_cpu, caplog):
    caplog.set_level(logging.INFO)
    model = build("lite", **options)
    for step in range(4):
        loss_of(model, *sample((3, 6, 5), step)).backward()
    assert on_cpu == []
    (line,) = off_lines(caplog)
    assert reason in line


def test_a_baseline_has_no_convolution_to_leak_padding(on_cpu):
    model = build("transformer")
    capture(model)
    assert len(on_cpu) == 1


def test_hooks_are_called_and_graphs_come_back_after_them(on_cpu, caplog):
    caplog.set_level(logging.INFO)
    model = build()
    capture(model)
    seen = []
    handle = model.encoder.layers[0].fc1.register_forward_hook(lambda *_: seen.append(1))
    for step in range(2):
        loss_of(model, *sample((3, 6, 5), step)).backward()
    assert len(seen) == 2
    handle.remove()
    loss_of(model, *sample((3, 6, 5), 2)).backward()
    assert len(seen) == 2
    assert ["hooks" in line for line in off_lines(caplog)] == [True]


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_parameters_are_called_once_a_backward(kind, on_cpu, caplog):
    caplog.set_level(logging.INFO)
    model = build()
    capture(model)
    seen = []
    handle = getattr(model.encoder.layers[0].fc1.weight, kind)(lambda _: seen.append(1))
    for step in range(2):
        loss_of(model, *sample((3, 6, 5), step)).backward()
    handle.remove()
    assert len(seen) == 2
    assert ["hooks" in line for line in off_lines(caplog)] == [True]


def test_distributed_training_gets_gradients_from_autograd(on_cpu, monkeypatch):
    """Its hooks on the nodes of the parameters cannot be seen from here; it has to be taken for granted."""
    model = build()
    capture(model)
    weight = model.encoder.layers[0].fc1.weight
    node = weight.expand_as(weight).grad_fn.next_functions[0][0]
    seen = []
    node.register_prehook(lambda given: seen.append(given[0].clone()))
    for initialized, expected in ((False, 0), (True, 1)):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda value=initialized: value)
        model.zero_grad()
        loss_of(model, *sample((3, 6, 5), 1)).backward()
        assert len(seen) == expected
        assert weight.grad is not None
    assert torch.equal(seen[0], weight.grad)


def test_a_gradient_kept_from_the_last_step_stays_what_it_was(on_cpu):
    model = build()
    capture(model)
    model.zero_grad()
    weight = model.encoder.layers[0].fc1.weight
    loss_of(model, *sample((3, 6, 5), 1)).backward()
    kept, value = weight.grad, weight.grad.clone()
    model.zero_grad()
    loss_of(model, *sample((3, 6, 5), 2)).backward()
    assert torch.equal(kept, value)
    assert not torch.equal(weight.grad, value)


@pytest.mark.parametrize("wanted", ["eval", "no_grad", "features_only", "alignment"])
def test_other_passes_are_plain(wanted, on_cpu):
    model = build()
    options = {"features_only": {"features_only": True}, "alignment": {"alignment_layer": 0}}.get(wanted, {})
    model.train(wanted != "eval")
    source, target = sample((3, 6, 5), 0)
    for _ in range(3):
        with torch.set_grad_enabled(wanted != "no_grad"):
            _, extra = model(source, None, target, **options)
        assert len(extra["inner_states"]) == 3
    assert on_cpu == []


def test_off_is_off(on_cpu, caplog):
    caplog.set_level(logging.INFO)
    model = build(cuda_graphs="off")
    capture(model)
    assert on_cpu == []
    assert off_lines(caplog) == []


def test_on_a_cpu_nothing_happens():
    model = build()
    capture(model)
    assert model.graphs._surroundings is None


def test_no_more_buckets_than_the_limit(on_cpu, caplog):
    caplog.set_level(logging.INFO)
    model = build()
    model.graphs._limit = 1
    for shape in ((3, 6, 5), (3, 20, 5), (3, 6, 20)):
        capture(model, shape)
    assert len(on_cpu) == 1
    lines = [r.message for r in caplog.records if "further ones run eagerly" in r.message]
    assert lines == ["CUDA graphs: 1 batch shapes captured, further ones run eagerly"]


def test_a_capture_that_fails_is_logged_and_training_goes_on(on_cpu, caplog, monkeypatch):
    caplog.set_level(logging.INFO)

    def fail(*_):
        raise RuntimeError("operation not permitted\nwith a long explanation")

    model, plain = build(), build(cuda_graphs="off")
    monkeypatch.setattr(BucketPass, "prepare", fail)
    for step in range(4):
        for each in (model, plain):
            loss_of(each, *sample((3, 6, 5), step)).backward()
    for ours, expected in zip(gradients(model).values(), gradients(plain).values(), strict=True):
        assert_same(ours, expected, 1e-3)
    assert off_lines(caplog) == ["CUDA graphs: off, capturing failed (RuntimeError: operation not permitted)"]


def test_finding_the_used_parameters_draws_no_random_numbers():
    model = build(dropout=0.5)
    runs = BucketPass(model, Bucket(8, 8, 8, None), torch.device("cpu"))
    before = torch.get_rng_state()
    used = runs.used(list(model.parameters()))
    assert torch.equal(torch.get_rng_state(), before)
    unused = {name for name, p in model.named_parameters() if not any(p is q for q in used)}
    assert unused == {"decoder.output_projection.weight"}


# --- copies ---


def test_copies_of_a_model_have_no_graphs(on_cpu):
    model = build()
    capture(model)
    names = set(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.graphs))):
        graphs = getattr(twin, "graphs", twin)
        assert graphs._passes == {}
        assert graphs.enabled
    assert not any("graph" in name for name in names)
    torch.save(model.graphs, io.BytesIO())
    assert len(model.graphs._passes) == 1
    off = copy.deepcopy(build(cuda_graphs="off"))
    assert not off.graphs.enabled
