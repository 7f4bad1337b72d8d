import json
import sys

import pytest

from tests.helpers.commands import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import _benchmark
import bench_training

ARCH = "lite_transformer_iwslt_de_en"
SMALL = [
    "--cpu", "--max-tokens", "64", "--batches", "2", "--rounds", "2", "--warm-up-rounds", "0", "--vocabulary", "30",
    "--model", "encoder_layers=1", "--model", "decoder_layers=1", "--model", "encoder_embed_dim=16",
    "--model", "dropout=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_commands(monkeypatch):
    monkeypatch.setattr(_benchmark, "git", lambda *words: "abc")


def test_training_is_measured_recorded_plotted_and_profiled(tmp_path, capsys):
    files = {name: tmp_path / "new" / f"bench.{name}" for name in ("json", "svg", "profile")}
    words = ["--arch", ARCH, *SMALL, "--peak-tflops", "1", "--record", str(files["json"]), "--plot", str(files["svg"])]
    assert bench_training.main([*words, "--profile", str(files["profile"])]) == 0
    record = json.loads(files["json"].read_text())
    assert record["benchmark"] == "training"
    assert record["command"].startswith("scripts/bench_training.py --arch")
    assert record["commit"] == "abc"
    (result,) = record["results"]
    assert list(result["variants"]) == ["plain", "eager", "ours"]
    for figures in result["variants"].values():
        speed = figures["updates_per_second"]
        assert len(speed["samples"]) == 2
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        flops = figures["model_tflops"]["median"]
        assert flops == pytest.approx(result["model_tflop_per_update"] * speed["median"])
        assert figures["model_flops_utilisation"]["median"] == pytest.approx(flops)
    assert files["svg"].read_text().lstrip().startswith("<?xml")
    profile = json.loads(files["profile"].read_text())[ARCH]["ours"]
    assert profile["steps"] == 2
    assert profile["top_cpu"][0]["us_per_step"] > 0
    assert "ours" in capsys.readouterr().out


def test_search_is_measured(tmp_path):
    record = tmp_path / "generation.json"
    words = ["--arch", ARCH, *SMALL, "--generate", "--generate-length", "3", "--sentences", "4"]
    assert bench_training.main([*words, "--record", str(record)]) == 0
    (result,) = json.loads(record.read_text())["results"]
    assert list(result["variants"]) == ["greedy", "beam 5"]
    assert result["variants"]["beam 5"]["sentences_per_second"]["median"] > 0


def test_variants_that_disagree_are_not_measured(monkeypatch):
    original = bench_training.use_fairseqs_pass

    def wrong(model):
        original(model)
        model.decoder.embed_scale *= 3

    monkeypatch.setattr(bench_training, "use_fairseqs_pass", wrong)
    with pytest.raises(SystemExit, match="the variants disagree on the loss"):
        bench_training.main(["--arch", ARCH, *SMALL])


def test_flops_of_a_batch_are_those_of_its_real_tokens():
    args = bench_training.parse_args(["--arch", ARCH, *SMALL])
    dataset = bench_training.drawn_dataset(ARCH, args)
    lengths = [(int(s), int(t)) for s, t in zip(dataset.src_sizes, dataset.tgt_sizes, strict=True)]
    pair = dataset.collater([dataset[0], dataset[1]])
    alone = [dataset.collater([dataset[i]]) for i in range(2)]
    together = bench_training.flops_of(ARCH, [[pair]], dataset, args)
    assert lengths[0] != lengths[1]
    assert together == [sum(bench_training.flops_of(ARCH, [alone], dataset, args))]


def test_unknown_variant(capsys):
    with pytest.raises(SystemExit):
        bench_training.parse_args(["--arch", ARCH, "--variants", "fast"])
    assert "'fast' is none of plain, eager, ours" in capsys.readouterr().err
