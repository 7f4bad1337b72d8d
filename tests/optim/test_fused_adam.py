import copy

import pytest
import torch
from fairseq import utils
from fairseq.optim.adam import FairseqAdam
from omegaconf import OmegaConf

from lite_transformer.errors import ConfigError
from lite_transformer.optim.fused_adam import FusedAdam
from tests.helpers.compare import assert_same


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((7, 5), (5,), (1,))]


def config(weight_decay):
    return OmegaConf.create(
        {"lr": [0.01], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "weight_decay": weight_decay,
         "use_old_adam": True, "fp16_adam_stats": False, "tpu": False}
    )  # fmt: skip


def set_gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_follows_fairseqs_adam(weight_decay):
    ours, theirs = parameters(), parameters()
    fused, plain = FusedAdam(config(weight_decay), ours), FairseqAdam(config(weight_decay), theirs)
    for step in range(20):
        for optimizer, params in ((fused, ours), (plain, theirs)):
            set_gradients(params, step)
            optimizer.set_lr(0.01 / (step + 1))
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a.detach(), b.detach(), 1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_clipping_is_fairseqs(max_norm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # where there is a GPU, fairseq takes norms there
    ours, theirs = parameters(), parameters()
    set_gradients(ours, 0), set_gradients(theirs, 0)
    norm = FusedAdam(config(0.0), ours).clip_grad_norm(max_norm)
    expected = utils.clip_grad_norm_(theirs, max_norm)
    assert_same(norm, expected, 1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a.grad, b.grad, 1e-6)


def test_state_is_saved_and_restored():
    ours, other = parameters(), parameters()
    first, second = FusedAdam(config(0.1), ours), FusedAdam(config(0.1), other)
    set_gradients(ours, 0), first.step()
    with torch.no_grad():
        for a, b in zip(other, ours, strict=True):
            a.copy_(b)
    second.load_state_dict(copy.deepcopy(first.state_dict()), second.optimizer_config)
    for optimizer, params in ((first, ours), (second, other)):
        set_gradients(params, 1)
        optimizer.step()
    for a, b in zip(ours, other, strict=True):
        assert_same(a.detach(), b.detach(), 0)


@pytest.mark.parametrize("bad", [None, float("inf"), float("nan")])
def test_a_scaled_step_is_the_plain_one_or_none_at_all(bad):
    """As fairseq's AMPOptimizer does it: the inner optimizer is unscaled for clipping, the outer one is stepped."""
    ours, plain = parameters(), parameters()
    scaled, reference = FusedAdam(config(0.1), ours), FusedAdam(config(0.1), plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = [p.detach().clone() for p in ours]
    sum((p.square().sum() for p in plain), torch.tensor(0.0)).backward()
    scaler.scale(sum((p.square().sum() for p in ours), torch.tensor(0.0))).backward()
    if bad is not None:
        ours[0].grad[0, 0] = bad
    scaler.unscale_(scaled.optimizer)
    scaled.clip_grad_norm(0.0)
    scaler.step(scaled)
    scaler.update()
    reference.step()
    for p, q, old in zip(ours, plain, before, strict=True):
        if bad is None:
            assert_same(p.grad, q.grad, 1e-6)  # unscaled once
        assert_same(p.detach(), q.detach() if bad is None else old, 1e-6)
    assert scaler.get_scale() == (1024.0 if bad is None else 512.0)
    # the next plain step is not skipped
    set_gradients(ours, 1)
    scaled.step()
    assert not torch.equal(ours[0], before[0])


def test_what_it_cannot_do_is_refused():
    optimizer = FusedAdam(config(0.0), parameters())
    assert not optimizer.supports_memory_efficient_fp16
    assert optimizer.supports_flat_params
    with pytest.raises(ConfigError, match="fp16-adam-stats"):
        FusedAdam(OmegaConf.merge(config(0.0), {"fp16_adam_stats": True}), parameters())


@pytest.mark.parametrize("factor", [0.5, torch.tensor(0.5)])
def test_gradients_are_multiplied_and_forgotten(factor):
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = FusedAdam(config(0.0), [first, second])
    first.grad = torch.tensor([2.0, 4.0])
    optimizer.multiply_grads(factor)
    assert first.grad.tolist() == [1.0, 2.0] and second.grad is None
    optimizer.zero_grad()
    assert first.grad is None
    optimizer.multiply_grads(factor)
