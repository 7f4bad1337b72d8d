#!/usr/bin/env python
"""How fast fairseq trains (or searches with) our models: updates and tokens a second, share of the card's arithmetic.

  scripts/bench_training.py --arch lite_transformer_iwslt_de_en --max-tokens 4096
  scripts/bench_training.py --arch A,B,C --precision amp --record results/speed/NAME.json --plot results/speed/NAME.svg
  scripts/bench_training.py --arch lite_transformer_iwslt_de_en --profile profile.json
  scripts/bench_training.py --arch lite_transformer_wmt_en_de,transformer_wmt_en_de_527m --generate
  scripts/bench_training.py --arch linux_docs_lite_large,linux_docs_transformer_large --vocabulary 28544 \
    --tokens-per-sample 1024,3072 --max-tokens 6144 --precision bf16

A system is an architecture, or the model of an experiment of configs/. Every training step is one of fairseq's own
Trainer. Variants take turns in one process, round by round, on the same batches:

  plain   fairseq's encoder and decoder pass, its loss and Adam, plain torch convolutions, no CUDA graphs
  eager   ours without CUDA graphs
  ours    what `fairseq-train --user-dir lite_transformer --optimizer fused_adam` does

Every batch shape comes back in each round, and rounds before the first measured one capture them, so the figures are
those of a long run. In those rounds each variant is alone on the card, which gives its peak memory: what the allocator
held of it, graphs included. Batches come from --data, or are drawn: sentence pairs with the lengths of a usual corpus;
for language models, blocks of --tokens-per-sample tokens of words as frequent as a language's.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import logging
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from _bench_data import Update, draw_updates, drawn_pairs, drawn_text, read_training_set
from _benchmark import device_name, provenance, summary
from fairseq import options, utils
from fairseq.data import LanguagePairDataset, MonolingualDataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase
from fairseq.modules import AdaptiveSoftmax
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from tqdm import tqdm

from data_prep.io import write_json
from lite_transformer import training
from lite_transformer.cli.macs import parse_settings
from lite_transformer.errors import ConfigError, LiteTransformerError
from lite_transformer.macs.closed_form import closed_form
from lite_transformer.models.adaptive import BandedSoftmax
from lite_transformer.models.architectures import ARCHITECTURES, Architecture, find_architecture
from lite_transformer.models.lite_transformer import resolved_config
from lite_transformer.modules import MultiheadAttention

Data = LanguagePairDataset | MonolingualDataset

VARIANTS = ("plain", "eager", "ours")
PRECISIONS = {"fp32": [], "fp16": ["--fp16"], "bf16": ["--bf16"], "amp": ["--amp"]}
# How far losses of one batch may be apart, relatively.
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "amp": 5e-3}
# Dense peak of an H100 SXM or an H200 in TFLOP/s; tf32 is what fp32 training may use, not what it uses unless asked to.
HOPPER_PEAKS = {"fp32": 67.0, "fp16": 989.0, "bf16": 989.0, "amp": 989.0}


def parse_args(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--arch", required=True, metavar="NAME[,NAME...]", help="architectures or experiments, one after the other")
    add("--variants", default=",".join(VARIANTS), metavar="NAME[,NAME...]", help=f"of {', '.join(VARIANTS)}")
    add("--max-tokens", type=int, default=4096, metavar="N", help="tokens in a batch, padding included (default 4096)")
    add("--tokens-per-sample", metavar="N[,N...]", help="of language models: lengths of a block (default 1024)")
    add("--update-freq", type=int, default=1, metavar="N", help="batches an update (default 1)")
    add("--precision", choices=sorted(PRECISIONS), default="fp32")
    add("--cuda-graphs", choices=("auto", "off"), default="auto", help="of the variant 'ours'")
    add("--conv-backend", choices=("auto", "triton", "reference"), default="auto", help="of 'eager' and 'ours'")
    add("--loss-backend", choices=("auto", "triton", "reference"), default="auto", help="of 'eager' and 'ours'")
    add("--optimizer", choices=("fused_adam", "adam"), default="fused_adam", help="of 'eager' and 'ours'")
    add("--clip-norm", type=float, default=0.0, metavar="X")
    add(
        "--model", action="append", default=[], metavar="NAME=VALUE", help="an option of every model, such as dropout=0"
    )
    add("--data", type=Path, metavar="BIN", help="binarized data; drawn sentences unless given")
    add("--vocabulary", type=int, metavar="N", help="types of each drawn dictionary (default: the architecture's)")
    add("--batches", type=int, default=64, metavar="N", help="batches, the same in every round (default 64)")
    add("--rounds", type=int, default=5, metavar="N", help="measured rounds (default 5)")
    add("--warm-up-rounds", type=int, default=3, metavar="N", help="rounds before them (default 3)")
    add("--generate", action="store_true", help="measure greedy and beam-5 search instead of training")
    add("--generate-length", type=int, default=30, metavar="N", help="tokens of each translation (default 30)")
    add("--sentences", type=int, default=128, metavar="N", help="sentences in a batch of the search (default 128)")
    add("--peak-tflops", type=float, metavar="X", help="of the card (default: known for H100 and H200)")
    add("--seed", type=int, default=1)
    add("--cpu", action="store_true")
    add("--commit", metavar="HASH", help="of the code, where there is no git checkout")
    add("--record", type=Path, metavar="FILE", help="write all samples as JSON, such as results/speed/NAME.json")
    add("--plot", type=Path, metavar="FILE.svg", help="speed against model size, a line for each kind and variant")
    add("--profile", type=Path, metavar="FILE", help="profile some steps of each variant into a JSON summary")
    args = parser.parse_args(words)
    args.arch = [name for name in args.arch.split(",") if name]
    args.variants = [name for name in args.variants.split(",") if name]
    for name in args.variants:
        if name not in VARIANTS:
            parser.error(f"--variants: '{name}' is none of {', '.join(VARIANTS)}")
    lengths = (args.tokens_per_sample or str(min(1024, args.max_tokens))).split(",")
    if not all(length.isdigit() and 2 <= int(length) <= args.max_tokens for length in lengths):
        parser.error(f"--tokens-per-sample {args.tokens_per_sample}: lengths of 2 to --max-tokens {args.max_tokens}")
    args.tokens_per_sample = [int(length) for length in lengths]
    for name in ("batches", "rounds", "max_tokens", "update_freq", "sentences", "generate_length"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed")
    args.cpu = args.cpu or not torch.cuda.is_available()
    args.device = "cpu" if args.cpu else "cuda"
    return args


# --- what is measured ---


@dataclasses.dataclass(frozen=True)
class System:
    """A model: an architecture and the options that differ from its own.

    Attributes:
        name: what was typed: the architecture's, or an experiment's.
        tokens_per_sample: length of a language model's blocks; None for translation.
    """

    name: str
    architecture: Architecture
    options: dict[str, Any]
    tokens_per_sample: int | None

    @functools.cached_property
    def config(self) -> Any:
        """The complete configuration."""
        return resolved_config(self.architecture.name, **self.options)

    @property
    def adaptive(self) -> bool:
        return getattr(self.config, "adaptive_softmax_cutoff", None) is not None

    @property
    def title(self) -> str:
        return self.name + (f", {self.tokens_per_sample} tokens a sample" if self.tokens_per_sample else "")

    def sizes(self, dataset: Data) -> dict[str, int]:
        """Mult-Adds at the lengths of the architecture's data set, and parameters without embeddings."""
        data = self.architecture.data
        report = closed_form(self.config, data.source_length, data.target_length, *vocabularies(dataset))
        return {"macs": report.macs, "core_params": report.params_core}


