"""Perplexity equals fairseq-eval-lm's, every token is scored once, and what cannot be evaluated is said."""

from __future__ import annotations

import itertools
import math
import random
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq_cli import eval_lm
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_transformer.errors import ConfigError, DataError, ScoringError
from lite_transformer.models.language_model import TransformerLanguageModel
from lite_transformer.models.lm_config import TransformerLMConfig
from lite_transformer.scoring.perplexity import Window, count_words, plan_windows, read_text, score_split
from lite_transformer.scoring.text_protocols import TEXT_PROTOCOLS, TextProtocol, find_text_protocol, usual_protocol
from tests.helpers.models import TINY_LM, tiny_language_model

POSITIONS = 32
WORDS = [
    "lo@@",
    "we@@",
    "the",
    "er",
    "st",
    "a",
    "of",
    "and",
    "in@@",
    "to",
    "is",
    "it",
    "be",
    "as",
    "on",
    "was",
    "by",
    "or",
]


def protocol(tokens: int, context: int, mode: str = "complete") -> TextProtocol:
    return TextProtocol("", tokens, context, mode, "a test")


def dictionary() -> Dictionary:
    made = Dictionary()
    for word in WORDS:
        made.add_symbol(word)
    return made


def write_split(folder: Path, lines: list[list[int]], split: str = "test") -> None:
    builder = MMapIndexedDatasetBuilder(str(folder / f"{split}.bin"), dtype=np.uint16)
    for line in lines:
        builder.add_item(torch.tensor([*line, 2]))
    builder.finalize(str(folder / f"{split}.idx"))


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    """Forty lines of up to 9 tokens in documents of a few lines, an empty line between them."""
    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(3)
    lines = []
    for _ in range(12):
        lines += [[generator.randrange(4, 22) for _ in range(generator.randint(1, 9))] for _ in range(3)]
        lines.append([])
    write_split(folder, lines)
    dictionary().save(str(folder / "dict.txt"))
    return folder


def build(kind: str):
    if kind == "lite":
        options = {"adaptive_input_cutoff": [8, 14], "adaptive_softmax_cutoff": [8, 14]}
        model = tiny_language_model(tokens_per_sample=POSITIONS, **options)
    else:
        torch.manual_seed(2)
        small = {
            "decoder_embed_dim": 16,
            "decoder_ffn_embed_dim": 16,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
        }
        bands = {"adaptive_softmax_cutoff": TINY_LM["adaptive_softmax_cutoff"]} if kind == "softmax" else {}
        config = TransformerLMConfig(tokens_per_sample=POSITIONS, **(small | bands))
        task = SimpleNamespace(source_dictionary=dictionary(), target_dictionary=dictionary())
        model = TransformerLanguageModel.build_model(config, task).eval()
    with torch.no_grad():  # flat probabilities would hide a wrong window
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def loaded(model) -> SimpleNamespace:
    task = SimpleNamespace(source_dictionary=dictionary(), args=Namespace(add_bos_token=False))
    # the tiny model has 24 types, the dictionary 22 and the rest of fairseq's padding
    while len(task.source_dictionary) < 24:
        task.source_dictionary.add_symbol(f"madeupword{len(task.source_dictionary)}")
    return SimpleNamespace(models=[model], task=task, device=torch.device("cpu"))


