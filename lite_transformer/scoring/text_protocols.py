"""How a text is cut to compute a language model's perplexity, as data: windows, context, who said so. No code runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from lite_transformer.errors import ConfigError

BREAK_MODES = ("none", "complete", "complete_doc")


@dataclass(frozen=True)
class TextProtocol:
    """How a text is cut, with the names of ``fairseq-eval-lm``.

    Attributes:
        name: the corpus; its experiments begin with it.
        tokens_per_sample: the longest window, context included.
        context_window: how much of it is context that is not scored again.
        sample_break_mode: 'none' cuts anywhere, 'complete' between lines, 'complete_doc' between documents too, whose
            empty lines are then left out.
        source: who evaluates so.
        remark: how published figures are to be read.
    """

    name: str
    tokens_per_sample: int
    context_window: int
    sample_break_mode: str
    source: str
    remark: str = ""

    # what an evaluation of translations may do, and one of a text does not
    average_last = None
    compound_split = False
    metric = "perplexity"

    @property
    def block(self) -> int:
        """New tokens a window."""
        return self.tokens_per_sample - self.context_window

    def check(self, positions: int) -> None:
        """Raises: ConfigError if there is no such cut, or a model of so many positions cannot read its windows."""
        if self.tokens_per_sample < 1 or self.context_window < 0:
            raise ConfigError(
                f"--tokens-per-sample {self.tokens_per_sample}, --context-window {self.context_window}: the first must "
                "be at least 1, the second at least 0"
            )
        if self.block < 1:
            raise ConfigError(
                f"--context-window {self.context_window} must be smaller than --tokens-per-sample "
                f"{self.tokens_per_sample}: a window holds the context and the tokens that are scored after it"
            )
        if self.tokens_per_sample > positions:
            raise ConfigError(
                f"--tokens-per-sample {self.tokens_per_sample} is longer than the model's {positions} positions: give "
                "at most as many"
            )
        if self.sample_break_mode not in BREAK_MODES:
            raise ConfigError(f"--sample-break-mode {self.sample_break_mode}: known are {', '.join(BREAK_MODES)}")

    def __str__(self) -> str:
        return (
            f"{self.tokens_per_sample} tokens per sample, context window {self.context_window}, "
            f"break mode {self.sample_break_mode}"
        )


_REFERENCE: Final = "configs/wikitext-103/test.sh of github.com/mit-han-lab/lite-transformer"
TEXT_PROTOCOLS: Mapping[str, TextProtocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            TextProtocol("wikitext103", 3072, 2560, "complete", _REFERENCE, "published: perplexity per word token"),
            TextProtocol("wikitext2", 3072, 2560, "complete", _REFERENCE, "the protocol of WikiText-103"),
            TextProtocol("linux_docs", 512, 384, "complete", "this project"),
        )
    }
)


def find_text_protocol(experiment: str) -> TextProtocol | None:
    """The protocol of an experiment of a language model, or of that name itself; None if there is none."""
    for name, protocol in TEXT_PROTOCOLS.items():
        if experiment == name or experiment.startswith(f"{name}_"):
            return protocol
    return None


def usual_protocol(positions: int) -> TextProtocol:
    """What a text is cut into where nothing else is said: windows of all the positions, five sixths of them context."""
    return replace(TEXT_PROTOCOLS["wikitext103"], name="", tokens_per_sample=positions,
                   context_window=positions * 5 // 6, source="this project", remark="")  # fmt: skip
