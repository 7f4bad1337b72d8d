#!/usr/bin/env python
"""How fast fairseq trains (or searches with) our models: updates and tokens a second, share of the card's arithmetic.

  scripts/bench_training.py --arch lite_transformer_iwslt_de_en --max-tokens 4096
  scripts/bench_training.py --arch A,B,C --precision amp --record results/speed/NAME.json --plot results/speed/NAME.svg
  scripts/bench_training.py --arch lite_transformer_iwslt_de_en --profile profile.json
  scripts/bench_training.py --arch lite_transformer_wmt_en_de,transformer_wmt_en_de_527m --generate

Every training step is one of fairseq's own Trainer. Variants take turns in one process, round by round, on the same
batches:

  plain   fairseq's encoder and decoder pass, its Adam, plain torch convolutions, no CUDA graphs
  eager   ours without CUDA graphs
  ours    what `fairseq-train --user-dir lite_transformer --optimizer fused_adam` does

Every batch shape comes back in each round, and rounds before the first measured one capture them, so the figures are
those of a long run. Batches come from --data, or are drawn with the lengths of a usual corpus.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from _benchmark import device_name, provenance, summary
from fairseq import options, utils
from fairseq.data import Dictionary, LanguagePairDataset, data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer
from tqdm import tqdm

import lite_transformer.models  # noqa: F401  (registers our models)
from data_prep.io import write_json
from lite_transformer.macs.closed_form import closed_form
from lite_transformer.models.architectures import find_architecture
from lite_transformer.models.lite_transformer import resolved_config
from lite_transformer.modules import MultiheadAttention

VARIANTS = ("plain", "eager", "ours")
PRECISIONS = {"fp32": [], "fp16": ["--fp16"], "bf16": ["--bf16"], "amp": ["--amp"]}
# How far losses of one batch may be apart, relatively.
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "amp": 5e-3}
# Dense peak of an H100 SXM in TFLOP/s; tf32 is what fp32 training may use, not what it uses unless asked to.
H100_PEAKS = {"fp32": 67.0, "fp16": 989.0, "bf16": 989.0, "amp": 989.0}


def parse_args(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--arch", required=True, metavar="NAME[,NAME...]", help="architectures, one after the other")
    add("--variants", default=",".join(VARIANTS), metavar="NAME[,NAME...]", help=f"of {', '.join(VARIANTS)}")
    add("--max-tokens", type=int, default=4096, metavar="N", help="tokens in a batch, padding included (default 4096)")
    add("--update-freq", type=int, default=1, metavar="N", help="batches an update (default 1)")
    add("--precision", choices=sorted(PRECISIONS), default="fp32")
    add("--cuda-graphs", choices=("auto", "off"), default="auto", help="of the variant 'ours'")
    add("--conv-backend", choices=("auto", "triton", "reference"), default="auto", help="of 'eager' and 'ours'")
    add("--optimizer", choices=("fused_adam", "adam"), default="fused_adam", help="of 'eager' and 'ours'")
    add("--clip-norm", type=float, default=0.0, metavar="X")
    add("--model", action="append", default=[], metavar="NAME=VALUE", help="an option of the model, such as dropout=0")
    add("--data", type=Path, metavar="BIN", help="binarized data; drawn sentences unless given")
    add("--vocabulary", type=int, metavar="N", help="types of each drawn dictionary (default: the architecture's)")
    add("--batches", type=int, default=64, metavar="N", help="batches, the same in every round (default 64)")
    add("--rounds", type=int, default=5, metavar="N", help="measured rounds (default 5)")
    add("--warm-up-rounds", type=int, default=3, metavar="N", help="rounds before them (default 3)")
    add("--generate", action="store_true", help="measure greedy and beam-5 search instead of training")
    add("--generate-length", type=int, default=30, metavar="N", help="tokens of each translation (default 30)")
    add("--sentences", type=int, default=128, metavar="N", help="sentences in a batch of the search (default 128)")
    add("--peak-tflops", type=float, metavar="X", help="of the card (default: known for an H100)")
    add("--seed", type=int, default=1)
    add("--cpu", action="store_true")
    add("--commit", metavar="HASH", help="of the code, where there is no git checkout")
    add("--record", type=Path, metavar="FILE", help="write all samples as JSON, such as results/speed/NAME.json")
    add("--plot", type=Path, metavar="FILE.svg", help="updates a second against model size")
    add("--profile", type=Path, metavar="FILE", help="profile some steps of each variant into a JSON summary")
    args = parser.parse_args(words)
    args.arch = [name for name in args.arch.split(",") if name]
    args.variants = [name for name in args.variants.split(",") if name]
    for name in args.variants:
        if name not in VARIANTS:
            parser.error(f"--variants: '{name}' is none of {', '.join(VARIANTS)}")
    for name in ("batches", "rounds", "max_tokens", "update_freq", "sentences", "generate_length"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed")
    args.cpu = args.cpu or not torch.cuda.is_available()
    args.device = "cpu" if args.cpu else "cuda"
    return args


# --- data ---


def drawn_lengths(count: int, generator: random.Random) -> list[tuple[int, int]]:
    """(source, target) lengths of ``count`` sentence pairs: log-normal, about 25 tokens on average, at most 175."""
    pairs = []
    for _ in range(count):
        source = min(175, max(2, round(generator.lognormvariate(3.0, 0.62))))
        pairs.append((source, min(175, max(2, round(source * generator.gauss(1.0, 0.18) + generator.gauss(0, 2))))))
    return pairs


def drawn_dataset(arch: str, args: argparse.Namespace) -> LanguagePairDataset:
    """Sentence pairs of random words, enough for the batches."""
    data = find_architecture(arch).data
    sizes = [args.vocabulary or size for size in (data.source_vocab, data.target_vocab)]
    dictionaries = []
    for size in sizes:
        dictionary = Dictionary()
        for number in range(size - len(dictionary)):
            dictionary.add_symbol(f"w{number}")
        dictionaries.append(dictionary)
    generator = random.Random(args.seed)
    count = max(args.sentences, 3 * args.batches * args.update_freq * args.max_tokens // 25)
    pairs = drawn_lengths(count, generator)
    numbers = torch.Generator().manual_seed(args.seed)

    def sentences(side: int) -> list[torch.Tensor]:
        dictionary = dictionaries[side]
        lengths = [min(pair[side], args.max_tokens) for pair in pairs]
        words = torch.randint(dictionary.nspecial, len(dictionary), (sum(lengths),), generator=numbers)
        made = list(words.split(lengths))
        for sentence in made:
            sentence[-1] = dictionary.eos()
        return made

    source, target = sentences(0), sentences(1)
    return LanguagePairDataset(
        source, [len(s) for s in source], dictionaries[0], target, [len(s) for s in target], dictionaries[1],
        left_pad_source=True, left_pad_target=False,
    )  # fmt: skip


def read_dataset(data: Path) -> LanguagePairDataset:
    """The training set of a binarized folder."""
    source, target = data_utils.infer_language_pair(str(data))
    parser = options.get_training_parser()
    words = [str(data), "--arch", "transformer_multi30k", "--source-lang", source, "--target-lang", target]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, words))
    task = TranslationTask.setup_task(cfg.task)
    task.load_dataset("train")
    return task.datasets["train"]


def draw_batches(dataset: LanguagePairDataset, args: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """Updates of ``update_freq`` batches each, as fairseq would form them, a random part of an epoch."""
    groups = dataset.batch_by_size(
        dataset.ordered_indices(), max_tokens=args.max_tokens, required_batch_size_multiple=8
    )
    chosen = random.Random(args.seed).sample(list(groups), min(len(groups), args.batches * args.update_freq))
    batches = [dataset.collater([dataset[i] for i in group]) for group in chosen]
    if not args.cpu:
        batches = [utils.apply_to_sample(lambda tensor: tensor.pin_memory(), batch) for batch in batches]
    step = args.update_freq
    return [batches[i : i + step] for i in range(0, len(batches) - step + 1, step)]


# --- models ---


def use_fairseqs_pass(model: Any) -> None:
    """Gives a model the encoder and decoder pass of fairseq, which asks the device about padding."""
    encoder, decoder = model.encoder, model.decoder
    encoder.forward_embedding = MethodType(TransformerEncoderBase.forward_embedding, encoder)
    encoder.forward = MethodType(TransformerEncoderBase.forward_scriptable, encoder)
    decoder.extract_features = MethodType(TransformerDecoderBase.extract_features_scriptable, decoder)
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.fuse_projections = False


def make_trainer(arch: str, variant: str, dataset: LanguagePairDataset, args: argparse.Namespace) -> Trainer:
    """fairseq's Trainer for one variant of an architecture."""
    plain = variant == "plain"
    graphs = args.cuda_graphs if variant == "ours" else "off"
    words = [
        tempfile.gettempdir(), "--arch", arch, "--task", "translation", "--source-lang", "a", "--target-lang", "b",
        "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1",
        "--optimizer", "adam" if plain else args.optimizer, "--adam-betas", "(0.9, 0.98)", "--weight-decay", "0.0001",
        "--clip-norm", str(args.clip_norm), "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "4000",
        "--lr", "0.0005", "--max-tokens", str(args.max_tokens), "--update-freq", str(args.update_freq),
        "--seed", str(args.seed), "--cuda-graphs", graphs, *PRECISIONS[args.precision],
        *(["--cpu"] if args.cpu else []),
    ]  # fmt: skip
    if find_architecture(arch).model == "lite_transformer":
        words += ["--conv-backend", "reference" if plain else args.conv_backend]
    for setting in args.model:
        name, _, value = setting.partition("=")
        words += [f"--{name.replace('_', '-')}", *([value] if value else [])]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    cfg.common.tpu = False  # fairseq's flags take bf16 for a sign of one
    task = TranslationTask(cfg.task, dataset.src_dict, dataset.tgt_dict)
    torch.manual_seed(args.seed)
    model = task.build_model(cfg.model)
    if plain:
        use_fairseqs_pass(model)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    trainer.begin_epoch(1)
    return trainer


