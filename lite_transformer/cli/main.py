"""Entry point of ``lite-transformer VERB``: finds the verb's module, runs it, turns errors into one line."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lite_transformer import __version__
from lite_transformer.errors import LiteTransformerError

# verb -> one line of help. The module lite_transformer.cli.VERB holds add_arguments(parser) and run(args) -> int;
# it is imported only when its verb is typed, so that `lite-transformer --help` stays instant.
VERBS = {
    "prepare": "download or read a corpus; clean, tokenize, split and binarize it",
    "train": "train an experiment of configs/ (or any fairseq YAML) on one or more processes",
    "evaluate": "average checkpoints, translate a test set and score it, with the protocol named",
    "compare": "compare systems on one test set, with a paired significance test",
    "translate": "translate raw text with a released or a trained model",
    "release": "make a released model of checkpoints: fp16 weights, dictionaries, codes, a model card",
    "reproduce": "prepare, train, evaluate and tabulate: every row of a table of the paper, or of ours",
    "compress": "prune and quantize a trained model into one small file, by a recipe",
    "inspect": "show what a compressed file holds and what its bytes are spent on",
    "decompress": "turn a compressed file back into a checkpoint",
    "export": "write a model as a folder that translates without torch and fairseq",
    "generate": "continue a text with a trained language model",
    "macs": "print Mult-Adds and parameters of an architecture beside the published figures",
    "results": "render the tables and plots of results/ from its run records",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as of every other error; the usage alone would be several."""
        self.exit(2, f"{self.prog}: {message}. The options: {self.prog} --help\n")


def _parser_for(verb: str) -> tuple[argparse.ArgumentParser, object]:
    module = importlib.import_module(f"lite_transformer.cli.{verb}")
    parser = _Parser(
        prog=f"lite-transformer {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser, module


def _overview() -> str:
    lines = [f"lite-transformer {__version__}: usage: lite-transformer VERB [options]", ""]
    lines += [f"  {verb:<10} {text}" for verb, text in VERBS.items()]
    lines += ["", "lite-transformer VERB --help explains a verb."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input (one line on stderr, no traceback)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_overview() + "\n")
        return 0 if argv else 2
    if argv[0] == "--version":
        sys.stdout.write(__version__ + "\n")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        sys.stderr.write(f"lite-transformer: unknown verb '{verb}'. Known verbs: {', '.join(VERBS)}\n")
        return 2
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=os.environ.get("LOGLEVEL", "INFO").upper(),
        stream=sys.stderr,
    )
    try:
        parser, module = _parser_for(verb)
        return int(module.run(parser.parse_args(rest)) or 0)  # type: ignore[attr-defined]
    except LiteTransformerError as error:
        sys.stderr.write(f"lite-transformer {verb}: {' '.join(str(error).split())}\n")
        return 2
    except BrokenPipeError:
        # the reader of our output (head, less) went away: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write(f"lite-transformer {verb}: interrupted; run the same command again to go on\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
