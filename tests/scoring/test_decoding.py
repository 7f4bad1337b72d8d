"""Forbidden n-grams against their definition, written as a loop."""

import pytest
import torch

from lite_transformer.scoring.decoding import NoRepeatedNgrams

PAD, VOCABULARY, LENGTH = 1, 7, 30


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 9, 25])
def test_forbids_what_would_repeat_an_ngram(size, step):
    generator = torch.Generator().manual_seed(size)
    rows = 12
    tokens = torch.full((rows, LENGTH), PAD)
    tokens[:, 0] = 2  # the mark of the beginning is no part of a hypothesis
    tokens[:, 1 : step + 1] = torch.randint(3, VOCABULARY, (rows, step), generator=generator)
    scores = torch.randn(rows, VOCABULARY, generator=generator)
    found = NoRepeatedNgrams(size)(tokens, scores.clone(), 4, 3, step)
    count = 0
    for row in range(rows):
        said = tokens[row, 1 : step + 1].tolist()
        ngrams = {tuple(said[start : start + size]) for start in range(len(said) - size + 1)}
        for token in range(VOCABULARY):
            new = (*said, token)[-size:]
            forbidden = len(new) == size and new in ngrams
            count += forbidden
            assert found[row, token] == (-torch.inf if forbidden else scores[row, token])
    assert count > 0 or step < 25