def by_fairseq(model, folder: Path, how: TextProtocol, post_process: str | None = None) -> dict:
    """What fairseq-eval-lm computes, by its own data loader and scorer."""
    args = Namespace(
        data=str(folder), tokens_per_sample=how.block, sample_break_mode=how.sample_break_mode, dataset_impl="mmap",
        output_dictionary_size=-1, shorten_data_split_list="", shorten_method="none", seed=1, use_plasma_view=False,
        plasma_path="", pad_to_fixed_length=False, pad_to_fixed_bsz=False, add_bos_token=False,
    )  # fmt: skip
    task = LanguageModelingTask(args, loaded(model).task.source_dictionary)
    task.load_dataset("test")
    batches = task.eval_lm_dataloader(
        task.dataset("test"), max_tokens=24, max_positions=POSITIONS, num_workers=0, context_window=how.context_window
    )
    return eval_lm.eval_lm([model], task.source_dictionary, batches, post_process=post_process)


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc"])
@pytest.mark.parametrize(
    ("kind", "tokens", "context"),
    [
        ("lite", 16, 0),
        ("lite", 16, 4),
        ("lite", 24, 14),
        ("lite", 32, 20),
        ("transformer", 24, 14),
        ("softmax", 24, 14),
    ],
)
def test_the_perplexity_is_that_of_fairseq(kind, tokens, context, mode, text_folder):
    model, how = build(kind), protocol(tokens, context, mode)
    found, text = score_split(loaded(model), text_folder, "test", how, "none", max_tokens=80)
    expected = by_fairseq(model, text_folder, how)
    assert found.bits_per_token == pytest.approx(float(expected["loss"]), rel=2e-6)
    assert found.per_token == pytest.approx(float(expected["perplexity"]), rel=1e-5)
    assert text.left_out == (12 if mode == "complete_doc" else 0)
    assert found.tokens + text.left_out == sum(len(line) for line in lines_of(text_folder))


def lines_of(folder: Path) -> list[torch.Tensor]:
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    lines = MMapIndexedDataset(str(folder / "test"))
    return [lines[number] for number in range(len(lines))]


def test_context_makes_a_difference(text_folder):
    """Otherwise the comparison above would not see a wrong context."""
    model = build("lite")
    values = [
        score_split(loaded(model), text_folder, "test", protocol(context + 12, context), "none")[0].per_token
        for context in (0, 8, 16)
    ]
    assert min(abs(a - b) for a, b in itertools.pairwise(values)) > 1e-2


def test_subwords_are_renormalised_to_words_as_fairseq_does(text_folder):
    model, how = build("lite"), protocol(32, 16)
    found, text = score_split(loaded(model), text_folder, "test", how, "bpe")
    goes_on = sum(WORDS[number - 4].endswith("@@") for number in text.target.tolist() if number >= 4)
    assert found.words == found.tokens - goes_on < found.tokens
    # under its name subword_nmt fairseq looks for tokens that end in "subword_nmt"
    expected = by_fairseq(model, text_folder, how, post_process="@@ ")
    assert found.per_word == pytest.approx(float(expected["perplexity"]), rel=1e-5)
    assert found.per_word == pytest.approx(found.per_token ** (found.tokens / found.words))


def test_words_of_sentencepiece():
    pieces = Dictionary()
    for piece in ("\u2581a", "b", "\u2581c", "d"):
        pieces.add_symbol(piece)
    assert count_words(torch.tensor([4, 5, 6, 7, 7, 2, 2]), pieces, "sentencepiece") == 4
    assert count_words(torch.tensor([4, 5, 6]), pieces, "none") == 3


# --- windows ---


def test_windows_by_hand():
    # blocks of 4 with up to 6 tokens of context; the first two begin with the same token and are one pass
    assert plan_windows([4, 8, 12, 16], protocol(10, 6)) == [Window(0, 0, 8), Window(2, 8, 12), Window(6, 12, 16)]
    assert plan_windows([4, 8], protocol(4, 0)) == [Window(0, 0, 4), Window(4, 4, 8)]
    # a line longer than the block takes from the context
    assert plan_windows([9, 10], protocol(10, 6)) == [Window(0, 0, 9), Window(3, 9, 10)]
    assert plan_windows([4, 13], protocol(10, 6)) == [Window(0, 0, 4), Window(3, 4, 13)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=30), tokens=st.integers(6, 12), context=st.integers(0, 5))
def test_every_token_is_scored_once_with_the_context_it_should_have(sizes, tokens, context):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    windows = plan_windows(ends, protocol(tokens, context))
    scored = [place for window in windows for place in range(window.scored, window.end)]
    assert scored == list(range(ends[-1]))
    assert all(window.end - window.start <= tokens for window in windows)
    assert len({window.start for window in windows}) == len(windows)
    first = 0
    for end in ends:
        if end > first:
            window = next(w for w in windows if w.scored <= first < w.end)
            # at least the window's context, if the text and the longest window have it
            assert first - window.start >= min(first, context, tokens - (end - first))
        first = end


