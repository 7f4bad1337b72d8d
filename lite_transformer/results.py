"""Records of runs, and the tables and plots that are made from them; no number of a table is typed by hand.

``results/runs/*.json`` holds a `RunRecord` a run, ``results/comparisons/*.json`` a `ComparisonRecord` a paired
significance test, ``results/literature.json`` what papers claim. A task's table has a
row for every label; figures of the literature stand in columns of their own, and a column holds scores of one protocol
only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import statistics
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data_prep.io import atomic_open, read_json, sha256, write_json
from lite_transformer import speed
from lite_transformer.compression import tables as compression
from lite_transformer.errors import DataError
from lite_transformer.markdown import markdown_table

RUNS = "runs"
COMPARISONS = "comparisons"
LITERATURE = "literature.json"
TABLES = "tables.md"
PLOTS = "plots"
PREPARED = "prepare.json"  # of data_prep.pipeline, in every bin folder

_HEADER = """# Results

Generated from the records in `runs/` and from `literature.json` by `lite-transformer results`; do not edit.
*measured*: mean over seeds (lowest to highest). *literature*: as published, not measured here.
"""


# Split, metric, protocol (of a measured score: signature and decoding).
Column = tuple[str, str, str]


@dataclass(frozen=True)
class Metric:
    """One measured score: on which split, by which protocol, and how the hypotheses were found (beam, averaging)."""

    split: str
    metric: str
    value: float
    signature: str
    decoding: str

    @property
    def column(self) -> Column:
        """Scores may share a column of a table only if all of this is equal."""
        return self.split, self.metric, f"{self.signature}; {self.decoding}"


@dataclass(frozen=True)
class RunRecord:
    """One training run and its scores.

    Attributes:
        task: what is compared within, for example 'multi30k-en-de'.
        row: label of the table's row; the runs of a row differ in their seeds only.
        kind: 'measured'; a literature figure is never a record.
        arch: name of the architecture.
        commands: what was typed, in order: training, evaluation.
        commit, dirty: of the code that trained; whether files differed from it.
        config, config_sha256: the experiment file; both '' if only flags were given.
        settings_sha256: of the complete configuration in the checkpoint, without seed and paths.
        data: SHA-256 of the raw files, by name.
        seed, updates, wall_time_seconds: of the training.
        device: that trained. versions: of the libraries.
        macs, taps_macs: of one pass at the task's lengths. params_core: without embeddings and output matrix.
        date: of the evaluation, ISO 8601.
    """

    task: str
    row: str
    kind: str
    arch: str
    commands: list[str]
    commit: str
    dirty: bool
    config: str
    config_sha256: str
    settings_sha256: str
    data: dict[str, str]
    seed: int
    device: str
    versions: dict[str, str]
    metrics: list[Metric]
    macs: int
    taps_macs: int
    params_core: int
    params_total: int
    updates: int
    wall_time_seconds: float
    date: str


@dataclass(frozen=True)
class Difference:
    """One system against the baseline by one metric: the paired test of `lite-transformer compare`.

    ``half_width``: of the 95 % interval around ``value``. ``p_value``: how likely a difference at least as large is if
    the two are equally good.
    """

    system: str
    metric: str
    baseline_value: float
    value: float
    half_width: float
    p_value: float
    signature: str
    test: str


@dataclass(frozen=True)
class ComparisonRecord:
    """A paired test of systems on one test set.

    Attributes:
        task: of the records that it belongs to. split: which part of the data.
        baseline: label of the system that the others are compared with.
        hypotheses: SHA-256 of each file, by label. reference: SHA-256 of the reference.
        command: what was typed. date: ISO 8601.
    """

    task: str
    split: str
    baseline: str
    differences: list[Difference]
    lines: int
    hypotheses: dict[str, str]
    reference: str
    command: str
    date: str


@dataclass(frozen=True)
class LiteratureFigure:
    """What a paper claims: one score of one row of one task. macs and params are 0 if not known."""

    task: str
    row: str
    source: str
    split: str
    metric: str
    value: float
    protocol: str
    macs: int
    params: int

    @property
    def column(self) -> Column:
        return self.split, self.metric, self.protocol


# --- reading and writing -------------------------------------------------------------------------------------------


def parse_dataclass(cls: type, content: Any, where: str) -> Any:
    """Data as an instance of a dataclass. Raises: DataError naming unknown or missing keys and wrong types."""
    if not isinstance(content, dict):
        raise DataError(f"{where}: an object with the keys of {cls.__name__} is expected")
    declared = typing.get_type_hints(cls)
    for what, keys in (("unknown", content.keys() - declared.keys()), ("missing", declared.keys() - content.keys())):
        if keys:
            raise DataError(f"{where}: {what} key {', '.join(sorted(keys))}")
    return cls(**{key: _convert(value, declared[key], f"{where}: key {key}") for key, value in content.items()})


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and isinstance(value, list):
        return [_convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return parse_dataclass(typing.cast(type, kind), value, where)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if origin is None and type(value) is kind and kind is not float:
        return value
    raise DataError(f"{where}: {value!r} is not of type {getattr(kind, '__name__', kind)}")


def read_record(path: Path) -> RunRecord:
    """A run's record. Raises: DataError naming the file and the key that is unknown, missing or of a wrong type."""
    record: RunRecord = parse_dataclass(RunRecord, read_json(path), str(path))
    if record.kind != "measured":
        raise DataError(f"{path}: key kind: '{record.kind}' is not 'measured'; literature goes to {LITERATURE}")
    if not record.metrics:
        raise DataError(f"{path}: key metrics is empty: a run without a score has no record")
    return record


