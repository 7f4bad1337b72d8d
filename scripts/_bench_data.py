"""What training benchmarks train on: sentence pairs or running text, drawn at random or read from binarized data."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.data import (
    Dictionary,
    LanguagePairDataset,
    MonolingualDataset,
    TokenBlockDataset,
    data_utils,
    indexed_dataset,
)
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

# One update: so many batches as fairseq's collater returns them.
Update = list[dict[str, Any]]

_MEAN_LENGTH = 25  # tokens of a drawn sentence


def drawn_dictionary(types: int) -> Dictionary:
    """``types`` types, fairseq's special symbols counted, frequent ones first."""
    dictionary = Dictionary()
    for number in range(types - len(dictionary)):
        dictionary.add_symbol(f"w{number}")
    return dictionary


def drawn_lengths(count: int, generator: random.Random) -> list[tuple[int, int]]:
    """(source, target) lengths of ``count`` sentence pairs: log-normal, about 25 tokens on average, at most 175."""
    pairs = []
    for _ in range(count):
        source = min(175, max(2, round(generator.lognormvariate(3.0, 0.62))))
        pairs.append((source, min(175, max(2, round(source * generator.gauss(1.0, 0.18) + generator.gauss(0, 2))))))
    return pairs


def drawn_pairs(types: tuple[int, int], tokens: int, least: int, longest: int, seed: int) -> LanguagePairDataset:
    """Sentence pairs of random words.

    Args:
        types: of the source and the target dictionary.
        tokens: about three times so many a side, and at least ``least`` pairs.
        longest: a sentence.
    """
    dictionaries = [drawn_dictionary(size) for size in types]
    pairs = drawn_lengths(max(least, 3 * tokens // _MEAN_LENGTH), random.Random(seed))
    numbers = torch.Generator().manual_seed(seed)

    def sentences(side: int) -> list[torch.Tensor]:
        dictionary = dictionaries[side]
        lengths = [min(pair[side], longest) for pair in pairs]
        words = torch.randint(dictionary.nspecial, len(dictionary), (sum(lengths),), generator=numbers)
        made = list(words.split(lengths))
        for sentence in made:
            sentence[-1] = dictionary.eos()
        return made

    source, target = sentences(0), sentences(1)
    return LanguagePairDataset(
        source, [len(s) for s in source], dictionaries[0], target, [len(s) for s in target], dictionaries[1],
        left_pad_source=True, left_pad_target=False,
    )  # fmt: skip


def drawn_text(types: int, blocks: int, tokens_per_sample: int, seed: int) -> MonolingualDataset:
    """Blocks of running text, whose words are as frequent as those of a language (Zipf and Mandelbrot).

    What an adaptive softmax costs depends on how many tokens are of its rare bands.
    """
    dictionary = drawn_dictionary(types)
    ranks = torch.arange(len(dictionary) - dictionary.nspecial, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(1 / (ranks + 2.7), blocks * tokens_per_sample, replacement=True, generator=generator)
    text = drawn + dictionary.nspecial
    text[_MEAN_LENGTH - 1 :: _MEAN_LENGTH] = dictionary.eos()
    blocked = TokenBlockDataset(
        [text], [len(text)], tokens_per_sample, dictionary.pad(), dictionary.eos(), "none", include_targets=True
    )
    return MonolingualDataset(
        blocked, blocked.sizes, dictionary, add_eos_for_other_targets=False, shuffle=True, targets=["future"]
    )


def write_drawn_corpus(folder: Path, languages: tuple[str, str], types: int, pairs: int, seed: int) -> None:
    """Binarized sentence pairs of random words, as `lite-transformer prepare` leaves them, of one joint dictionary.

    All sentences are as long, so that all batches of a size are one shape: no CUDA graph is captured late.
    """
    folder.mkdir(parents=True)
    dictionary = drawn_dictionary(types)
    numbers = torch.Generator().manual_seed(seed)
    for language in languages:
        dictionary.save(str(folder / f"dict.{language}.txt"))
        for split, count in (("train", pairs), ("valid", 8), ("test", 8)):
            prefix = str(folder / f"{split}.{'-'.join(languages)}.{language}")
            builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", vocab_size=types)
            for words in torch.randint(dictionary.nspecial, types, (count, _MEAN_LENGTH), generator=numbers):
                words[-1] = dictionary.eos()
                builder.add_item(words)
            builder.finalize(f"{prefix}.idx")


def read_training_set(data: Path, tokens_per_sample: int | None) -> LanguagePairDataset | MonolingualDataset:
    """The training set of a binarized folder: of a language model, if there are blocks of so many tokens."""
    words = [str(data), "--arch", "transformer_multi30k"]
    if tokens_per_sample is None:
        source, target = data_utils.infer_language_pair(str(data))
        words += ["--source-lang", source, "--target-lang", target]
    else:
        words += ["--task", "language_modeling", "--tokens-per-sample", str(tokens_per_sample)]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    return task.datasets["train"]


def draw_updates(
    dataset: LanguagePairDataset | MonolingualDataset,
    updates: int,
    update_freq: int,
    max_tokens: int,
    seed: int,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None,
) -> list[Update]:
    """Updates of ``update_freq`` batches each, as fairseq would form them, a random part of an epoch.

    ``prepare`` is applied to every tensor.
    """
    from fairseq import utils

    groups = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=max_tokens, required_batch_size_multiple=8)
    chosen = random.Random(seed).sample(list(groups), min(len(groups), updates * update_freq))
    batches = [dataset.collater([dataset[i] for i in group]) for group in chosen]
    if prepare is not None:
        batches = [utils.apply_to_sample(prepare, batch) for batch in batches]
    return [batches[i : i + update_freq] for i in range(0, len(batches) - update_freq + 1, update_freq)]
