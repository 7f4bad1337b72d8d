"""Makes a released model of a training run: a folder that `lite-transformer translate --model` uses as it is.

  lite-transformer release runs/X --average-last 10 --data DIR/bin --out checkpoints/NAME --record results/runs/X.json
  lite-transformer release A.pt B.pt --data DIR/bin --out checkpoints/NAME

  lite-transformer release runs/X.int8 --recipe int8 --data DIR/bin --out checkpoints/NAME --force

Several checkpoints are averaged. The weights are stored as fp16, or packed by the --recipe of `lite-transformer
compress`; beside them dictionaries, subword codes, text settings, a card for programs (card.json) and its page for
people (README.md). Scores and history come from run records that `evaluate --record` wrote. Lines of the test set are
translated with the weights as stored and in fp32; unless the outputs agree, nothing is made. The folder appears when it
is complete.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from lite_transformer.errors import CheckpointError, ConfigError
from lite_transformer.scoring.protocols import Search


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT",
        help="files of one run, to be averaged; or its folder: checkpoint_best.pt, or the last --average-last N epochs",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, metavar="BIN", help="the bin folder it was trained on")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make; its name is the model's"
    )
    parser.add_argument("--average-last", type=int, metavar="N", help="average the last N epochs of the folder")
    parser.add_argument(
        "--record", type=Path, nargs="+", default=[], metavar="JSON", help="run records of it: scores, history"
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="store a packed file, compressed by this recipe (default fp16)"
    )
    parser.add_argument("--force", action="store_true", help="replace a released model")
    search = parser.add_argument_group("what translate takes")
    search.add_argument("--beam", type=int, default=4, metavar="N", help="beam width (default 4)")
    search.add_argument("--lenpen", type=float, default=1.0, metavar="X", help="length penalty (default 1)")
    check = parser.add_argument_group("checks")
    check.add_argument("--split", default="test", metavar="NAME", help="whose lines compare it with fp32 (test)")
    check.add_argument(
        "--check-lines", type=int, default=200, metavar="N", help="how many, evenly spaced (default 200)"
    )
    check.add_argument(
        "--max-megabytes", type=float, default=15.0, metavar="X", help="refuse a larger model (default 15, for git)"
    )
    card = parser.add_argument_group("card (defaults: what the data, the records and the checkpoint say)")
    card.add_argument("--licence", metavar="TEXT", help="of the weights (default: as the data)")
    card.add_argument("--intended-use", metavar="TEXT", help="in place of the usual sentence")
    card.add_argument("--limit", nargs="+", default=[], metavar="TEXT", help="limits to add to the usual ones")
    card.add_argument("--commit", metavar="HASH", help="of the training (default: the records' or train.json's)")
    card.add_argument("--macs-lengths", type=int, nargs=2, default=(30, 30), metavar=("S", "T"),
                      help="lengths of the pass whose Mult-Adds are given (default 30 30)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.check_lines < 1:
        raise ConfigError(f"--check-lines {args.check_lines}: at least 1 is needed")
    search = Search(beam=args.beam, lenpen=args.lenpen)
    search.check()
    for name in ("fairseq", "lite_transformer.models.averaging"):  # of files that are gone when the verb ends
        logging.getLogger(name).setLevel(logging.WARNING)
    checkpoints = _checkpoints(args)
    from lite_transformer.released.making import Release, make_release

    card = make_release(
        Release(
            checkpoints=checkpoints,
            data=args.data,
            out=args.out,
            records=args.record,
            split=args.split,
            check_lines=args.check_lines,
            search=search,
            source_length=args.macs_lengths[0],
            target_length=args.macs_lengths[1],
            recipe=args.recipe,
            licence=args.licence,
            intended_use=args.intended_use,
            limits=args.limit,
            commit=args.commit,
            max_bytes=int(args.max_megabytes * 1e6),
            force=args.force,
            command=["lite-transformer", *sys.argv[1:]],
        )
    )
    sys.stdout.write(
        f"{card.name}: {card.source_language}-{card.target_language}, {card.cost.macs / 1e6:.1f}M Mult-Adds, "
        f"{card.cost.params_total:,} parameters, {card.size_bytes:,} bytes, "
        f"{len(card.scores) or 'no'} scores; {card.stored} against fp32: {card.fidelity}.\n"
        f"Released in {args.out}. Next: lite-transformer translate --model {args.out}\n"
    )
    return 0


def _checkpoints(args: argparse.Namespace) -> list[Path]:
    """The files whose weights are averaged."""
    if args.average_last is None:
        return [path / "checkpoint_best.pt" if path.is_dir() else path for path in args.checkpoints]
    if len(args.checkpoints) > 1:
        raise CheckpointError("--average-last averages the checkpoints of one folder: give one CHECKPOINT")
    from lite_transformer.models.averaging import last_epochs

    folder = args.checkpoints[0] if args.checkpoints[0].is_dir() else args.checkpoints[0].parent
    return last_epochs(folder, args.average_last)
