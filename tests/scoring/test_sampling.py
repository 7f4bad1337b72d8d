"""Drawing tokens: what may be drawn, seeds, and that steps give what full passes give."""

from __future__ import annotations

import pytest
import torch

from lite_transformer.errors import ConfigError
from lite_transformer.scoring.sampling import Sampling, generate
from tests.helpers.models import tiny_language_model

PROBABILITIES = torch.tensor([[0.5, 0.1, 0.25, 0.15], [0.1, 0.2, 0.3, 0.4]])


def allowed(sampling: Sampling) -> list[list[int]]:
    kept = sampling.filtered(PROBABILITIES.log()).isfinite()
    return [row.nonzero().flatten().tolist() for row in kept]


def test_what_may_be_drawn():
    assert allowed(Sampling()) == [[0, 1, 2, 3]] * 2
    assert allowed(Sampling(temperature=0)) == [[0], [3]]
    assert allowed(Sampling(top_k=2)) == [[0, 2], [2, 3]]
    assert allowed(Sampling(top_k=9)) == [[0, 1, 2, 3]] * 2
    # 0.5 alone is not more than 0.6; with 0.25 it is
    assert allowed(Sampling(top_p=0.6)) == [[0, 2], [2, 3]]
    assert allowed(Sampling(top_p=0.01)) == [[0], [3]]
    # of the two likeliest, 2/3 and 1/3, or 3/7 and 4/7
    assert allowed(Sampling(top_k=2, top_p=0.6)) == [[0], [2, 3]]


def test_temperature_sharpens():
    warm = Sampling(temperature=2.0).filtered(PROBABILITIES.log()).softmax(-1)
    cold = Sampling(temperature=0.5).filtered(PROBABILITIES.log()).softmax(-1)
    expected = PROBABILITIES**2 / (PROBABILITIES**2).sum(-1, keepdim=True)
    assert torch.allclose(cold, expected)
    assert warm.max() < PROBABILITIES.max() < cold.max()


def test_draws_follow_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    drawn = Sampling(top_k=2).draw(PROBABILITIES[:1].log().expand(6000, -1), generator)
    share = torch.bincount(drawn, minlength=4) / 6000
    assert torch.allclose(share, torch.tensor([2 / 3, 0, 1 / 3, 0]), atol=0.03)


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        (Sampling(temperature=-1.0), "--temperature -1.0: a number of at least 0"),
        (Sampling(temperature=float("nan")), "--temperature nan"),
        (Sampling(top_k=-1), "--top-k -1: at least 0 is needed"),
        (Sampling(top_p=0.0), "--top-p 0.0: more than 0 and at most 1"),
        (Sampling(top_p=1.5), "--top-p 1.5"),
    ],
)
def test_options_that_mean_nothing(sampling, text):
    with pytest.raises(ConfigError) as error:
        sampling.check()
    assert text in str(error.value)


PROMPT = [2, 5, 9, 17]


def by_full_passes(model, tokens: list[int], length: int, banned: list[int]) -> list[int]:
    """The likeliest continuation, every step computed from the beginning."""
    tokens = list(tokens)
    for _ in range(length):
        with torch.no_grad():
            output = model(torch.tensor([tokens]))
            scores = model.get_normalized_probs(output, log_probs=True)[0, -1]
        scores[banned] = -torch.inf
        tokens.append(int(scores.argmax()))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize(("branches", "seed"), [(["attention", "dynamic"], 4), (["lightweight", "attention"], 8)])
def test_steps_give_what_full_passes_give(branches, seed):
    model = tiny_language_model(seed=seed, decoder_branches=branches, decoder_kernel_sizes=[3, 5])
    found = generate(model, PROMPT, 15, Sampling(temperature=0), seed=1, forbidden=[0, 1, 3])
    assert found == [by_full_passes(model, PROMPT, 15, [0, 1, 3])]
    assert len(set(found[0])) > 1


def test_seeds_and_samples():
    model = tiny_language_model(seed=4)
    draws = {seed: generate(model, PROMPT, 12, Sampling(), seed, samples=3) for seed in (1, 2)}
    assert draws[1] == generate(model, PROMPT, 12, Sampling(), 1, samples=3)
    assert draws[1] != draws[2]
    assert len({tuple(sample) for sample in draws[1]}) == 3
    assert all(len(sample) == 12 for sample in draws[1])


def test_forbidden_tokens_and_stops():
    model = tiny_language_model(seed=4)
    banned = [token for token in range(24) if token not in (7, 11)]
    found = generate(model, PROMPT, 20, Sampling(), 3, samples=4, forbidden=banned, stops=lambda token: token == 11)
    assert all(token in (7, 11) for sample in found for token in sample)
    assert all(11 not in sample[:-1] for sample in found)
    assert min(map(len, found)) < 20
    (alone,) = generate(model, PROMPT, 20, Sampling(), 3, forbidden=banned, stops=lambda token: token == 11)
    assert alone[-1] == 11 or len(alone) == 20


def test_more_text_than_positions():
    model = tiny_language_model(tokens_per_sample=16)
    with pytest.raises(ConfigError, match="the prompt has 4 tokens and 13 are to follow, more than the model's 16"):
        generate(model, PROMPT, 13, Sampling(), 1)
    assert len(generate(model, PROMPT, 12, Sampling(), 1)[0]) == 12