def flops_of(arch: str, updates: list[list[dict[str, Any]]], dataset: LanguagePairDataset, args: Any) -> list[float]:
    """Floating-point operations that the model needs for each update: real tokens only, no recomputation.

    Two for each multiply-add of the forward pass, the projection to the vocabulary included, and twice that backward.
    """
    overrides = dict(setting.partition("=")[::2] for setting in args.model)
    config = resolved_config(arch, **{name: _number(value) for name, value in overrides.items()})
    known: dict[tuple[int, int], int] = {}
    totals = []
    for update in updates:
        macs = 0
        for batch in update:
            source = batch["net_input"]["src_lengths"].tolist()
            target = batch["target"].ne(dataset.tgt_dict.pad()).sum(dim=1).tolist()
            for pair in zip(source, target, strict=True):
                if pair not in known:
                    report = closed_form(config, *pair, len(dataset.src_dict), len(dataset.tgt_dict))
                    extra = {part.name: part.macs for part in report.not_counted}
                    known[pair] = report.macs + extra.get("output projection", 0)
                macs += known[pair]
        totals.append(6.0 * macs)
    return totals


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text or True


# --- measuring ---


def synchronize(args: argparse.Namespace) -> None:
    if not args.cpu:
        torch.cuda.synchronize()


def check_parity(arch: str, trainers: dict[str, Trainer], batch: dict[str, Any], args: argparse.Namespace) -> None:
    """Ends the program if the variants, untrained yet, do not give one loss: then their speed means nothing."""
    losses = {}
    for variant, trainer in trainers.items():
        with metrics.aggregate(new_root=True):
            losses[variant] = float(trainer.valid_step(batch)["loss"])
    first = next(iter(losses.values()))
    if any(abs(loss - first) > TOLERANCE[args.precision] * abs(first) for loss in losses.values()):
        raise SystemExit(f"{arch}: the variants disagree on the loss of the same batch, {losses}: nothing is measured")


