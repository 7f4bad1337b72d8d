"""Checkpoints of the published implementation load through fairseq's own entry points and compute the same.

`slow_reference` computes every expectation but the golden ones, which the published code itself computed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils, models, tasks
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY

from lite_transformer.errors import ConfigError
from lite_transformer.models import reference_names
from lite_transformer.models.reference_names import (
    REFERENCE_ARCHITECTURES,
    parse_branch_spec,
    switch_value,
    translate_options,
    upgrade_parameter_names,
)
from lite_transformer.models.safe_load import PastAverageMeter, PastTimeMeter, load_checkpoint, widened_ffn_init
from tests.helpers.commands import run
from tests.models.slow_reference import EOS, PAD, SlowReference, old_args

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "reference"
PREFIX = "transformer_multibranch_v2"
LIGHT = ["attn:1:8:2", "lightweight:default:8:4"]
DYNAMIC = ["attn:1:8:2", "dynamic:default:8:4"]


def both(**fields) -> dict:
    """The same for encoder and decoder."""
    return {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in fields.items()}


# name: (changes of the old options, how the file differs from the last published version's)
VARIANTS: dict[str, tuple[dict, set[str]]] = {
    "dynamic, gated, all shared": ({"share_all_embeddings": True}, set()),
    "dynamic, not gated": (both(glu=False), set()),
    "gate in the decoder only": ({"encoder_glu": False}, set()),
    "lightweight, unshared": ({"arch": f"{PREFIX}_iwslt_de_en"} | both(branch_type=LIGHT), {"function"}),
    "lightweight (H, K), legacy": (both(branch_type=LIGHT), {"flat kernels", "legacy"}),
    "no linear layers": ({"conv_linear": False} | both(branch_type=LIGHT), set()),
    "no linear layers, dynamic": ({"conv_linear": False}, set()),
    "decoder shared, branchs, merged": ({"share_decoder_input_output_embed": True}, {"branchs", "merged"}),
    "plain attention, merged": ({"arch": PREFIX} | both(branch_type=None), {"merged"}),
    "plain encoder only": ({"encoder_branch_type": None}, set()),
    "attention only": (both(branch_type=["attn:1:4:1", "attn:1:12:3"]), set()),
    "convolution only": (
        {"encoder_branch_type": ["lightweight:default:16:4"], "decoder_branch_type": ["dynamic:default:16:2"]},
        {"legacy"},
    ),
    "convolution first": (
        {
            "encoder_branch_type": ["dynamic:default:8:1", "attn:1:8:4"],
            "decoder_branch_type": ["lightweight:default:8:8", "attn:1:8:1"],
        },
        set(),
    ),
    "kernel of its own, even in the decoder": (
        {
            "encoder_branch_type": ["attn:1:10:5", "dynamic:5:6:2"],
            "decoder_branch_type": ["attn:1:8:2", "lightweight:6:8:2"],
        },
        {"flat kernels"},
    ),
    "three branches": (both(branch_type=["lightweight:9:4:2", "attn:1:4:2", "dynamic:default:8:2"]), set()),
    "kernels not normalised": ({"weight_softmax": False, "decoder_branch_type": LIGHT}, set()),
    "kernels longer than the sentence": (both(kernel_size_list=[31, 33]), set()),
    "norm first": ({"arch": f"{PREFIX}_wmt_en_de_big_t2t"} | both(normalize_before=True), set()),
    "learned positions, gelu": ({"activation_fn": "gelu"} | both(learned_pos=True), set()),
    "wider encoder, merged": (
        {"encoder_embed_dim": 24, "encoder_branch_type": ["attn:1:8:2", "dynamic:default:16:4"]},
        {"merged"},
    ),
    "wide feed-forward, other depths": (
        {"encoder_ffn_embed_dim": 40, "encoder_layers": 3, "decoder_layers": 1}
        | {"encoder_kernel_size_list": [3, 7, 15], "decoder_kernel_size_list": [3]},
        {"no optimizer"},
    ),
    "few options saved": ({}, {"few options"}),
}


def write_checkpoint(model: SlowReference, path: Path, traits: set[str]) -> None:
    """A file as the published code's trainer wrote it, with the given peculiarities."""
    weights = dict(model.parameters)
    if "flat kernels" in traits:
        kernels = [n for n, value in weights.items() if re.search(r"branches\.\d\.weight$", n)]
        assert kernels
        weights |= {name: weights[name].squeeze(1) for name in kernels}
    if "merged" in traits:
        for name in [n for n in weights if n.endswith("q_proj.weight")]:
            stem = name.removesuffix("q_proj.weight")
            q, k, v = (weights.pop(f"{stem}{letter}_proj.weight") for letter in "qkv")
            biases = [weights.pop(f"{stem}{letter}_proj.bias") for letter in "qkv"]
            weights[f"{stem}in_proj_bias"] = torch.cat(biases)
            if k.shape == q.shape:
                weights[f"{stem}in_proj_weight"] = torch.cat([q, k, v])
            else:
                weights |= {f"{stem}q_proj_weight": q, f"{stem}k_proj_weight": k, f"{stem}v_proj_weight": v}
    if "branchs" in traits:
        weights = {name.replace("branches", "branchs"): value for name, value in weights.items()}
    args = Namespace(**vars(model.args))
    if "function" in traits:
        args.ffn_init = widened_ffn_init
    if "few options" in traits:
        kept = ("arch", "source_lang", "target_lang", "data", "encoder_layers", "decoder_layers", "conv_linear")
        kept_too = ("embed_dim", "attention_heads", "branch_type", "kernel_size_list")
        args = Namespace(**{n: v for n, v in vars(args).items() if n in kept or n.endswith(kept_too)})
        args.encoder_ffn_embed_dim = model.args.encoder_ffn_embed_dim
    state = {
        "args": args,
        "model": weights,
        "optimizer_history": [
            {
                "criterion_name": "LabelSmoothedCrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": 4.25},
                "num_updates": 50000,
            }
        ],
        "extra_state": {
            "train_iterator": {"epoch": 14, "iterations_in_epoch": 0},
            "val_loss": 4.25,
            "best": 4.25,
            "train_meters": {"train_loss": PastAverageMeter(), "wps": PastTimeMeter()},
        },
        "last_optimizer_state": {"state": {0: {"step": 7, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    }
    if "no optimizer" in traits:
        del state["last_optimizer_state"]
    torch.save(state, path, _use_new_zipfile_serialization="legacy" not in traits)


def write_dictionaries(folder: Path, joined: bool) -> None:
    for language, count, letter in (("de", 13, "w"), ("en", 13 if joined else 11, "w" if joined else "v")):
        dictionary = Dictionary()
        for i in range(count):
            dictionary.add_symbol(f"{letter}{i:02d}", 50 - i)
        dictionary.save(str(folder / f"dict.{language}.txt"))


def load(path: Path, data: Path):
    """Model and task by the road of fairseq's commands; two seconds, most of it Hydra."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ensemble, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], arg_overrides={"data": str(data)}
        )
    return ensemble[0].eval(), task


def load_quickly(path: Path, data: Path):
    """The same without Hydra: fairseq's registries straight from the old options."""
    state = load_checkpoint(path)
    args = Namespace(**{**vars(state["args"]), "data": str(data), "task": "translation"})
    task = tasks.setup_task(args)
    model = models.build_model(args, task)
    model.load_state_dict(state["model"], strict=True, model_cfg=args)
    return model.eval(), task


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only get in each other's way at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SENTENCES = [[4, 9, 5, 16, 7, 12, 8], [11, 6, 14], [10]]


def batch(side: str) -> torch.Tensor:
    longest = max(map(len, SENTENCES)) + 1
    rows = []
    for sentence in SENTENCES:
        padding = [PAD] * (longest - len(sentence) - 1)
        rows.append([*padding, *sentence, EOS] if side == "left" else [*sentence, EOS, *padding])
    return torch.tensor(rows)


PREVIOUS = torch.tensor([[EOS, 5, 13, 4, 8], [EOS, 6, 9, PAD, PAD], [EOS, 14, 7, 7, PAD]])


@pytest.mark.parametrize("name", VARIANTS)
def test_same_probabilities_and_same_beams(tmp_path, name):
    changes, traits = VARIANTS[name]
    args = old_args(**changes)
    joined = args.share_all_embeddings
    slow = SlowReference(args, 17, 17 if joined else 15, seed=len(name))
    write_checkpoint(slow, tmp_path / "old.pt", traits)
    write_dictionaries(tmp_path, joined)
    whole_road = bool(traits & {"function", "few options", "legacy"})
    model, task = (load if whole_road else load_quickly)(tmp_path / "old.pt", tmp_path)

    for side in ("left", "right"):
        source = batch(side)
        with torch.no_grad():
            output = model(source, source.ne(PAD).sum(1), PREVIOUS)
            actual = model.get_normalized_probs(output, log_probs=True)
        expected = slow.log_probabilities(source, PREVIOUS)
        assert actual.shape == expected.shape
        assert not torch.isnan(actual).any()
        # every position, those of target padding too
        assert torch.allclose(actual, expected, atol=1e-4, rtol=0), (actual - expected).abs().max()

    source = batch("left")
    generator = task.build_generator([model], Namespace(beam=3, max_len_a=0, max_len_b=6))
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1)}}
    found = task.inference_step(generator, [model], sample)
    for hypotheses, expected_ones in zip(found, slow.beam_search(source, beam=3, longest=6), strict=True):
        assert [h["tokens"].tolist() for h in hypotheses] == [tokens for tokens, _ in expected_ones]
        scores = [float(h["score"]) for h in hypotheses]
        assert scores == pytest.approx([score for _, score in expected_ones], abs=1e-4)


