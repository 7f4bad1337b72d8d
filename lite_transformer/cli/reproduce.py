"""Reproduces a table: prepares its corpus, trains every row, evaluates by the published protocol, writes the table.

  lite-transformer reproduce --list                    the tables
  lite-transformer reproduce iwslt --list              the rows of one
  lite-transformer reproduce iwslt --gpus 1
  lite-transformer reproduce cnn_dm --source DIR --gpus 8 --rows lite_496 --seeds 1,2
  lite-transformer reproduce wmt_en_fr --source DIR --smoke --cpu

Everything goes to OUT: data, runs (checkpoints), logs (one a run), table.md, tradeoff.svg. Each run leaves a record
in results/runs; with --smoke, or if KEY=VALUE changes what is computed, in OUT/results/runs. Typed again, the command
goes on where it stopped: what has a record with the same settings, data and seed is not run again. A row that fails is
a row of the table that says so; the others run, and the exit code is 1.

--smoke shows in minutes that the whole chain works here: a slice of the corpus, every architecture of the table with an
eighth of its channels and two layers a side, two epochs. Its scores mean nothing, and it says so wherever they stand.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lite_transformer.errors import ConfigError, DataError
from lite_transformer.reproduction import report
from lite_transformer.reproduction.tables import TABLES, Table, choose_rows, find_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # options and KEY=VALUE may be mixed in any order, which argparse does only when asked
    parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]
    parser.add_argument("table", nargs="?", metavar="TABLE", help=f"one of: {', '.join(TABLES)}")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of every training to change")
    parser.add_argument("--list", action="store_true", help="show the tables, or the rows of TABLE, and stop")
    parser.add_argument("--smoke", action="store_true", help="the whole chain on a slice, with small models")
    parser.add_argument("--rows", metavar="A,B", help="only these rows (default: all that have an experiment)")
    parser.add_argument("--seeds", default="1", metavar="1,2", help="a run for each (default 1)")
    parser.add_argument("--source", type=Path, metavar="DIR", help="folder of the corpus's original files; no download")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/reproduce/TABLE, or .../TABLE-smoke")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder of the records (default: see above)")
    parser.add_argument("--commit", metavar="HASH", help="of the code, where git cannot tell; it stands in the records")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", type=int, metavar="N", help="train on N GPUs (default 1, if any); same batch")
    where.add_argument("--cpu", action="store_true", help="leave GPUs alone")


def run(args: argparse.Namespace) -> int:
    if args.list:
        sys.stdout.write(_rows(find_table(args.table)) if args.table else _tables())
        return 0
    if args.table is None:
        raise ConfigError(f"which table? One of: {', '.join(TABLES)}; lite-transformer reproduce --list explains them")
    table = find_table(args.table)
    rows, seeds = choose_rows(table, args.rows), _seeds(args.seeds)
    if args.gpus is not None and args.gpus < 1:
        raise ConfigError(f"--gpus {args.gpus}: at least 1 is needed")
    if args.source is not None and not args.source.is_dir():
        raise DataError(f"--source {args.source}: no such folder. Give the folder of the corpus's original files")
    if args.commit is None:
        _check_checkout()
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)  # wants tensorboardX; we do not
    # fairseq and torch take seconds to import: --list and a wrong name do without
    from lite_transformer.reproduction import chain

    plan = chain.Plan(
        table=table,
        rows=rows,
        seeds=seeds,
        out=args.out or Path("runs/reproduce") / f"{table.name}{'-smoke' if args.smoke else ''}",
        results=args.results,
        source=args.source,
        overrides=args.overrides,
        smoke=args.smoke,
        devices=["--gpus", str(args.gpus)] if args.gpus else ["--cpu"] if args.cpu else [],
        cpu=args.cpu,
        commit=args.commit,
    )
    folder = chain.results_of(plan)
    changes = chain.changes_of(plan)
    outcomes = chain.reproduce(plan, folder, lambda found: report.write_table(plan, found, changes))
    for path in (report.write_table(plan, outcomes, changes), report.write_plot(plan, outcomes)):
        sys.stdout.write(f"wrote {path}\n")
    failures = [f"{run}: {reason}" for outcome in outcomes for run, reason in outcome.failures.items()]
    if not failures:
        sys.stdout.write(f"all rows that were asked for are measured; records in {folder / 'runs'}\n")
        return 0
    again = shlex.join(["lite-transformer", *sys.argv[1:]])
    sys.stderr.write(f"lite-transformer reproduce: failed: {'; '.join(failures)}. Mend it, then type again: {again}\n")
    return 1


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ConfigError(f"--seeds {text}: different whole numbers with commas between, for example --seeds 1,2")
    return [int(part) for part in parts]


def _check_checkout() -> None:
    """A record names the commit of the code: better missed now than after a training."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        raise ConfigError(
            "records need the commit of the code, and this is no git checkout: give --commit HASH"
        ) from None


def _tables() -> str:
    width = max(map(len, TABLES))
    lines = [f"{table.name:<{width}}  {table.title}, {len(table.rows)} rows" for table in TABLES.values()]
    return "\n".join([*lines, "", "The rows of one: lite-transformer reproduce TABLE --list"]) + "\n"


def _rows(table: Table) -> str:
    figures = report.published_figures(table)
    lines = [f"{table.title}; evaluated as {table.protocol}", ""]
    for row in table.rows:
        scores = " / ".join(f"{figure.value:g}" for figure in figures[row.label]) or "none"
        how = f"configs/{row.config}.yaml" if row.config else f"no experiment: {row.note}"
        lines.append(f"{row.name:<18} {row.label:<26} {table.published}: {scores:<20} {how}")
    return "\n".join(_stripped(lines)) + "\n"


def _stripped(lines: Sequence[str]) -> list[str]:
    return [line.rstrip() for line in lines]
