"""Multi-head attention: the long-range branch and the decoder's attention to the encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lite_transformer.errors import ConfigError
from lite_transformer.modules.incremental import IncrementalModule, IncrementalState

# As an attention mask: position t sees the positions up to t. No tensor is built where the kernel knows this mask.
CAUSAL: Final = "causal"


def _fuses(x: Tensor) -> bool:
    """Whether projections are computed together, with heads padded to a width that every attention kernel takes."""
    return x.is_cuda


class MultiheadAttention(IncrementalModule):
    """Scaled dot-product attention with H heads, caching keys and values while decoding.

    Self-attention caches every step's keys; attention to the encoder (``static_kv`` in `forward`) projects the
    encoder's output once and keeps it. Queries whose keys are all masked give zero before the output projection,
    never NaN.

    Args:
        embed_dim: C, channels of query and output.
        num_heads: H.
        key_dim: channels of key and value; C unless said.
        dropout: on the attention probabilities.
    Raises: ConfigError if H does not divide C.
    Source: Vaswani et al. 2017, section 3.2.
    """

    # Whether projections of whole sequences may be computed together on a GPU; the result is the same.
    fuse_projections = True

    def __init__(self, embed_dim: int, num_heads: int, key_dim: int | None = None, dropout: float = 0.0):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads != 0:
            raise ConfigError(f"{num_heads} heads do not divide an attention of {embed_dim} channels")
        key_dim = embed_dim if key_dim is None else key_dim
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(key_dim, embed_dim)
        self.v_proj = nn.Linear(key_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        # With equal widths the three projections count as one matrix of three times the height.
        gain = 1 / math.sqrt(2) if key_dim == embed_dim else 1.0
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=gain)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, B, C) -> (B, H, N, R)."""
        length, batch, _ = x.shape
        return x.view(length, batch, self.num_heads, self.head_dim).permute(1, 2, 0, 3)

    def _project_together(self, x: Tensor, projections: Sequence[nn.Linear]) -> list[Tensor]:
        """(N, B, C') -> one (B, H, N, R') for each projection, in one matrix product.

        R' is R rounded up to a multiple of 8, filled with zeros: on a GPU attention with a mask needs it, or falls
        back to several passes over (T, S) scores. Padding the weights is cheaper than padding the activations.
        """
        rows = len(projections) * self.num_heads
        weight = torch.cat([projection.weight for projection in projections])  # (rows * R, C')
        bias = torch.cat([projection.bias for projection in projections])
        extra = -self.head_dim % 8
        if extra:
            weight = F.pad(weight.view(rows, self.head_dim, -1), (0, 0, 0, extra)).flatten(0, 1)
            bias = F.pad(bias.view(rows, self.head_dim), (0, extra)).flatten()
        heads = F.linear(x, weight, bias).view(*x.shape[:2], len(projections), self.num_heads, self.head_dim + extra)
        return list(heads.permute(2, 1, 3, 0, 4).unbind(0))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
        static_kv: bool = False,
        attn_mask: Tensor | str | None = None,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output (T, B, C) and, if asked for, the probabilities.

        Probabilities are (B, T, S) averaged over heads, or (H, B, T, S) with ``need_head_weights``.

        Args:
            query: (T, B, C). key, value: (S, B, key_dim).
            key_padding_mask: (B, S) bool, True = padding; while decoding, of the new keys only.
            static_kv: keys and values never change (attention to the encoder): cache them at the first step.
            attn_mask: (T, S), -inf (or a large negative number) hides a key; or bool, True = hidden; or `CAUSAL` for a
                whole sequence, T = S.
        """
        if incremental_state is None and key is not None and key is value and self.fuse_projections and _fuses(query):
            if key is query:
                q, k, v = self._project_together(query, (self.q_proj, self.k_proj, self.v_proj))
            else:
                (q,) = self._project_together(query, (self.q_proj,))
                k, v = self._project_together(key, (self.k_proj, self.v_proj))
        else:
            q = self._split_heads(self.q_proj(query))
            k, v, key_padding_mask = self._keys(key, value, key_padding_mask, incremental_state, static_kv)
        probabilities = None
        if need_weights or need_head_weights:
            hidden = _hidden_keys(key_padding_mask, attn_mask, query)
            out, probabilities = self._attend_with_weights(q, k, v, hidden)
            probabilities = probabilities.transpose(0, 1) if need_head_weights else probabilities.mean(dim=1)
        else:
            only_causal = isinstance(attn_mask, str) and attn_mask == CAUSAL and key_padding_mask is None
            hidden = None if only_causal else _hidden_keys(key_padding_mask, attn_mask, query)
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if hidden is None else ~hidden,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=only_causal,
                scale=1 / math.sqrt(self.head_dim),
            )
            if hidden is not None and _fuses(query):
                # some of the GPU's half-precision kernels average over hidden keys where there are no others
                out = out.masked_fill(hidden.all(dim=-1, keepdim=True), 0.0)
        out = out[..., : self.head_dim].permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), self.embed_dim)
        return self.out_proj(out), probabilities

    def _keys(
        self,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None,
        incremental_state: IncrementalState | None,
        static_kv: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (B, H, S, R) and their padding mask, those of earlier steps included."""
        buffer = {} if incremental_state is None else self.read_buffer(incremental_state)
        k, v = buffer.get("key"), buffer.get("value")
        if static_kv and k is not None:
            assert v is not None
            return k, v, buffer["key_padding_mask"]
        assert key is not None and value is not None
        new_k, new_v = self._split_heads(self.k_proj(key)), self._split_heads(self.v_proj(value))
        if k is None or v is None:
            k, v = new_k, new_v
        else:
            key_padding_mask = _join_masks(buffer["key_padding_mask"], k, key_padding_mask, new_k)
            k, v = torch.cat([k, new_k], dim=2), torch.cat([v, new_v], dim=2)
        if incremental_state is not None:
            self.write_buffer(incremental_state, {"key": k, "value": v, "key_padding_mask": key_padding_mask})
        return k, v, key_padding_mask

    def _attend_with_weights(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """The definition, spelled out: output (B, H, T, R) and probabilities (B, H, T, S) in fp32."""
        scores = torch.matmul(q, k.transpose(2, 3)).float() / math.sqrt(self.head_dim)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        probabilities = torch.softmax(scores, dim=-1)
        if hidden is not None:
            probabilities = probabilities.masked_fill(hidden.all(dim=-1, keepdim=True), 0.0)
        dropped = F.dropout(probabilities, self.dropout, self.training).type_as(v)
        return torch.matmul(dropped, v), probabilities


def _hidden_keys(key_padding_mask: Tensor | None, attn_mask: Tensor | str | None, query: Tensor) -> Tensor | None:
    """One bool mask, True = hidden, that broadcasts to (B, H, T, S); None if nothing is hidden."""
    hidden = None
    if isinstance(attn_mask, str):
        if attn_mask != CAUSAL:
            raise ConfigError(f"attn_mask '{attn_mask}' is neither a tensor nor '{CAUSAL}'")
        attn_mask = torch.ones(query.size(0), query.size(0), dtype=torch.bool, device=query.device).triu_(1)
    if attn_mask is not None:
        if attn_mask.dtype != torch.bool:
            # fairseq hides keys with -inf, and in places with -1e8 or (half precision) -1e4
            attn_mask = attn_mask <= -1e4
        hidden = attn_mask[None, None]
    if key_padding_mask is not None:
        padding = key_padding_mask.bool()[:, None, None, :]
        hidden = padding if hidden is None else hidden | padding
    return hidden


def _join_masks(old: Tensor | None, old_keys: Tensor, new: Tensor | None, new_keys: Tensor) -> Tensor | None:
    """The padding mask of cached and new keys together; a missing half counts as no padding."""
    if old is None and new is None:
        return None
    batch = old_keys.size(0)
    if old is None:
        old = torch.zeros(batch, old_keys.size(2), dtype=torch.bool, device=old_keys.device)
    if new is None:
        new = torch.zeros(batch, new_keys.size(2), dtype=torch.bool, device=new_keys.device)
    return torch.cat([old.bool(), new.bool()], dim=1)