def train_round(trainer: Trainer, updates: list[list[dict[str, Any]]], args: argparse.Namespace, bar: tqdm) -> float:
    """Seconds for one pass over all updates, with the logging that fairseq-train does at each."""
    synchronize(args)
    started = time.perf_counter()
    for update in updates:
        with metrics.aggregate("train_inner"):
            trainer.train_step(update)
        bar.update()
    synchronize(args)
    seconds = time.perf_counter() - started
    metrics.reset_meters("train_inner")
    return seconds


def bench_training(arch: str, args: argparse.Namespace, dataset: LanguagePairDataset) -> dict[str, Any]:
    """Figures of every variant of one architecture."""
    updates = draw_batches(dataset, args)
    trainers = {variant: make_trainer(arch, variant, dataset, args) for variant in args.variants}
    check_parity(arch, trainers, updates[0][0], args)
    rounds = args.warm_up_rounds + args.rounds
    seconds: dict[str, list[float]] = {variant: [] for variant in trainers}
    with tqdm(total=rounds * len(updates) * len(trainers), desc=arch, unit="update", disable=None) as bar:
        for number in range(rounds):
            for variant, trainer in trainers.items():
                elapsed = train_round(trainer, updates, args, bar)
                if number >= args.warm_up_rounds:
                    seconds[variant].append(elapsed)
    tokens = sum(batch["ntokens"] for update in updates for batch in update)
    flops = sum(flops_of(arch, updates, dataset, args))
    peak = peak_tflops(args)
    row = find_architecture(arch)
    result: dict[str, Any] = {
        "arch": arch,
        "macs": row.macs,
        "core_params": row.core_params,
        "updates_per_round": len(updates),
        "target_tokens_per_update": tokens / len(updates),
        "model_tflop_per_update": flops / len(updates) / 1e12,
        "variants": {},
    }
    for variant, times in seconds.items():
        tflops = [flops / t / 1e12 for t in times]
        result["variants"][variant] = {
            "updates_per_second": summary([len(updates) / t for t in times]),
            "target_tokens_per_second": summary([tokens / t for t in times]),
            "model_tflops": summary(tflops),
            "model_flops_utilisation": summary([value / peak for value in tflops]) if peak else None,
            "captured_batch_shapes": len(trainers[variant].get_model().graphs._passes),
        }
    print_table(result)
    if args.profile is not None:
        result["profile"] = {variant: profile(trainer, updates, args) for variant, trainer in trainers.items()}
    return result