def find_systems(args: argparse.Namespace) -> list[System]:
    """All that --arch names, a language model once for each length of a block.

    Raises: UnknownArchitectureError, ConfigError.
    """
    found = []
    for name in args.arch:
        chosen: dict[str, Any] = {}
        if name not in ARCHITECTURES and name in training.known_configs():
            model = OmegaConf.to_container(training.read_config(training.find_config(name)).model)
            chosen = dict(model) if isinstance(model, dict) else {"_name": model}
        architecture = find_architecture(chosen.pop("_name", name))
        chosen |= parse_settings(architecture.name, args.model)
        if args.generate and architecture.is_language_model:
            raise ConfigError(f"--generate measures translation; {name} is a language model")
        lengths = args.tokens_per_sample if architecture.is_language_model else [None]
        found += [System(name, architecture, chosen, length) for length in lengths]
    return found


def dataset_of(system: System, args: argparse.Namespace) -> Data:
    """The training set of --data, or one that is drawn."""
    if args.data is not None:
        return read_training_set(args.data, system.tokens_per_sample)
    data = system.architecture.data
    if system.tokens_per_sample is not None:
        a_batch = args.max_tokens // system.tokens_per_sample
        types = args.vocabulary or data.target_vocab
        return drawn_text(types, args.batches * args.update_freq * a_batch, system.tokens_per_sample, args.seed)
    types = (args.vocabulary or data.source_vocab, args.vocabulary or data.target_vocab)
    tokens = args.batches * args.update_freq * args.max_tokens
    return drawn_pairs(types, tokens, args.sentences, args.max_tokens, args.seed)


