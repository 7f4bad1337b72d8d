"""Tables and plots of compressed models, rendered from the records of ``results/compression``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.io import read_json
from lite_transformer.errors import DataError
from lite_transformer.markdown import markdown_table

FOLDER = "compression"
_KIND = "compression"
_TITLES = {"sacrebleu": "sacreBLEU", "tokenized_bleu": "tokenized BLEU"}


@dataclass
class Row:
    """A recipe's files of one model, one a seed; ``dense`` are the fp32 models they were made of.

    Attributes:
        trained: whether the recipe was trained with, or applied to the model as it was.
    """

    model: str
    recipe: str
    trained: bool
    files: list[dict[str, Any]] = field(default_factory=list)
    dense: list[dict[str, Any]] = field(default_factory=list)

    def mean(self, key: str) -> float | None:
        """Of a figure of the files; None if they do not have it."""
        values = [file[key] for file in self.files if file.get(key) is not None]
        return statistics.fmean(values) if values else None

    def scores(self, metric: str) -> list[float]:
        return [file["scores"][metric] for file in self.files]

    def losses(self, metric: str) -> list[float]:
        """The score of each file less that of its fp32 model."""
        return [
            file["scores"][metric] - dense["scores"][metric] for file, dense in zip(self.files, self.dense, strict=True)
        ]


def records_of(folder: Path, task: str) -> list[dict[str, Any]]:
    """The records of a task, such as libreoffice_help-de-en. Raises: DataError that lists the known tasks."""
    found = _by_task(folder)
    if task not in found:
        raise DataError(f"no record of compression of '{task}' in {folder / FOLDER}. Known: {', '.join(found)}")
    return found[task]


def _by_task(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((folder / FOLDER).glob("*.json")):
        record = read_json(path)
        if record.get("benchmark") == _KIND:
            found.setdefault(str(record.get("task")), []).append(record)
    return found


def rows_of(records: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows of these records in their order: seeds of a model together, its fp32 row first.

    Raises: DataError if a record is none of bench_compression.py.
    """
    rows: dict[tuple[str, str, bool], Row] = {}
    try:
        for record in records:
            dense = next(file for file in record["rows"] if file["recipe"] == "fp32")
            for file in record["rows"]:
                key = (str(record["model"]), str(file["recipe"]), bool(file["trained"]))
                row = rows.setdefault(key, Row(*key))
                row.files.append(file)
                row.dense.append(dense)
    except (KeyError, TypeError, StopIteration) as error:
        raise DataError(f"not a record of bench_compression.py ({type(error).__name__}: {error})") from error
    models = list(dict.fromkeys(row.model for row in rows.values()))
    return sorted(rows.values(), key=lambda row: models.index(row.model))


def render(folder: Path, task: str) -> str:
    """The table of a task, and above it what was measured. Raises: DataError if there is no record."""
    return render_records(records_of(folder, task))


def render_records(records: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row for the files of a recipe and a model; differences and p-values are against its fp32 model."""
    rows = rows_of(records)
    metric = _metric(rows)
    head = ["model", "recipe", "trained by it", "core MB", "times", "file MB", "times", "zeros", "bits: core"]
    head += ["bits: embeddings", "seeds", _TITLES[metric], "difference", "p", "compress s", "load s"]
    lines: list[list[str]] = []
    for row in rows:
        plain = row.recipe == "fp32"
        losses = [] if plain else row.losses(metric)
        lines.append(
            [
                row.model,
                row.recipe,
                "" if plain else "yes" if row.trained else "no",
                _megabytes(row.mean("core_file_bytes"), 3),
                _number(row.mean("core_ratio"), 1),
                _megabytes(row.mean("file_bytes"), 3),
                _number(row.mean("ratio"), 1),
                _number(row.mean("core_sparsity"), 0, 100, " %"),
                _number(row.mean("core_bits_per_parameter"), 2),
                _number(row.mean("embeddings_bits_per_parameter"), 2),
                str(len(row.files)),
                _spread(row.scores(metric), ".2f"),
                _spread(losses, "+.2f"),
                ", ".join(f"{file['p_value']:.3f}" for file in row.files if "p_value" in file),
                _number(row.mean("compress_seconds"), 0),
                _number(row.mean("load_seconds"), 2),
            ]
        )
    return "\n".join(markdown_table(head, lines, f"lll{'r' * (len(head) - 3)}")) + "\n"


def _metric(rows: Sequence[Row]) -> str:
    """The score shown: sacreBLEU where every file has it."""
    every = all("sacrebleu" in file["scores"] for row in rows for file in row.files)
    return "sacrebleu" if every else "tokenized_bleu"


def _number(value: float | None, digits: int, factor: float = 1, unit: str = "") -> str:
    return "" if value is None else f"{factor * value:.{digits}f}{unit}"


def _megabytes(size: float | None, digits: int) -> str:
    return _number(size, digits, 1e-6)


def _spread(values: Sequence[float], digits: str) -> str:
    if not values:
        return ""
    mean = format(statistics.fmean(values), digits)
    return mean if len(values) == 1 else f"{mean} ({min(values):{digits}} to {max(values):{digits}})"


def write_plots(folder: Path, plots: Path) -> list[Path]:
    """A PNG a task: the score of every row against the size of its file, hollow where the recipe was not trained with.

    Returns the paths, ``TASK-compression.png`` in the folder ``plots``.
    """
    return [
        write_plot(rows_of(records), plots / f"{task}-compression.png", task)
        for task, records in _by_task(folder).items()
    ]


def write_plot(rows: Sequence[Row], path: Path, title: str) -> Path:
    """One such PNG, written atomically; returns its path. Models differ in colour, recipes in shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = _metric(rows)
    models = list(dict.fromkeys(row.model for row in rows))
    shapes = dict(zip(dict.fromkeys(row.recipe for row in rows), "*osD^vPX<>hd", strict=False))
    figure, axes = pyplot.subplots(figsize=(8.5, 5), layout="constrained")
    for row in rows:
        color = f"C{models.index(row.model)}"
        size, score = (row.mean("file_bytes") or 0) / 1e6, statistics.fmean(row.scores(metric))
        filled = row.trained or row.recipe == "fp32"
        how = "" if row.recipe == "fp32" else ", trained by it" if row.trained else ", applied"
        axes.plot(
            size, score, shapes.get(row.recipe, "o"), color=color, markerfacecolor=color if filled else "none",
            markersize=9, label=f"{row.model}: {row.recipe}{how}",
        )  # fmt: skip
        axes.vlines(size, min(row.scores(metric)), max(row.scores(metric)), color=color, linewidth=1)
        if row.recipe == "fp32":
            axes.axhline(score, color=color, linewidth=0.8, alpha=0.5)
    axes.set(
        xscale="log",
        xlabel="size of the file with dictionaries and subword model, MB",
        ylabel=_TITLES[metric],
        title=title,
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=7, loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    temporary.replace(path)
    pyplot.close(figure)
    return path
