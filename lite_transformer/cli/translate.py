"""Translates raw text, line by line: a prompt on a terminal, a filter in a pipe.

  lite-transformer translate --checkpoint CHECKPOINT --data DIR/bin
  lite-transformer translate --checkpoint CHECKPOINT --data DIR/bin < text.de > text.en

DIR/bin is the folder that `lite-transformer prepare` made; it says how text becomes subwords. Every input line gives
one output line, in order; an empty line stays empty.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.io import decode_line
from data_prep.pipeline import load_pipelines
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

BUFFERED_BATCHES = 16  # lines read ahead in a pipe, to batch lines of similar length: this many batches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", required=True, metavar="PT", help="the model; several are an ensemble"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="BIN", help="the bin folder of the prepared corpus")
    parser.add_argument("--input", type=Path, metavar="FILE", help="text to translate (default: standard input)")
    parser.add_argument("--beam", type=int, default=4, metavar="N", help="beam width (default 4)")
    parser.add_argument("--lenpen", type=float, default=1.0, metavar="X", help="length penalty (default 1)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="lines at a time (default 32)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def run(args: argparse.Namespace) -> int:
    for name in ("beam", "batch_size"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed.")
    if args.input is not None and not args.input.is_file():
        raise DataError(f"--input {args.input}: no such file.")
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)  # wants tensorboardX; we do not
    translator = Translator(args.checkpoint, args.data, args.beam, args.lenpen, args.batch_size, args.cpu)
    if args.input is None and sys.stdin.isatty():
        sys.stderr.write(f"Type a line in '{translator.source.language}' and press return; Ctrl-D ends.\n")
        _translate_stream(translator, sys.stdin.buffer, "standard input", 1)
    elif args.input is None:
        _translate_stream(translator, sys.stdin.buffer, "standard input", args.batch_size * BUFFERED_BATCHES)
    else:
        with args.input.open("rb") as stream:
            _translate_stream(translator, stream, str(args.input), args.batch_size * BUFFERED_BATCHES)
    return 0


def _translate_stream(translator: Translator, stream: BinaryIO, name: str, buffer_size: int) -> None:
    first = 1
    for lines in _buffers(stream, name, buffer_size):
        for translation in translator.translate(lines, first):
            sys.stdout.write(translation + "\n")
        sys.stdout.flush()
        first += len(lines)


def _buffers(stream: BinaryIO, name: str, size: int) -> Iterator[list[str]]:
    """Lists of up to ``size`` lines. Before an error about a line, the lines above it are given."""
    buffer: list[str] = []
    number = 0
    while raw := stream.readline():
        number += 1
        try:
            line = decode_line(raw, name, number)
        except DataError:
            yield buffer
            raise
        buffer.append(line.removeprefix("\ufeff") if number == 1 else line)
        if len(buffer) == size:
            yield buffer
            buffer = []
    yield buffer


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
