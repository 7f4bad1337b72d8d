"""Text from a language model, token by token: each step computes one position and reads the others from its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lite_transformer.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: logarithms of probabilities are divided by it before drawing; 0 takes the most probable token.
        top_k: only the k most probable tokens may be drawn; 0: all.
        top_p: only the most probable ones that together have this probability, the last of them included; 1: all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> None:
        """Raises: ConfigError naming the option that means nothing, and what is allowed."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"--temperature {self.temperature}: a number of at least 0 is needed (0: most probable)")
        if self.top_k < 0:
            raise ConfigError(f"--top-k {self.top_k}: at least 0 is needed (0: all tokens)")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p {self.top_p}: more than 0 and at most 1 is needed (1: all tokens)")

    def filtered(self, log_probs: Tensor) -> Tensor:
        """(N, V): log-probabilities with -inf for what may not be drawn, divided by the temperature."""
        if self.temperature == 0:
            best = log_probs.argmax(dim=-1, keepdim=True)
            return torch.full_like(log_probs, -torch.inf).scatter(1, best, 0.0)
        log_probs = torch.log_softmax(log_probs / self.temperature, dim=-1)
        if 0 < self.top_k < log_probs.size(1):
            least = log_probs.topk(self.top_k, dim=-1).values[:, -1:]
            log_probs = log_probs.masked_fill(log_probs < least, -torch.inf)
        if self.top_p < 1:
            # of what top_k leaves over
            log_probs = torch.log_softmax(log_probs, dim=-1)
            ordered, places = log_probs.sort(dim=-1, descending=True)
            before = ordered.exp().cumsum(dim=-1) - ordered.exp()
            dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, places, before >= self.top_p)
            log_probs = log_probs.masked_fill(dropped, -torch.inf)
        return log_probs

    def draw(self, log_probs: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) token ids of log-probabilities (N, V), drawn on the CPU, so that a seed means the same everywhere."""
        return torch.multinomial(self.filtered(log_probs).softmax(dim=-1), 1, generator=generator).squeeze(1)


def generate(
    model: Any,
    prompt: Sequence[int],
    length: int,
    sampling: Sampling,
    seed: int,
    samples: int = 1,
    device: torch.device | None = None,
    forbidden: Sequence[int] = (),
    stops: Callable[[int], bool] = lambda token: False,
) -> list[list[int]]:
    """Continuations of a prompt, each of ``length`` tokens, or up to and with the first that ``stops`` accepts.

    Args:
        model: a language model of fairseq's, in evaluation mode on ``device``.
        prompt: token ids, the first of which is the mark that text begins with.
        samples: how many continuations; one seed draws them all.
        forbidden: token ids that are never drawn.
    Raises: ConfigError if prompt and continuation are longer than the model's positions.
    """
    sampling.check()
    positions = int(model.max_positions())
    if len(prompt) + length > positions:
        raise ConfigError(
            f"the prompt has {len(prompt)} tokens and {length} are to follow, more than the model's {positions} "
            "positions: shorten the prompt, or give a smaller --length"
        )
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, dict[str, Tensor | None]] = {}
    tokens = torch.tensor([list(prompt)] * samples, device=device)
    banned = torch.tensor(list(forbidden), dtype=torch.long)
    with torch.no_grad():
        for step in range(1, len(prompt)):  # what is before the prompt's last token only fills the state
            model.decoder.extract_features(tokens[:, :step], encoder_out=None, incremental_state=state)
        for _ in range(length):
            output = model(tokens, incremental_state=state)
            log_probs = model.get_normalized_probs(output, log_probs=True)[:, -1].float().cpu()
            log_probs[:, banned] = -torch.inf
            drawn = sampling.draw(log_probs, generator)
            tokens = torch.cat([tokens, drawn.to(tokens.device).unsqueeze(1)], dim=1)
            if samples == 1 and stops(int(drawn)):
                break
    return [_until(row, stops) for row in tokens[:, len(prompt) :].tolist()]


def _until(tokens: list[int], stops: Callable[[int], bool]) -> list[int]:
    end = next((place for place, token in enumerate(tokens, start=1) if stops(token)), len(tokens))
    return tokens[:end]
