"""Language models take the way of translation models: trained by a recipe, packed, read, scored, unpacked."""

import json
import shutil

import pytest
import torch

from lite_transformer.cli.main import main
from lite_transformer.compression import apply, packed, training
from lite_transformer.macs.counter import count_model
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.scoring import decoding
from lite_transformer.tasks.compressed import CompressionConfig
from tests.helpers.commands import TEXT_EXPERIMENT, TINY_TEXT


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(
        "description: for tests\nprune: {sparsity: 0.5}\ncore: {method: kmeans, bits: 4}\n"
        "embeddings: {method: linear, bits: 8}\nmin_elements: 60\n"
    )
    return path


def run(capsys, *words) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def evaluated(capsys, path, data) -> dict:
    window = ["--tokens-per-sample", 16, "--context-window", 6]
    code, out, _ = run(capsys, "evaluate", "--checkpoint", path, "--data", data, *window, "--cpu", "--json")
    assert code == 0
    return json.loads(out)


def test_a_packed_language_model_is_one(tiny_text, tiny_text_checkpoint, recipe, tmp_path, capsys):
    path, back, texts = tmp_path / "model.ltpack", tmp_path / "back.pt", tmp_path / "texts"
    data = tmp_path / "bin"
    shutil.copytree(tiny_text, data)
    text = {"en": {"language": "en", "normalize": False, "tokenizer": "none", "subword": "none"}}
    (data / "prepare.json").write_text(json.dumps({"corpus": "digits", "text": text}))
    words = ["compress", tiny_text_checkpoint, "--recipe", recipe, "--data", data, "--out", path, "--json"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    report = json.loads(out)
    loaded = decoding.load([tiny_text_checkpoint], data, cpu=True)
    counted = count_model(loaded.models[0], 8, 8)
    assert list(packed.read(path).texts) == ["dict.txt", "prepare.json"]
    assert report["core"]["parameters"] == counted.params_core, "the softmax's clusters are no core"
    assert report["everything"]["parameters"] == counted.params_total
    assert run(capsys, "decompress", path, "--out", back, "--data-out", texts)[0] == 0
    assert (texts / "dict.txt").read_bytes() == (data / "dict.txt").read_bytes()
    found, expected = (evaluated(capsys, file, data) for file in (path, back))
    assert found["bits_per_token"] == expected["bits_per_token"]
    assert (found["decoding"], expected["decoding"]) == ("packed by recipe small", "one checkpoint")
    assert evaluated(capsys, tiny_text_checkpoint, data)["bits_per_token"] != found["bits_per_token"]
    words = ["generate", "--checkpoint", path, "--data", texts, "--prompt", "1 2 3", "--length", 4, "--cpu"]
    code, out, err = run(capsys, *words)
    assert code == 0 and out.strip(), err


def test_a_language_model_is_trained_by_a_recipe(tiny_text, tiny_text_checkpoint, recipe, tmp_path, capsys):
    folder, path = tmp_path / "run", tmp_path / "model.ltpack"
    words = ["train", TEXT_EXPERIMENT, "--data", tiny_text, "--save-dir", folder, *TINY_TEXT]
    words += ["task._name=compressed_language_modeling", f"task.compression_recipe={recipe}", "task.prune_interval=1"]
    words += [f"checkpoint.finetune_from_model={tiny_text_checkpoint}", "optimization.max_update=6"]
    code, _, err = run(capsys, *words)
    assert code == 0, err
    state = load_checkpoint(folder / "checkpoint_last.pt")["model"]
    chosen = {
        name: weight
        for name, weight in state.items()
        if weight.dim() > 1 and weight.numel() >= 60 and not apply.is_embedding(name)
    }
    assert len(chosen) > 10 and all(len(weight.unique()) <= 16 for weight in chosen.values())
    zeros = sum(int((weight == 0).sum()) for weight in chosen.values())
    assert zeros == round(0.5 * sum(weight.numel() for weight in chosen.values()))
    assert run(capsys, "compress", folder / "checkpoint_last.pt", "--recipe", recipe, "--out", path)[0] == 0
    config = load_checkpoint(path)["cfg"]["task"]
    assert config["_name"] == "language_modeling" and "tie_from" not in config
    unpacked = load_checkpoint(path)["model"]
    assert all(torch.equal(unpacked[name], weight.half().float()) for name, weight in chosen.items())
    # the checkpoint of the training itself is known for a language model, too
    evaluated(capsys, folder / "checkpoint_last.pt", tiny_text)


def test_options_of_the_tasks_are_those_that_packing_takes_away():
    names = set(CompressionConfig.__dataclass_fields__) - {"_name"}
    assert names == set(training.TASK_OPTIONS)


def test_the_scan_measures_a_language_model(tiny_text, tiny_text_checkpoint, recipe, tmp_path, capsys):
    path = tmp_path / "scan.json"
    words = ["--scan", path, "--recipe", recipe, "--data", tiny_text, "--sparsities", 0.9, "--cpu", "--json"]
    code, out, err = run(capsys, "compress", tiny_text_checkpoint, *words)
    assert code == 0, err
    found = json.loads(out)
    assert found["dense"] > 0 and found["sentences"] is None and path.with_suffix(".png").stat().st_size > 5000
    names = [name for name in found["pruned_alone"] if not apply.is_embedding(name)]
    assert len(names) > 5 and len({values[0] for values in found["pruned_alone"].values()}) > 5