def updates_of(dataset: Data, args: argparse.Namespace) -> list[Update]:
    """The updates of a round, in memory from which a card copies without making the host wait."""
    prepare = None if args.cpu else torch.Tensor.pin_memory
    return draw_updates(dataset, args.batches, args.update_freq, args.max_tokens, args.seed, prepare)


def dictionary_of(dataset: Data) -> Any:
    """The target's."""
    return dataset.vocab if isinstance(dataset, MonolingualDataset) else dataset.tgt_dict


def vocabularies(dataset: Data) -> tuple[int, int]:
    """Sizes of the source and the target dictionary; a language model has no source."""
    source = 0 if isinstance(dataset, MonolingualDataset) else len(dataset.src_dict)
    return source, len(dictionary_of(dataset))


# --- models ---


def use_fairseqs_pass(model: Any) -> None:
    """Gives a model the encoder and decoder pass of fairseq, which asks the device about padding."""
    if hasattr(model, "encoder"):
        encoder = model.encoder
        encoder.forward_embedding = MethodType(TransformerEncoderBase.forward_embedding, encoder)
        encoder.forward = MethodType(TransformerEncoderBase.forward_scriptable, encoder)
    decoder = model.decoder
    decoder.extract_features = MethodType(TransformerDecoderBase.extract_features_scriptable, decoder)
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.fuse_projections = False
        if isinstance(module, BandedSoftmax):
            module.adapt_target = functools.partial(_adapt_target_asking, module)


def _adapt_target_asking(softmax: BandedSoftmax, target: torch.Tensor, _counts: list[int] | None) -> Any:
    return AdaptiveSoftmax.adapt_target(softmax, target)


