"""`lite-transformer translate --model DIR` with an exported folder: the same lines as `Translator` gives."""

from __future__ import annotations

import io
import sys

import pytest

from lite_transformer.cli.main import main

LINES = ["w1 w2 w3", "", "w5", "w9 nobody w1"]


@pytest.fixture
def run(monkeypatch, capsys):
    def command(text, *words):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
        code = main(["translate", *map(str, words)])
        return code, *capsys.readouterr()

    return command


def test_lines(tiny, translator, run, tmp_path):
    text = "".join(f"{line}\n" for line in LINES)
    options = ["--beam", 3, "--lenpen", 0.5, "--batch-size", 2, "--threads", 2]
    code, out, _ = run(text, "--model", tiny.folder, *options)
    assert code == 0
    assert out.splitlines() == translator.translate(LINES, beam=3, lenpen=0.5)
    (tmp_path / "in").write_text(text, encoding="utf-8")
    assert run("", "--model", tiny.folder, "--input", tmp_path / "in", "--output", tmp_path / "out")[0] == 0
    assert (tmp_path / "out").read_text(encoding="utf-8").splitlines() == translator.translate(LINES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", 0], "threads 0: a whole number of at least 1"),
        (["--beam", 22], "beam 22 is too wide for 44 subwords"),
        (["--data", "x"], "--model brings its own data"),
    ],
)
def test_refusals(tiny, run, words, message):
    code, out, err = run("", "--model", tiny.folder, *words)  # said before any line is read
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("words", [["--threads", "x"], ["--beam", "2.5"], ["--bogus"]])
def test_options_that_cannot_be_read_are_one_line(tiny, capsys, words):
    with pytest.raises(SystemExit, match="2"):
        main(["translate", "--model", str(tiny.folder), *words])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert words[0] in captured.err and "lite-transformer translate --help" in captured.err


def test_a_folder_without_its_manifest_is_still_an_exported_one(copy, run):
    (copy / "edge.json").unlink()
    code, out, err = run("w1\n", "--model", copy, "--engine", "portable")
    assert (code, out) == (2, "") and "is no exported model (edge.json is missing)" in err


def test_threads_are_of_exported_models(run):
    code, _, err = run("w1\n", "--checkpoint", "x.pt", "--data", "y", "--threads", 2)
    assert code == 2 and "--threads is for exported models" in err


def test_a_line_that_is_not_utf8_loses_no_other_line(tiny, translator, monkeypatch, capsys, caplog, tmp_path):
    content = b"w1\n\xff\nw2\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    expected = translator.translate(["w1", "", "w2"])
    assert main(["translate", "--model", str(tiny.folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == expected
    assert "line 2: not UTF-8" in caplog.text
    assert "lines that could not be read and are left empty: 1" in captured.err
    (tmp_path / "in").write_bytes(content)
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(["translate", "--model", str(tiny.folder), *words]) == 2
    assert (tmp_path / "out").read_text(encoding="utf-8").splitlines() == expected


def test_what_is_missing_is_named_as_pip_knows_it(tiny, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = run("", "--model", tiny.folder, "--engine", "portable")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "onnxruntime is not installed: pip install onnxruntime" in err


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_exporting_without_its_packages(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["export", str(tmp_path / "none.pt"), "--out", str(tmp_path / "out")]) == 2
    assert f"{name} is not installed: pip install onnx onnxruntime" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
