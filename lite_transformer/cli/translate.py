"""Translates raw text, line by line: a prompt on a terminal, a filter in a pipe.

  lite-transformer translate --list
  lite-transformer translate --model NAME
  lite-transformer translate --model NAME < text.de > text.en
  lite-transformer translate --model NAME --input text.de --output text.en
  lite-transformer translate --checkpoint CHECKPOINT --data DIR/bin

NAME is a released model's, the path of its folder, or a folder that `lite-transformer export` made, which runs without
torch. A model of your own is its checkpoint and the folder DIR/bin that `lite-transformer prepare` made, which says how
text becomes subwords. Every input line gives one output line, in order; an empty line stays empty. In a pipe lines are
translated as they come. --output appears when all of it is translated.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from data_prep.io import atomic_open, decode_line
from data_prep.pipeline import load_pipelines
from lite_transformer.errors import ConfigError, DataError, LiteTransformerError
from lite_transformer.released.card import Card, language_name, read_card
from lite_transformer.released.folder import check_folder, describe_known, find_model, known_models

logger = logging.getLogger(__name__)

BUFFERED_BATCHES = 16  # lines that are sorted by length together: at most this many batches
# in the folder of an exported model, which is run without torch; any of them, for one may be missing
EXPORTED_FILES = ("edge.json", "decoder.onnx", "weights.bin")
READ_BYTES = 1 << 16  # asked for at a time; a pipe gives what is there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("which model")
    model.add_argument("--model", nargs="?", const="", metavar="NAME", help="a released model, by name or folder")
    model.add_argument("--list", action="store_true", help="list the released models")
    model.add_argument("--checkpoint", type=Path, nargs="+", metavar="PT", help="your own; several are an ensemble")
    model.add_argument("--data", type=Path, metavar="BIN", help="with --checkpoint: bin folder of the prepared corpus")
    parser.add_argument("--input", type=Path, metavar="FILE", help="text to translate (default: standard input)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the translations (default: standard output)")
    parser.add_argument("--beam", type=int, metavar="N", help="beam width (default: the released model's, or 4)")
    parser.add_argument("--lenpen", type=float, metavar="X", help="length penalty (default: the model's, or 1)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="lines at a time (default 32)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    exported = parser.add_argument_group("of an exported model")
    exported.add_argument("--threads", type=int, metavar="N", help="that compute a step (default 1)")
    exported.add_argument("--engine", metavar="auto|native|portable", help="what computes (default auto: the fastest)")
    exported.add_argument(
        "--shortlist", action="store_true",
        help="only words that the source makes likely, of a model exported with --shortlist: faster, not exact",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.list:
        return _list_models()
    for name in ("beam", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed.")
    _check_files(args.input, args.output)
    translator: Translator | ExportedTranslator
    if args.model and any((Path(args.model) / name).is_file() for name in EXPORTED_FILES):
        translator = ExportedTranslator(args)
    else:
        checkpoints, data, beam, lenpen = _model(args)
        for name in ("threads", "engine", "shortlist"):
            if getattr(args, name) not in (None, False):
                raise ConfigError(f"--{name} is for exported models: lite-transformer export makes one")
        logging.getLogger("fairseq").setLevel(logging.WARNING)
        translator = Translator(checkpoints, data, beam, lenpen, args.batch_size, args.cpu)
    unread = 0
    with contextlib.ExitStack() as stack:
        if args.output is not None:
            output = stack.enter_context(_output(args.output))
        else:
            output = sys.stdout
            if isinstance(output, io.TextIOWrapper):
                output.reconfigure(encoding="utf-8")  # as the input, whatever the locale
        if args.input is not None:
            stream = stack.enter_context(args.input.open("rb"))
            unread = _translate_stream(translator, stream, str(args.input), output)
        elif sys.stdin is None:
            raise DataError("standard input is closed. Give text in a pipe, or by --input FILE.")
        elif sys.stdin.isatty():
            _converse(translator, output)
        else:
            unread = _translate_stream(translator, sys.stdin.buffer, "standard input", output)
    if unread:
        sys.stderr.write(f"lite-transformer translate: lines that could not be read and are left empty: {unread}\n")
    lost = len(translator.untranslated) if isinstance(translator, ExportedTranslator) else 0
    if lost:
        sys.stderr.write(f"lite-transformer translate: lines that could not be translated and are left empty: {lost}\n")
    return 2 if unread or lost else 0


# --- which model ---------------------------------------------------------------------------------------------------


def _model(args: argparse.Namespace) -> tuple[list[Path], Path, int, float]:
    """Checkpoints, data folder, beam and length penalty."""
    if args.model is not None:
        if args.checkpoint is not None or args.data is not None:
            raise ConfigError("--model brings its own data: leave out --checkpoint and --data")
        folder = find_model(args.model)
        card = check_folder(folder)
        beam = card.beam if args.beam is None else args.beam
        return [folder / card.weights], folder, beam, card.lenpen if args.lenpen is None else args.lenpen
    if args.checkpoint is None or args.data is None:
        if args.checkpoint is None and args.data is None:
            what = "no model given: --model NAME, or --checkpoint PT --data BIN."
        else:
            what = f"{'--checkpoint' if args.checkpoint is None else '--data'} is missing; or --model NAME."
        raise ConfigError(f"{what} {describe_known(known_models())}")
    return args.checkpoint, args.data, args.beam or 4, 1.0 if args.lenpen is None else args.lenpen


def _list_models() -> int:
    known = known_models()
    cards: dict[str, Card] = {}
    damaged: list[str] = []
    for name, folder in known.items():
        try:
            cards[name] = read_card(folder)
        except LiteTransformerError as error:
            damaged.append(str(error))
    rows = [("NAME", "FROM", "TO", "MULT-ADDS", "SIZE", "SCORES (test)")]
    rows += [
        (
            name,
            language_name(card.source_language),
            language_name(card.target_language),
            f"{card.cost.macs / 1e6:.1f}M",
            f"{card.size_bytes / 1e6:.1f} MB",
            _scores(card),
        )
        for name, card in cards.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if cards else []:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    if not known:
        sys.stdout.write(f"{describe_known(known)}\n")
    for text in damaged:
        sys.stderr.write(f"lite-transformer translate: {text}\n")
    return 2 if damaged else 0


def _scores(card: Card) -> str:
    found = [f"{score.metric} {score.value:.2f}" for score in card.own_scores if score.split == "test"]
    return ", ".join(found) or "not scored"


# --- input and output ----------------------------------------------------------------------------------------------


def _check_files(source: Path | None, target: Path | None) -> None:
    """What can be wrong with --input and --output is said before the model is loaded."""
    if source is not None and not source.is_file():
        raise DataError(f"--input {source}: no such file.")
    if target is None:
        return
    if target.is_dir() or not target.parent.is_dir():
        raise DataError(f"--output {target}: {'a folder' if target.is_dir() else 'its folder does not exist'}.")
    if source is not None and target.exists() and target.samefile(source):
        raise DataError(f"--output {target} is the --input: the text would be lost. Choose another name.")


@contextlib.contextmanager
def _output(path: Path) -> Iterator[IO[str]]:
    is_device = path.exists() and not path.is_file()  # or a pipe: a file must not take its place
    try:
        with path.open("w", encoding="utf-8", newline="\n") if is_device else atomic_open(path.resolve()) as stream:
            yield stream
    except OSError as error:
        raise DataError(f"--output {path}: cannot be written ({error.strerror or error}).") from error


def _converse(translator: Translator | ExportedTranslator, output: IO[str]) -> None:
    """A line in, its translation out, until Ctrl-D; whatever a line does, the next one is asked for."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() a line editor with a history)
    source, target = translator.source.language, translator.target.language
    answer = f"{target}> " if output is sys.stdout and output.isatty() else ""
    sys.stderr.write(f"Type a line of {language_name(source)} and press return; Ctrl-D ends.\n")
    while True:
        try:
            line = _ask(f"{source}> ")
            line.encode()  # bytes that are no UTF-8 may have come in as surrogates
        except EOFError:
            sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            continue
        except UnicodeError:
            sys.stderr.write("This line is not UTF-8; type it again.\n")
            continue
        try:
            translation = translator.translate([line])[0]
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            continue
        except Exception as error:  # one line too much for memory, say, is no reason to lose the session
            sys.stderr.write(f"This line cannot be translated: {' '.join(str(error).split())}\n")
            continue
        _write(output, f"{answer}{translation}\n")