def make_trainer(system: System, variant: str, dataset: Data, args: argparse.Namespace) -> Trainer:
    """fairseq's Trainer for one variant of a system."""
    plain = variant == "plain"
    model_options = system.options | {"cuda_graphs": args.cuda_graphs if variant == "ours" else "off"}
    if system.architecture.model.startswith("lite_transformer"):
        model_options["conv_backend"] = "reference" if plain else args.conv_backend
    words = [
        tempfile.gettempdir(), "--arch", system.architecture.name, *_flags(model_options),
        "--optimizer", "adam" if plain else args.optimizer, "--adam-betas", "(0.9, 0.98)", "--weight-decay", "0.0001",
        "--clip-norm", str(args.clip_norm), "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "4000",
        "--lr", "0.0005", "--max-tokens", str(args.max_tokens), "--update-freq", str(args.update_freq),
        "--seed", str(args.seed), *PRECISIONS[args.precision], *(["--cpu"] if args.cpu else []),
    ]  # fmt: skip
    if system.tokens_per_sample is None:
        words += ["--task", "translation", "--source-lang", "a", "--target-lang", "b"]
        words += ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
    else:
        words += ["--task", "language_modeling", "--tokens-per-sample", str(system.tokens_per_sample)]
        words += ["--criterion", "adaptive_loss" if system.adaptive else "cross_entropy", "--ddp-backend", "legacy_ddp"]
    words += ["--loss-backend", "reference" if plain else args.loss_backend]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    cfg.common.tpu = False  # fairseq's flags take bf16 for a sign of one
    if isinstance(dataset, MonolingualDataset):
        task: Any = LanguageModelingTask(cfg.task, dataset.vocab, dataset.vocab, targets=["future"])
    else:
        task = TranslationTask(cfg.task, dataset.src_dict, dataset.tgt_dict)
    torch.manual_seed(args.seed)
    model = task.build_model(cfg.model)
    if plain:
        use_fairseqs_pass(model)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    trainer.begin_epoch(1)
    return trainer


def _flags(chosen: dict[str, Any]) -> list[str]:
    """Options as flags; a switch is typed if it is on."""
    words: list[str] = []
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        elif value is not None:
            words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return words


def flops_of(system: System, updates: list[Update], dataset: Data, softmax: Any = None) -> list[float]:
    """Floating-point operations that the model needs for each update: real tokens only, no recomputation.

    Two for each multiply-add of the forward pass, the projection to the vocabulary included, and twice that backward.
    ``softmax``: the model's, if it is adaptive; it computes a rare band only for the tokens that are of it.
    """
    sizes, pad = vocabularies(dataset), dictionary_of(dataset).pad()
    known: dict[tuple[int, int], int] = {}
    totals = []
    for update in updates:
        macs = 0
        for batch in update:
            real = batch["target"].ne(pad)
            target = real.sum(dim=1).tolist()
            source = [0] * len(target) if sizes[0] == 0 else batch["net_input"]["src_lengths"].tolist()
            for pair in zip(source, target, strict=True):
                if pair not in known:
                    report = closed_form(system.config, *pair, *sizes)
                    known[pair] = report.macs + (report.output_macs if softmax is None else 0)
                macs += known[pair]
            if softmax is not None:
                macs += softmax_macs(softmax, batch["target"][real])
        totals.append(6.0 * macs)
    return totals


def softmax_macs(softmax: Any, target: torch.Tensor) -> int:
    """Multiply-adds of an adaptive softmax for these targets (N,): a weight is used once for each token of its band."""
    macs = target.numel() * sum(weight.numel() for weight in softmax.head.parameters())
    for start, end, tail in zip(softmax.cutoff, softmax.cutoff[1:], softmax.tail, strict=False):
        inside = int((target.ge(start) & target.lt(end)).sum())
        macs += inside * sum(weight.numel() for weight in tail.parameters())
    return macs


# --- measuring ---


def synchronize(args: argparse.Namespace) -> None:
    if not args.cpu:
        torch.cuda.synchronize()


def check_parity(name: str, trainers: dict[str, Trainer], batch: dict[str, Any], precision: str) -> None:
    """Ends the program if the variants, untrained yet, do not give one loss: then their speed means nothing."""
    losses = {}
    for variant, trainer in trainers.items():
        with metrics.aggregate(new_root=True):
            losses[variant] = float(trainer.valid_step(batch)["loss"])
    first = next(iter(losses.values()))
    if any(abs(loss - first) > TOLERANCE[precision] * abs(first) for loss in losses.values()):
        raise SystemExit(f"{name}: the variants disagree on the loss of the same batch, {losses}: nothing is measured")


def train_round(trainer: Trainer, updates: list[Update], args: argparse.Namespace, bar: tqdm) -> float:
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


