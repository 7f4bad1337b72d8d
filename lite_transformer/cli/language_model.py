"""What `evaluate` does for a language model: perplexity by a protocol, its text form and its run record."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.corpora import CORPORA
from data_prep.io import read_json
from data_prep.pipeline import RECORD_FILE
from lite_transformer.errors import CheckpointError, ConfigError
from lite_transformer.scoring.protocols import PROTOCOLS
from lite_transformer.scoring.text_protocols import TextProtocol, find_text_protocol, usual_protocol

if TYPE_CHECKING:
    from lite_transformer.scoring.perplexity import Perplexity, Text

# options of evaluate that mean nothing for a text: beam search and scores of translations
_OF_TRANSLATION = (
    "beam", "lenpen", "max_len_a", "max_len_b", "min_len", "no_repeat_ngram_size", "batch_size", "compound_split",
    "metric", "reference", "confidence", "output", "model",
)  # fmt: skip

_OF_TEXT = ("tokens_per_sample", "context_window", "sample_break_mode")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("language models (defaults: the experiment's protocol)")
    group.add_argument("--tokens-per-sample", type=int, metavar="N", help="longest window, context included")
    group.add_argument("--context-window", type=int, metavar="N", help="tokens of it that only are context")
    group.add_argument("--sample-break-mode", metavar="MODE", help="none, complete (lines whole) or complete_doc")


def is_meant(args: argparse.Namespace) -> bool:
    """Whether this evaluation is of a language model: by its experiment's name, or by its checkpoint."""
    from lite_transformer.scoring import perplexity

    if args.experiment is not None and find_text_protocol(Path(args.experiment).stem) is not None:
        return True
    if args.checkpoint is None or args.experiment in PROTOCOLS:
        return False
    path = _file(args.checkpoint[0])
    return path.is_file() and perplexity.is_language_model(path)


def refuse(args: argparse.Namespace) -> None:
    """Raises ConfigError if options of a language model are given for a translation."""
    if given := [name for name in _OF_TEXT if getattr(args, name) is not None]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{names}: of language models, and this is a translation model. Leave it out")


def _file(path: Path) -> Path:
    return path / "checkpoint_best.pt" if path.is_dir() else path


def run(args: argparse.Namespace) -> int:
    from lite_transformer.compression import packed
    from lite_transformer.scoring import decoding, perplexity

    _refuse(args)
    named = find_text_protocol(Path(args.experiment).stem) if args.experiment else None
    checkpoint, how = _checkpoint(args)
    if packed.is_packed(checkpoint):
        how = packed.origin(checkpoint)
    perplexity.check_data(args.data, args.split)
    loaded = decoding.load([checkpoint], args.data, args.cpu, args.fp16)
    prepared = read_json(args.data / RECORD_FILE) if (args.data / RECORD_FILE).is_file() else {}
    protocol = _protocol(args, named or usual_protocol(int(loaded.models[0].max_positions())))
    subword = args.subwords or _subword(prepared)
    started = time.monotonic()
    found, text = perplexity.score_split(loaded, args.data, args.split, protocol, subword, args.max_tokens)
    seconds = time.monotonic() - started
    expected = prepared.get("tokens", {}).get(args.split)
    scores = _scores(found, protocol, subword)
    result = {
        "checkpoint": str(checkpoint),
        "data": str(args.data),
        "split": args.split,
        "protocol": dataclasses.asdict(protocol),
        "differences": _differences(args, named, protocol, prepared, found, text),
        "decoding": how + (", fp16" if args.fp16 else ""),
        "tokens": found.tokens,
        "tokens_left_out": text.left_out,
        "tokens_in_data": expected,
        "words": found.words,
        "bits_per_token": found.bits_per_token,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(found.tokens / seconds, 1),
        "scores": [score.to_json() for score in scores],
    }
    if args.record is not None:
        _record(args, loaded, checkpoint, scores, str(result["decoding"]), prepared)
        result["record"] = str(args.record)
    sys.stdout.write(json.dumps(result) + "\n" if args.json else _text(result, scores))
    return 0


