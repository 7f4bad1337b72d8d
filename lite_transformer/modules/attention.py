"""Multi-head attention: the long-range branch and the decoder's attention to the encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lite_transformer import ops
from lite_transformer.errors import ConfigError
from lite_transformer.modules.incremental import IncrementalModule, IncrementalState
from lite_transformer.modules.linear import Linear, by_rows

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
        backend: of short sentences' attention and of the projections' bias gradients: 'auto', 'triton' or 'reference',
            as in `ops.short_attention` and `ops.linear`. It says how fast, not what.
    Raises: ConfigError if H does not divide C.
    Source: Vaswani et al. 2017, section 3.2.
    """

    batch_dims: ClassVar[dict[str, int]] = {"keys_values": 1, "padding": 0, "bias": 0}

    # Whether projections of whole sequences may be computed together on a GPU; the result is the same.
    fuse_projections = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        key_dim: int | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads != 0:
            raise ConfigError(f"{num_heads} heads do not divide an attention of {embed_dim} channels")
        key_dim = embed_dim if key_dim is None else key_dim
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.backend = backend
        self.q_proj = Linear(embed_dim, embed_dim, backend=backend)
        self.k_proj = Linear(key_dim, embed_dim, backend=backend)
        self.v_proj = Linear(key_dim, embed_dim, backend=backend)
        self.out_proj = Linear(embed_dim, embed_dim, backend=backend)
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

    def _together(self, *projections: nn.Linear) -> dict[str, Tensor]:
        """Weight and bias of several projections as one.

        On a GPU the R outputs of a head are rounded up to a multiple of 8 and filled with zeros: attention with a mask
        needs it, or falls back to several passes over (T, S) scores. Padding weights is cheaper than activations.
        """
        weight = torch.cat([projection.weight for projection in projections])  # (rows * R, C')
        bias = torch.cat([projection.bias for projection in projections])
        extra = -self.head_dim % 8 if _fuses(weight) else 0
        if extra:
            rows = len(projections) * self.num_heads
            weight = F.pad(weight.view(rows, self.head_dim, -1), (0, 0, 0, extra)).flatten(0, 1)
            bias = F.pad(bias.view(rows, self.head_dim), (0, extra)).flatten()
        return {"weight": weight, "bias": bias}

    def _project_together(self, x: Tensor, together: Mapping[str, Tensor], count: int) -> tuple[Tensor, ...]:
        """(N, B, C') -> ``count`` times (B, H, N, R'): projections in one matrix product.

        They are cut as columns of its rows, and so their gradients come back: attention kernels write those in the
        layout of what they were given, and one copy lays them side by side.
        """
        projected = ops.linear(x.flatten(0, 1), together["weight"], together["bias"], backend=self.backend)
        parts = projected.chunk(count, dim=1) if count > 1 else (projected,)
        return tuple(part.view(*x.shape[:2], self.num_heads, -1).permute(1, 2, 0, 3) for part in parts)

    def _project_out(self, out: Tensor) -> Tensor:
        """(B, H, T, R') -> (T, B, C). Where heads are padded so are the columns of the weights, not the output cut."""
        length, extra = out.size(2), out.size(3) - self.head_dim
        rows = out.permute(2, 0, 1, 3).reshape(length * out.size(0), -1)
        if not extra:
            return self.out_proj(rows).unflatten(0, (length, -1))
        weight = F.pad(self.out_proj.weight.unflatten(1, (self.num_heads, self.head_dim)), (0, extra)).flatten(1)
        return ops.linear(rows, weight, self.out_proj.bias, backend=self.backend).unflatten(0, (length, -1))

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
        if incremental_state is None and not (need_weights or need_head_weights):
            assert key is not None
            short = self._attend_short(query, key, value, key_padding_mask, attn_mask)
            if short is not None:
                return self.out_proj(short), None
        hidden: Tensor | None = None
        attend: Tensor | None = None  # bool, or what is added to the scores
        only_causal = False
        if incremental_state is None:
            assert key is not None and value is not None
            q, k, v = self._project(query, key, value)
            scale = 1 / math.sqrt(self.head_dim)
            only_causal = isinstance(attn_mask, str) and attn_mask == CAUSAL and key_padding_mask is None
            if not only_causal or need_weights or need_head_weights:
                hidden = _hidden_keys(key_padding_mask, attn_mask, query)
            attend = None if hidden is None else ~hidden
        else:
            constants = self.constants(incremental_state, lambda: self._step_constants(static_kv))
            scale = 1.0  # the constants have it
            if static_kv:
                q = self._step_projections(query, constants, 1)[0]
                k, v, hidden, attend = self._source_keys(key, value, key_padding_mask, incremental_state)
            else:
                q, k, v, hidden = self._step_keys(query, key_padding_mask, attn_mask, incremental_state, constants)
                attend = None if hidden is None else ~hidden
            if query.size(0) == 1 and (static_kv or hidden is None):
                out, probabilities = self._attend_one(q, k, v, attend, constants)
                if need_head_weights:
                    return out, probabilities.float().transpose(0, 1)
                return out, probabilities.float().mean(dim=1) if need_weights else None
        weights: Tensor | None = None
        if need_weights or need_head_weights:
            out, probabilities = self._attend_with_weights(q, k, v, hidden, scale)
            weights = probabilities.transpose(0, 1) if need_head_weights else probabilities.mean(dim=1)
        else:
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=attend,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=only_causal,
                scale=scale,
            )
            from_cache = static_kv and incremental_state is not None  # has zeros there already
            if hidden is not None and not from_cache and _fuses(query):
                # some of the GPU's half-precision kernels average over hidden keys where there are no others
                out = out.masked_fill(hidden.all(dim=-1, keepdim=True), 0.0)
        return self._project_out(out), weights

    def _attend_short(
        self, query: Tensor, key: Tensor, value: Tensor | None, padding: Tensor | None, attn_mask: Tensor | str | None
    ) -> Tensor | None:
        """(T, B, C) of whole short sentences, before the output projection; None where their kernel does not fit."""
        causal = isinstance(attn_mask, str) and attn_mask == CAUSAL and key is query
        if key is not value or not self.fuse_projections or not (attn_mask is None or causal):
            return None
        device = query.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
        if not ops.uses_short_attention(self.backend, query, query.size(0), key.size(0), self.head_dim, dtype):
            return None
        if key is query:
            queries, keys_values = self._project_packed(query, self.q_proj, self.k_proj, self.v_proj), None
        else:
            queries = by_rows(self.q_proj, query)
            keys_values = self._project_packed(key, self.k_proj, self.v_proj)
        return ops.short_attention(
            queries,
            keys_values,
            self.num_heads,
            padding_mask=None if padding is None else padding.bool(),
            causal=causal,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )

    def _project_packed(self, x: Tensor, *projections: nn.Linear) -> Tensor:
        """(N, B, C') -> (N, B, P * C): P projections side by side, in one matrix product."""
        weight = torch.cat([projection.weight for projection in projections])
        bias = torch.cat([projection.bias for projection in projections])
        return ops.linear(x.flatten(0, 1), weight, bias, backend=self.backend).unflatten(0, x.shape[:2])

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, N, R) of whole sequences."""
        if not (key is value and self.fuse_projections and _fuses(query)):
            return (
                self._split_heads(by_rows(self.q_proj, query)),
                self._split_heads(by_rows(self.k_proj, key)),
                self._split_heads(by_rows(self.v_proj, value)),
            )
        if key is query:
            q, k, v = self._project_together(query, self._together(self.q_proj, self.k_proj, self.v_proj), 3)
        else:
            (q,) = self._project_together(query, self._together(self.q_proj), 1)
            k, v = self._project_together(key, self._together(self.k_proj, self.v_proj), 2)
        return q, k, v

    def _step_constants(self, static_kv: bool) -> dict[str, Tensor]:
        """The projections of a decoding step as matrices that one product takes: the fewest operations count there.

        ``weight`` (P, C, H * R') and ``bias`` (P, 1, H * R') of P = 3 or, to the encoder, 1 projections, the first
        divided by sqrt(R); ``out_weight`` (H * R', C) and ``out_bias`` (C).
        """
        projections = [self.q_proj] if static_kv else [self.q_proj, self.k_proj, self.v_proj]
        together = self._together(*projections)
        weight = together["weight"].unflatten(0, (len(projections), -1)).transpose(1, 2).contiguous()
        bias = together["bias"].view(len(projections), 1, -1).clone()
        weight[0] /= math.sqrt(self.head_dim)
        bias[0] /= math.sqrt(self.head_dim)
        out_weight = self.out_proj.weight.t()
        extra = weight.size(2) // self.num_heads - self.head_dim
        if extra:
            heads = out_weight.unflatten(0, (self.num_heads, self.head_dim))
            out_weight = F.pad(heads, (0, 0, 0, extra)).flatten(0, 1)
        return {"weight": weight, "bias": bias, "out_weight": out_weight, "out_bias": self.out_proj.bias}

    def _step_projections(self, query: Tensor, constants: Mapping[str, Tensor], count: int) -> Tensor:
        """(N, B, C) -> (count, B, H, N, R')."""
        projected = torch.baddbmm(constants["bias"], query.flatten(0, 1).expand(count, -1, -1), constants["weight"])
        return projected.view(count, *query.shape[:2], self.num_heads, -1).permute(0, 2, 3, 1, 4)

    def _step_keys(
        self,
        query: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | str | None,
        incremental_state: IncrementalState,
        constants: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Of a step of self-attention: queries, keys and values (B, H, N, R) so far, and which keys are hidden.

        Keys and values live in one tensor (2, B, H, S, R): one concatenation a step, one reordering.
        """
        heads = self._step_projections(query, constants, 3)
        q, keys_values = heads[0], heads[1:]
        buffer = self.read_buffer(incremental_state)
        old, padding = buffer.get("keys_values"), buffer.get("padding")
        if old is not None:
            padding = _join_masks(padding, old[0], key_padding_mask, keys_values[0])
            keys_values = torch.cat([old, keys_values], dim=3)
        else:
            padding = key_padding_mask
            keys_values = keys_values.contiguous()
        self.write_buffer(incremental_state, {"keys_values": keys_values, "padding": padding})
        hidden = _hidden_keys(padding, attn_mask, query)
        return q, keys_values[0], keys_values[1], hidden

    def _source_keys(
        self,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None,
        incremental_state: IncrementalState,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Keys and values (B, H, S, R) of the encoder's output, which of them are padding, and that added to scores.

        All of it is made at the first step. The last, (B, H, 1, S), is 0 or hugely negative: kernels on either device
        would make it of the bool mask at each step, and again to align its rows.
        """
        source = self.read_source(incremental_state)
        if not source:
            assert key is not None and key is value
            keys_values = torch.stack(self._project_together(key, self._together(self.k_proj, self.v_proj), 2))
            source = {"keys_values": keys_values, "padding": None, "bias": None}
            if key_padding_mask is not None:
                padding = key_padding_mask.bool()[:, None, None, :]
                # a sentence of padding alone: zero, whatever a kernel makes of it
                source["keys_values"] = keys_values.masked_fill(padding.all(dim=-1, keepdim=True), 0.0)
                least = torch.finfo(keys_values.dtype).min
                bias = F.pad(padding, (0, -padding.size(-1) % 8)).to(keys_values.dtype) * least
                source["padding"] = padding
                source["bias"] = bias.repeat(1, self.num_heads, 1, 1)
            self.write_source(incremental_state, source)
        kept, added = source["keys_values"], source["bias"]
        assert kept is not None
        return kept[0], kept[1], source["padding"], None if added is None else added[..., : kept.size(3)]

    def _attend_one(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, constants: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Output (1, B, C) and probabilities (B, H, 1, S) of one step: q (B, H, 1, R'), k and v (B, H, S, R').

        Three operations where a fused kernel's choice, made anew at each length, costs more than the arithmetic.
        """
        batch, heads = q.shape[:2]
        queries, keys = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)
        scores = torch.bmm(queries, keys) if bias is None else torch.baddbmm(bias.flatten(0, 1), queries, keys)
        probabilities = torch.softmax(scores, dim=-1)
        dropped = F.dropout(probabilities, self.dropout) if self.training else probabilities
        out = torch.bmm(dropped, v.flatten(0, 1)).view(batch, -1)
        projected = torch.addmm(constants["out_bias"], out, constants["out_weight"])
        return projected.unsqueeze(0), probabilities.view(batch, heads, 1, -1)

    def _attend_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """The definition, spelled out: output (B, H, T, R) and probabilities (B, H, T, S) in fp32."""
        scores = torch.matmul(q, k.transpose(2, 3)).float() * scale
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
