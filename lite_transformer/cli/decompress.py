"""Turns a packed model file back into an ordinary checkpoint, with the dequantized weights.

  lite-transformer decompress model.ltpack --out checkpoint.pt
  lite-transformer decompress model.ltpack --out checkpoint.pt --data-out DIR
  lite-transformer decompress model.ltpack --data-out DIR

`evaluate` and `translate` take a packed file as it is; fairseq's own commands, and training that goes on from it
(checkpoint.finetune_from_model), need a checkpoint. The dictionaries, the subword model and prepare.json that the file
brings along are written with --data-out: a folder to give as --data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lite_transformer.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a file that compress wrote")
    parser.add_argument("--out", type=Path, metavar="PT", help="the checkpoint to write")
    parser.add_argument("--data-out", type=Path, metavar="DIR", help="a folder for dictionaries and text settings")


def run(args: argparse.Namespace) -> int:
    if args.out is None and args.data_out is None:
        raise ConfigError("nothing to write: give --out CHECKPOINT.pt, --data-out DIR, or both")
    from lite_transformer.models import packed_checkpoint

    if args.out is not None:
        packed_checkpoint.write_checkpoint(args.file, args.out)
        sys.stdout.write(f"{args.out}: {args.out.stat().st_size / 1e6:.3f} MB\n")
    if args.data_out is not None:
        written = packed_checkpoint.write_texts(args.file, args.data_out)
        names = ", ".join(path.relative_to(args.data_out).as_posix() for path in written)
        sys.stdout.write(f"{args.data_out}: {names or 'nothing, the file was made without --data'}\n")
    return 0
