"""The benchmark of the convolutions on the CPU: what it writes, and that it measures nothing wrong."""

import json
import sys

import pytest
import torch

from tests.helpers.commands import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import _benchmark
import bench_ops

SMALL = ["--device", "cpu", "--case", "fp32,12,2,31", "--case", "fp32,512,1,3", "--rounds", "2"]


@pytest.fixture(autouse=True)
def no_commands(monkeypatch):
    monkeypatch.setattr(_benchmark, "git", lambda *words: "abc")


def test_figures_are_recorded_printed_and_plotted(tmp_path, capsys):
    record, plot = tmp_path / "new" / "ops.json", tmp_path / "new" / "ops.svg"
    assert bench_ops.main([*SMALL, "--record", str(record), "--plot", str(plot)]) == 0
    content = json.loads(record.read_text())
    assert content["commit"] == "abc"
    assert content["command"].startswith("scripts/bench_ops.py --device cpu")
    assert [(r["kind"], r["case"]["length"]) for r in content["results"]] == [
        ("lightweight", 12), ("dynamic", 12), ("lightweight", 512), ("dynamic", 512),
    ]  # fmt: skip
    for result in content["results"]:
        assert set(result["variants"]) == {"ours", "fairseq"}
        for parts in result["variants"].values():
            figures = parts["both"]["eager"]
            assert len(figures["samples"]) == 2
            assert 0 < figures["min"] <= figures["median"] <= figures["max"]
    assert "dynamic, fp32 T=12 B=2 K=31 C=248" in capsys.readouterr().out
    assert plot.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize("part", ["output", "gradient of weight"])
def test_a_wrong_variant_ends_the_program(monkeypatch, tmp_path, part):
    right = bench_ops.of_ops("lightweight", backend="reference")

    def wrong(x, weight):
        return right(x, weight) * 1.01 if part == "output" else right(x, weight.detach() + 0 * weight)

    monkeypatch.setattr(bench_ops, "of_fairseq", lambda kind: wrong)
    with pytest.raises(SystemExit, match=f"{part} of 'fairseq' is off by .*: nothing is measured"):
        bench_ops.main([*SMALL, "--record", str(tmp_path / "ops.json")])
    assert not (tmp_path / "ops.json").exists()


def test_floors_are_those_of_the_bytes():
    case = bench_ops.Case("fp16", 512, 32, 31)
    assert case.floor_us("lightweight", 3.0) == pytest.approx((5.4, 13.5), abs=0.1)
    assert case.floor_us("dynamic", 3.0) == pytest.approx((6.8, 17.6), abs=0.1)


def test_the_other_ways_compute_the_convolution():
    for kind, compute in (("lightweight", bench_ops.as_conv1d), ("dynamic", bench_ops.as_band_matrix)):
        x, weight, _ = bench_ops.Case("fp32", 9, 2, 5).tensors(kind, "cpu")
        right = bench_ops.of_ops(kind, backend="reference")(x, weight)
        assert torch.allclose(compute(x, weight), right, atol=1e-5)


def test_bad_cases_are_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        bench_ops.main(["--case", "fp16,512"])
    assert "--case fp16,512: write DTYPE,T,B,K" in capsys.readouterr().err
