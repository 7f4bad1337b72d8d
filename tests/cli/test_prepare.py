"""`lite-transformer prepare`: what it prints, and its one-line errors with exit code 2."""

from __future__ import annotations

import gzip
import json

import pytest

from lite_transformer.cli.main import main

GERMAN = ["Ein Hund läuft.", "Zwei Hunde spielen im Schnee.", "Ein Mann singt."]
ENGLISH = ["A dog runs.", "Two dogs play in the snow.", "A man sings."]


def write_source(folder, ending=""):
    folder.mkdir()
    for split in ("train", "valid", "test"):
        for language, lines in (("de", GERMAN), ("en", ENGLISH)):
            content = "".join(f"{line}\n" for line in lines * 4).encode()
            path = folder / f"{split}.{language}{ending}"
            path.write_bytes(gzip.compress(content) if ending else content)
    return folder


def failure(capsys, *argv):
    """The one line that a failing command prints."""
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if " | INFO | " not in line]
    assert line.startswith("lite-transformer prepare: ")
    return line


def test_result_line_names_the_next_command(tmp_path, capsys):
    source = write_source(tmp_path / "source", ".gz")
    dest = tmp_path / "out"
    command = ["prepare", "parallel", "--source", str(source), "--dest", str(dest), "--bpe-merges", "20"]
    for _ in range(2):  # the second run keeps everything and says the same
        assert main(command) == 0
        out = capsys.readouterr().out
        assert "lines: train 12, valid 12, test 12; dictionary: de " in out
        assert out.endswith(f"Next: lite-transformer train CONFIG --data {dest / 'bin'} --save-dir DIR\n")
        assert out.count("\n") == 1


def test_options_reach_the_text(tmp_path, capsys):
    source = write_source(tmp_path / "source")
    dest = tmp_path / "out"
    options = [
        "--pair",
        "en-de",
        "--lowercase",
        "--subword",
        "sentencepiece",
        "--bpe-merges",
        "40",
        "--no-joined-dictionary",
    ]
    assert main(["prepare", "parallel", "--source", str(source), "--dest", str(dest), *options]) == 0
    record = json.loads((dest / "prepare.json").read_text(encoding="utf-8"))
    assert (record["source_language"], record["target_language"]) == ("en", "de")
    assert record["text"]["en"]["lowercase"] is True
    assert record["text"]["en"]["codes"] == "bpe/spm.model"
    assert (dest / "bin" / "bpe" / "spm.model").is_file()
    assert record["joined_dictionary"] is False
    assert (dest / "bin" / "test.en-de.de.idx").is_file()


def test_not_utf8_names_file_and_line(tmp_path, capsys):
    source = write_source(tmp_path / "source")
    (source / "valid.en").write_bytes(b"fine\ncaf\xe9\n")
    line = failure(capsys, "prepare", "parallel", "--source", source, "--dest", tmp_path / "out")
    assert "valid.en, line 2: not UTF-8" in line
    assert not (tmp_path / "out" / "raw").exists()


def test_unequal_lengths_name_both_files(tmp_path, capsys):
    source = write_source(tmp_path / "source")
    (source / "test.de").write_text("nur eine\n", encoding="utf-8")
    line = failure(capsys, "prepare", "parallel", "--source", source, "--dest", tmp_path / "out")
    assert "test.de has 1 lines" in line and "test.en has 12" in line


def test_missing_source_says_what_to_type(tmp_path, capsys):
    line = failure(capsys, "prepare", "multi30k", "--dest", tmp_path / "out")
    assert "multi30k/dataset" in line and "data/task1/raw" in line
    assert "lite-transformer prepare multi30k --source DIR --dest OUT" in line
    line = failure(capsys, "prepare", "parallel", "--source", tmp_path / "no", "--dest", tmp_path / "out")
    assert "no such folder" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["wmt"], "unknown corpus 'wmt'. Known corpora: embedded, "),
        (["embedded", "--pair", "de-it"], "has no pair 'de-it'. Take two different languages of: de, en, fr."),
        (["embedded", "--source", "."], "leave out --source"),
        (["embedded", "--workers", "0"], "--workers 0: at least 1"),
    ],
)
def test_unknown_values(tmp_path, capsys, argv, expected):
    assert expected in failure(capsys, "prepare", *argv, "--dest", tmp_path / "out")


def test_destination_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").touch()
    assert "cannot make this folder" in failure(capsys, "prepare", "embedded", "--dest", tmp_path / "out")