def allocated(args: argparse.Namespace) -> int:
    """Bytes of all tensors on the card; 0 without one."""
    return 0 if args.cpu else torch.cuda.memory_allocated()


def warm_up(
    trainer: Trainer, own: int, updates: list[Update], args: argparse.Namespace, bar: tqdm
) -> dict[str, float] | None:
    """The unmeasured rounds of one variant; returns how much memory they took at most, in GB, None on a CPU.

    ``allocated``: by tensors. ``reserved``: what the allocator held for them and for the graphs, and what lay between.
    What was there before, other variants' models, is not counted; this one's, of ``own`` bytes, is.
    """
    if not args.cpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() - own, torch.cuda.memory_reserved() - own
    for _ in range(args.warm_up_rounds):
        train_round(trainer, updates, args, bar)
    if args.cpu:
        return None
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    names = ("allocated", "reserved")
    return {name: (peak - start) / 1e9 for name, peak, start in zip(names, peaks, before, strict=True)}


def bench_training(system: System, args: argparse.Namespace, dataset: Data) -> dict[str, Any]:
    """Figures of every variant of one system."""
    updates = updates_of(dataset, args)
    trainers: dict[str, Trainer] = {}
    own: dict[str, int] = {}
    for variant in args.variants:
        before = allocated(args)
        trainers[variant] = make_trainer(system, variant, dataset, args)
        own[variant] = allocated(args) - before
    check_parity(system.title, trainers, updates[0][0], args.precision)
    seconds: dict[str, list[float]] = {variant: [] for variant in trainers}
    # freed memory went back to the card after the variant's own rounds: one more in turns, before any is measured
    together = args.rounds + (0 if args.cpu else 1)
    total = (args.warm_up_rounds + together) * len(updates) * len(trainers)
    with tqdm(total=total, desc=system.title, unit="update", disable=None) as bar:
        memory = {variant: warm_up(trainer, own[variant], updates, args, bar) for variant, trainer in trainers.items()}
        for _ in range(together):
            for variant, trainer in trainers.items():
                seconds[variant].append(train_round(trainer, updates, args, bar))
    tokens = sum(batch["ntokens"] for update in updates for batch in update)
    softmax = next(iter(trainers.values())).get_model().decoder.adaptive_softmax
    flops = sum(flops_of(system, updates, dataset, softmax))
    peak = peak_tflops(args)
    result: dict[str, Any] = {
        "arch": system.name,
        "tokens_per_sample": system.tokens_per_sample,
        **system.sizes(dataset),
        "updates_per_round": len(updates),
        "target_tokens_per_update": tokens / len(updates),
        "model_tflop_per_update": flops / len(updates) / 1e12,
        "variants": {},
    }
    for variant, all_times in seconds.items():
        times = all_times[-args.rounds :]
        tflops = [flops / t / 1e12 for t in times]
        result["variants"][variant] = {
            "updates_per_second": summary([len(updates) / t for t in times]),
            "target_tokens_per_second": summary([tokens / t for t in times]),
            "model_tflops": summary(tflops),
            "model_flops_utilisation": summary([value / peak for value in tflops]) if peak else None,
            "peak_memory_gigabytes": memory[variant],
            "captured_batch_shapes": len(trainers[variant].get_model().graphs._passes),
        }
    print_table(result)
    if args.profile is not None:
        result["profile"] = {variant: profile(trainer, updates, args) for variant, trainer in trainers.items()}
    return result


def profile(trainer: Trainer, updates: list[Update], args: argparse.Namespace) -> dict[str, Any]:
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