def test_a_line_that_no_window_holds():
    with pytest.raises(
        DataError, match="a line of 11 tokens is longer than --tokens-per-sample 10: give --sample-break"
    ):
        plan_windows([4, 15], protocol(10, 6))


# --- what cannot be evaluated ---


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (protocol(16, 16), "--context-window 16 must be smaller than --tokens-per-sample 16: a window holds"),
        (protocol(16, 20), "--context-window 20 must be smaller than --tokens-per-sample 16"),
        (protocol(33, 4), "--tokens-per-sample 33 is longer than the model's 32 positions"),
        (protocol(0, 0), "the first must be at least 1"),
        (protocol(16, -1), "the second at least 0"),
        (protocol(16, 4, "eos"), "--sample-break-mode eos: known are none, complete, complete_doc"),
    ],
)
def test_protocols_that_do_not_fit(how, text, text_folder):
    with pytest.raises(ConfigError) as error:
        score_split(loaded(build("lite")), text_folder, "test", how, "none")
    assert text in str(error.value) and "\n" not in str(error.value)


def test_zero_tokens_are_an_error_and_not_perplexity_1(tmp_path):
    words = loaded(build("lite")).task.source_dictionary
    write_split(tmp_path, [[], []])
    with pytest.raises(ScoringError, match="holds empty documents alone: there is no token to score"):
        read_text(tmp_path, "test", words, protocol(16, 4, "complete_doc"))
    builder = MMapIndexedDatasetBuilder(str(tmp_path / "none.bin"), dtype=np.uint16)
    builder.finalize(str(tmp_path / "none.idx"))
    with pytest.raises(ScoringError, match=r"the none split of .* is empty: there is no token to score"):
        read_text(tmp_path, "none", words, protocol(16, 4))


def test_text_of_another_dictionary(tmp_path):
    write_split(tmp_path, [[4, 30, 5]])
    with pytest.raises(DataError, match=r"has token 30, and dict\.txt has 24 types: they do not belong together"):
        read_text(tmp_path, "test", loaded(build("lite")).task.source_dictionary, protocol(16, 4))


def test_a_damaged_split(tmp_path):
    write_split(tmp_path, [[4, 5]] * 4)
    (tmp_path / "test.bin").write_bytes((tmp_path / "test.bin").read_bytes()[:6])
    with pytest.raises(DataError, match=r"the test split of .* cannot be read"):
        read_text(tmp_path, "test", loaded(build("lite")).task.source_dictionary, protocol(16, 4))


def test_a_damaged_model_is_an_error(text_folder):
    model = build("lite")
    with torch.no_grad():
        model.decoder.layers[0].fc1.weight[0, 0] = math.nan
    with pytest.raises(ScoringError, match="tokens have no finite probability"):
        score_split(loaded(model), text_folder, "test", protocol(16, 4), "none")


def test_one_model_and_no_mark_of_the_beginning(text_folder):
    several = loaded(build("lite"))
    several.models *= 2
    with pytest.raises(ConfigError, match="of one model"):
        score_split(several, text_folder, "test", protocol(16, 4), "none")
    marked = loaded(build("lite"))
    marked.task.args.add_bos_token = True
    with pytest.raises(ConfigError, match="--add-bos-token"):
        score_split(marked, text_folder, "test", protocol(16, 4), "none")


def test_protocols_by_name():
    published = find_text_protocol("wikitext103_lite_896")
    assert published is not None
    assert (published.tokens_per_sample, published.context_window, published.block) == (3072, 2560, 512)
    assert published.sample_break_mode == "complete"
    assert find_text_protocol("linux_docs") is not None and find_text_protocol("iwslt14_de_en_lite_160") is None
    assert (usual_protocol(3072).context_window, usual_protocol(512).context_window) == (2560, 426)
    for how in TEXT_PROTOCOLS.values():
        how.check(how.tokens_per_sample)
