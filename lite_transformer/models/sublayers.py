"""fairseq's layers for training on a GPU: what stands between two sublayers is one kernel a direction.

Between a sublayer's last product and the next one's first there are dropout, the residual and a layer norm; torch makes
three passes over memory of them, and five on the way back. Everything else (a CPU, evaluation, decoding step by step,
attention weights) is fairseq's own forward, which computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from lite_transformer import ops


class _Passage:
    """Residual stream and layer norms of one pass through a layer whose sublayers are done one after the other."""

    def __init__(self, layer: Any, x: Tensor, norms: list[Any]):
        self._dropout = layer.dropout_module.p
        self._norm_first = layer.normalize_before
        self._norms = norms
        self._backend = layer.backend
        self._done = 0
        drawn = ops.draw_seeds(len(norms), x.device) if self._dropout > 0 else None
        self._seeds: Iterator[Tensor | None] = iter([None] * len(norms) if drawn is None else drawn.unbind())
        self._residual = x
        self.input = self._norm(x, None, norms[0])[0] if self._norm_first else x

    def _norm(self, x: Tensor, residual: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        dropout, seed = (0.0, None) if residual is None else (self._dropout, next(self._seeds))
        return ops.residual_norm(
            x, residual, norm.weight, norm.bias, eps=norm.eps, dropout=dropout, seed=seed, backend=self._backend
        )

    def leave(self, out: Tensor) -> Tensor:
        """From a sublayer's output to the next one's input, which is also kept as ``input``; at last the layer's."""
        self._done += 1
        if not self._norm_first:
            self.input, _ = self._norm(out, self._residual, self._norms[self._done - 1])
            self._residual = self.input
        elif self._done < len(self._norms):
            self.input, self._residual = self._norm(out, self._residual, self._norms[self._done])
        else:
            self.input = ops.dropout_add(
                out, self._residual, dropout=self._dropout, seed=next(self._seeds), backend=self._backend
            )
        return self.input


class _FusedLayer(nn.Module):
    """What encoder and decoder layers share."""

    backend = "auto"  # of the kernels, see `ops.residual_norm`
    # made by fairseq
    self_attn: nn.Module
    self_attn_layer_norm: nn.LayerNorm
    final_layer_norm: nn.LayerNorm
    fc1: nn.Module
    fc2: nn.Module
    activation_fn: Callable[[Tensor], Tensor]
    activation_dropout_module: nn.Module

    def _fuses(self, x: Tensor) -> bool:
        """Whether this pass is one of training whose norms kernels compute.

        It does not ask whether gradients are recorded: activation checkpointing runs a layer without them first, and
        must see the same dropout again.
        """
        return self.training and ops.uses_row_kernels(self.backend, x=x, weight=self.final_layer_norm.weight)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """(T, B, C) -> (T, B, C)."""
        return self.fc2(self.activation_dropout_module(self.activation_fn(self.fc1(x))))


class FusedEncoderLayer(_FusedLayer, TransformerEncoderLayerBase):
    """fairseq's encoder layer; see the module."""

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """(S, B, C) -> (S, B, C). Arguments as in fairseq."""
        if attn_mask is not None or not self._fuses(x):
            return super().forward(x, encoder_padding_mask, attn_mask)
        passage = _Passage(self, x, [self.self_attn_layer_norm, self.final_layer_norm])
        x = passage.input
        x = passage.leave(self.self_attn(x, x, x, key_padding_mask=encoder_padding_mask, need_weights=False)[0])
        return passage.leave(self._feed_forward(x))


class FusedDecoderLayer(_FusedLayer, TransformerDecoderLayerBase):
    """fairseq's decoder layer; see the module."""

    encoder_attn: nn.Module | None
    encoder_attn_layer_norm: nn.LayerNorm | None

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: dict | None = None,
        self_attn_mask: Tensor | str | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, Any]:
        """(T, B, C), attention weights where asked for, and None. Arguments as in fairseq."""
        if incremental_state is not None or need_attn or need_head_weights or others or not self._fuses(x):
            return super().forward(
                x,
                encoder_out,
                encoder_padding_mask,
                incremental_state,
                self_attn_mask=self_attn_mask,
                self_attn_padding_mask=self_attn_padding_mask,
                need_attn=need_attn,
                need_head_weights=need_head_weights,
                **others,
            )
        attention = None if encoder_out is None else self.encoder_attn
        between = [] if attention is None else [self.encoder_attn_layer_norm]
        passage = _Passage(self, x, [self.self_attn_layer_norm, *between, self.final_layer_norm])
        x = passage.input
        out, _ = self.self_attn(
            x, x, x, key_padding_mask=self_attn_padding_mask, need_weights=False, attn_mask=self_attn_mask
        )
        x = passage.leave(out)
        if attention is not None:
            out, _ = attention(
                x, encoder_out, encoder_out, key_padding_mask=encoder_padding_mask, static_kv=True, need_weights=False
            )
            x = passage.leave(out)
        return passage.leave(self._feed_forward(x)), None, None
