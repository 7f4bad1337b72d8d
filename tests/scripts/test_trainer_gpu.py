"""fairseq's Trainer with and without CUDA graphs ends at the same losses."""

import sys

import pytest
import torch
from fairseq.logging import metrics

from tests.helpers.commands import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import bench_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = {"fp32": 2e-3, "bf16": 2e-2, "amp": 1e-2, "fp16": 1e-2}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("arch", ["lite_transformer_iwslt_de_en", "transformer_iwslt_de_en_63m"])
def test_thirty_updates_have_the_losses_of_eager_training(arch, precision):
    args = bench_training.parse_args([
        "--arch", arch, "--precision", precision, "--max-tokens", "512", "--batches", "5", "--update-freq", "2",
        "--vocabulary", "200", "--model", "dropout=0", "--model", "attention_dropout=0", "--clip-norm", "1",
        *(["--model", "weight_dropout=0"] if arch.startswith("lite") else []),
    ])  # fmt: skip
    (system,) = bench_training.find_systems(args)
    dataset = bench_training.dataset_of(system, args)
    updates = bench_training.updates_of(dataset, args)
    losses = {}
    for variant in ("eager", "ours"):
        trainer = bench_training.make_trainer(system, variant, dataset, args)
        losses[variant] = []
        for update in updates * 6:
            with metrics.aggregate(new_root=True) as logged:
                if trainer.train_step(update) is not None:
                    losses[variant].append(logged["loss"].avg)
        losses[variant] = [float(loss) for loss in losses[variant]]
    captured = trainer.get_model().graphs._passes
    assert captured
    assert len(losses["ours"]) >= 25  # a few fp16 updates may overflow
    assert losses["ours"][-1] < losses["ours"][0]
    assert losses["ours"] == pytest.approx(losses["eager"], rel=TOLERANCE[precision])
