"""From raw text to a folder that fairseq trains on, in steps that a second run does not repeat.

Each step makes one folder under a temporary name and renames it when it is complete, so a folder that exists is whole:
``raw`` (text), ``tok`` (words; deleted after the next step), ``bpe`` (subword model and subwords), ``bin``
(dictionaries, binarized data). ``prepare.json``, written last, says what was done. Within ``tok`` and ``bpe`` the
splits that a killed run finished are kept as well.

Text goes through in chunks of lines, worked on by several processes: memory does not grow with the corpus.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from data_prep import bpe, monolingual
from data_prep.cleaning import Limits
from data_prep.corpora import SPLITS, Corpus
from data_prep.folders import locked, make_folder
from data_prep.io import atomic_open, iterate_lines, iterate_parallel, read_json, sha256, write_json, write_lines
from data_prep.sources import obtain
from data_prep.text import CODES_FILES, TextPipeline, clean_whitespace
from data_prep.workers import chunked, map_in_order, run_alone
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

Pair = tuple[str, str]  # a source line and its target line

OPTIONS_FILE = "options.json"
RECORD_FILE = "prepare.json"
LARGE_TEXT_BYTES = 50_000_000  # subwords of a larger text are learnt in a process of its own, which may grow to 1.5 GB
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
        limit: only the first so many pairs of each split, for trying things; None: all.
    """

    corpus: Corpus
    pair: tuple[str, str]
    source: Path | None
    text: dict[str, Any]
    merges: int
    joined_dictionary: bool = True
    seed: int = 1
    limit: int | None = None

    @property
    def valid_every(self) -> int | None:
        """Every n-th pair of train goes to valid: as the corpus says, but a tenth of a slice that has fewer."""
        every = self.corpus.valid_every
        return every if every is None or self.limit is None else min(every, max(2, self.limit // 10))


def prepare(options: Options, dest: Path, workers: int = 1) -> dict[str, Any]:
    """Makes ``dest`` complete, skipping steps that an earlier run finished; returns the content of prepare.json.

    Raises: DataError if the sources are missing or malformed, if ``dest`` was begun with other options or sources, if
        another process is preparing it, or if the disk is full.
    """
    corpus = options.corpus
    sources: dict[str, Path] | None = None
    if corpus.find_sources is not None and (options.source is not None or corpus.fetch is None):
        sources = corpus.find_sources(options.source, options.pair)
    elif options.source is not None:
        sources = _obtain(options, dest)
    make_folder(dest, "--dest")
    try:
        with locked(dest, "--dest"):
            if sources is None and not _has_text(options, dest):
                sources = _obtain(options, dest)
            _check_options(dest, _describe(options, sources, dest))
            _run_steps(options, sources or {}, dest, workers)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{dest}: the disk is full. Make room and run the same command again, finished steps are kept; "
            "or take another --dest."
        ) from error
    record = read_json(dest / RECORD_FILE)
    assert isinstance(record, dict)
    return record


def _run_steps(options: Options, sources: dict[str, Path], dest: Path, workers: int) -> None:
    if options.corpus.is_monolingual:
        monolingual.run_steps(options, sources, dest, workers, _step, RECORD_FILE)
        _keep_record(dest)
        return
    _step(dest, "raw", lambda folder: _write_raw(options, sources, folder))
    if options.corpus.write_subwords is not None:
        _step(dest, "bpe", lambda folder: _write_published_subwords(options, sources, folder))
    elif not (dest / "bpe").is_dir():
        _step(dest, "tok", lambda folder: _write_tokenized(options, dest / "raw", folder, workers), keep=True)
        _step(dest, "bpe", lambda folder: _write_subwords(options, dest / "tok", folder, workers), keep=True)
    shutil.rmtree(dest / "tok", ignore_errors=True)
    _step(dest, "bin", lambda folder: _write_binarized(options, dest, folder, workers))
    _keep_record(dest)


def _keep_record(dest: Path) -> None:
    if not (dest / RECORD_FILE).exists():
        write_json(dest / RECORD_FILE, read_json(dest / "bin" / RECORD_FILE))


def _obtain(options: Options, dest: Path) -> dict[str, Path]:
    """The published files of a corpus, downloaded to DEST/downloads or found in --source."""
    corpus, downloads = options.corpus, dest / "downloads"
    if corpus.fetch is not None and corpus.find_sources is not None:
        make_folder(downloads, "--dest")
        corpus.fetch(options.pair, downloads)
        return corpus.find_sources(downloads, options.pair)
    assert corpus.sources is not None
    return obtain(corpus.sources(options.pair), downloads, options.source)


def _has_text(options: Options, dest: Path) -> bool:
    """Whether the steps that read the published files are done: these may be gone then."""
    last = "bpe" if options.corpus.write_subwords else "raw"
    return (dest / last).is_dir() and (dest / OPTIONS_FILE).is_file()


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


def _describe(options: Options, sources: dict[str, Path] | None, dest: Path) -> dict[str, Any]:
    """What must not change between two runs on one folder."""
    if sources is None:
        hashes = read_json(dest / OPTIONS_FILE).get("sources")
    else:
        hashes = {name: sha256(path) for name, path in sorted(sources.items())}
    return {
        "corpus": options.corpus.name,
        "pair": "-".join(options.pair),
        "text": dict(sorted(options.text.items())),
        "merges": options.merges,
        "joined_dictionary": options.joined_dictionary,
        "seed": options.seed,
        "limit": options.limit,
        "sources": hashes,
    }


def _check_options(dest: Path, wanted: dict[str, Any]) -> None:
    path = dest / OPTIONS_FILE
    if not path.exists():
        foreign = [name for name in ("raw", "tok", "bpe", "bin", RECORD_FILE) if (dest / name).exists()]
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


def _step(dest: Path, name: str, make: Callable[[Path], None], keep: bool = False) -> None:
    """Runs ``make`` on a temporary folder and gives it its name; does nothing if the named folder is there.

    With ``keep`` the folder of a killed run is continued: ``make`` leaves files alone that have their final names.
    """
    final = dest / name
    if final.is_dir():
        logger.info("%s: already there, kept", final)
        return
    partial = dest / f".partial-{name}"
    if partial.exists() and not keep:
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    for leftover in partial.glob(".*"):  # atomic writes of a killed run
        leftover.unlink()
    make(partial)
    partial.rename(final)
    logger.info("%s: written", final)


# --- raw -----------------------------------------------------------------------------------------------------------


def _write_raw(options: Options, sources: dict[str, Path], folder: Path) -> None:
    corpus = options.corpus
    counts = dict.fromkeys(SPLITS, 0)
    empty = 0
    cut_later = {"valid"} if corpus.valid_every else set()
    progress = tqdm(_read_pairs(options, sources), desc="read", unit="pair", disable=None, leave=False)
    with contextlib.ExitStack() as stack:
        files: dict[str, list[IO[str]]] = {}
        for split, source, target in progress:
            if options.limit is not None and counts[split] >= options.limit:
                if all(counts[name] >= options.limit for name in SPLITS if name not in cut_later):
                    break
                continue
            if not corpus.verbatim:
                source, target = clean_whitespace(source), clean_whitespace(target)
                # only train loses pairs: the line numbers of the other splits mean something
                if split == "train" and not (source and target):
                    empty += 1
                    continue
            if split not in files:
                files[split] = [stack.enter_context(atomic_open(folder / f"{split}.{x}")) for x in options.pair]
            for stream, line in zip(files[split], (source, target), strict=True):
                stream.write(f"{line}\n")
            counts[split] += 1
    if empty:
        logger.warning("train: %d of %d pairs left out: one side is empty", empty, empty + counts["train"])
    if corpus.write_subwords is None:
        _check_not_empty(options, counts, set(SPLITS) - cut_later)


def _read_pairs(options: Options, sources: dict[str, Path]) -> Iterator[tuple[str, str, str]]:
    corpus = options.corpus
    if corpus.read_pairs is not None:
        yield from corpus.read_pairs(sources, options.pair, options.seed)
        return
    assert corpus.read_splits is not None
    for split, (source_lines, target_lines) in corpus.read_splits(sources, options.pair, options.seed).items():
        for source, target in zip(source_lines, target_lines, strict=True):
            yield split, source, target


def _check_not_empty(options: Options, counts: dict[str, int], wanted: Iterable[str]) -> None:
    for split in SPLITS:
        if split in wanted and not counts[split]:
            raise DataError(f"the {split} split of corpus {options.corpus.name} has no pair of two non-empty lines.")


# --- words and subwords --------------------------------------------------------------------------------------------


def _pipelines(options: Options, folder: Path, split: str) -> list[TextPipeline]:
    """How both languages of a split are processed, source first."""
    text = {**options.text, **_differences(options, split)}
    codes = CODES_FILES[text["subword"]]
    return [
        TextPipeline(language=options.corpus.text_language or language, codes=codes, folder=folder, **text)
        for language in options.pair
    ]


def _differences(options: Options, split: str) -> dict[str, Any]:
    """Settings of one split, unless the user chose another than the corpus's."""
    corpus = options.corpus
    return {
        name: value
        for name, value in corpus.split_text.get(split, {}).items()
        if options.text[name] == corpus.text.get(name, options.text[name])
    }


def _write_tokenized(options: Options, raw: Path, folder: Path, workers: int) -> None:
    corpus = options.corpus
    for split in SPLITS:
        is_cut = split == "train" and options.valid_every is not None
        written = [split, "valid"] if is_cut else [split]
        paths = [folder / f"{part}.{language}" for part in written for language in options.pair]
        if all(path.is_file() for path in paths) or not (raw / f"{split}.{options.pair[0]}").is_file():
            continue
        limits = corpus.word_limits if split == "train" else None
        job = Job("tokenize", _pipelines(options, folder, split), limits)
        counts = dict.fromkeys(SPLITS, 0)
        pairs = _map_pairs(job, [raw / f"{split}.{language}" for language in options.pair], split, workers)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(atomic_open(path)) for path in paths]
            for number, pair in enumerate(pairs, start=1):
                is_valid = is_cut and options.valid_every and number % options.valid_every == 0
                counts["valid" if is_valid else split] += 1
                for stream, line in zip(files[2:] if is_valid else files[:2], pair, strict=True):
                    stream.write(f"{line}\n")
            _check_not_empty(options, counts, written)