def test_the_variants_are_all_there():
    assert len(VARIANTS) == 22
    assert set().union(*(traits for _, traits in VARIANTS.values())) == {
        "function", "flat kernels", "legacy", "branchs", "merged", "no optimizer", "few options",
    }  # fmt: skip


def golden_expectations() -> dict:
    return json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


def read_hypotheses(text: str) -> list[list[tuple[str, float]]]:
    """Per sentence the (text, score) of fairseq's H lines, in the corpus order."""
    found: dict[int, list[tuple[str, float]]] = {}
    for number, score, words in re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", text, flags=re.MULTILINE):
        found.setdefault(int(number), []).append((words, float(score)))
    return [found[number] for number in sorted(found)]


GENERATE = ["--path", GOLDEN / "golden.pt", "--user-dir", "lite_transformer", "--cpu", "--max-len-b", 20]
ONE_BATCH = ["--dataset-impl", "raw", "--batch-size", 6, "--required-batch-size-multiple", 1]


def test_golden_checkpoint_through_fairseq_generate():
    text = run("fairseq-generate", GOLDEN, *GENERATE, *ONE_BATCH, "--beam", 4, "--nbest", 4)
    actual, expected = read_hypotheses(text), golden_expectations()["beam_4"]
    assert len(actual) == 6
    for hypotheses, expected_ones in zip(actual, expected, strict=True):
        assert [words for words, _ in hypotheses] == [words for words, _ in expected_ones]
        # fairseq prints base-2 logarithms now
        in_bits = [score / math.log(2) for _, score in expected_ones]
        assert [score for _, score in hypotheses] == pytest.approx(in_bits, abs=1e-4)


