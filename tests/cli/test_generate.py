"""The generate verb on a tiny language model: text in, text out, one-line errors."""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lite_transformer.cli.main import main


@pytest.fixture(scope="module")
def prepared(tiny_text: Path, tmp_path_factory) -> Path:
    """The tiny corpus with the record that says how its text was made."""
    folder = tmp_path_factory.mktemp("prepared") / "bin"
    shutil.copytree(tiny_text, folder)
    text = {"en": {"language": "en", "normalize": False, "tokenizer": "none", "subword": "none"}}
    (folder / "prepare.json").write_text(json.dumps({"corpus": "digits", "text": text}), encoding="utf-8")
    return folder


def generate(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["generate", *map(str, words), "--cpu"])
    return code, *capsys.readouterr()


def test_a_prompt_is_continued(prepared: Path, tiny_text_checkpoint: Path, capsys):
    words = ["--checkpoint", tiny_text_checkpoint, "--data", prepared, "--prompt", "1 2 3", "--length", "8", "--json"]
    code, out, _ = generate(capsys, *words, "--samples", "3")
    results = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(results) == 3
    for result in results:
        assert result["prompt"] == "1 2 3" and result["tokens"] == 8
        assert result["text"].startswith("1 2 3")
        assert set(result["text"].split()) <= set("0123456789")
    assert generate(capsys, *words, "--samples", "3")[1] == out
    assert generate(capsys, *words, "--samples", "3", "--seed", "2")[1] != out


def test_lines_of_standard_input(prepared: Path, tiny_text_checkpoint: Path, capsys, monkeypatch):
    stdin = SimpleNamespace(buffer=io.BytesIO(b"1 2\n\n3 4"), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stdin)
    words = ["--checkpoint", tiny_text_checkpoint.parent, "--data", prepared, "--length", "9"]
    code, out, _ = generate(capsys, *words, "--one-line")
    assert code == 0
    assert out.startswith("1 2\n\n3 4")
    assert len(out.splitlines()) == 3


def test_no_prompt_begins_a_text(prepared: Path, tiny_text_checkpoint: Path, capsys):
    code, out, _ = generate(
        capsys, "--checkpoint", tiny_text_checkpoint, "--data", prepared, "--prompt", "", "--length", "5", "--json"
    )
    result = json.loads(out)
    assert code == 0 and (result["prompt"], result["tokens"]) == ("", 5)


def test_unknown_words_are_said(prepared: Path, tiny_text_checkpoint: Path, capsys, caplog):
    caplog.set_level(logging.WARNING)
    words = ["--checkpoint", tiny_text_checkpoint, "--data", prepared, "--prompt", "1 one 2", "--length", "3"]
    assert generate(capsys, *words)[0] == 0
    assert "1 words of the prompt are not in the dictionary" in caplog.text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--length", "0"], "--length 0: at least 1 is needed"),
        (["--samples", "-2"], "--samples -2: at least 1 is needed"),
        (["--seed", "-1"], "--seed -1: a number from 0 to"),
        (["--top-p", "0"], "--top-p 0.0: more than 0 and at most 1 is needed"),
        (
            ["--prompt", "1 2 3", "--length", "13"],
            "the prompt has 4 tokens and 13 are to follow, more than the model's 16",
        ),
    ],
)
def test_what_cannot_be_generated(words, text, prepared: Path, tiny_text_checkpoint: Path, capsys):
    code, out, err = generate(capsys, "--checkpoint", tiny_text_checkpoint, "--data", prepared, *words)
    assert (code, out) == (2, "")
    assert text in err and err.count("\n") == 1


def test_another_kind_of_model_or_data(prepared: Path, tiny_text: Path, tiny_text_checkpoint: Path, capsys, tmp_path):
    import torch

    from tests.models.slow_reference import old_args

    torch.save({"args": old_args(), "model": {}}, tmp_path / "translation.pt")
    code, _, err = generate(capsys, "--checkpoint", tmp_path / "translation.pt", "--data", prepared)
    assert code == 2 and "is a translation model, which continues no text" in err
    code, _, err = generate(capsys, "--checkpoint", tiny_text_checkpoint, "--data", tiny_text)
    assert code == 2 and "no prepare.json, so it is unknown how its text was tokenized" in err
    shutil.copytree(prepared, tmp_path / "bin")
    (tmp_path / "bin" / "dict.txt").unlink()
    code, _, err = generate(capsys, "--checkpoint", tiny_text_checkpoint, "--data", tmp_path / "bin")
    assert code == 2 and "dict.txt is missing. Make the folder again" in err
