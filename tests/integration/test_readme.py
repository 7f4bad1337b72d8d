"""The README's commands, each run as it stands; only their size is cut so that a tiny model trains in seconds."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import commands

README = (commands.ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]

# What is typed in the README -> the same in small. Everything else stays.
SMALL_FLAGS = "--encoder-embed-dim 16 --encoder-layers 1 --decoder-layers 1 --num-workers 0 --cpu"
CUTS = {
    "--max-update 50000 --keep": f"--max-update 1000 --max-epoch 2 {SMALL_FLAGS} --keep",
    "--max-update 50000": f"--max-update 2 {SMALL_FLAGS}",
}
SMALL_OVERRIDES = " model.encoder_embed_dim=16 optimization.max_update=2"


def _small(command: str) -> str:
    for typed, cut in CUTS.items():
        if typed in command:
            return command.replace(typed, cut)
    if "lite-transformer train" in command:
        return command + SMALL_OVERRIDES + " --cpu"
    if command.startswith("fairseq-hydra-train"):
        return command + SMALL_OVERRIDES + " common.cpu=true"
    return command


WORDS = {"de": ["null", "eins", "zwei", "drei", "vier"], "en": ["zero", "one", "two", "three", "four"]}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: the checkout, text of their own, the quick start's data."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("lite_transformer", "configs", "results"):
        (folder / name).symlink_to(commands.ROOT / name)
    (folder / "data/mine").mkdir(parents=True)
    generator = random.Random(1)
    for split, size in {"train": 96, "valid": 21, "test": 21}.items():
        lines = [[generator.randrange(5) for _ in range(generator.randint(2, 9))] for _ in range(size)]
        for language, words in WORDS.items():
            text = "".join(" ".join(words[digit] for digit in line) + "\n" for line in lines)
            (folder / f"data/mine/{split}.{language}").write_text(text, encoding="utf-8")
    commands.run(
        "lite-transformer", "prepare", "parallel", "--source", "data/mine", "--pair", "de-en", "--bpe-merges", "20",
        "--dest", "runs/quickstart/data", cwd=folder,
    )  # fmt: skip
    return folder


def test_every_kind_of_command_is_shown():
    text = "\n".join(COMMANDS)
    for program in (
        "lite-transformer prepare", "lite-transformer train", "lite-transformer evaluate", "lite-transformer translate",
        "lite-transformer macs", "fairseq-train", "fairseq-hydra-train", "fairseq-generate", "fairseq-interactive",
        "torchrun", "--average-last", "lite-transformer release",
        "lite-transformer compress", "lite-transformer inspect",
    ):  # fmt: skip
        assert program in text
    assert len(COMMANDS) == len(set(COMMANDS)) == 20
    assert not [line for line in COMMANDS if line.endswith("\\") or not line.strip()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_readme_work_in_order(checkout: Path):
    path = f"{commands.BIN}{os.pathsep}{os.environ['PATH']}"
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", _small(command)],
            cwd=checkout,
            env=commands.environment(PATH=path),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    assert (checkout / "data/mine.prepared/bin/prepare.json").is_file()
    for run in ("mine", "two", "fairseq", "hydra", "group", "group2"):
        assert (checkout / "runs" / run / "checkpoint_last.pt").is_file(), run
    assert "training on 2 devices" in (checkout / "runs/two/train.log").read_text(encoding="utf-8")


def test_the_two_commands_of_the_front_door_exist():
    for script in re.findall(r"^bash (scripts/\S+\.sh)", README, re.MULTILINE):
        assert (commands.ROOT / script).is_file()
        done = subprocess.run(["bash", "-n", commands.ROOT / script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
