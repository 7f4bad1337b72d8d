"""The published model once more, slowly and from its description: parameters in a dict, one position at a time.

Written from the fact sheet (sections 3.1 and 3.3), not from code, so that it can disagree with the package. It makes
checkpoints as fairseq 0.8 wrote them, and says what they must compute.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor

BOS, PAD, EOS, UNK = 0, 1, 2, 3
KERNELS = [3, 7, 15, 31, 31, 31, 31]


def old_args(**changes) -> Namespace:
    """Every field a training run of fairseq 0.8 left in its checkpoint, for a tiny model."""
    side_fields = {}
    for side in ("encoder", "decoder"):
        side_fields |= {
            f"{side}_embed_dim": 16,
            f"{side}_ffn_embed_dim": 16,
            f"{side}_layers": 2,
            f"{side}_attention_heads": 4,
            f"{side}_normalize_before": False,
            f"{side}_learned_pos": False,
            f"{side}_embed_path": None,
            f"{side}_glu": True,
            f"{side}_branch_type": ["attn:1:8:2", "dynamic:default:8:4"],
            f"{side}_kernel_size_list": [3, 7],
            f"{side}_ffn_list": [True, True],
        }
    fields = {
        "arch": "transformer_multibranch_v2_wmt_en_de",
        "task": "translation",
        "criterion": "label_smoothed_cross_entropy",
        "optimizer": "adam",
        "lr_scheduler": "cosine",
        "data": "/gone/data-bin",
        "save_dir": "/gone/checkpoints",
        "configs": "configs/wmt16.en-de/attention/multibranch_v2/embed496.yml",
        "source_lang": "de",
        "target_lang": "en",
        "left_pad_source": True,
        "left_pad_target": False,
        "lazy_load": False,
        "raw_text": False,
        "max_source_positions": 1024,
        "max_target_positions": 1024,
        "upsample_primary": 1,
        "truncate_source": False,
        "load_alignments": False,
        "lr": [1e-07],
        "max_lr": 0.001,
        "min_lr": 1e-09,
        "warmup_init_lr": 1e-07,
        "warmup_updates": 10000,
        "lr_period_updates": 40000.0,
        "lr_shrink": 1.0,
        "t_mult": 1.0,
        "adam_betas": "(0.9, 0.98)",
        "adam_eps": 1e-08,
        "weight_decay": 0.0,
        "label_smoothing": 0.1,
        "clip_norm": 0.0,
        "sentence_avg": False,
        "update_freq": [16],
        "max_epoch": 0,
        "max_update": 50000,
        "max_tokens": 4096,
        "max_tokens_valid": 4096,
        "max_sentences": None,
        "max_sentences_valid": None,
        "required_batch_size_multiple": 8,
        "num_workers": 1,
        "dataset_impl": None,
        "train_subset": "train",
        "valid_subset": "valid",
        "curriculum": 0,
        "seed": 1,
        "cpu": False,
        "fp16": False,
        "memory_efficient_fp16": False,
        "fp16_init_scale": 128,
        "fp16_scale_window": None,
        "threshold_loss_scale": None,
        "min_loss_scale": 0.0001,
        "bucket_cap_mb": 25,
        "ddp_backend": "no_c10d",
        "device_id": 0,
        "distributed_backend": "nccl",
        "distributed_init_method": None,
        "distributed_no_spawn": False,
        "distributed_port": -1,
        "distributed_rank": 0,
        "distributed_world_size": 8,
        "find_unused_parameters": False,
        "fix_batches_to_gpus": False,
        "fast_stat_sync": False,
        "use_bmuf": False,
        "all_gather_list_size": 16384,
        "empty_cache_freq": 0,
        "log_format": None,
        "log_interval": 1000,
        "no_progress_bar": True,
        "tensorboard_logdir": "",
        "user_dir": None,
        "restore_file": "checkpoint_last.pt",
        "reset_dataloader": False,
        "reset_lr_scheduler": False,
        "reset_meters": False,
        "reset_optimizer": False,
        "optimizer_overrides": "{}",
        "save_interval": 1,
        "save_interval_updates": 0,
        "keep_interval_updates": -1,
        "keep_last_epochs": 20,
        "no_save": False,
        "no_epoch_checkpoints": False,
        "no_last_checkpoints": False,
        "no_save_optimizer_state": False,
        "best_checkpoint_metric": "loss",
        "maximize_best_checkpoint_metric": False,
        "patience": -1,
        "disable_validation": False,
        "validate_interval": 1,
        "fixed_validation_seed": None,
        "skip_invalid_size_inputs_valid_test": False,
        "activation_fn": "relu",
        "dropout": 0.1,
        "attention_dropout": 0.08,
        "activation_dropout": 0.0,
        "weight_dropout": 0.08,
        "input_dropout": 0.1,
        "weight_softmax": True,
        "conv_linear": True,
        "encoder_decoder_branch_type": None,
        "decoder_input_dim": 16,
        "adaptive_input": False,
        "adaptive_softmax_cutoff": None,
        "adaptive_softmax_dropout": 0,
        "tie_adaptive_weights": None,
        "no_token_positional_embeddings": False,
        "share_all_embeddings": False,
        "share_decoder_input_output_embed": False,
        "ffn_init": None,
        "init_method": "xavier",
    }
    return Namespace(**(fields | side_fields | changes))


class SlowReference:
    """A model of the published implementation: ``parameters`` under its last names, and its forward pass."""

    def __init__(self, args: Namespace, source_types: int, target_types: int, seed: int):
        self.args = args
        self.random = torch.Generator().manual_seed(seed)
        self.parameters: OrderedDict[str, Tensor] = OrderedDict()
        for side, types in (("encoder", source_types), ("decoder", target_types)):
            self._make_side(side, types)
        if args.share_all_embeddings:
            self.parameters["decoder.embed_tokens.weight"] = self.parameters["encoder.embed_tokens.weight"]
        if not (args.share_all_embeddings or args.share_decoder_input_output_embed):
            self._make("decoder.embed_out", target_types, args.decoder_embed_dim, scale=0.5)

    def _make(self, name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> None:
        self.parameters[name] = torch.randn(*shape, generator=self.random) * scale + shift

    def _make_linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        self._make(f"{name}.weight", outputs, inputs, scale=1.5 / math.sqrt(inputs))
        if bias:
            self._make(f"{name}.bias", outputs, scale=0.5)

    def _make_attention(self, name: str, dim: int, key_dim: int | None = None) -> None:
        for letter in "qkv":
            self._make_linear(f"{name}.{letter}_proj", dim if letter == "q" else key_dim or dim, dim)
        self._make_linear(f"{name}.out_proj", dim, dim)

    def _make_side(self, side: str, types: int) -> None:
        dim, ffn = getattr(self.args, f"{side}_embed_dim"), getattr(self.args, f"{side}_ffn_embed_dim")
        self.parameters[f"{side}.version"] = torch.Tensor([3])
        self._make(f"{side}.embed_tokens.weight", types, dim, scale=0.5)
        self.parameters[f"{side}.embed_tokens.weight"][PAD] = 0
        if getattr(self.args, f"{side}_learned_pos"):
            self._make(f"{side}.embed_positions.weight", 1024 + PAD + 1, dim, scale=0.5)
            self.parameters[f"{side}.embed_positions.weight"][PAD] = 0
        else:
            self.parameters[f"{side}.embed_positions._float_tensor"] = torch.zeros(1)
        for layer in range(getattr(self.args, f"{side}_layers")):
            name = f"{side}.layers.{layer}"
            specs = getattr(self.args, f"{side}_branch_type")
            if specs is None:
                self._make_attention(f"{name}.self_attn", dim)
            for index, spec in enumerate(specs or []):
                self._make_branch(f"{name}.self_attn.branches.{index}", side, layer, spec)
            norms = ["self_attn_layer_norm", "final_layer_norm"]
            if side == "decoder":
                self._make_attention(f"{name}.encoder_attn", dim, self.args.encoder_embed_dim)
                norms.append("encoder_attn_layer_norm")
            self._make_linear(f"{name}.fc1", dim, ffn)
            self._make_linear(f"{name}.fc2", ffn, dim)
            for norm in norms:
                self._make_norm(f"{name}.{norm}", dim)
        if getattr(self.args, f"{side}_normalize_before"):
            self._make_norm(f"{side}.layer_norm", dim)

    def _make_norm(self, name: str, dim: int) -> None:
        self._make(f"{name}.weight", dim, scale=0.3, shift=1.0)
        self._make(f"{name}.bias", dim, scale=0.3)

    def _branch(self, side: str, layer: int, spec: str) -> tuple[str, int, int, int]:
        kind, kernel, dim, heads = spec.split(":")
        own = getattr(self.args, f"{side}_kernel_size_list")[layer]
        return kind, own if kernel == "default" else int(kernel), int(dim), int(heads)

    def _make_branch(self, name: str, side: str, layer: int, spec: str) -> None:
        kind, kernel, dim, heads = self._branch(side, layer, spec)
        if kind == "attn":
            self._make_attention(name, dim)
            return
        if self.args.conv_linear:
            gated = kind == "dynamic" and getattr(self.args, f"{side}_glu")
            self._make_linear(f"{name}.linear1", dim, dim * (2 if gated else 1))
            self._make_linear(f"{name}.linear2", dim, dim)
        if kind == "dynamic":
            self._make_linear(f"{name}.weight_linear", dim, heads * kernel, bias=False)
        else:
            self._make(f"{name}.weight", heads, 1, kernel)

    # ---- what it computes; every tensor is (batch, time, channels)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.parameters[f"{name}.weight"].t() + self.parameters.get(f"{name}.bias", torch.zeros(()))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        scaled = (x - mean) / torch.sqrt(variance + 1e-5)
        return scaled * self.parameters[f"{name}.weight"] + self.parameters[f"{name}.bias"]

    def _attend(self, name: str, x: Tensor, memory: Tensor, heads: int, hidden: Tensor) -> Tensor:
        """hidden: (batch, queries, keys), True = not seen."""
        q, k, v = self._linear(f"{name}.q_proj", x), *(self._linear(f"{name}.{n}_proj", memory) for n in "kv")
        size = x.size(-1) // heads
        parts = []
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            scores = q[..., cut] @ k[..., cut].transpose(1, 2) / math.sqrt(size)
            parts.append(torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ v[..., cut])
        return self._linear(f"{name}.out_proj", torch.cat(parts, -1))

    def _convolve(self, name: str, side: str, x: Tensor, padding: Tensor, kind: str, kernel: int, heads: int) -> Tensor:
        x = x.masked_fill(padding.unsqueeze(-1), 0.0)  # before the first linear layer, whose bias undoes it
        if self.args.conv_linear:
            x = self._linear(f"{name}.linear1", x)
            if kind == "dynamic" and getattr(self.args, f"{side}_glu"):
                value, gate = x.chunk(2, -1)
                x = value * torch.sigmoid(gate)
        batch, length, dim = x.shape
        left = kernel // 2 if side == "encoder" else kernel - 1
        out = torch.zeros_like(x)
        for t in range(length):
            if kind == "dynamic":
                taps = self._linear(f"{name}.weight_linear", x[:, t]).view(batch, heads, kernel)
            else:
                taps = self.parameters[f"{name}.weight"].view(1, heads, kernel)
            taps = torch.softmax(taps, -1) if self.args.weight_softmax else taps
            for k in range(kernel):
                if 0 <= t + k - left < length:
                    out[:, t] += taps[..., k].repeat_interleave(dim // heads, -1) * x[:, t + k - left]
        return self._linear(f"{name}.linear2", out) if self.args.conv_linear else out

    def _self_attend(self, side: str, layer: int, x: Tensor, padding: Tensor) -> Tensor:
        name, length = f"{side}.layers.{layer}.self_attn", x.size(1)
        hidden = padding.unsqueeze(1).expand(-1, length, -1)
        if side == "decoder":
            hidden = hidden | torch.ones(length, length, dtype=torch.bool).triu(1)
        specs = getattr(self.args, f"{side}_branch_type")
        if specs is None:
            return self._attend(name, x, x, getattr(self.args, f"{side}_attention_heads"), hidden)
        out, start = [], 0
        for index, spec in enumerate(specs):
            kind, kernel, dim, heads = self._branch(side, layer, spec)
            part, start = x[..., start : start + dim], start + dim
            branch = f"{name}.branches.{index}"
            if kind == "attn":
                out.append(self._attend(branch, part, part, heads, hidden))
            else:
                out.append(self._convolve(branch, side, part, padding, kind, kernel, heads))
        return torch.cat(out, -1)

    def _embed(self, side: str, tokens: Tensor) -> Tensor:
        dim = getattr(self.args, f"{side}_embed_dim")
        x = self.parameters[f"{side}.embed_tokens.weight"][tokens] * math.sqrt(dim)
        real = tokens.ne(PAD)
        positions = torch.where(real, real.cumsum(1) + PAD, PAD)
        if getattr(self.args, f"{side}_learned_pos"):
            return x + self.parameters[f"{side}.embed_positions.weight"][positions]
        rates = torch.exp(torch.arange(dim // 2) * -(math.log(10000) / (dim // 2 - 1)))
        angles = positions.unsqueeze(-1) * rates
        return x + torch.cat([angles.sin(), angles.cos()], -1) * real.unsqueeze(-1)

    def _sublayer(self, side: str, norm: str, x: Tensor, function) -> Tensor:
        if getattr(self.args, f"{side}_normalize_before"):
            return x + function(self._norm(norm, x))
        return self._norm(norm, x + function(x))

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        act = {"relu": F.relu, "gelu": F.gelu}[self.args.activation_fn]
        return self._linear(f"{name}.fc2", act(self._linear(f"{name}.fc1", x)))

    def encode(self, tokens: Tensor) -> Tensor:
        """(batch, source) -> (batch, source, channels)."""
        x, padding = self._embed("encoder", tokens), tokens.eq(PAD)
        for layer in range(self.args.encoder_layers):
            name = f"encoder.layers.{layer}"
            x = self._sublayer(
                "encoder",
                f"{name}.self_attn_layer_norm",
                x,
                lambda y, layer=layer: self._self_attend("encoder", layer, y, padding),
            )
            x = self._sublayer(
                "encoder", f"{name}.final_layer_norm", x, lambda y, name=name: self._feed_forward(name, y)
            )
        return self._norm("encoder.layer_norm", x) if self.args.encoder_normalize_before else x

    def log_probabilities(self, source: Tensor, previous: Tensor) -> Tensor:
        """(batch, target, types): teacher-forced."""
        return self.decode(source, self.encode(source), previous)

    def decode(self, source: Tensor, memory: Tensor, previous: Tensor) -> Tensor:
        x = self._embed("decoder", previous)
        nothing = torch.zeros_like(previous, dtype=torch.bool)  # target padding is not masked
        hidden = source.eq(PAD).unsqueeze(1).expand(-1, previous.size(1), -1)
        for layer in range(self.args.decoder_layers):
            name = f"decoder.layers.{layer}"
            x = self._sublayer(
                "decoder",
                f"{name}.self_attn_layer_norm",
                x,
                lambda y, layer=layer: self._self_attend("decoder", layer, y, nothing),
            )
            x = self._sublayer(
                "decoder",
                f"{name}.encoder_attn_layer_norm",
                x,
                lambda y, name=name: self._attend(
                    f"{name}.encoder_attn", y, memory, self.args.decoder_attention_heads, hidden
                ),
            )
            x = self._sublayer(
                "decoder", f"{name}.final_layer_norm", x, lambda y, name=name: self._feed_forward(name, y)
            )
        if self.args.decoder_normalize_before:
            x = self._norm("decoder.layer_norm", x)
        shared = self.args.share_all_embeddings or self.args.share_decoder_input_output_embed
        output = self.parameters["decoder.embed_tokens.weight" if shared else "decoder.embed_out"]
        return torch.log_softmax(x @ output.t(), -1)

    def beam_search(self, source: Tensor, beam: int, longest: int) -> list[list[tuple[list[int], float]]]:
        """Per sentence the finished (tokens, mean log-probability), best first; every prefix is computed anew.

        Candidates are the 2 * beam best extensions of a step; those of the best ``beam`` that end are finished, the
        next ``beam`` that do not end go on, until ``beam`` are finished.
        """
        memory, results = self.encode(source), []
        for row in range(source.size(0)):
            alive: list[tuple[list[int], float]] = [([EOS], 0.0)]
            finished: list[tuple[list[int], float]] = []
            for step in range(longest + 1):
                prefixes = torch.tensor([tokens for tokens, _ in alive])
                count = len(alive)
                rows = source[row : row + 1].expand(count, -1), memory[row : row + 1].expand(count, -1, -1)
                scores = self.decode(*rows, prefixes)[:, -1]
                scores[:, PAD] = -math.inf
                if step == 0:
                    scores[:, EOS] = -math.inf  # at least one token
                if step == longest:
                    scores[:, [i for i in range(scores.size(1)) if i != EOS]] = -math.inf
                total = scores + torch.tensor([score for _, score in alive]).unsqueeze(1)
                best = total.view(-1).topk(2 * beam)
                candidates = []
                for rank, (score, where) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                    tokens = [*alive[where // scores.size(1)][0], where % scores.size(1)]
                    if tokens[-1] != EOS:
                        candidates.append((tokens, score))
                    elif rank < beam and score > -math.inf and len(finished) < beam:
                        finished.append((tokens[1:], score / (step + 1)))
                if len(finished) == beam:
                    break
                alive = candidates[:beam]
            results.append(sorted(finished, key=lambda hypothesis: -hypothesis[1]))
        return results
