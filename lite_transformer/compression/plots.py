"""Plots of compression."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_scan(result: Mapping[str, Any], path: Path) -> Path:
    """A PNG of how much the loss grows as each tensor is pruned alone, most sensitive on top; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(result["pruned_alone"].items(), key=lambda item: item[1][-1])
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.16 * len(rows)), layout="constrained")
    for number, wanted in enumerate(result["sparsities"]):
        grown = [max(found[number] - result["dense"], 1e-5) for _, found in rows]
        axes.plot(grown, range(len(rows)), "o", markersize=4, label=f"{100 * wanted:.0f} % left out")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=6)
    axes.set(
        xscale="log", xlabel=f"growth of the loss on {result['split']}, bits a token (dense {result['dense']:.3f})"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    temporary.replace(path)
    pyplot.close(figure)
    return path
