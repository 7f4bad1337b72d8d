"""Trains an experiment: a name in configs/, or the path of any fairseq Hydra YAML.

  lite-transformer train iwslt14_de_en_lite_160 --data data/iwslt/bin --save-dir runs/iwslt
  lite-transformer train wmt16_en_de_lite_496 --data data/wmt/bin --save-dir runs/wmt --gpus 8
  lite-transformer train iwslt14_de_en_lite_160 --data data/iwslt/bin optimization.max_update=1000 model.dropout=0.1

The batch is the one the experiment file says, on any number of processes: update_freq is divided among them. Typed
again with the same --save-dir, the command goes on from the last checkpoint. Started by torchrun, it joins its group.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from lite_transformer.errors import ConfigError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # options and KEY=VALUE may be mixed in any order, which argparse does only when asked
    parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]
    parser.add_argument("config", metavar="CONFIG", help="name of an experiment in configs/, or path of a YAML file")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="options to change, such as common.fp16=true")
    parser.add_argument("--data", metavar="DIR", help="binarized data: the bin folder that prepare made")
    parser.add_argument("--save-dir", metavar="DIR", help="checkpoints, train.log, train.json (default runs/CONFIG)")
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--gpus", type=int, metavar="N", help="train on N GPUs of this machine (default 1, if any)")
    number.add_argument("--processes", type=int, metavar="N", help="train with N processes, also without a GPU")
    parser.add_argument("--seed", type=int, metavar="N", help="random seed (default: the experiment's)")
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    parser.add_argument("--dry-run", action="store_true", help="check the options, print the fairseq command, stop")


def run(args: argparse.Namespace) -> int:
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)  # wants tensorboardX; we do not
    # fairseq and torch take seconds to import: `--help` does without
    from lite_transformer import training

    path = training.find_config(args.config)
    save_dir = Path(args.save_dir or Path("runs") / path.stem)
    settings: dict[str, Any] = {"checkpoint.save_dir": str(save_dir)}
    if args.data is not None:
        settings = {"task.data": args.data} | settings
    if args.seed is not None:
        settings["common.seed"] = args.seed
    if args.cpu:
        settings["common.cpu"] = True
    config = training.load_config(path, args.overrides, settings)
    group = _process_group(args, training)
    training.spread(config, group.size)

    if args.dry_run:
        training.check_model_options(config)
        if group.size > 1 or config.optimization.update_freq != [1]:
            settings["distributed_training.distributed_world_size"] = group.size
            settings["optimization.update_freq"] = list(config.optimization.update_freq)
        sys.stdout.write(training.hydra_command(path, args.overrides, settings) + "\n")
        return 0

    training.check_data(config, path.stem)
    parameters = sum(weight.numel() for weight in training.build_model(config).parameters())
    training.check_same_model(config, save_dir)
    training.check_first_weights(config, save_dir)
    training.start_logging(save_dir, group.rank)
    if group.rank == 0:
        training.mend_last_checkpoint(config)
        record = training.write_record(config, path, group, ["lite-transformer", *sys.argv[1:]])
        logger.info(
            "%s: %s with %s parameters; reading %s; writing checkpoints, train.log and %s to %s",
            path.stem, config.model._name, f"{parameters:,}", config.task.get("data"), record.name, save_dir,
        )  # fmt: skip
        logger.info(
            "batch: up to %d tokens x %d accumulated x %d processes",
            config.dataset.max_tokens or 0, config.optimization.update_freq[0], group.size,
        )  # fmt: skip
    training.run(config, group)
    if group.rank == 0:
        best = next(
            (save_dir / name for name in ("checkpoint_best.pt", "checkpoint_last.pt") if (save_dir / name).exists()),
            save_dir,
        )
        sys.stdout.write(
            f"trained {path.stem}: checkpoints in {save_dir}. "
            f"Next: lite-transformer evaluate --checkpoint {best} --data {config.task.get('data')}\n"
        )
    return 0


def _process_group(args: argparse.Namespace, training: Any) -> Any:
    """The processes that train: torchrun's if it started us, otherwise as many as were asked for."""
    import torch

    for flag, number in (("--gpus", args.gpus), ("--processes", args.processes)):
        if number is not None and number < 1:
            raise ConfigError(f"{flag} {number}: at least 1 is needed")
    asked = args.gpus or args.processes
    joined = training.ProcessGroup.from_environment()
    if joined is not None:
        if asked not in (None, joined.size):
            raise ConfigError(
                f"torchrun started {joined.size} processes but the command asks for {asked}: leave --gpus and "
                "--processes away under torchrun"
            )
        return joined
    if args.gpus and args.cpu:
        raise ConfigError("--gpus and --cpu exclude each other: use --processes N --cpu")
    visible = 0 if args.cpu else torch.cuda.device_count()
    if args.gpus and args.gpus > visible:
        raise ConfigError(f"--gpus {args.gpus}: {visible} visible here. Without a GPU use --processes N --cpu")
    if args.processes and visible and args.processes > visible:
        raise ConfigError(f"--processes {args.processes}: one a GPU, and {visible} visible. Add --cpu, or take fewer")
    return training.ProcessGroup(asked or 1)
