"""Long-Short Range Attention: split the channels, run the branches, concatenate. Nothing else does this."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lite_transformer.modules.attention import MultiheadAttention
from lite_transformer.modules.branches import BranchConfig, build_branch
from lite_transformer.modules.incremental import IncrementalState


class LongShortRangeAttention(nn.Module):
    """Stands where fairseq's layers expect their self-attention.

    The channels are cut in the branches' order; there is no projection before the cut or after the concatenation:
    the feed-forward layer mixes the parts.

    Source: Lite Transformer, section 4, figure 3.
    """

    def __init__(self, branches: Sequence[BranchConfig]):
        super().__init__()
        self.branch_dims = [branch.embed_dim for branch in branches]
        self.branches = nn.ModuleList(build_branch(branch) for branch in branches)
        # fairseq's decoder layer reads these two of its self-attention.
        self.num_heads = branches[0].num_heads
        self.head_dim = branches[0].embed_dim // branches[0].num_heads

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | str | None = None,
    ) -> tuple[Tensor, None]:
        """Returns (T, B, C) and None: branches of different kinds have no attention weights in common.

        Args:
            query: (T, B, C); key and value are the same tensor (self-attention) and are not read.
            key_padding_mask: (B, T) bool, True = padding.
            attn_mask: (T, T) or 'causal', hides keys from the attention branch; a convolution is causal by its padding.
        """
        outputs = []
        for branch, x in zip(self.branches, query.split(self.branch_dims, dim=-1), strict=True):
            if isinstance(branch, MultiheadAttention):
                out, _ = branch(x, x, x, key_padding_mask, incremental_state, attn_mask=attn_mask)
            else:
                out = branch(x, key_padding_mask, incremental_state)
            outputs.append(out)
        return torch.cat(outputs, dim=-1), None

    def _get_input_buffer(self, incremental_state: IncrementalState | None) -> dict[str, Tensor | None]:
        """fairseq's decoder layer asks for this; each branch keeps a buffer of its own instead."""
        return {}
