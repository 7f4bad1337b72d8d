"""What the tests of CUDA graphs share: models, batches and one training step by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lite_transformer.models.config import LiteTransformerConfig, TransformerBaselineConfig
from lite_transformer.models.lite_transformer import LiteTransformerModel, TransformerBaselineModel
from tests.helpers.models import TINY, batch, randomize_biases, tiny_task

PAD, EOS = 1, 2
BASELINE = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "decoder_ffn_embed_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "dropout": 0.0,
}


def build(family: str = "lite", **options) -> nn.Module:
    """A tiny model in training mode: 'lite', 'shared' (one embedding matrix for all) or 'transformer'."""
    torch.manual_seed(0)
    if family == "transformer":
        model = TransformerBaselineModel.build_model(TransformerBaselineConfig(**(BASELINE | options)), tiny_task())
    else:
        options = {"share_all_embeddings": family == "shared"} | options
        model = LiteTransformerModel.build_model(LiteTransformerConfig(**(TINY | options)), tiny_task())
    randomize_biases(model)
    return model.train()


def sample(sizes: tuple[int, int, int], seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Token ids of (B, longest source, longest target): the source padded on the left, the target on the right."""
    rows, source_length, target_length = sizes
    generator = torch.Generator().manual_seed(seed)
    lengths = [
        [longest, *torch.randint(1, longest + 1, (rows - 1,), generator=generator).tolist()]
        for longest in (source_length, target_length)
    ]
    source = batch(lengths[0], PAD, EOS, left_pad=True, seed=seed)
    target = batch(lengths[1], PAD, EOS, left_pad=False, seed=seed + 1)
    return source.to(device), target.to(device)


def loss_of(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    logits, _ = model(source, None, target)
    return F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="sum")


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