def _write_published_subwords(options: Options, sources: dict[str, Path], folder: Path) -> None:
    assert options.corpus.write_subwords is not None
    options.corpus.write_subwords(sources, options.pair, folder)
    if options.limit is not None:
        for path in [folder / f"{split}.{language}" for split in SPLITS for language in options.pair]:
            write_lines(path, islice(iterate_lines(path), options.limit))


def _write_subwords(options: Options, tokenized: Path, folder: Path, workers: int) -> None:
    codes = folder / CODES_FILES[options.text["subword"]]
    if not codes.is_file():
        logger.info("learning %d %s units on train, both languages together", options.merges, options.text["subword"])
        texts = [tokenized / f"train.{language}" for language in options.pair]
        task = (options.text["subword"], texts, options.merges, codes)
        if sum(path.stat().st_size for path in texts) > LARGE_TEXT_BYTES:
            run_alone(_learn_codes, task)
        else:
            _learn_codes(task)
    for split in SPLITS:
        paths = [folder / f"{split}.{language}" for language in options.pair]
        if all(path.is_file() for path in paths):
            continue
        limits = options.corpus.subword_limits if split != "test" else None
        job = Job("split", _pipelines(options, folder, split), limits, options.corpus.source_limit)
        pairs = _map_pairs(job, [tokenized / path.name for path in paths], split, workers)
        counts = dict.fromkeys(SPLITS, 0)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(atomic_open(path)) for path in paths]
            for pair in pairs:
                counts[split] += 1
                for stream, line in zip(files, pair, strict=True):
                    stream.write(f"{line}\n")
            _check_not_empty(options, counts, [split])