def _write(output: IO[str], text: str) -> None:
    """Raises: DataError if standard output cannot be written; OSError, which `_output` turns into one, if a file."""
    try:
        output.write(text)
        output.flush()
    except BrokenPipeError:  # the reader has enough
        raise
    except OSError as error:
        if output is not sys.stdout:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # its buffer would be written again at the end
        raise DataError(f"standard output cannot be written ({error.strerror or error}).") from error


def _ask(prompt: str) -> str:
    """A line from the terminal, without its end. Raises: EOFError at Ctrl-D."""
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)  # standard output is for translations alone
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _translate_stream(translator: Translator | ExportedTranslator, stream: Any, name: str, output: IO[str]) -> int:
    """Returns: how many lines could not be read; an exported model leaves them empty and goes on."""
    first = 1
    unread: list[DataError] | None = [] if isinstance(translator, ExportedTranslator) else None
    with tqdm(desc="translate", unit="line", disable=None if output is not sys.stdout else True) as progress:
        for lines in _buffers(stream, name, translator.batch_size * BUFFERED_BATCHES, unread):
            _write(output, "".join(f"{translation}\n" for translation in translator.translate(lines, first)))
            first += len(lines)
            progress.update(len(lines))
    return len(unread or [])


def _buffers(stream: Any, name: str, size: int, unread: list[DataError] | None = None) -> Iterator[list[str]]:
    """Lists of up to ``size`` lines, as they arrive: no line waits for a later one.

    Before an error about a line, the lines above it are given.

    Args:
        stream: binary, with ``read1``.
        unread: where such errors are put, and logged; the line is then an empty one. None: they are raised.
    """
    buffer: list[str] = []
    number = 0
    for raw_lines in _arriving_lines(stream):
        for raw in raw_lines:
            number += 1
            try:
                line = decode_line(raw, name, number)
            except DataError as error:
                if unread is None:
                    yield buffer
                    raise
                logger.error("%s", error)
                unread.append(error)
                line = ""
            buffer.append(line.removeprefix("\ufeff") if number == 1 else line)
            if len(buffer) == size:
                yield buffer
                buffer = []
        if buffer:
            yield buffer
            buffer = []


