"""Compares systems on one test set: scores, 95 % intervals, and the paired significance test against the first.

  lite-transformer compare transformer.txt lite.txt --reference data/mine/raw/test.en
  lite-transformer compare old.txt new.txt --reference test.summary --metric rouge1 rouge2 rougeL --test randomization

The files hold one hypothesis a line, as `lite-transformer evaluate --output FILE` writes them, and detokenized text is
compared with the raw reference; only tokenized_bleu wants all files tokenized. Resampling is sacreBLEU's with its seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.io import read_lines
from lite_transformer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lite_transformer.scoring.significance import Comparison

LEVEL = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("baseline", type=Path, metavar="A", help="hypotheses of the system to compare with")
    parser.add_argument("systems", type=Path, nargs="+", metavar="B", help="hypotheses of one or more other systems")
    parser.add_argument("--reference", type=Path, required=True, metavar="FILE", help="the raw reference")
    parser.add_argument(
        "--metric", nargs="+", default=["sacrebleu", "chrf"], metavar="NAME",
        help="tokenized_bleu, sacrebleu, chrf, rouge1, rouge2, rougeL, rougeLsum, the last four also with _stem "
        "(default: sacrebleu chrf)",
    )  # fmt: skip
    parser.add_argument(
        "--test", choices=("bootstrap", "randomization"), default="bootstrap",
        help="paired bootstrap (default) or approximate randomization",
    )  # fmt: skip
    parser.add_argument(
        "--trials", type=int, metavar="N", help="resamples (default 1000) or shufflings (default 10000)"
    )
    parser.add_argument("--lowercase", action="store_true", help="ignore case, for models of lower-cased data")
    parser.add_argument("--compound-split", action="store_true", help="tokenized_bleu: split hyphenated words first")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from lite_transformer.scoring import significance

    logging.getLogger("absl").setLevel(logging.WARNING)  # rouge-score reports its tokenizer every time
    for metric in args.metric:
        if metric not in significance.METRICS:
            raise ConfigError(f"--metric {metric}: unknown. Known: {', '.join(significance.METRICS)}")
    if args.trials is not None and args.trials < 1:
        raise ConfigError(f"--trials {args.trials}: at least 1 is needed")
    references = _read(args.reference)
    systems = [(str(path), _read(path)) for path in (args.baseline, *args.systems)]
    found = [
        significance.compare(
            metric, systems, references, args.test, args.trials or 0, args.lowercase, args.compound_split
        )
        for metric in dict.fromkeys(args.metric)
    ]
    if args.json:
        result = {
            "reference": str(args.reference),
            "lines": len(references),
            "comparisons": [item.to_json() for item in found],
        }
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.write(f"{len(references)} lines of {args.reference}\n" + "".join(map(_text, found)))
    return 0


def _read(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Hypotheses are written by: lite-transformer evaluate --output FILE")
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path} is empty: a line for each sentence of the test set is needed")
    return lines


def _text(item: Comparison) -> str:
    kind = "resamples" if item.test == "bootstrap" else "shufflings"
    lines = [f"{item.metric}  [{item.signature}], paired {item.test}, {item.trials} {kind}, seed {item.seed}"]
    first = item.systems[0].score.value
    for system in item.systems:
        interval = system.score.interval
        line = f"  {system.name}: {item.metric} {system.score.value:.2f}"
        line += f", 95 % {interval.mean:.2f} ± {interval.half_width:.2f}" if interval else ""
        if system.p_value is not None:
            difference = system.score.value - first
            verdict = "significant" if system.p_value < LEVEL else "not significant"
            line += f", {difference:+.2f}, p = {system.p_value:.4f}: {verdict} at {LEVEL:g}"
        lines.append(line)
    return "\n".join(lines) + "\n"
