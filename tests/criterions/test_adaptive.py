"""The adaptive loss without a wait: fairseq's losses and gradients, and no value is asked for."""

import copy
import functools
from types import MethodType, SimpleNamespace

import pytest
import torch
from fairseq.criterions import build_criterion
from fairseq.criterions.adaptive_loss import AdaptiveLoss as FairseqsLoss
from fairseq.logging import metrics
from fairseq.modules import AdaptiveSoftmax
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from lite_transformer.criterions import adaptive
from lite_transformer.criterions.adaptive import COUNTS
from lite_transformer.models.adaptive import BandedSoftmax
from tests.criterions.test_fused import compare, run
from tests.helpers.compare import assert_same
from tests.helpers.models import tiny_language_model, tiny_task

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAD = 1
# of 24 types in bands that begin at 0, 8 and 14
TARGETS = {
    "all bands": [2, 9, 23, 1, 7, 8, 13, 14, 15, 9, 1, 0],
    "no rare type": [2, 9, 7, 1, 7, 8, 13, 8, 5, 9, 1, 0],
    "one band in the middle": [8] * 12,
    "the first band alone": [2, 3, 4, 5, 6, 7, 0, 2, 3, 4, 5, 1],
    "padding alone": [1] * 12,
}


def batch_of(targets, device=DEVICE):
    target = torch.tensor(targets, device=device).view(3, 4)
    tokens = torch.arange(12, device=device).view(3, 4) + 4
    return {"net_input": {"src_tokens": tokens}, "target": target, "ntokens": int(target.ne(PAD).sum())}


def criterion(**options):
    config = {"_name": "adaptive_loss", "sentence_avg": False, "ddp_backend": "legacy_ddp"} | options
    return build_criterion(OmegaConf.create(config), tiny_task())


@pytest.fixture
def batch(monkeypatch):
    """What the shared helpers compute the loss of; a test puts its targets in."""
    chosen = batch_of(TARGETS["all bands"])
    monkeypatch.setattr("tests.criterions.test_fused.batch_for", lambda model: dict(chosen))
    return chosen


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("counted", [False, True])
def test_losses_and_gradients_are_fairseqs(targets, counted, batch):
    model = tiny_language_model().to(DEVICE).train()
    batch |= batch_of(TARGETS[targets])
    ours = criterion(loss_backend="triton")
    if counted:
        batch[COUNTS] = ours.count(model.decoder.adaptive_softmax, batch["target"].cpu())
    compare(model, ours, FairseqsLoss(tiny_task(), False), 1e-6)


def test_the_loss_per_sentence(batch):
    model = tiny_language_model().to(DEVICE).train()
    compare(model, criterion(loss_backend="triton", sentence_avg=True), FairseqsLoss(tiny_task(), True), 1e-6)


def test_dropout_is_drawn_as_fairseq_draws_it(batch):
    model = tiny_language_model(adaptive_softmax_dropout=0.5).to(DEVICE).train()
    softmax, values = model.decoder.adaptive_softmax, []
    for loss in (criterion(loss_backend="triton"), FairseqsLoss(tiny_task(), False)):
        torch.manual_seed(3)
        values.append(run(model, loss)[0])
        softmax.forward = MethodType(AdaptiveSoftmax.forward, softmax)
    assert_same(*values, 1e-5)
    assert not torch.equal(values[0], run(model.eval(), loss)[0])


def test_losses_of_every_token_are_refused_as_by_fairseq(batch):
    """fairseq adds up bands of different lengths, which fails; nothing else may come of it here."""
    model = tiny_language_model().to(DEVICE).train()
    for loss in (criterion(loss_backend="triton"), FairseqsLoss(tiny_task(), False)):
        with pytest.raises(RuntimeError, match="size"):
            loss(model, batch, reduce=False)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_on_a_cpu_fairseq_computes_the_loss(backend, batch, monkeypatch):
    monkeypatch.setattr(adaptive, "label_smoothed_cross_entropy", None)
    batch |= batch_of(TARGETS["all bands"], "cpu")
    model = tiny_language_model().train()
    first, second = run(model, criterion(loss_backend=backend)), run(model, FairseqsLoss(tiny_task(), False))
    assert torch.equal(first[0], second[0]) and first[1:3] == second[1:3]
    assert all(torch.equal(a, b) for a, b in zip(first[3], second[3], strict=True))


def test_a_softmax_of_fairseqs_own_is_left_to_fairseq(batch, monkeypatch):
    model = tiny_language_model().train()
    model.decoder.adaptive_softmax = AdaptiveSoftmax(24, 16, [8, 14], 0.0)
    monkeypatch.setattr(adaptive, "label_smoothed_cross_entropy", None)
    batch |= batch_of(TARGETS["all bands"], "cpu")
    right = run(model, FairseqsLoss(tiny_task(), False))
    assert torch.equal(run(model, criterion(loss_backend="triton"))[0], right[0])


