"""fairseq's cross entropies on fused kernels: what they return and leave in the gradients is what fairseq computes."""

import logging
from argparse import Namespace

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY, build_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion as FairseqsCrossEntropy
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion as FairseqsSmoothed
from fairseq.distributed import ModuleProxyWrapper
from fairseq.models.transformer import TransformerModel, base_architecture
from omegaconf import OmegaConf
from torch import nn

from lite_transformer.criterions import fused
from lite_transformer.errors import UnsupportedInputError
from lite_transformer.ops import cross_entropy
from lite_transformer.results import settings_hash
from tests.helpers import commands
from tests.helpers.compare import assert_same
from tests.helpers.models import tiny_language_model, tiny_task
from tests.models.graph_cases import BASELINE, PAD, build, sample

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THEIRS = {"label_smoothed_cross_entropy": FairseqsSmoothed, "cross_entropy": FairseqsCrossEntropy}


def fairseqs_transformer():
    torch.manual_seed(0)
    args = Namespace(**BASELINE)
    base_architecture(args)
    return TransformerModel.build_model(args, tiny_task()).train()


MODELS = {
    "lite": lambda: build("lite", cuda_graphs="off"),
    "transformer": lambda: build("transformer", cuda_graphs="off"),
    "fairseq's": fairseqs_transformer,
    "language model": lambda: tiny_language_model(adaptive_input_cutoff=None, adaptive_softmax_cutoff=None).train(),
}


def batch_for(model, seed=0):
    """A batch of sentences, or of text, on the model's device."""
    source, tokens = sample((4, 6, 7), seed, next(model.parameters()).device)
    target = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], PAD)], dim=1)
    net_input = {"src_tokens": source, "src_lengths": None, "prev_output_tokens": tokens}
    if not hasattr(model, "encoder"):
        net_input = {"src_tokens": tokens}
    return {"net_input": net_input, "target": target, "ntokens": int(target.ne(PAD).sum())}


def criterion(name="label_smoothed_cross_entropy", **options):
    if name == "label_smoothed_cross_entropy":
        options = {"label_smoothing": 0.1} | options
    config = {"_name": name, "sentence_avg": False} | options
    return build_criterion(OmegaConf.create(config), tiny_task())


def run(model, loss, **options):
    """What a criterion returns, and the gradients of all parameters."""
    model.zero_grad()
    value, size, logged = loss(model, batch_for(model), **options)
    value.sum().backward()
    return value.detach(), size, logged, [p.grad for p in model.parameters() if p.grad is not None]


def compare(model, ours, theirs, tolerance=2e-5):
    value, size, logged, gradients = run(model, ours)
    right, right_size, right_logged, right_gradients = run(model, theirs)
    assert_same(value, right, tolerance * abs(right.item()))
    assert size == right_size and logged.keys() == right_logged.keys()
    for key, expected in right_logged.items():
        if isinstance(expected, torch.Tensor):
            assert_same(logged[key], expected, tolerance * abs(expected.item()))
        else:
            assert logged[key] == expected
    assert len(gradients) == len(right_gradients) > 0
    for gradient, expected in zip(gradients, right_gradients, strict=True):
        assert_same(gradient, expected, tolerance * max(1.0, expected.abs().max().item()))


@pytest.fixture
def kernels(monkeypatch):
    """Shapes of the logits that went through the operator."""
    shapes = []
    original = fused.label_smoothed_cross_entropy

    def watched(logits, *args, **options):
        shapes.append(tuple(logits.shape))
        return original(logits, *args, **options)

    monkeypatch.setattr(fused, "label_smoothed_cross_entropy", watched)
    return shapes


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("kind", MODELS)
def test_losses_and_gradients_are_fairseqs(kind, name, kernels):
    model = MODELS[kind]().to(DEVICE)
    compare(model, criterion(name, loss_backend="triton"), criterion(name, loss_backend="reference"))
    assert kernels == [(4, 7, 24)]


@pytest.mark.parametrize(
    "options",
    [
        {"sentence_avg": True},
        {"report_accuracy": True},
        {"ignore_prefix_size": 2},
        {"label_smoothing": 0.0},
        {"ignore_prefix_size": 7},
    ],
    ids=str,
)
def test_options(options, kernels):
    model = MODELS["lite"]().to(DEVICE)
    theirs = FairseqsSmoothed(tiny_task(), **({"sentence_avg": False, "label_smoothing": 0.1} | options))
    compare(model, criterion(loss_backend="triton", **options), theirs)
    assert len(kernels) == 1
    compare(model, criterion(loss_backend="reference", **options), theirs, 0)


def test_a_prefix_that_is_ignored_stays_in_the_batch():
    model = MODELS["lite"]().to(DEVICE)
    batch = batch_for(model)
    before = batch["target"].clone()
    criterion(loss_backend="triton", ignore_prefix_size=2)(model, batch)
    assert torch.equal(batch["target"], before)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_on_a_cpu_fairseq_computes_the_loss(name, backend, kernels):
    model = MODELS["lite"]()
    ours = criterion(name, loss_backend=backend)
    options = {"label_smoothing": 0.1} if name == "label_smoothed_cross_entropy" else {}
    theirs = THEIRS[name](tiny_task(), False, **options)
    first, second = run(model, ours), run(model, theirs)
    assert torch.equal(first[0], second[0]) and first[2] == second[2]
    assert all(torch.equal(a, b) for a, b in zip(first[3], second[3], strict=True))
    assert not kernels


