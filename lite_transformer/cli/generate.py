"""Continues a text with a trained language model.

  lite-transformer generate --checkpoint CHECKPOINT --data DIR/bin --prompt "The driver is" --length 60
  lite-transformer generate --checkpoint CHECKPOINT --data DIR/bin --temperature 0.8 --top-p 0.9 --seed 3 < prompt.txt

DIR/bin is the folder that `lite-transformer prepare` made; it says how text becomes words or subwords. A prompt of
several lines is a text of several paragraphs; without any, text begins anew. The same seed gives the same text.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from data_prep.io import decode_line
from data_prep.pipeline import load_pipelines
from lite_transformer.errors import CheckpointError, ConfigError, DataError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PT", help="the model, or a run's folder (checkpoint_best.pt)"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="BIN", help="the bin folder of the prepared corpus")
    parser.add_argument("--prompt", metavar="TEXT", help="text to continue (default: standard input, if it is a file)")
    parser.add_argument("--length", type=int, default=100, metavar="N", help="words or subwords to add (default 100)")
    parser.add_argument("--one-line", action="store_true", help="stop at the end of the line")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="below 1 likelier words, 0 the likeliest (default 1)",
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest (default 0: all)")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw among the likeliest that have probability P together",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the draws (default 1)")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="how many continuations (default 1)")
    parser.add_argument("--allow-unknown", action="store_true", help="let <unk> be drawn")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--fp16", action="store_true", help="compute in half precision")
    parser.add_argument("--json", action="store_true", help="print one JSON object a continuation")


def run(args: argparse.Namespace) -> int:
    for name in ("length", "samples"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: at least 1 is needed")
    if not 0 <= args.seed < 2**63:
        raise ConfigError(f"--seed {args.seed}: a number from 0 to 2^63 - 1 is needed")
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    from lite_transformer.scoring import decoding, perplexity
    from lite_transformer.scoring.sampling import Sampling, generate

    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    sampling.check()
    checkpoint = args.checkpoint / "checkpoint_best.pt" if args.checkpoint.is_dir() else args.checkpoint
    if not perplexity.is_language_model(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is a translation model, which continues no text. Give a language model, or type: "
            "lite-transformer translate"
        )
    (pipeline,) = load_pipelines(args.data).values()
    if not (args.data / "dict.txt").is_file():
        raise DataError(f"{args.data}: dict.txt is missing. Make the folder again with: lite-transformer prepare")
    loaded = decoding.load([checkpoint], args.data, args.cpu, args.fp16)
    dictionary = loaded.task.source_dictionary
    text = _prompt(args)
    prompt = _encode(text, pipeline, dictionary)
    forbidden = [dictionary.bos(), dictionary.pad(), *([] if args.allow_unknown else [dictionary.unk()])]
    forbidden += [number for number in range(len(dictionary)) if dictionary[number].startswith("madeupword")]
    found = generate(
        loaded.models[0],
        prompt,
        args.length,
        sampling,
        args.seed,
        args.samples,
        loaded.device,
        forbidden,
        (lambda token: token == dictionary.eos()) if args.one_line else (lambda token: False),
    )
    for tokens in found:
        full = _decode([*prompt[1:], *tokens], pipeline, dictionary)
        result = {"prompt": text, "text": full, "tokens": len(tokens)}
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n" if args.json else full + "\n")
    return 0


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return str(args.prompt)
    if sys.stdin.isatty():
        return ""
    lines = sys.stdin.buffer.read().splitlines()
    return "\n".join(decode_line(raw, "standard input", number) for number, raw in enumerate(lines, start=1))


def _encode(text: str, pipeline: Any, dictionary: Any) -> list[int]:
    """Token ids of a text as it stands in the training data: after an end of line, lines between ends of lines."""
    tokens = [dictionary.eos()]
    lines = text.split("\n")
    for number, line in enumerate(lines):
        words = pipeline.encode(line).split()
        tokens += [dictionary.index(word) for word in words]
        if number < len(lines) - 1:
            tokens.append(dictionary.eos())
    unknown = tokens.count(dictionary.unk())
    if unknown:
        logger.warning("%d words of the prompt are not in the dictionary; the model reads <unk> there", unknown)
    return tokens


def _decode(tokens: list[int], pipeline: Any, dictionary: Any) -> str:
    """The text of token ids, an end of line as one."""
    lines: list[list[str]] = [[]]
    for token in tokens:
        if token == dictionary.eos():
            lines.append([])
        else:
            lines[-1].append(dictionary[token])
    return "\n".join(pipeline.decode(" ".join(words)) for words in lines).rstrip("\n")