def test_golden_probabilities():
    model, task = load(GOLDEN / "golden.pt", GOLDEN)
    rows = {}
    for language, dictionary in (("de", task.source_dictionary), ("en", task.target_dictionary)):
        lines = (GOLDEN / f"test.de-en.{language}").read_text(encoding="utf-8").splitlines()
        rows[language] = [[dictionary.index(word) for word in line.split()] + [EOS] for line in lines]
    longest = max(map(len, rows["de"]))
    source = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows["de"]])
    longest = max(map(len, rows["en"]))
    previous = torch.tensor([[EOS, *row[:-1]] + [PAD] * (longest - len(row)) for row in rows["en"]])
    with torch.no_grad():
        found = model.get_normalized_probs(model(source, source.ne(PAD).sum(1), previous), log_probs=True)
    expected = golden_expectations()["target_log_probabilities"]
    assert len(expected) == 6
    for i, scores in enumerate(expected):
        assert [float(found[i, t, token]) for t, token in enumerate(rows["en"][i])] == pytest.approx(scores, abs=1e-5)


def test_golden_checkpoint_through_fairseq_interactive():
    """The longest sentence alone and all six in one buffer: the second equals the batch that made the file."""
    source = (GOLDEN / "test.de-en.de").read_text(encoding="utf-8")
    buffer = ["--buffer-size", 6, "--batch-size", 6, "--required-batch-size-multiple", 1, "--beam", 4]
    text = run("fairseq-interactive", GOLDEN, *GENERATE, *buffer, "-s", "de", "-t", "en", stdin=source)
    best = [row[0][0] for row in read_hypotheses(text)]
    assert best == [row[0][0] for row in golden_expectations()["beam_4"]]


def test_golden_file_is_what_it_says():
    state = load_checkpoint(GOLDEN / "golden.pt")
    assert state["args"].ffn_init is widened_ffn_init
    assert isinstance(state["extra_state"]["train_meters"]["train_loss"], PastAverageMeter)
    biases = [value for name, value in state["model"].items() if name.endswith("bias")]
    assert len(biases) > 30
    assert all(value.abs().max() > 0.1 for value in biases)
    assert (GOLDEN / "golden.pt").stat().st_size < 200_000
    assert not (GOLDEN / "golden.pt").read_bytes().startswith(b"PK")


