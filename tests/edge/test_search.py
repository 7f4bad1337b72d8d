"""The search over an engine whose likeliest tokens are the forbidden ones."""

from __future__ import annotations

import numpy as np

from lite_transformer.edge.engine import Candidates
from lite_transformer.edge.search import Settings, collate, greedy, search
from lite_transformer.edge.vocabulary import END, PAD

SCORES = np.log(np.array([0.01, 0.4, 0.3, 0.04, 0.1, 0.08, 0.07], np.float32))  # padding first, then the end


class Unwilling:
    """Wants to write padding, or else to end, at every step."""

    def encode(self, source):
        return None

    def step(self, state, tokens, order, sentences, count):
        best = np.argsort(-SCORES, kind="stable")[:count]
        rows = np.ones((*tokens.shape, 1))
        return Candidates(
            (SCORES[best] * rows).astype(np.float32), (best * rows).astype(np.int64), SCORES[END] * rows[..., 0]
        )


def test_padding_is_never_written_nor_an_end_too_early():
    settings = Settings(beam=1, min_len=2, max_len_b=9)
    (found,) = search(Unwilling(), [[4, END]], settings, len(SCORES), 20)
    assert [item.tokens for item in found] == [(4, 4, END)]
    np.testing.assert_allclose(found[0].score, (2 * SCORES[4] + SCORES[END]) / 3, rtol=1e-6)
    assert list(greedy(Unwilling(), [4, END], 9, min_len=2)) == [4, 4]
    settings = Settings(beam=3, min_len=1, max_len_b=9)
    (found,) = search(Unwilling(), [[4, END]], settings, len(SCORES), 20)
    assert [item.tokens for item in found] == [(4, END), (5, END), (6, END)]


def test_sources_are_padded_on_the_left():
    assert collate([[5, END], [4, 5, 6, END]]).tolist() == [[PAD, PAD, 5, END], [4, 5, 6, END]]
