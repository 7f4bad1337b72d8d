#!/usr/bin/env python
"""How training speeds up with the number of GPUs, at the same global batch: tokens a second, and the same losses.

  scripts/bench_scaling.py wmt16_en_de_lite_496 --gpus 1,2 --batches 16 common.bf16=true dataset.max_tokens=8192
  scripts/bench_scaling.py multi30k_en_de_lite --data data/multi30k_en_de/bin --gpus 1,2
  scripts/bench_scaling.py NAME --gpus 1,2,4 --record results/speed/scaling_NAME.json common.bf16=true
  scripts/bench_scaling.py NAME --data DIR --gpus 1,2 --together      both at once, on three GPUs
  scripts/bench_scaling.py NAME --data DIR --gpus 1,2 --cpu          processes instead of GPUs

Each count is one `lite-transformer train`; every update adds up the gradients of --batches batches, divided among the
GPUs, so that every run computes the same updates. Speed is the median over the log's intervals of the second
half: the first one captures CUDA graphs and reads the data for the first time. With --data, graphs of rare shapes are
captured until the end of a short run; unless it is given, sentences are drawn, all of one length, as in a long one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from _bench_data import write_drawn_corpus
from _benchmark import provenance, summary
from tqdm import tqdm

from data_prep.io import write_json
from lite_transformer.training import find_config, load_config


def train(
    count: int, args: argparse.Namespace, data: Path, folder: Path, devices: str | None = None
) -> list[dict[str, Any]]:
    """What fairseq logged in each interval of a run with ``count`` processes: loss, tokens a second (wps), and more.

    ``devices`` are the GPUs it may use; None: all.
    """
    environment = os.environ if devices is None else {**os.environ, "CUDA_VISIBLE_DEVICES": devices}
    words = [
        sys.executable, "-m", "lite_transformer.cli.main", "train", args.config, "--data", str(data),
        "--save-dir", str(folder), *(["--cpu", "--processes"] if args.cpu else ["--gpus"]), str(count),
        f"optimization.max_update={args.updates}", f"optimization.update_freq=[{args.batches}]",
        f"common.log_interval={args.interval}", "common.log_format=json", "checkpoint.no_save=true",
        "dataset.disable_validation=true", *args.overrides,
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"training with {count} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    lines = (folder / "train.log").read_text(encoding="utf-8").splitlines()
    return [json.loads(line.split(" | ", 3)[3]) for line in lines if " | train_inner | {" in line]


def train_all(args: argparse.Namespace, scratch: Path) -> Iterator[list[dict[str, Any]]]:
    """The runs' intervals, in the order of ``args.gpus``."""
    data = args.data
    if data is None:
        task = load_config(find_config(args.config), args.overrides).task
        data = scratch / "data"
        write_drawn_corpus(data, (task.source_lang, task.target_lang), args.vocabulary, args.pairs, seed=1)
    if not args.together:
        for count in args.gpus:
            yield train(count, args, data, scratch / str(count))
        return
    free = iter(args.devices)
    places = [",".join(next(free) for _ in range(count)) for count in args.gpus]
    with ThreadPoolExecutor(len(places)) as pool:
        runs = zip(args.gpus, places, strict=True)
        waiting = [pool.submit(train, count, args, data, scratch / str(count), place) for count, place in runs]
        for run in waiting:
            yield run.result()


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="name of an experiment in configs/")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="options to change")
    parser.add_argument("--data", type=Path, metavar="DIR", help="binarized data; drawn sentences unless given")
    parser.add_argument("--vocabulary", type=int, default=32768, metavar="N", help="types drawn (default 32768)")
    parser.add_argument("--pairs", type=int, default=200_000, metavar="N", help="of sentences drawn (default 200000)")
    parser.add_argument("--gpus", default="1,2", metavar="N[,N...]", help="counts to compare (default 1,2)")
    parser.add_argument("--batches", type=int, metavar="N", help="of an update (default: the fewest all counts divide)")
    parser.add_argument("--updates", type=int, default=400, metavar="N", help="of each run (default 400)")
    parser.add_argument("--interval", type=int, default=20, metavar="N", help="updates of one sample (default 20)")
    parser.add_argument("--together", action="store_true", help="all counts at once, each on GPUs of its own")
    parser.add_argument("--cpu", action="store_true", help="processes on the CPU instead of GPUs")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write all samples as JSON")
    parser.add_argument("--commit", metavar="HASH", help="of the code, where there is no git checkout")
    args = parser.parse_intermixed_args(words)
    counts = args.gpus.split(",")
    if not all(count.isdigit() and int(count) > 0 for count in counts):
        parser.error(f"--gpus {args.gpus}: counts, such as 1,2")
    args.gpus = sorted({int(count) for count in counts})
    fewest = math.lcm(*args.gpus)
    args.batches = fewest if args.batches is None else args.batches
    if args.batches < 1 or args.batches % fewest:
        parser.error(f"--batches {args.batches}: a multiple of {fewest} is needed, each GPU takes an equal part")
    if args.together:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        args.devices = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
        if args.cpu or len(args.devices) < sum(args.gpus):
            found = "--cpu" if args.cpu else f"{len(args.devices)} GPUs are here"
            parser.error(f"--together needs a GPU for each process, {sum(args.gpus)} in all; {found}: leave it out")
    if args.updates < 2 * args.interval:
        parser.error(f"--updates {args.updates}: at least two intervals, {2 * args.interval}, are needed")
    return args


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else list(words)
    args = parse_args(words)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        runs = zip(args.gpus, train_all(args, Path(scratch)), strict=True)
        for count, intervals in tqdm(runs, total=len(args.gpus), unit="run", disable=None):
            measured = intervals[len(intervals) // 2 :]
            results.append({
                "count": count,
                "tokens_per_second": summary([float(interval["wps"]) for interval in measured]),
                "updates_per_second": summary([float(interval["ups"]) for interval in measured]),
                "losses": [float(interval["loss"]) for interval in intervals],
            })  # fmt: skip
    first = results[0]
    for result in results:
        result["speed_up"] = result["tokens_per_second"]["median"] / first["tokens_per_second"]["median"]
        pairs = zip(result["losses"], first["losses"], strict=True)
        result["largest_loss_difference"] = max(abs(mine - other) for mine, other in pairs)
        print(
            f"{result['count']} {'processes' if args.cpu else 'GPUs'}: "
            f"{result['tokens_per_second']['median']:,.0f} tokens/s, {result['speed_up']:.2f} times the first, "
            f"losses within {result['largest_loss_difference']:.3f}"
        )
    if args.record is not None:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        source = provenance("bench_scaling.py", words, "cpu" if args.cpu else "cuda", args.commit)
        write_json(args.record, {"benchmark": "scaling", **source, "config": args.config, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
