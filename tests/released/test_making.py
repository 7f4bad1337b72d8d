"""`lite-transformer release`: what is in the folder, what the card says, what is refused; whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil

import pytest
import torch

from lite_transformer.cli.main import main
from lite_transformer.compression import packed
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.released import making
from lite_transformer.released.card import read_card, render_page
from lite_transformer.released.folder import check_folder
from lite_transformer.scoring import decoding
from tests.helpers.compare import assert_same
from tests.released.conftest import SEED, UPDATES, release


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def one_line(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("lite-transformer release: "), err
    return err


def test_the_folder_holds_fp16_weights_and_what_text_needs(trained, released):
    text = ["bpe/codes", "dict.de.txt", "dict.en.txt", "prepare.json"]
    assert names(released) == sorted(["README.md", "card.json", "model.pt", *text])
    assert all((released / name).read_bytes() == (trained.data / name).read_bytes() for name in text)
    state = load_checkpoint(released / "model.pt")
    assert {value.dtype for value in state["model"].values() if value.is_floating_point()} == {torch.float16}
    assert "last_optimizer_state" not in state
    first, second = (load_checkpoint(path)["model"] for path in trained.checkpoints)
    assert first.keys() == state["model"].keys()
    for name, value in state["model"].items():
        if value.is_floating_point():
            assert_same(value, ((first[name] + second[name]) / 2).half(), 0.0)
    shared = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
    assert len({state["model"][name].data_ptr() for name in shared}) == 1, "stored once"
    for path in (path for path in released.rglob("*") if path.is_file()):
        assert str(trained.folder).encode() not in path.read_bytes(), f"{path.name} names a folder of this machine"
    assert (released.stat().st_mode & 0o777, released.parent.stat().st_mode & 0o777) == (0o755, 0o755)


def test_the_model_loads_as_any_checkpoint_and_on_a_cpu_in_fp32(released):
    loaded = decoding.load([released / "model.pt"], released, cpu=True)
    assert loaded.languages == ("de", "en")
    assert {parameter.dtype for parameter in loaded.models[0].parameters()} == {torch.float32}


def test_a_recipe_stores_a_packed_file(trained, other_record, tmp_path, capsys):
    out, text = tmp_path / "packed", tmp_path / "text"
    words = ["--commit", "a", "--check-lines", "3", "--beam", "2", "--recipe"]
    assert release(trained, out, *words, "int8") == 0
    card = check_folder(out)
    assert (card.weights, card.recipe, card.stored) == ("model.ltpack", "int8", "packed by recipe int8")
    model = packed.read(out / card.weights)
    assert "model.pt" not in names(out) and model.texts == {}, "texts lie beside it"
    assert str(trained.folder) not in json.dumps(model.meta), "a folder of this machine"
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert str(trained.folder).encode() not in path.read_bytes(), f"{path.name} names a folder of this machine"
    page = (out / "README.md").read_text(encoding="utf-8")
    assert (
        "The packed file against fp32 weights: " in page
        and "| the mean of 2 checkpoints, packed by recipe int8" in page
    )
    text.write_text("The house\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["translate", "--cpu", "--model", str(out), "--input", str(text)]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    # what is said of the file itself, and of the weights that it was made of
    record = tmp_path / "packed.json"
    evaluate = ["evaluate", "--checkpoint", out / "model.ltpack", "--data", trained.data, "--cpu", "--record", record]
    assert main([str(word) for word in [*evaluate, "--beam", 1, "--commit", "b" * 40, "--row", "Lite, int8"]]) == 0
    records = [other_record("fp32.json"), record]
    assert release(trained, out, *words, "int8", "--force", "--commit", "b" * 40, "--record", *records) == 0
    page = (out / "README.md").read_text(encoding="utf-8")
    card = read_card(out)
    card = dataclasses.replace(card, training=dataclasses.replace(card.training, averaged=1))
    assert "| weights | one file, lenpen 1, packed by recipe int8, without" in render_page(card)
    assert (
        "beam 1, lenpen 1, packed by recipe int8 |" in page and "Of the fp32 weights and the packed file; rec" in page
    )
    card = read_card(out)
    assert {score.decoding for score in card.own_scores} == {"beam 1, lenpen 1, packed by recipe int8"}
    assert len(card.scores) > len(card.own_scores) > 0
    assert release(trained, out, *words, "int8", "--force", "--record", record) == 0
    assert "Of the packed file; records `packed.json`" in (out / "README.md").read_text(encoding="utf-8")


def test_a_recipe_that_hurts_is_refused(trained, tmp_path, capsys):
    words = ["--commit", "a", "--check-lines", "3", "--beam", "1", "--recipe"]
    assert release(trained, tmp_path / "tiny", *words, "odd") == 2
    assert "unknown recipe 'odd'" in one_line(capsys)
    recipe = tmp_path / "crude.yaml"
    recipe.write_text(
        "description: x\ncore: {method: linear, bits: 2}\nembeddings: {method: linear, bits: 2}\nmin_elements: 9\n"
    )
    assert release(trained, tmp_path / "crude", *words, recipe) == 2
    assert "the outputs with packed weights are not those with fp32 weights: " in one_line(capsys)
    assert not (tmp_path / "crude").exists()


def test_the_other_direction_of_the_same_data(trained, tmp_path, capsys):
    state = load_checkpoint(trained.checkpoints[0])
    state["cfg"]["task"] |= {"source_lang": "en", "target_lang": "de"}
    torch.save(state, tmp_path / "en_de.pt")
    argv = ["release", tmp_path / "en_de.pt", "--data", trained.data, "--out", tmp_path / "m", "--commit", "a"]
    assert main([*map(str, argv), "--check-lines", "2", "--beam", "1"]) == 0
    card = check_folder(tmp_path / "m")
    assert (card.source_language, card.target_language) == ("en", "de") and "English to German" in card.intended_use
    assert "--pair de-en" in card.data.command, "the data was prepared once for both"
    (tmp_path / "text").write_text("The house\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["translate", "--cpu", "--model", str(tmp_path / "m"), "--input", str(tmp_path / "text")]) == 0
    assert len(capsys.readouterr().out.strip()) > 1


def test_the_card_of_a_model_without_records(released):
    card = check_folder(released)
    assert (card.name, card.source_language, card.target_language, card.beam) == ("tiny_de_en", "de", "en", 2)
    assert (card.training.seed, card.training.updates, card.training.averaged) == (SEED, UPDATES, 2)
    assert (card.training.commit, card.training.dirty) == ("a" * 40, False)
    assert card.data.command == (
        "lite-transformer prepare parallel --pair de-en --dest data/parallel_de_en --source DIR --lowercase "
        "--bpe-merges 40"
    )
    assert card.data.lines == {"train": 80, "valid": 10, "test": 21} and len(card.data.sha256) == 6
    assert card.fidelity.lines == card.fidelity.identical_lines == 21 and card.stored == "fp16"
    assert 0 < card.fidelity.mean_logprob_difference < card.fidelity.max_logprob_difference < 0.1
    assert card.size_bytes == sum((released / name).stat().st_size for name in card.files)
    page = (released / "README.md").read_text(encoding="utf-8")
    assert page == render_page(card) and "Not scored." in page and "German to English" in page
    assert "80 pairs of `parallel` and nothing else" in page and card.files["model.pt"].sha256 in page


def test_records_give_scores_and_history(trained, record, other_record, tmp_path, capsys):
    typed = "compare /home/me/x checkpoint.save_dir=/home/me/run"
    paths = [other_record("one.json"), other_record("two.json", metrics=record.metrics[:1], commands=[typed])]
    assert release(trained, tmp_path / "model", "--record", *paths, "--limit", "Digits only.") == 0
    assert "3 scores" in capsys.readouterr().out
    card = read_card(tmp_path / "model")
    assert card.scores == record.metrics and card.records == ["one.json", "two.json"]
    assert card.training.commands[:3] == [
        "lite-transformer train NAME --data bin", "lite-transformer evaluate NAME",
        "compare x checkpoint.save_dir=run",
    ]  # fmt: skip
    assert (card.training.commit, card.training.updates, card.training.device) == ("b" * 40, 9, "a device")
    assert card.limits[-1] == "Digits only." and len(card.limits) > 3
    page = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "| weights | the mean of 2 checkpoints, as fp16" in page
    card = dataclasses.replace(card, training=dataclasses.replace(card.training, averaged=1))
    assert "| weights | one file, lenpen 1, as fp16" in render_page(card), "the end of what the scores say"
    assert "| test | chrf | 52.25 | beam 5, lenpen 1 | `nrefs:1\\|b` |" in page and "`two.json`" in page


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 2}, "its seed are not the checkpoint's (2 there, 5 here)"),
        ({"settings_sha256": "0" * 64}, "its settings are not the checkpoint's"),
        ({"params_total": 10}, "its parameters are not the checkpoint's (10 there"),
        ({"data": {"train.de": "0" * 64}}, "its data are not the checkpoint's"),
    ],
)
def test_a_record_of_another_run_is_refused(trained, other_record, tmp_path, capsys, change, what):
    assert release(trained, tmp_path / "model", "--record", other_record("other.json", **change)) == 2
    assert f"other.json is of another run: {what}" in one_line(capsys)
    assert not list(tmp_path.glob("*model*")), "nothing is left"


def test_records_of_two_commits_are_refused(trained, other_record, tmp_path, capsys):
    paths = [other_record("one.json"), other_record("two.json", commit="c" * 40)]
    assert release(trained, tmp_path / "model", "--record", *paths) == 2
    assert f"different commits: {'b' * 40}, {'c' * 40}" in one_line(capsys)


def test_the_history_comes_from_train_json_without_records(trained, tmp_path):
    run = shutil.copytree(trained.folder / "run", tmp_path / "run")
    content = {
        "experiment": "small_cpu",
        "runs": [{"command": "lite-transformer train small_cpu", "commit": "d" * 40 + "-dirty", "device": "cpu"}],
    }
    (run / "train.json").write_text(json.dumps(content), encoding="utf-8")
    argv = ["release", run, "--average-last", "2", "--data", trained.data, "--out", tmp_path / "m", "--check-lines", 3]
    assert main([str(word) for word in argv]) == 0
    card = read_card(tmp_path / "m")
    assert (card.training.commit, card.training.dirty, card.training.averaged) == ("d" * 40, True, 2)
    assert card.training.config == "configs/small_cpu.yaml" and card.training.commands[0].endswith("train small_cpu")
    assert card.fidelity.lines == 3


def test_outputs_that_differ_are_refused(trained, tmp_path, capsys, monkeypatch):
    make = making.half_precision_state

    def disturbed(state, config):
        result = make(state, config)
        torch.manual_seed(1)
        for value in result["model"].values():
            if value.is_floating_point():
                value += 0.2 * torch.randn_like(value)
        return result

    monkeypatch.setattr(making, "half_precision_state", disturbed)
    words = ("--commit", "a", "--check-lines", "2", "--beam", "1")
    assert release(trained, tmp_path / "model", *words) == 2
    assert "the outputs with fp16 weights are not those with fp32 weights: " in one_line(capsys)
    assert list(tmp_path.iterdir()) == []
    # each of the two measures is enough
    monkeypatch.setattr(making, "MOST_LOGPROB_DIFFERENCE", 1e9)
    assert release(trained, tmp_path / "model", *words) == 2
    monkeypatch.setattr(making, "LEAST_IDENTICAL", 0.0)
    assert release(trained, tmp_path / "model", *words) == 0
    shutil.rmtree(tmp_path / "model")
    monkeypatch.setattr(making, "MOST_LOGPROB_DIFFERENCE", 0.005)
    assert release(trained, tmp_path / "model", *words) == 2


def test_weights_beyond_fp16_are_refused(trained, tmp_path, capsys):
    state = load_checkpoint(trained.checkpoints[0])
    state["model"]["encoder.layers.0.fc1.bias"][0] = 1e6
    torch.save(state, tmp_path / "large.pt")
    argv = ["release", tmp_path / "large.pt", "--data", trained.data, "--out", tmp_path / "out" / "m", "--commit", "a"]
    assert main([str(word) for word in argv]) == 2
    assert "encoder.layers.0.fc1.bias has values that are too large for fp16" in one_line(capsys)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_older_model_is_replaced_only_when_asked_and_only_by_a_whole_one(
    trained, released, tmp_path, capsys, monkeypatch
):
    out = shutil.copytree(released, tmp_path / "tiny_de_en")
    (out / "old").write_text("", encoding="utf-8")
    assert release(trained, out, "--commit", "b") == 2
    assert "there is a released model already. Choose another name, or add --force" in one_line(capsys)

    def full(card):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(making, "render_page", full)
        assert release(trained, out, "--commit", "b", "--force") == 2
    assert "cannot be written (No space left on device)" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny_de_en"] and (out / "old").exists()
    assert release(trained, out, "--commit", "b", "--force") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny_de_en"] and not (out / "old").exists()
    assert read_card(out).training.commit == "b"
    assert (out / "model.pt").read_bytes() == (released / "model.pt").read_bytes(), "the same weights, the same bytes"


def test_what_is_no_released_model_is_never_replaced(trained, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("", encoding="utf-8")
    assert release(trained, tmp_path / "mine", "--force") == 2
    assert "already there, and no released model" in one_line(capsys)
    assert (tmp_path / "mine" / "thesis").exists()


def test_bad_input_is_named(trained, released, tmp_path, capsys):
    (tmp_path / "cut.pt").write_bytes(trained.checkpoints[0].read_bytes()[:9000])
    (tmp_path / "file").write_text("", encoding="utf-8")
    french = shutil.copytree(trained.data, tmp_path / "french")
    prepared = (french / "prepare.json").read_text(encoding="utf-8").replace('"de": {', '"fr": {')
    (french / "prepare.json").write_text(prepared, encoding="utf-8")
    first, data, out = trained.checkpoints[0], ["--data", trained.data], ["--out", tmp_path / "m"]
    commit = ["--commit", "a"]
    for words, message in (
        (["no.pt", *data, *out, *commit], "no.pt does not exist"),
        ([tmp_path / "cut.pt", *data, *out, *commit], "cut.pt is truncated or damaged"),
        ([released / "model.pt", "--data", tmp_path, *out, *commit], "no prepare.json"),
        ([first, "--data", french, *out, *commit], "translates de-en, but"),
        ([first, *data, *out], "it is unknown which commit of the code trained: give --record FILE or --commit"),
        ([first, *data, *out, *commit, "--split", "dev"], "dev.de-en.de.idx is missing"),
        ([first, *data, *out, *commit, "--max-megabytes", "0.001"], "1,000 are allowed (--max-megabytes)"),
        ([first, *data, *out, *commit, "--check-lines", "0"], "--check-lines 0: at least 1"),
        ([first, *data, *out, *commit, "--beam", "0"], "--beam 0: at least 1"),
        ([first, *data, *out, *commit, "--record", "no.json"], "no.json: cannot be read as JSON"),
        ([first, *data, "--out", tmp_path / "a b", *commit], "letters, digits"),
        ([first, *data, "--out", tmp_path / "file" / "m", *commit], "cannot make this folder"),
        ([first, first, "--average-last", "2", *data, *out, *commit], "give one CHECKPOINT"),
    ):
        assert main(["release", *map(str, words)]) == 2, message
        assert message in one_line(capsys)
    assert not list(tmp_path.glob("*m")) and not list(tmp_path.glob(".*"))
