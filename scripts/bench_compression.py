#!/usr/bin/env python
"""What every recipe makes of a trained model: sizes in both accountings, score, time; a table, a record and a plot.

  scripts/bench_compression.py runs/NAME/checkpoint_best.pt --data data/NAME/bin
  scripts/bench_compression.py CHECKPOINT --data BIN --trained paper=runs/NAME.paper/checkpoint_best.pt
      --beam 5 --record results/compression/NAME.json --plot results/plots/NAME-compression.png

Every recipe packs CHECKPOINT as it is, and those given with --trained also the checkpoint that was trained on by that
recipe (task compressed_translation). Each file is evaluated through `lite-transformer evaluate`, and compared with the
fp32 model by sacreBLEU's paired bootstrap. Sizes are those of files on disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _benchmark import provenance
from tqdm import tqdm

from data_prep.io import read_json, sha256, write_json
from lite_transformer.compression import packed
from lite_transformer.compression.recipes import known_recipes, load_recipe
from lite_transformer.models.safe_load import load_checkpoint


def command(*words: Any) -> dict[str, Any]:
    """The JSON that a verb of lite-transformer prints."""
    line = [sys.executable, "-m", "lite_transformer.cli.main", *map(str, words), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"lite-transformer {' '.join(map(str, words))}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def evaluated(path: Path, args: argparse.Namespace, output: Path) -> dict[str, float]:
    """The scores of a model on the split, by metric; its translations are written to ``output``."""
    words = ["--checkpoint", path, "--data", args.data, "--split", args.split, "--beam", args.beam]
    words += ["--output", output, *(["--cpu"] if args.cpu else [])]
    return {score["metric"]: score["value"] for score in command("evaluate", *words)["scores"]}


def measured(recipe: str, checkpoint: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A row: the checkpoint packed by the recipe, its sizes, times and scores."""
    path, core = folder / "model.ltpack", folder / "core.ltpack"
    words = [checkpoint, "--recipe", recipe, "--data", args.data, "--out", path, "--core-out", core, "--steps"]
    started = time.monotonic()
    report = command("compress", *words)
    seconds = time.monotonic() - started
    started = time.monotonic()
    packed.read(path)
    return {
        "recipe": recipe,
        "core_file_bytes": report["core_file_bytes"],
        "file_bytes": report["size_bytes"],
        "core_ratio": round(report["core"]["fp32_bytes"] / report["core_file_bytes"], 2),
        "ratio": report["everything"]["ratio"],
        "core_sparsity": report["core"]["sparsity"],
        "core_bits_per_parameter": report["core"]["bits_per_parameter"],
        "embeddings_bits_per_parameter": report["embeddings"]["bits_per_parameter"],
        "steps": report["steps"],
        "compress_seconds": round(seconds, 1),
        "read_seconds": round(time.monotonic() - started, 2),
    } | {"scores": evaluated(path, args, folder / "translations.txt")}


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The fp32 model and every recipe, with p-values of the paired bootstrap against fp32 where there is raw text."""
    trained = dict(item.split("=", 1) for item in args.trained)
    for name in [*args.recipes, *trained]:
        load_recipe(name)
    jobs = [(name, args.checkpoint, False) for name in args.recipes]
    jobs += [(name, Path(path), True) for name, path in trained.items()]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        baseline = folder / "fp32.txt"
        weights = load_checkpoint(args.checkpoint)["model"]
        slim = folder / "fp32.pt"  # weights alone, as a user would ship them
        torch.save({name: weight.float() for name, weight in weights.items()}, slim)
        scores = evaluated(args.checkpoint, args, baseline)
        found.append({"recipe": "fp32", "trained": True, "file_bytes": slim.stat().st_size, "scores": scores})
        reference = args.data.parent / "raw" / f"{args.split}.{_target(args)}"
        for name, checkpoint, is_trained in tqdm(jobs, desc="recipes", unit="recipe", disable=None):
            row = measured(name, checkpoint, args, folder) | {"trained": is_trained, "sha256": sha256(checkpoint)}
            if reference.is_file():
                systems = [baseline, folder / "translations.txt"]
                result = command("compare", *systems, "--reference", reference, "--metric", "sacrebleu")
                row["p_value"] = result["comparisons"][0]["systems"][1]["p_value"]
            found.append(row)
    return found


def _target(args: argparse.Namespace) -> str:
    return str(load_checkpoint(args.checkpoint)["cfg"]["task"]["target_lang"])


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row a file; differences are to fp32."""
    metric = "sacrebleu" if "sacrebleu" in found[0]["scores"] else "tokenized_bleu"
    head = [
        "recipe",
        "trained on",
        "core MB",
        "times",
        "file MB",
        "times",
        "zeros",
        "bits each",
        metric,
        "difference",
        "p",
    ]
    lines = [" | ".join(head), " | ".join(["---", "---", *["---:"] * (len(head) - 2)])]
    for row in found:
        score = row["scores"][metric]
        cells = [row["recipe"], "" if row["recipe"] == "fp32" else "yes" if row["trained"] else "no"]
        if row["recipe"] == "fp32":
            cells += ["", "", f"{row['file_bytes'] / 1e6:.2f}", "", "", "", f"{score:.2f}", "", ""]
        else:
            cells += [f"{row['core_file_bytes'] / 1e6:.3f}", str(row["core_ratio"])]
            cells += [f"{row['file_bytes'] / 1e6:.3f}", str(row["ratio"]), f"{100 * row['core_sparsity']:.0f} %"]
            cells += [str(row["core_bits_per_parameter"]), f"{score:.2f}", f"{score - found[0]['scores'][metric]:+.2f}"]
            cells += [f"{row['p_value']:.3f}" if "p_value" in row else ""]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def write_plot(found: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """The score of every file against its size; filled where it was trained on by its recipe."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = "sacrebleu" if "sacrebleu" in found[0]["scores"] else "tokenized_bleu"
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, name in enumerate(dict.fromkeys(row["recipe"] for row in found)):
        for row in (row for row in found if row["recipe"] == name):
            filled = f"C{number}" if row["trained"] else "none"
            label = name if name == "fp32" else f"{name}{', trained on' if row['trained'] else ''}"
            axes.plot(
                row["file_bytes"] / 1e6,
                row["scores"][metric],
                "o",
                color=f"C{number}",
                markerfacecolor=filled,
                label=label,
            )
    axes.axhline(found[0]["scores"][metric], color="0.7", linewidth=0.8)
    axes.set(
        xscale="log", xlabel="size of the file with dictionaries and subword model, MB", ylabel=metric, title=title
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a trained model, fp32")
    parser.add_argument("--data", type=Path, required=True, metavar="BIN", help="the bin folder of its corpus")
    parser.add_argument("--recipes", nargs="+", default=list(known_recipes()), metavar="NAME", help="default: all")
    parser.add_argument(
        "--trained", nargs="+", default=[], metavar="RECIPE=PT", help="checkpoints trained on by a recipe"
    )
    parser.add_argument("--split", default="test", metavar="NAME", help="what is translated (default test)")
    parser.add_argument("--beam", type=int, default=5, metavar="N", help="beam width (default 5)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG of score against size")
    parser.add_argument("--commit", metavar="HASH", help="of the code, where there is no git checkout")
    words = list(sys.argv[1:] if words is None else words)
    args = parser.parse_args(words)
    found = rows(args)
    print(table(found), end="")
    if args.record is not None:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        device = "cpu" if args.cpu or not torch.cuda.is_available() else "cuda"
        prepared = args.data / "prepare.json"
        what = {
            "checkpoint_sha256": sha256(args.checkpoint),
            "corpus": read_json(prepared).get("corpus") if prepared.is_file() else None,
            "split": args.split,
            "rows": found,
        }
        write_json(args.record, provenance("bench_compression.py", words, device, args.commit) | what)
    if args.plot is not None:
        write_plot(found, args.plot, args.data.parent.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
