"""Mult-Adds and parameters of an architecture, by component, beside the published figures.

  lite-transformer macs lite_transformer_iwslt_de_en
  lite-transformer macs lite_transformer_wmt_en_fr --set encoder_embed_dim=256 --target-length 60 --json
  lite-transformer macs transformer_wmt_en_de_base --counter
  lite-transformer macs lite_transformer_lm_wikitext103 --target-length 1000

Counted is one teacher-forced pass over one sentence pair (a language model's over one text) at the data set's lengths:
matrix products only. The taps of
the convolutions and the projection to the vocabulary stay out of the total, as in the paper, and have their own lines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lite_transformer.errors import ConfigError

if TYPE_CHECKING:
    from lite_transformer.macs.report import CostReport
    from lite_transformer.models.architectures import Architecture
    from lite_transformer.models.config import FlatConfig

logger = logging.getLogger(__name__)

_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arch", metavar="ARCH", nargs="?", help="name of an architecture, see --list")
    parser.add_argument("--list", action="store_true", help="list the architectures with their published figures")
    parser.add_argument("--source-length", type=int, metavar="N", help="source tokens; the data set's unless given")
    parser.add_argument("--target-length", type=int, metavar="N", help="target tokens; the data set's unless given")
    parser.add_argument("--vocab", type=int, metavar="N", help="size of both vocabularies; the data set's unless given")
    parser.add_argument("--source-vocab", type=int, metavar="N", help="size of the source vocabulary")
    parser.add_argument("--target-vocab", type=int, metavar="N", help="size of the target vocabulary")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="change an option of the architecture; lists with commas; may be repeated",
    )
    parser.add_argument("--counter", action="store_true", help="build and run the model too; both counts must agree")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    # fairseq speaks while it is imported; nothing it says belongs to this verb.
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    from lite_transformer.models.architectures import ARCHITECTURES, find_architecture

    if args.list:
        return _list(ARCHITECTURES.values(), args.json)
    if args.arch is None:
        raise ConfigError(f"which architecture? Known: {', '.join(ARCHITECTURES)}")
    architecture = find_architecture(args.arch)
    settings = parse_settings(architecture.name, args.set)
    vocabs = _vocabularies(args, architecture)
    config = _configuration(architecture, settings, vocabs)
    lengths = _lengths(args, architecture)
    from lite_transformer.macs.closed_form import closed_form

    report = closed_form(config, *lengths, *vocabs)
    if args.counter:
        _check_by_running(config, lengths)
    shared = getattr(config, "ties_weights", False) or config.share_decoder_input_output_embed
    shared = shared if architecture.is_language_model else config.share_all_embeddings
    result = _as_json(architecture, report, vocabs, settings, bool(shared))
    result["counter_agrees"] = True if args.counter else None
    sys.stdout.write(json.dumps(result) + "\n" if args.json else _table(report, result))
    return 0


def _list(architectures: Iterable[Architecture], as_json: bool) -> int:
    rows = [
        {
            "arch": row.name,
            "data": row.data.name,
            "macs": row.macs,
            "params_core": row.core_params,
            "published_macs": row.published_macs,
            "published_params": row.published_params,
        }
        for row in architectures
    ]
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    cells = [["architecture", "data set", "MACs", "core params", "published MACs", "params"]]
    cells += [[text if isinstance(text, str) else f"{text:,}" for text in row.values()] for row in rows]
    sys.stdout.write(_aligned(cells, left=2))
    return 0


def _lengths(args: argparse.Namespace, architecture: Architecture) -> tuple[int, int]:
    if architecture.is_language_model and not (args.source_length is None and args.source_vocab is None):
        raise ConfigError(f"{architecture.name} is a language model and has no source: --target-length, --vocab")
    return (
        architecture.data.source_length if args.source_length is None else args.source_length,
        architecture.data.target_length if args.target_length is None else args.target_length,
    )


def _vocabularies(args: argparse.Namespace, architecture: Architecture) -> tuple[int, int]:
    if args.vocab is not None and (args.source_vocab is not None or args.target_vocab is not None):
        raise ConfigError("--vocab sets both vocabularies: leave out --source-vocab and --target-vocab")
    both = (architecture.data.source_vocab, architecture.data.target_vocab)
    if args.vocab is not None:
        both = (args.vocab, args.vocab)
    return (
        both[0] if args.source_vocab is None else args.source_vocab,
        both[1] if args.target_vocab is None else args.target_vocab,
    )


def _configuration(architecture: Architecture, settings: dict[str, Any], vocabs: tuple[int, int]) -> Any:
    """The resolved configuration; embeddings are shared as on the data set, unless sizes or --set say otherwise."""
    from lite_transformer.models.lite_transformer import resolved_config

    config = resolved_config(architecture.name, **settings)
    if architecture.is_language_model:
        return config
    sharing_is_set = {"share_all_embeddings", "share_decoder_input_output_embed"} & settings.keys()
    can_share = config.encoder_embed_dim == config.decoder_embed_dim and vocabs[0] == vocabs[1]
    if architecture.data.shared_embeddings and can_share and not sharing_is_set:
        config.share_all_embeddings = True
    return config


def parse_settings(name: str, assignments: Sequence[str]) -> dict[str, Any]:
    """``OPTION=VALUE`` texts as values of the types that the architecture's configuration declares.

    Raises: ConfigError naming the assignment, and the known options or the type that was expected.
    """
    from lite_transformer.models.lite_transformer import resolved_config

    config_class = type(resolved_config(name))
    declared = typing.get_type_hints(config_class)
    known = [item.name for item in dataclasses.fields(config_class) if item.name != "_name"]
    settings = {}
    for assignment in assignments:
        option, equals, text = assignment.partition("=")
        option = option.strip().lstrip("-").replace("-", "_")
        if not equals:
            raise ConfigError(f"--set {assignment}: write it as OPTION=VALUE")
        if option not in known:
            raise ConfigError(f"--set {assignment}: unknown option '{option}'. Known: {', '.join(known)}")
        try:
            settings[option] = _parse(text.strip(), declared[option])
        except ValueError as error:
            raise ConfigError(f"--set {assignment}: {error}") from None
    return settings


def _parse(text: str, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null", ""):
            return None
        return _parse(text, next(option for option in arguments if option is not type(None)))
    if origin is list:
        return [_parse(part.strip(), arguments[0]) for part in text.strip("[]").split(",") if part.strip()]
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"'{text}' is neither true nor false")
        return text.lower() in ("true", "1")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"'{text}' is no {'whole ' if kind is int else ''}number") from None
    if kind is str:
        return text
    choices = [str(choice) for choice in kind]
    if text not in choices:
        raise ValueError(f"'{text}' is none of {', '.join(choices)}")
    return text


def _check_by_running(config: FlatConfig, lengths: tuple[int, int]) -> None:
    from lite_transformer.macs.closed_form import closed_form
    from lite_transformer.macs.counter import build_model, count_model, smallest_vocabulary

    # the vocabulary touches nothing that is compared but embeddings and output projection
    types_of_each = smallest_vocabulary(config, 8)
    logger.info("running the model at %d source and %d target tokens", *lengths)
    counted = count_model(build_model(config, types_of_each, types_of_each), *lengths)
    formula = closed_form(config, *lengths, types_of_each, types_of_each)
    if counted != formula:
        ours, theirs = _by_name(formula), _by_name(counted)
        differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        raise ConfigError(
            "closed form and running model disagree: "
            + "; ".join(f"{name} {ours.get(name)} against {theirs.get(name)}" for name in differing)
        )


def _by_name(report: CostReport) -> dict[str, tuple[int, int]]:
    return {row.name: (row.macs, row.params) for row in (*report.counted, *report.not_counted)}


def _as_json(
    architecture: Architecture,
    report: CostReport,
    vocabs: tuple[int, int],
    settings: dict[str, Any],
    shared: bool,
) -> dict[str, Any]:
    data = architecture.data
    # The published figures belong to the architecture as it stands, at the data set's lengths and vocabularies.
    same_model = not (settings.keys() - {"dropout", "attention_dropout", "activation_dropout", "weight_dropout"})
    same_lengths = (report.source_length, report.target_length) == (data.source_length, data.target_length)
    comparable = report.params_core
    counts = "core"
    if data.embeddings_counted:
        comparable, counts = report.params_total, "with embeddings"
    elif data.output_matrix_counted:
        comparable, counts = report.params_core + report.params_output, "core and output matrix"
    same_output = counts == "core" or vocabs == (data.source_vocab, data.target_vocab)
    return {
        "arch": architecture.name,
        "data": data.name,
        "settings": settings,
        "source_length": report.source_length,
        "target_length": report.target_length,
        "source_vocab": vocabs[0],
        "target_vocab": vocabs[1],
        "shared_embeddings": shared,
        "macs": report.macs,
        "taps_macs": report.taps_macs,
        "macs_with_taps": report.macs + report.taps_macs,
        "output_projection_macs": report.output_macs,
        "params_core": report.params_core,
        "params_embeddings": report.params_embeddings,
        "params_output_matrix": report.params_output,
        "params_total": report.params_total,
        "components": [dataclasses.asdict(row) for row in report.counted],
        "not_counted": [dataclasses.asdict(row) for row in report.not_counted],
        "published": {
            "source": architecture.source,
            "macs": _against(report.macs, architecture.published_macs if same_model and same_lengths else ""),
            "params": _against(comparable, architecture.published_params if same_model and same_output else "")
            | {"counts": counts},
        },
    }


def _against(ours: int, published: str) -> dict[str, Any]:
    """Our integer beside a rounded figure such as 54M; no difference where nothing was published."""
    if not published:
        return {"ours": ours, "published": None, "difference_percent": None}
    value = float(published[:-1]) * _UNITS[published[-1]]
    return {"ours": ours, "published": published, "difference_percent": round(100 * (ours - value) / value, 2)}


def _table(report: CostReport, result: dict[str, Any]) -> str:
    total = report.macs
    title = (
        f"{result['arch']} at {report.source_length} source and {report.target_length} target tokens, "
        f"vocabularies {result['source_vocab']:,} and {result['target_vocab']:,}"
        if report.source_length
        else f"{result['arch']} at {report.target_length} tokens, vocabulary {result['target_vocab']:,}"
    )
    title += " (one shared table)" if result["shared_embeddings"] else ""
    cells = [["component", "MACs", "%", "parameters"]]
    for row in report.counted:
        cells.append([row.name, f"{row.macs:,}", f"{100 * row.macs / total:.1f}", f"{row.params:,}"])
    cells.append(["total", f"{total:,}", "100.0", f"{report.params_core:,}"])
    cells.append([])
    cells.append(["not in the total"])
    for row in report.not_counted:
        cells.append([row.name, f"{row.macs:,}" if row.macs else "", "", f"{row.params:,}" if row.params else ""])
    cells.append([])
    cells.append(["total with taps", f"{total + report.taps_macs:,}"])
    cells.append(["total with embeddings and output matrix", "", "", f"{report.params_total:,}"])
    beside = [["", "computed", "published", "difference"]]
    for name, counts in (("MACs", ""), ("params", f" ({result['published']['params']['counts']})")):
        row = result["published"][name.lower()]
        beside.append(
            [name + counts, f"{row['ours']:,}"]
            + ([row["published"], f"{row['difference_percent']:+.1f} %"] if row["published"] else ["", ""])
        )
    text = f"{title}\n\n{_aligned(cells)}\n{_aligned(beside)}"
    if any(result["published"][name]["published"] for name in ("macs", "params")):
        text += f"published: {result['published']['source']}\n"
    if result["counter_agrees"]:
        text += "counter: the running model agrees in every component\n"
    return text


def _aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns of equal width: the first ``left`` flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"
