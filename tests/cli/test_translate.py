"""`lite-transformer translate`: one line out for one line in, in order; what it refuses."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys

import pytest
import torch

from lite_transformer.cli import translate
from lite_transformer.cli.main import main

WORDS = [f"wort{letter}" for letter in "abcdefgh"]
LINES = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(bin folder, checkpoint) of a tiny model that has seen nothing: order and counts do not need sense."""
    folder = tmp_path_factory.mktemp("translate")
    source = folder / "source"
    source.mkdir()
    for split, lines in (("train", LINES), ("valid", LINES[:20]), ("test", LINES[:20])):
        for language in ("de", "en"):
            (source / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = ["prepare", "parallel", "--source", str(source), "--dest", str(folder / "data"), "--bpe-merges", "40"]
    assert main(command) == 0
    options = (
        f"{folder}/data/bin -s de -t en --arch transformer_tiny --share-all-embeddings --optimizer adam --lr 0.001 "
        f"--max-tokens 500 --max-update 2 --save-dir {folder}/model --disable-validation --num-workers 0 --seed 1 --cpu"
    )
    train = [sys.executable, "-m", "fairseq_cli.train", *options.split()]
    subprocess.run(train, check=True, capture_output=True)
    return folder / "data" / "bin", folder / "model" / "checkpoint_last.pt"


class EchoModel:
    """Stands where the trained model stands: translates a line into itself."""

    def inference_step(self, generator, models, sample):
        rows = sample["net_input"]["src_tokens"]
        return [[{"tokens": row[row != 1]}] for row in rows]


@pytest.fixture
def echo(trained, monkeypatch):
    data, checkpoint = trained
    translator = translate.Translator([checkpoint], data, beam=1, batch_size=4, cpu=True)
    monkeypatch.setattr(translator.task, "inference_step", EchoModel().inference_step)
    return translator


def _other_languages(data, folder):
    """A copy of the bin folder that claims to hold French."""
    copy = shutil.copytree(data, folder / "french")
    record = (copy / "prepare.json").read_text(encoding="utf-8").replace('"de": {', '"fr": {')
    (copy / "prepare.json").write_text(record, encoding="utf-8")
    (copy / "dict.de.txt").rename(copy / "dict.fr.txt")
    return copy


def run(monkeypatch, capsys, data, *argv):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    code = main(["translate", *[str(word) for word in argv]])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_order_and_empty_lines(echo):
    lines = ["worta wortb wortc", "", "worth", "   ", "worta " * 30 + "wortb", "wortd worte", "\u00a0"]
    expected = [" ".join(line.split()) for line in lines]
    assert echo.translate(lines) == expected
    assert echo.translate([]) == []


def test_long_lines_are_cut_with_a_warning(echo, caplog):
    echo.max_source_tokens = 6
    assert len(echo.translate(["worta " * 10, "wortb"], first=41)[0].split()) < 10
    assert "line 41: cut to the first 5 of" in caplog.text


def test_buffers_keep_every_line(monkeypatch):
    text = b"\xef\xbb\xbfa\r\n\nb\xe2\x80\xa8b\n" + b"c" * 9 + b"\n\n\nd"
    lines = ["a", "", "b\u2028b", "c" * 9, "", "", "d"]
    for read_bytes in (1, 2, 3, 1 << 16):
        monkeypatch.setattr(translate, "READ_BYTES", read_bytes)
        for size in (1, 2, 100):
            read = list(translate._buffers(io.BytesIO(text), "text", size))
            assert [line for buffer in read for line in buffer] == lines
            assert max(map(len, read)) <= size
    assert [len(buffer) for buffer in translate._buffers(io.BytesIO(text), "text", 5)] == [5, 1, 1]
    assert list(translate._buffers(io.BytesIO(b"\n"), "text", 5)) == [[""]]
    assert list(translate._buffers(io.BytesIO(b""), "text", 5)) == []


def test_real_model_gives_one_line_for_one_line(trained, monkeypatch, capsys):
    data, checkpoint = trained
    text = "worta wortb\n\nwortc\nwortd worte wortf"
    code, out, _ = run(monkeypatch, capsys, text.encode(), "--checkpoint", checkpoint, "--data", data, "--cpu")
    assert code == 0
    assert out.count("\n") == 4 and out.split("\n")[1] == ""


def test_batches_do_not_change_translations(trained):
    data, checkpoint = trained
    lines = [*LINES[:7], "worta", "wortb " * 12]
    results = [translate.Translator([checkpoint], data, batch_size=size, cpu=True).translate(lines) for size in (1, 4)]
    assert results[0] == results[1]


def test_not_utf8_names_the_line_and_keeps_those_above(trained, monkeypatch, capsys):
    data, checkpoint = trained
    arguments = ("--checkpoint", checkpoint, "--data", data, "--cpu")
    code, out, err = run(monkeypatch, capsys, b"worta\nwortb\ncaf\xe9\n", *arguments)
    assert code == 2
    assert out.count("\n") == 2
    assert "lite-transformer translate: standard input, line 3: not UTF-8 (byte 0xe9 at position 4)" in err


def test_not_utf8_in_a_file(trained, tmp_path, capsys):
    data, checkpoint = trained
    (tmp_path / "bad.txt").write_bytes(b"\xff\n")
    argv = ["--checkpoint", str(checkpoint), "--data", str(data), "--cpu", "--input", str(tmp_path / "bad.txt")]
    assert main(["translate", *argv]) == 2
    assert "bad.txt, line 1: not UTF-8" in capsys.readouterr().err


def test_missing_things_are_named(trained, tmp_path, capsys):
    data, checkpoint = trained
    for argv, message in (
        (["--checkpoint", "no.pt", "--data", data], "no.pt does not exist"),
        (["--checkpoint", checkpoint, "--data", tmp_path], "no prepare.json"),
        (["--checkpoint", checkpoint, "--data", data, "--input", "no.txt"], "--input no.txt: no such file"),
        (["--checkpoint", checkpoint, "--data", data, "--beam", "0"], "--beam 0: at least 1"),
        (["--checkpoint", checkpoint, "--data", _other_languages(data, tmp_path)], "translates de-en, but"),
    ):
        assert main(["translate", *[str(word) for word in argv]]) == 2
        assert message in capsys.readouterr().err


def test_damaged_and_foreign_checkpoints(trained, tmp_path, capsys):
    data, checkpoint = trained
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:5000])
    state = torch.load(checkpoint, weights_only=False)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        state["model"][name] = state["model"][name][:-8]
    torch.save(state, tmp_path / "other.pt")
    for name, message in (("cut.pt", "truncated or damaged"), ("other.pt", "not those it was trained with")):
        assert main(["translate", "--checkpoint", str(tmp_path / name), "--data", str(data)]) == 2
        err = capsys.readouterr().err
        assert message in err and name in err and "Traceback" not in err
