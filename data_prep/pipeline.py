"""From raw text to a folder that fairseq trains on, in steps that a second run does not repeat.

Each step makes one folder under a temporary name and renames it when it is complete, so a folder that exists is whole:
``raw`` (text), ``bpe`` (subword model and subwords), ``bin`` (dictionaries, binarized data). ``prepare.json``, written
last, says what was done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import chain, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import bpe
from data_prep.corpora import SPLITS, Corpus
from data_prep.io import iterate_lines, read_json, sha256, write_json, write_lines
from data_prep.text import CODES_FILES, TextPipeline, clean_whitespace
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

OPTIONS_FILE = "options.json"
RECORD_FILE = "prepare.json"
PACKAGES = ("sacremoses", "subword-nmt", "sentencepiece", "Babel", "num2words")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chose for one preparation.

    Attributes:
        pair: source and target language.
        source: folder of the user's files, if the corpus has any.
        text: settings of ``TextPipeline`` except language and codes.
        merges: size of the subword model.
        joined_dictionary: one dictionary for both languages.
        seed: of generated corpora.
    """

    corpus: Corpus
    pair: tuple[str, str]
    source: Path | None
    text: dict[str, Any]
    merges: int
    joined_dictionary: bool = True
    seed: int = 1


def prepare(options: Options, dest: Path, workers: int = 1) -> dict[str, Any]:
    """Makes ``dest`` complete, skipping steps that an earlier run finished; returns the content of prepare.json.

    Raises: DataError if the sources are missing or malformed, if ``dest`` was begun with other options or sources, or
        if another process is preparing it.
    """
    sources = options.corpus.find_sources(options.source, options.pair)
    _make_folder(dest)
    with _locked(dest):
        _check_options(dest, _describe(options, sources))
        for leftover in dest.glob(".partial-*"):
            shutil.rmtree(leftover)
        _step(dest, "raw", lambda folder: _write_raw(options, sources, folder))
        _step(dest, "bpe", lambda folder: _write_subwords(options, dest / "raw", folder, workers))
        _step(dest, "bin", lambda folder: _write_binarized(options, dest, folder))
        if not (dest / RECORD_FILE).exists():
            write_json(dest / RECORD_FILE, read_json(dest / "bin" / RECORD_FILE))
    record = read_json(dest / RECORD_FILE)
    assert isinstance(record, dict)
    return record


