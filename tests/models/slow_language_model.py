"""The published language model once more, slowly and from its description; see `slow_reference`.

A decoder alone, pre-norm, with adaptive input and adaptive softmax written from their definitions: band i of the
vocabulary has embeddings factor^i times narrower and a projection; log p(word of a narrow band) is that of its band
among the first band's words, plus that of the word within the band.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections import OrderedDict

import torch
from torch import Tensor

from tests.models.slow_reference import PAD, SlowReference, old_args


def old_lm_args(**changes) -> Namespace:
    """Every field a training run of the published language model left in its checkpoint, for a tiny model."""
    fields = {name: value for name, value in vars(old_args()).items() if not name.startswith(("encoder_", "decoder_"))}
    for name in ("source_lang", "target_lang", "left_pad_source", "left_pad_target", "max_source_positions"):
        del fields[name]
    fields |= {
        "arch": "transformer_lm_multibranch_v2_wiki103_small",
        "task": "language_modeling",
        "criterion": "adaptive_loss",
        "optimizer": "nag",
        "momentum": 0.99,
        "lr": [0.0001],
        "max_lr": 1.0,
        "t_mult": 2.0,
        "lr_shrink": 0.75,
        "clip_norm": 0.1,
        "max_update": 286000,
        "max_tokens": 3072,
        "update_freq": [3],
        "tokens_per_sample": 32,
        "sample_break_mode": "none",
        "output_dictionary_size": -1,
        "self_target": False,
        "future_target": False,
        "past_target": False,
        "add_bos_token": False,
        "max_target_positions": None,
        "activation_dropout": 0.1,
        "decoder_embed_dim": 16,
        "decoder_input_dim": 16,
        "decoder_output_dim": 16,
        "decoder_ffn_embed_dim": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 8,
        "decoder_normalize_before": True,
        "no_decoder_final_norm": True,
        "decoder_learned_pos": False,
        "decoder_branch_type": ["attn:1:8:2", "dynamic:default:8:4"],
        "decoder_kernel_size_list": [3, 7],
        "decoder_glu": True,
        "character_embeddings": False,
        "adaptive_input": True,
        "adaptive_input_factor": 4.0,
        "adaptive_input_cutoff": "8,14",
        "adaptive_softmax_cutoff": "8,14",
        "adaptive_softmax_dropout": 0.2,
        "adaptive_softmax_factor": 4.0,
        "tie_adaptive_weights": True,
        "tie_adaptive_proj": True,
        "get_attn": False,
        "use_all_embedding": False,
    }
    return Namespace(**(fields | changes))


class SlowLanguageModel(SlowReference):
    """A language model of the published implementation: ``parameters`` under their names, and its forward pass."""

    def __init__(self, args: Namespace, types: int, seed: int):
        self.args, self.types = args, types
        self.random = torch.Generator().manual_seed(seed)
        self.parameters: OrderedDict[str, Tensor] = OrderedDict()
        dim = args.decoder_embed_dim
        self.parameters["decoder.version"] = torch.Tensor([3])
        if args.adaptive_input:
            self._make_adaptive_input(dim)
        else:
            self._make("decoder.embed_tokens.weight", types, dim, scale=0.5)
            self.parameters["decoder.embed_tokens.weight"][PAD] = 0
        if args.decoder_learned_pos:
            self._make("decoder.embed_positions.weight", args.tokens_per_sample + PAD + 1, dim, scale=0.5)
            self.parameters["decoder.embed_positions.weight"][PAD] = 0
        else:
            self.parameters["decoder.embed_positions._float_tensor"] = torch.zeros(1)
        for layer in range(args.decoder_layers):
            name = f"decoder.layers.{layer}"
            if args.decoder_branch_type is None:
                self._make_attention(f"{name}.self_attn", dim)
            for index, spec in enumerate(args.decoder_branch_type or []):
                self._make_branch(f"{name}.self_attn.branches.{index}", "decoder", layer, spec)
            self._make_linear(f"{name}.fc1", dim, args.decoder_ffn_embed_dim)
            self._make_linear(f"{name}.fc2", args.decoder_ffn_embed_dim, dim)
            for norm in ("self_attn_layer_norm", "final_layer_norm"):
                self._make_norm(f"{name}.{norm}", dim)
        if not args.no_decoder_final_norm:
            self._make_norm("decoder.layer_norm", dim)
        if args.adaptive_softmax_cutoff is not None:
            self._make_adaptive_softmax(dim)
        elif not args.share_decoder_input_output_embed:
            self._make("decoder.embed_out", types, dim, scale=0.5)

    def _bands(self, cutoffs: str) -> list[tuple[int, int]]:
        """[start, end) of every band."""
        ends = [*map(int, cutoffs.split(",")), self.types]
        return list(zip([0, *ends], ends, strict=False))

    def _width(self, band: int) -> int:
        return int(self.args.decoder_embed_dim // self.args.adaptive_softmax_factor**band)

    def _make_adaptive_input(self, dim: int) -> None:
        for band, (start, end) in enumerate(self._bands(self.args.adaptive_input_cutoff)):
            name = f"decoder.embed_tokens.embeddings.{band}"
            self._make(f"{name}.0.weight", end - start, self._width(band), scale=0.7)
            self._make_linear(f"{name}.1", self._width(band), dim, bias=False)
        self.parameters["decoder.embed_tokens.embeddings.0.0.weight"][PAD] = 0
        self.parameters["decoder.embed_tokens._float_tensor"] = torch.zeros(1)

    def _make_adaptive_softmax(self, dim: int) -> None:
        (_, first), *narrow = self._bands(self.args.adaptive_softmax_cutoff)
        name, tied = "decoder.adaptive_softmax", self.args.tie_adaptive_weights
        self.parameters[f"{name}.version"] = torch.LongTensor([1])
        table, projection = "decoder.embed_tokens.embeddings.{}.0.weight", "decoder.embed_tokens.embeddings.{}.1.weight"
        if tied:
            self.parameters[f"{name}.head.word_proj.weight"] = self.parameters[table.format(0)]
            self._make_linear(f"{name}.head.class_proj", dim, len(narrow), bias=False)
            self.parameters[f"{name}.head._float_tensor"] = torch.zeros(1)
        else:
            self._make_linear(f"{name}.head", dim, first + len(narrow), bias=False)
        for band, (start, end) in enumerate(narrow, start=1):
            tail, width = f"{name}.tail.{band - 1}", self._width(band)
            if tied and self.args.tie_adaptive_proj:
                self.parameters[f"{tail}.0.weight"] = self.parameters[projection.format(band)]
            else:
                self._make_linear(f"{tail}.0", dim, width, bias=False)
            if tied:
                self.parameters[f"{tail}.2.weight"] = self.parameters[table.format(band)]
            else:
                self._make_linear(f"{tail}.2", width, end - start, bias=False)

    def _embed(self, side: str, tokens: Tensor) -> Tensor:
        if not self.args.adaptive_input:
            return super()._embed(side, tokens)
        looked_up = torch.zeros(self.types, self.args.decoder_embed_dim)
        for band, (start, end) in enumerate(self._bands(self.args.adaptive_input_cutoff)):
            name = f"decoder.embed_tokens.embeddings.{band}"
            looked_up[start:end] = self._linear(f"{name}.1", self.parameters[f"{name}.0.weight"])
        kept = self.parameters
        self.parameters = kept | {"decoder.embed_tokens.weight": looked_up}
        x = super()._embed(side, tokens)
        self.parameters = kept
        return x

    def log_probabilities(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, time) -> (batch, time, types): of the next token."""
        x, nothing = self._embed("decoder", tokens), torch.zeros_like(tokens, dtype=torch.bool)
        for layer in range(self.args.decoder_layers):
            name = f"decoder.layers.{layer}"
            y = self._norm(f"{name}.self_attn_layer_norm", x)
            x = x + self._self_attend("decoder", layer, y, nothing)
            x = x + self._feed_forward(name, self._norm(f"{name}.final_layer_norm", x))
        if not self.args.no_decoder_final_norm:
            x = self._norm("decoder.layer_norm", x)
        if self.args.adaptive_softmax_cutoff is None:
            shared = self.args.share_decoder_input_output_embed
            table = self.parameters["decoder.embed_tokens.weight" if shared else "decoder.embed_out"]
            return torch.log_softmax(x @ table.t(), -1)
        return self._adaptive(x)

    def _adaptive(self, x: Tensor) -> Tensor:
        name = "decoder.adaptive_softmax"
        (_, first), *narrow = self._bands(self.args.adaptive_softmax_cutoff)
        if self.args.tie_adaptive_weights:
            rows = [self.parameters[f"{name}.head.{part}.weight"] for part in ("word_proj", "class_proj")]
            head = torch.log_softmax(x @ torch.cat(rows).t(), -1)
        else:
            head = torch.log_softmax(self._linear(f"{name}.head", x), -1)
        parts = [head[..., :first]]
        for band in range(len(narrow)):
            projection = self.parameters[f"{name}.tail.{band}.0.weight"]
            # a tied projection is the input's (channels x width), used the other way round
            inner = x @ (projection if self._ties_projections() else projection.t())
            within = torch.log_softmax(inner @ self.parameters[f"{name}.tail.{band}.2.weight"].t(), -1)
            parts.append(head[..., first + band, None] + within)
        return torch.cat(parts, -1)

    def _ties_projections(self) -> bool:
        return self.args.tie_adaptive_weights and self.args.tie_adaptive_proj


def perplexity(log_probabilities: Tensor, targets: Tensor) -> float:
    """Of targets (batch, time) by log-probabilities (batch, time, types)."""
    return math.exp(-log_probabilities.gather(-1, targets.unsqueeze(-1)).mean().item())
