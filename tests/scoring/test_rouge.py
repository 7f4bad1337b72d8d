"""ROUGE against rouge-score's own interface on the same text, and by hand."""

from __future__ import annotations

import random

import pytest
from rouge_score import rouge_scorer, scoring

from lite_transformer.errors import ScoringError
from lite_transformer.scoring import rouge as rouge_


def values(hypotheses, references, **options):
    return {score.metric: score.value for score in rouge_.rouge(hypotheses, references, **options)}


@pytest.fixture(scope="module")
def summaries():
    """Random summaries of one to four marked sentences, and noisy copies of them."""
    generator = random.Random(5)
    words = ["runs", "running", "the", "The", "don't", "well-known", "U.S.", "3.14", "naïve", "police", ",", "a"]

    def sentence():
        return " ".join(generator.choices(words, k=generator.randint(3, 12))) + " ."

    references = [[sentence() for _ in range(generator.randint(1, 4))] for _ in range(40)]
    noisy = [[" ".join(w for w in s.split() if generator.random() < 0.8) for s in r][::-1] for r in references]
    return noisy, references


@pytest.mark.parametrize("stem", [False, True])
def test_equals_rouge_score(summaries, stem):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stem)
    aggregator = scoring.BootstrapAggregator(n_samples=2)
    found = [scorer.score("\n".join(r), "\n".join(h)) for h, r in zip(*summaries, strict=True)]
    for item in found:
        aggregator.add_scores(item)
    hypotheses, references = ([" ¶ ".join(sentences) for sentences in side] for side in summaries)
    ours = values(hypotheses, references, stem=stem)
    assert list(ours) == [name + "_stem" * stem for name in aggregator.aggregate()]
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        expected = 100 * sum(item[name].fmeasure for item in found) / len(found)
        assert ours[name + "_stem" * stem] == pytest.approx(expected, abs=1e-9)
        assert 20 < expected < 99
    assert ours["rougeLsum" + "_stem" * stem] > 1 + ours["rougeL" + "_stem" * stem], "sentences are in another order"


def test_by_hand():
    # of 4 and 5 words, 3 match, in order; 2 of 3 and of 4 pairs of words
    found = values(["the cat sat down"], ["a cat sat down there"])
    assert found["rouge1"] == pytest.approx(100 * 2 * 3 / (4 + 5))
    assert found["rouge2"] == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert found["rougeL"] == found["rougeLsum"] == found["rouge1"]
    # the mean over summaries, not over words
    assert values(["the cat sat down", "no"], ["a cat sat down there", "no"])["rouge1"] == pytest.approx(
        (100 + 100 * 6 / 9) / 2
    )


def test_stemming():
    plain, stemmed = values(["he runs"], ["he running"]), values(["he runs"], ["he running"], stem=True)
    assert plain["rouge1"] == 50 and stemmed["rouge1_stem"] == 100


def test_marks_are_seen_by_rougeLsum_alone():
    marked, other = ["b c ¶ a a", "x"], ["a a ¶ b c", "x"]
    found = values(marked, other)
    plain = values([line.replace("¶", ";") for line in marked], [line.replace("¶", ";") for line in other])
    assert found["rougeLsum"] == 100 and plain["rougeLsum"] == 75
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name] == plain[name]
    assert values(["b c <q> a a"], ["a a <q> b c"], sentence_mark="<q>")["rougeLsum"] == 100


def test_signature_names_the_protocol():
    plain, stemmed = (rouge_.rouge(["a"], ["a"], stem=stem)[0] for stem in (False, True))
    assert plain.signature.startswith("nrefs:1|f1:mean|stem:no|sents:¶|rouge-score:0.1")
    assert "stem:porter" in stemmed.signature


def test_lines_that_do_not_belong_together():
    with pytest.raises(ScoringError, match="2 summaries for 1 references: they do not belong together"):
        rouge_.rouge(["a", "b"], ["a"])
    with pytest.raises(ScoringError, match="nothing to score: no summaries and no references"):
        rouge_.rouge([], [])


def test_empty_summary_scores_nothing():
    assert values(["", "¶"], ["a b", "a b"])["rouge1"] == 0
