"""`lite-transformer translate --model DIR` with an exported folder: the same lines as `Translator` gives."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lite_transformer.cli.main import main
from lite_transformer.edge import runtime
from tests.helpers.commands import environment

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
        (["--engine", ""], "engine '' is not one of auto, native, portable"),
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


def test_lines_that_cannot_be_translated_are_counted(tiny, translator, run, monkeypatch):
    found = runtime.search

    def breaks(engine, sources, *options):
        if any(len(source) == 4 for source in sources):
            raise MemoryError("too long")
        return found(engine, sources, *options)

    monkeypatch.setattr(runtime, "search", breaks)
    code, out, err = run("w1 w2 w3\nw5\n", "--model", tiny.folder)
    assert (code, out) == (2, f"\n{translator.translate(['w5'])[0]}\n")
    assert err.endswith("lines that could not be translated and are left empty: 1\n")


def test_pipes_and_links_stay_what_they_are(tiny, translator, run, tmp_path):
    expected = f"{translator.translate(['w1'])[0]}\n"
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    assert run("w1\n", "--model", tiny.folder, "--output", pipe)[0] == 0
    assert pipe.is_fifo() and os.read(end, 1000).decode() == expected
    os.close(end)
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    assert run("w1\n", "--model", tiny.folder, "--output", link)[0] == 0
    assert link.is_symlink() and target.read_text(encoding="utf-8") == expected


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device that is always full")
def test_a_full_disk_is_one_line(tiny):
    command = [sys.executable, "-m", "lite_transformer.cli.main", "translate", "--model", str(tiny.folder)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, input="w1\n", stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    said = [line for line in done.stderr.splitlines() if "| INFO |" not in line]
    assert (done.returncode, len(said)) == (2, 1)
    assert "standard output cannot be written (No space left on device)" in said[0]


def test_threads_are_of_exported_models(run):
    code, _, err = run("w1\n", "--checkpoint", "x.pt", "--data", "y", "--threads", 2)
    assert code == 2 and "--threads is for exported models" in err
    code, _, err = run("w1\n", "--model", "nowhere", "--threads", 2)
    assert code == 2 and "unknown model 'nowhere'" in err


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
