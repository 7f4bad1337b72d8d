"""Scores against the tools that defined them, and by hand."""

import math
import random
import re
import sys

import pytest
import sacrebleu as sacrebleu_package
from fairseq_cli.score import cli_main as score_command

from lite_transformer.errors import ScoringError
from lite_transformer.scoring import bleu


@pytest.fixture(scope="module")
def corpus():
    """Noisy copies of random sentences with words that tokenizers would change."""
    generator = random.Random(3)
    words = ["the", "don't", "state-of-the-art", ",", ".", "3.14", "Straße", "&quot;", "well-known", "A", "a", "x@y"]
    references = [" ".join(generator.choices(words, k=generator.randint(4, 20))) for _ in range(60)]
    hypotheses = [" ".join(word for word in line.split() if generator.random() < 0.9) or "the" for line in references]
    return hypotheses, references


@pytest.mark.parametrize("lowercase", [False, True])
def test_tokenized_bleu_equals_fairseq_score(corpus, tmp_path, monkeypatch, capsys, lowercase):
    hypotheses, references = corpus
    (tmp_path / "sys").write_text("\n".join(hypotheses) + "\n", encoding="utf-8")
    (tmp_path / "ref").write_text("\n".join(references) + "\n", encoding="utf-8")
    options = ["-s", str(tmp_path / "sys"), "-r", str(tmp_path / "ref")] + ["--ignore-case"] * lowercase
    monkeypatch.setattr(sys, "argv", ["fairseq-score", *options])
    score_command()
    expected = float(re.search(r"BLEU4 = ([\d.]+)", capsys.readouterr().out)[1])
    score = bleu.tokenized_bleu(hypotheses, references, lowercase=lowercase)
    assert round(score.value, 2) == expected
    assert 40 < expected < 95


def test_tokenized_bleu_equals_sacrebleu_without_tokenization(corpus):
    hypotheses, references = corpus
    expected = sacrebleu_package.corpus_bleu(hypotheses, [references], tokenize="none", force=True).score
    assert bleu.tokenized_bleu(hypotheses, references).value == pytest.approx(expected, abs=1e-9)
    assert bleu.sacrebleu(hypotheses, references).value != pytest.approx(expected, abs=0.1)


def test_tokenized_bleu_by_hand():
    score = bleu.tokenized_bleu(["a b c d e"], ["a b c d f g"])
    # matches of 1 to 4 words: 4 of 5, 3 of 4, 2 of 3, 1 of 2; five words for six
    precision = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert score.value == pytest.approx(100 * precision * math.exp(1 - 6 / 5))
    assert bleu.tokenized_bleu(["a b c x d"], ["a b c y d"]).value == 0, "no smoothing: no four words match"


def test_compound_split():
    assert bleu.split_compounds("a well-known state-of-the-art - x") == (
        "a well ##AT##-##AT## known state ##AT##-##AT## of ##AT##-##AT## the ##AT##-##AT## art - x"
    )
    whole = bleu.tokenized_bleu(["one two three well-meant"], ["one two three well-known"])
    split = bleu.tokenized_bleu(["one two three well-meant"], ["one two three well-known"], compound_split=True)
    assert whole.value == 0 < split.value
    assert "compound_split:no" in whole.signature and "compound_split:yes" in split.signature


def test_every_score_names_its_protocol():
    lines = ["A small cat sat there ."]
    scores = [bleu.tokenized_bleu(lines, lines), bleu.sacrebleu(lines, lines, lowercase=True), bleu.chrf(lines, lines)]
    assert [score.metric for score in scores] == ["tokenized_bleu", "sacrebleu", "chrf"]
    assert [round(score.value, 6) for score in scores] == [100, 100, 100]
    assert "tok:none|smooth:none" in scores[0].signature
    assert "case:lc|eff:no|tok:13a|smooth:exp" in scores[1].signature
    assert "nc:6|nw:0" in scores[2].signature
    assert all(f"version:{sacrebleu_package.__version__}" in score.signature for score in scores)
    assert str(scores[1]) == f"sacrebleu 100.00  [{scores[1].signature}]"
    assert scores[0].to_json() == {
        "metric": "tokenized_bleu",
        "value": pytest.approx(100),
        "signature": scores[0].signature,
    }


def test_chrf_and_sacrebleu_equal_the_package(corpus):
    hypotheses, references = corpus
    assert bleu.chrf(hypotheses, references).value == sacrebleu_package.corpus_chrf(hypotheses, [references]).score
    expected = sacrebleu_package.corpus_bleu(hypotheses, [references], lowercase=True, force=True).score
    assert bleu.sacrebleu(hypotheses, references, lowercase=True).value == expected


@pytest.mark.parametrize("metric", [bleu.tokenized_bleu, bleu.sacrebleu, bleu.chrf])
def test_lines_that_do_not_belong_together_are_refused(metric):
    with pytest.raises(ScoringError, match="2 hypotheses for 1 references"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ScoringError, match="nothing to score"):
        metric([], [])
