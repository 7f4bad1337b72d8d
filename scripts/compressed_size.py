#!/usr/bin/env python
"""How large the file of an architecture becomes, without having trained it: weights drawn from a trained model.

  scripts/compressed_size.py --weights-of runs/small/checkpoint_best.pt
  scripts/compressed_size.py --weights-of CHECKPOINT --recipe paper --record results/compression/wmt14_en_fr_496.json
  scripts/compressed_size.py --distribution normal                      Gaussian weights instead

Every tensor of the architecture is filled from the tensors of the same name (without the number of the layer) of the
trained model: elements are drawn with replacement, independently, and multiplied by the square root of the ratio of
the two fan-ins, as initialisation does. So the distribution of the values is a trained one, and any structure of rows
and columns, which could only make the file smaller, is lost. The size of a file depends on the weights by their
distribution alone; how well the model would translate cannot be seen here. Sizes are those of files that are written.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from _benchmark import provenance
from fairseq.data import Dictionary
from tqdm import tqdm

from data_prep.io import sha256, write_json
from lite_transformer.compression import apply, packed, sizes
from lite_transformer.compression.packed import PackedModel
from lite_transformer.compression.recipes import load_recipe
from lite_transformer.models.lite_transformer import MODEL_CLASSES, resolved_config
from lite_transformer.models.safe_load import load_checkpoint

_LAYER = re.compile(r"\.layers\.\d+\.")


def model_weights(arch: str, vocabulary: int) -> dict[str, torch.Tensor]:
    """The initial weights of an architecture with one shared embedding table for so many types."""
    dictionary = Dictionary()
    for number in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(str(number))
    config = resolved_config(arch, share_all_embeddings=True)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    torch.manual_seed(1)
    return MODEL_CLASSES["lite_transformer"].build_model(config, task).state_dict()


def fan_in(weight: torch.Tensor) -> int:
    return weight.shape[-1] if weight.dim() > 1 else 1


def drawn(weights: dict[str, torch.Tensor], trained: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """The weights replaced by ones drawn from the trained model, or Gaussian ones; shared tables stay shared."""
    pools: dict[str, list[torch.Tensor]] = {}
    for name, weight in (trained or {}).items():
        pools.setdefault(_LAYER.sub(".layers.", name), []).append(weight.float())
    generator = torch.Generator().manual_seed(1)
    shared = apply.shared_names(weights)
    found: dict[str, torch.Tensor] = {}
    for name, weight in tqdm(weights.items(), desc="draw", unit="tensor", disable=None):
        if shared[name] != name:
            found[name] = found[shared[name]]
        elif weight.numel() == 1:  # fairseq's version numbers
            found[name] = weight
        elif trained is None:
            found[name] = torch.randn(weight.shape, generator=generator) * float(weight.std())
        else:
            pool = _pool(pools, _LAYER.sub(".layers.", name))
            scale = (fan_in(pool[0]) / fan_in(weight)) ** 0.5 if weight.dim() > 1 else 1.0
            values = torch.cat([item.flatten() for item in pool])
            chosen = torch.randint(values.numel(), (weight.numel(),), generator=generator)
            found[name] = (values[chosen] * scale).view(weight.shape)
    return found


def _pool(pools: dict[str, list[torch.Tensor]], name: str) -> list[torch.Tensor]:
    """The trained tensors of a name; for kernel generators of a model that has none, those of the linear beside it."""
    for candidate in (name, name.replace("weight_linear.weight", "linear1.weight")):
        if candidate in pools:
            return pools[candidate]
    raise SystemExit(f"the trained model has no {name}")


def measure(weights: dict[str, torch.Tensor], recipe_name: str) -> dict[str, Any]:
    """Sizes in bytes of the file of the core, and of everything, as written; and what they are spent on."""
    recipe = load_recipe(recipe_name)
    started = time.monotonic()
    tensors = apply.compress(weights, recipe, lambda items: tqdm(items, desc="compress", unit="tensor", disable=None))
    compressed = time.monotonic()
    model = PackedModel({"recipe": recipe.to_json()}, tensors, frozenset(filter(apply.is_embedding, tensors)))
    with tempfile.TemporaryDirectory() as folder:
        everything, core = Path(folder) / "model.ltpack", Path(folder) / "core.ltpack"
        packed.write(everything, model)
        written = time.monotonic()
        packed.write(core, sizes.core_only(model))
        report = sizes.report(everything)
        reading = time.monotonic()
        packed.read(everything)
        read = time.monotonic()
        core_bytes = core.stat().st_size
    return {
        "recipe": recipe.to_json(),
        "core_file_bytes": core_bytes,
        "core_times_smaller_than_transformer_base": round(4 * sizes.TRANSFORMER_BASE_CORE_PARAMS / core_bytes, 2),
        "file_bytes": report["size_bytes"],
        "core": report["core"],
        "embeddings": report["embeddings"],
        "sections_bytes": report["sections_bytes"],
        "compress_seconds": round(compressed - started, 1),
        "write_seconds": round(written - compressed, 1),
        "read_seconds": round(read - reading, 1),
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="lite_transformer_wmt_en_fr", help="architecture (default: %(default)s, 496)")
    parser.add_argument("--vocabulary", type=int, default=44512, metavar="V", help="types (default 44512, as En-Fr)")
    parser.add_argument("--recipe", nargs="+", default=["paper"], metavar="NAME", help="recipes (default paper)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights-of", type=Path, metavar="PT", help="draw the weights from this trained model")
    source.add_argument("--distribution", choices=["normal"], help="instead of a trained model's")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--commit", metavar="HASH", help="of the code, where there is no git checkout")
    words = list(sys.argv[1:] if words is None else words)
    args = parser.parse_args(words)
    trained, origin = None, {"distribution": args.distribution}
    if args.weights_of is not None:
        state = load_checkpoint(args.weights_of)
        trained = state["model"]
        updates = state["optimizer_history"][-1].get("num_updates")
        origin = {"weights_of": args.weights_of.name, "sha256": sha256(args.weights_of), "updates": updates}
        origin["parameters"] = sum(item.numel() for item in trained.values())
    weights = drawn(model_weights(args.arch, args.vocabulary), trained)
    results = {name: measure(weights, name) for name in args.recipe}
    for name, result in results.items():
        print(
            f"{name}: core {result['core_file_bytes'] / 1e6:.3f} MB, "
            f"{result['core_times_smaller_than_transformer_base']} times below Transformer base's core, "
            f"{100 * result['core']['sparsity']:.1f} % zeros; with {args.vocabulary:,} embeddings "
            f"{result['file_bytes'] / 1e6:.3f} MB; compressed in {result['compress_seconds']} s, written in "
            f"{result['write_seconds']} s, read in {result['read_seconds']} s"
        )
    if args.record is not None:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        # the folder is this machine's; the record has the file's hash
        words = [args.weights_of.name if word == str(args.weights_of) else word for word in words]
        what = {"arch": args.arch, "vocabulary": args.vocabulary, "weights": origin, "results": results}
        write_json(args.record, provenance("compressed_size.py", words, "cpu", args.commit) | what)
    return 0


if __name__ == "__main__":
    sys.exit(main())
