"""`lite-transformer train`, writing the sentences of every batch that this process learns from to FOLDER/RANK.json.

torchrun --nproc_per_node 2 tests/integration/seen_sentences.py FOLDER CONFIG [options of train]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from fairseq.tasks.fairseq_task import FairseqTask

from lite_transformer.cli.main import main


def run(folder: Path, arguments: list[str]) -> int:
    seen: list[list[int]] = []
    train_step = FairseqTask.train_step

    def recording_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        if not ignore_grad:
            seen.append(sample["id"].tolist())
        return train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad)

    FairseqTask.train_step = recording_step
    code = main(["train", *arguments])
    (folder / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
