"""Examples of what systems wrote, for people to read: which lines are shown is fixed by the sources alone."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence

from lite_transformer.errors import ConfigError, ScoringError
from lite_transformer.markdown import markdown_table


def chosen_lines(sources: Sequence[str], count: int) -> list[int]:
    """The numbers, from 0 and in order, of the ``count`` lines whose SHA-256 is lowest; of equal lines the first.

    So nobody chooses them: neither by what the systems wrote, nor by which system wrote it.
    """
    first: dict[str, int] = {}
    for number, source in enumerate(sources):
        first.setdefault(hashlib.sha256(source.encode()).hexdigest(), number)
    return sorted(first[digest] for digest in sorted(first)[:count])


def render_examples(
    sources: Sequence[str], references: Sequence[str], systems: Sequence[tuple[str, Sequence[str]]], count: int
) -> str:
    """Markdown: of each chosen line the source, the reference and what every system wrote.

    Args:
        systems: (label, hypotheses) pairs.
    Raises: ScoringError if the numbers of lines differ; ConfigError if ``count`` is below 1.
    """
    if count < 1:
        raise ConfigError(f"--example-count {count}: at least 1 is needed")
    for name, lines in (("the references", references), *systems):
        if len(lines) != len(sources):
            raise ScoringError(f"{len(sources)} sources and {len(lines)} lines of {name}: they do not belong together")
    numbers = chosen_lines(sources, count)
    parts = [
        f"{len(numbers)} of {len(sources):,} lines of the test set: those whose source has the lowest SHA-256, "
        "whatever the systems wrote."
    ]
    for number in numbers:
        rows = [["reference", references[number]], *([label, lines[number]] for label, lines in systems)]
        parts += [
            f"## Line {number + 1}",
            f"> {_plain(sources[number])}",
            "\n".join(markdown_table(["", ""], [[name, _plain(text)] for name, text in rows], "ll")),
        ]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]#])", r"\\\1", html.escape(text, quote=False))