def _arriving_lines(stream: Any) -> Iterator[list[bytes]]:
    """The lines that each read completes; only LF ends a line, and the end of the stream."""
    begun: list[bytes] = []  # of a line whose end is still to come
    while block := stream.read1(READ_BYTES):
        first, *others = block.split(b"\n")
        begun.append(first)
        if others:
            yield [b"".join(begun), *others[:-1]]
            begun = [others[-1]]
    if any(begun):
        yield [b"".join(begun)]


@dataclasses.dataclass(frozen=True)
class Side:
    """What a prompt says of a language."""

    language: str


class ExportedTranslator:
    """A model in a folder that `lite-transformer export` made, with the search that the command line asks for."""

    def __init__(self, args: argparse.Namespace) -> None:
        if args.checkpoint is not None or args.data is not None:
            raise ConfigError("--model brings its own data: leave out --checkpoint and --data")
        try:
            from lite_transformer.edge import Translator

            threads = 1 if args.threads is None else args.threads
            engine = "auto" if args.engine is None else args.engine
            self._translator = Translator.load(args.model, threads, engine, args.shortlist)
        except ImportError as error:
            missing = str(error.name).split(".")[0]
            raise ConfigError(f"{missing} is not installed: pip install {missing}") from None
        asked = {"beam": args.beam, "lenpen": args.lenpen}
        self._options = {name: value for name, value in asked.items() if value is not None}
        self._translator.settings(**self._options)  # what cannot be is said before any line is read
        self.batch_size = args.batch_size
        manifest = self._translator.manifest
        self.source, self.target = Side(manifest.source_language), Side(manifest.target_language)

    @property
    def untranslated(self) -> set[int]:
        """As of `edge.Translator`."""
        return self._translator.untranslated

    def translate(self, lines: Sequence[str], first: int = 1) -> list[str]:
        """As `edge.Translator.translate`."""
        return self._translator.translate(lines, self.batch_size, first, **self._options)


