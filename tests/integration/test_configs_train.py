"""Every experiment of configs/ trains: two updates of the whole recipe, on a few sentences and a small dictionary.

Nothing of an experiment is changed but the data, so its model has all its layers and channels, its optimizer and its
schedule run, and an update gathers as many batches as there are. Together they take about a minute on one core.
"""

from __future__ import annotations

import math
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import tasks
from fairseq.data import Dictionary, indexed_dataset
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import DictConfig

from tests.helpers import commands
from tests.integration.test_configs import load, rate_of

CONFIGS = sorted((commands.ROOT / "configs").glob("*.yaml"))
SENTENCES, LONGEST, WORDS = 6, 8, 30


def write_split(prefix: Path, dictionary: Dictionary, bands: list[int], seed: int) -> None:
    """PREFIX.bin and PREFIX.idx: sentences of random words, some of every band that begins at one of ``bands``."""
    generator = random.Random(seed)
    builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(dictionary))
    for number in range(SENTENCES):
        words = [bands[number % len(bands)] + generator.randrange(WORDS) for _ in range(LONGEST)]
        builder.add_item(torch.tensor([*words[: generator.randint(2, LONGEST)], dictionary.eos()]))
    builder.finalize(f"{prefix}.idx")


def write_data(config: DictConfig, folder: Path) -> Path:
    """A binarized training set in the languages of an experiment, with as many words as its cutoffs ask for."""
    dictionary = Dictionary()
    bands = [dictionary.nspecial, *(config.model.get("adaptive_softmax_cutoff") or [])]
    for number in range(bands[-1] + WORDS):
        dictionary.add_symbol(f"w{number}")
    if config.task._name == "language_modeling":
        dictionary.save(str(folder / "dict.txt"))
        write_split(folder / "train", dictionary, bands, seed=1)
        return folder
    pair = (config.task.source_lang, config.task.target_lang)
    for seed, language in enumerate(pair):
        dictionary.save(str(folder / f"dict.{language}.txt"))
        write_split(folder / f"train.{'-'.join(pair)}.{language}", dictionary, bands, seed)
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_updates(path: Path, tmp_path: Path):
    config = deepcopy(load(path))
    config.task.data = str(write_data(config, tmp_path))
    config.common.cpu, config.dataset.num_workers = True, 0
    torch.manual_seed(config.common.seed)
    task = tasks.setup_task(config.task)
    task.load_dataset("train")
    model = task.build_model(config.model)
    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    before = [weights.detach().clone() for weights in model.parameters()]

    losses = [train_an_epoch(trainer, epoch) for epoch in (1, 2)]

    assert trainer.get_num_updates() == 2
    assert trainer.get_lr() == pytest.approx(rate_of(config)(2))
    assert all(math.isfinite(loss) for loss in losses)
    assert not all(map(torch.equal, before, model.parameters()))
    without_gradient = [name for name, weights in model.named_parameters() if weights.grad is None]
    assert not without_gradient


def train_an_epoch(trainer: Trainer, epoch: int) -> Any:
    """The loss of the one update that all sentences make."""
    batches = list(trainer.get_train_iterator(epoch).next_epoch_itr(shuffle=True))
    trainer.begin_epoch(epoch)
    with metrics.aggregate(new_root=True):
        return trainer.train_step(batches)["loss"]
