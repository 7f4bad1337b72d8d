"""Small models for tests, built without a task on disk."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from torch import Tensor, nn

from lite_transformer.models.config import LiteTransformerConfig
from lite_transformer.models.lite_transformer import LiteTransformerModel

TINY = {
    "encoder_embed_dim": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_kernel_sizes": [3, 7],
    "decoder_kernel_sizes": [3, 7],
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "cross_attention_heads": 4,
    "dropout": 0.0,
}


def dictionary(words: int) -> Dictionary:
    result = Dictionary()
    for i in range(words):
        result.add_symbol(f"w{i}")
    return result


def tiny_task(source_words: int = 20, target_words: int | None = None) -> SimpleNamespace:
    """What build_model needs of a task; one joined dictionary unless ``target_words`` is given."""
    source = dictionary(source_words)
    target = source if target_words is None else dictionary(target_words)
    return SimpleNamespace(source_dictionary=source, target_dictionary=target)


def tiny_model(seed: int = 0, noisy_biases: bool = True, **options) -> LiteTransformerModel:
    """An evaluation-mode Lite Transformer of 2+2 layers; biases are random so that they cannot hide a leak."""
    torch.manual_seed(seed)
    model = LiteTransformerModel.build_model(LiteTransformerConfig(**(TINY | options)), tiny_task())
    if noisy_biases:
        randomize_biases(model)
    return model.eval()


def randomize_biases(model: nn.Module, std: float = 0.5) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, std)


def batch(lengths: list[int], pad: int, eos: int, left_pad: bool, seed: int = 0) -> Tensor:
    """(B, T) token ids that end with end-of-sentence, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    tokens = torch.full((len(lengths), width), pad)
    for row, length in enumerate(lengths):
        words = torch.randint(4, 24, (length,), generator=generator)
        words[-1] = eos
        if left_pad:
            tokens[row, width - length :] = words
        else:
            tokens[row, :length] = words
    return tokens


TINY_LM = {
    "decoder_embed_dim": 16,
    "decoder_layers": 2,
    "decoder_kernel_sizes": [3, 7],
    "decoder_attention_heads": 2,
    "adaptive_input_cutoff": [8, 14],
    "adaptive_softmax_cutoff": [8, 14],
    "dropout": 0.0,
}


def tiny_language_model(seed: int = 0, **options):
    """An evaluation-mode language model of 2 layers over 24 types in three bands, with random biases."""
    from lite_transformer.models.language_model import LiteTransformerLanguageModel
    from lite_transformer.models.lm_config import LiteTransformerLMConfig

    torch.manual_seed(seed)
    model = LiteTransformerLanguageModel.build_model(LiteTransformerLMConfig(**(TINY_LM | options)), tiny_task())
    randomize_biases(model)
    return model.eval()
