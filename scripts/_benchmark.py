"""What the benchmark scripts share: where figures come from, and their median and spread."""

from __future__ import annotations

import logging
import platform
import shlex
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_OUTPUTS = ("--record", "--plot", "--profile", "--commit")

# fairseq and hydra have everything logged, and a plot makes matplotlib name every font there is
logging.getLogger("matplotlib").setLevel(logging.WARNING)


def device_name(device: str) -> str:
    """Of the graphics card, or of the processor and how many threads torch uses on it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'' if threads == 1 else 's'}"


def processor() -> str:
    """The processor's model, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git(*words: str) -> str:
    """Output of a git command in this checkout; empty where there is none."""
    done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def provenance(script: str, words: Sequence[str], device: str, commit: str | None = None) -> dict[str, Any]:
    """What a figure needs beside it: command, commit, date, device and versions.

    ``commit`` is for copies of the code without its history. Where the command wrote its files is left out.
    """
    kept: list[str] = []
    for number, word in enumerate(words):
        if word not in _OUTPUTS and (number == 0 or words[number - 1] not in _OUTPUTS):
            kept.append(word)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    try:
        import triton

        versions["triton"] = triton.__version__
    except ImportError:
        pass
    return {
        "command": shlex.join([f"scripts/{script}", *kept]),
        "commit": commit or git("rev-parse", "HEAD"),
        "dirty": False if commit else bool(git("status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": device_name(device),
        "versions": versions,
    }


def summary(samples: list[float]) -> dict[str, Any]:
    """Median and spread of the samples, with all of them."""
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "samples": samples}