class Translator:
    """A trained model, its dictionaries and its text pipelines.

    Raises: DataError if the data folder is missing or incomplete, CheckpointError if a checkpoint cannot be loaded or
        does not belong to that folder.
    """

    def __init__(
        self,
        checkpoints: Sequence[Path],
        data: Path,
        beam: int = 4,
        lenpen: float = 1.0,
        batch_size: int = 32,
        cpu: bool = False,
    ) -> None:
        pipelines = load_pipelines(data)
        for language in pipelines:
            if not (data / f"dict.{language}.txt").is_file():
                raise DataError(
                    f"{data}: dict.{language}.txt is missing. Make the folder again with: lite-transformer prepare"
                )
        from fairseq.dataclass.configs import GenerationConfig

        from lite_transformer.scoring import decoding

        self.batch_size = batch_size
        for path in checkpoints:
            named = [language for language in decoding.languages_of(path) if language]  # none: fairseq infers them
            if not set(named) <= set(pipelines):
                raise DataError(
                    f"{path} translates {'-'.join(named)}, but {data} was prepared for {'-'.join(pipelines)}. "
                    "Give the data folder that the model was trained on."
                )
        loaded = decoding.load(checkpoints, data, cpu)
        self.source, self.target = (pipelines[language] for language in loaded.languages)
        self.models, self.task, self.device = loaded.models, loaded.task, loaded.device
        # fairseq's limit of 200 tokens would cut the translations of long lines
        config = GenerationConfig(beam=beam, lenpen=lenpen, max_len_a=1.5, max_len_b=200)
        self.generator = self.task.build_generator(self.models, config)
        self.max_source_tokens = min(self.task.max_positions()[0], *(model.max_positions()[0] for model in self.models))

    def translate(self, lines: Sequence[str], first: int = 1) -> list[str]:
        """Raw text -> raw text, one for one and in order; ``first`` is the line number of the first, for messages."""
        import torch

        encoded: list[tuple[int, Any]] = []
        for index, line in enumerate(lines):
            subwords = self.source.encode(line)
            if not subwords:
                continue
            tokens = self.task.source_dictionary.encode_line(subwords, add_if_not_exist=False).long()
            if len(tokens) > self.max_source_tokens:
                logger.warning(
                    "line %d: cut to the first %d of %d tokens, all that the model reads",
                    first + index, self.max_source_tokens - 1, len(tokens) - 1,
                )  # fmt: skip
                tokens = torch.cat([tokens[: self.max_source_tokens - 1], tokens[-1:]])
            encoded.append((index, tokens))
        encoded.sort(key=lambda item: len(item[1]))
        translations = [""] * len(lines)
        for start in range(0, len(encoded), self.batch_size):
            batch = encoded[start : start + self.batch_size]
            for (index, _), text in zip(batch, self._translate_batch([tokens for _, tokens in batch]), strict=True):
                translations[index] = text
        return translations

    def _translate_batch(self, batch: Sequence[Any]) -> list[str]:
        import torch
        from fairseq.data import data_utils

        dictionary = self.task.source_dictionary
        source = data_utils.collate_tokens(batch, dictionary.pad(), dictionary.eos(), left_pad=True)
        lengths = torch.tensor([len(tokens) for tokens in batch])
        sample = {"net_input": {"src_tokens": source.to(self.device), "src_lengths": lengths.to(self.device)}}
        with torch.no_grad():
            results = self.task.inference_step(self.generator, self.models, sample)
        return [self._text(hypotheses) for hypotheses in results]

    def _text(self, hypotheses: Sequence[dict[str, Any]]) -> str:
        if not hypotheses:
            return ""
        subwords = self.task.target_dictionary.string(hypotheses[0]["tokens"].int().cpu())
        # one output line a line, whatever the model writes
        return " ".join(self.target.decode(subwords).split())
