"""The fuzzer finds faults, sizes of an untrained architecture are measured, and the records hold what they claim."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_prep.io import sha256
from lite_transformer import results
from lite_transformer.cli.main import main
from lite_transformer.compression import apply, packed, tables
from lite_transformer.compression.packed import PackedModel
from lite_transformer.compression.recipes import load_recipe
from lite_transformer.errors import DataError
from lite_transformer.models.safe_load import load_checkpoint
from tests.helpers.commands import ROOT, environment
from tests.helpers.models import tiny_model

sys.path.insert(0, str(ROOT / "scripts"))
import bench_compression
import compressed_size
import fuzz_packed

RESULTS = ROOT / "results" / "compression"


def test_damaged_files_are_read_or_refused():
    result = fuzz_packed.fuzz(300, seed=3)
    assert result["faults"] == []
    assert set(result["outcomes"]) == set(fuzz_packed.DAMAGES) and len(fuzz_packed.DAMAGES) == 8
    together = [sum(counts.get(what, 0) for counts in result["outcomes"].values()) for what in ("read", "refused")]
    assert sum(together) == 300 and min(together) > 20


def test_fuzzer_sees_a_fault(monkeypatch, capsys):
    def careless(*_):
        raise IndexError("out of bounds")

    monkeypatch.setattr(packed, "_described", careless)
    assert fuzz_packed.main(["--inputs", "40"]) == 1
    assert "IndexError: out of bounds" in capsys.readouterr().out


def test_record_of_the_fuzzer():
    record = json.loads((RESULTS / "fuzz_packed.json").read_text())
    assert record["inputs"] >= 50_000 and record["faults"] == []
    assert sum(sum(counts.values()) for counts in record["outcomes"].values()) == record["inputs"]
    assert record["peak_memory_bytes"] <= fuzz_packed.MEMORY_LIMIT_BYTES and record["longest_seconds"] < 5
    assert "fuzz_packed.py" in record["command"] and record["commit"]


def test_record_of_the_paper_s_size():
    """18.2 times below Transformer base's core, with everything counted; 10 times with embeddings."""
    record = json.loads((RESULTS / "wmt14_en_fr_496.json").read_text())
    result = record["results"]["paper"]
    assert record["arch"] == "lite_transformer_wmt_en_fr" and record["vocabulary"] == 44_512
    assert result["core"]["parameters"] == 17_283_616 and result["embeddings"]["parameters"] == 44_512 * 496
    assert result["core_file_bytes"] <= 9_700_000 and result["core_times_smaller_than_transformer_base"] >= 18.2
    assert result["file_bytes"] <= 25_000_000
    assert result["recipe"] == load_recipe("paper").to_json(), "measured with another recipe: measure again"
    assert record["weights"]["sha256"] and record["weights"]["updates"]


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_a_matrix_of_the_paper_s_recipe_takes_its_share(kind):
    """9.7 MB for 17,283,616 parameters are 4.49 bits each, codebook, table and index included."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(496, 496, generator=generator)
    if kind == "laplace":
        weight = weight.sign() * -torch.rand(496, 496, generator=generator).log()
    found = apply.compress({"fc1.weight": weight}, load_recipe("paper"))
    size = len(packed.pack(PackedModel({}, found)))
    assert 8 * size / weight.numel() <= 8 * 9.7e6 / 17_283_616
    assert (found["fc1.weight"].dense() == 0).mean() == pytest.approx(0.56, abs=1e-4)


def test_weights_are_drawn_from_those_of_their_kind():
    trained = tiny_model(share_all_embeddings=True).state_dict()
    for number, (name, weight) in enumerate(trained.items()):
        if "fc1.weight" in name:
            trained[name] = torch.full_like(weight, float(number))
    # four times the fan-in: half the deviation
    wanted = tiny_model(
        encoder_embed_dim=64, encoder_layers=3, encoder_kernel_sizes=[3, 3, 3], share_all_embeddings=True
    )
    weights = wanted.state_dict()
    found = compressed_size.drawn(weights, trained)
    assert {name: weight.shape for name, weight in found.items()} == {n: w.shape for n, w in weights.items()}
    pool = {float(trained[f"encoder.layers.{layer}.fc1.weight"][0, 0]) / 2 for layer in (0, 1)}
    assert set(found["encoder.layers.2.fc1.weight"].unique().tolist()) == pool
    assert found["decoder.embed_tokens.weight"] is found["encoder.embed_tokens.weight"]
    assert (
        torch.isin(found["encoder.layers.0.fc1.bias"], trained["encoder.layers.0.fc1.bias"].unique()).float().mean()
        > 0.4
    )
    gaussian = compressed_size.drawn(weights, None)
    name = "encoder.layers.0.fc1.weight"
    assert float(gaussian[name].std()) == pytest.approx(float(weights[name].std()), rel=0.1)
    assert not torch.equal(gaussian[name], weights[name])


def test_every_recipe_is_measured_on_a_trained_model(
    tiny_checkpoint, tiny_data, tiny_raw, tmp_path, monkeypatch, capsys
):
    def in_this_process(*words):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main([*map(str, words), "--json"]) == 0, words
        return json.loads(out.getvalue())

    monkeypatch.setattr(bench_compression, "command", in_this_process)
    shutil.copytree(tiny_data, tmp_path / "bin")
    shutil.copytree(tiny_raw, tmp_path / "raw")
    folder, files = tmp_path / "results", tmp_path / "files"
    record = folder / "compression" / "tiny.json"
    words = [tiny_checkpoint, "--data", tmp_path / "bin", "--cpu", "--beam", 1, "--record", record, "--files", files]
    words += ["--recipes", "int8", "--trained", f"tiny={tiny_checkpoint}"]
    assert bench_compression.main(list(map(str, words))) == 0
    found = json.loads(record.read_text())
    fp32, int8, tiny = found["rows"]
    assert [row["recipe"] for row in (fp32, int8, tiny)] == ["fp32", "int8", "tiny"]
    assert [row["trained"] for row in (fp32, int8, tiny)] == [False, False, True]
    assert fp32["file_bytes"] > int8["file_bytes"] > int8["core_file_bytes"] > 0 and len(int8["steps"]) == 4
    assert int8["file_bytes"] == (files / "int8" / "model.ltpack").stat().st_size
    assert tiny["sha256"] == sha256(files / "tiny.trained" / "model.ltpack")
    assert all(0 <= row["p_value"] <= 1 for row in (int8, tiny))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(line.count("|") == 17 for line in lines)
    assert "| int8 | no | " in lines[3] and "| tiny | yes | " in lines[4]
    # the record is what the block of a page and the plot are made of
    assert found["task"] == f"{tmp_path.name}-de-en" and found["model"].startswith("lite_transformer") and found["seed"]
    page = tmp_path / "page.md"
    page.write_text(f"<!-- compression: {found['task']} -->\n<!-- end -->\n")
    results.write_blocks(page, folder)
    assert page.read_text().splitlines()[2:-2] == lines
    (plot,) = tables.write_plots(folder, tmp_path / "plots")
    assert plot.name == f"{found['task']}-compression.png" and plot.stat().st_size > 5000


def test_the_whole_way_is_one_command(tiny_checkpoint, tiny_data, tmp_path):
    recipe, out, record = tmp_path / "small.yaml", tmp_path / "out", tmp_path / "record.json"
    recipe.write_text(
        "description: for tests\nprune: {sparsity: 0.5}\ncore: {method: kmeans, bits: 4}\n"
        "embeddings: {method: linear, bits: 8}\nmin_elements: 60\n"
    )
    small = "--cpu model.encoder_embed_dim=16 model.encoder_layers=2 model.decoder_layers=2 dataset.num_workers=0"
    words = [
        "bash",
        ROOT / "scripts" / "reproduce_compression.sh",
        "iwslt14_de_en_lite_160",
        tiny_checkpoint,
        tiny_data,
    ]
    words += [out, "3", "--recipes", "--cpu", "--beam", "1", "--record", record]
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    extra = {"RECIPES": str(recipe), "UPDATES": "5", "TRAIN": small, "PATH": folders}
    done = subprocess.run(
        list(map(str, words)), env=environment(**extra), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    fp32, trained = json.loads(record.read_text())["rows"]
    assert (fp32["recipe"], trained["recipe"], trained["trained"]) == ("fp32", "small", True)
    assert 0.4 < trained["core_sparsity"] < 0.5 and trained["core_code_bits"] == [4]
    weights = load_checkpoint(out / "small" / "checkpoint_best.pt")["model"]
    zeros = [float((weight == 0).float().mean()) for name, weight in weights.items() if name.endswith("fc1.weight")]
    assert len(zeros) == 4 and min(zeros) > 0.2, "pruned while it was trained, not only when it was packed"
    again = list(map(str, words))
    again[3] = str(tmp_path / "none.pt")
    again[5] = str(tmp_path / "other")
    done = subprocess.run(again, env=environment(**extra), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "none.pt does not exist" in done.stderr


def record_of(seed: int, score: float, model: str = "small", **more) -> dict:
    dense = {"recipe": "fp32", "trained": False, "file_bytes": 4_000_000, "scores": {"sacrebleu": 40.0 + seed}}
    packed_file = {
        "recipe": "int8", "trained": True, "core_file_bytes": 500_000, "file_bytes": 1_000_000 + 200_000 * seed,
        "core_ratio": 4.0, "ratio": 4.0, "core_sparsity": 0.25, "core_bits_per_parameter": 8.0,
        "embeddings_bits_per_parameter": 8.0, "compress_seconds": 1.0, "load_seconds": 0.1,
        "scores": {"sacrebleu": score}, "p_value": 0.5,
    }  # fmt: skip
    return {"benchmark": "compression", "task": "t", "model": model, "seed": seed, "rows": [dense, packed_file]} | more


def test_seeds_of_a_model_are_one_row():
    text = tables.render_records([record_of(1, 41.1), record_of(2, 41.8), record_of(1, 30.0, "other")])
    small, int8, other, _ = (line.split(" | ") for line in text.splitlines()[2:])
    assert small[0] == "| small" and small[10:13] == ["2", "41.50 (41.00 to 42.00)", ""]
    assert int8[1:8] == ["int8", "yes", "0.500", "4.0", "1.300", "4.0", "25 %"]
    assert int8[10:14] == ["2", "41.45 (41.10 to 41.80)", "-0.05 (-0.20 to +0.10)", "0.500, 0.500"]
    assert other[0] == "| other"


def test_records_that_cannot_be_shown_are_named(tmp_path):
    folder = tmp_path / "compression"
    folder.mkdir()
    (folder / "fuzz.json").write_text('{"inputs": 3}')
    (folder / "a.json").write_text(json.dumps(record_of(1, 41.0)))
    assert tables.render(tmp_path, "t").count("\n") == 4
    with pytest.raises(DataError, match=r"no record of compression of 'u' in .*compression. Known: t$"):
        tables.render(tmp_path, "u")
    broken = record_of(1, 41.0)
    del broken["rows"][0]
    with pytest.raises(DataError, match=r"not a record of bench_compression.py \(StopIteration"):
        tables.render_records([broken])


def test_records_of_the_repository_can_be_shown():
    for record in RESULTS.glob("*.json"):
        content = json.loads(record.read_text())
        if content.get("benchmark") == "compression":
            assert len(tables.rows_of([content])) == len(content["rows"]) > 1 and content["commit"]