@pytest.mark.parametrize("name", THEIRS)
def test_losses_of_every_token_are_fairseqs(name, kernels):
    model = MODELS["lite"]().to(DEVICE)
    value, *_ = run(model, criterion(name, loss_backend="triton"), reduce=False)
    right, *_ = run(model, criterion(name, loss_backend="reference"), reduce=False)
    assert value.numel() == 4 * 7 and torch.equal(value, right)
    assert not kernels


# --- models that make log-probabilities otherwise ------------------------------------------------------------------


def test_an_adaptive_softmax_is_left_to_fairseq(kernels, monkeypatch, caplog):
    model = tiny_language_model().train()
    with pytest.raises(UnsupportedInputError, match="--loss-backend triton: the model's softmax is adaptive"):
        criterion("cross_entropy", loss_backend="triton")(model, batch_for(model))
    output = model(**batch_for(model)["net_input"])
    fused._log_obstacle.cache_clear()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with caplog.at_level(logging.INFO, "lite_transformer.criterions.fused"):
        assert fused.logits_for_kernels(model, output, "reference") is None
        assert not caplog.records
        for _ in range(2):
            assert fused.logits_for_kernels(model, output, "auto") is None
    assert [record.getMessage() for record in caplog.records] == [
        "loss: fairseq's computation instead of fused kernels: the model's softmax is adaptive"
    ]
    fused._log_obstacle.cache_clear()


def test_log_probabilities_of_another_kind_are_left_to_fairseq(monkeypatch):
    model = MODELS["lite"]()
    output = model(**batch_for(model)["net_input"])
    assert fused.obstacle(model, output) is None
    for part in (model, model.decoder):
        with monkeypatch.context() as patch:
            patch.setattr(part, "get_normalized_probs", lambda output, log_probs, sample=None: output[0])
            assert "makes log-probabilities in a way of its own" in fused.obstacle(model, output)
    assert "gives no logits" in fused.obstacle(model, {"logits": output[0]})
    assert "gives no logits" in fused.obstacle(model, (None,))


def test_a_model_in_wrappers_is_found(kernels):
    class Replica(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **inputs):
            return self.module(**inputs)

    model = MODELS["lite"]().to(DEVICE)
    wrapped = ModuleProxyWrapper(Replica(model))
    assert fused.inner_model(wrapped) is model
    criterion(loss_backend="triton")(wrapped, batch_for(model))
    assert len(kernels) == 1


def test_on_a_gpu_the_kernels_are_the_default(kernels, monkeypatch):
    model = MODELS["lite"]()
    monkeypatch.setattr(cross_entropy.Tensor, "is_cuda", True)
    logits = torch.zeros(2, 3, 24)
    assert fused.logits_for_kernels(model, (logits, {}), "auto") is logits
    assert fused.logits_for_kernels(model, (logits, {}), "reference") is None
    assert fused.logits_for_kernels(model, (logits.double(), {}), "auto") is None


# --- in the place of fairseq's -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*THEIRS, "adaptive_loss"])
def test_a_checkpoint_sees_no_difference(name):
    """fairseq compares the criterion's class name when it goes on with a training; options may be older."""
    assert CRITERION_REGISTRY[name].__module__.startswith("lite_transformer.")
    options = {"ddp_backend": "legacy_ddp"} if name == "adaptive_loss" else {}
    ours = criterion(name, **options)
    assert type(ours).__name__ == type(ours).__mro__[1].__name__
    assert ours.loss_backend == "auto"


def test_how_the_loss_is_computed_makes_no_other_run():
    configs = [{"criterion": {"_name": "cross_entropy"} | options} for options in ({}, {"loss_backend": "triton"})]
    hashes = [settings_hash(config | {"optimization": {}}) for config in configs]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_fairseq_train_goes_on_with_the_kernels(tiny_data, tiny_checkpoint, tmp_path):
    """The command with the plugin's folder, from a checkpoint whose loss fairseq computed."""
    words = commands.train_flags(tiny_data, tmp_path)
    words[words.index("--max-update") + 1] = "9"
    words += ["--restore-file", tiny_checkpoint, "--loss-backend", "triton", "--disable-validation", "--no-save"]
    output = commands.run("fairseq-train", *words, TRITON_INTERPRET="1")
    assert "Stopping training due to num_updates: 9 >= max_update: 9" in output
    assert "'loss_backend': triton" in output


# --- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "amp"])
@pytest.mark.parametrize("kind", MODELS)
def test_on_a_gpu_in_every_precision(kind, precision, kernels):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    model = MODELS[kind]().to(DEVICE, dtype)
    with torch.autocast("cuda", torch.float16, enabled=precision == "amp"):
        tolerance = 1e-4 if precision == "fp32" else 2e-2
        compare(model, criterion(), criterion(loss_backend="reference"), tolerance)
    assert len(kernels) == 1


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_nothing_waits_for_the_gpu():
    model = MODELS["lite"]().to(DEVICE)
    loss, batch = criterion(), batch_for(model)
    loss(model, batch)[0].backward()
    output = model(**batch["net_input"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss.compute_loss(model, output, batch)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
