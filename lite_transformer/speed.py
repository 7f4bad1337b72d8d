"""Tables of measured speed, rendered from the records that the benchmark scripts write into ``results/speed`` and, of
exported models, into ``results/edge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.io import read_json
from lite_transformer.errors import DataError
from lite_transformer.markdown import markdown_table

FOLDER = "speed"
EDGE = "edge"
_PUBLISHED = "published_cuda.json"


def render(folder: Path, name: str) -> str:
    """The table of ``results/speed/NAME.json`` or ``results/edge/NAME.json``; above it what was measured, where and by
    which command.

    Raises: DataError if there is no such record or it is of an unknown kind.
    """
    path = next(
        (folder / part / f"{name}.json" for part in (EDGE, FOLDER) if (folder / part / f"{name}.json").is_file()),
        folder / FOLDER / f"{name}.json",
    )
    if not path.is_file():
        files = [file for part in (FOLDER, EDGE) for file in (folder / part).glob("*.json")]
        known = sorted(file.stem for file in files if file.name != _PUBLISHED)
        raise DataError(f"no speed record {path}. Known: {', '.join(known) or 'none'}")
    record = read_json(path)
    try:
        kind = record.get("benchmark", "operations")
        tables = {
            "operations": _operations, "training": _training, "generation": _generation, "scaling": _scaling,
            "edge": lambda record, _: edge_tables(record),
        }  # fmt: skip
        if kind not in tables:
            raise DataError(f"{path}: unknown benchmark '{kind}'; known: {', '.join(tables)}")
        lines = tables[kind](record, folder)
        commit = f"{record['commit'][:7]}{' and changes' if record['dirty'] else ''}"
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        above = f"`{record['command']}`, commit {commit}, {record['device']}, {versions}:"
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a record of a benchmark script ({type(error).__name__}: {error})") from error
    return "\n".join([above, "", *lines]) + "\n"


def _operations(record: dict[str, Any], folder: Path) -> list[str]:
    """us forward / forward and backward of every variant, the published extension and the floor beside them."""
    on_card = record.get("copy_terabytes_per_second") is not None
    published: dict[tuple, str] = {}
    if on_card and (folder / FOLDER / _PUBLISHED).is_file():
        for figure in read_json(folder / FOLDER / _PUBLISHED)["figures"]:
            key = tuple(figure[name] for name in ("kind", "dtype", "length", "batch", "kernel_size"))
            published[key] = f"{figure['forward_us']} / {figure['both_us']}"
    names = list(dict.fromkeys(name for result in record["results"] for name in result["variants"]))
    head = ["convolution", "dtype", "T", "B", "K", *(["C"] if not on_card else []), *names]
    head += ["published CUDA extension", "bytes / bandwidth"] if on_card else []
    rows: list[list[str]] = []
    shown: set[tuple] = set()
    for result in record["results"]:
        case = result["case"]
        key = (result["kind"], case["dtype"], case["length"], case["batch"], case["kernel_size"])
        width = [] if on_card else [str(case["channels"])]
        if on_card and published and key not in published:
            continue  # in the plot
        if (*key, *width) in shown:
            continue  # measured twice, for the table and for the plot
        shown.add((*key, *width))
        cells = [*map(str, key), *width]
        cells += [_both(result["variants"].get(name), "graph" if on_card else "eager") for name in names]
        if on_card:
            cells += [published.get(key, ""), f"{result['floor_us'][0]:.1f} / {result['floor_us'][1]:.1f}"]
        rows.append(cells)
    return markdown_table(head, rows, f"ll{'r' * (len(head) - 2)}")


def _both(parts: dict[str, Any] | None, how: str) -> str:
    if parts is None:
        return ""
    return f"{parts['forward'][how]['median']:,.0f} / {parts['both'][how]['median']:,.0f}"


def _spread(figures: dict[str, Any] | None, digits: str) -> str:
    if figures is None:
        return ""
    middle, low, high = (format(figures[name], digits) for name in ("median", "min", "max"))
    return f"{middle} ({low} to {high})"


def _training(record: dict[str, Any], _: Path) -> list[str]:
    """Updates and tokens a second of every variant, the share of the card's arithmetic, and peak memory if measured.

    Language models have a column for the length of their blocks.
    """
    found = [(result, *pair) for result in record["results"] for pair in result["variants"].items()]
    of_blocks = any(result.get("tokens_per_sample") for result, _, _ in found)
    with_memory = any(figures.get("peak_memory_gigabytes") for _, _, figures in found)
    head = ["architecture", "variant", "Mult-Adds", *(["tokens a sample"] if of_blocks else []), "updates/s"]
    head += ["target tokens/s", "model TFLOP/s", "utilisation", *(["peak memory, GB"] if with_memory else [])]
    rows = []
    for result, variant, figures in found:
        cells = [result["arch"], variant, f"{result['macs'] / 1e6:.0f}M"]
        if of_blocks:
            cells.append(f"{result['tokens_per_sample']:,}" if result.get("tokens_per_sample") else "")
        cells += [
            _spread(figures["updates_per_second"], ".1f"),
            _spread(figures["target_tokens_per_second"], ",.0f"),
            format(figures["model_tflops"]["median"], ".1f"),
            _spread(figures["model_flops_utilisation"], ".1%"),
        ]
        if with_memory:
            memory = figures.get("peak_memory_gigabytes")
            cells.append(f"{memory['reserved']:.2f}" if memory else "")
        rows.append(cells)
    return markdown_table(head, rows, f"ll{'r' * (len(head) - 2)}")


def _generation(record: dict[str, Any], _: Path) -> list[str]:
    """Sentences a second, greedy and with a beam."""
    names = list(record["results"][0]["variants"])
    rows = [
        [result["arch"], f"{result['macs'] / 1e6:.0f}M"]
        + [_spread(result["variants"][name]["sentences_per_second"], ".0f") for name in names]
        for result in record["results"]
    ]
    head = ["architecture", "Mult-Adds", *(f"sentences/s, {name}" for name in names)]
    return markdown_table(head, rows, f"l{'r' * (len(head) - 1)}")


def _scaling(record: dict[str, Any], _: Path) -> list[str]:
    """Tokens a second by number of GPUs or processes, at one global batch."""
    rows = [
        [
            str(result["count"]),
            _spread(result["tokens_per_second"], ",.0f"),
            f"{result['speed_up']:.2f}",
            f"{result['largest_loss_difference']:.3f}",
        ]
        for result in record["results"]
    ]
    head = ["GPUs or processes", "target tokens/s", "times the first", "largest difference of the loss"]
    return markdown_table(head, rows, "rrrr")


def edge_tables(record: dict[str, Any]) -> list[str]:
    """Translation on a CPU: tokens a second of every system by case, then sizes, times to start, share of bandwidth."""
    results = record["results"]
    cases = [dict(case) for case in dict.fromkeys(tuple(row["case"].items()) for r in results for row in r["cases"])]
    speeds = [[result["system"], *(_speed(result, case) for case in cases)] for result in results]
    lines = markdown_table(["tokens/s (times the first row)", *map(_case_title, cases)], speeds, f"l{'r' * len(cases)}")
    head = [
        "system",
        "disk MB",
        "resident MB",
        "at most",
        "load ms",
        "start to first token ms",
        "MB a step",
        "of bandwidth",
    ]
    rows = []
    for result in results:
        alone = [row for row in result["cases"] if row["case"]["beam"] == 1 and "bandwidth_fraction" in row]
        exact = [row for row in alone if not row["case"]["shortlist"]]
        rows.append([
            result["system"],
            *(_megabytes(result.get(name)) for name in ("disk_bytes", "resident_bytes", "peak_bytes")),
            f"{1000 * result['load_seconds']:.0f}",
            f"{1000 * result['start_to_first_token_seconds']:.0f}",
            _megabytes(exact[0]["step_bytes"]) if exact else "",
            f"{exact[0]['bandwidth_fraction']:.0%}" if exact else "",
        ])  # fmt: skip
    if any("sacrebleu" in result for result in results):
        head += ["sacreBLEU", "ms a sentence"]
        for row, result in zip(rows, results, strict=True):
            row += [f"{result['sacrebleu']:.2f}", _spread(result["ms_per_sentence"], ".1f")]
    lines += ["", *markdown_table(head, rows, f"l{'r' * (len(head) - 1)}"), ""]
    reads = ", ".join(
        f"{figures['median'] / 1e9:.1f} GB/s of {int(size) / 1e6:.1f} MB"
        for size, figures in record["bandwidth"].items()
    )
    lines.append(f"One thread reads {reads}.")
    lines += _threads(record, cases)
    lines += [f"Left out: {name} ({reason})." for name, reason in record["left_out"].items()]
    return lines


def _threads(record: dict[str, Any], cases: list[dict[str, Any]]) -> list[str]:
    """Several threads against one: of each system, and what the processors themselves give."""
    found = {
        (result["system"], *row["case"].values()): _against(row["threads"])
        for result in record["results"]
        for row in result["cases"]
        if "threads" in row
    }
    shown = [case for case in cases if any(key[1:] == tuple(case.values()) for key in found)]
    if not shown:
        return []
    rows = [
        [result["system"], *(found.get((result["system"], *case.values()), "") for case in shown)]
        for result in record["results"]
    ]
    head = ["times one thread (least to most; one thread against itself)", *map(_case_title, shown)]
    lines = ["", *markdown_table(head, rows, f"l{'r' * len(shown)}"), ""]
    for threads, given in record["machine_threads"].items():
        lines.append(
            f"The processors give {threads} threads {_against(given['products'])} times the int8 products of one, and "
            f"read {given['read_bytes'] / 1e6:.1f} MB {_against(given['reading'])} times as fast."
        )
    return lines


def _against(figures: dict[str, Any]) -> str:
    ratio, noise = figures["ratio"], figures["one_against_one"]
    return f"{_spread(ratio, '.2f')[:-1]}; {noise['min']:.2f} to {noise['max']:.2f})"


def _case_title(case: dict[str, Any]) -> str:
    shortlist = f", {case['shortlist']:,} words" if case["shortlist"] else ""
    threads = f"{case['threads']} thread{'' if case['threads'] == 1 else 's'}"
    return f"batch {case['batch']}, beam {case['beam']}, {threads}{shortlist}"


def _speed(result: dict[str, Any], case: dict[str, Any]) -> str:
    found = [row for row in result["cases"] if row["case"] == case]
    if not found:
        return ""
    return f"{found[0]['tokens_per_second']['median']:,.0f} ({found[0]['ratio']['median']:.2f})"


def _megabytes(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / 1e6:.1f}"
