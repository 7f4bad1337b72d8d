#!/usr/bin/env python
"""What every recipe makes of a trained model: sizes in both accountings, score, times; a table and a record.

  scripts/bench_compression.py runs/NAME/checkpoint_best.pt --data data/NAME/bin
  scripts/bench_compression.py CHECKPOINT --data BIN --trained paper=runs/NAME.paper/checkpoint_best.pt
      --record results/compression/NAME.json

Every recipe packs CHECKPOINT as it is, and those given with --trained also the checkpoint that was trained on by that
recipe (task compressed_translation). Each file is evaluated through `lite-transformer evaluate`, and compared with the
fp32 model by sacreBLEU's paired bootstrap. Sizes are those of files on disk. `lite-transformer results` shows the
records: seeds of a model are one row there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from _benchmark import provenance
from tqdm import tqdm

from data_prep.io import read_json, sha256, write_json
from lite_transformer.compression import apply, packed, tables
from lite_transformer.compression.recipes import known_recipes, load_recipe
from lite_transformer.macs.counter import count_model
from lite_transformer.models import packed_checkpoint
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.scoring import decoding


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
    words += ["--lenpen", args.lenpen, "--batch-size", args.batch_size, "--output", output]
    words += ["--cpu"] if args.cpu else []
    return {score["metric"]: score["value"] for score in command("evaluate", *words)["scores"]}


def dense_row(args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """The fp32 model: weights alone, as a user would ship them, with the texts that a packed file holds."""
    weights = load_checkpoint(args.checkpoint)["model"]
    shared = apply.shared_names(weights)
    single = {name: weight for name, weight in weights.items() if shared[name] == name}
    with tempfile.TemporaryDirectory() as temporary:
        slim = Path(temporary) / "fp32.pt"
        torch.save({name: weight.float() for name, weight in single.items()}, slim)
        size = slim.stat().st_size
    texts = set(packed_checkpoint.texts_of(args.checkpoint, args.data).values())
    return {
        "recipe": "fp32",
        "trained": False,
        "file_bytes": size + sum(map(len, texts)),
        "scores": evaluated(args.checkpoint, args, output),
    }


def packed_row(recipe: str, checkpoint: Path, trained: bool, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A row: the checkpoint packed by the recipe into ``folder``, its sizes, times and scores."""
    folder.mkdir(parents=True, exist_ok=True)
    path, core = folder / "model.ltpack", folder / "core.ltpack"
    words = [checkpoint, "--recipe", recipe, "--data", args.data, "--out", path, "--core-out", core]
    started = time.monotonic()
    report = command("compress", *words)
    seconds = time.monotonic() - started
    started = time.monotonic()
    load_checkpoint(path)
    loaded = time.monotonic() - started
    known = load_recipe(recipe)
    return {
        "recipe": known.name,
        "description": known.description,
        "trained": trained,
        "checkpoint_sha256": sha256(checkpoint),
        "sha256": sha256(path),
        "core_file_bytes": report["core_file_bytes"],
        "file_bytes": report["size_bytes"],
        "core_ratio": round(report["core"]["fp32_bytes"] / report["core_file_bytes"], 2),
        "ratio": report["everything"]["ratio"],
        "core_sparsity": report["core"]["sparsity"],
        "core_code_bits": report["core"]["code_bits"],
        "core_bits_per_parameter": report["core"]["bits_per_parameter"],
        "embeddings_code_bits": report["embeddings"]["code_bits"],
        "embeddings_bits_per_parameter": report["embeddings"]["bits_per_parameter"],
        "steps": packed_checkpoint.steps(checkpoint, known, packed.read(path)),
        "compress_seconds": round(seconds, 1),
        "load_seconds": round(loaded, 3),
        "scores": evaluated(path, args, folder / "translations.txt"),
    }


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The fp32 model and every recipe, with p-values of the paired bootstrap against fp32 where there is raw text."""
    todo = [(name, args.checkpoint, False) for name in args.recipes]
    todo += [(name, Path(path), True) for name, path in (item.split("=", 1) for item in args.trained)]
    for name, *_ in todo:
        load_recipe(name)
    reference = args.data.parent / "raw" / f"{args.split}.{_target(args)}"
    with contextlib.ExitStack() as stack:
        folder = args.files or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        places = [folder / f"{load_recipe(name).name}{'.trained' if trained else ''}" for name, _, trained in todo]
        pool = stack.enter_context(ThreadPoolExecutor(args.jobs))
        work = [pool.submit(dense_row, args, folder / "fp32.txt")]
        work += [pool.submit(packed_row, *what, args, place) for what, place in zip(todo, places, strict=True)]
        done = tqdm(as_completed(work), total=len(work), desc="recipes", unit="file", disable=None)
        for _ in done:
            pass
        found = [item.result() for item in work]
        if reference.is_file():
            for row, place in zip(found[1:], places, strict=True):
                systems = [folder / "fp32.txt", place / "translations.txt"]
                result = command("compare", *systems, "--reference", reference, "--metric", "sacrebleu")
                row["p_value"] = result["comparisons"][0]["systems"][1]["p_value"]
    return found


def _target(args: argparse.Namespace) -> str:
    return str(load_checkpoint(args.checkpoint)["cfg"]["task"]["target_lang"])


def described(args: argparse.Namespace) -> dict[str, Any]:
    """What was compressed: task, model, seed, and the corpus it was scored on."""
    loaded = decoding.load([args.checkpoint], args.data, cpu=True)
    report = count_model(loaded.models[0], 30, 30)
    prepared = args.data / "prepare.json"
    corpus = read_json(prepared).get("corpus", args.data.parent.name) if prepared.is_file() else args.data.parent.name
    return {
        "benchmark": "compression",
        "task": f"{corpus}-{'-'.join(loaded.languages)}",
        "model": args.label or f"{loaded.config.model._name}, {report.macs / 1e6:.1f}M Mult-Adds",
        "macs": report.macs,
        "params_core": report.params_core,
        "params_total": report.params_total,
        "seed": int(loaded.config.common.seed),
        "checkpoint_sha256": sha256(args.checkpoint),
        "split": args.split,
        "decoding": f"beam {args.beam}, lenpen {args.lenpen:g}",
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a trained model, fp32")
    parser.add_argument("--data", type=Path, required=True, metavar="BIN", help="the bin folder of its corpus")
    parser.add_argument("--recipes", nargs="*", default=list(known_recipes()), metavar="NAME", help="default: all")
    parser.add_argument(
        "--trained", nargs="+", default=[], metavar="RECIPE=PT", help="checkpoints trained on by a recipe"
    )
    parser.add_argument("--label", metavar="TEXT", help="the model's name in the table (default: architecture, cost)")
    parser.add_argument("--split", default="test", metavar="NAME", help="what is translated (default test)")
    parser.add_argument("--beam", type=int, default=5, metavar="N", help="beam width (default 5)")
    parser.add_argument("--lenpen", type=float, default=1.0, metavar="X", help="length penalty (default 1)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="sentences in a batch (default 64)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="files at a time (default 1)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--files", type=Path, metavar="DIR", help="keep the packed files and their translations here")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--commit", metavar="HASH", help="of the code, where there is no git checkout")
    words = list(sys.argv[1:] if words is None else words)
    args = parser.parse_args(words)
    record = described(args) | {"rows": rows(args)}
    sys.stdout.write(tables.render_records([record]))
    if args.record is not None:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        device = "cpu" if args.cpu or not torch.cuda.is_available() else "cuda"
        write_json(args.record, provenance("bench_compression.py", words, device, args.commit) | record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
