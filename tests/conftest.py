"""What every test may use: a tiny corpus made ready for fairseq and a model trained on it, by the real commands."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton then runs its kernels on the CPU; it reads this when the first kernel is defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.helpers import commands

# 21 is no multiple of 8: fairseq's default batching would drop the last sentences.
TINY_SIZES = {"train": 96, "valid": 21, "test": 21}


@pytest.fixture
def exact_products() -> Iterator[None]:
    """No tf32 on a GPU. Set by hand: pytest's monkeypatch, in the end, would delete what torch computes."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with {train,valid,test}.{de,en}: digits and the same digits in reverse, made from a fixed seed."""
    folder = tmp_path_factory.mktemp("tiny-raw")
    generator = random.Random(1)
    for split, size in TINY_SIZES.items():
        source = [[str(generator.randrange(10)) for _ in range(generator.randint(2, 9))] for _ in range(size)]
        for language, lines in (("de", source), ("en", [line[::-1] for line in source])):
            text = "".join(" ".join(line) + "\n" for line in lines)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus binarized by fairseq-preprocess with a joined dictionary: a folder for fairseq's DATA."""
    folder = tmp_path_factory.mktemp("tiny-data") / "bin"
    commands.run(
        "fairseq-preprocess", "--source-lang", "de", "--target-lang", "en", "--joined-dictionary", "--workers", "1",
        *(word for split in TINY_SIZES for word in (f"--{split}pref", tiny_raw / split)), "--destdir", folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint_last.pt of a 2+2-layer Lite Transformer with 16 channels, trained a few updates by fairseq-train.

    Beside it lie checkpoint1.pt ... of each epoch and checkpoint_best.pt.
    """
    folder = tmp_path_factory.mktemp("tiny-checkpoint")
    commands.fairseq_train(tiny_data, folder)
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A binarized corpus for language models: counting upwards in documents of three lines, an empty line between."""
    folder = tmp_path_factory.mktemp("tiny-text")
    generator = random.Random(2)
    for split, documents in (("train", 60), ("valid", 8), ("test", 8)):
        lines = []
        for _ in range(documents):
            for _ in range(3):
                start = generator.randrange(10)
                lines.append(" ".join(str((start + i) % 10) for i in range(generator.randint(2, 9))))
            lines.append("")
        (folder / split).write_text("\n".join(lines) + "\n", encoding="utf-8")
    prefixes = [word for split in TINY_SIZES for word in (f"--{split}pref", folder / split)]
    commands.run("fairseq-preprocess", "--only-source", *prefixes, "--workers", "1", "--destdir", folder / "bin")
    return folder / "bin"


@pytest.fixture(scope="session")
def tiny_text_checkpoint(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint_last.pt of a language model with 2 layers of 16 channels after 4 updates, and checkpoint_best.pt."""
    folder = tmp_path_factory.mktemp("tiny-text-checkpoint")
    commands.run(
        "lite-transformer", "train", commands.TEXT_EXPERIMENT, "--data", tiny_text, "--save-dir", folder,
        *commands.TINY_TEXT,
    )  # fmt: skip
    return folder / "checkpoint_last.pt"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: with several workers none of them then waits for a slow one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
