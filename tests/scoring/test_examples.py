"""Examples for people: chosen by the sources alone, every system beside the reference."""

import hashlib

import pytest

from lite_transformer.errors import ScoringError
from lite_transformer.scoring.examples import chosen_lines, render_examples

SOURCES = [f"source {number}" for number in range(50)]


def digest(number):
    return hashlib.sha256(SOURCES[number].encode()).hexdigest()


def test_the_lowest_hashes_are_chosen_in_the_order_of_the_lines():
    chosen = chosen_lines(SOURCES, 5)
    assert len(chosen) == 5 and chosen == sorted(chosen)
    assert max(map(digest, chosen)) < min(digest(number) for number in range(50) if number not in chosen)
    assert set(chosen_lines(SOURCES, 4)) < set(chosen)


def test_of_equal_sources_the_first_is_chosen_and_all_if_there_are_few():
    assert chosen_lines(["a", "b", "a", "a"], 9) == [0, 1]


def test_text_is_shown_as_it_is():
    text = render_examples(["<b> a_b"], ["x | y"], [("Lite *", ["[z]"])], 1)
    assert text.startswith("1 of 1 lines of the test set: those whose source has the lowest SHA-256")
    assert "> &lt;b&gt; a\\_b\n" in text
    assert "| reference | x \\| y |\n| Lite * | \\[z\\] |\n" in text


def test_lines_that_do_not_belong_together():
    with pytest.raises(ScoringError, match="50 sources and 49 lines of Lite: they do not belong together"):
        render_examples(SOURCES, SOURCES, [("Lite", SOURCES[1:])], 3)
