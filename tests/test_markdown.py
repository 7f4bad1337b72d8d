"""Tables in Markdown."""

import pytest

from lite_transformer.markdown import markdown_table


def test_words_are_flush_left_and_figures_flush_right():
    lines = markdown_table(["row", "BLEU"], [["a|b", "41.0"], ["", "7"]], "lr")
    assert lines == ["| row | BLEU |", "| --- | ---: |", "| a\\|b | 41.0 |", "|  | 7 |"]


@pytest.mark.parametrize(("head", "rows", "columns"), [(["a"], [], "lr"), (["a", "b"], [["1"]], "lr")])
def test_a_row_of_another_width_is_refused(head, rows, columns):
    with pytest.raises(ValueError, match="a table of 2 columns has rows of"):
        markdown_table(head, rows, columns)
