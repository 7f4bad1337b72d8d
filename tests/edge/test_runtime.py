"""Raw text in and out: order, empty and long lines, what a line may do to others, and what it runs without."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from lite_transformer.edge import Translator, runtime
from lite_transformer.edge.runtime import BATCH_TOKENS, _batches
from lite_transformer.errors import ConfigError
from tests.edge.models import translated_without
from tests.edge.test_export import fairseq_hypotheses

LINES = ["w1 w2 w3", "", "w5", " \u00a0 ", "w7 " * 11 + "w8", "w9 nobody w1", "w4 w4"]


def test_text_order_and_empty_lines(tiny, translator):
    found = translator.translate(LINES, beam=3, max_len_a=0, max_len_b=20)
    words = tiny.loaded.task.source_dictionary
    for line, translation in zip(LINES, found, strict=True):
        if not line.strip():
            assert translation == ""
            continue
        tokens = words.encode_line(line, add_if_not_exist=False).tolist()
        best = fairseq_hypotheses(tiny.loaded, [tokens], beam=3)[0][0][0]
        assert translation == words.string(torch.tensor(best))
    assert translator.translate([]) == []
    assert translator.translate(["", ""]) == ["", ""]


def test_batches_do_not_matter(translator):
    assert translator.translate(LINES, batch_size=1) == translator.translate(LINES, batch_size=7)
    assert translator.translate(LINES) == translator.translate(LINES[::-1])[::-1]


def test_n_best(translator):
    found = translator.hypotheses(["w1 w2", ""], beam=4)
    assert found[1] == []
    assert len(found[0]) == 4 == len({item.subwords for item in found[0]})
    assert [item.score for item in found[0]] == sorted((item.score for item in found[0]), reverse=True)


def test_stream_is_the_greedy_translation(translator):
    for line in LINES:
        parts = list(translator.stream(line, max_len_b=12))
        whole = translator.translate([line], beam=1, max_len_b=12)[0]
        assert parts[-1:] == ([whole] if whole else [])
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(parts))
        assert len(parts) == len(whole.split())


def test_words_of_pieces_are_shown_whole(translator):
    translator._target = dataclasses.replace(translator._target, subword="bpe")
    translator._target_words.symbols = ["lo@@", "wer", "est"]
    assert [translator._is_whole(last, 2) for last in (0, 1)] == [False, True]
    translator._target = dataclasses.replace(translator._target, subword="sentencepiece")
    translator._target_words.symbols = ["\u2581low", "er"]
    assert [translator._is_whole(0, following) for following in (0, 1)] == [True, False]


def test_long_lines_are_split_and_nothing_is_lost(translator, caplog, monkeypatch):
    translator.max_source_tokens = 6
    seen = []
    search = runtime.search

    def watched(engine, sources, *rest):
        seen.extend(token for source in sources for token in source[:-1])
        assert max(map(len, sources)) <= 6
        return search(engine, sources, *rest)

    monkeypatch.setattr(runtime, "search", watched)
    line = " ".join(f"w{index}" for index in range(30))
    found = translator.translate(["w1", line, "w2"], first=11, max_len_b=5)
    assert sorted(seen) == sorted([5, 6, *range(4, 34)])
    assert "line 12: 31 tokens, the model reads 6" in caplog.text
    assert found[0] and found[1] and found[2]
    pieces = translator._cut(line, 6)
    assert [token for piece in pieces for token in piece if token != 2] == list(range(4, 34))


def test_a_word_longer_than_the_model_reads(translator, monkeypatch):
    monkeypatch.setattr(translator, "encode", lambda line: [*range(4, 4 + len(line)), 2])
    assert translator._cut("abcdefgh", 4) == [[4, 5, 6, 2], [7, 8, 9, 2], [10, 11, 2]]


def test_one_bad_line_does_not_lose_the_others(translator, caplog, monkeypatch):
    good = translator.translate(LINES)
    search = runtime.search

    def breaks(engine, sources, *rest):
        if max(map(len, sources)) == 13:  # the longest line alone has 13 tokens
            raise RuntimeError("no memory\nfor this")
        return search(engine, sources, *rest)

    monkeypatch.setattr(runtime, "search", breaks)
    found = translator.translate(LINES)
    assert found == [*good[:4], "", *good[5:]]
    assert "line 5: cannot be translated, left empty (no memory for this)" in caplog.text


def test_text_that_is_not_utf8(translator, caplog):
    found = translator.translate(["w1 \udcff w2", "w3"])
    assert len(found) == 2 and found == translator.translate(["w1 ? w2", "w3"])
    assert "line 1: not UTF-8" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam 0: a whole number of at least 1"),
        ({"beam": 22}, "beam 22 is too wide for 44 subwords: at most 21"),
        ({"beem": 4}, "unknown option beem; known: beam, lenpen"),
        ({"lenpen": float("nan")}, "lenpen nan"),
        ({"lenpen": "x"}, "lenpen x: a finite number"),
        ({"lenpen": 1e308}, "lenpen 1e.308: a number from -10 to 10 is needed"),
        ({"lenpen": -10.5}, "lenpen -10.5: a number from -10 to 10 is needed"),
        ({"max_len_a": None}, "max_len_a None: a number"),
        ({"beam": True}, "beam True: a whole number"),
        ({"max_len_a": -1.0}, "max_len_a -1"),
        ({"min_len": 9, "max_len_b": 5, "max_len_a": 0}, "min_len 9 is more than"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_settings_that_cannot_be(translator, options, message):
    with pytest.raises(ConfigError, match=message):
        translator.translate(["w1"], **options)


def test_the_widest_beam(tiny, translator):
    found = translator.hypotheses(["w1 w2"], beam=21, max_len_a=0, max_len_b=8)[0]
    expected = fairseq_hypotheses(tiny.loaded, [[5, 6, 2]], beam=21, max_len_b=8)[0]
    assert [item.subwords for item in found] == [
        tiny.loaded.task.target_dictionary.string(torch.tensor(tokens)) for tokens, _ in expected
    ]


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_threads_that_cannot_be(tiny, threads):
    with pytest.raises(ConfigError, match="at least 1"):
        Translator.load(tiny.folder, threads=threads)


def test_two_threads_say_the_same(tiny, translator):
    assert Translator.load(tiny.folder, threads=2).translate(LINES) == translator.translate(LINES)


def test_batches_are_bounded():
    lengths = [5, 1000, 3, 1000, *[1000] * 10, 4]
    batches = list(_batches(lengths, 4))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches[0][:3] == [2, 14, 0]
    assert all(len(batch) <= 4 for batch in batches)
    assert all(max(lengths[i] for i in batch) * len(batch) <= BATCH_TOKENS for batch in _batches(lengths, 100))


def test_neither_torch_nor_fairseq(tiny, translator):
    lines = ["w1 w2 w3", "", "w5"]
    found = translated_without(tiny.folder, ("torch", "fairseq", "onnx", "omegaconf", "hydra"), lines)
    assert found == translator.translate(lines)