def write_record(path: Path, record: RunRecord) -> RunRecord:
    """Writes a record atomically and returns what was written.

    If the file holds the same run already, the new scores are added to it (a score on the same split by the same
    protocol is replaced). Raises: DataError if it holds another run.
    """
    if path.exists():
        old = read_record(path)
        changing = {"metrics", "commands", "date", "versions"}
        for field in dataclasses.fields(RunRecord):
            before, now = getattr(old, field.name), getattr(record, field.name)
            if field.name not in changing and before != now:
                raise DataError(
                    f"{path} is the record of another run: {field.name} is {before!r} there and {now!r} here. "
                    "Give another --record FILE"
                )
        new = {item.column for item in record.metrics}
        kept = [item for item in old.metrics if item.column not in new]
        commands = list(dict.fromkeys(old.commands + record.commands))
        record = dataclasses.replace(record, metrics=kept + record.metrics, commands=commands)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dataclasses.asdict(record))
    return record


def read_records(folder: Path) -> dict[Path, RunRecord]:
    """All records of a results folder, by file."""
    return {path: read_record(path) for path in sorted((folder / RUNS).glob("*.json"))}


def read_comparisons(folder: Path) -> list[ComparisonRecord]:
    """All comparisons of a results folder, in the order of their files' names."""
    paths = sorted((folder / COMPARISONS).glob("*.json"))
    return [parse_dataclass(ComparisonRecord, read_json(path), str(path)) for path in paths]


def read_literature(folder: Path) -> list[LiteratureFigure]:
    """The literature's figures; none if there is no such file."""
    path = folder / LITERATURE
    if not path.exists():
        return []
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: a list of figures is expected")
    return [
        parse_dataclass(LiteratureFigure, item, f"{path}, figure {number}")
        for number, item in enumerate(content, start=1)
    ]


# --- what makes two runs the same ----------------------------------------------------------------------------------


def settings_hash(config: dict[str, Any]) -> str:
    """A hash of what a run computes: model, task, criterion, optimizer, batches; not of seed, paths, logging, speed.

    The batch counts as a whole: a run of one process and one of eight that divide its update_freq have one hash.
    """
    from lite_transformer.models.config import SPEED_OPTIONS

    kept = {}
    for section in ("model", "task", "criterion", "optimizer", "lr_scheduler", "optimization", "dataset"):
        content = config.get(section)
        if isinstance(content, dict):
            dropped = {"data", "num_workers", "seed", "no_seed_provided", *SPEED_OPTIONS}
            content = {key: value for key, value in content.items() if key not in dropped}
        kept[section] = content
    processes = (config.get("distributed_training") or {}).get("distributed_world_size") or 1
    if isinstance(kept["optimization"], dict) and kept["optimization"].get("update_freq"):
        kept["optimization"]["update_freq"] = [freq * processes for freq in kept["optimization"]["update_freq"]]
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def data_hashes(data: Path) -> dict[str, str]:
    """Hashes of a bin folder's raw files if `prepare` made it, otherwise of the binarized ones; by name."""
    prepared = read_json(data / PREPARED) if (data / PREPARED).is_file() else {}
    if prepared.get("raw_sha256"):
        return dict(prepared["raw_sha256"])
    return {path.name: sha256(path) for path in sorted(data.glob("*.bin"))}


