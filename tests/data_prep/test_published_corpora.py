"""IWSLT'14, WMT'14 and WMT'16 from small archives in the original formats, by the protocols of the published scores."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from data_prep import iwslt14_de_en, pipeline, wmt14_en_fr
from data_prep.cleaning import Limits
from data_prep.corpora import CORPORA
from data_prep.io import read_lines
from data_prep.moses import tokenize
from data_prep.pipeline import Options, prepare
from data_prep.sources import Source
from data_prep.text import TextPipeline
from lite_transformer.cli.main import main
from lite_transformer.errors import DataError
from tests.helpers import corpora as fixtures

DE_EN = fixtures.sentences(("de", "en"), 120)
EN_FR = fixtures.sentences(("en", "fr"), 120)
EN_DE = [(english, german) for german, english in DE_EN]


def options(name, source, pair=None, **changes):
    """Options as the command line makes them; ``changes`` are of the corpus, so that little text suffices."""
    corpus = dataclasses.replace(CORPORA[name], **changes)
    text = {"normalize": True, "tokenizer": "moses", "aggressive_dash": True, "escape": False, "lowercase": False}
    text |= {"subword": "bpe", **corpus.text}
    return Options(corpus, pair or corpus.default_pair, source, text, 60, corpus.joined_dictionary)


def words(dest, name):
    """The lines of a split with their subwords joined."""
    return [(line + " ").replace("@@ ", "").strip() for line in read_lines(dest / "bpe" / name)]


# --- IWSLT'14 ------------------------------------------------------------------------------------------------------


def iwslt_tests(**changes):
    sets = {
        name: [(f"{name} Satz {n}.", f"{name} sentence {n}.") for n in range(3)] for name in iwslt14_de_en.TEST_SETS
    }
    return {**sets, "TED.tst2013": [("Nicht dabei.", "Not in it.")], **changes}


def test_iwslt14_by_its_protocol(tmp_path):
    train = list(DE_EN)
    train[5] = ("eins zwei drei", "one two three four")  # 4/3 is no more than 1.5
    train[6] = ("eins zwei drei vier", "one two")  # a ratio of 2
    train[7] = ("", "nothing")
    train[8] = ("wort " * 175, "word " * 175)
    train[9] = ("wort " * 176, "word " * 176)
    train[10] = ("Es ist ’ne Sache & mehr", "It’s a thing & more")
    tests = iwslt_tests(
        **{"TED.tst2010": [("Wie geht’s &amp; so?", "It’s A &amp; B."), ("Ja.", "one two three four five")]}
    )
    fixtures.write_iwslt14(tmp_path, train, tests)
    record = prepare(options("iwslt14_de_en", tmp_path), tmp_path / "out")

    # titles and descriptions of the three talks are text; three pairs are left out
    titles = [(f"Talk number {n}", f"TED Talk Subtitles: number {n}.") for n in (0, 40, 80)]
    expected = []
    for start, (title, description) in zip((0, 40, 80), titles, strict=True):
        expected += [(title, title), (description, description), *train[start : start + 40]]
    expected = [pair for pair in expected if pair not in (train[6], train[7], train[9])]
    assert record["lines"] == {"train": 118, "valid": 5, "test": 14} and len(expected) == 123
    for side, language in enumerate(("de", "en")):
        lines = [tokenize(pair[side], language).lower() for pair in expected]
        assert words(tmp_path / "out", f"valid.{language}") == lines[22::23]
        del lines[22::23]
        assert words(tmp_path / "out", f"train.{language}") == lines
    assert words(tmp_path / "out", "test.en")[:6] == [
        "ted.dev2010 sentence 0 .", "ted.dev2010 sentence 1 .", "ted.dev2010 sentence 2 .",
        "tedx.dev2012 sentence 0 .", "tedx.dev2012 sentence 1 .", "tedx.dev2012 sentence 2 .",
    ]  # fmt: skip
    assert words(tmp_path / "out", "test.de")[6] == "wie geht &apos; s &amp; amp ; so ?"
    assert words(tmp_path / "out", "test.en")[6] == "it &apos;s a &amp; amp ; b ."
    assert "it ’ s a thing &amp; more" in words(tmp_path / "out", "train.en"), "only test sets get straight apostrophes"
    assert not any("ted.tst2013" in line or "not in it" in line for line in words(tmp_path / "out", "test.en"))


def test_iwslt14_defaults_are_those_of_the_published_scores(tmp_path, caplog):
    corpus = CORPORA["iwslt14_de_en"]
    assert (corpus.merges, corpus.joined_dictionary, corpus.valid_every) == (10000, False, 23)
    assert corpus.word_limits == Limits(maximum=175, ratio=1.5, minimum=1)
    assert corpus.published_lines == {"train": 160239, "valid": 7283, "test": 6750}
    fixtures.write_iwslt14(tmp_path, DE_EN, iwslt_tests())
    assert main(["prepare", "iwslt14_de_en", "--source", str(tmp_path), "--dest", str(tmp_path / "out")]) == 0
    assert "train: 121 lines, but 160239 are published" in caplog.text
    german, english = ((tmp_path / "out" / "bin" / f"dict.{language}.txt").read_text() for language in ("de", "en"))
    assert german != english
    assert not (tmp_path / "out" / "tok").exists() and not (tmp_path / "out" / "raw" / "valid.de").exists()


def test_tags_and_segments():
    lines = ["<url>x</url>", "<title> A <b>tag</b></title>", "<description>D</description>", "a <keywords> b", "ja"]
    assert list(iwslt14_de_en._training_lines(iter(lines))) == [" A <b>tag</b>", "D", "ja"]
    lines = ["<doc>", '<seg id="12"> Don’t. </seg>', '<hl><seg id="3">x</seg></hl>', "<p>no</p>"]
    assert list(iwslt14_de_en.segments(iter(lines))) == ["Don't.", "<hl>x</hl>"]


# --- WMT'14 --------------------------------------------------------------------------------------------------------


def test_wmt14_by_its_protocol(tmp_path):
    parts = {"europarl": EN_FR[:30], "commoncrawl": EN_FR[30:50], "un": EN_FR[50:60], "news": EN_FR[60:80]}
    parts["giga"] = [
        ("“Quoted” well-known\u00adtext", "«\u00a0cité\u00a0» bien-connu\u00adtexte"),
        ("", ""),
        ("a " * 30, "un " * 30),
        *EN_FR[80:],
    ]
    test = [("“Never” normalised’s", "jamais « normalisé »"), *EN_FR[:3], ("x " * 40, "y")]
    fixtures.write_wmt14_en_fr(tmp_path, parts, test)
    limits = Limits(maximum=25, ratio=1.5)
    record = prepare(options("wmt14_en_fr", tmp_path, valid_every=5, subword_limits=limits), tmp_path / "out")

    pairs = [pair for name in ("europarl", "commoncrawl", "un", "news", "giga") for pair in parts[name]]
    pipelines = [TextPipeline(language, tokenizer="moses-scripts", escape=True) for language in ("en", "fr")]
    tokenized = [tuple(text.tokenize(line) for text, line in zip(pipelines, pair, strict=True)) for pair in pairs]
    assert tokenized[80] == ("&quot; Quoted &quot; well @-@ known text", "&quot; cité &quot; bien @-@ connu texte")
    splits = {"valid": tokenized[4::5], "train": [pair for n, pair in enumerate(tokenized, 1) if n % 5]}
    codes = {"codes": "codes", "folder": tmp_path / "out" / "bpe"}
    english, french = (dataclasses.replace(text, **codes) for text in pipelines)
    for split, lines in splits.items():
        # counted first, cleaned in subwords afterwards
        kept = [pair for pair in ((english.split(a), french.split(b)) for a, b in lines) if limits.keep(*pair)]
        assert 0 < len(kept) < len(lines)
        assert read_lines(tmp_path / "out" / "bpe" / f"{split}.en") == [pair[0] for pair in kept]
        assert read_lines(tmp_path / "out" / "bpe" / f"{split}.fr") == [pair[1] for pair in kept]
        assert record["lines"][split] == len(kept)
    assert words(tmp_path / "out", "test.en")[0] == "“ Never ” normalised &apos;s", "test is not normalised"
    assert words(tmp_path / "out", "test.fr")[0] == "jamais « normalisé »"
    assert record["lines"]["test"] == 5, "test is not cleaned"
    assert read_lines(tmp_path / "out" / "raw" / "train.en")[80] == "“Quoted” well-known\u00adtext"


def test_wmt14_defaults_are_those_of_the_published_scores():
    corpus = CORPORA["wmt14_en_fr"]
    assert (corpus.merges, corpus.joined_dictionary, corpus.valid_every) == (40000, True, 1333)
    assert corpus.subword_limits == Limits(maximum=250, ratio=1.5, minimum=1) and corpus.word_limits is None
    assert sum(source.size_bytes or 0 for source in wmt14_en_fr.list_sources(("en", "fr"))) == 6617099128
    assert all(len(source.sha256 or "0" * 64) == 64 for source in wmt14_en_fr.list_sources(("en", "fr")))


# --- WMT'16 --------------------------------------------------------------------------------------------------------

CODES = "#version: 0.2\nt h\nth e</w>\n"
SUBWORDS = {
    "train": [("the ho@@ use", "das H@@ aus"), ("the dog", "der Hund"), ("the", "die"), ("rare", "selten")],
    "valid": [("the dog", "der Hund")],
    "test": [("the ho@@ use .", "das H@@ aus .")],
}
RAW = {"valid": [("The dog", "Der Hund")], "test": [("The house.", "Das Haus.")]}


def small(source, **changes):
    """The corpus with a source whose checksum is unknown and a dictionary of 12."""
    return options("wmt16_en_de", source, **{"dictionary_size": 12, **changes})


@pytest.mark.parametrize("prefix", ["", "wmt16_en_de_bpe32k/"])
def test_wmt16_is_taken_as_it_is(tmp_path, prefix):
    name = "wmt16_en_de_bpe32k.tar.gz" if prefix else "wmt16_en_de.tar.gz"
    fixtures.write_wmt16_en_de(tmp_path / name, SUBWORDS, CODES, RAW, prefix)
    record = prepare(small(tmp_path), tmp_path / "out")
    for split, pairs in SUBWORDS.items():
        for side, language in enumerate(("en", "de")):
            assert read_lines(tmp_path / "out" / "bpe" / f"{split}.{language}") == [pair[side] for pair in pairs]
    assert (tmp_path / "out" / "bin" / "bpe" / "codes").read_text(encoding="utf-8") == CODES
    assert read_lines(tmp_path / "out" / "raw" / "test.de") == ["Das Haus."]
    assert record["lines"] == {"train": 4, "valid": 1, "test": 1}
    # 4 special symbols and the 8 most frequent; ties go by the alphabet
    assert record["dictionary_sizes"] == {"en": 16, "de": 16}
    dictionary = read_lines(tmp_path / "out" / "bin" / "dict.en.txt")
    assert dictionary[:2] == ["the 3", "H@@ 1"] and sum("madeupword" in line for line in dictionary) == 4
    assert pipeline.load_pipelines(tmp_path / "out" / "bin")["en"].encode("the-the") == "th@@ e@@ -@@ the"


def test_wmt16_without_raw_text_or_with_missing_parts(tmp_path):
    fixtures.write_wmt16_en_de(tmp_path / "wmt16_en_de.tar.gz", SUBWORDS, CODES)
    record = prepare(small(tmp_path), tmp_path / "out")
    assert record["raw_sha256"] == {}
    fixtures.write_wmt16_en_de(tmp_path / "wmt16_en_de.tar.gz", {"train": SUBWORDS["train"]}, CODES)
    with pytest.raises(DataError, match=r"no member newstest2013\.tok\.bpe\.32000\.en, .*Fetch the right archive"):
        prepare(small(tmp_path), tmp_path / "other")
    assert not (tmp_path / "other" / "bpe").exists()


def test_wmt16_refuses_options_that_would_change_its_text(tmp_path, capsys):
    command = ["prepare", "wmt16_en_de", "--dest", str(tmp_path / "out"), "--lowercase", "--bpe-merges", "8000"]
    assert main(command) == 2
    assert "is published tokenized and in subwords: leave out --lowercase, --bpe-merges." in capsys.readouterr().err


# --- what can go wrong ---------------------------------------------------------------------------------------------


def failure(capsys, *argv):
    assert main(["prepare", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if " | INFO | " not in line]
    return line


def test_missing_archives_are_named_with_their_addresses(tmp_path, capsys):
    line = failure(capsys, "iwslt14_de_en", "--source", tmp_path, "--dest", tmp_path / "out")
    assert f"--source {tmp_path}: missing de-en.tgz. Fetch de-en.tgz from https://dl.fbaipublicfiles.com" in line
    line = failure(capsys, "wmt14_en_fr", "--source", tmp_path, "--dest", tmp_path / "out")
    assert "missing training-parallel-europarl-v7.tgz, training-parallel-commoncrawl.tgz" in line
    assert not (tmp_path / "out").exists()


def test_truncated_archive(tmp_path, capsys):
    path = fixtures.write_iwslt14(tmp_path, DE_EN, iwslt_tests())
    path.write_bytes(path.read_bytes()[:-200])
    line = failure(capsys, "iwslt14_de_en", "--source", tmp_path, "--dest", tmp_path / "out")
    assert "de-en.tgz" in line and "truncated or damaged archive" in line
    assert not (tmp_path / "out" / "raw").exists()


def test_unequal_sides_of_an_archive(tmp_path, capsys):
    fixtures.write_tar(tmp_path / "de-en.tgz", {f"de-en/train.tags.de-en.{x}": "a\n" * len(x * n) for x, n in
                                                (("de", 1), ("en", 2))})  # fmt: skip
    line = failure(capsys, "iwslt14_de_en", "--source", tmp_path, "--dest", tmp_path / "out")
    assert "de-en/train.tags.de-en.de has 2 lines, de-en/train.tags.de-en.en has 4" in line


def test_member_outside_the_folder(tmp_path, capsys):
    fixtures.write_tar(tmp_path / "de-en.tgz", {"../evil": "x"})
    line = failure(capsys, "iwslt14_de_en", "--source", tmp_path, "--dest", tmp_path / "out")
    assert "member '../evil' points outside the archive's folder" in line


def test_full_disk(tmp_path, capsys, monkeypatch):
    fixtures.write_iwslt14(tmp_path, DE_EN, iwslt_tests())

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "atomic_open", full)
        line = failure(capsys, "iwslt14_de_en", "--source", tmp_path, "--dest", tmp_path / "out")
    assert f"{tmp_path / 'out'}: the disk is full. Make room and run the same command again" in line
    assert not (tmp_path / "out" / "raw").exists()
    assert main(["prepare", "iwslt14_de_en", "--source", str(tmp_path), "--dest", str(tmp_path / "out")]) == 0


# --- downloads and going on ----------------------------------------------------------------------------------------


def test_download_then_no_need_of_it(tmp_path, monkeypatch):
    archive = fixtures.write_iwslt14(tmp_path, DE_EN, iwslt_tests())
    source = Source("de-en.tgz", (archive.as_uri(),), "free", "nobody")
    chosen = options("iwslt14_de_en", None, sources=lambda pair: [source])
    dest = tmp_path / "out"
    record = prepare(chosen, dest)
    assert (dest / "downloads" / "de-en.tgz").read_bytes() == archive.read_bytes()
    for path in (dest / "downloads").iterdir():
        path.unlink()
    monkeypatch.setattr(pipeline, "obtain", None)
    assert prepare(chosen, dest) == record, "a finished folder was not taken without its archive"


def test_finished_splits_of_a_killed_step_are_kept(tmp_path, monkeypatch):
    fixtures.write_iwslt14(tmp_path, DE_EN, iwslt_tests())
    chosen = options("iwslt14_de_en", tmp_path)
    prepare(chosen, tmp_path / "whole")
    real, done = pipeline._map_pairs, []

    def recorded(job, paths, split, workers):
        done.append((job.what, split))
        return real(job, paths, split, workers)

    def killed(job, paths, split, workers):
        done.append((job.what, split))
        for number, pair in enumerate(real(job, paths, split, workers)):
            if split == "test" and number == 3:
                raise KeyboardInterrupt
            yield pair

    for what in ("tokenize", "split"):
        monkeypatch.setattr(pipeline, "_map_pairs", lambda job, *rest, w=what: (
            killed if job.what == w else recorded)(job, *rest))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            prepare(chosen, tmp_path / "out")
    monkeypatch.setattr(pipeline, "_map_pairs", recorded)
    prepare(chosen, tmp_path / "out")
    # train gives valid as well; what was finished before a kill is not done again, what was not finished is
    assert done == [
        ("tokenize", "train"), ("tokenize", "test"),
        ("tokenize", "test"), ("split", "train"), ("split", "valid"), ("split", "test"),
        ("split", "test"),
    ]  # fmt: skip
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.chunked, "__defaults__", (7,))
    fixtures.write_wmt14_en_fr(tmp_path, {"europarl": EN_FR}, EN_FR[:20])
    for workers in (1, 2):
        prepare(options("wmt14_en_fr", tmp_path, valid_every=5), tmp_path / str(workers), workers)
        monkeypatch.setattr(pipeline, "LARGE_TEXT_BYTES", 0)
    for path in (tmp_path / "1").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes(), path
