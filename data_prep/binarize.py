"""Dictionaries and binarized data in fairseq's format; the only file here that imports fairseq."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


def binarize(
    text_folder: Path, bin_folder: Path, pair: tuple[str, str], splits: Sequence[str], joined: bool, workers: int = 1
) -> dict[str, int]:
    """Writes fairseq's dictionaries and indexed data sets of SPLIT.LANG files; returns dictionary sizes by language.

    Args:
        text_folder: holds SPLIT.LANG, one line of subwords a sentence. The dictionaries come from ``train`` alone.
        bin_folder: an existing folder for dict.LANG.txt and SPLIT.SRC-TGT.LANG.{bin,idx}.
        joined: one dictionary for both languages, which shared embeddings need.
    """
    from fairseq import utils  # noqa: F401  (imported first: fairseq.tasks needs it set up)
    from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
    from fairseq.tasks import FairseqTask

    source, target = pair
    groups = [pair] if joined else [(source,), (target,)]
    sizes: dict[str, int] = {}
    for group in groups:
        files = [str(text_folder / f"train.{language}") for language in group]
        dictionary = FairseqTask.build_dictionary(files, workers=workers)
        for language in group:
            sizes[language] = len(dictionary)
            dictionary.save(str(bin_folder / f"dict.{language}.txt"))
            for split in splits:
                summary = FileBinarizer.multiprocess_dataset(
                    str(text_folder / f"{split}.{language}"),
                    "mmap",
                    VocabularyDatasetBinarizer(dictionary, append_eos=True),
                    str(bin_folder / f"{split}.{source}-{target}.{language}"),
                    vocab_size=len(dictionary),
                    num_workers=workers,
                )
                logger.info("%s.%s: %s", split, language, summary)
    return sizes