def _learn_codes(task: tuple[str, list[Path], int, Path]) -> None:
    subword, texts, units, codes = task
    bpe.learn(subword, chain.from_iterable(map(iterate_lines, texts)), units, codes)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker process does to a chunk of pairs.

    Attributes:
        what: "tokenize", or "split" into subwords.
        pipelines: of source and target.
        limits: pairs beyond them are left out.
        source_limit: how many subwords of the source are kept; None: all.
    """

    what: str
    pipelines: Sequence[TextPipeline]
    limits: Limits | None = None
    source_limit: int | None = None

    def run(self, pairs: list[Pair]) -> list[Pair]:
        source, target = self.pipelines
        if self.what == "tokenize":
            done = [(source.tokenize(one), target.tokenize(other)) for one, other in pairs]
        else:
            done = [(source.split(one), target.split(other)) for one, other in pairs]
        if self.source_limit is not None:
            done = [(" ".join(one.split(" ")[: self.source_limit]), other) for one, other in done]
        return done if self.limits is None else [pair for pair in done if self.limits.keep(*pair)]


def _run_job(task: tuple[Job, list[Pair]]) -> tuple[list[Pair], int]:
    """A chunk of pairs after its job, and how many there were before.

    What a worker process builds once (tokenizer, codes) is cached in ``data_prep.text``.
    """
    job, pairs = task
    return job.run(pairs), len(pairs)


def _map_pairs(job: Job, paths: Sequence[Path], split: str, workers: int) -> Iterator[Pair]:
    """The pairs of two files after ``job``, in order."""
    chunks = chunked(iterate_parallel(*map(iterate_lines, paths), names=paths))
    what = f"{job.what} {split}"
    dropped = total = 0
    with tqdm(desc=what, unit="pair", disable=None, leave=False) as progress:
        for pairs, size in map_in_order(_run_job, ((job, chunk) for chunk in chunks), workers):
            yield from pairs
            total += size
            dropped += size - len(pairs)
            progress.update(size)
    if dropped:
        logger.info("%s: %d of %d pairs left out: empty, too long, or of too different lengths", what, dropped, total)


# --- binarized data ------------------------------------------------------------------------------------------------


def _write_binarized(options: Options, dest: Path, folder: Path, workers: int) -> None:
    from data_prep.binarize import binarize

    max_types = options.corpus.dictionary_size
    sizes = binarize(dest / "bpe", folder, options.pair, SPLITS, options.joined_dictionary, max_types, workers)
    codes = CODES_FILES[options.text["subword"]]
    (folder / "bpe").mkdir()
    shutil.copyfile(dest / "bpe" / codes, folder / "bpe" / codes)
    write_json(folder / RECORD_FILE, _record(options, dest, sizes))


def _count_lines(options: Options, dest: Path) -> dict[str, int]:
    """Lines by split; those that differ from what others report are logged, unless a slice was asked for."""
    lines = {split: sum(1 for _ in iterate_lines(dest / "bpe" / f"{split}.{options.pair[0]}")) for split in SPLITS}
    for split, published in options.corpus.published_lines.items() if options.limit is None else ():
        if lines[split] != published:
            logger.warning("%s: %d lines, but %d are published", split, lines[split], published)
    return lines


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
        "limit": options.limit,
        "lines": _count_lines(options, dest),
        "raw_sha256": {name: sha256(dest / "raw" / name) for name in names if (dest / "raw" / name).is_file()},
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }
