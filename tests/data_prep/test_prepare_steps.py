"""Preparing a corpus: layout, record, resuming, what stops it; fairseq reads the result."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pytest

from data_prep import multi30k, parallel, pipeline
from data_prep.corpora import CORPORA, find_corpus, parse_pair
from data_prep.folders import locked
from data_prep.io import read_lines, sha256
from data_prep.pipeline import Options, load_pipelines, prepare
from lite_transformer.errors import DataError

# Written for this test; shaped like captions.
CAPTIONS = [
    ("Ein Hund läuft über eine Wiese.", "A dog runs across a meadow."),
    ("Zwei Frauen sitzen auf einer Bank.", "Two women are sitting on a bench."),
    ("Ein Kind in einem T-Shirt lacht.", "A child in a T-shirt laughs."),
    ("Drei Männer spielen Karten.", "Three men play cards."),
]


def write_multi30k(folder, repeat=5):
    folder.mkdir()
    for name, lines in (("train", CAPTIONS * repeat), ("val", CAPTIONS[:3]), ("test_2016_flickr", CAPTIONS[1:])):
        for side, language in enumerate(("de", "en")):
            text = "".join(f"{pair[side]}\n" for pair in lines)
            (folder / f"{name}.{language}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return folder


def options(source, corpus="multi30k", pair=("de", "en"), **changes):
    entry = CORPORA[corpus]
    text = {"normalize": True, "tokenizer": "moses", "aggressive_dash": True, "escape": False, "lowercase": False}
    text |= {"subword": "bpe", **entry.text}
    return Options(**{"corpus": entry, "pair": pair, "source": source, "text": text, "merges": 30, **changes})


@pytest.fixture
def source(tmp_path):
    return write_multi30k(tmp_path / "source")


def test_layout_record_and_text(tmp_path, source):
    dest = tmp_path / "out"
    record = prepare(options(source), dest)
    names = {f"{split}.{language}" for split in ("train", "valid", "test") for language in ("de", "en")}
    assert {file.name for file in (dest / "raw").iterdir()} == names
    assert {file.name for file in (dest / "bpe").iterdir()} == names | {"codes"}
    assert read_lines(dest / "raw" / "test.de") == [german for german, _ in CAPTIONS[1:]]
    assert read_lines(dest / "bpe" / "test.en")[0].replace("@@ ", "") == "two women are sitting on a bench ."
    assert record["lines"] == {"train": 20, "valid": 3, "test": 3}
    assert record["raw_sha256"] == {name: sha256(dest / "raw" / name) for name in names}
    assert record["text"]["de"]["lowercase"] is True and record["text"]["de"]["codes"] == "bpe/codes"
    assert set(record["versions"]) >= {"sacremoses", "subword-nmt", "sentencepiece"}
    assert str(tmp_path) not in json.dumps(record)
    assert json.loads((dest / "bin" / "prepare.json").read_text(encoding="utf-8")) == record
    assert not list(dest.glob(".partial-*"))


def test_bin_folder_alone_holds_what_translating_needs(tmp_path, source):
    prepare(options(source), tmp_path / "out")
    moved = (tmp_path / "out" / "bin").rename(tmp_path / "elsewhere")
    text = load_pipelines(moved)["en"]
    assert text.decode(text.encode("A dog in a T-Shirt.")) == "a dog in a t-shirt."


def test_fairseq_reads_the_result(tmp_path, source):
    from argparse import Namespace

    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    prepare(options(source), tmp_path / "out")
    for pair in (("de", "en"), ("en", "de")):
        folder = str(tmp_path / "out" / "bin")
        config = TranslationConfig(data=folder, source_lang=pair[0], target_lang=pair[1], dataset_impl="mmap")
        task = TranslationTask.setup_task(Namespace(**vars(config)))
        task.load_dataset("test")
        subwords = task.source_dictionary.string(task.dataset("test")[0]["source"])
        assert subwords == read_lines(tmp_path / "out" / "bpe" / f"test.{pair[0]}")[0]
    assert task.source_dictionary == task.target_dictionary


def test_same_files_as_fairseq_preprocess(tmp_path, source):
    dest = tmp_path / "out"
    (source / "val.de.gz").write_bytes(gzip.compress("Ω ist neu.\nΩ.\nEin Hund.\n".encode()))
    prepare(options(source, joined_dictionary=False), dest)
    command = [
        sys.executable,
        "-m",
        "fairseq_cli.preprocess",
        "-s",
        "de",
        "-t",
        "en",
        "--destdir",
        str(tmp_path / "ref"),
    ]
    for split in ("train", "valid", "test"):
        command += [f"--{split}pref", str(dest / "bpe" / split)]
    subprocess.run(command, check=True, capture_output=True)
    reference = [file for file in (tmp_path / "ref").iterdir() if file.suffix != ".log"]
    assert len(reference) == 14
    for file in reference:
        assert (dest / "bin" / file.name).read_bytes() == file.read_bytes(), file.name


def test_separate_dictionaries_differ(tmp_path, source):
    prepare(options(source, joined_dictionary=False), tmp_path / "out")
    german, english = ((tmp_path / "out" / "bin" / f"dict.{language}.txt").read_text() for language in ("de", "en"))
    assert german != english


STEPS = {"_write_raw": set(), "_write_tokenized": {"raw"}, "_write_subwords": {"raw", "tok"}}
STEPS["_write_binarized"] = {"raw", "bpe"}  # the words are deleted when the subwords are there


@pytest.mark.parametrize("broken", STEPS)
def test_interrupted_run_goes_on_and_ends_the_same(tmp_path, source, monkeypatch, broken):
    prepare(options(source), tmp_path / "whole")
    dest = tmp_path / "out"
    real = getattr(pipeline, broken)

    def killed(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, broken, killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(options(source), dest)
    finished = {folder.name for folder in dest.iterdir() if not folder.name.startswith(".") and folder.is_dir()}
    before = {name: (dest / name).stat().st_mtime_ns for name in finished}
    assert finished == STEPS[broken]
    prepare(options(source), dest)
    for name in before.keys() - {"tok"}:
        assert (dest / name).stat().st_mtime_ns == before[name], "a finished step was repeated"
    files = sorted(file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(dest) for file in dest.rglob("*") if file.is_file())
    for file in files:
        assert (dest / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_worker_processes_change_nothing(tmp_path):
    source = write_multi30k(tmp_path / "source", repeat=600)
    for workers in (1, 2):
        prepare(options(source), tmp_path / str(workers), workers)
    for language in ("de", "en"):
        one, two = (tmp_path / workers / "bpe" / f"train.{language}" for workers in "12")
        assert one.read_bytes() == two.read_bytes()


def test_other_settings_or_sources_are_refused(tmp_path, source):
    dest = tmp_path / "out"
    prepare(options(source), dest)
    with pytest.raises(DataError, match=r"other settings: merges was 30, now 40\. Choose another --dest"):
        prepare(options(source, merges=40), dest)
    (source / "val.de.gz").write_bytes(gzip.compress(b"Neu.\nNeu.\nNeu.\n"))
    with pytest.raises(DataError, match="other settings: sources was"):
        prepare(options(source), dest)


def test_foreign_folder_is_not_touched(tmp_path, source):
    (tmp_path / "out" / "raw").mkdir(parents=True)
    with pytest.raises(DataError, match="already has raw, not made by this program"):
        prepare(options(source), tmp_path / "out")


def test_second_process_is_kept_out(tmp_path, source):
    dest = tmp_path / "out"
    dest.mkdir()
    with locked(dest, "--dest"), pytest.raises(DataError, match="out: another process is at work in this folder"):
        prepare(options(source), dest)


def test_multi30k_without_files_says_what_to_fetch(tmp_path):
    with pytest.raises(DataError, match=r"needs --source DIR.*multi30k/dataset.*data/task1/raw.*prepare multi30k"):
        multi30k.find_sources(None, ("de", "en"))
    with pytest.raises(DataError, match=r"no such folder\. Fetch train"):
        multi30k.find_sources(tmp_path / "nowhere", ("de", "en"))
    (tmp_path / "train.de.gz").touch()
    with pytest.raises(DataError, match=r"missing train\.en, val\.de, val\.en, test_2016_flickr\.de"):
        multi30k.find_sources(tmp_path, ("de", "en"))


def test_parallel_reads_plain_and_compressed_under_usual_names(tmp_path):
    for name, content in (("train", "a b\n" * 3), ("dev", "c\n"), ("test", "d\n")):
        (tmp_path / f"{name}.xx").write_text(content, encoding="utf-8")
        (tmp_path / f"{name}.yy.gz").write_bytes(gzip.compress(content.encode()))
    found = parallel.find_sources(tmp_path, ("xx", "yy"))
    assert found["valid.xx"].name == "dev.xx" and found["train.yy"].name == "train.yy.gz"
    with pytest.raises(DataError, match="read from your own files: add --source DIR"):
        parallel.find_sources(None, ("xx", "yy"))


def test_pairs_with_an_empty_side_leave_train_only(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.de").write_text("eins zwei\n\ndrei vier\n", encoding="utf-8")
        (tmp_path / f"{name}.en").write_text("one two\nlost\nthree four\n", encoding="utf-8")
    record = prepare(options(tmp_path, "parallel"), tmp_path / "out")
    assert record["lines"] == {"train": 2, "valid": 3, "test": 3}
    assert read_lines(tmp_path / "out" / "raw" / "train.en") == ["one two", "three four"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("de", "'de' is no language pair; write SOURCE-TARGET, for example --pair de-en"),
        ("de-it", r"multi30k has no pair 'de-it'\. Take two different languages of: de, en, fr"),
        ("de-de", "has no pair 'de-de'"),
        ("../x-en", "is no language pair"),
    ],
)
def test_bad_pairs(text, message):
    with pytest.raises(DataError, match=message):
        parse_pair(text, CORPORA["multi30k"])


def test_registry():
    assert set(CORPORA) >= {"embedded", "multi30k", "parallel"}
    assert parse_pair(None, CORPORA["embedded"]) == ("de", "en")
    assert all(corpus.licence and corpus.citation and corpus.description for corpus in CORPORA.values())
    with pytest.raises(DataError, match=r"unknown corpus 'wmt'\. Known corpora: embedded, "):
        find_corpus("wmt")


def test_unprepared_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no prepare\.json.*lite-transformer prepare CORPUS --dest DIR"):
        load_pipelines(tmp_path)
    (tmp_path / "prepare.json").write_text('{"text": [1]}', encoding="utf-8")
    with pytest.raises(DataError, match="damaged or of another program"):
        load_pipelines(tmp_path)


def test_importing_needs_neither_torch_nor_fairseq():
    code = "import sys, data_prep.pipeline; print([name for name in ('torch', 'fairseq') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "[]\n"