def load_pipelines(bin_folder: Path) -> dict[str, TextPipeline]:
    """The text pipelines of a prepared bin folder (or of its parent), by language.

    Raises: DataError if there is no prepare.json, naming the command that makes it.
    """
    path = bin_folder / RECORD_FILE
    if not path.is_file():
        raise DataError(
            f"{bin_folder}: no {RECORD_FILE}, so it is unknown how its text was tokenized. "
            "Make the folder with: lite-transformer prepare CORPUS --dest DIR, then give DIR/bin"
        )
    record = read_json(path)
    try:
        texts = record["text"]
        return {language: TextPipeline.from_json(settings, bin_folder) for language, settings in texts.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged or of another program ({error!r}). Prepare the corpus again.") from error


def _make_folder(dest: Path) -> None:
    try:
        dest.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--dest {dest}: cannot make this folder ({error.strerror}). Choose another.") from error


@contextlib.contextmanager
def _locked(dest: Path) -> Iterator[None]:
    """Keeps a second process out of ``dest``; the system releases the lock of a killed one."""
    with (dest / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{dest}: another process is preparing this folder. Wait for it, or take another --dest."
            ) from None
        yield


def _describe(options: Options, sources: dict[str, Path]) -> dict[str, Any]:
    """What must not change between two runs on one folder."""
    return {
        "corpus": options.corpus.name,
        "pair": "-".join(options.pair),
        "text": dict(sorted(options.text.items())),
        "merges": options.merges,
        "joined_dictionary": options.joined_dictionary,
        "seed": options.seed,
        "sources": {name: sha256(path) for name, path in sorted(sources.items())},
    }


def _check_options(dest: Path, wanted: dict[str, Any]) -> None:
    path = dest / OPTIONS_FILE
    if not path.exists():
        foreign = [name for name in ("raw", "bpe", "bin", RECORD_FILE) if (dest / name).exists()]
        if foreign:
            raise DataError(
                f"{dest} already has {', '.join(foreign)}, not made by this program. Choose another --dest."
            )
        write_json(path, wanted)
        return
    begun = read_json(path)
    changed = [f"{key} was {begun.get(key)!r}, now {wanted[key]!r}" for key in wanted if begun.get(key) != wanted[key]]
    if changed:
        raise DataError(
            f"{dest} was prepared with other settings: {'; '.join(changed)}. "
            f"Choose another --dest, or delete {dest} first."
        )


def _step(dest: Path, name: str, make: Callable[[Path], None]) -> None:
    """Runs ``make`` on a temporary folder and gives it its name; does nothing if the named folder is there."""
    final = dest / name
    if final.is_dir():
        logger.info("%s: already there, kept", final)
        return
    partial = dest / f".partial-{name}"
    partial.mkdir()
    make(partial)
    partial.rename(final)
    logger.info("%s: written", final)


def _write_raw(options: Options, sources: dict[str, Path], folder: Path) -> None:
    for split, (source_lines, target_lines) in options.corpus.read_splits(sources, options.pair, options.seed).items():
        pairs = [(clean_whitespace(s), clean_whitespace(t)) for s, t in zip(source_lines, target_lines, strict=True)]
        if split == "train":  # the other splits keep every line: their line numbers mean something
            kept = [(s, t) for s, t in pairs if s and t]
            if len(kept) < len(pairs):
                logger.warning("train: %d of %d pairs left out: one side is empty", len(pairs) - len(kept), len(pairs))
            pairs = kept
        if not pairs:
            raise DataError(f"the {split} split of corpus {options.corpus.name} has no pair of two non-empty lines.")
        for language, lines in zip(options.pair, zip(*pairs, strict=True), strict=True):
            write_lines(folder / f"{split}.{language}", lines)


def _pipelines(options: Options, folder: Path) -> dict[str, TextPipeline]:
    codes = CODES_FILES[options.text["subword"]]
    return {
        language: TextPipeline(
            language=options.corpus.text_language or language, codes=codes, folder=folder, **options.text
        )
        for language in options.pair
    }


def _write_subwords(options: Options, raw: Path, folder: Path, workers: int) -> None:
    pipelines = _pipelines(options, folder)
    tokenized = folder / "tokenized"
    tokenized.mkdir()
    for split in SPLITS:
        for language in options.pair:
            name = f"{split}.{language}"
            lines = _map(_tokenize_line, pipelines[language], raw / name, f"tokenize {name}", workers)
            write_lines(tokenized / name, lines)
    logger.info("learning %d %s units on train, both languages together", options.merges, options.text["subword"])
    train = chain.from_iterable(iterate_lines(tokenized / f"train.{language}") for language in options.pair)
    bpe.learn(options.text["subword"], train, options.merges, folder / CODES_FILES[options.text["subword"]])
    for split in SPLITS:
        for language in options.pair:
            name = f"{split}.{language}"
            lines = _map(_split_line, pipelines[language], tokenized / name, f"subwords {name}", workers)
            write_lines(folder / name, lines)
    shutil.rmtree(tokenized)


def _write_binarized(options: Options, dest: Path, folder: Path) -> None:
    from data_prep.binarize import binarize

    sizes = binarize(dest / "bpe", folder, options.pair, SPLITS, options.joined_dictionary)
    codes = CODES_FILES[options.text["subword"]]
    (folder / "bpe").mkdir()
    shutil.copyfile(dest / "bpe" / codes, folder / "bpe" / codes)
    write_json(folder / RECORD_FILE, _record(options, dest, sizes))


def _record(options: Options, dest: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """The content of prepare.json: the same in DEST and DEST/bin, for ``codes`` is bpe/... in both."""
    codes = f"bpe/{CODES_FILES[options.text['subword']]}"
    names = [f"{split}.{language}" for split in SPLITS for language in options.pair]
    corpus = options.corpus
    return {
        "corpus": corpus.name,
        "licence": corpus.licence,
        "citation": corpus.citation,
        "source_language": options.pair[0],
        "target_language": options.pair[1],
        "text": {
            language: TextPipeline(language=corpus.text_language or language, codes=codes, **options.text).to_json()
            for language in options.pair
        },
        "subword_units": options.merges,
        "joined_dictionary": options.joined_dictionary,
        "dictionary_sizes": sizes,
        "seed": options.seed,
        "lines": {
            split: sum(1 for _ in iterate_lines(dest / "raw" / f"{split}.{options.pair[0]}")) for split in SPLITS
        },
        "raw_sha256": {name: sha256(dest / "raw" / name) for name in names},
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


# Worker processes get a line and its pipeline; what they build once (tokenizer, codes) is cached in data_prep.text.


def _tokenize_line(task: tuple[TextPipeline, str]) -> str:
    pipeline, line = task
    return pipeline.tokenize(line)


def _split_line(task: tuple[TextPipeline, str]) -> str:
    pipeline, line = task
    return pipeline.split(line)


def _map(
    function: Callable[[tuple[TextPipeline, str]], str], pipeline: TextPipeline, path: Path, what: str, workers: int
) -> Sequence[str]:
    lines = list(iterate_lines(path))
    tasks = zip(repeat(pipeline), lines)
    progress = tqdm(total=len(lines), desc=what, unit="line", disable=None, leave=False)
    results: list[str] = []
    with progress, contextlib.ExitStack() as stack:
        mapped: Iterator[str]
        if workers > 1 and len(lines) > 2000:
            pool = stack.enter_context(get_context("spawn").Pool(workers))
            mapped = pool.imap(function, tasks, chunksize=500)
        else:
            mapped = map(function, tasks)
        for result in mapped:
            results.append(result)
            progress.update()
    return results
