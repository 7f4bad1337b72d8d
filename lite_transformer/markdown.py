"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_RULES = {"l": "---", "r": "---:"}


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], columns: str) -> list[str]:
    """The lines of a table.

    Args:
        columns: a letter for each: 'l' for words, flush left, 'r' for figures, flush right.
    Raises: ValueError if head, a row and ``columns`` do not go together.
    """
    lines = [head, [_RULES[letter] for letter in columns], *rows]
    if any(len(cells) != len(columns) for cells in lines):
        raise ValueError(f"a table of {len(columns)} columns has rows of {sorted({len(cells) for cells in lines})}")
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines]
