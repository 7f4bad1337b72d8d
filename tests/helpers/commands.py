"""Running the real commands of fairseq and of this project as a user does; one tiny experiment in two spellings."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

EXPERIMENT = "iwslt14_de_en_lite_160"

# Options of the model that make it tiny, and everything in which the run differs from the experiment's recipe.
# No dropout: then the number of processes cannot matter.
MODEL = {
    "encoder_embed_dim": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "dropout": 0.0,
    "weight_dropout": 0.0,
}
RUN = {
    "lr_scheduler.warmup_updates": 2,
    "optimization.lr": "[0.01]",
    "optimization.max_update": 8,
    "optimization.update_freq": "[2]",
    "dataset.max_tokens": 128,
    "dataset.num_workers": 0,
    "common.cpu": "true",
}

# The same of a language model, as words of `lite-transformer train`.
TEXT_EXPERIMENT = "linux_docs_lite_small"
TINY_TEXT = [
    "--cpu", "model.decoder_embed_dim=16", "model.decoder_layers=2", "model.adaptive_input_cutoff=[6]",
    "model.adaptive_softmax_cutoff=[6]", "model.dropout=0", "task.tokens_per_sample=16", "dataset.max_tokens=64",
    "dataset.num_workers=0", "optimization.max_update=4", "optimization.lr=[0.01]", "lr_scheduler.warmup_updates=2",
    "lr_scheduler.lr_period_updates=2", "optimization.update_freq=[2]",
]  # fmt: skip


def environment(**extra: str) -> dict[str, str]:
    """One thread, no GPU, no launcher's variables."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOGLEVEL")}
    return inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | extra


def words(command: tuple[Any, ...]) -> list[str]:
    """The words of a command line, the program looked up beside this Python."""
    program, *rest = map(str, command)
    return [str(BIN / program) if (BIN / program).exists() else program, *rest]


def run(*command: Any, code: int = 0, cwd: Path = ROOT, stdin: str = "", **extra: str) -> str:
    """Standard output and error of a command that must end with the given exit code."""
    done = subprocess.run(
        words(command), cwd=cwd, env=environment(**extra), input=stdin, capture_output=True, text=True, timeout=240
    )
    text = done.stdout + done.stderr
    assert done.returncode == code, f"{' '.join(words(command))} ended with {done.returncode}:\n{text[-4000:]}"
    return text


def run_together(*several: tuple[Any, ...]) -> list[str]:
    """As ``run``, for commands that do not depend on each other: a second core need not wait."""
    with ThreadPoolExecutor(len(several)) as pool:
        return list(pool.map(lambda command: run(*command), several))


def train_flags(data: Path, save_dir: Path) -> list[Any]:
    """The tiny experiment as flags of fairseq-train."""
    model = [word for name, value in MODEL.items() for word in (f"--{name.replace('_', '-')}", value)]
    return [
        data, "--user-dir", "lite_transformer", "--arch", "lite_transformer_iwslt_de_en", *model,
        "--task", "translation", "--source-lang", "de", "--target-lang", "en",
        "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1",
        "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--weight-decay", "0.0001", "--clip-norm", "0.0",
        "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "2", "--warmup-init-lr", "1e-07", "--lr", "0.01",
        "--stop-min-lr", "1e-09", "--max-update", "8", "--max-tokens", "128", "--required-batch-size-multiple", "1",
        "--update-freq", "2", "--num-workers", "0", "--seed", "1", "--cpu", "--save-dir", save_dir,
    ]  # fmt: skip


def fairseq_train(data: Path, save_dir: Path) -> str:
    return run("fairseq-train", *train_flags(data, save_dir))


def overrides(plus: str = "", **changes: Any) -> list[str]:
    """The tiny experiment as overrides of its YAML; ``plus`` before options that the file does not mention."""
    mentioned = ("dropout", "weight_dropout")
    model = [f"{'' if name in mentioned else plus}model.{name}={value}" for name, value in MODEL.items()]
    return [*model, *(f"{name}={value}" for name, value in (RUN | changes).items())]
