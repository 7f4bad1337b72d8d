"""Finding released models and checking them: one clear line for whatever is wrong, before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lite_transformer.cli.main import main
from lite_transformer.errors import ConfigError
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.released import folder as folders
from lite_transformer.released.card import read_card, render_page
from tests.helpers import commands


@pytest.fixture
def model(released, tmp_path):
    """A copy to damage."""
    return shutil.copytree(released, tmp_path / "model")


def change_card(model, **changes):
    path = model / "card.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def accept(model, name):
    """Makes the card say that the file is as it should be."""
    content = (model / name).read_bytes()
    files = json.loads((model / "card.json").read_text(encoding="utf-8"))["files"]
    files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    change_card(model, files=files)


def without(model, name):
    files = json.loads((model / "card.json").read_text(encoding="utf-8"))["files"]
    del files[name]
    (model / name).unlink()
    change_card(model, files=files)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def hostile(model):
    """Weights that would make a file when they are unpickled, with the right checksum."""

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(model / "executed"),)

    state = load_checkpoint(model / "model.pt")
    state["extra_state"]["payload"] = Payload()
    torch.save(state, model / "model.pt")
    accept(model, "model.pt")


def french(model):
    path = model / "prepare.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"de": {', '"fr": {'), encoding="utf-8")
    accept(model, "prepare.json")


def outside(model):
    path = model / "prepare.json"
    path.write_text(path.read_text(encoding="utf-8").replace("bpe/codes", "/etc/passwd"), encoding="utf-8")
    accept(model, "prepare.json")


def foreign_weights(model):
    (model / "model.pt").write_text("<html>", encoding="utf-8")
    accept(model, "model.pt")


DAMAGE = {
    "cut": (lambda m: cut(m / "model.pt"), "model.pt has "),
    "flipped": (lambda m: flip(m / "model.pt"), "model.pt is damaged: its sha256 is "),
    "other codes": (lambda m: flip(m / "bpe/codes"), "codes is damaged: its sha256 is "),
    "missing": (lambda m: (m / "dict.en.txt").unlink(), "dict.en.txt is missing"),
    "foreign": (
        lambda m: (m / "bpe/notes").write_text(""),
        "notes is no part of the model: card.json does not list it",
    ),
    "no card": (lambda m: (m / "card.json").unlink(), "is no released model (no card.json)"),
    "newer": (lambda m: change_card(m, format=3, news=1), "newer lite-transformer (format 3, this one reads up to 2)"),
    "no JSON": (lambda m: cut(m / "card.json"), "card.json: cannot be read as JSON"),
    "no object": (lambda m: (m / "card.json").write_text("[]"), "an object with the keys of Card"),
    "wrong type": (lambda m: change_card(m, beam="4"), "key beam: '4' is not of type int"),
    "unknown key": (lambda m: change_card(m, beams=4), "unknown key beams"),
    "other weights": (lambda m: change_card(m, weights="x.pt"), "it lists no x.pt"),
    "unlisted weights": (lambda m: without(m, "model.pt"), "it lists no model.pt"),
    "unlisted dictionary": (lambda m: without(m, "dict.de.txt"), "it lists no dict.de.txt"),
    "unlisted codes": (lambda m: without(m, "bpe/codes"), "it lists no bpe/codes"),
    "outside": (lambda m: change_card(m, files={"../x": {"sha256": "", "size_bytes": 0}}), "'../x' lies outside"),
    "outside, by prepare.json": (outside, "it lists no /etc/passwd"),
    "other languages": (french, "prepare.json is not for de"),
    "foreign weights": (foreign_weights, "model.pt is not a checkpoint"),
    "hostile weights": (hostile, "was refused: it holds 'posix.mkdir', which is more than plain data"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(model, capsys, name):
    damage, message = DAMAGE[name]
    damage(model)
    assert main(["translate", "--cpu", "--model", str(model), "--input", str(model / "README.md")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    assert message in err and str(model) in err
    assert not (model / "executed").exists()


def test_cards_from_before_packed_files_are_read(model):
    path = model / "card.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    old = {key: value for key, value in content.items() if key not in ("recipe", "fidelity")}
    path.write_text(json.dumps(old | {"format": 1, "half_precision": content["fidelity"]}), encoding="utf-8")
    card = folders.check_folder(model)
    assert (card.recipe, card.stored, card.format) == ("", "fp16", 1) and card.fidelity.lines == 21


def test_the_page_and_hidden_files_do_not_matter(model):
    (model / "README.md").write_text("mine", encoding="utf-8")
    (model / ".DS_Store").write_text("", encoding="utf-8")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("", encoding="utf-8")
    assert folders.check_folder(model).name == "tiny_de_en"


def test_models_are_found_by_name_in_three_places(released, tmp_path, monkeypatch):
    checkout, here = tmp_path / "root", tmp_path / "here"
    monkeypatch.setattr(folders, "_PACKAGE_DIR", checkout / "lite_transformer")
    (checkout / "lite_transformer").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError, match=r"unknown model 'one'\. No released model is installed: they lie in checkpo"):
        folders.find_model("one")
    inside = shutil.copytree(released, checkout / "lite_transformer" / "checkpoints" / "one")
    assert folders.known_models() == {"one": inside}
    beside = shutil.copytree(released, checkout / "checkpoints" / "two")
    mine = shutil.copytree(released, here / "checkpoints" / "one")
    shutil.copytree(released, here / "checkpoints" / ".three-x1")  # a release that is being made
    (here / "checkpoints" / "empty").mkdir()
    assert folders.known_models() == {"one": mine, "two": beside}
    assert folders.find_model("one") == mine and folders.find_model(str(inside)) == inside
    with pytest.raises(ConfigError, match=r"unknown model 'twoo'\. Did you mean two\? Released models: one, two; or"):
        folders.find_model("twoo")
    with pytest.raises(ConfigError, match=r"--model needs a name or a folder\. Released models: one, two"):
        folders.find_model("")


def test_a_wheel_has_the_models(released, tmp_path):
    source, built = tmp_path / "source", tmp_path / "built"
    shutil.copytree(released.parent, source / "checkpoints")
    for name in ("setup.py", "README.md", "pyproject.toml", "LICENSE"):
        shutil.copy(commands.ROOT / name, source)
    for name in ("lite_transformer", "data_prep"):
        shutil.copytree(commands.ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", built]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    model = built / "lite_transformer" / "checkpoints" / "tiny_de_en"
    expected = {path.relative_to(released): path.read_bytes() for path in released.rglob("*") if path.is_file()}
    assert {path.relative_to(model): path.read_bytes() for path in model.rglob("*") if path.is_file()} == expected
    listing = subprocess.run(
        [sys.executable, "-m", "lite_transformer.cli.main", "translate", "--list"],
        cwd=tmp_path, env=commands.environment(PYTHONPATH=str(built)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "tiny_de_en" in listing.stdout


MODELS = sorted(path.parent for path in (commands.ROOT / "checkpoints").glob("*/card.json"))


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_the_released_models_are_whole(folder: Path):
    card = folders.check_folder(folder)
    assert card.name == folder.name and card.size_bytes <= 15e6
    assert (folder / "README.md").read_text(encoding="utf-8") == render_page(card), "rendered from the card"
    assert card.scores and card.records, "a released model is scored"
    for name in card.records:
        assert any((commands.ROOT / "results" / kind / name).is_file() for kind in ("runs", "released"))
    assert not card.training.dirty and len(card.training.commit) == 40
    text = (folder / "card.json").read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|root)/", text), "a path of one machine"


def test_folders_that_look_like_models_have_cards():
    for path in (commands.ROOT / "checkpoints").iterdir():
        assert path.name == "README.md" or path.name.startswith(".") or read_card(path).name == path.name
