"""Compares systems on one test set: scores, 95 % intervals, and the paired significance test against the first.

  lite-transformer compare transformer.txt lite.txt --reference data/mine/raw/test.en
  lite-transformer compare old.txt new.txt --reference test.summary --metric rouge1 rouge2 rougeL --test randomization

  lite-transformer compare A.txt B.txt --reference REF --record results/comparisons/NAME.json \\
    --task iwslt14_de_en-de-en --labels 'Transformer 63M, seed 1' 'Lite Transformer 160, seed 1'

  lite-transformer compare A.txt B.txt --reference raw/test.synopsis --metric rouge1 rougeL \\
    --sources raw/test.description --examples examples.md --labels Transformer 'Lite Transformer'

The files hold one hypothesis a line, as `lite-transformer evaluate --output FILE` writes them, and detokenized text is
compared with the raw reference; only tokenized_bleu wants all files tokenized. Resampling is sacreBLEU's with its seed.
--examples writes some lines of all systems side by side, chosen by the hash of their source.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.io import atomic_open, read_json, read_lines, sha256, write_json
from lite_transformer.errors import ConfigError, DataError
from lite_transformer.scoring.examples import render_examples

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
    parser.add_argument("--labels", nargs="+", metavar="TEXT", help="what to call A, B, ... (default: their files)")
    examples = parser.add_argument_group("examples")
    examples.add_argument("--examples", type=Path, metavar="FILE.md", help="write some lines side by side")
    examples.add_argument("--sources", type=Path, metavar="FILE", help="the raw source of the test set, for --examples")
    examples.add_argument("--example-count", type=int, default=10, metavar="N", help="how many (default 10)")
    record = parser.add_argument_group("record")
    record.add_argument(
        "--record", type=Path, metavar="FILE", help="write results/comparisons/NAME.json, which `results` renders"
    )
    record.add_argument("--task", metavar="NAME", help="of the records that the systems have, as in results/tables.md")
    record.add_argument("--split", default="test", metavar="NAME", help="part of the data (default test)")


def run(args: argparse.Namespace) -> int:
    from lite_transformer.scoring import significance

    logging.getLogger("absl").setLevel(logging.WARNING)  # rouge-score reports its tokenizer every time
    for metric in args.metric:
        if metric not in significance.METRICS:
            raise ConfigError(f"--metric {metric}: unknown. Known: {', '.join(significance.METRICS)}")
    if args.trials is not None and args.trials < 1:
        raise ConfigError(f"--trials {args.trials}: at least 1 is needed")
    files = [args.baseline, *args.systems]
    labels = args.labels or [str(path) for path in files]
    distinct = len(set(labels)) == len(labels) or not (args.labels or args.record or args.examples)
    if len(labels) != len(files) or not distinct:
        raise ConfigError(f"--labels: {len(files)} different names are needed, one for each file, A first")
    if args.record is not None and not args.task:
        raise ConfigError("--record needs --task NAME, one of results/tables.md")
    if (args.examples is None) != (args.sources is None):
        raise ConfigError("--examples FILE.md and --sources FILE, the raw source of the test set, belong together")
    references = _read(args.reference)
    systems = list(zip(labels, map(_read, files), strict=True))
    if args.examples is not None:
        # before the resampling, which takes longer than a wrong file needs to be found
        text = render_examples(_read(args.sources), references, systems, args.example_count)
        args.examples.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(args.examples) as stream:
            stream.write(text)
    found = [
        significance.compare(
            metric, systems, references, args.test, args.trials or 0, args.lowercase, args.compound_split
        )
        for metric in dict.fromkeys(args.metric)
    ]
    if args.record is not None:
        _write(args, dict(zip(labels, files, strict=True)), found, len(references))
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


def _write(args: argparse.Namespace, files: dict[str, Path], found: list[Comparison], lines: int) -> None:
    """The record of what was compared. Raises: DataError if the file holds something else."""
    from lite_transformer import results

    if args.record.exists():
        results.parse_dataclass(results.ComparisonRecord, read_json(args.record), str(args.record))
    _same_case(args, found)
    differences = []
    for item in found:
        kind = "resamples" if item.test == "bootstrap" else "shufflings"
        test = f"paired {item.test}, {item.trials:,} {kind}, seed {item.seed}"
        first = item.systems[0]
        for system in item.systems[1:]:
            interval = system.score.interval
            assert interval is not None and system.p_value is not None
            differences.append(
                results.Difference(
                    system.name, item.metric, first.score.value, system.score.value, interval.half_width,
                    system.p_value, item.signature, test,
                )
            )  # fmt: skip
    record = results.ComparisonRecord(
        task=args.task,
        split=args.split,
        baseline=next(iter(files)),
        differences=differences,
        lines=lines,
        hypotheses={label: sha256(path) for label, path in files.items()},
        reference=sha256(args.reference),
        command=shlex.join(["lite-transformer", *sys.argv[1:]]),
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    args.record.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.record, dataclasses.asdict(record))


def _same_case(args: argparse.Namespace, found: list[Comparison]) -> None:
    """The runs of this task are scored with case, or without, as the comparison is. Raises: ConfigError if not."""
    from lite_transformer import results

    runs = results.read_records(args.record.parent.parent).values()
    for item in found:
        scores = [metric for run in runs if run.task == args.task for metric in run.metrics]
        scored = {_case(score.signature) for score in scores if score.metric == item.metric}
        if scored and _case(item.signature) not in scored:
            change = "leave out --lowercase" if args.lowercase else "add --lowercase"
            kinds = ", ".join(sorted(map(str, scored)))
            raise ConfigError(f"the runs of {args.task} have {item.metric} with {kinds}, to compare with: {change}")


def _case(signature: str) -> str | None:
    return next((part for part in signature.split("|") if part.startswith("case:")), None)


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
