"""Intervals and paired tests against sacreBLEU's own interface on the same text, and where the answer is known."""

import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest, estimate_ci

from lite_transformer.errors import ConfigError, ScoringError
from lite_transformer.scoring import bleu, rouge, significance

SACREBLEU = {
    "tokenized_bleu": lambda: BLEU(force=True, tokenize="none", smooth_method="none"),
    "sacrebleu": lambda: BLEU(force=True),
    "chrf": CHRF,
}


@pytest.fixture(scope="module")
def corpus():
    """(references, a system, one that is no better by its making, one that is much better)."""
    generator = random.Random(3)
    words = ["the", "don't", "state-of-the-art", ",", "3.14", "Straße", "well-known", "A", "a", "police"]
    references = [" ".join(generator.choices(words, k=generator.randint(6, 16))) for _ in range(60)]

    def noisy(rate):
        return [" ".join(word for word in line.split() if generator.random() < rate) for line in references]

    system = noisy(0.75)
    return references, system, noisy(0.75), noisy(0.95)


@pytest.mark.parametrize("metric", SACREBLEU)
def test_interval_is_sacrebleus(corpus, metric):
    references, system, _, _ = corpus
    found = significance.score(metric, system, references, confidence=True)
    expected = SACREBLEU[metric]().corpus_score(system, [references], n_bootstrap=1000)
    assert found.value == expected.score
    assert (found.interval.mean, found.interval.half_width) == (expected._mean, expected._ci)
    assert (found.interval.resamples, found.interval.seed) == (1000, 12345)
    plain = significance.score(metric, system, references)
    assert plain.interval is None and plain.signature == found.signature, "the interval is no other protocol"
    assert (
        f"{found.interval.mean:.2f} ± {found.interval.half_width:.2f} (95 %, 1000 bootstrap resamples, seed 12345)"
        in (str(found))
    )
    assert found.to_json()["interval"]["seed"] == 12345 and "interval" not in plain.to_json()


@pytest.mark.parametrize("metric", ["rougeL", "rouge1_stem"])
def test_interval_of_rouge_by_hand(corpus, metric):
    references, system, _, _ = corpus
    system = [line.replace("police", "policing") for line in system]  # one word to the stemmer
    found = significance.score(metric, system, references, confidence=True)
    stem = metric.endswith("_stem")
    each = np.array(
        [
            {item.metric: item.value for item in rouge.rouge([h], [r], stem)}[metric]
            for h, r in zip(system, references, strict=True)
        ]
    )
    assert found.value == pytest.approx(each.mean())
    drawn = np.random.default_rng(12345).choice(len(each), size=(1000, len(each)), replace=True)
    mean, half = estimate_ci(each[drawn].mean(axis=1))
    assert (found.interval.mean, found.interval.half_width) == pytest.approx((mean, half), abs=1e-4)
    assert 0.5 < half < 10


@pytest.mark.parametrize("test", ["bootstrap", "randomization"])
@pytest.mark.parametrize("metric", SACREBLEU)
def test_paired_test_is_sacrebleus(corpus, metric, test):
    references, system, near, better = corpus
    names = [("a", system), ("b", near), ("c", better)]
    found = significance.compare(metric, names, references, test, trials=200)
    short = {"bootstrap": "bs", "randomization": "ar"}[test]
    _, table = PairedTest(
        names, {"m": SACREBLEU[metric]()}, [references], test_type=short, n_samples=200, n_ar_confidence=1000
    )()
    (expected,) = (rows for key, rows in table.items() if key != "System")
    assert [item.p_value for item in found.systems] == [item.p_value for item in expected]
    assert [item.score.value for item in found.systems] == [item.score for item in expected]
    assert [item.score.interval.half_width for item in found.systems] == [item.ci for item in expected]
    assert (found.test, found.trials, found.seed) == (test, 200, 12345)
    assert [item.score.interval.resamples for item in found.systems] == [200 if test == "bootstrap" else 1000] * 3
    _, like, sure = (item.p_value for item in found.systems)
    assert sure < 0.01 < 0.05 < like <= 1
    assert significance.compare(metric, names, references, test, trials=200) == found, "drawn with a fixed seed"


@pytest.mark.parametrize("test", ["bootstrap", "randomization"])
def test_paired_test_of_rouge(corpus, test):
    references, system, near, better = corpus
    found = significance.compare(
        "rouge2_stem", [("a", system), ("b", near), ("c", better)], references, test, trials=200
    )
    first, like, sure = found.systems
    assert first.p_value is None and sure.p_value < 0.01 < 0.05 < like.p_value
    expected = {item.metric: item for item in rouge.rouge(better, references, stem=True)}["rouge2_stem"]
    assert (sure.score.value, found.signature) == (expected.value, expected.signature)


@pytest.mark.parametrize("test", ["bootstrap", "randomization"])
def test_equal_systems_do_not_differ(corpus, test):
    references, system, _, _ = corpus
    found = significance.compare("chrf", [("a", system), ("b", system)], references, test, trials=20)
    assert [item.p_value for item in found.systems] == [None, 1.0]


def test_options_reach_score_and_test():
    lines, targets = ["One two three four well-meant", "a b c d"], ["one two three four well-known", "a b c d"]
    for metric in ("tokenized_bleu", "sacrebleu", "chrf"):
        plain = significance.score(metric, lines, targets, confidence=True)
        lower = significance.score(metric, lines, targets, lowercase=True, confidence=True)
        assert lower.value > plain.value and lower.interval.mean > plain.interval.mean
    split = significance.score("tokenized_bleu", lines, targets, lowercase=True, compound_split=True, confidence=True)
    assert split == significance.with_interval(
        bleu.tokenized_bleu(lines, targets, compound_split=True, lowercase=True),
        [bleu.split_compounds(line) for line in lines],
        [bleu.split_compounds(line) for line in targets],
        lowercase=True,
    )
    compared = significance.compare(
        "tokenized_bleu", [("a", lines), ("b", targets)], targets, "bootstrap", 10, True, True
    )
    assert compared.systems[0].score.value == split.value and "compound_split:yes" in compared.signature


def test_bad_requests_are_named(corpus, monkeypatch):
    references, system, near, _ = corpus
    pair = [("a", system), ("b", near)]
    with pytest.raises(ScoringError, match=r"b: 59 hypotheses for 60 references: not the same test set"):
        significance.compare("chrf", [("a", system), ("b", near[1:])], references)
    with pytest.raises(ConfigError, match=r"unknown metric 'bleu'\. Known: tokenized_bleu, sacrebleu, chrf, rouge1"):
        significance.compare("bleu", pair, references)
    with pytest.raises(ConfigError, match=r"unknown test 't'\. Known: bootstrap, randomization"):
        significance.compare("chrf", pair, references, "t")
    with pytest.raises(ConfigError, match="needs two systems"):
        significance.compare("chrf", pair[:1], references)
    with pytest.raises(ConfigError, match="-1 trials: a positive number"):
        significance.compare("chrf", pair, references, trials=-1)
    for text in ("none", "0", "x", ""):
        monkeypatch.setenv("SACREBLEU_SEED", text)
        with pytest.raises(ConfigError, match=f"SACREBLEU_SEED={text}: a whole number from 1 is needed"):
            significance.score("chrf", system, references, confidence=True)
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    assert significance.compare("chrf", pair, references, trials=10).seed == 7
