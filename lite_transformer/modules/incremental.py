"""The one place in ``modules`` that knows fairseq: how a module keeps its state between decoding steps."""

from __future__ import annotations

from fairseq.incremental_decoding_utils import FairseqIncrementalState
from torch import Tensor, nn

IncrementalState = dict[str, dict[str, Tensor | None]]


class IncrementalModule(FairseqIncrementalState, nn.Module):
    """A module whose buffers follow the beams: fairseq's search reorders them by batch index.

    Every tensor of a buffer has the batch in dimension ``batch_dim``.
    """

    batch_dim = 0

    def read_buffer(self, incremental_state: IncrementalState | None) -> dict[str, Tensor | None]:
        """The module's tensors of the previous step; empty at the first one."""
        return FairseqIncrementalState.get_incremental_state(self, incremental_state, "buffer") or {}

    def write_buffer(self, incremental_state: IncrementalState, buffer: dict[str, Tensor | None]) -> None:
        FairseqIncrementalState.set_incremental_state(self, incremental_state, "buffer", buffer)

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Keeps row ``new_order[i]`` of every buffer as the new row i (called by fairseq's beam search)."""
        buffer = self.read_buffer(incremental_state)
        if buffer:
            self.write_buffer(
                incremental_state,
                {
                    name: None if value is None else value.index_select(self.batch_dim, new_order)
                    for name, value in buffer.items()
                },
            )
