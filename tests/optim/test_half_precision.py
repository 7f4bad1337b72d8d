"""Copies of all parameters at once against fairseq's, one at a time."""

import copy

import pytest
import torch
from fairseq import optim
from fairseq.optim import fp16_optimizer
from omegaconf import OmegaConf

import lite_transformer.optim  # noqa: F401  (replaces fairseq's)
from lite_transformer.optim.fused_adam import FusedAdam
from lite_transformer.optim.half_precision import GroupedFP16Optimizer
from tests.helpers.compare import assert_same

SHAPES = ((7, 5), (5,), (3, 4), (1,))


def configuration(bf16=True, **common):
    return OmegaConf.create(
        {
            "common": {"bf16": bf16, "fp16": not bf16, "tpu": False, "fp16_no_flatten_grads": False,
                       "fp16_scale_window": None, "model_parallel_size": 1, "fp16_init_scale": 4,
                       "fp16_scale_tolerance": 0.0, "threshold_loss_scale": None, "min_loss_scale": 1e-4, **common},
            "optimization": {"update_freq": [1]},
            "distributed_training": {"distributed_world_size": 1, "zero_sharding": "none",
                                     "ddp_backend": "pytorch_ddp"},
            "optimizer": {"_name": "fused_adam", "lr": [0.01], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8,
                          "weight_decay": 0.1, "use_old_adam": True, "fp16_adam_stats": False, "tpu": False},
        }
    )  # fmt: skip


def parameters(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in SHAPES]


def flat_optimizer(kind, dtype, cfg):
    """As build_optimizer makes it on a GPU: one fp32 tensor for all parameters of a device."""
    params = parameters(dtype)
    flat = torch.nn.Parameter(torch.cat([p.detach().float().flatten() for p in params]))
    flat.grad = torch.full_like(flat, float("nan"))  # what is not written is seen
    return params, kind(cfg, params, FusedAdam(cfg.optimizer, [flat]), {params[0].device.index: flat})


def train(params, optimizer, steps, without=()):
    for step in range(steps):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        loss = sum(
            (p.float() * torch.randn(p.shape, generator=generator)).square().sum()
            for number, p in enumerate(params)
            if number not in without
        )
        optimizer.backward(loss)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()


def test_fairseqs_trainer_takes_ours():
    assert optim.FP16Optimizer is GroupedFP16Optimizer


@pytest.mark.parametrize("without", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grouped_copies_are_fairseqs(dtype, without):
    cfg = configuration(bf16=dtype == torch.bfloat16)
    ours, grouped = flat_optimizer(GroupedFP16Optimizer, dtype, cfg)
    theirs, plain = flat_optimizer(fp16_optimizer.FP16Optimizer, dtype, cfg)
    train(ours, grouped, 5, without), train(theirs, plain, 5, without)
    for a, b, start in zip(ours, theirs, parameters(dtype), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, start)
    assert torch.equal(grouped.fp32_params[None], plain.fp32_params[None])


def test_one_tensor_for_all_is_one_tensor_each():
    """What --bf16 keeps on a GPU against what fairseq keeps; clipping sums the norm in another order."""
    cfg = configuration()
    ours, grouped = flat_optimizer(GroupedFP16Optimizer, torch.bfloat16, cfg)
    theirs = parameters(torch.bfloat16)
    apart = fp16_optimizer.FP16Optimizer.build_optimizer(cfg, theirs)
    train(ours, grouped, 5), train(theirs, apart, 5)
    flat = torch.cat([p.detach().flatten() for p in apart.fp32_params])
    assert_same(grouped.fp32_params[None].detach(), flat, 1e-6)


def test_gradients_kept_elsewhere_are_found_again():
    cfg = configuration()
    params, moved = flat_optimizer(GroupedFP16Optimizer, torch.bfloat16, cfg)
    others, stayed = flat_optimizer(GroupedFP16Optimizer, torch.bfloat16, cfg)
    train(params, moved, 1), train(others, stayed, 1)
    flat = moved.fp32_params[None]
    flat.grad = torch.full_like(flat, float("nan"))
    train(params, moved, 3), train(others, stayed, 3)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


def test_on_a_cpu_weights_stay_apart_as_fairseq_keeps_them():
    params = parameters(torch.bfloat16)
    optimizer = GroupedFP16Optimizer.build_optimizer(configuration(), params)
    others = parameters(torch.bfloat16)
    plain = fp16_optimizer.FP16Optimizer.build_optimizer(configuration(), others)
    assert isinstance(optimizer.fp32_params, list)
    train(params, optimizer, 2), train(others, plain, 2)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_all_weights_are_one_tensor(dtype):
    cfg = configuration(bf16=dtype == torch.bfloat16)
    params = [torch.nn.Parameter(p.detach().cuda()) for p in parameters(dtype)]
    before = copy.deepcopy(params)
    optimizer = GroupedFP16Optimizer.build_optimizer(cfg, params)
    assert optimizer.has_flat_params
    for step in range(3):
        optimizer.zero_grad()
        optimizer.backward(sum((p.float() + step).square().sum() for p in params))
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(params, before, strict=True))
    flat = next(iter(optimizer.fp32_params.values()))
    assert torch.equal(flat.to(dtype), torch.cat([p.detach().flatten() for p in params]))
