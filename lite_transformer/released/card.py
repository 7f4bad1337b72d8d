"""What is known of a released model, as data (card.json), and the page for people that is rendered from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.io import read_json
from lite_transformer.compression.packed import PACKED_BY
from lite_transformer.errors import CheckpointError
from lite_transformer.file_list import File, outside
from lite_transformer.markdown import markdown_table
from lite_transformer.results import Metric, parse_dataclass

FORMAT = 2  # of the folder; a program reads this one and older ones. 1: weights are fp16
CARD_FILE = "card.json"
PAGE_FILE = "README.md"


@dataclass(frozen=True)
class Data:
    """What the model was trained on.

    Attributes:
        command: that prepares the same data.
        lines: of each split. sha256: of the raw text files, by name.
    """

    corpus: str
    licence: str
    citation: str
    command: str
    lines: dict[str, int]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Training:
    """How it was trained.

    Attributes:
        commands: what was typed, in order: training, evaluation, release.
        averaged: how many files the weights are the mean of; one that was given may be an average already.
        commit, dirty: of the code that trained; whether files differed from it.
        config: the experiment file; '' if not known. versions: of the libraries.
    """

    commands: list[str]
    averaged: int
    commit: str
    dirty: bool
    config: str
    seed: int
    updates: int
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Cost:
    """Mult-Adds of one pass over source_length and target_length tokens, and parameters.

    macs leaves out the convolution taps (taps_macs) and the output projection; params_core the vocabulary's.
    """

    source_length: int
    target_length: int
    macs: int
    taps_macs: int
    params_core: int
    params_total: int


@dataclass(frozen=True)
class Fidelity:
    """What storing the weights in fewer bits changed, on evenly spaced lines of a split.

    Attributes:
        identical_lines: of ``lines``, those translated to the same tokens.
        mean_logprob_difference, max_logprob_difference: of the reference's tokens, absolute, in nats.
    """

    split: str
    lines: int
    identical_lines: int
    mean_logprob_difference: float
    max_logprob_difference: float

    def __str__(self) -> str:
        return (
            f"{self.identical_lines} of {self.lines} lines of {self.split} are translated to the same tokens; the "
            f"log-probabilities of the references' tokens differ by {self.mean_logprob_difference:.1e} on average and "
            f"by {self.max_logprob_difference:.1e} at most"
        )


@dataclass(frozen=True)
class Card:
    """A released model.

    Attributes:
        format: see FORMAT.
        name: also that of its folder, unless the folder was renamed.
        licence: of the weights.
        beam, lenpen: the search that `lite-transformer translate` takes.
        scores: of the weights in fp32, or of the file where their decoding says packed. records: names of the run
            records they are from.
        recipe: of compression, '' for fp16. fidelity: of what is stored to the weights that it was made of.
        weights: the checkpoint among the files.
        files: by path within the folder; everything but the card and its page.
        date: ISO 8601.
    """

    format: int
    name: str
    arch: str
    source_language: str
    target_language: str
    licence: str
    intended_use: str
    limits: list[str]
    beam: int
    lenpen: float
    cost: Cost
    scores: list[Metric]
    records: list[str]
    recipe: str
    fidelity: Fidelity
    data: Data
    training: Training
    weights: str
    files: dict[str, File]
    date: str

    @property
    def stored(self) -> str:
        """How the weights are stored, in words."""
        return f"{PACKED_BY} {self.recipe}" if self.recipe else "fp16"

    @property
    def own_scores(self) -> list[Metric]:
        """Those of the file itself where it was scored, otherwise of the weights that it was made of."""
        return [score for score in self.scores if PACKED_BY in score.decoding] or self.scores

    @property
    def size_bytes(self) -> int:
        """Of all files but the card and its page."""
        return sum(file.size_bytes for file in self.files.values())


def read_card(folder: Path) -> Card:
    """The card in a released model's folder.

    Raises: CheckpointError if there is none or a newer program wrote it; DataError if it is damaged.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no released model (no {CARD_FILE}). A checkpoint of your own is given by --checkpoint PT "
            "--data BIN; `lite-transformer release` makes a released model of it"
        )
    content = read_json(path)
    number = content.get("format") if isinstance(content, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise CheckpointError(
            f"{path}: written by a newer lite-transformer (format {number}, this one reads up to {FORMAT}). "
            "Update this program"
        )
    if number == 1 and "half_precision" in content:
        content = content | {"recipe": "", "fidelity": content["half_precision"]}
        del content["half_precision"]
    card: Card = parse_dataclass(Card, content, str(path))
    if (name := outside(card.files)) is not None:
        raise CheckpointError(f"{path}: the file '{name}' lies outside of the folder. Do not use this model")
    return card


# --- the page ------------------------------------------------------------------------------------------------------


def language_name(code: str) -> str:
    """'German' for 'de'; the code itself if it is no language's."""
    from babel import Locale, UnknownLocaleError

    try:
        return Locale.parse(code).get_display_name("en") or code
    except (UnknownLocaleError, ValueError):
        return code


def render_page(card: Card) -> str:
    """The model card as Markdown, all of it from ``card``."""
    source, target = card.source_language, card.target_language
    cost, data, training = card.cost, card.data, card.training
    translate = f"lite-transformer translate --model {card.name}"
    commit = training.commit + (" with changes" if training.dirty else "")
    made = [
        ("commit of the training", f"`{commit}`"),
        ("experiment", f"`{training.config}`" if training.config else "not recorded"),
        ("seed", str(training.seed)),
        ("updates", f"{training.updates:,}"),
        ("weights", f"{_origin(card)}, {'' if card.recipe else 'as '}{card.stored}, without optimizer state"),
        ("device", training.device or "not recorded"),
        ("versions", ", ".join(f"{name} {version}" for name, version in training.versions.items())),
    ]
    size = [
        ("Mult-Adds", f"{cost.macs:,} for {cost.source_length} source and {cost.target_length} target tokens"),
        ("of the convolutions' taps", f"{cost.taps_macs:,} more"),
        ("parameters", f"{cost.params_total:,}; without the vocabulary {cost.params_core:,}"),
        ("size", f"{card.size_bytes:,} bytes, all files below"),
    ]
    text = [
        f"# {card.name}",
        f"Translates {language_name(source)} to {language_name(target)}: architecture `{card.arch}`, trained on "
        f"`{data.corpus}`. Rendered from [{CARD_FILE}]({CARD_FILE}) on {card.date[:10]} by `lite-transformer release`; "
        "do not edit.",
        "## Use",
        _fence([translate, f"{translate} --input text.{source} --output text.{target}"]),
        f"On a terminal it asks for lines; in a pipe it is a filter, line by line. Beam {card.beam}, length penalty "
        f"{card.lenpen:g}. On a CPU the weights are widened to fp32 when they are loaded.",
        card.intended_use,
        "## Limits",
        "\n".join(f"- {limit}" for limit in card.limits),
        "## Scores",
        *_scores(card),
        f"{'The packed file' if card.recipe else 'fp16'} against fp32 weights: {card.fidelity}.",
        "## Size",
        _table(["", ""], size),
        "## Data",
        f"`{data.corpus}`, {', '.join(f'{split} {lines:,}' for split, lines in data.lines.items())} pairs. "
        f"Source: {data.citation}. Licence of the text: {data.licence}. Licence of the weights: {card.licence}.",
        _table(["raw text", "sha256"], [(name, f"`{digest}`") for name, digest in data.sha256.items()]),
        "## How it was made",
        _fence([data.command, *training.commands]),
        _table(["", ""], made),
        "## Files",
        _table(
            ["file", "bytes", "sha256"],
            [(f"`{name}`", f"{file.size_bytes:,}", f"`{file.sha256}`") for name, file in card.files.items()],
        ),
    ]
    return "\n\n".join(part for part in text if part) + "\n"


def _origin(card: Card) -> str:
    """What the weights are, in words; one file may be an average already, and the scores say so."""
    if card.training.averaged > 1:
        return f"the mean of {card.training.averaged} checkpoints"
    found = {score.decoding.rpartition(", ")[2] for score in card.scores if PACKED_BY not in score.decoding}
    return f"one file, {found.pop()}" if len(found) == 1 else "one checkpoint"


def _scores(card: Card) -> list[str]:
    if not card.scores:
        return ["Not scored."]
    rows = [
        (score.split, score.metric, f"{score.value:.2f}", score.decoding, f"`{score.signature}`")
        for score in card.scores
    ]
    of = ", ".join(f"`{name}`" for name in card.records)
    packed = sum(PACKED_BY in score.decoding for score in card.scores)
    whose = ["the fp32 weights"] * (packed < len(rows)) + ["the packed file"] * (packed > 0)
    return [
        _table(["split", "metric", "score", "decoding", "signature"], rows),
        f"Of {' and '.join(whose)}; records {of}.",
    ]


def _fence(lines: list[str]) -> str:
    return "\n".join(["```text", *lines, "```"])


def _table(head: list[str], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    return "\n".join(markdown_table(head, rows, "l" * len(head)))