# --- tables --------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What is known of one label of a task: its runs (by file) and its literature figures."""

    label: str
    runs: dict[Path, RunRecord]
    figures: list[LiteratureFigure]

    @property
    def macs(self) -> int:
        return next((run.macs for run in self.runs.values()), 0) or next((fig.macs for fig in self.figures), 0)

    def values(self, column: Column) -> list[float]:
        """The measured scores of a column, one a run that has it."""
        found = [item for run in self.runs.values() for item in run.metrics]
        return [item.value for item in found if item.column == column]


def rows_by_task(records: Mapping[Path, RunRecord], literature: Iterable[LiteratureFigure]) -> dict[str, list[Row]]:
    """The rows of each task, by MACs.

    Raises: DataError if two runs of a row have the same seed, or differ in more than their seeds.
    """
    tasks: dict[str, dict[str, Row]] = {}

    def row(task: str, label: str) -> Row:
        return tasks.setdefault(task, {}).setdefault(label, Row(label, {}, []))

    for path, record in records.items():
        runs = row(record.task, record.row).runs
        for other_path, other in runs.items():
            if other.seed == record.seed:
                raise DataError(f"{other_path} and {path}: two runs of row '{record.row}' with seed {record.seed}")
            for name in ("arch", "settings_sha256", "data", "macs", "params_total", "updates"):
                if getattr(other, name) != getattr(record, name):
                    raise DataError(
                        f"{other_path} and {path}: runs of row '{record.row}' differ in {name}; "
                        "only runs that differ in nothing but their seeds share a row"
                    )
        runs[path] = record
    for figure in literature:
        row(figure.task, figure.row).figures.append(figure)
    return {
        task: sorted(rows.values(), key=lambda item: (item.macs, item.label)) for task, rows in sorted(tasks.items())
    }


def render_tables(folder: Path) -> str:
    """The text of tables.md for a results folder: tasks of which something was measured."""
    tasks = rows_by_task(read_records(folder), read_literature(folder))
    measured = {task: rows for task, rows in tasks.items() if any(row.runs for row in rows)}
    comparisons = read_comparisons(folder)
    parts = [_HEADER]
    for task, rows in measured.items():
        parts.append(_render_task(task, rows, folder))
        if tested := [record for record in comparisons if record.task == task]:
            parts.append(render_comparisons(tested))
    if not measured:
        parts.append("No records yet.\n")
    return "\n".join(parts)


def render_comparisons(records: Sequence[ComparisonRecord]) -> str:
    """A table of paired significance tests, a line for each system and metric."""
    head = ["system", "against", "split", "metric", "95 % interval", "against's", "difference", "p"]
    lines: list[list[str]] = []
    tests: dict[str, None] = {}
    for record in records:
        for item in record.differences:
            cells = [item.system, record.baseline, record.split, item.metric]
            cells += [f"{item.value:.2f} ± {item.half_width:.2f}", f"{item.baseline_value:.2f}"]
            cells += [f"{item.value - item.baseline_value:+.2f}", f"{item.p_value:.3f}"]
            lines.append(cells)
            tests[item.test] = None
    table = markdown_table(head, lines, "llllrrrr")
    return "\n".join([f"Significance: {'; '.join(tests)}.", "", *table]) + "\n"


def _render_task(task: str, rows: Sequence[Row], folder: Path) -> str:
    measured: dict[Column, None] = {}
    published: dict[Column, None] = {}
    for row in rows:
        for run in row.runs.values():
            measured |= {item.column: None for item in run.metrics}
        published |= {figure.column: None for figure in row.figures}
    notes: list[str] = []
    head = ["row", "MACs", "params (core)", "params (total)"]
    for kind, columns in (("literature", published), ("measured", measured)):
        for split, metric, protocol in columns:
            if protocol not in notes:
                notes.append(protocol)
            head.append(f"{metric}, {split}, {kind} [{notes.index(protocol) + 1}]")
    head += ["seeds", "records, sources"]
    lines: list[list[str]] = []
    for row in rows:
        first = next(iter(row.runs.values()), None)
        cells = [row.label, f"{row.macs:,}" if row.macs else ""]
        cells += [f"{first.params_core:,}", f"{first.params_total:,}"] if first else ["", ""]
        for column in published:
            cells.append(", ".join(f"{figure.value:.2f}" for figure in row.figures if figure.column == column))
        cells += [mean_and_spread(row.values(column)) for column in measured]
        links = [f"[{run.seed}]({path.relative_to(folder).as_posix()})" for path, run in row.runs.items()]
        links += dict.fromkeys(figure.source for figure in row.figures)
        cells += [str(len(row.runs)) if row.runs else "", ", ".join(links)]
        lines.append(cells)
    table = markdown_table(head, lines, f"l{'r' * (len(head) - 2)}l")
    footnotes = [f"[{number}] `{protocol}`  " for number, protocol in enumerate(notes, start=1)]
    text = [f"## {task}", "", *table, "", *footnotes]
    if plotted_columns(rows):
        text += ["", f"![{task}]({PLOTS}/{_file_name(task)}.png)"]
    return "\n".join(text) + "\n"


