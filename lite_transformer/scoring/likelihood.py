"""How probable a model finds the reference translations: a finer measure than their score, without a search."""

from __future__ import annotations

import math
from typing import Any

import torch
from fairseq import utils

from lite_transformer.errors import DataError
from lite_transformer.scoring.decoding import Loaded


class Loss:
    """Called, it gives the mean negative log-likelihood of a target token in bits, with the model as it is then.

    Args:
        loaded: its first model is measured. split: of its data. sentences: only so many of the first.
    Raises: DataError if the split cannot be read.
    """

    def __init__(self, loaded: Loaded, split: str, sentences: int, max_tokens: int = 4000):
        self._model: Any = loaded.models[0]
        task = loaded.task
        try:
            task.load_dataset(split, task_cfg=loaded.config.task)
            dataset = task.dataset(split)
        except (OSError, ValueError) as error:
            raise DataError(f"the {split} split of {task.cfg.data} cannot be read ({error})") from error
        self.sentences = min(sentences, len(dataset))
        self._pad = task.target_dictionary.pad()
        chosen = sorted(range(self.sentences), key=lambda index: int(dataset.src.sizes[index]))
        size = max(1, max_tokens // int(max(dataset.src.sizes[index] for index in chosen))) if chosen else 1
        batches = [dataset.collater([dataset[i] for i in chosen[k : k + size]]) for k in range(0, len(chosen), size)]
        self._batches = [utils.move_to_cuda(batch) if loaded.device.type == "cuda" else batch for batch in batches]

    def __call__(self) -> float:
        total, tokens = 0.0, 0
        with torch.no_grad():
            for batch in self._batches:
                target = batch["target"].flatten()
                logits = self._model(**batch["net_input"])[0].float().flatten(0, 1)
                real = target != self._pad
                total += float(torch.nn.functional.cross_entropy(logits[real], target[real], reduction="sum"))
                tokens += int(real.sum())
        return total / max(tokens, 1) / math.log(2)
