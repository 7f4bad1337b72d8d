"""Checkpoints of the published language models load through fairseq's own entry points and compute the same.

`slow_language_model` computes every expectation. No checkpoint of that code is at hand: names and defaults are those of
its source, the computation is written from its description.
"""

from __future__ import annotations

import argparse
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
from lite_transformer.models import reference_lm_names
from lite_transformer.models.reference_lm_names import REFERENCE_LM_ARCHITECTURES, translate_lm_options
from lite_transformer.models.safe_load import load_checkpoint
from tests.helpers.compare import assert_same
from tests.models.slow_language_model import SlowLanguageModel, old_lm_args

PREFIX = "transformer_lm_multibranch_v2"
TYPES = 20  # four special symbols and sixteen words: bands of 8, 6 and 6
TOKENS = torch.tensor([[2, 5, 13, 4, 18, 19, 7, 9, 11], [2, 6, 16, 8, 4, 15, 2, 3, 10]])
NO_BANDS = {
    "arch": PREFIX, "adaptive_input": False, "adaptive_input_cutoff": None, "adaptive_softmax_cutoff": None,
    "tie_adaptive_weights": False, "tie_adaptive_proj": False, "criterion": "cross_entropy",
}  # fmt: skip
VARIANTS: dict[str, dict] = {
    "as on WikiText-103": {},
    "widths that the factor does not divide": {"adaptive_softmax_factor": 3.0, "adaptive_input_factor": 3.0},
    "projections of their own": {"tie_adaptive_proj": False},
    "nothing tied": {"tie_adaptive_weights": False, "tie_adaptive_proj": False},
    "adaptive softmax only": {"adaptive_input": False, "tie_adaptive_weights": False, "tie_adaptive_proj": False},
    "no bands, shared": NO_BANDS | {"share_decoder_input_output_embed": True},
    "no bands, unshared, final norm": NO_BANDS | {"no_decoder_final_norm": False, "activation_fn": "gelu"},
    "not gated": {"decoder_glu": False},
    "lightweight": {"decoder_branch_type": ["attn:1:8:2", "lightweight:default:8:4"]},
    "no linear layers": {"conv_linear": False, "decoder_glu": False},
    "plain attention": {"decoder_branch_type": None},
    "learned positions, wide": {"decoder_learned_pos": True, "decoder_ffn_embed_dim": 24},
}


def write_checkpoint(model: SlowLanguageModel, path: Path) -> None:
    """A file as the published code's trainer wrote it; the optimizer's state is left out."""
    state = {
        "args": model.args,
        "model": dict(model.parameters),
        "optimizer_history": [
            {
                "criterion_name": "AdaptiveLoss",
                "optimizer_name": "FairseqNAG",
                "lr_scheduler_state": {"best": 4.25},
                "num_updates": 286000,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 14, "iterations_in_epoch": 0}, "val_loss": 4.25, "best": 4.25},
        "last_optimizer_state": None,
    }
    torch.save(state, path)


def write_dictionary(folder: Path, types: int = TYPES) -> None:
    dictionary = Dictionary()
    for i in range(types - 4):
        dictionary.add_symbol(f"w{i:02d}", 50 - i)
    dictionary.save(str(folder / "dict.txt"))


def load_quickly(path: Path, data: Path):
    """fairseq's registries straight from the old options, without Hydra."""
    state = load_checkpoint(path)
    args = Namespace(**{**vars(state["args"]), "data": str(data)})
    task = tasks.setup_task(args)
    model = models.build_model(args, task)
    model.load_state_dict(state["model"], strict=True, model_cfg=args)
    return model.eval()


def load_by_fairseq(path: Path, data: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ensemble, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides={"data": str(data)})
    return ensemble[0].eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_same_probabilities(tmp_path, name):
    slow = SlowLanguageModel(old_lm_args(**VARIANTS[name]), TYPES, seed=len(name))
    write_checkpoint(slow, tmp_path / "old.pt")
    write_dictionary(tmp_path)
    model = (load_by_fairseq if name == "as on WikiText-103" else load_quickly)(tmp_path / "old.pt", tmp_path)

    with torch.no_grad():
        found = model.get_normalized_probs(model(TOKENS), log_probs=True)

    assert_same(found, slow.log_probabilities(TOKENS), atol=1e-4)
    assert_same(found.exp().sum(-1), torch.ones(TOKENS.shape), atol=1e-5)


def test_the_slow_model_shares_what_is_tied():
    slow = SlowLanguageModel(old_lm_args(), TYPES, seed=1)
    names = slow.parameters
    assert names["decoder.adaptive_softmax.tail.0.2.weight"] is names["decoder.embed_tokens.embeddings.1.0.weight"]
    assert names["decoder.embed_tokens.embeddings.2.0.weight"].shape == (6, 1)


def test_old_names_of_attention_are_upgraded(tmp_path):
    slow = SlowLanguageModel(old_lm_args(), TYPES, seed=3)
    expected = slow.log_probabilities(TOKENS)
    slow.parameters = type(slow.parameters)(
        (re.sub("branches", "branchs", name), value) for name, value in slow.parameters.items()
    )
    write_checkpoint(slow, tmp_path / "old.pt")
    write_dictionary(tmp_path)
    model = load_quickly(tmp_path / "old.pt", tmp_path)
    with torch.no_grad():
        assert_same(model.get_normalized_probs(model(TOKENS), log_probs=True), expected, atol=1e-4)


