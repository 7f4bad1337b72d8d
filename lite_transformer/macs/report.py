"""What an architecture costs, by component: the form in which both ways of counting give their answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ENCODER_DECODER = ("encoder", "decoder")

# In the order of the table. The paper counts these as Mult-Adds ...
INPUT_PROJECTION = "input projection"  # of adaptive input's first band; its weights count as embeddings
COUNTED = (
    INPUT_PROJECTION,
    "encoder attention",
    "encoder convolution",
    "encoder kernel generator",
    "encoder feed-forward",
    "encoder layer norm",
    "decoder attention",
    "decoder convolution",
    "decoder kernel generator",
    "decoder cross-attention",
    "decoder feed-forward",
    "decoder layer norm",
)
# ... and not these.
TAPS = ("encoder convolution taps", "decoder convolution taps")
EMBEDDINGS = ("encoder embeddings", "decoder embeddings")
OUTPUT = "output projection"
NOT_COUNTED = (*TAPS, OUTPUT, *EMBEDDINGS)


@dataclass(frozen=True)
class Component:
    """A part of the model: multiply-adds of one pass, and the parameters it owns."""

    name: str
    macs: int
    params: int


@dataclass(frozen=True)
class CostReport:
    """The cost of one teacher-forced pass over one sentence pair, and the model's parameters.

    Attributes:
        source_length, target_length: in tokens; a language model has no source (0).
        counted: the components whose multiply-adds make up ``macs``; those without any cost are left out.
        not_counted: convolution taps, output projection, embeddings.
    """

    source_length: int
    target_length: int
    counted: tuple[Component, ...]
    not_counted: tuple[Component, ...]

    @classmethod
    def build(
        cls, source_length: int, target_length: int, macs: Mapping[str, int], params: Mapping[str, int]
    ) -> CostReport:
        """A report from totals by component name. Raises: KeyError for a name that is no component."""
        for name in (*macs, *params):
            if name not in COUNTED + NOT_COUNTED:
                raise KeyError(name)

        def rows(names: tuple[str, ...]) -> tuple[Component, ...]:
            found = (Component(name, macs.get(name, 0), params.get(name, 0)) for name in names)
            return tuple(row for row in found if row.macs or row.params)

        return cls(source_length, target_length, rows(COUNTED), rows(NOT_COUNTED))

    @property
    def macs(self) -> int:
        """Multiply-adds by the paper's convention: matrix products only, no taps, no output projection."""
        return sum(row.macs for row in self.counted)

    @property
    def taps_macs(self) -> int:
        """Multiply-adds of the convolutions themselves."""
        return sum(row.macs for row in self.not_counted if row.name in TAPS)

    @property
    def output_macs(self) -> int:
        """Multiply-adds of the projection to the vocabulary."""
        return sum(row.macs for row in self.not_counted if row.name == OUTPUT)

    @property
    def params_core(self) -> int:
        """Parameters without embeddings and output matrix."""
        return sum(row.params for row in self.counted)

    @property
    def params_embeddings(self) -> int:
        """Parameters of the embedding tables (a shared one once) and of learned positions."""
        return sum(row.params for row in self.not_counted if row.name in EMBEDDINGS)

    @property
    def params_output(self) -> int:
        """Parameters of the output matrix; 0 if it is shared with an embedding."""
        return sum(row.params for row in self.not_counted if row.name == OUTPUT)

    @property
    def params_total(self) -> int:
        return self.params_core + self.params_embeddings + self.params_output
