"""CUDA graphs of language models: on a CPU an eager pass stands in for the graphs, as in test_cuda_graphs."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from torch import Tensor, nn

from lite_transformer.models.adaptive import BandedInput
from lite_transformer.models.cuda_graphs import Bucket
from lite_transformer.models.language_model import TransformerLanguageModel
from lite_transformer.models.lm_config import TransformerLMConfig
from tests.helpers.compare import assert_same
from tests.helpers.models import TINY_LM, randomize_biases, tiny_language_model, tiny_task
from tests.models.graph_cases import gradients
from tests.models.test_cuda_graphs import on_cpu

__all__ = ["on_cpu"]  # a fixture


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """There the input is computed for every token in every band: which parameters are used depends on no value."""
    monkeypatch.setattr(BandedInput, "forward", BandedInput.in_every_band)


SHAPES = [(2, 12), (2, 12), (1, 30), (2, 11), (1, 30), (3, 12), (2, 12), (3, 10)]
CRITERION = AdaptiveLoss(SimpleNamespace(target_dictionary=tiny_task().target_dictionary), sentence_avg=False)


def build(family: str, **options) -> nn.Module:
    if family == "lite":
        return tiny_language_model(**options).train()
    torch.manual_seed(0)
    small = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32, "decoder_layers": 2, "decoder_attention_heads": 2}
    bands = {name: TINY_LM[name] for name in ("adaptive_input_cutoff", "adaptive_softmax_cutoff")}
    config = TransformerLMConfig(**(small | bands | {"dropout": 0.0} | options))
    model = TransformerLanguageModel.build_model(config, tiny_task())
    randomize_biases(model)
    return model.train()


def sample(shape: tuple[int, int], seed: int, device: str = "cpu") -> dict:
    """A batch as fairseq's task makes it; the last row is one token shorter, padded."""
    text = torch.randint(4, 24, (shape[0], shape[1] + 1), generator=torch.Generator().manual_seed(seed)).to(device)
    source, target = text[:, :-1].clone(), text[:, 1:].clone()
    if shape[0] > 1:
        source[-1, -1] = target[-1, -1] = 1
    return {"net_input": {"src_tokens": source, "src_lengths": None}, "target": target}


def loss_of(model: nn.Module, batch: dict) -> Tensor:
    return CRITERION(model, batch)[0]


@pytest.mark.parametrize("family", ["lite", "transformer"])
def test_losses_and_gradients_are_those_of_the_plain_pass(family, on_cpu):
    model, plain = build(family), build(family, cuda_graphs="off")
    for step, shape in enumerate(SHAPES):
        losses = []
        for each in (model, plain):
            each.zero_grad()
            loss = loss_of(each, sample(shape, step))
            loss.backward()
            losses.append(loss.detach())
        assert_same(*losses, 1e-3)
        for ours, expected in zip(gradients(model).values(), gradients(plain).values(), strict=True):
            assert_same(ours, expected, 1e-3)
    # batches are not rounded up, lengths are
    assert on_cpu == [Bucket(2, 1, 12, None), Bucket(1, 1, 32, None), Bucket(3, 1, 12, None)]


def test_a_search_and_an_evaluation_use_no_graphs(on_cpu):
    model = build("lite")
    tokens = sample((2, 12), 0)["net_input"]["src_tokens"]
    for _ in range(3):
        model(tokens, incremental_state={})
        model.eval()(tokens)
        model.train()
    assert on_cpu == []


def test_a_copy_keeps_how_batches_are_rounded(on_cpu):
    import copy

    model = copy.deepcopy(build("lite"))
    for step in range(2):
        loss_of(model, sample((2, 12), step)).backward()
    assert on_cpu == [Bucket(2, 1, 12, None)]


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("precision", [pytest.param(name, marks=GPU) for name in ("fp32", "bf16", "amp")])
@pytest.mark.parametrize("family", ["lite", "transformer"])
@pytest.mark.usefixtures("exact_products")
def test_on_a_gpu(family, precision, caplog):
    caplog.set_level(logging.INFO)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, plain = (build(family, cuda_graphs=graphs).to("cuda", dtype) for graphs in ("auto", "off"))
    exact = build(family, cuda_graphs="off")
    for step, shape in enumerate(SHAPES):
        found = {}
        for each in (model, plain, exact):
            each.zero_grad()
            device = "cpu" if each is exact else "cuda"
            with torch.autocast("cuda", torch.float16, enabled=precision == "amp" and device == "cuda"):
                loss = loss_of(each, sample(shape, step, device))
            loss.backward()
            assert loss.dtype == torch.float32
            parts = [loss.detach(), *(gradient.flatten() for gradient in gradients(each).values())]
            found[each] = torch.cat([part.double().cpu() for part in parts])
        # judged by the error that the eager pass makes in the same precision
        errors = [((found[each] - found[exact]).norm() / found[exact].norm()).item() for each in (model, plain)]
        assert errors[0] <= max(2 * errors[1], 1e-6), f"step {step}: {errors}"
    assert len(model.graphs._passes) == 3
    assert any("CUDA graphs: on" in record.message for record in caplog.records)
