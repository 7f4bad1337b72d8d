"""Raw text -> subwords -> raw text."""

from __future__ import annotations

import dataclasses

import pytest

from data_prep import bpe
from data_prep.text import TextPipeline, clean_whitespace, join_bpe, join_sentencepiece
from lite_transformer.errors import DataError

LINES = [
    "Ein Mann mit einem Hut, der eine E-Mail schreibt.",
    "Zwei Hunde spielen im Schnee.",
    "Der Preis: 1.234,56 € (am 4. Mai 2021, 14:05).",
    "A man isn't riding a well-known horse.",
]


def pipeline(tmp_path, **settings) -> TextPipeline:
    result = TextPipeline(**{"language": "de", "codes": "model", "folder": tmp_path, **settings})
    bpe.learn(result.subword, [result.tokenize(line) for line in LINES] * 3, 60, tmp_path / "model")
    return result


@pytest.mark.parametrize("subword", ["bpe", "sentencepiece"])
def test_without_tokenizer_any_text_comes_back(tmp_path, subword):
    text = pipeline(tmp_path, subword=subword, tokenizer="none", normalize=False)
    for line in LINES:
        assert " " in text.encode(line)
        assert text.decode(text.encode(line)) == line


@pytest.mark.parametrize("escape", [False, True])
def test_moses_round_trip(tmp_path, escape):
    text = pipeline(tmp_path, escape=escape)
    assert "@-@" in text.tokenize(LINES[0])
    for line in (*LINES[:2], "Hund & Mann."):
        assert text.decode(text.encode(line)) == line


def test_escaping_is_an_option(tmp_path):
    line = 'A & B "C"'
    assert TextPipeline("en", escape=True).tokenize(line) == "A &amp; B &quot; C &quot;"
    assert TextPipeline("en").tokenize(line) == 'A & B " C "'


def test_literal_dash_marker_survives_only_where_moses_made_it(tmp_path):
    text = TextPipeline("en")
    assert text.detokenize(text.tokenize("a well-known man")) == "a well-known man"


def test_lowercase_and_normalisation():
    text = TextPipeline("de", lowercase=True)
    assert text.tokenize("„Ähre“ – Ende") == '" ähre " - ende'


def test_white_space_and_unicode_are_made_one():
    assert clean_whitespace(" a\u00a0b\u202fc\u2028d\te\u0308 ") == "a b c d ë"


def test_digits_are_single_sentencepieces(tmp_path):
    text = pipeline(tmp_path, subword="sentencepiece", tokenizer="none", normalize=False)
    assert [piece for piece in text.encode("2021").split() if piece != "\u2581"] == ["2", "0", "2", "1"]


def test_joining_subwords():
    assert join_bpe("lo@@ w@@ er ca@@ ke") == "lower cake"
    assert join_bpe("bro@@") == "bro"
    assert join_sentencepiece("\u2581lo wer \u2581ca ke") == "lower cake"


def test_json_round_trip(tmp_path):
    text = TextPipeline("fr", lowercase=True, subword="sentencepiece", codes="bpe/spm.model", folder=tmp_path)
    settings = text.to_json()
    assert "folder" not in settings  # the prepared folder can be moved
    assert TextPipeline.from_json(settings, tmp_path) == text
    assert {field.name for field in dataclasses.fields(text)} - set(settings) == {"folder"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "de", "lower": True}, "unknown text settings.*: lower. Known: .*lowercase"),
        ({}, "name no language"),
        ({"language": "de", "tokenizer": "spacy"}, "unknown tokenizer 'spacy'. Known: moses, moses-scripts, none"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        TextPipeline.from_json(settings, tmp_path)


def test_missing_or_damaged_codes_are_named(tmp_path):
    with pytest.raises(DataError, match=r"codes: the subword model is missing.*lite-transformer prepare"):
        TextPipeline("de", codes="codes", folder=tmp_path).encode("ja")
    (tmp_path / "bad").write_text("#version: 0.2\na b\nabc\n", encoding="utf-8")
    with pytest.raises(DataError, match="bad, line 3: no BPE merge"):
        TextPipeline("de", codes="bad", folder=tmp_path).encode("ja")
    with pytest.raises(DataError, match="bad: no SentencePiece model"):
        TextPipeline("de", codes="bad", folder=tmp_path, subword="sentencepiece").encode("ja")


def test_learning_is_deterministic_and_refuses_nothing_to_learn(tmp_path):
    for subword in ("bpe", "sentencepiece"):
        for name in ("one", "two"):
            bpe.learn(subword, LINES * 3, 60, tmp_path / name)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with pytest.raises(DataError, match="nothing to merge"):
        bpe.learn("bpe", ["a b c"], 10, tmp_path / "three")
    with pytest.raises(DataError, match="--bpe-merges 10000"):
        bpe.learn("bpe", LINES, 0, tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_words_are_counted_in_bounded_memory(caplog):
    lines = [f"often sometimes{number % 3} never{number}  " for number in range(5000)]
    assert bpe.count_words(lines[:10]) == {
        "often": 10, "sometimes0": 4, "sometimes1": 3, "sometimes2": 3, **{f"never{n}": 1 for n in range(10)},
    }  # fmt: skip
    counts = bpe.count_words(lines, limit=2000)
    assert counts["often"] == 5000 and counts["sometimes0"] == 1667
    assert len(counts) < 3000  # the limit, and what one chunk may add
    assert "more than 2000 different words: words seen 1 times or less were forgotten" in caplog.text


def test_only_the_most_frequent_words_are_learnt_from(tmp_path, monkeypatch):
    monkeypatch.setattr(bpe, "LEARNT_WORDS", 2)
    bpe.learn("bpe", ["xy xy xy ab ab zz", "zz zz zz zz"], 10, tmp_path / "codes")
    assert (tmp_path / "codes").read_text(encoding="utf-8").splitlines() == ["#version: 0.2", "z z</w>", "x y</w>"]
