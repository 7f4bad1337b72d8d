"""What the scripts of Moses do to a line, to the letter: published corpora were made with them, line by line.

sacremoses ports the same scripts, but splits the last word's period by other rules, knows no Chinese or Japanese
letters in European text, and deletes non-printing characters where the script writes a blank; so its lines are not
the published ones. Its tables (abbreviations, punctuation) are used here.

Source: mosesdecoder/scripts/tokenizer: tokenizer.perl, normalize-punctuation.perl, remove-non-printing-char.perl,
lowercase.perl, versions of 2017 and later. ``data_prep.cleaning`` has clean-corpus-n.perl.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import ClassVar

import regex
from sacremoses.corpus import NonbreakingPrefixes
from sacremoses.normalize import MosesPunctNormalizer

_NUMERIC_ONLY = "#NUMERIC_ONLY#"
_ESCAPES = (
    ("&", "&amp;"),
    ("|", "&#124;"),
    ("<", "&lt;"),
    (">", "&gt;"),
    ("'", "&apos;"),
    ('"', "&quot;"),
    ("[", "&#91;"),
    ("]", "&#93;"),
)

_WHITE_SPACE = regex.compile(r"\s+")
_BLANKS = re.compile(" {2,}")
_CONTROL = regex.compile(r"[\x00-\x1f]")
_SPECIAL = regex.compile(r"([^\p{Alphabetic}\p{Nd}\s.'`,\-])")
_INNER_DASH = regex.compile(r"([\p{Alphabetic}\p{Nd}])-(?=[\p{Alphabetic}\p{Nd}])")
_DOTS = re.compile(r"\.(\.+)")
_COMMAS = (
    (regex.compile(r"(\P{N}),"), r"\1 , "),
    (regex.compile(r",(\P{N})"), r" , \1"),
    (regex.compile(r"(\p{N}),$"), r"\1 ,"),
)
_BETWEEN = regex.compile(r"(\P{Alphabetic})'(\P{Alphabetic})"), r"\1 ' \2"
_AFTER_WORD = regex.compile(r"(\p{Alphabetic})'(\P{Alphabetic})"), r"\1 ' \2"
_INSIDE = regex.compile(r"(\p{Alphabetic})'(\p{Alphabetic})")
_APOSTROPHES = {
    "en": (
        _BETWEEN,
        (regex.compile(r"([^\p{Alphabetic}\p{N}])'(\p{Alphabetic})"), r"\1 ' \2"),
        _AFTER_WORD,
        (_INSIDE, r"\1 '\2"),
        (regex.compile(r"(\p{N})'(s)"), r"\1 '\2"),
    ),
    "fr": (
        _BETWEEN,
        (regex.compile(r"(\P{Alphabetic})'(\p{Alphabetic})"), r"\1 ' \2"),
        _AFTER_WORD,
        (_INSIDE, r"\1' \2"),
    ),
}
_OTHER_APOSTROPHES = ((re.compile("'"), " ' "),)
_ANY_LETTER = regex.compile(r"\p{Alphabetic}")
_LOWER_START = regex.compile(r"\p{Lowercase}")


class _PunctuationTables(MosesPunctNormalizer):
    """sacremoses' tables in the order of the script; lists of its own, for perl_parity changes them in place."""

    NORMALIZE_UNICODE: ClassVar = list(MosesPunctNormalizer.NORMALIZE_UNICODE)
    FRENCH_QUOTES: ClassVar = list(MosesPunctNormalizer.FRENCH_QUOTES)


@functools.cache
def _punctuation(language: str) -> list[tuple[re.Pattern[str], str]]:
    substitutions = _PunctuationTables(lang=language, perl_parity=True).substitutions
    # the script reads bytes: its \d and \s are ASCII
    return [(re.compile(pattern, re.ASCII), replacement) for pattern, replacement in substitutions]


@functools.cache
def _abbreviations(language: str) -> tuple[frozenset[str], frozenset[str]]:
    """Words that keep their period always, and those that keep it only before a number."""
    always: set[str] = set()
    before_numbers: set[str] = set()
    for entry in NonbreakingPrefixes().words(language):
        word, mark, _ = entry.partition(_NUMERIC_ONLY)
        (before_numbers if mark else always).add(word.strip())
    return frozenset(always - before_numbers), frozenset(before_numbers)


def normalize_punctuation(line: str, language: str) -> str:
    """The line with ASCII quotation marks, dashes and blanks: normalize-punctuation.perl."""
    line += "\n"  # the script works before the line end, and one of its rules needs a character there
    for pattern, replacement in _punctuation(language):
        line = pattern.sub(replacement, line)
    return line.removesuffix("\n")


def remove_non_printing(line: str) -> str:
    """The line with a blank for every control, format or unassigned character: remove-non-printing-char.perl."""
    if line.isprintable():
        return line
    return "".join(" " if unicodedata.category(character).startswith("C") else character for character in line)


def tokenize(line: str, language: str, aggressive_dash: bool = False, escape: bool = True) -> str:
    """Words and punctuation marks separated by single blanks: tokenizer.perl.

    Args:
        language: two letters; rules for apostrophes (en, fr, else) and abbreviations depend on it.
        aggressive_dash: a-b becomes a @-@ b (option -a).
        escape: &, <, >, |, brackets and quotation marks become XML entities (off: option -no-escape).
    """
    text = _WHITE_SPACE.sub(" ", line)
    text = _BLANKS.sub(" ", _CONTROL.sub("", text)).strip(" ")
    text = _SPECIAL.sub(r" \1 ", text)
    if aggressive_dash:
        text = _INNER_DASH.sub(r"\1 @-@ ", text)
    text = _hide_dots(text)
    for pattern, replacement in (*_COMMAS, *_APOSTROPHES.get(language, _OTHER_APOSTROPHES)):
        text = pattern.sub(replacement, text)
    text = _split_periods(text, language)
    if text.endswith(".'"):
        text = f"{text[:-2]} . '"
    while "DOTDOTMULTI" in text:
        text = text.replace("DOTDOTMULTI", "DOTMULTI.")
    text = text.replace("DOTMULTI", ".")
    if escape:
        for character, entity in _ESCAPES:
            text = text.replace(character, entity)
    return text


def _hide_dots(text: str) -> str:
    """Runs of two and more dots as one word of letters, so that they stay together."""
    if ".." not in text:
        return text
    text = _DOTS.sub(r" DOTMULTI\1", text)
    while "DOTMULTI." in text:
        text = re.sub(r"DOTMULTI\.([^.])", r"DOTDOTMULTI \1", text)
        text = text.replace("DOTMULTI.", "DOTDOTMULTI")
    return text


def _split_periods(text: str, language: str) -> str:
    """The text with periods split from words, but for abbreviations; blanks are made single."""
    always, before_numbers = _abbreviations(language)
    words = text.rstrip(" ").split(" ")
    for index, word in enumerate(words):
        if len(word) < 2 or not word.endswith("."):
            continue
        stem = word[:-1]
        if index < len(words) - 1:  # the last word is hardly ever an abbreviation
            following = words[index + 1]
            if (
                ("." in stem and _ANY_LETTER.search(stem))
                or stem in always
                or _LOWER_START.match(following)
                or (stem in before_numbers and following[:1] in tuple("0123456789"))
            ):
                continue
        words[index] = f"{stem} ."
    return " ".join(word for word in words if word)


def lowercase(text: str) -> str:
    """The text in lower case: lowercase.perl, which knows no final sigma."""
    return "".join(map(str.lower, text)) if "Σ" in text else text.lower()
