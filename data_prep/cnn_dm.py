"""CNN/DailyMail: news articles and their highlights, from the .story archives and the url lists of See et al. 2017.

Not anonymised, as in the paper: article and highlights are each put on one line, a full stop is appended to lines that
lack one, and only the first 1000 subwords of an article are kept. Between two highlights stands a mark, so that
ROUGE-Lsum knows the sentences of reference and summary.

Source: tensor2tensor, data_generators/cnn_dailymail.py; abisee/cnn-dailymail, make_datafiles.py.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_prep.archives import iterate_members
from data_prep.io import decode_line, iterate_lines
from data_prep.sources import Source
from data_prep.text import clean_whitespace
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

LANGUAGES = ("article", "summary")
SENTENCE_MARK = "¶"  # a word of its own for tokenizers and no word for ROUGE
MAX_ARTICLE_TOKENS = 1000

LICENCE = "news texts of CNN and Daily Mail, for research; never redistributed here"
CITATION = (
    "Hermann et al. 2015, Teaching Machines to Read and Comprehend; "
    "See et al. 2017, Get To The Point: Summarization with Pointer-Generator Networks"
)
ARCHIVES = tuple(
    Source(
        name=name,
        urls=(),
        licence=LICENCE,
        citation=CITATION,
        hint=f"the link 'Stories' under {paper} at https://cs.nyu.edu/~kcho/DMQA/",
    )
    for name, paper in (("cnn_stories.tgz", "CNN"), ("dailymail_stories.tgz", "Daily Mail"))
)
URL_LISTS = {
    split: Source(
        name=f"all_{name}.txt",
        urls=(f"https://raw.githubusercontent.com/abisee/cnn-dailymail/master/url_lists/all_{name}.txt",),
        licence=LICENCE,
        citation=CITATION,
    )
    for split, name in (("train", "train"), ("valid", "val"), ("test", "test"))
}

# a line that ends in one of these has its full stop; the last two are closing quotation marks
_SENTENCE_ENDS = (".", "!", "?", "'", "`", '"', ")", "\u2019", "\u201d")
_STORY = re.compile(r"(?:.*/)?([0-9a-f]{40})\.story")


def list_sources(pair: tuple[str, str]) -> tuple[Source, ...]:
    """The two archives and the three url lists. Raises: DataError if the pair is not article-summary."""
    if pair != LANGUAGES:
        raise DataError(f"corpus cnn_dm has the pair {'-'.join(LANGUAGES)} only, not {'-'.join(pair)}.")
    return (*ARCHIVES, *URL_LISTS.values())


def read_pairs(files: Mapping[str, Path], pair: tuple[str, str], seed: int) -> Iterator[tuple[str, str, str]]:
    """(split, article, highlights) of every listed story: train as the archives have it, then the others as the lists.

    Stories without article or highlights are left out: 114 of the published training list.

    Raises: DataError if a listed story is in no archive, is not UTF-8, or if an archive is damaged.
    """
    del pair, seed  # one pair, and the published split
    splits = read_url_lists({split: files[source.name] for split, source in URL_LISTS.items()})
    missing = set(splits)
    held: dict[str, tuple[str, str]] = {}
    empty = 0
    for archive in ARCHIVES:
        for name, stream in iterate_members(files[archive.name]):
            match = _STORY.fullmatch(name)
            if match is None or match[1] not in missing:
                continue
            story = match[1]
            missing.remove(story)
            place = f"{files[archive.name]}:{name}"
            article, summary = parse_story(decode_line(raw, place, i) for i, raw in enumerate(stream, start=1))
            if not (article and summary):
                empty += 1
            elif splits[story] == "train":  # too large to be kept, and its order does not matter
                yield "train", article, summary
            else:
                held[story] = (article, summary)
    if empty:
        logger.info("%d stories left out: no article or no highlights", empty)
    if missing:
        names = " and ".join(source.name for source in ARCHIVES)
        raise DataError(
            f"{len(missing)} of {len(splits)} listed stories are not in {names} (for example {min(missing)}.story). "
            "Take the archives of stories, not of questions, and the url lists that belong to them."
        )
    for story, split in splits.items():
        if story in held:
            yield split, *held[story]


def read_url_lists(paths: Mapping[str, Path]) -> dict[str, str]:
    """The split of every story, by the SHA-1 of its url, which is the name of its file.

    Raises: DataError if a list holds something else than urls, or if two lists hold the same url.
    """
    splits: dict[str, str] = {}
    for split, path in paths.items():
        for number, line in enumerate(iterate_lines(path), start=1):
            url = line.strip()
            if not url.startswith(("http://", "https://")):
                raise DataError(f"{path}, line {number}: no url ('{url[:40]}'). Fetch the list again.")
            known = splits.setdefault(story_name(url), split)
            if known != split:
                raise DataError(f"{path}, line {number}: {url} is in the list of {known} too. Fetch both again.")
    return splits


def story_name(url: str) -> str:
    """The name of a story's file, without its ending: the SHA-1 of its url."""
    return hashlib.sha1(url.encode()).hexdigest()


def parse_story(lines: Iterable[str]) -> tuple[str, str]:
    """(article, highlights), each on one line; a mark between two highlights. Each line ends a sentence.

    A line after "@highlight" is a highlight; everything before the first one is the article.
    """
    article: list[str] = []
    highlights: list[str] = []
    is_highlight = False
    for line in map(clean_whitespace, lines):
        if line.startswith("@highlight"):
            is_highlight = True
        elif line:
            (highlights if is_highlight else article).append(end_sentence(line))
    # words beyond the limit cannot be among its first subwords: they need not go through the next steps
    words = " ".join(article).split(" ", MAX_ARTICLE_TOKENS)[:MAX_ARTICLE_TOKENS]
    return " ".join(words), f" {SENTENCE_MARK} ".join(highlights)


def end_sentence(line: str) -> str:
    """The line with a full stop if it ends without punctuation."""
    return line if line.endswith(_SENTENCE_ENDS) else f"{line}."