def bench_generation(system: System, args: argparse.Namespace, dataset: LanguagePairDataset) -> dict[str, Any]:
    """Sentences a second of an untrained model, which may not end a translation early."""
    trainer = make_trainer(system, "ours", dataset, args)
    model = trainer.get_model().eval()
    model.prepare_for_inference_(trainer.cfg)
    dtype = {"fp16": torch.half, "bf16": torch.bfloat16}.get(args.precision, torch.float32)
    model = model.to(dtype)
    batch = dataset.collater([dataset[i] for i in range(min(args.sentences, len(dataset)))])
    if not args.cpu:
        batch = utils.move_to_cuda(batch)
    count = batch["nsentences"]
    result: dict[str, Any] = {"arch": system.name, **system.sizes(dataset), "variants": {}}
    length = args.generate_length
    for name, beam in (("greedy", 1), ("beam 5", 5)):
        search = argparse.Namespace(
            beam=beam, max_len_a=0, max_len_b=length, min_len=length, lenpen=1, unkpen=0, temperature=1.0,
            match_source_len=False, no_repeat_ngram_size=0, sampling=False, diverse_beam_groups=-1,
        )  # fmt: skip
        generator = trainer.task.build_generator([model], search)
        rates = []
        for number in tqdm(range(args.warm_up_rounds + args.rounds), desc=f"{system.name} {name}", disable=None):
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
    hopper = not args.cpu and any(card in device_name(args.device) for card in ("H100", "H200"))
    return HOPPER_PEAKS[args.precision] if hopper else None


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
    length = f", {result['tokens_per_sample']} tokens a sample" if result.get("tokens_per_sample") else ""
    size = f"{result['macs'] / 1e6:.0f}M Mult-Adds, {result['core_params'] / 1e6:.1f}M parameters"
    print(f"{result['arch']}{length}: {size}")
    for variant, figures in result["variants"].items():
        cells = []
        for name, value in figures.items():
            if isinstance(value, dict) and "median" in value:
                digits = ".1%" if "utilisation" in name else ",.1f"
                cells.append(
                    f"{name} {format(value['median'], digits)} "
                    f"({format(value['min'], digits)}-{format(value['max'], digits)})"
                )
            elif isinstance(value, dict):
                cells.append(f"{name} {', '.join(f'{part} {size:.2f}' for part, size in value.items())}")
            elif value is not None:
                cells.append(f"{name} {value}")
        print(f"  {variant:7} {', '.join(cells)}")


def plot(path: Path, results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Speed against Mult-Adds: a line for each kind of model, length of a block and variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    key = "sentences_per_second" if args.generate else "updates_per_second"
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for result in results:
        kind = "Lite Transformer" if "lite" in result["arch"] else "Transformer"
        length = f", {result['tokens_per_sample']} tokens" if result.get("tokens_per_sample") else ""
        for variant, figures in result["variants"].items():
            lines.setdefault(f"{kind}{length}, {variant}", []).append((result["macs"] / 1e6, figures[key]))
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for label, points in lines.items():
        points.sort(key=lambda point: point[0])
        medians = [speed["median"] for _, speed in points]
        errors = [
            [speed["median"] - speed["min"] for _, speed in points],
            [speed["max"] - speed["median"] for _, speed in points],
        ]
        style = "-" if label.startswith("Lite") else "--"
        axes.errorbar([x for x, _ in points], medians, yerr=errors, fmt=style, marker="o", capsize=3, label=label)
    axes.set(xscale="log", ylim=(0, None), xlabel="Mult-Adds (millions)", ylabel=key.replace("_", " "))
    axes.set_title(f"{device_name(args.device)}, {args.precision}, {args.max_tokens} tokens a batch", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else list(words)
    args = parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    logging.getLogger("lite_transformer").setLevel(logging.INFO)
    training.register()
    try:
        systems = find_systems(args)
    except LiteTransformerError as error:
        print(error, file=sys.stderr)
        return 2
    for path in (args.profile, args.record, args.plot):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    profiles = {}
    for system in systems:
        results.append((bench_generation if args.generate else bench_training)(system, args, dataset_of(system, args)))
        profiles[system.title] = results[-1].pop("profile", None)
        # after each system: a benchmark that is broken off keeps what it has
        if args.record is not None:
            write_json(args.record, record_of(results, args, words))
        if args.profile is not None:
            write_json(args.profile, profiles)
    if args.plot is not None:
        plot(args.plot, results, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
