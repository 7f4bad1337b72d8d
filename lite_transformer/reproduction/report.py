"""What a reproduction shows: its table, with published and measured figures in columns of their own, and its plot."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.io import atomic_open
from lite_transformer import results
from lite_transformer.markdown import markdown_table
from lite_transformer.reproduction.tables import CHECKOUT, Table, TableRow

if TYPE_CHECKING:
    from lite_transformer.reproduction.chain import Outcome, Plan

TABLE = "table.md"
PLOT = "tradeoff.svg"

Figures = Mapping[str, Sequence[results.LiteratureFigure]]


def published_figures(table: Table) -> dict[str, list[results.LiteratureFigure]]:
    """The published figures of a table's rows, by label."""
    figures = [figure for figure in results.read_literature(CHECKOUT / "results") if figure.task == table.task]
    return {row.label: [figure for figure in figures if figure.row == row.label] for row in table.rows}


def write_table(plan: Plan, outcomes: Sequence[Outcome], changes: Sequence[str]) -> Path:
    """Writes the table of a reproduction to its folder; returns its path.

    Args:
        changes: in what these runs differ from the experiments, a sentence each.
    """
    path = plan.out / TABLE
    with atomic_open(path) as stream:
        stream.write(render_table(plan, outcomes, published_figures(plan.table), changes))
    return path


# --- the table -----------------------------------------------------------------------------------------------------


def render_table(plan: Plan, outcomes: Sequence[Outcome], figures: Figures, changes: Sequence[str]) -> str:
    """The Markdown text: a line for every row of the table, also of those that were not run, failed or cannot be."""
    table, published = plan.table, plan.table.published
    titles = {name: results.METRIC_TITLES.get(name, name) for name in (*table.metrics, *table.other_metrics)}
    head = ["row", f"Mult-Adds, {published}", *(f"{titles[name]}, {published}" for name in table.metrics)]
    head += ["Mult-Adds, measured", *(f"{titles[name]}, measured" for name in titles), "seeds", "measured by"]
    rows: list[list[str]] = []
    for outcome in outcomes:
        claimed = figures[outcome.row.label]
        cells = [outcome.row.label, _millions(figure.macs for figure in claimed)]
        cells += [_claims(claimed, name) for name in table.metrics]
        cells.append(_millions(record.macs for record in outcome.records.values()))
        cells += [results.mean_and_spread(_scores(plan, outcome, name)) for name in titles]
        cells += [", ".join(str(record.seed) for record in outcome.records.values()), _state(plan, outcome)]
        rows.append(cells)
    lines = markdown_table(head, rows, f"l{'r' * (len(head) - 2)}l")
    parts = [f"# {table.title}{', smoke run' if plan.smoke else ''}"]
    if changes:
        parts.append(" ".join(changes))
    parts += ["\n".join(lines), *_notes(plan, figures), f"![scores against Mult-Adds]({PLOT})"]
    return "\n\n".join(parts) + "\n"


def _notes(plan: Plan, figures: Figures) -> list[str]:
    table, protocol = plan.table, plan.protocol
    lengths = "{} source and {} target tokens".format(*table.macs_lengths)
    lengths = f"{table.macs_lengths[1]} tokens" if table.is_of_language_models else lengths
    how = f"{plan.decoding}, {protocol}" if table.is_of_language_models else plan.decoding
    notes = [
        f"*measured*: mean over seeds (lowest to highest), test; {how}"
        f"{', compound split' if protocol.compound_split else ''}; Mult-Adds counted at {lengths}. Protocol: "
        f"{protocol.source}{f' ({protocol.remark})' if protocol.remark else ''}."
    ]
    claimed = [figure for label in figures for figure in figures[label]]
    if claimed:
        protocols = dict.fromkeys(figure.protocol for figure in claimed)
        sources: dict[str, list[str]] = {}
        for figure in claimed:
            sources.setdefault(figure.source, []).append(f"{figure.row} {figure.value:g}")
        told = "\n".join(f"- {source}: {'; '.join(rows)}" for source, rows in sources.items())
        notes.append(f"*{table.published}*: as published ({'; '.join(protocols)}), never measured here.\n\n{told}")
    if any(map(_is_unverified, claimed)):
        notes.append("† recalled-unverified: remembered, no copy of the published table could be read.")
    return notes


def _millions(counts: Iterable[int]) -> str:
    known = [count for count in counts if count]
    return f"{known[0] / 1e6:,.1f}".removesuffix(".0") + "M" if known else ""


def _claims(figures: Sequence[results.LiteratureFigure], metric: str) -> str:
    found = [figure for figure in figures if (figure.split, figure.metric) == ("test", metric)]
    return ", ".join(f"{figure.value:.2f}{' †' if _is_unverified(figure) else ''}" for figure in found)


def _is_unverified(figure: results.LiteratureFigure) -> bool:
    return "unverified" in figure.source


def _scores(plan: Plan, outcome: Outcome, metric: str) -> list[float]:
    wanted = ("test", metric, plan.decoding)
    return [
        item.value
        for record in outcome.records.values()
        for item in record.metrics
        if (item.split, item.metric, item.decoding) == wanted
    ]


def _state(plan: Plan, outcome: Outcome) -> str:
    if not outcome.row.config:
        return f"no experiment: {outcome.row.note}"
    states = [f"[{path.name}]({Path(os.path.relpath(path, plan.out)).as_posix()})" for path in outcome.records]
    states += [f"failed (seed {run.seed}): {reason}" for run, reason in outcome.failures.items()]
    return "; ".join(states) or "not run"


# --- the plot ------------------------------------------------------------------------------------------------------


def write_plot(plan: Plan, outcomes: Sequence[Outcome]) -> Path:
    """Writes the plot as SVG; returns its path.

    The last of the table's metrics against Mult-Adds, a line for each family of models; published ones are dashed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric, figures = plan.table.metrics[-1], published_figures(plan.table)
    measured: dict[str, list[tuple[float, float]]] = {}
    published: dict[str, list[tuple[float, float]]] = {}
    for outcome in outcomes:
        row: TableRow = outcome.row
        if values := _scores(plan, outcome, metric):
            macs = next(iter(outcome.records.values())).macs
            measured.setdefault(row.family, []).append((macs / 1e6, statistics.fmean(values)))
        for figure in figures[row.label]:
            if figure.metric == metric and figure.macs:
                published.setdefault(row.family, []).append((figure.macs / 1e6, figure.value))
    with matplotlib.rc_context({"svg.hashsalt": plan.table.name, "svg.fonttype": "none"}):
        figure_, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        for number, family in enumerate(dict.fromkeys(outcome.row.family for outcome in outcomes)):
            color = f"C{number}"
            if family in measured:
                x, y = zip(*sorted(measured[family]), strict=True)
                axes.plot(x, y, "-o", color=color, label=f"{family}, measured")
            if family in published:
                x, y = zip(*sorted(published[family]), strict=True)
                label = f"{family}, {plan.table.published}"
                axes.plot(x, y, "--s", color=color, markerfacecolor="none", label=label)
        axes.set(
            title=f"{plan.table.title}{', smoke run' if plan.smoke else ''}", xlabel="Mult-Adds in millions",
            ylabel=results.METRIC_TITLES.get(metric, metric), xscale="log",
        )  # fmt: skip
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize=8)
        path = plan.out / PLOT
        temporary = path.with_name(f".{path.name}.partial")
        figure_.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure_)
    temporary.replace(path)
    return path