def mean_and_spread(values: Sequence[float]) -> str:
    """'41.00 (40.00 to 42.00)', the one value alone, or '' of none."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"


def write_tables(folder: Path) -> Path:
    """Writes tables.md; returns its path."""
    text = render_tables(folder)
    path = folder / TABLES
    with atomic_open(path) as stream:
        stream.write(text)
    return path


def check_tables(folder: Path) -> None:
    """Raises: DataError if tables.md is not what the records give."""
    path = folder / TABLES
    expected = render_tables(folder)
    found = path.read_text(encoding="utf-8") if path.exists() else None
    if found is None:
        raise DataError(f"{path} is missing. Run: lite-transformer results --dir {folder}")
    if found != expected:
        pairs = zip_longest(found.splitlines(), expected.splitlines())
        line = next((number for number, (a, b) in enumerate(pairs, start=1) if a != b), 1)
        raise DataError(f"{path}, line {line}: not what the records give. Run: lite-transformer results --dir {folder}")


# --- the metrics a task is judged by -------------------------------------------------------------------------------

# The first group that a task has scores of counts; within it, rows are ordered and plotted by the last metric.
_MAIN = (
    ("tokenized_bleu",),
    ("rouge1", "rouge2", "rougeL"),
    ("rouge1_stem", "rouge2_stem", "rougeL_stem"),
    ("sacrebleu",),
    ("chrf",),
)
METRIC_TITLES = {"tokenized_bleu": "tokenized BLEU", "sacrebleu": "sacreBLEU", "chrf": "chrF"} | {
    f"rouge{kind}{ending}": f"ROUGE-{kind}{title}"
    for kind in ("1", "2", "L", "Lsum")
    for ending, title in (("", ""), ("_stem", " (stemmed)"))
}


def main_metrics(rows: Sequence[Row]) -> tuple[str, ...]:
    """The metrics of a task's summary and, the last one, of its plot: tokenized BLEU, or ROUGE-1, -2 and -L, ...

    Measured scores decide; the literature only where nothing was measured. A metric that we know nothing of stands
    for itself.
    """
    measured = [item.metric for row in rows for run in row.runs.values() for item in run.metrics]
    known = measured or [figure.metric for row in rows for figure in row.figures]
    for group in _MAIN:
        if found := tuple(metric for metric in group if metric in known):
            return found
    return tuple(known[:1])


# --- summaries inside other files ----------------------------------------------------------------------------------

_BLOCK = re.compile(
    r"(?P<first><!-- (?P<kind>results|speed|compression): (?P<name>[^ ]+)(?P<rows>(?: \| [^|\n]+?)*) -->\n).*?"
    r"(?P<last><!-- end -->)",
    re.DOTALL,
)
_SPLIT = "test"


def render_summary(rows: Sequence[Row]) -> str:
    """A narrow table of one task: its main metrics on test, measured and literature apart, best mean last."""
    names = main_metrics(rows)
    titles = [METRIC_TITLES.get(name, name) for name in names]
    head = ["row", "Mult-Adds", "updates", "seeds"] + [f"{title}, measured" for title in titles] + ["decoding"]
    head += [f"{title}, literature" for title in titles]
    numbers = "r" * len(names)
    lines: list[list[str]] = []

    def metrics(row: Row) -> list[Metric]:
        found = [item for run in row.runs.values() for item in run.metrics]
        return [item for item in found if item.split == _SPLIT and item.metric in names]

    def scores(row: Row, name: str) -> list[float]:
        return [item.value for item in metrics(row) if item.metric == name]

    def claims(row: Row, name: str) -> str:
        found = [figure for figure in row.figures if (figure.split, figure.metric) == (_SPLIT, name)]
        return ", ".join(f"{figure.value:.2f}" for figure in found)

    def order(row: Row) -> tuple[float, str]:
        found = scores(row, names[-1])
        return statistics.fmean(found) if found else 0.0, row.label

    for row in sorted(rows, key=order):
        updates = sorted({run.updates for run in row.runs.values()})
        lines.append(
            [
                row.label,
                f"{row.macs / 1e6:.1f}M",
                ", ".join(f"{count:,}" for count in updates),
                str(len(row.runs) or ""),
                *(mean_and_spread(scores(row, name)) for name in names),
                ", ".join(dict.fromkeys(item.decoding for item in metrics(row))),
                *(claims(row, name) for name in names),
            ]
        )
    return "\n".join(markdown_table(head, lines, f"lrrr{numbers}l{numbers}")) + "\n"


def render_blocks(text: str, folder: Path, where: str) -> str:
    """The text with every block between '<!-- results: TASK -->' and '<!-- end -->' filled from the records.

    '<!-- results: TASK | LABEL | LABEL -->' shows the rows of these labels only.
    '<!-- speed: NAME -->' is filled from the benchmark record ``speed/NAME.json``, '<!-- compression: TASK -->' from
    the records of that task in ``compression``.

    Raises: DataError if a block names a task without records, or a row that it has not.
    """
    tasks = rows_by_task(read_records(folder), read_literature(folder))

    def summary(name: str, labels: list[str]) -> str:
        if name not in tasks:
            raise DataError(f"{where}: results of unknown task '{name}'. Known: {', '.join(tasks)}")
        known = [row.label for row in tasks[name]]
        for label in labels:
            if label not in known:
                raise DataError(f"{where}: {name} has no row '{label}'. Known: {'; '.join(known)}")
        return render_summary([row for row in tasks[name] if not labels or row.label in labels])

    def fill(block: re.Match[str]) -> str:
        if block["kind"] == "speed":
            inside = speed.render(folder, block["name"])
        elif block["kind"] == "compression":
            inside = compression.render(folder, block["name"])
        else:
            inside = summary(block["name"], block["rows"].split(" | ")[1:])
        return f"{block['first']}\n{inside}\n{block['last']}"

    return _BLOCK.sub(fill, text)


def write_blocks(path: Path, folder: Path) -> Path:
    """Fills the blocks of a file, such as the README; returns its path."""
    text = render_blocks(path.read_text(encoding="utf-8"), folder, str(path))
    with atomic_open(path) as stream:
        stream.write(text)
    return path


def check_blocks(path: Path, folder: Path) -> None:
    """Raises: DataError if the blocks of a file are not what the records give."""
    text = path.read_text(encoding="utf-8")
    if render_blocks(text, folder, str(path)) != text:
        raise DataError(
            f"{path}: its results are not what the records give. "
            f"Run: lite-transformer results --dir {folder} --into {path}"
        )


# --- plots ---------------------------------------------------------------------------------------------------------


def plotted_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that a task's plot shows: its main metric on every split that has measured runs."""
    names = main_metrics(rows)
    columns = {
        item.column: None
        for row in rows
        for run in row.runs.values()
        for item in run.metrics
        if item.metric == names[-1]
    }
    return list(columns)


