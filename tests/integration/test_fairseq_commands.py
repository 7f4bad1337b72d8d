"""fairseq's own commands with --user-dir lite_transformer."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils

import lite_transformer.models.safe_load
from lite_transformer.models import averaging
from lite_transformer.models.config import LiteTransformerConfig
from tests.conftest import TINY_SIZES
from tests.helpers import commands

assert lite_transformer.models.safe_load

USER_DIR = ("--user-dir", "lite_transformer")


def _load(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)


def test_fairseq_hydra_train_on_a_file_of_configs_trains_the_same_model_as_fairseq_train(
    tiny_data: Path, tiny_checkpoint: Path, tmp_path: Path
):
    commands.run(
        "fairseq-hydra-train", "--config-dir", "configs", "--config-name", commands.EXPERIMENT,
        f"task.data={tiny_data}", f"checkpoint.save_dir={tmp_path}", *commands.overrides(plus="+"),
    )  # fmt: skip

    by_flags, by_yaml = _load(tiny_checkpoint), _load(tmp_path / "checkpoint_last.pt")

    assert by_flags["cfg"]["model"] == by_yaml["cfg"]["model"]
    assert {k: v.shape for k, v in by_flags["model"].items()} == {k: v.shape for k, v in by_yaml["model"].items()}
    for name, weight in by_flags["model"].items():
        torch.testing.assert_close(by_yaml["model"][name], weight, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert by_yaml["extra_state"]["val_loss"] == by_flags["extra_state"]["val_loss"]


# Every option of the model at once, with another value than the default of the architecture (gates excepted).
EVERY_OPTION: dict[str, Any] = {
    "activation_fn": "gelu",
    "dropout": 0.05,
    "attention_dropout": 0.06,
    "activation_dropout": 0.07,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_normalize_before": True,
    "encoder_learned_pos": True,
    "encoder_layerdrop": 0.1,
    "encoder_layers_to_keep": "0,2",
    "encoder_embed_path": "EMBEDDING",
    "decoder_embed_dim": 24,
    "decoder_ffn_embed_dim": 40,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_normalize_before": True,
    "decoder_learned_pos": True,
    "decoder_layerdrop": 0.1,
    "decoder_layers_to_keep": "0,1",
    "decoder_embed_path": "EMBEDDING",
    "share_decoder_input_output_embed": True,
    "share_all_embeddings": True,
    "no_token_positional_embeddings": True,
    "no_scale_embedding": True,
    "layernorm_embedding": True,
    "max_source_positions": 60,
    "max_target_positions": 61,
    "checkpoint_activations": True,
    "offload_activations": True,
    "min_params_to_wrap": 1000,
    "cross_attention_heads": 3,
    "encoder_branches": ["attention", "dynamic", "lightweight"],
    "encoder_branch_dims": [8, 12, 4],
    "encoder_branch_heads": [2, 3, 1],
    "encoder_branch_kernel_sizes": [0, 5, 0],
    "encoder_kernel_sizes": [3, 9, 5],
    "encoder_conv_gate": "none",
    "decoder_branches": ["lightweight", "attention"],
    "decoder_branch_dims": [16, 8],
    "decoder_branch_heads": [4, 2],
    "decoder_branch_kernel_sizes": [7, 0],
    "decoder_kernel_sizes": [5, 3, 4],
    "decoder_conv_gate": "none",
    "weight_dropout": 0.2,
    "no_weight_softmax": True,
    "no_conv_linear": True,
    "conv_padding_mask": "before_linear",
    "ffn_init": "xavier",
    "cuda_graphs": "off",
    "conv_backend": "reference",
}


def test_every_model_option_can_be_given_on_the_command_line(tiny_data: Path, tmp_path: Path):
    assert set(EVERY_OPTION) == {item.name for item in dataclasses.fields(LiteTransformerConfig)} - {"_name"}
    embedding = tmp_path / "embedding.txt"
    embedding.write_text("1 24\n7 " + " ".join(["0.5"] * 24) + "\n", encoding="utf-8")
    expected = {k: str(embedding) if v == "EMBEDDING" else v for k, v in EVERY_OPTION.items()}
    flags: list[str] = []
    for name, value in expected.items():
        flags.append(f"--{name.replace('_', '-')}")
        if isinstance(value, list):
            flags.append(",".join(map(str, value)))
        elif value is not True:
            flags.append(str(value))

    commands.run("fairseq-train", *commands.train_flags(tiny_data, tmp_path), *flags, "--max-update", "2")

    saved = _load(tmp_path / "checkpoint_last.pt")["cfg"]["model"]
    assert {name: saved[name] for name in expected} == expected


def _hypotheses(output: str) -> int:
    return len(re.findall(r"^H-\d+\t", output, re.MULTILINE))


def test_generate_needs_a_batch_multiple_of_one_to_translate_every_sentence(tiny_data: Path, tiny_checkpoint: Path):
    generate = ("fairseq-generate", tiny_data, *USER_DIR, "--path", tiny_checkpoint, "--beam", "2", "--cpu")

    complete, trapped = commands.run_together((*generate, "--required-batch-size-multiple", "1"), generate)

    assert _hypotheses(complete) == TINY_SIZES["test"]
    # the trap itself: should fairseq ever mend it, our settings may go
    assert _hypotheses(trapped) < TINY_SIZES["test"]


def test_interactive_translates_what_is_typed(tiny_data: Path, tiny_checkpoint: Path):
    output = commands.run(
        "fairseq-interactive", tiny_data, *USER_DIR, "--path", tiny_checkpoint, "--beam", "2", "--cpu",
        stdin="1 2 3\n4 5\n",
    )  # fmt: skip

    assert _hypotheses(output) == 2
    assert "S-1\t4 5" in output


def test_validate_reports_the_loss_of_training(tiny_data: Path, tiny_checkpoint: Path):
    output = commands.run(
        "fairseq-validate", tiny_data, *USER_DIR, "--path", tiny_checkpoint, "--valid-subset", "valid", "--cpu",
        "--task", "translation", "--source-lang", "de", "--target-lang", "en",
        "--required-batch-size-multiple", "1", "--max-tokens", "128",
    )  # fmt: skip

    found = re.search(r"valid on 'valid' subset \| loss ([\d.]+)", output)
    assert found, output[-2000:]
    assert abs(float(found[1]) - _load(tiny_checkpoint)["extra_state"]["val_loss"]) < 2e-3


def test_a_checkpoint_loads_through_fairseq_with_its_task_and_a_changed_setting(tiny_data: Path, tiny_checkpoint: Path):
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tiny_checkpoint)], arg_overrides={"data": str(tiny_data), "dropout": 0.25}
    )

    weights = _load(tiny_checkpoint)["model"]
    assert len(models) == 1
    assert cfg.model._name == "lite_transformer_iwslt_de_en"
    assert cfg.model.dropout == 0.25
    assert task.source_dictionary == task.target_dictionary
    for name, value in models[0].state_dict().items():
        if name in weights:
            torch.testing.assert_close(value, weights[name], rtol=0, atol=0)


def test_averaged_checkpoints_are_the_mean_and_load(tiny_data: Path, tiny_checkpoint: Path, tmp_path: Path):
    folder = tiny_checkpoint.parent
    average = tmp_path / "average.pt"

    averaging.write_average(averaging.last_epochs(folder, 2), average)
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(average)], arg_overrides={"data": str(tiny_data)})

    name = "encoder.layers.0.self_attn.branches.0.q_proj.weight"
    epochs = [_load(path)["model"][name] for path in averaging.last_epochs(folder, 2)]
    assert not torch.equal(*epochs)
    torch.testing.assert_close(models[0].state_dict()[name], (epochs[0] + epochs[1]) / 2)
