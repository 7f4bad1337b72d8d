"""compress, inspect, decompress; and a packed file wherever a checkpoint is taken."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from data_prep.text import TextPipeline
from lite_transformer.cli.main import main
from lite_transformer.compression import packed
from lite_transformer.errors import CheckpointError
from lite_transformer.macs.counter import count_model
from lite_transformer.models import packed_checkpoint
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.scoring import decoding, likelihood
from tests.helpers.commands import ROOT
from tests.helpers.disk import fill_disk, needs_full_device


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory) -> Path:
    """The tiny corpus with the text settings that `prepare` would have left: words are units, nothing is split."""
    folder = tmp_path_factory.mktemp("data") / "bin"
    shutil.copytree(tiny_data, folder)
    (folder / "bpe").mkdir()
    (folder / "bpe" / "codes").write_text("#version: 0.2\n1 2</w>\n")
    texts = {language: TextPipeline(language, normalize=False, tokenizer="none").to_json() for language in ("de", "en")}
    (folder / "prepare.json").write_text(json.dumps({"corpus": "tiny", "text": texts}))
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe that does something to so small a model."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(
        "description: for tests\nprune: {sparsity: 0.4}\ncore: {method: kmeans, bits: 6}\n"
        "embeddings: {method: linear, bits: 8}\nmin_elements: 60\n"
    )
    return path


@pytest.fixture(scope="module")
def compressed(tiny_checkpoint, data, recipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.ltpack"
    words = ["compress", tiny_checkpoint, "--recipe", recipe, "--data", data, "--out", path]
    assert main(list(map(str, words))) == 0
    return path


def run(capsys, *words) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def report_of(capsys, path) -> dict:
    code, out, _ = run(capsys, "inspect", path, "--json")
    assert code == 0
    return json.loads(out)


def test_inspect_accounts_for_every_byte_and_parameter(compressed, data, tiny_checkpoint, capsys):
    report = report_of(capsys, compressed)
    size = compressed.stat().st_size
    assert report["size_bytes"] == report["everything"]["bytes"] == sum(report["sections_bytes"].values()) == size
    assert report["core"]["bytes"] + report["embeddings"]["bytes"] + report["texts_bytes"] == size
    loaded = decoding.load([tiny_checkpoint], data, cpu=True)
    counted = count_model(loaded.models[0], 5, 5)
    assert report["core"]["parameters"] == counted.params_core
    assert report["everything"]["parameters"] == counted.params_total
    assert report["core"]["ratio"] == round(4 * counted.params_core / report["core"]["bytes"], 2)
    base = report["core"]["times_smaller_than_transformer_base"]
    assert base == round(176_553_984 / report["core"]["bytes"], 2)
    matrices = [item for item in report["tensors"] if item["form"] == "quantized" and item["group"] == "core"]
    zeros = sum(item["sparsity"] * torch.Size(item["shape"]).numel() for item in matrices)
    elements = sum(torch.Size(item["shape"]).numel() for item in matrices)
    assert zeros / elements == pytest.approx(0.4, abs=2e-3)
    assert report["recipe"]["name"] == "small" and report["core"]["code_bits"] == [6]


def test_inspect_is_readable(compressed, capsys):
    code, out, _ = run(capsys, "inspect", compressed, "--tensors")
    assert code == 0
    assert "recipe small" in out and "text/dict.de.txt" in out and "times below Transformer base's core" in out
    assert "as encoder.embed_tokens.weight" in out or "encoder.embed_tokens.weight" in out
    assert len([line for line in out.splitlines() if line.startswith("decoder.layers.0")]) > 10


def test_evaluate_gives_what_the_dequantized_checkpoint_gives(compressed, data, tmp_path, capsys):
    checkpoint = tmp_path / "dequantized.pt"
    assert run(capsys, "decompress", compressed, "--out", checkpoint)[0] == 0
    outputs = []
    for path in (compressed, checkpoint):
        text = tmp_path / f"{path.stem}.txt"
        code, out, _ = run(
            capsys, "evaluate", "--checkpoint", path, "--data", data, "--cpu", "--json", "--output", text
        )
        assert code == 0
        outputs.append((json.loads(out)["scores"], text.read_text()))
    assert outputs[0] == outputs[1] and outputs[0][1].strip()
    first, second = (decoding.load([path], data, cpu=True).models[0].state_dict() for path in (compressed, checkpoint))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    dense = load_checkpoint(compressed)["model"]
    assert all(torch.equal(first[name], dense[name]) for name in first)


def test_weights_are_near_the_trained_ones(compressed, tiny_checkpoint):
    before, after = load_checkpoint(tiny_checkpoint)["model"], load_checkpoint(compressed)["model"]
    assert before.keys() == after.keys()
    table = "encoder.embed_tokens.weight"
    assert 0 < (before[table] - after[table]).abs().max() < 0.01 * before[table].abs().max()
    name = next(name for name in before if name.endswith("fc1.weight"))
    kept = after[name] != 0
    assert (before[name] - after[name])[kept].abs().max() < 0.05 * before[name].abs().max()
    assert before[name].abs()[~kept].max() < before[name].abs()[kept].max() / 2


def test_translate_needs_nothing_but_what_the_file_brings(compressed, data, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "own"
    code, out, _ = run(capsys, "decompress", compressed, "--data-out", folder)
    assert code == 0 and "prepare.json" in out
    brought = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert brought == {"dict.de.txt", "dict.en.txt", "prepare.json", "bpe/codes"}
    found = []
    for texts in (data, folder):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1 2 3\n7 7\n")))
        code, out, _ = run(capsys, "translate", "--checkpoint", compressed, "--data", texts, "--cpu")
        assert code == 0 and out.count("\n") == 2
        found.append(out)
    assert found[0] == found[1]


def test_ensemble_of_a_checkpoint_and_a_packed_file(compressed, tiny_checkpoint, data):
    loaded = decoding.load([tiny_checkpoint, compressed, compressed], data, cpu=True)
    first, second, third = (model.encoder.embed_tokens.weight for model in loaded.models)
    assert not torch.equal(first, second) and torch.equal(second, third)


def test_other_dictionaries_are_refused(compressed, data, tmp_path, capsys):
    other = shutil.copytree(data, tmp_path / "other")
    lines = (other / "dict.de.txt").read_text().splitlines()
    (other / "dict.de.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    code, _, err = run(capsys, "evaluate", "--checkpoint", compressed, "--data", other, "--cpu")
    assert code == 2 and err.strip().count("\n") == 0
    assert "was made with another dict.de.txt" in err and "lite-transformer decompress" in err


def test_core_alone_is_a_file_to_be_measured(tiny_checkpoint, data, recipe, tmp_path, capsys):
    out, core = tmp_path / "model.ltpack", tmp_path / "core.ltpack"
    words = ["--recipe", recipe, "--data", data, "--out", out, "--core-out", core, "--steps", "--json"]
    code, text, _ = run(capsys, "compress", tiny_checkpoint, *words)
    report = json.loads(text)
    assert code == 0 and report["core_file_bytes"] == core.stat().st_size
    assert 0.9 * report["core"]["bytes"] < core.stat().st_size < report["core"]["bytes"]
    assert [row["step"].split()[0] for row in report["steps"]] == ["fp32,", "quantized,", "and", "and"]
    sizes = [row["core_bytes"] for row in report["steps"]]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == core.stat().st_size
    assert report["steps"][-1]["bytes"] == out.stat().st_size
    code, _, err = run(capsys, "evaluate", "--checkpoint", core, "--data", data, "--cpu")
    assert code == 2 and "holds only the core of a model" in err
    assert report_of(capsys, core)["part"] == "core"
    assert "cannot translate" in run(capsys, "inspect", core)[1]


def test_configuration_names_no_folder_of_the_machine(compressed, data, tiny_checkpoint):
    text = json.dumps(packed.read(compressed).meta)
    assert str(data) not in text and str(tiny_checkpoint.parent) not in text
    state = load_checkpoint(compressed)
    before = load_checkpoint(tiny_checkpoint)
    assert state["cfg"]["model"] == json.loads(json.dumps(before["cfg"]["model"]))
    assert state["optimizer_history"][-1]["num_updates"] == before["optimizer_history"][-1]["num_updates"]
    assert decoding.languages_of(compressed) == ("de", "en")


def test_checkpoint_of_the_published_code_is_packed(tmp_path, capsys):
    golden = ROOT / "tests" / "fixtures" / "reference"
    path, checkpoint = tmp_path / "golden.ltpack", tmp_path / "golden.pt"
    assert run(capsys, "compress", golden / "golden.pt", "--data", golden, "--out", path)[0] == 0
    assert run(capsys, "decompress", path, "--out", checkpoint)[0] == 0
    first, second, trained = (
        decoding.load([file], golden, cpu=True).models[0].state_dict()
        for file in (path, checkpoint, golden / "golden.pt")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.allclose(first[name], trained[name], atol=0.01) for name in first)


def test_damaged_file_is_one_line_in_every_verb(compressed, data, tmp_path, capsys):
    damaged = tmp_path / "damaged.ltpack"
    damaged.write_bytes(compressed.read_bytes()[:-5])
    for words in (
        ["inspect", damaged],
        ["decompress", damaged, "--out", tmp_path / "x.pt"],
        ["evaluate", "--checkpoint", damaged, "--data", data, "--cpu"],
        ["translate", "--checkpoint", damaged, "--data", data, "--cpu"],
    ):
        code, _, err = run(capsys, *words)
        assert code == 2 and "cut off" in err and err.strip().count("\n") == 0, words
    assert not (tmp_path / "x.pt").exists()


def test_wrong_use_is_one_line(tiny_checkpoint, compressed, tiny_data, tmp_path, capsys):
    for words, reason in (
        (["compress", tiny_checkpoint], "--out is missing"),
        (["compress"], "which checkpoint?"),
        (["compress", tiny_checkpoint, "--out", tmp_path / "no" / "x"], "there is no folder"),
        (["compress", tiny_checkpoint, "--out", tmp_path / "x", "--recipe", "odd"], "unknown recipe 'odd'"),
        (["compress", tmp_path / "none.pt", "--out", tmp_path / "x"], "does not exist"),
        (["compress", tiny_checkpoint, "--out", tmp_path / "x", "--data", tmp_path], "dict.de.txt cannot be read"),
        (["compress", tiny_checkpoint, "--scan", tmp_path / "x"], "--scan needs --data"),
        (["compress", tiny_checkpoint, "--scan", tmp_path / "x", "--data", tiny_data, "--sparsities", "1"], "below 1"),
        (["decompress", compressed], "nothing to write"),
        (["decompress", compressed, "--out", tmp_path / "no" / "x"], "cannot write"),
        (["inspect", tmp_path], "cannot be read"),
        (["inspect", tiny_checkpoint], "it does not begin like one"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2 and reason in err and err.strip().count("\n") == 0, words
    assert not list(tmp_path.iterdir())


def test_packing_what_is_packed_by_the_recipe_changes_nothing(tiny_checkpoint, data, tmp_path, capsys):
    recipe, first, second, other = (tmp_path / name for name in ("rows.yaml", "1.ltpack", "2.ltpack", "3.ltpack"))
    rows = "{method: kmeans_rows, bits: 3}"
    recipe.write_text(f"description: x\ncore: {rows}\nembeddings: {rows}\nmin_elements: 60\n")
    words = ["compress", tiny_checkpoint, "--recipe", recipe, "--data", data, "--out", first]
    assert run(capsys, *words)[0] == 0
    assert run(capsys, "compress", first, "--recipe", recipe, "--out", second)[0] == 0
    assert second.read_bytes() == first.read_bytes()
    assert run(capsys, "compress", first, "--recipe", "int8", "--out", other)[0] == 0
    assert packed.read(other).meta["recipe"]["name"] == "int8"
    assert packed.read(other).texts == packed.read(first).texts != {}
    weights, again = (load_checkpoint(path)["model"] for path in (first, other))
    assert any(not torch.equal(again[name], weight) for name, weight in weights.items())


def test_recipes_are_listed(capsys):
    code, out, _ = run(capsys, "compress", "--list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["int8", "int8+prune50", "paper", "tiny"]
    assert json.loads(run(capsys, "compress", "--list", "--json")[1])[2]["core"] == {"method": "kmeans", "bits": 8}


def test_scan_writes_figures_and_a_plot(tiny_checkpoint, data, recipe, tmp_path, capsys):
    path = tmp_path / "new" / "scan.json"
    words = ["--scan", path, "--recipe", recipe, "--data", data, "--sentences", 7, "--sparsities", 0.5, 0.9, "--cpu"]
    code, out, _ = run(capsys, "compress", tiny_checkpoint, *words)
    result = json.loads(path.read_text())
    assert code == 0 and path.with_suffix(".png").stat().st_size > 5000
    assert result["sentences"] == 7 and len(result["pruned_alone"]) == len(result["parameters"]) > 0
    assert all(len(found) == 2 for found in result["pruned_alone"].values())
    assert any(abs(found[1] - result["dense"]) > 1e-4 for found in result["pruned_alone"].values())
    assert "bits a token" in out


def test_loss_is_that_of_the_reference_in_bits(tiny_checkpoint, data):
    loaded = decoding.load([tiny_checkpoint], data, cpu=True)
    loss = likelihood.Loss(loaded, "test", 5)
    dataset = loaded.task.dataset("test")
    total, tokens = 0.0, 0
    for index in range(5):
        batch = dataset.collater([dataset[index]])
        with torch.no_grad():
            logits = loaded.models[0](**batch["net_input"])[0][0]
        total -= float(torch.log_softmax(logits, -1).gather(1, batch["target"].T).sum()) / 0.6931471805599453
        tokens += batch["target"].numel()
    assert loss() == pytest.approx(total / tokens, rel=1e-5)
    assert likelihood.Loss(loaded, "test", 10**6).sentences == 21


@needs_full_device
def test_full_disk_leaves_no_checkpoint(compressed, tmp_path, monkeypatch):
    output = tmp_path / "x.pt"
    output.write_bytes(b"old")
    fill_disk(monkeypatch)
    with pytest.raises(
        CheckpointError, match=r"cannot write .*x.pt: No space left on device. The old file, if any, is"
    ):
        packed_checkpoint.write_checkpoint(compressed, output)
    assert output.read_bytes() == b"old" and list(tmp_path.iterdir()) == [output]