def write_plots(folder: Path) -> list[Path]:
    """One PNG a task with measured runs: a line a row, its main metric across, literature hollow; returns the paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for task, rows in rows_by_task(read_records(folder), read_literature(folder)).items():
        columns = plotted_columns(rows)
        if not columns:
            continue
        figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.42 * len(rows)), layout="constrained")
        for number, column in enumerate(columns):
            color = f"C{number}"
            for y, row in enumerate(rows):
                values = row.values(column)
                how = f"{column[0]}, measured: {column[2].rpartition('; ')[2]}"
                axes.plot(values, [y] * len(values), "-o", color=color, label=how)
                claims = [item.value for item in row.figures if (item.split, item.metric) == column[:2]]
                axes.plot(
                    claims, [y] * len(claims), "s", color=color, markerfacecolor="none", markersize=9,
                    label=f"{column[0]}, literature",
                )  # fmt: skip
        axes.set(title=task, xlabel=METRIC_TITLES.get(columns[0][1], columns[0][1]))
        axes.set_yticks(range(len(rows)), [f"{row.label} ({row.macs / 1e6:.1f}M)" for row in rows])
        axes.margins(x=0.1, y=0.15)
        axes.grid(alpha=0.3)
        # every row brought its own entry, empty ones too: keep one of each that has a mark
        entries = {
            str(line.get_label()): line
            for line in axes.get_lines()
            if len(line.get_xdata())  # type: ignore[arg-type]
        }
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2, fontsize=8)
        (folder / PLOTS).mkdir(exist_ok=True)
        path = folder / PLOTS / f"{_file_name(task)}.png"
        temporary = path.with_name(f".{path.name}.partial")
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
        temporary.replace(path)
        pyplot.close(figure)
        written.append(path)
    return written + compression.write_plots(folder, folder / PLOTS)


def _file_name(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", task).strip("-") or "task"
