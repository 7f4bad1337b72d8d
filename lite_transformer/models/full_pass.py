"""fairseq's encoder and decoder over whole sequences, without the host asking the device for values.

fairseq looks whether a batch has padding (``mask.any()``) before it passes the mask on, once a layer in the encoder.
On a GPU each look makes the host wait for everything launched so far, and a pass that branches on values cannot be
captured as a CUDA graph. Here the mask is always passed on a GPU; on a CPU, where looking is cheap, it is left out if
nothing is padded.

Dictionary keys and return values are fairseq's. Options that no configuration of ours has (adaptive input,
quantization noise, cross-self-attention) are not repeated here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn

from lite_transformer.modules.incremental import IncrementalState


def may_ask(tensor: Tensor) -> bool:
    """Whether the host gets a value of this tensor without waiting for a device."""
    return tensor.device.type == "cpu"


def padding_mask(tokens: Tensor, padding_idx: int) -> Tensor | None:
    """(B, T) bool, True = padding; None if it is known, at no cost, that nothing is padded."""
    mask = tokens.eq(padding_idx)
    return None if may_ask(mask) and not mask.any() else mask


def embed_positions(embedding: nn.Module, tokens: Tensor) -> Tensor:
    """(B, T) token ids -> (B, T, C): fairseq's positional embedding, which counts real tokens only.

    The sinusoidal one asks for sizes through tensors; it is looked up here directly where its table is long enough.
    """
    if isinstance(embedding, SinusoidalPositionalEmbedding):
        offset = embedding.padding_idx
        if offset + 1 + tokens.size(1) <= embedding.weights.size(0):
            real = tokens.ne(offset)
            return F.embedding(real.cumsum(dim=1) * real + offset, embedding.weights)
    return embedding(tokens)


class FullPassEncoder(TransformerEncoderBase):
    """fairseq's encoder; never waits for the device."""

    def forward_embedding(self, src_tokens: Tensor, token_embedding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Input of the first layer and scaled token embeddings, both (B, S, C)."""
        if token_embedding is None:
            token_embedding = self.embed_tokens(src_tokens)
        x = embedded = self.embed_scale * token_embedding
        if self.embed_positions is not None:
            x = embedded + embed_positions(self.embed_positions, src_tokens)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x), embedded

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> dict[str, list]:
        """As fairseq's.

        Args:
            src_tokens: (B, S), padded on either side.
            src_lengths: not read, as in fairseq.
            token_embeddings: (B, S, C), instead of looking ``src_tokens`` up.
        """
        mask = padding_mask(src_tokens, self.padding_idx)
        x, embedded = self.forward_embedding(src_tokens, token_embeddings)
        if mask is not None:
            x = x.masked_fill(mask.unsqueeze(-1), 0)
        x = x.transpose(0, 1)  # (S, B, C)
        states = [x]
        for layer in self.layers:
            x = layer(x, encoder_padding_mask=mask)
            states.append(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        real = src_tokens.ne(self.padding_idx)
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [~real if mask is None else mask],
            "encoder_embedding": [embedded],
            "encoder_states": states if return_all_hiddens else [],
            "fc_results": [None] * (len(states) - 1) if return_all_hiddens else [],
            "src_tokens": [],
            "src_lengths": [real.sum(dim=1, dtype=torch.int32).reshape(-1, 1)],
        }


class FullPassDecoder(TransformerDecoderBase):
    """fairseq's decoder; never waits for the device, and in training computes no attention weights.

    ``left_pad_target`` tells how targets are padded. With padding on the right, the causal mask already hides it from
    every real position; the mask of padding is then left out on a GPU, and only padded positions, which no loss reads,
    come out differently.
    """

    left_pad_target = False

    def future_mask(self, x: Tensor) -> Tensor | str:
        """What the layers take for 'see only the past': (T, T) with -inf above the diagonal, for x: (T, B, C)."""
        return torch.full((x.size(0), x.size(0)), float("-inf"), dtype=x.dtype, device=x.device).triu_(1)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list] | None,
        incremental_state: IncrementalState | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, list]]:
        """As fairseq's: features (B, T, C), and attention weights where asked for.

        In training, without ``alignment_layer``, weights are None: nothing there reads them.
        """
        if alignment_layer is None:
            alignment_layer = -1 if self.training else self.num_layers - 1
        memory, memory_mask = None, None
        if encoder_out is not None and encoder_out["encoder_out"]:
            memory = encoder_out["encoder_out"][0]
        if encoder_out is not None and encoder_out["encoder_padding_mask"]:
            memory_mask = encoder_out["encoder_padding_mask"][0]

        tokens = prev_output_tokens if incremental_state is None else prev_output_tokens[:, -1:]
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.embed_positions is not None:
            if incremental_state is None:
                x = x + embed_positions(self.embed_positions, tokens)
            else:
                # of one step: (B, 1, C), or the same for the whole batch
                x = x + self.embed_positions(prev_output_tokens, incremental_state=incremental_state)[:, -1:]
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        x = self.dropout_module(x).transpose(0, 1)  # (T, B, C)

        mask = None
        if may_ask(tokens) or self.left_pad_target or full_context_alignment:
            mask = padding_mask(tokens, self.padding_idx)
        hidden_future = None
        if incremental_state is None and not full_context_alignment:
            hidden_future = self.future_mask(x)

        weights = None
        inner_states = [x]
        for number, layer in enumerate(self.layers):
            x, layer_weights, _ = layer(
                x,
                memory,
                memory_mask,
                incremental_state,
                self_attn_mask=hidden_future,
                self_attn_padding_mask=mask,
                need_attn=number == alignment_layer,
                need_head_weights=number == alignment_layer,
            )
            inner_states.append(x)
            if layer_weights is not None and number == alignment_layer:
                weights = layer_weights.float().to(x)
        if weights is not None:
            # (H, B, T, S), averaged over (some of) the heads
            weights = weights[:alignment_heads].mean(dim=0)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x.transpose(0, 1), {"attn": [weights], "inner_states": inner_states}
