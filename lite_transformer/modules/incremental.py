"""The one place in ``modules`` that knows fairseq: how a module keeps its state between decoding steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, cast

from fairseq.incremental_decoding_utils import FairseqIncrementalState
from torch import Tensor, nn

IncrementalState = dict[str, dict[str, Tensor | None]]


class IncrementalModule(FairseqIncrementalState, nn.Module):
    """A module that keeps three kinds of tensors between decoding steps.

    *buffer*: what grows or moves at each step; its rows follow the beams. *source*: what depends on the sentences
    being translated only; the beams of a sentence share it. *constants*: what depends on the weights only; they last
    for one search, so that weights may change between searches.

    Every tensor of buffer and source has the batch in the dimension that ``batch_dims`` gives for its name.
    """

    batch_dims: ClassVar[dict[str, int]] = {}

    def _read(self, incremental_state: IncrementalState | None, kind: str) -> dict[str, Tensor | None]:
        return FairseqIncrementalState.get_incremental_state(self, incremental_state, kind) or {}

    def _write(self, incremental_state: IncrementalState, kind: str, tensors: dict[str, Tensor | None]) -> None:
        FairseqIncrementalState.set_incremental_state(self, incremental_state, kind, tensors)

    def read_buffer(self, incremental_state: IncrementalState | None) -> dict[str, Tensor | None]:
        """The module's tensors of the previous step; empty at the first one."""
        return self._read(incremental_state, "buffer")

    def write_buffer(self, incremental_state: IncrementalState, buffer: dict[str, Tensor | None]) -> None:
        self._write(incremental_state, "buffer", buffer)

    def read_source(self, incremental_state: IncrementalState | None) -> dict[str, Tensor | None]:
        """What was kept of the source sentences; empty at the first step."""
        return self._read(incremental_state, "source")

    def write_source(self, incremental_state: IncrementalState, source: dict[str, Tensor | None]) -> None:
        self._write(incremental_state, "source", source)

    def constants(
        self, incremental_state: IncrementalState, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What ``make()`` returned at the first step of this search: tensors computed from the weights alone."""
        kept = self._read(incremental_state, "constants")
        if not kept:
            kept = {**make()}
            self._write(incremental_state, "constants", kept)
        return cast(dict[str, Tensor], kept)

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Keeps row ``new_order[i]`` as the new row i (called by fairseq's beam search)."""
        buffer = self.read_buffer(incremental_state)
        if buffer:
            self.write_buffer(incremental_state, self._reordered(buffer, new_order))
        source = self.read_source(incremental_state)
        # As fairseq's attention: beams change places within their sentence only, unless sentences are finished.
        if source and any(value.size(self.batch_dims[name]) != len(new_order) for name, value in _given(source)):
            self.write_source(incremental_state, self._reordered(source, new_order))

    def _reordered(self, tensors: dict[str, Tensor | None], new_order: Tensor) -> dict[str, Tensor | None]:
        moved = {name: value.index_select(self.batch_dims[name], new_order) for name, value in _given(tensors)}
        return {**tensors, **moved}


def _given(tensors: dict[str, Tensor | None]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in tensors.items() if value is not None]