def _refuse(args: argparse.Namespace) -> None:
    given = [name for name in _OF_TRANSLATION if getattr(args, name, None) not in (None, False)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{names}: of translations; a language model is evaluated by its perplexity. Leave it out")


def _checkpoint(args: argparse.Namespace) -> tuple[Path, str]:
    from lite_transformer.models.averaging import last_epochs, write_average

    paths = args.checkpoint or [Path("runs") / Path(args.experiment).stem]
    if len(paths) > 1:
        raise ConfigError("perplexity is computed of one model: give one --checkpoint")
    if args.average_last is not None:
        folder = paths[0] if paths[0].is_dir() else paths[0].parent
        chosen = last_epochs(folder, args.average_last)
        output = folder / f"average_last{args.average_last}_{chosen[0].stem}.pt"
        write_average(chosen, output)
        return output, f"average of the last {args.average_last} epochs"
    if not paths[0].exists():
        raise CheckpointError(f"{paths[0]}: no such file or folder. Give --checkpoint, a file or a run's folder")
    return _file(paths[0]), "one checkpoint"


def _protocol(args: argparse.Namespace, protocol: TextProtocol) -> TextProtocol:
    given = {name: getattr(args, name) for name in _OF_TEXT if getattr(args, name) is not None}
    return dataclasses.replace(protocol, **given)


def _subword(prepared: dict[str, Any]) -> str:
    for settings in (prepared.get("text") or {}).values():
        return str(settings.get("subword", "none"))
    return "none"


def _differences(
    args: argparse.Namespace,
    named: TextProtocol | None,
    protocol: TextProtocol,
    prepared: dict[str, Any],
    found: Perplexity,
    text: Text,
) -> list[str]:
    """Everything in which this evaluation is another one than the named protocol's."""
    pairs: list[tuple[str, Any, Any]] = []
    if named is not None:
        corpus = CORPORA.get(named.name)
        scored = corpus.published_tokens.get(args.split) if corpus else None
        pairs += [("corpus", prepared.get("corpus", named.name), named.name), ("split", args.split, "test")]
        pairs += [("scored tokens", found.tokens, scored or found.tokens)]
        for name in _OF_TEXT:
            pairs.append((name.replace("_", "-"), getattr(protocol, name), getattr(named, name)))
    expected = prepared.get("tokens", {}).get(args.split)
    pairs.append(("tokens in the data", found.tokens + text.left_out, expected or found.tokens + text.left_out))
    return [f"{what} is {here}, not {there}" for what, here, there in pairs if here != there]


def _scores(found: Perplexity, protocol: TextProtocol, subword: str) -> list[Any]:
    from lite_transformer.scoring.score import Score

    signature = f"{protocol}, {found.tokens} tokens, ends of lines counted"
    if found.words == found.tokens:
        return [Score("perplexity", found.per_token, f"per word token, {signature}")]
    return [
        Score("subword_perplexity", found.per_token, f"per {subword} token, {signature}"),
        Score(
            "perplexity", found.per_word, f"per word, renormalised from {subword} ({found.words} words), {signature}"
        ),
    ]


def _text(result: dict[str, Any], scores: list[Any]) -> str:
    protocol = result["protocol"]
    left_out = f" ({result['tokens_left_out']} between documents left out)" if result["tokens_left_out"] else ""
    lines = [
        f"{result['split']}: {result['tokens']} tokens scored{left_out}, {result['decoding']}, {result['seconds']} s, "
        f"{result['tokens_per_second']:.0f} tokens/s, {result['bits_per_token']:.4f} bits a token"
    ]
    if protocol["name"]:
        lines.append(f"protocol {protocol['name']}: {protocol['source']}")
        lines += [f"  {protocol['remark']}"] if protocol["remark"] else []
    lines += [f"  not as in the protocol: {difference}" for difference in result["differences"]]
    lines += [str(score) for score in scores]
    lines += [f"record in {result['record']}"] if "record" in result else []
    return "\n".join(lines) + "\n"


def _record(
    args: argparse.Namespace,
    loaded: Any,
    checkpoint: Path,
    scores: list[Any],
    how: str,
    prepared: dict[str, Any],
) -> None:
    from lite_transformer.cli.evaluate import write_run_record

    corpus = str(prepared.get("corpus", args.data.parent.name))
    suffix = "" if _subword(prepared) == "none" else f"-{_subword(prepared)}"
    loaded.models[0].cpu()  # there every token is looked up in its own band only, as the paper counts
    write_run_record(args, loaded, [checkpoint], scores, how, f"{corpus}{suffix}")