def test_an_old_checkpoint_from_a_gpu_loads(tmp_path):
    """The published ones name CUDA storages; the format before torch 1.6 writes them as text."""
    raw = (GOLDEN / "golden.pt").read_bytes()
    on_gpu = raw.replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage")
    on_gpu = on_gpu.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert on_gpu.count(b"cuda:0") >= 1
    (tmp_path / "gpu.pt").write_bytes(on_gpu)
    there, here = load_checkpoint(tmp_path / "gpu.pt")["model"], load_checkpoint(GOLDEN / "golden.pt")["model"]
    assert all(torch.equal(there[name], here[name]) for name in here)


def test_old_command_line_trains_and_its_checkpoint_loads(tmp_path):
    for path in GOLDEN.glob("dict.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            source = (GOLDEN / f"test.de-en.{language}").read_bytes()
            (tmp_path / f"{split}.de-en.{language}").write_bytes(source)
    sides = []
    for side in ("encoder", "decoder"):
        sides += [f"--{side}-embed-dim", 16, f"--{side}-ffn-embed-dim", 16, f"--{side}-layers", 2]
        sides += [f"--{side}-branch-type", *DYNAMIC, f"--{side}-glu", 1]
    run(
        "fairseq-train", tmp_path, "--user-dir", "lite_transformer", "--arch", f"{PREFIX}_iwslt_de_en", *sides,
        "--conv-linear", "--weight-dropout", 0.1, "--encoder-ffn-list", "True", "-s", "de", "-t", "en",
        "--dataset-impl", "raw", "--optimizer", "adam", "--lr", 0.01, "--max-tokens", 100, "--max-update", 2,
        "--required-batch-size-multiple", 1, "--cpu", "--save-dir", tmp_path / "run", "--num-workers", 0,
    )  # fmt: skip
    model, _ = load(tmp_path / "run" / "checkpoint_last.pt", tmp_path)
    branch = model.encoder.layers[0].self_attn.branches[1]
    assert branch.gate
    assert not branch.mask_after_gate
    assert model.decoder.layers[0].encoder_attn.num_heads == 4
    assert model.encoder.layers[0].self_attn.branches[0].num_heads == 2


# ---- options


def test_every_old_architecture_is_registered():
    assert len(REFERENCE_ARCHITECTURES) == 7
    assert set(REFERENCE_ARCHITECTURES) <= set(ARCH_MODEL_REGISTRY)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("", {"encoder_embed_dim": 512, "encoder_ffn_embed_dim": 2048, "cross_attention_heads": 8, "dropout": 0.1}),
        ("_wmt_en_de", {"decoder_embed_dim": 512, "cross_attention_heads": 8, "ffn_init": "xavier"}),
        ("_iwslt_de_en", {"decoder_ffn_embed_dim": 1024, "cross_attention_heads": 4, "ffn_init": "widened"}),
        ("_vaswani_wmt_en_de_big", {"encoder_embed_dim": 1024, "cross_attention_heads": 16, "dropout": 0.3}),
        ("_vaswani_wmt_en_fr_big", {"decoder_ffn_embed_dim": 4096, "dropout": 0.1, "attention_dropout": 0.0}),
        ("_wmt_en_de_big", {"dropout": 0.3, "attention_dropout": 0.1, "weight_dropout": 0.1}),
        ("_wmt_en_de_big_t2t", {"encoder_normalize_before": True, "activation_dropout": 0.1, "dropout": 0.3}),
    ],
)
def test_defaults_of_the_old_architectures(architecture, expected):
    config = translate_options(Namespace(arch=PREFIX + architecture))
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.encoder_branches == ["attention"]


