"""Shortlists: what is counted, the file, and translation that is restricted to them."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import indexed_dataset

from lite_transformer.cli.main import main
from lite_transformer.edge import Translator, shortlist
from lite_transformer.edge import engine as engine_module
from lite_transformer.edge.folder import SHORTLIST_FILE, read_manifest
from lite_transformer.edge.search import collate, search
from lite_transformer.edge.shortlist import Shortlist, build, read, write
from lite_transformer.edge.vocabulary import END, PAD, UNKNOWN
from lite_transformer.errors import CheckpointError, ConfigError, DataError
from tests.edge.models import exported, loaded_model

# of 100 sentences: 10 stands beside 20, 11 beside 21, all have the frequent 30
PAIRS = [(np.array([10, 12, 2]), np.array([30, 20, 2])), (np.array([11, 12, 2]), np.array([30, 21, 30, 2]))] * 50
SIZES = (14, 40)


def rows(found: Shortlist) -> dict[int, list[int]]:
    return {
        token: found.tokens[found.starts[token] : found.starts[token + 1]].tolist()
        for token in range(len(found.starts) - 1)
        if found.starts[token] < found.starts[token + 1]
    }


def test_what_stands_beside_more_often_than_by_chance():
    found = build(PAIRS, SIZES, size=2)
    # 30 and 2 are the most frequent; of 20 and 21 chance explains that they stand beside 12 and 2
    assert found.always.tolist() == [PAD, END, UNKNOWN, 30]
    assert rows(found) == {10: [20], 11: [21]}
    assert found.allowed([[10, END]]).tolist() == [PAD, END, UNKNOWN, 20, 30]
    assert found.allowed([[10, END], [11, END]]).tolist() == [PAD, END, UNKNOWN, 20, 21, 30]
    assert found.allowed([[13]]).tolist() == [PAD, END, UNKNOWN, 30]  # never seen


def test_the_strongest_are_kept_and_the_same_word_always():
    pairs = [(np.array([5]), np.array(target)) for target in ([20, 21, 22], [20, 21], [20])] + [
        (np.array([6]), np.array([23])) for _ in range(9)
    ]
    assert rows(build(pairs, (8, 40), size=1)) == {5: [20]}  # 23 is allowed anyway
    assert rows(build(pairs, (8, 40), size=2)) == {5: [21, 22]}  # so is 20
    assert rows(build(pairs, (8, 40), size=1, same={5: 39, 7: 38, 6: 23})) == {5: [39], 7: [38]}


def test_counts_do_not_depend_on_how_sentences_are_taken_together(monkeypatch):
    rng = np.random.default_rng(1)
    pairs = [(rng.integers(4, 30, 6), rng.integers(4, 30, 7)) for _ in range(60)]
    whole = build(pairs, (30, 30), size=5)
    monkeypatch.setattr(shortlist, "_CHUNK", 7)
    apart = build(pairs, (30, 30), size=5)
    assert rows(whole) == rows(apart) and len(rows(whole)) > 20
    monkeypatch.setattr(shortlist, "MOST_SENTENCES", 20)  # every third one
    assert rows(build(pairs, (30, 30), size=5)) == rows(build(pairs[::3], (30, 30), size=5))
    monkeypatch.setattr(shortlist, "_MOST_PAIRS", 0)  # none that was seen once only
    assert sum(map(len, rows(build(pairs, (30, 30), size=5)).values())) < len(whole.tokens)


def test_nothing_to_build_from():
    with pytest.raises(ConfigError, match="size 0: at least 1"):
        build(PAIRS, SIZES, size=0)
    with pytest.raises(ConfigError, match="no sentences"):
        build([], SIZES)


def test_the_file(tmp_path):
    rng = np.random.default_rng(2)
    pairs = [(rng.integers(4, 500, 9), rng.integers(4, 700, 9)) for _ in range(300)]
    made = build(pairs, (500, 700), size=20)
    write(made, tmp_path / "s")
    again = read(tmp_path / "s", (500, 700))
    assert rows(again) == rows(made) and again.always.tolist() == made.always.tolist()
    assert again.allowed([[4, 5]]).tolist() == made.allowed([[4, 5]]).tolist()
    assert (tmp_path / "s").stat().st_size < 2 * len(made.tokens)
    with pytest.raises(CheckpointError, match="other dictionaries"):
        read(tmp_path / "s", (501, 700))
    with pytest.raises(CheckpointError, match="no shortlist of this model"):
        read(tmp_path / "nothing", (500, 700))
    content = (tmp_path / "s").read_bytes()
    for number, damaged in enumerate((content[:-5], content[:40], b"x" + content, content.replace(b"700", b"70x"))):
        (tmp_path / str(number)).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no shortlist of this model"):
            read(tmp_path / str(number), (500, 700))


def test_tokens_outside_the_dictionary_are_refused(tmp_path):
    starts = np.zeros(15, np.int64)
    for always in ([PAD, END, UNKNOWN, 40], [PAD, END, 30]):
        write(Shortlist(np.array(always), starts, np.zeros(0, np.int64), 40), tmp_path / "s")
        with pytest.raises(CheckpointError, match="tokens that cannot be"):
            read(tmp_path / "s", SIZES)


# --- translation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("options", [{}, {"share_all_embeddings": True}, {"share_decoder_input_output_embed": True}])
def test_a_restricted_step_is_the_whole_one_over_fewer_tokens(options, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "INT4_ACCURACY", "1")  # int4 as exact as the restricted step
    words = 30 if "share_decoder_input_output_embed" in options else None
    translator = Translator.load(
        exported(loaded_model(target_words=words, **options), tmp_path, precision), engine="portable"
    )
    engine, size = translator.engine, translator.manifest.model["target_vocabulary"]
    source = collate([[5, 6, 7, END], [9, END]])
    ids = np.array([PAD, END, UNKNOWN, 7, 12, 13, 20, 31])

    def first_step(allowed):
        engine.restrict(allowed)
        tokens, order = np.full((2, 1), END), np.array([[0], [1]])
        found = engine.step(engine.encode(source), tokens, order, None, size if allowed is None else len(allowed))
        by_id = np.empty((2, size), np.float32)
        np.put_along_axis(by_id, found.tokens[:, 0], found.scores[:, 0], axis=1)
        return by_id, found

    whole, _ = first_step(None)
    wanted = whole[:, ids] - np.log(np.exp(whole[:, ids]).sum(axis=1, keepdims=True))
    some, found = first_step(ids)
    assert sorted(found.tokens[0, 0].tolist()) == ids.tolist()
    np.testing.assert_allclose(some[:, ids], wanted, atol=1e-5)
    np.testing.assert_allclose(found.end_scores[:, 0], wanted[:, 1], atol=1e-5)


def test_a_state_keeps_its_restriction(tiny):
    engine = Translator.load(tiny.folder, engine="portable").engine
    engine.restrict(np.array([PAD, END, UNKNOWN, 9]))
    state = engine.encode(collate([[5, END]]))
    engine.restrict(None)
    found = engine.step(state, np.array([[END]]), np.array([[0]]), None, 4)
    assert sorted(found.tokens[0, 0].tolist()) == [PAD, END, UNKNOWN, 9]


@pytest.fixture(scope="module")
def corpus(tiny, tmp_path_factory):
    """A binarized training split in the language of the tiny model: wN is translated by w(N + 1)."""
    data = Path(shutil.copytree(tiny.folder.parent / "data", tmp_path_factory.mktemp("corpus") / "bin"))
    for language, shift in (("de", 0), ("en", 1)):
        prefix = str(data / f"train.de-en.{language}")
        builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=44)
        for number in range(60):
            words = [4 + number % 30 + shift, 4 + (number * 7) % 30 + shift, END]
            builder.add_item(torch.tensor(words))
        builder.finalize(f"{prefix}.idx")
    return data


@pytest.fixture(scope="module")
def listed(tiny, corpus, tmp_path_factory):
    """The tiny model with a shortlist."""
    return exported(tiny.loaded, tmp_path_factory.mktemp("listed"), shortlist=(corpus, 3))


@pytest.mark.parametrize("engine", ["portable", "auto"])
def test_translations_have_allowed_words_alone(listed, engine):
    assert SHORTLIST_FILE in read_manifest(listed).files
    translator = Translator.load(listed, engine=engine, shortlist=True)
    exact = Translator.load(listed, engine=engine)
    found = read(listed / SHORTLIST_FILE, (44, 44))
    lines = ["w1 w2 w3", "", "w5 w9"]
    for line, text in zip(lines, translator.translate(lines, batch_size=1, beam=2), strict=True):
        allowed = {f"w{token - 4}" for token in found.allowed([translator.encode(line)])} | {"<<unk>>", "<unk>"}
        assert set(text.split()) <= allowed
        assert bool(text) == bool(line)
    assert translator.translate(lines, beam=2) != exact.translate(lines, beam=2)
    streamed = list(translator.stream("w1 w2 w3"))[-1]
    assert streamed == translator.translate(["w1 w2 w3"], beam=1)[0]
    # a search that is wider than the list is exact
    assert translator.translate(lines, batch_size=1, beam=9) == exact.translate(lines, batch_size=1, beam=9)


def test_the_verbs(listed, tiny, corpus, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w1 w2\n"), encoding="utf-8"))
    assert main(["translate", "--model", str(listed), "--shortlist", "--engine", "portable"]) == 0
    assert capsys.readouterr().out.splitlines() == Translator.load(listed, shortlist=True).translate(["w1 w2"])
    assert main(["translate", "--model", str(tiny.folder), "--shortlist"]) == 2
    assert "has no shortlist: export the model with --shortlist BIN" in capsys.readouterr().err
    assert main(["translate", "--checkpoint", "x.pt", "--data", "y", "--shortlist"]) == 2
    assert "--shortlist is for exported models" in capsys.readouterr().err
    words = ["export", "x.pt", "--data", "y", "--out", str(tmp_path / "out"), "--shortlist-size", "5"]
    assert main(words) == 2
    assert "--shortlist-size 5: at least 1 is needed, and --shortlist BIN" in capsys.readouterr().err


def test_training_data_of_another_model(tiny, corpus, tmp_path):
    other = loaded_model(target_words=30)
    with pytest.raises(DataError, match=r"dict\.en\.txt is not the model's"):
        exported(other, tmp_path, shortlist=(corpus, 3))
    with pytest.raises(DataError, match=r"train\.de-en\.de\.idx is missing"):
        exported(tiny.loaded, tmp_path, shortlist=(tiny.folder.parent / "data", 3))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_search_within_few_tokens(tiny):
    """Fewer candidates than two beams of a search ask for."""
    engine = Translator.load(tiny.folder, engine="portable").engine
    engine.restrict(np.array([PAD, END, UNKNOWN, 9, 11, 12]))
    translator = Translator.load(tiny.folder)
    found = search(engine, [[5, 6, END]], translator.settings(beam=2, max_len_b=5, max_len_a=0), 6, 30)
    assert {token for each in found[0] for token in each.tokens} <= {END, UNKNOWN, 9, 11, 12}