def test_every_old_architecture_is_registered():
    assert len(REFERENCE_LM_ARCHITECTURES) == 12
    assert set(REFERENCE_LM_ARCHITECTURES) <= set(ARCH_MODEL_REGISTRY)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("", {"decoder_embed_dim": 512, "decoder_ffn_embed_dim": 2048, "decoder_layers": 6, "final_norm": True}),
        ("_big", {"decoder_embed_dim": 1024, "decoder_layers": 12, "decoder_branch_heads": [16], "dropout": 0.1}),
        ("_wiki103", {"decoder_embed_dim": 1024, "decoder_layers": 16, "decoder_branch_heads": [8], "dropout": 0.3}),
        ("_baevski_wiki103_small", {"decoder_layers": 12, "decoder_ffn_embed_dim": 512, "final_norm": False}),
        ("_wiki103_small", {"adaptive_input_cutoff": [20000, 60000], "adaptive_softmax_dropout": 0.2}),
        ("_gbw", {"decoder_embed_dim": 512, "decoder_ffn_embed_dim": 4096, "attention_dropout": 0.1}),
        ("_gpt", {"decoder_embed_dim": 768, "activation_fn": "gelu", "adaptive_input_cutoff": None}),
        ("_gpt2_small", {"decoder_embed_dim": 1024, "decoder_layers": 24, "decoder_ffn_embed_dim": 4096}),
        ("_gpt2_medium", {"decoder_embed_dim": 1280, "decoder_branch_heads": [20]}),
        ("_gpt2_big", {"decoder_embed_dim": 1600, "decoder_ffn_embed_dim": 6400, "decoder_layers": 48}),
    ],
)
def test_defaults_of_the_old_architectures(architecture, expected):
    config = translate_lm_options(Namespace(arch=PREFIX + architecture, decoder_kernel_size_list=[3]))
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_published_options_translate():
    typed = {"decoder_embed_dim": 896, "decoder_ffn_embed_dim": 896, "decoder_input_dim": None}
    typed |= {"decoder_output_dim": None, "decoder_layers": None, "dropout": 0.21, "attention_dropout": 0.14}
    typed |= {"weight_dropout": 0.14, "decoder_branch_type": ["attn:1:448:4", "dynamic:default:448:4"]}
    typed |= {"decoder_kernel_size_list": [15] * 2 + [31] * 4 + [63] * 11, "tokens_per_sample": 3072}
    typed |= {"adaptive_input_cutoff": None, "adaptive_softmax_cutoff": None, "activation_dropout": None}
    config = translate_lm_options(old_lm_args(**typed))
    assert config.decoder_kernel_sizes == [15] * 2 + [31] * 4 + [63] * 6
    assert (config.decoder_branch_dims, config.decoder_branch_heads) == ([448, 448], [4, 4])
    assert (config.decoder_conv_gate, config.conv_padding_mask) == ("glu", "before_linear")
    assert (config.dropout, config.weight_dropout, config.activation_dropout) == (0.21, 0.14, 0.1)
    assert (config.adaptive_input_cutoff, config.max_target_positions) == ([20000, 60000], 3072)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"character_embeddings": True}, "--character-embeddings: embeddings from characters are not supported"),
        ({"decoder_input_dim": 8}, "--decoder-input-dim 8 differs from --decoder-embed-dim 16"),
        ({"adaptive_input_factor": 2.0}, "--adaptive-input-factor 2.0 and --adaptive-softmax-factor 4.0 differ"),
        ({"adaptive_input_cutoff": "__import__('os')"}, "--adaptive-input-cutoff '__import__('os')': write growing"),
        ({"arch": PREFIX, "adaptive_input_cutoff": None}, "--adaptive-input needs --adaptive-input-cutoff"),
        ({"adaptive_input_cutoff": "8,12"}, "differ: tied tables need the same bands"),
        ({"decoder_branch_type": ["attn:1:8:2", "dynamic:default:4:4"]}, "8 + 4 = 12 do not add up to"),
    ],
)
def test_options_that_cannot_be_built(changes, text):
    with pytest.raises(ConfigError) as error:
        translate_lm_options(old_lm_args(**changes))
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_options_from_before_the_present_ones():
    before = {"arch": PREFIX, "no_decoder_final_norm": None, "tie_adaptive_proj": None}
    config = translate_lm_options(old_lm_args(**before, no_tie_adaptive_proj=False))
    assert not config.final_norm and config.ties_projections
    assert translate_lm_options(old_lm_args(**before, decoder_final_norm=True)).final_norm


def test_old_flags_are_offered():
    parser = argparse.ArgumentParser()
    reference_lm_names.ReferenceLanguageModel.add_args(parser)
    words = ["--decoder-branch-type", "attn:1:8:2", "--decoder-glu", "1", "--conv-linear", "--adaptive-input"]
    args, rest = parser.parse_known_args([*words, "--relu-dropout", "0.1"])
    assert rest == []
    assert (args.decoder_glu, args.conv_linear, args.adaptive_input, args.activation_dropout) == (True, True, True, 0.1)
    assert args.tie_adaptive_weights is None
    assert args.decoder_kernel_size_list[:12] == [15] * 2 + [31] * 4 + [63] * 6
