"""A training step that asks the device for no values; on a CPU, which is said to be a GPU."""

import traceback

import pytest
import torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from lite_transformer.optim import run_ahead
from lite_transformer.optim.run_ahead import LateNorms

BATCHES = 6


class Criterion(torch.nn.Module):
    """Squares of what a layer makes of the batch, logged as fairseq's criteria do."""

    def __init__(self):
        super().__init__()
        self.training_losses = []

    @staticmethod
    def logging_outputs_can_be_summed():
        return True


class Task:
    """As much of a fairseq task as its trainer asks for."""

    def begin_epoch(self, epoch, model):
        pass

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad):
        loss = model(sample["x"]).float().square().sum()
        optimizer.backward(loss)
        return loss, len(sample["x"]), {"loss": loss.detach(), "sample_size": len(sample["x"])}

    def optimizer_step(self, optimizer, model, update_num):
        optimizer.step()

    def reduce_metrics(self, logging_outputs, criterion):
        total = sum(log["loss"] for log in logging_outputs)
        metrics.log_scalar("loss", total / logging_outputs[0]["sample_size"], round=3)


def trainer(wait=False, bf16=False, clip_norm=0.1):
    cfg = OmegaConf.structured(FairseqConfig())
    OmegaConf.set_struct(cfg, False)
    cfg.common.cpu, cfg.common.bf16 = True, bf16
    cfg.optimization.clip_norm = clip_norm
    cfg.optimizer = {
        "_name": "fused_adam", "lr": [0.01], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "weight_decay": 0.0,
        "use_old_adam": True, "fp16_adam_stats": False, "tpu": False, "wait_for_gpu": wait,
    }  # fmt: skip
    cfg.lr_scheduler = {"_name": "fixed", "lr": [0.01], "force_anneal": None, "lr_shrink": 0.1, "warmup_updates": 0}
    cfg.optimization.lr = [0.01]
    torch.manual_seed(0)
    return Trainer(cfg, Task(), torch.nn.Linear(4, 3), Criterion())


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(run_ahead, "on_one_gpu", lambda trainer: True)


def train(trainer, poisoned=()):
    """(loss, norm) that are logged at every update."""
    logged = []
    generator = torch.Generator().manual_seed(1)
    for number in range(BATCHES):
        x = torch.randn(5, 4, generator=generator) * (number + 1)
        if number in poisoned:
            x[2, 1] = float("nan")
        with metrics.aggregate(new_root=True) as meters:
            trainer.train_step([{"x": x}])
        logged.append((float(meters["loss"].avg), float(meters["gnorm"].avg)))
    return logged


@pytest.mark.parametrize("bf16", [False, True])
def test_weights_and_losses_are_the_same_and_norms_come_late(one_gpu, bf16):
    ahead, waiting = trainer(bf16=bf16), trainer(wait=True, bf16=bf16)
    early, late = train(waiting), train(ahead)
    assert [loss for loss, _ in late] == [loss for loss, _ in early]
    norms = [norm for _, norm in early]
    assert [norm for _, norm in late] == [norms[0], *norms[:-1]]
    assert len(set(norms)) == BATCHES
    for a, b in zip(ahead.model.parameters(), waiting.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_bad_gradient_changes_nothing_and_stops_the_training_an_update_later(one_gpu, bf16, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # fairseq leaves a checkpoint of the crash
    ahead = trainer(bf16=bf16)
    monkeypatch.setattr(ahead, "save_checkpoint", lambda *_: None)
    weights = []
    step = ahead.task.optimizer_step
    monkeypatch.setattr(
        ahead.task,
        "optimizer_step",
        lambda *args, **options: (step(*args, **options), weights.append(ahead.model.weight.detach().clone())),
    )
    with pytest.raises(FloatingPointError):
        train(ahead, poisoned=[2])
    assert len(weights) == 3
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])


def values_read(trainer):
    """Where a training step asks for the value of a tensor."""
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "_local_scalar_dense" in str(func):
                found.append(traceback.extract_stack()[-4].name)
            return func(*args, **(kwargs or {}))

    x = torch.randn(5, 4)
    with metrics.aggregate(new_root=True):
        trainer.train_step([{"x": x}])
        with Watch():
            trainer.train_step([{"x": x}])
    return found


@pytest.mark.parametrize("bf16", [False, True])
def test_no_value_of_this_update_is_asked_for(one_gpu, bf16):
    # two of the norm of the update before, which has arrived
    assert len(values_read(trainer(bf16=bf16))) == 2
    assert len(values_read(trainer(bf16=bf16, wait=True))) == 3


def test_a_cpu_waits_for_nothing_and_fairseqs_step_is_kept():
    early, kept = train(trainer(wait=True)), train(trainer())
    assert early == kept


def test_losses_of_validation_are_read(one_gpu):
    ahead = trainer()
    with metrics.aggregate(new_root=True):
        metrics.log_scalar("loss", torch.tensor(2.0), round=3)
        assert run_ahead.reduce_and_log_stats(ahead, [{"loss": torch.tensor(3.0), "sample_size": 2}], 2)["loss"] == 1.5


def test_late_norms_are_handed_over_in_turn():
    norms = LateNorms()
    assert [float(norms.exchange(torch.tensor(float(i)))) for i in range(4)] == [0, 0, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_late_norms_of_a_gpu_are_on_the_host():
    norms = LateNorms()
    found = []
    for number in range(200):
        work = torch.randn(512, 512, device="cuda")
        for _ in range(10):
            work = work @ work / 100
        found.append(norms.exchange(torch.full((), float(number), device="cuda") + 0 * work.flatten()[0].isnan()))
    assert all(not norm.is_cuda for norm in found)
    assert [float(norm) for norm in found] == [0.0, *map(float, range(199))]
