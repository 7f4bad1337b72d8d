"""Renders results/tables.md and the plots from the records in results/runs and from results/literature.json.

  lite-transformer results
  lite-transformer results --check      exit code 2 if tables.md is not what the records give

A record is written by `lite-transformer evaluate --record results/runs/NAME.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lite_transformer import results
from lite_transformer.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir", type=Path, default=Path("results"), metavar="DIR", help="results folder (default results)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; compare tables.md with the records")
    parser.add_argument("--no-plots", action="store_true", help="write the tables only")


def run(args: argparse.Namespace) -> int:
    if not args.dir.is_dir():
        raise DataError(f"--dir {args.dir}: no such folder. Give the folder that holds {results.RUNS}/")
    if args.check:
        results.check_tables(args.dir)
        sys.stdout.write(f"{args.dir / results.TABLES} is what the records give\n")
        return 0
    written = [results.write_tables(args.dir)]
    if not args.no_plots:
        written += results.write_plots(args.dir)
    sys.stdout.write("".join(f"wrote {path}\n" for path in written))
    return 0
