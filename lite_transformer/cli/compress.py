"""Compresses a trained model into one small file, by a recipe: pruning, fewer bits, entropy coding.

  lite-transformer compress runs/NAME/checkpoint_best.pt --data DIR/bin --out model.ltpack
  lite-transformer compress runs/NAME/checkpoint_best.pt --recipe paper --data DIR/bin --out model.ltpack --steps
  lite-transformer compress runs/NAME/checkpoint_best.pt --recipe my.yaml --out model.ltpack
  lite-transformer compress runs/NAME/checkpoint_best.pt --data DIR/bin --scan scan.json
  lite-transformer compress --list

The file is a model: `evaluate` and `translate` take it as --checkpoint, and compute with exactly the weights that
`decompress` writes. With --data it brings along what a translation needs besides: dictionaries, subword model, text
settings. `inspect` shows what its bytes are spent on; lite_transformer/compression/FORMAT.md describes them.

int8 needs no further training. Recipes that prune lose quality unless the model is trained on while its weights are
left out: the tasks compressed_translation and compressed_language_modeling do that (see lite_transformer/tasks), and
compress then packs the checkpoint with the same recipe. --scan measures which tensors bear pruning: the loss on a split
as each is pruned alone, as JSON and as a plot beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lite_transformer.errors import ConfigError

if TYPE_CHECKING:
    from lite_transformer.compression.recipes import Recipe
    from lite_transformer.scoring.decoding import Loaded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="a trained model")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the packed file to write")
    parser.add_argument("--recipe", default="int8", metavar="NAME", help="see --list, or a YAML file (default int8)")
    parser.add_argument("--list", action="store_true", help="list the recipes")
    parser.add_argument("--data", type=Path, metavar="BIN", help="data folder whose dictionaries the file brings along")
    parser.add_argument("--core-out", type=Path, metavar="FILE", help="write the core alone as well, to be measured")
    parser.add_argument("--steps", action="store_true", help="print what each step of the recipe saves")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    scan = parser.add_argument_group("which tensors bear pruning (needs --data)")
    scan.add_argument("--scan", type=Path, metavar="FILE", help="measure, write JSON here and a plot as FILE.png")
    scan.add_argument("--split", default="valid", metavar="NAME", help="where the loss is measured (default valid)")
    scan.add_argument(
        "--sentences", type=int, default=500, metavar="N", help="the first N of the split (default 500; of a text, all)"
    )
    scan.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.7, 0.9], metavar="P",
                      help="parts of a tensor that are left out (default 0.5 0.7 0.9)")  # fmt: skip
    scan.add_argument("--cpu", action="store_true", help="do not use a GPU")


def run(args: argparse.Namespace) -> int:
    from lite_transformer.compression.recipes import known_recipes, load_recipe

    if args.list:
        recipes = [load_recipe(name) for name in known_recipes()]
        if args.json:
            sys.stdout.write(json.dumps([recipe.to_json() for recipe in recipes]) + "\n")
        else:
            sys.stdout.write("".join(f"{recipe.name:<14} {recipe.description}\n" for recipe in recipes))
        return 0
    if args.checkpoint is None:
        raise ConfigError("which checkpoint? lite-transformer compress CHECKPOINT --out FILE")
    if args.scan is not None:
        return _scan(args)
    if args.out is None:
        raise ConfigError(f"--out is missing: lite-transformer compress {args.checkpoint} --out FILE")
    return _compress(args, load_recipe(args.recipe))


def _compress(args: argparse.Namespace, recipe: Recipe) -> int:
    from tqdm import tqdm

    from lite_transformer.cli.inspect import render
    from lite_transformer.compression import packed, sizes
    from lite_transformer.models import packed_checkpoint

    def progress(items):
        return tqdm(items, desc=f"compress ({recipe.name})", unit="tensor", disable=None, leave=False)

    if not args.out.parent.is_dir():
        raise ConfigError(f"--out {args.out}: there is no folder {args.out.parent}")
    texts: Mapping[str, bytes] = {}
    if args.data is not None:
        texts = packed_checkpoint.texts_of(args.checkpoint, args.data)
    elif packed.is_packed(args.checkpoint):
        texts = packed.read(args.checkpoint).texts
    model = packed_checkpoint.pack_checkpoint(args.checkpoint, recipe, texts, progress)
    packed.write(args.out, model)
    if args.core_out is not None:
        packed.write(args.core_out, sizes.core_only(model))
    report = sizes.report(args.out)
    if args.core_out is not None:
        report["core_file_bytes"] = args.core_out.stat().st_size
    if args.steps:
        report["steps"] = packed_checkpoint.steps(args.checkpoint, recipe, model)
    if args.json:
        sys.stdout.write(json.dumps(report) + "\n")
        return 0
    text = render(report)
    if args.core_out is not None:
        text += f"\n{args.core_out}: the core alone, {report['core_file_bytes']:,} bytes\n"
    if args.steps:
        text += "\n" + "".join(
            f"{row['step']:<32} core {row['core_bytes'] / 1e6:9.3f} MB   everything {row['bytes'] / 1e6:9.3f} MB\n"
            for row in report["steps"]
        )
    if not texts:
        text += "\nwithout dictionaries and text settings: give --data to bring them along\n"
    sys.stdout.write(text)
    return 0


def _scan(args: argparse.Namespace) -> int:
    import logging

    from tqdm import tqdm

    from data_prep.io import write_json
    from lite_transformer.compression import apply, plots, pruning
    from lite_transformer.compression.recipes import load_recipe
    from lite_transformer.scoring import decoding, perplexity

    if args.data is None:
        raise ConfigError("--scan needs --data, the binarized data whose loss is measured")
    if not all(0 <= wanted < 1 for wanted in args.sparsities):
        raise ConfigError(f"--sparsities {args.sparsities}: parts of a tensor, from 0 to below 1")
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    is_text = perplexity.is_language_model(args.checkpoint)
    if is_text:
        perplexity.check_data(args.data, args.split)
    else:
        decoding.check_data(args.data, args.split, decoding.languages_of(args.checkpoint))
    loaded = decoding.load([args.checkpoint], args.data, args.cpu)
    loss, sentences = _text_loss(loaded, args) if is_text else _loss(loaded, args)
    weights = {name: weight.data for name, weight in loaded.models[0].named_parameters()}
    weights = {name: weights[name] for name in apply.targets(weights, load_recipe(args.recipe)).quantized}

    def progress(items):
        return tqdm(items, desc="scan", unit="pruned tensor", disable=None, leave=False)

    result = {
        "checkpoint": str(args.checkpoint),
        "data": str(args.data),
        "split": args.split,
        "sentences": sentences,
        "measure": "negative log-likelihood of a target token, in bits",
        "dense": loss(),
        "sparsities": args.sparsities,
        "pruned_alone": pruning.scan(weights, loss, args.sparsities, progress),
        "parameters": {name: weight.numel() for name, weight in weights.items()},
    }
    args.scan.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.scan, result)
    plot = plots.write_scan(result, args.scan.with_suffix(".png"))
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    dense = result["dense"]
    lines = [f"{args.split}: {dense:.4f} bits a token; growth with one tensor pruned to {args.sparsities}:"]
    for name, found in sorted(result["pruned_alone"].items(), key=lambda item: -item[1][-1]):
        lines.append(f"{name:<60} {'  '.join(f'{value - dense:+.4f}' for value in found)}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(f"written: {args.scan}, {plot}\n")
    return 0


def _loss(loaded: Loaded, args: argparse.Namespace) -> tuple[Callable[[], float], int | None]:
    """The loss of a translation model, in bits a token, and on how many sentences."""
    from lite_transformer.scoring import likelihood

    loss = likelihood.Loss(loaded, args.split, args.sentences)
    return loss, loss.sentences


def _text_loss(loaded: Loaded, args: argparse.Namespace) -> tuple[Callable[[], float], int | None]:
    """That of a language model, on the whole split."""
    from lite_transformer.scoring import perplexity
    from lite_transformer.scoring.text_protocols import usual_protocol

    protocol = usual_protocol(int(loaded.models[0].max_positions()))
    return lambda: perplexity.score_split(loaded, args.data, args.split, protocol, "none")[0].bits_per_token, None
