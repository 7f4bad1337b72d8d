"""Corpora of one language, for language models: the steps from their lines to a folder that fairseq trains on.

As in ``pipeline``, of which these steps are a part, each makes one folder: ``raw`` (text, an empty line ends a
document), ``tok`` (words; deleted after the next step), ``bpe`` (what the model reads: words, or subwords and their
codes), ``bin`` (``dict.txt`` and binarized splits, for fairseq's task language_modeling).

Without subwords a word that train has fewer than ``min_count`` times becomes <unk> everywhere, as in WikiText.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

from data_prep import bpe
from data_prep.corpora import SPLITS, Corpus
from data_prep.io import atomic_open, iterate_lines, sha256, write_json
from data_prep.text import CODES_FILES, TextPipeline, clean_whitespace
from data_prep.workers import chunked, map_in_order
from lite_transformer.errors import DataError

if TYPE_CHECKING:
    from data_prep.pipeline import Options

logger = logging.getLogger(__name__)

LANGUAGE = "en"
UNKNOWN = "<unk>"
PACKAGES = ("sacremoses", "subword-nmt", "sentencepiece")

# (folder of all steps, name, what makes it from an empty folder); `pipeline` skips a step that is done
Step = Callable[[Path, str, Callable[[Path], None]], None]


def run_steps(options: Options, sources: dict[str, Path], dest: Path, workers: int, step: Step, record: str) -> None:
    """Makes raw, bpe and bin of ``dest``, and the record of that name in bin.

    Raises: DataError if a split has no text.
    """
    step(dest, "raw", lambda folder: _write_raw(options, sources, folder))
    if not (dest / "bpe").is_dir():
        step(dest, "tok", lambda folder: _write_words(options, dest / "raw", folder, workers))
        step(dest, "bpe", lambda folder: _write_units(options, dest / "tok", folder, workers))
    shutil.rmtree(dest / "tok", ignore_errors=True)
    step(dest, "bin", lambda folder: _write_binarized(options, dest, folder, workers, record))


def _file(split: str) -> str:
    return f"{split}.{LANGUAGE}"


def _write_raw(options: Options, sources: dict[str, Path], folder: Path) -> None:
    corpus = options.corpus
    assert corpus.read_lines is not None
    counts = dict.fromkeys(SPLITS, 0)
    has_text = dict.fromkeys(SPLITS, False)
    progress = tqdm(corpus.read_lines(sources), desc="read", unit="line", disable=None, leave=False)
    with contextlib.ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        for split, line in progress:
            if options.limit is not None and counts[split] >= options.limit:
                continue
            line = line if corpus.verbatim else clean_whitespace(line)
            if split not in files:
                files[split] = stack.enter_context(atomic_open(folder / _file(split)))
            files[split].write(f"{line}\n")
            counts[split] += 1
            has_text[split] = has_text[split] or bool(line.strip())
    for split in SPLITS:
        if not has_text[split]:
            raise DataError(f"the {split} split of corpus {corpus.name} has no line with text.")


def _pipeline(options: Options, folder: Path) -> TextPipeline:
    codes = CODES_FILES.get(options.text["subword"], "codes")
    return TextPipeline(language=LANGUAGE, codes=codes, folder=folder, **options.text)


def _write_words(options: Options, raw: Path, folder: Path, workers: int) -> None:
    pipeline = _pipeline(options, folder)
    for split in SPLITS:
        source = raw / _file(split)
        lines = iterate_lines(source)
        words = lines if options.corpus.verbatim else _map_lines("tokenize", pipeline, lines, split, workers)
        with atomic_open(folder / _file(split)) as stream:
            stream.writelines(f"{line}\n" for line in words)


def _write_units(options: Options, tokenized: Path, folder: Path, workers: int) -> None:
    """What the model reads: subwords, or words with the rare ones replaced."""
    pipeline = _pipeline(options, folder)
    train = tokenized / _file("train")
    keep: frozenset[str] | None = None
    if pipeline.subword != "none":
        logger.info("learning %d %s units on train", options.merges, pipeline.subword)
        bpe.learn(pipeline.subword, iterate_lines(train), options.merges, folder / pipeline.codes)
    elif options.corpus.min_count > 1:
        counts = Counter(word for line in iterate_lines(train) for word in line.split())
        keep = frozenset(word for word, count in counts.items() if count >= options.corpus.min_count)
        logger.info(
            "%d of %d words occur in train at least %d times, the others become %s",
            len(keep), len(counts), options.corpus.min_count, UNKNOWN,
        )  # fmt: skip
    for split in SPLITS:
        lines: Iterable[str] = iterate_lines(tokenized / _file(split))
        if pipeline.subword != "none":
            lines = _map_lines("split", pipeline, lines, split, workers)
        elif keep is not None:
            lines = (" ".join(word if word in keep else UNKNOWN for word in line.split()) for line in lines)
        with atomic_open(folder / _file(split)) as stream:
            stream.writelines(f"{line}\n" for line in lines)


def _map_lines(what: str, pipeline: TextPipeline, lines: Iterable[str], split: str, workers: int) -> Iterator[str]:
    """The lines after ``pipeline.tokenize`` or ``pipeline.split``, in order; empty ones stay."""
    tasks = ((what, pipeline, chunk) for chunk in chunked(lines))
    with tqdm(desc=f"{what} {split}", unit="line", disable=None, leave=False) as progress:
        for done in map_in_order(_run_task, tasks, workers):
            yield from done
            progress.update(len(done))


def _run_task(task: tuple[str, TextPipeline, list[str]]) -> list[str]:
    what, pipeline, lines = task
    function = pipeline.tokenize if what == "tokenize" else pipeline.split
    return [function(line) if line else "" for line in lines]


def _write_binarized(options: Options, dest: Path, folder: Path, workers: int, record: str) -> None:
    from data_prep.binarize import binarize_text

    corpus, units = options.corpus, dest / "bpe"
    paths = {split: units / _file(split) for split in SPLITS}
    types, tokens = binarize_text(paths, folder, workers)
    codes = CODES_FILES.get(options.text["subword"])
    if codes is not None:
        (folder / "bpe").mkdir()
        shutil.copyfile(units / codes, folder / "bpe" / codes)
    lines = {split: sum(1 for _ in iterate_lines(path)) for split, path in paths.items()}
    if options.limit is None:
        _compare(corpus, "lines", lines, corpus.published_lines)
        _compare(corpus, "tokens", tokens, corpus.published_tokens)
    text = TextPipeline(language=LANGUAGE, codes=f"bpe/{codes or 'codes'}", **options.text)
    content: dict[str, Any] = {
        "corpus": corpus.name,
        "licence": corpus.licence,
        "citation": corpus.citation,
        "language": LANGUAGE,
        "text": {LANGUAGE: text.to_json()},
        "subword_units": options.merges if codes else None,
        "min_count": None if codes else corpus.min_count,
        "dictionary_sizes": {LANGUAGE: types},
        "limit": options.limit,
        "lines": lines,
        "tokens": tokens,
        "source_sha256": {name: sha256(path) for name, path in sorted(_sources(dest).items())},
        "raw_sha256": {_file(split): sha256(dest / "raw" / _file(split)) for split in SPLITS},
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }
    write_json(folder / record, content)


def _sources(dest: Path) -> dict[str, Path]:
    """What was downloaded; of files in --source the hashes are in options.json."""
    return {path.name: path for path in (dest / "downloads").glob("*") if path.suffix in (".deb", ".zip")}


def _compare(corpus: Corpus, what: str, found: dict[str, int], published: Any) -> None:
    for split, count in published.items():
        if found[split] != count:
            logger.warning("%s: %d %s, but %d are published", split, found[split], what, count)