# --- the bands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", TARGETS)
def test_bands_are_fairseqs(targets):
    ours = BandedSoftmax(24, 16, [8, 14], 0.0)
    target = torch.tensor(TARGETS[targets]).view(3, 4)
    counts = ours.count_bands(target).tolist()
    assert counts == [sum(8 <= t < 14 for t in TARGETS[targets]), sum(t >= 14 for t in TARGETS[targets])]
    right, right_rows = AdaptiveSoftmax.adapt_target(ours, target)
    for found, rows in (ours.adapt_target(target), ours.adapt_target(target, counts)):
        for mine, theirs in zip([*found, *rows], [*right, *right_rows], strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs)


class Asked(TorchDispatchMode):
    """Counts how often the host asks for values, or for a size that depends on them."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        tolist = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: self.add() or tolist(tensor))

    def add(self):
        self.count += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.add()
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU is asked in test_nothing_waits_for_the_gpu")
def test_no_value_is_asked_for(batch, monkeypatch):
    model, loss = tiny_language_model().train(), criterion(loss_backend="triton")
    batch |= batch_of(TARGETS["all bands"], "cpu")
    features = model(**batch["net_input"])
    monkeypatch.setattr(model, "forward", lambda **_: features)  # on a CPU it looks for padding

    def asked(loss):
        with monkeypatch.context() as patch, Asked(patch) as asked:
            loss(model, batch)[0].backward(retain_graph=True)
        return asked.count

    assert asked(loss) == 1
    assert asked(FairseqsLoss(tiny_task(), False)) > 5
    batch[COUNTS] = loss.count(model.decoder.adaptive_softmax, batch["target"])
    assert asked(loss) == 0


def logged(criterion, losses):
    logs = [{"loss": loss, "ntokens": 5, "nsentences": 1, "sample_size": size} for size, loss in enumerate(losses, 4)]
    with metrics.aggregate(new_root=True) as found:
        criterion.reduce_metrics(logs)
    return found


def test_losses_on_a_gpu_are_logged_unread(monkeypatch):
    losses = [torch.tensor([3.0]), torch.tensor([5.5])]
    expected = logged(FairseqsLoss, losses).get_smoothed_values()
    assert logged(adaptive.AdaptiveLoss, losses).get_smoothed_values() == expected
    assert {"loss", "nll_loss", "ppl"} <= expected.keys()
    with monkeypatch.context() as patch, Asked(patch) as asked:
        patch.setattr(torch.Tensor, "is_cuda", True)
        found = logged(adaptive.AdaptiveLoss, losses)
    assert asked.count == 0
    values = found.get_smoothed_values()
    assert values == pytest.approx(expected)
    assert all(isinstance(value, (int, float)) for value in values.values())


# --- the trainer ---------------------------------------------------------------------------------------------------


def trainer_of(model, loss, cuda=True):
    common = SimpleNamespace(on_cpu_convert_precision=False, fp16=False, bf16=False)
    return SimpleNamespace(
        cuda=cuda,
        tpu=False,
        pipeline_model_parallel=False,
        cfg=SimpleNamespace(common=common),
        get_model=lambda: model,
        get_criterion=lambda: loss,
        _fp_convert_sample=lambda sample: sample,
        _dummy_batch=None,
    )


@pytest.fixture
def moved(monkeypatch):
    """Batches that fairseq moves to the GPU."""
    batches = []
    monkeypatch.setattr("fairseq.utils.move_to_cuda", lambda sample: batches.append(sample) or sample)
    return batches


def test_the_trainer_counts_before_it_moves_a_batch(moved):
    model = tiny_language_model()
    sample = batch_of(TARGETS["all bands"], "cpu")
    given = copy.copy(sample)
    prepared, dummy = Trainer._prepare_sample(trainer_of(model, criterion()), sample)
    assert moved[0][COUNTS] == [4, 3, 10] and prepared[COUNTS] == [4, 3, 10] and dummy is False
    assert sample.keys() == given.keys()  # the data set's own


def test_other_trainings_are_left_alone(moved):
    model = tiny_language_model()
    sample = batch_of(TARGETS["all bands"], "cpu")
    for trainer in (
        trainer_of(model, criterion(), cuda=False),
        trainer_of(model, criterion(loss_backend="reference")),
        trainer_of(model, FairseqsLoss(tiny_task(), False)),
        trainer_of(tiny_language_model(adaptive_softmax_cutoff=None), criterion()),
    ):
        assert Trainer._prepare_sample(trainer, sample)[0] is sample
    trainer = trainer_of(model, criterion())
    trainer._dummy_batch, trainer._prepare_sample = sample, functools.partial(Trainer._prepare_sample, trainer)
    assert Trainer._prepare_sample(trainer, {}) == (sample | {COUNTS: [4, 3, 10]}, True)


# --- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu_in_every_precision(dtype, batch):
    model = tiny_language_model().to(DEVICE, dtype).train()
    compare(model, criterion(), FairseqsLoss(tiny_task(), False), 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_nothing_waits_for_the_gpu(batch):
    model, loss = tiny_language_model(cuda_graphs="off").to(DEVICE).train(), criterion()
    batch[COUNTS] = loss.count(model.decoder.adaptive_softmax, batch["target"])
    loss(model, batch)[0].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(model, batch)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