def profile(trainer: Trainer, updates: list[list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    """Where the time of a step goes: launches, how busy the GPU is, and the operators that take longest."""
    from torch.profiler import ProfilerActivity

    steps = min(3, len(updates))  # of a few thousand launches each
    activities = [ProfilerActivity.CPU] + ([] if args.cpu else [ProfilerActivity.CUDA])
    synchronize(args)
    with torch.profiler.profile(activities=activities) as run:
        started = time.perf_counter()
        with tqdm(disable=True) as bar:
            train_round(trainer, updates[:steps], args, bar)
        wall_us = (time.perf_counter() - started) * 1e6
    # named ranges of the trainer are no work of their own, but have a place on the GPU's track too
    table = [row for row in run.key_averages() if not getattr(row, "is_user_annotation", False)]
    on_gpu = [
        event
        for event in run.events()
        if event.device_type != torch.autograd.DeviceType.CPU and not getattr(event, "is_user_annotation", False)
    ]

    def count(*names: str) -> float:
        return sum(row.count for row in table if row.key.startswith(names)) / steps

    def top(field: str) -> list[dict[str, Any]]:
        rows = sorted(table, key=lambda row: getattr(row, field), reverse=True)[:15]
        return [
            {"name": row.key[:120], "calls_per_step": row.count / steps, "us_per_step": getattr(row, field) / steps}
            for row in rows
            if getattr(row, field) > 0
        ]

    return {
        "steps": steps,
        "wall_us_per_step": wall_us / steps,
        "kernel_launches_per_step": count("cudaLaunchKernel", "cuLaunchKernel"),
        "graph_launches_per_step": count("cudaGraphLaunch"),
        "synchronizations_per_step": count("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
        "gpu_kernels_per_step": len(on_gpu) / steps,
        "gpu_busy_fraction": _covered(on_gpu) / wall_us,
        "top_cpu": top("self_cpu_time_total"),
        "top_gpu": [] if args.cpu else top("self_device_time_total"),
    }


def _covered(events: list[Any]) -> float:
    """Microseconds in which at least one of the events runs."""
    total, end = 0.0, -math.inf
    for event in sorted(events, key=lambda event: event.time_range.start):
        start = max(event.time_range.start, end)
        if event.time_range.end > start:
            total += event.time_range.end - start
            end = event.time_range.end
    return total


def bench_generation(arch: str, args: argparse.Namespace, dataset: LanguagePairDataset) -> dict[str, Any]:
    """Sentences a second of an untrained model, which may not end a translation early."""
    trainer = make_trainer(arch, "ours", dataset, args)
    model = trainer.get_model().eval()
    model.prepare_for_inference_(trainer.cfg)
    dtype = {"fp16": torch.half, "bf16": torch.bfloat16}.get(args.precision, torch.float32)
    model = model.to(dtype)
    batch = dataset.collater([dataset[i] for i in range(min(args.sentences, len(dataset)))])
    if not args.cpu:
        batch = utils.move_to_cuda(batch)
    count = batch["nsentences"]
    row = find_architecture(arch)
    result: dict[str, Any] = {"arch": arch, "macs": row.macs, "core_params": row.core_params, "variants": {}}
    length = args.generate_length
    for name, beam in (("greedy", 1), ("beam 5", 5)):
        search = argparse.Namespace(
            beam=beam, max_len_a=0, max_len_b=length, min_len=length, lenpen=1, unkpen=0, temperature=1.0,
            match_source_len=False, no_repeat_ngram_size=0, sampling=False, diverse_beam_groups=-1,
        )  # fmt: skip
        generator = trainer.task.build_generator([model], search)
        rates = []
        for number in tqdm(range(args.warm_up_rounds + args.rounds), desc=f"{arch} {name}", disable=None):
            synchronize(args)
            started = time.perf_counter()
            with torch.no_grad():
                generator.generate([model], batch)
            synchronize(args)
            if number >= args.warm_up_rounds:
                rates.append(count / (time.perf_counter() - started))
        result["variants"][name] = {"sentences_per_second": summary(rates)}
    print_table(result)
    return result


# --- the record ---


def peak_tflops(args: argparse.Namespace) -> float | None:
    if args.peak_tflops is not None:
        return args.peak_tflops
    return H100_PEAKS[args.precision] if "H100" in device_name(args.device) and not args.cpu else None


def record_of(results: list[dict[str, Any]], args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    return {
        "benchmark": "generation" if args.generate else "training",
        **provenance("bench_training.py", words, args.device, args.commit),
        "peak_tflops": peak_tflops(args),
        "settings": {key: value for key, value in settings.items() if key not in ("record", "plot", "profile")},
        "results": results,
    }


def print_table(result: dict[str, Any]) -> None:
    print(f"{result['arch']}: {result['macs'] / 1e6:.0f}M Mult-Adds, {result['core_params'] / 1e6:.1f}M parameters")
    for variant, figures in result["variants"].items():
        cells = []
        for name, value in figures.items():
            if isinstance(value, dict):
                digits = ".1%" if "utilisation" in name else ",.1f"
                cells.append(
                    f"{name} {format(value['median'], digits)} "
                    f"({format(value['min'], digits)}-{format(value['max'], digits)})"
                )
            elif value is not None:
                cells.append(f"{name} {value}")
        print(f"  {variant:7} {', '.join(cells)}")


def plot(path: Path, results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Speed against Mult-Adds, a line for each variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    key = "sentences_per_second" if args.generate else "updates_per_second"
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for variant in results[0]["variants"]:
        rows = sorted((r["macs"] / 1e6, r["variants"][variant][key]) for r in results)
        medians = [row["median"] for _, row in rows]
        errors = [
            [row["median"] - row["min"] for _, row in rows],
            [row["max"] - row["median"] for _, row in rows],
        ]
        axes.errorbar([macs for macs, _ in rows], medians, yerr=errors, marker="o", capsize=3, label=variant)
    axes.set(
        xscale="log", ylim=(0, None), xlabel="Mult-Adds of a sentence pair (millions)", ylabel=key.replace("_", " ")
    )
    axes.set_title(f"{device_name(args.device)}, {args.precision}, {args.max_tokens} tokens a batch", fontsize=9)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else list(words)
    args = parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lite_transformer").setLevel(logging.INFO)
    for path in (args.profile, args.record, args.plot):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    profiles = {}
    shared = read_dataset(args.data) if args.data is not None else None
    for arch in args.arch:
        dataset = shared or drawn_dataset(arch, args)
        results.append((bench_generation if args.generate else bench_training)(arch, args, dataset))
        profiles[arch] = results[-1].pop("profile", None)
        # after each architecture: a benchmark that is broken off keeps what it has
        if args.record is not None:
            write_json(args.record, record_of(results, args, words))
        if args.profile is not None:
            write_json(args.profile, profiles)
    if args.plot is not None:
        plot(args.plot, results, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
