"""Renders results/tables.md and the plots from the records in results/runs and from results/literature.json.

  lite-transformer results
  lite-transformer results --into README.md   also fills the file's blocks <!-- results: TASK --> ... <!-- end -->
  lite-transformer results --check            exit code 2 if the files are not what the records give

A record is written by `lite-transformer evaluate --record results/runs/NAME.json`. Blocks <!-- speed: NAME --> show
results/speed/NAME.json, which scripts/bench_ops.py and scripts/bench_training.py write.
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
    parser.add_argument("--into", type=Path, nargs="+", default=[], metavar="FILE", help="files with blocks to fill")
    parser.add_argument("--check", action="store_true", help="write nothing; compare the files with the records")
    parser.add_argument("--no-plots", action="store_true", help="write the tables only")


def run(args: argparse.Namespace) -> int:
    if not args.dir.is_dir():
        raise DataError(f"--dir {args.dir}: no such folder. Give the folder that holds {results.RUNS}/")
    for path in args.into:
        if not path.is_file():
            raise DataError(f"--into {path}: no such file")
    if args.check:
        results.check_tables(args.dir)
        for path in args.into:
            results.check_blocks(path, args.dir)
        names = ", ".join(map(str, [args.dir / results.TABLES, *args.into]))
        sys.stdout.write(f"what the records give: {names}\n")
        return 0
    written = [results.write_tables(args.dir)] + [results.write_blocks(path, args.dir) for path in args.into]
    if not args.no_plots:
        written += results.write_plots(args.dir)
    sys.stdout.write("".join(f"wrote {path}\n" for path in written))
    return 0
