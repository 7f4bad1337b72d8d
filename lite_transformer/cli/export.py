"""Exports a trained model to a folder that runs without torch and fairseq, on ONNX Runtime.

  lite-transformer export runs/NAME/checkpoint_best.pt --data DIR/bin --out DIR
  lite-transformer export runs/NAME/checkpoint_best.pt --data DIR/bin --out DIR --precision int8
  lite-transformer export --model NAME --out DIR
  lite-transformer export runs/NAME/checkpoint_best.pt --data DIR/bin --out DIR --precision int8 --shortlist DIR/bin
  lite-transformer translate --model DIR < text.de > text.en

CHECKPOINT is fairseq's, a file packed by `lite-transformer compress`, or the folder of a released model; --model takes
a released model by name. The folder holds two ONNX graphs of standard operators (the encoder, one decoding step), their
weights, dictionaries, subword model and text settings, with the sha256 of each file in edge.json. It appears when its
log-probabilities and hypotheses have been compared with the original's.

int8 is the fastest, about a quarter of fp32's bytes. int4 takes about two thirds of int8's, and runs in ONNX Runtime
alone: there, on a processor with AVX2, as fast as int8 greedily, slower with several beams and large batches.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from lite_transformer.errors import ConfigError, UnsupportedInputError
from lite_transformer.scoring.protocols import Search

SEARCH = ("beam", "lenpen", "max_len_a", "max_len_b", "min_len", "no_repeat_ngram_size")
PRECISIONS = ("fp32", "int8", "int4")  # without onnx, which `--help` should not need


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="a trained model")
    parser.add_argument("--model", metavar="NAME", help="a released model, by name or folder, instead of CHECKPOINT")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--data", type=Path, metavar="BIN", help="bin folder of the prepared corpus it was trained on")
    parser.add_argument(
        "--precision", default="fp32", metavar="|".join(PRECISIONS),
        help="of the weights (default fp32); int8 for speed, int4 only where bytes matter more",
    )  # fmt: skip
    parser.add_argument(
        "--shortlist", type=Path, metavar="BIN",
        help="add a shortlist from the training split in this bin folder, for translate --shortlist",
    )  # fmt: skip
    parser.add_argument(
        "--shortlist-size", type=int, metavar="N", help="target words that a source word allows (default 100)"
    )
    parser.add_argument(
        "--static-length", type=int, metavar="N",
        help="graphs of fixed shapes, as NPUs want them: N tokens in and out, one sentence, --beam beams",
    )  # fmt: skip
    parser.add_argument("--beam", type=int, metavar="N", help="beam width of translations (default: the model's, or 4)")
    parser.add_argument("--lenpen", type=float, metavar="X", help="length penalty (default: the model's, or 1)")
    parser.add_argument("--max-len-a", type=float, metavar="A", help="at most A * source length + B subwords (1.5)")
    parser.add_argument("--max-len-b", type=int, metavar="B", help="see --max-len-a (200)")
    parser.add_argument("--min-len", type=int, metavar="N", help="at least N subwords (1), as summaries want")
    parser.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="no n-gram of this size twice (0: any)")


def run(args: argparse.Namespace) -> int:
    if args.precision not in PRECISIONS:
        raise ConfigError(f"--precision {args.precision}: not one of {', '.join(PRECISIONS)}")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ConfigError(f"--out {args.out} exists already: choose another name, or delete it first")
    if args.shortlist_size is not None and (args.shortlist is None or args.shortlist_size < 1):
        raise ConfigError(f"--shortlist-size {args.shortlist_size}: at least 1 is needed, and --shortlist BIN")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install onnx onnxruntime") from None
    with contextlib.ExitStack() as stack:
        checkpoint, data, search = _model(args, stack)
        logging.getLogger("fairseq").setLevel(logging.WARNING)
        from data_prep.pipeline import load_pipelines
        from lite_transformer.compression.container import is_packed
        from lite_transformer.edge.export import export
        from lite_transformer.edge.shortlist import SIZE as SHORTLIST_SIZE
        from lite_transformer.scoring import decoding
        from lite_transformer.scoring.perplexity import is_language_model

        if checkpoint.is_file() and not is_packed(checkpoint) and is_language_model(checkpoint):
            raise UnsupportedInputError(
                f"{checkpoint} is a language model, which cannot be exported: the graphs are of an encoder and of a "
                "decoder that reads it, and have no adaptive softmax. Use it by: lite-transformer generate"
            )
        pipelines = load_pipelines(data)
        loaded = decoding.load([checkpoint], data, cpu=True)
        shortlist = None if args.shortlist is None else (args.shortlist, args.shortlist_size or SHORTLIST_SIZE)
        manifest = export(loaded, pipelines, data, args.out, args.precision, search, shortlist, args.static_length)
    size = sum(file["size_bytes"] for file in manifest.files.values())
    parity = manifest.parity
    sys.stdout.write(
        f"{args.out}: {args.precision}, {size / 1e6:.2f} MB. Log-probabilities differ from the original's by "
        f"{parity['mean_logprob_difference']:.1e} nats on average, {parity['max_logprob_difference']:.1e} at most; "
        f"{parity['same_best_hypothesis']} of {parity['sentences']} sentences have the same best hypothesis.\n"
    )
    return 0


def _model(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Path, Path, dict[str, Any]]:
    """Checkpoint, folder of dictionaries and text settings, and the search that the model is meant for."""
    from lite_transformer.compression.container import is_packed
    from lite_transformer.released.folder import check_folder, describe_known, find_model, known_models

    asked = {name: getattr(args, name) for name in SEARCH if getattr(args, name) is not None}
    if args.beam is not None and args.beam < 1:
        raise ConfigError(f"--beam {args.beam}: at least 1 is needed")
    Search(**{"max_len_a": 1.5, **asked}).check()
    if (args.checkpoint is None) == (args.model is None):
        raise ConfigError(f"give either CHECKPOINT or --model NAME. {describe_known(known_models())}")
    if args.model is not None or args.checkpoint.is_dir():
        if args.data is not None:
            raise ConfigError("a released model brings its own data: leave out --data")
        folder = find_model(args.model) if args.model is not None else args.checkpoint
        card = check_folder(folder)
        return folder / card.weights, folder, {"beam": card.beam, "lenpen": card.lenpen} | asked
    if args.data is not None:
        return args.checkpoint, args.data, asked
    if args.checkpoint.is_file() and is_packed(args.checkpoint):
        from lite_transformer.models.packed_checkpoint import write_texts

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if (folder / "prepare.json") in write_texts(args.checkpoint, folder):
            return args.checkpoint, folder, asked
    raise ConfigError(f"--data is missing: the bin folder that {args.checkpoint} was trained on")
