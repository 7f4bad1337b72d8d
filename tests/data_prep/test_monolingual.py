"""Corpora of one language: token files as they are, words with <unk>, subwords; what fairseq's language models read."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path

import pytest

from data_prep.io import read_lines
from data_prep.text import TextPipeline
from data_prep.wikitext import ARCHIVES, TOKENS
from data_prep.wikitext import read_lines as read_wikitext
from lite_transformer.cli.main import main
from lite_transformer.errors import DataError
from tests.data_prep.test_linux_docs import names_of, page, sentence, write_packages
from tests.helpers import commands
from tests.helpers.corpora import write_checksums

TOKEN_FILES = {
    "train": " \n = A heading = \n \n The <unk> of May 1944 @,@ 000 was the of the <unk> . \n of May \n",
    "valid": " \n The June of the May . \n",
    "test": " = B = \n \n 1944 of rare \n",
}


def write_wikitext(folder: Path, files: dict[str, str] = TOKEN_FILES, name: str = "wikitext-2") -> Path:
    with zipfile.ZipFile(folder / f"{name}-v1.zip", "w") as archive:
        for split, text in files.items():
            archive.writestr(f"{name}/wiki.{split}.tokens", text)
    write_checksums(folder)
    return folder


def prepare(*words: object) -> int:
    return main(["prepare", *map(str, words), "--workers", "1"])


def test_token_files_are_binarized_as_fairseq_does(tmp_path, capsys, caplog):
    (tmp_path / "source").mkdir()
    write_wikitext(tmp_path / "source")
    with caplog.at_level(logging.WARNING):
        assert prepare("wikitext2", "--source", tmp_path / "source", "--dest", tmp_path / "data") == 0
    assert "train: 24 tokens, but 2088628 are published" in caplog.text
    out = capsys.readouterr().out
    assert "lines: train 5, valid 2, test 3; tokens: train 24, valid 8, test 9" in out
    for split, text in TOKEN_FILES.items():
        (tmp_path / f"wiki.{split}.tokens").write_text(text, encoding="utf-8")
        assert (tmp_path / "data" / "raw" / f"{split}.en").read_text(encoding="utf-8") == text
    prefs = [word for split in TOKEN_FILES for word in (f"--{split}pref", tmp_path / f"wiki.{split}.tokens")]
    commands.run("fairseq-preprocess", "--only-source", *prefs, "--destdir", tmp_path / "theirs", "--workers", "1")
    names = ["dict.txt", *(f"{split}.{end}" for split in TOKEN_FILES for end in ("bin", "idx"))]
    for name in names:
        assert (tmp_path / "data" / "bin" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    record = json.loads((tmp_path / "data" / "bin" / "prepare.json").read_text(encoding="utf-8"))
    assert record["tokens"] == {"train": 24, "valid": 8, "test": 9}
    assert (record["language"], record["text"]["en"]["subword"], record["min_count"]) == ("en", "none", 1)


def test_published_figures():
    assert TOKENS["wikitext103"] == {"train": 103_227_021, "valid": 217_646, "test": 245_569}
    assert TOKENS["wikitext2"]["test"] == 245_569
    assert all(len(source.sha256) == 64 and source.urls[0].endswith(source.name) for source in ARCHIVES.values())


def test_an_archive_without_a_split(tmp_path):
    write_wikitext(tmp_path, {"train": "a b\n"})
    with pytest.raises(DataError, match=r"missing wiki\.test\.tokens, wiki\.valid\.tokens\. Take the archive of words"):
        list(read_wikitext({"wikitext-2-v1.zip": tmp_path / "wikitext-2-v1.zip"}))


def test_an_archive_of_another_checksum(tmp_path, capsys):
    write_wikitext(tmp_path)
    (tmp_path / "checksums.json").unlink()
    assert prepare("wikitext2", "--source", tmp_path, "--dest", tmp_path / "data") == 2
    assert "wikitext-2-v1.zip: wrong checksum" in capsys.readouterr().err


def test_rare_words_become_unknown(tmp_path):
    more = names_of("train", "linux", 9)[4:]
    words = ["thrice", "thrice", "thrice", "twice", "twice"]
    write_packages(
        tmp_path, pages={name: page(sentence(f"{name} {word}")) for name, word in zip(more, words, strict=True)}
    )
    assert prepare("linux_docs", "--source", tmp_path, "--dest", tmp_path / "words") == 0
    train = read_lines(tmp_path / "words" / "bpe" / "train.en")
    assert train[0] == "This is a sentence of eight words about <unk>"
    assert train[1] == "" and len(train) == 20
    assert " ".join(train).count("thrice") == 3 and "twice" not in " ".join(train)
    words = [line.split(" ")[0] for line in read_lines(tmp_path / "words" / "bin" / "dict.txt")]
    assert "<unk>" not in words and "sentence" in words and "both" not in words
    record = json.loads((tmp_path / "words" / "bin" / "prepare.json").read_text(encoding="utf-8"))
    assert record["tokens"]["train"] == 10 * 9 + 5 + 10 + 10 and record["min_count"] == 3
    assert not (tmp_path / "words" / "tok").exists()


def test_subwords_can_be_joined_again(tmp_path):
    write_packages(tmp_path)
    bpe = ["--subword", "bpe", "--bpe-merges", "40"]
    assert prepare("linux_docs", "--source", tmp_path, "--dest", tmp_path / "bpe", *bpe) == 0
    train = read_lines(tmp_path / "bpe" / "bpe" / "train.en")
    raw = read_lines(tmp_path / "bpe" / "raw" / "train.en")
    assert "@@" in train[0] and "<unk>" not in " ".join(train)
    record = json.loads((tmp_path / "bpe" / "bin" / "prepare.json").read_text(encoding="utf-8"))
    pipeline = TextPipeline.from_json(record["text"]["en"], tmp_path / "bpe" / "bin")
    assert [pipeline.decode(line) for line in train] == raw
    assert (record["subword_units"], record["min_count"]) == (40, None)


def test_a_second_run_does_nothing_again(tmp_path, capsys, monkeypatch):
    write_packages(tmp_path)
    words = ["linux_docs", "--source", tmp_path, "--dest", tmp_path / "data", "--limit", "4"]
    assert prepare(*words) == 0
    assert "a slice of linux_docs is ready" in capsys.readouterr().out
    assert len(read_lines(tmp_path / "data" / "raw" / "train.en")) == 4
    monkeypatch.setattr("data_prep.monolingual._write_raw", None)
    assert prepare(*words) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["linux_docs", "--pair", "de-en"], "corpus linux_docs is text of one language: leave out --pair."),
        (["linux_docs", "--joined-dictionary"], "is text of one language: leave out --joined-dictionary."),
        (["linux_docs", "--bpe-merges", "9"], "--bpe-merges without subwords: add --subword bpe, or leave it out."),
        (["wikitext2", "--lowercase"], "corpus wikitext2 is published tokenized and in words: leave out --lowercase."),
        (["wikitext103", "--subword", "bpe"], "is published tokenized and in words: leave out --subword."),
        (["embedded", "--subword", "none"], "corpus embedded needs subwords: --subword bpe or sentencepiece."),
    ],
)
def test_options_of_the_other_kind_of_corpus(words, message, tmp_path, capsys):
    assert prepare(*words, "--dest", tmp_path / "data") == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_split_without_text(tmp_path, capsys):
    write_wikitext(tmp_path, TOKEN_FILES | {"valid": " \n \n"})
    assert prepare("wikitext2", "--source", tmp_path, "--dest", tmp_path / "data") == 2
    assert "the valid split of corpus wikitext2 has no line with text." in capsys.readouterr().err
