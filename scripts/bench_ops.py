#!/usr/bin/env python
"""How long the short-range convolutions take, forward and with all gradients, next to other ways of computing them.

  scripts/bench_ops.py                               the cases of the project's table, on the GPU
  scripts/bench_ops.py --sweep --record results/speed/ops_NAME.json --plot results/speed/ops_NAME.svg
  scripts/bench_ops.py --device cpu                  plain torch against fairseq's modules

On a GPU every figure is given twice: `graph` is the time on the card alone (calls captured in a CUDA graph, over
several sets of inputs that together do not fit in the cache), `eager` is what a loop in Python sees, where small
shapes wait for the CPU. Variants take turns, round by round; printed are medians. Before anything is timed each
variant's output and gradients are compared with fp64, and a variant that is wrong ends the program.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _benchmark import device_name, provenance, summary
from torch import Tensor
from tqdm import tqdm

from data_prep.io import write_json
from lite_transformer import ops

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# How far, relatively, from fp64 a variant may be.
TOLERANCE = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}
CHANNELS, HEADS = 248, 4


@dataclass(frozen=True)
class Case:
    dtype: str
    length: int
    batch: int
    kernel_size: int
    channels: int = CHANNELS
    heads: int = HEADS

    def __str__(self) -> str:
        return f"{self.dtype} T={self.length} B={self.batch} K={self.kernel_size} C={self.channels}"

    def tensors(self, kind: str, device: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """x, weight and the gradient of the output, drawn anew; x and weight want gradients."""
        shape = (self.length, self.batch)
        x, grad = torch.randn(2, *shape, self.channels, device=device).unbind(0)
        weight = torch.randn(*(shape if kind == "dynamic" else ()), self.heads, self.kernel_size, device=device)
        weight = weight.softmax(-1)
        dtype = dtype or DTYPES[self.dtype]
        return [x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), grad.to(dtype)]

    def floor_us(self, kind: str, terabytes_per_second: float) -> tuple[float, float]:
        """Time to move the bytes that have to be moved once: forward; forward and backward."""
        element = DTYPES[self.dtype].itemsize
        x = self.length * self.batch * self.channels * element
        weight = self.heads * self.kernel_size * element * (self.length * self.batch if kind == "dynamic" else 1)
        # x -> out; then the gradient of out, x -> gradient of x; weight twice read, once its gradient written
        return tuple(bytes_ / terabytes_per_second / 1e6 for bytes_ in (2 * x + weight, 5 * x + 3 * weight))


TABLE = [
    Case("fp32", 512, 32, 31),
    Case("fp16", 512, 32, 31),
    Case("fp16", 1024, 16, 31),
    Case("fp16", 512, 32, 3),
    Case("fp16", 128, 32, 31),
]
SWEEP = [
    *(Case("fp16", length, 16384 // length, 31) for length in (32, 64, 128, 256, 2048)),
    *(Case("fp16", 512, 32, kernel_size) for kernel_size in (7, 15, 63, 127, 255)),
]
ON_CPU = [
    Case("fp32", length, 4096 // length, kernel_size, channels)
    for channels, kernel_size, length in itertools.product((248, 80), (3, 31), (32, 128, 512, 2048))
]


# --- ways of computing a causal convolution of x (T, B, C) with normalised kernels ---


def as_conv1d(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise convolution of torch on (B, C, T), layout changes included."""
    channels, kernel_size = x.size(2), weight.size(1)
    kernels = weight.repeat_interleave(channels // weight.size(0), dim=0).unsqueeze(1)
    padded = F.pad(x.permute(1, 2, 0), (kernel_size - 1, 0))
    return F.conv1d(padded, kernels, groups=channels).permute(2, 0, 1).contiguous()


def as_band_matrix(x: Tensor, weight: Tensor) -> Tensor:
    """One T x T matrix for each sentence and head."""
    length, batch, heads, kernel_size = weight.shape
    n = batch * heads
    matrices = weight.new_zeros(n, length, length + kernel_size - 1)
    step = length + kernel_size
    band = matrices.as_strided((n, length, kernel_size), (length * (step - 1), step, 1))
    band.copy_(weight.reshape(length, n, kernel_size).transpose(0, 1))
    inputs = x.reshape(length, n, x.size(2) // heads).transpose(0, 1)
    return torch.bmm(matrices[:, :, kernel_size - 1 :], inputs).transpose(0, 1).reshape(x.shape)


def of_ops(kind: str, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    convolve = ops.dynamic_conv if kind == "dynamic" else ops.lightweight_conv
    return lambda x, weight: convolve(x, weight, weight.size(-1) - 1, **options)


def of_fairseq(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """fairseq's own module, its kernels replaced by the tensor at hand."""
    from fairseq.modules.dynamic_convolution import DynamicConv1dTBC
    from fairseq.modules.lightweight_convolution import LightweightConv1dTBC

    module: Any = None

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        nonlocal module
        heads, kernel_size = weight.shape[-2:]
        if module is None and kind == "dynamic":
            module = DynamicConv1dTBC(x.size(2), kernel_size, kernel_size - 1, heads)
            module.weight_linear = _Given()
        elif module is None:
            module = LightweightConv1dTBC(x.size(2), kernel_size, kernel_size - 1, heads)
            del module.weight
        if kind == "dynamic":
            module.weight_linear.given = weight
        else:
            module.weight = weight.unsqueeze(1)
        return module(x)

    return compute


class _Given(torch.nn.Module):
    """Stands for the projection that predicts kernels: returns those it was given."""

    given: Tensor
    out_features = 0  # that is, without a projection of the input beside the kernels

    def forward(self, _: Tensor) -> Tensor:
        return self.given


def variants_of(kind: str, device: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    if device == "cpu":
        return {"ours": of_ops(kind, backend="reference"), "fairseq": of_fairseq(kind)}
    other = {"band matrix": as_band_matrix} if kind == "dynamic" else {"conv1d": as_conv1d}
    return {
        "fused": of_ops(kind, backend="triton"),
        "fused with softmax": of_ops(kind, backend="triton", weight_softmax=True),
        "plain torch": of_ops(kind, backend="reference"),
        **other,
    }


# --- measuring ---


def check(kind: str, device: str, case: Case) -> None:
    """Ends the program if a variant's output or a gradient is not that of the definition in fp64."""
    small = Case(case.dtype, min(case.length, 70), 2, case.kernel_size, case.channels, case.heads)
    x, weight, grad = small.tensors(kind, device)
    for name, compute in variants_of(kind, device).items():
        exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
        out = of_ops(kind, backend="reference", weight_softmax=name.endswith("softmax"))(*exact)
        right = [out, *torch.autograd.grad(out, exact, grad.double())]
        out = compute(x, weight)
        for part, mine, expected in zip(
            ("output", "gradient of x", "gradient of weight"),
            [out, *torch.autograd.grad(out, (x, weight), grad)],
            right,
            strict=True,
        ):
            error = ((mine.double() - expected).norm() / expected.norm()).item()
            if not error <= TOLERANCE[case.dtype]:
                raise SystemExit(f"{kind}, {small}: {part} of '{name}' is off by {error:.1e}: nothing is measured")


def passes(compute: Callable[[Tensor, Tensor], Tensor], sets: list[list[Tensor]]) -> list[Callable[[], None]]:
    """One call over every set of inputs: forward; forward and backward."""

    def forward() -> None:
        with torch.no_grad():
            for x, weight, _ in sets:
                compute(x, weight)

    def both() -> None:
        for x, weight, grad in sets:
            torch.autograd.grad(compute(x, weight), (x, weight), grad)

    return [forward, both]


def on_card(call: Callable[[], None], repeats: int) -> float:
    """Microseconds of one call, by events around ``repeats`` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3 / repeats


def captured(call: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def on_processor(call: Callable[[], None]) -> float:
    """Microseconds of one call; short ones are repeated."""
    repeats, elapsed = 1, 0.0
    while elapsed < 0.03:
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        elapsed = time.perf_counter() - started
        if elapsed < 0.03:
            repeats *= 4
    return elapsed * 1e6 / repeats


def bench(kind: str, case: Case, device: str, rounds: int, bar: tqdm) -> dict[str, Any]:
    """us of each variant, {variant: {forward|both: {graph|eager: figures}}}, in interleaved rounds."""
    check(kind, device, case)
    # inputs, outputs and gradients of all sets together are larger than an H100's cache of 50 MB
    size = case.length * case.batch * case.channels * DTYPES[case.dtype].itemsize
    sets = [case.tensors(kind, device) for _ in range(1 if device == "cpu" else max(2, -(-60_000_000 // (3 * size))))]
    timed: dict[tuple[str, str, str], Callable[[], float]] = {}
    for name, compute in variants_of(kind, device).items():
        for part, call in zip(("forward", "both"), passes(compute, sets), strict=True):
            if device == "cpu":
                call()
                timed[name, part, "eager"] = lambda call=call: on_processor(call) / len(sets)
            else:
                replay = captured(call)
                timed[name, part, "graph"] = lambda replay=replay: on_card(replay, 20) / len(sets)
                timed[name, part, "eager"] = lambda call=call: on_card(call, 5) / len(sets)
    samples: dict[tuple[str, str, str], list[float]] = {key: [] for key in timed}
    for number in range(rounds + 1):
        for key, measure in timed.items():
            value = measure()
            if number:  # the first round warms up
                samples[key].append(value)
        bar.update()
    result: dict[str, Any] = {}
    for (name, part, how), values in samples.items():
        result.setdefault(name, {}).setdefault(part, {})[how] = summary(values)
    return result


def copy_bandwidth() -> float:
    """Terabytes a second of a large copy on the card, bytes read and written."""
    source = torch.randn(1 << 28, device="cuda", dtype=torch.float16)
    target = torch.empty_like(source)
    target.copy_(source)
    return max(2 * source.nbytes / on_card(lambda: target.copy_(source), 10) / 1e6 for _ in range(5))


# --- output ---


def print_table(results: list[dict[str, Any]], how: str) -> None:
    for result in results:
        case = Case(**result["case"])
        floor = f", floor {result['floor_us'][0]:.1f} / {result['floor_us'][1]:.1f}" if result["floor_us"] else ""
        print(f"{result['kind']}, {case}: us forward / forward and backward{floor}")
        for name, parts in result["variants"].items():
            cells = " ".join(
                f"{parts[part][how]['median']:8.1f} ({parts[part][how]['min']:.1f}-{parts[part][how]['max']:.1f})"
                for part in ("forward", "both")
            )
            print(f"  {how} {name:20} {cells}")


def plot(path: Path, results: list[dict[str, Any]], device: str) -> None:
    """Time of forward and backward against T (K = 31) and against K (T = 512), a line for each variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    how = "eager" if device == "cpu" else "graph"
    dtype = "fp32" if device == "cpu" else "fp16"
    cases = [(Case(**result["case"]), result) for result in results if result["case"]["channels"] == CHANNELS]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 7), layout="constrained", sharey="row")
    for row, kind in zip(axes, ("lightweight", "dynamic"), strict=True):
        for axis, field, label, keep in (
            (row[0], "length", "T", lambda case: case.kernel_size == 31),
            (row[1], "kernel_size", "K", lambda case: case.length == 512),
        ):
            chosen = [(c, r) for c, r in cases if r["kind"] == kind and c.dtype == dtype and keep(c)]
            chosen.sort(key=lambda pair: getattr(pair[0], field))
            places = [getattr(case, field) for case, _ in chosen]
            for name in chosen[0][1]["variants"] if chosen else []:
                values = [result["variants"][name]["both"][how]["median"] for _, result in chosen]
                axis.plot(places, values, marker="o", label=name)
            if chosen and chosen[0][1]["floor_us"]:
                axis.plot(places, [result["floor_us"][1] for _, result in chosen], "k:", label="bytes / bandwidth")
            axis.set(
                xscale="log", yscale="log", xlabel=label, title=f"{kind}, {'K=31' if field == 'length' else 'T=512'}"
            )
            axis.set_xticks(places, labels=[str(place) for place in places])
            axis.minorticks_off()
        row[0].set_ylabel("us, forward and backward")
        row[0].legend(fontsize=8)
    figure.suptitle(f"{device_name(device)}, {dtype}, {CHANNELS} channels, {HEADS} heads", fontsize=10)
    figure.savefig(path)
    pyplot.close(figure)


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")
    parser.add_argument("--sweep", action="store_true", help="more lengths and kernel sizes, for the plot")
    parser.add_argument("--case", action="append", metavar="DTYPE,T,B,K[,C]", help="cases of your own instead")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="measured rounds (default 7)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write all samples as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="time against T and K")
    parser.add_argument("--commit", metavar="HASH", help="of the code, where there is no git checkout")
    args = parser.parse_args(words)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is visible here; --device cpu compares plain torch with fairseq")
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1 is needed")
    args.cases = ON_CPU if args.device == "cpu" else [*TABLE, *(SWEEP if args.sweep else [])]
    if args.case:
        args.cases = [_case(text, parser) for text in args.case]
    return args


def _case(text: str, parser: argparse.ArgumentParser) -> Case:
    dtype, *numbers = text.split(",")
    if dtype not in DTYPES or len(numbers) not in (3, 4) or not all(number.isdigit() for number in numbers):
        parser.error(
            f"--case {text}: write DTYPE,T,B,K[,C] with DTYPE one of {', '.join(DTYPES)}, such as fp16,512,32,31"
        )
    return Case(dtype, *map(int, numbers))


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else list(words)
    args = parse_args(words)
    logging.basicConfig(level=logging.WARNING)
    bandwidth = copy_bandwidth() if args.device == "cuda" else None
    results = []
    with tqdm(total=2 * len(args.cases) * (args.rounds + 1), unit="round", disable=None) as bar:
        for case, kind in itertools.product(args.cases, ("lightweight", "dynamic")):
            bar.set_description(f"{kind}, {case}")
            results.append({
                "kind": kind,
                "case": asdict(case),
                "floor_us": list(case.floor_us(kind, bandwidth)) if bandwidth else None,
                "variants": bench(kind, case, args.device, args.rounds, bar),
            })  # fmt: skip
    for how in ("eager",) if args.device == "cpu" else ("eager", "graph"):
        print_table(results, how)
    for path in (args.record, args.plot):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if args.record is not None:
        source = provenance("bench_ops.py", words, args.device, args.commit)
        write_json(args.record, {**source, "copy_terabytes_per_second": bandwidth, "results": results})
    if args.plot is not None:
        plot(args.plot, results, args.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