def test_published_wmt_options_translate():
    args = old_args(
        **both(embed_dim=496, ffn_embed_dim=496, layers=6, kernel_size_list=[3, 7, 15, 31, 31, 31, 31]),
        **both(branch_type=["attn:1:248:4", "dynamic:default:248:4"], attention_heads=8),
        share_all_embeddings=True,
    )
    config = translate_options(args)
    assert config.encoder_branches == config.decoder_branches == ["attention", "dynamic"]
    assert config.encoder_branch_dims == [248, 248]
    assert config.decoder_branch_heads == [4, 4]
    assert config.encoder_kernel_sizes == [3, 7, 15, 31, 31, 31]
    assert config.encoder_branch_kernel_sizes == [0, 0]
    assert (config.encoder_conv_gate, config.cross_attention_heads) == ("glu", 8)
    assert config.conv_padding_mask == "before_linear"
    assert args.encoder_kernel_size_list == [3, 7, 15, 31, 31, 31, 31], "the caller's options were changed"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"encoder_branch_type": ["attn:1:8:2", "dynamic:default:7:1"]},
            "--encoder-branch-type: branch widths 8 + 7 = 15 do not add up to --encoder-embed-dim 16",
        ),
        ({"decoder_branch_type": ["attn:8:2"]}, "--decoder-branch-type: 'attn:8:2' has 3 fields; write type:kernel"),
        (
            {"encoder_branch_type": ["atn:1:16:2"]},
            "unknown branch type 'atn' in 'atn:1:16:2'; known: attn, lightweight, dynamic",
        ),
        ({"encoder_branch_type": ["dynamic:wide:16:4"]}, "kernel 'wide' in 'dynamic:wide:16:4' is not a positive"),
        ({"encoder_branch_type": ["dynamic:3:16:0"]}, "heads '0' in 'dynamic:3:16:0' is not a positive number"),
        ({"encoder_branch_type": ["dynamic:3:16:3"]}, "3 heads do not divide the dynamic branch of 16 channels"),
        ({"encoder_branch_type": ["dynamic:4:16:4"]}, "4 is even"),
        ({"encoder_kernel_size_list": [3, 7, 15], "encoder_layers": 4}, "has 3 entries for --encoder-layers 4"),
        ({"adaptive_softmax_cutoff": "100,200"}, "--adaptive-softmax-cutoff 100,200: an adaptive softmax is not"),
        ({"encoder_embed_path": "/gone/vectors.txt"}, "--encoder-embed-path /gone/vectors.txt does not exist"),
        ({"decoder_glu": "__import__('os')"}, "--decoder-glu: '__import__('os')' is neither true nor false"),
        ({"conv_linear": "maybe"}, "--conv-linear: 'maybe' is neither true nor false"),
    ],
)
def test_options_that_cannot_be_built(changes, text):
    with pytest.raises(ConfigError) as error:
        translate_options(old_args(**changes))
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gate_needs_a_dynamic_convolution_with_linear_layers():
    assert translate_options(old_args()).encoder_conv_gate == "glu"
    assert translate_options(old_args(encoder_branch_type=LIGHT)).encoder_conv_gate == "none"
    assert translate_options(old_args(conv_linear=False)).encoder_conv_gate == "none"


def test_branch_spec():
    assert parse_branch_spec("attn:1:248:4", "--x") == ("attention", 0, 248, 4)
    assert parse_branch_spec("dynamic:default:248:4", "--x") == ("dynamic", 0, 248, 4)
    assert parse_branch_spec("lightweight:9:6:2", "--x") == ("lightweight", 9, 6, 2)


def test_switch_values():
    assert [switch_value(v) for v in (True, 1, "1", "True", "yes")] == [True] * 5
    assert [switch_value(v) for v in (False, 0, "0", "false", None)] == [False] * 5
    with pytest.raises(ConfigError):
        switch_value("2")


def test_parameter_names_of_ours_stay():
    ours = {
        "encoder.layers.0.self_attn.branches.0.q_proj.weight": torch.ones(2, 2),
        "encoder.layers.0.self_attn.branches.1.weight": torch.ones(2, 3),
        "encoder.layers.0.self_attn.branches.1.weight_linear.weight": torch.ones(2, 3),
        "decoder.layers.0.encoder_attn.out_proj.bias": torch.ones(2),
        "decoder.embed_tokens.weight": torch.ones(4, 2),
    }
    upgraded = dict(ours)
    upgrade_parameter_names(upgraded)
    assert list(upgraded) == list(ours)
    assert all(torch.equal(upgraded[name], ours[name]) for name in ours)


def test_old_flags_are_offered():
    parser = argparse.ArgumentParser()
    reference_names.ReferenceLiteTransformer.add_args(parser)
    words = ["--encoder-branch-type", *DYNAMIC, "--encoder-glu", "1", "--weight-softmax", "0"]
    args, rest = parser.parse_known_args([*words, "--decoder-kernel-size-list", "3", "5", "--relu-dropout", "0.1"])
    assert rest == []
    assert args.encoder_branch_type == DYNAMIC
    assert (args.encoder_glu, args.weight_softmax, args.activation_dropout) == (True, False, 0.1)
    assert args.decoder_kernel_size_list == [3, 5]
