"""Shows what a packed model file holds and what its bytes are spent on.

  lite-transformer inspect model.ltpack
  lite-transformer inspect model.ltpack --tensors
  lite-transformer inspect model.ltpack --json

Two accountings: the core alone, as in the paper, with header, metadata, index, masks and codebooks; and everything that
a user ships, the size of the file. Ratios are to fp32 parameters; the core's is also given to Transformer base's core
(176.55 MB). 1 MB is 10^6 bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a file that compress wrote")
    parser.add_argument("--tensors", action="store_true", help="list every tensor with its form")
    parser.add_argument("--json", action="store_true", help="print one JSON object, tensors included")


def run(args: argparse.Namespace) -> int:
    from lite_transformer.compression import sizes

    report = sizes.report(args.file)
    sys.stdout.write(json.dumps(report) + "\n" if args.json else render(report, args.tensors))
    return 0


def render(report: dict[str, Any], tensors: bool = False) -> str:
    """The report as lines for people."""
    recipe = report["recipe"] or {}
    lines = [f"{report['file']}: format {report['format_version']}, recipe {recipe.get('name', 'unknown')}"]
    lines += [f"  {recipe['description']}"] if recipe.get("description") else []
    head = ("", "parameters", "fp32 MB", "MB", "times smaller", "bits each", "zeros", "bits of codes")
    rows = [_row("core", report["core"]), _row("embeddings", report["embeddings"])]
    rows.append(("texts", "", "", _mb(report["texts_bytes"]), "", "", "", ""))
    rows.append(_row("everything", report["everything"]))
    lines += _aligned([head, *rows])
    if report["part"] == "everything":
        lines.append(
            f"core: {report['core']['times_smaller_than_transformer_base']} times below Transformer base's core"
        )
    else:
        lines.append(f"holds the {report['part']} alone, to be measured; it cannot translate")
    lines += ["", *_aligned([("section", "bytes"), *((k, f"{v:,}") for k, v in report["sections_bytes"].items())])]
    if tensors:
        lines += [
            "",
            *_aligned([("tensor", "shape", "form", "levels", "zeros", "streams"), *map(_line, report["tensors"])]),
        ]
    return "\n".join(lines) + "\n"


def _mb(count: int) -> str:
    return f"{count / 1e6:.3f}"


def _row(name: str, part: dict[str, Any]) -> tuple[str, ...]:
    def text(value: Any) -> str:
        return "" if value is None else str(value)

    zeros = part.get("sparsity")
    return (
        name,
        f"{part['parameters']:,}",
        _mb(part["fp32_bytes"]),
        _mb(part["bytes"]),
        text(part["ratio"]),
        text(part["bits_per_parameter"]),
        "" if zeros is None else f"{100 * zeros:.1f} %",
        ", ".join(map(str, part.get("code_bits", []))),
    )


def _line(item: dict[str, Any]) -> tuple[str, ...]:
    if item["form"] == "same":
        return item["name"], "x".join(map(str, item["shape"])), f"as {item['same_as']}", "", "", ""
    coding = ", ".join(f"{coding} {count:,}" for coding, count in item.get("streams", []))
    return (
        item["name"],
        "x".join(map(str, item["shape"])) or "scalar",
        item.get("dtype") or ("linear" if item.get("linear") else "codebook"),
        str(item.get("levels", "")),
        "" if not item["sparsity"] else f"{100 * item['sparsity']:.1f} % by {item.get('zeros', 'value')}",
        coding,
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns of text, the first to the left and figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
