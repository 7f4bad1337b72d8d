"""Translates a test set with a trained model and scores it, each score with its protocol.

  lite-transformer evaluate iwslt14_de_en_lite_160 --checkpoint runs/NAME --data DIR/bin --confidence
  lite-transformer evaluate --checkpoint runs/NAME/checkpoint_best.pt --data DIR/bin
  lite-transformer evaluate --checkpoint runs/NAME --average-last 10 --data DIR/bin --beam 5
  lite-transformer evaluate --checkpoint runs/NAME --data DIR/bin --record results/runs/NAME.json
  lite-transformer evaluate --model RELEASED --data DIR/bin

With the name of an experiment its published protocol holds: averaging, beam, length penalty, lengths, compound split,
metrics; options change it, and what differs from it is printed. tokenized_bleu is computed on the words of the
binarized test set, the protocol of the paper. Where `prepare` made the folder, sacrebleu and chrf are computed as well,
on detokenized text against the raw reference; for summaries --metric rouge. Two systems: lite-transformer compare.

Of a language model the perplexity is computed, of every token of the split, in windows that keep --context-window
tokens of context; of subwords also per word, renormalised:

  lite-transformer evaluate wikitext103_lite_896 --checkpoint runs/NAME --data DIR/bin
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.corpora import CORPORA
from data_prep.io import read_json, read_lines, sha256, write_lines
from data_prep.pipeline import RECORD_FILE, load_pipelines
from data_prep.text import TextPipeline, join_bpe, join_sentencepiece
from lite_transformer.cli import language_model
from lite_transformer.errors import CheckpointError, ConfigError, DataError, ScoringError
from lite_transformer.released.folder import check_dictionaries, check_folder, find_model
from lite_transformer.results import data_hashes, settings_hash
from lite_transformer.scoring.protocols import METRICS, PROTOCOLS, Protocol, Search, averaging, find_protocol

if TYPE_CHECKING:
    from lite_transformer.scoring.decoding import Hypothesis, Loaded
    from lite_transformer.scoring.score import Score

logger = logging.getLogger(__name__)

_JOIN: dict[str, Callable[[str], str]] = {"bpe": join_bpe, "sentencepiece": join_sentencepiece, "none": str}
_VERSIONS = ("torch", "ve-fairseq", "sacrebleu", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # options and EXPERIMENT may be mixed in any order, which argparse does only when asked
    parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]
    parser.add_argument(
        "experiment", nargs="?", metavar="EXPERIMENT", help="an experiment of configs/, or a protocol: "
        f"{', '.join(PROTOCOLS)}; wikitext103, wikitext2, linux_docs",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", metavar="PT",
        help="the model, or a folder of checkpoints (what the protocol takes of it, or its checkpoint_best.pt); "
        "several are an ensemble (default: runs/EXPERIMENT)",
    )  # fmt: skip
    parser.add_argument("--model", metavar="NAME", help="a released model in place of --checkpoint, by name or folder")
    parser.add_argument("--data", type=Path, required=True, metavar="BIN", help="the binarized data, as for training")
    parser.add_argument(
        "--average-last", type=int, metavar="N", help="average the last N epoch checkpoints of the folder first"
    )
    parser.add_argument("--split", default="test", metavar="NAME", help="which split (default test)")
    search = parser.add_argument_group("search (defaults: the experiment's protocol, or as given here)")
    search.add_argument("--beam", type=int, metavar="N", help="beam width (4)")
    search.add_argument("--lenpen", type=float, metavar="X", help="length penalty (1)")
    search.add_argument("--max-len-a", type=float, metavar="A", help="at most A * source length + B subwords (0)")
    search.add_argument("--max-len-b", type=int, metavar="B", help="see --max-len-a (200)")
    search.add_argument("--min-len", type=int, metavar="N", help="at least N subwords (1)")
    search.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="no n-gram of this size twice (0: any)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="source tokens in a batch (default 12000)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="sentences in a batch")
    parser.add_argument(
        "--compound-split", action=argparse.BooleanOptionalAction, help="split hyphenated words first (WMT En-De only)"
    )
    parser.add_argument("--metric", nargs="+", choices=list(METRICS), help="which scores; " + "; ".join(
        f"{name}: {scores}" for name, scores in METRICS.items()
    ))  # fmt: skip
    parser.add_argument(
        "--subwords", choices=sorted(_JOIN), help="how the data was split (default: as prepare.json says, or bpe)"
    )
    parser.add_argument("--reference", type=Path, metavar="FILE", help="raw reference (default: the one prepare kept)")
    parser.add_argument(
        "--confidence", action="store_true", help="95 %% intervals by sacreBLEU's bootstrap: 1000 resamples, its seed"
    )
    language_model.add_arguments(parser)
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--fp16", action="store_true", help="compute in half precision")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the translations, detokenized if possible")
    record = parser.add_argument_group("run record")
    record.add_argument("--record", type=Path, metavar="FILE", help="write, or add to, results/runs/NAME.json")
    record.add_argument("--task", metavar="NAME", help="the record's task (default: CORPUS-SRC-TGT of prepare.json)")
    record.add_argument("--row", metavar="LABEL", help="the record's row (default: the architecture)")
    record.add_argument("--config", type=Path, metavar="YAML", help="the experiment file (default: from train.json)")
    record.add_argument("--train-command", metavar="TEXT", help="how it was trained (default: from train.json)")
    record.add_argument("--commit", metavar="HASH", help="of the code that trained (default: train.json, or git)")
    record.add_argument("--macs-lengths", type=int, nargs=2, default=(30, 30), metavar=("S", "T"),
                        help="lengths of the pass whose MACs are recorded (default 30 30)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    for name in ("beam", "max_tokens", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed")
    if args.model is not None:
        _take_released(args)
    if language_model.is_meant(args):
        return language_model.run(args)
    language_model.refuse(args)
    protocol = _protocol(args)
    search = _search(args, protocol)
    if args.confidence:
        from lite_transformer.scoring import significance

        significance.seed()  # a bad one is found before the search
    if not args.data.is_dir():
        raise DataError(
            f"no binarized data in {args.data} (no such folder). Run: lite-transformer prepare CORPUS --dest DIR, "
            "then give --data DIR/bin"
        )
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    from lite_transformer.compression import packed
    from lite_transformer.scoring import decoding

    checkpoints, averaged = _checkpoints(args, protocol)
    decoding.check_data(args.data, args.split, decoding.languages_of(checkpoints[0]))
    loaded = decoding.load(checkpoints, args.data, args.cpu, args.fp16)
    pipeline = _target_pipeline(args.data, loaded.languages[1])
    scoring = _Scoring(args, protocol, pipeline, loaded.languages[1])
    started = time.monotonic()
    hypotheses = decoding.translate(loaded, args.split, search, args.max_tokens, args.batch_size)
    seconds = time.monotonic() - started
    scores, translations = scoring.score(hypotheses)
    if args.output is not None:
        write_lines(args.output, translations)
    how = f"{search}{', fp16' if args.fp16 else ''}, {averaged}"
    which = checkpoints[0].name if averaged == averaging(None) else averaged
    if packed.is_packed(checkpoints[0]):
        how = f"{how.removesuffix(averaged)}{packed.origin(checkpoints[0])}"
    result = {
        "protocol": _protocol_json(args, protocol, search, which, scoring, len(hypotheses)) if protocol else None,
        "checkpoint": [str(path) for path in checkpoints],
        "data": str(args.data),
        "split": args.split,
        "sentences": len(hypotheses),
        "decoding": how,
        "seconds": round(seconds, 2),
        "scores": [score.to_json() for score in scores],
    }
    if args.record is not None:
        prepared = read_json(args.data / RECORD_FILE) if (args.data / RECORD_FILE).is_file() else {}
        task = "-".join([str(prepared.get("corpus", args.data.parent.name)), *loaded.languages])
        write_run_record(args, loaded, checkpoints, scores, how, task)
        result["record"] = str(args.record)
    sys.stdout.write(json.dumps(result) + "\n" if args.json else _text(result, scores, args.output))
    return 0


def _text(result: dict[str, Any], scores: list[Score], output: Path | None) -> str:
    lines = [f"{result['split']}: {result['sentences']} sentences, {result['decoding']}, {result['seconds']} s"]
    if protocol := result["protocol"]:
        lines.append(f"protocol {protocol['description']}; {protocol['source']}")
        lines += [f"  {protocol['remark']}"] if protocol["remark"] else []
        lines += [f"  not as in the protocol: {difference}" for difference in protocol["differences"]]
    lines += [str(score) for score in scores]
    lines += [f"translations in {output}"] if output is not None else []
    lines += [f"record in {result['record']}"] if "record" in result else []
    return "\n".join(lines) + "\n"


# --- the protocol --------------------------------------------------------------------------------------------------


def _take_released(args: argparse.Namespace) -> None:
    """Makes a released model the checkpoint, and its search the default unless a protocol sets one."""
    for name in ("checkpoint", "average_last", "record"):
        if getattr(args, name) is not None:
            why = "it describes a training run" if name == "record" else "--model is the checkpoint"
            raise ConfigError(f"--{name.replace('_', '-')} does not go with --model: {why}")
    folder = find_model(args.model)
    card = check_folder(folder)
    check_dictionaries(card, folder, args.data)
    args.checkpoint = [folder / card.weights]
    if args.experiment is None:
        args.beam = card.beam if args.beam is None else args.beam
        args.lenpen = card.lenpen if args.lenpen is None else args.lenpen


def _protocol(args: argparse.Namespace) -> Protocol | None:
    """The protocol of the experiment, if one is named; sets the default of --checkpoint."""
    if args.experiment is None:
        if args.checkpoint is None:
            raise ConfigError("--checkpoint is missing: a file, or the folder of a run")
        return None
    name = args.experiment
    if name not in PROTOCOLS:
        from lite_transformer import training

        name = training.find_config(name).stem
    if args.checkpoint is None:
        args.checkpoint = [Path("runs") / name]
        if not args.checkpoint[0].is_dir():
            raise CheckpointError(f"{args.checkpoint[0]}: no such folder. Give --checkpoint, a file or a run's folder")
    return find_protocol(name)


def _search(args: argparse.Namespace, protocol: Protocol | None) -> Search:
    """The protocol's search, or the usual one, with the options that were given."""
    names = [field.name for field in dataclasses.fields(Search)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    search = dataclasses.replace(protocol.search if protocol else Search(), **given)
    search.check()
    return search


def _protocol_json(
    args: argparse.Namespace, protocol: Protocol, search: Search, checkpoint: str, scoring: _Scoring, sentences: int
) -> dict[str, Any]:
    """The protocol, and everything in which this evaluation is another one."""
    corpus = CORPORA.get(protocol.name)
    prepared = read_json(args.data / RECORD_FILE) if (args.data / RECORD_FILE).is_file() else {}
    limit = prepared.get("limit")
    pairs = [
        ("split", args.split, "test"),
        ("data", f"a slice, the first {limit} pairs of each split" if limit else "whole", "whole"),
        ("corpus", prepared.get("corpus", protocol.name), protocol.name),
        ("sentences", sentences, corpus.published_lines.get(args.split, sentences) if corpus else sentences),
        ("checkpoint", checkpoint, averaging(protocol.average_last) if protocol.average_last else "checkpoint_best.pt"),
        ("compound split", scoring.compound_split, protocol.compound_split),
        ("metric", " and ".join(scoring.metrics), protocol.metric),
    ]
    for field in dataclasses.fields(Search):
        pairs.append((field.name.replace("_", "-"), getattr(search, field.name), getattr(protocol.search, field.name)))
    return {
        "name": protocol.name,
        "description": str(protocol),
        "source": protocol.source,
        "remark": protocol.remark,
        "differences": [f"{what} is {here}, not {there}" for what, here, there in pairs if here != there],
    }


def _checkpoints(args: argparse.Namespace, protocol: Protocol | None) -> tuple[list[Path], str]:
    """The files to load, and what they are in words. A protocol averages what a folder holds, never a given file."""
    if args.model is not None:
        return args.checkpoint, f"released model {args.checkpoint[0].parent.name}"
    count = args.average_last
    if count is None and protocol is not None and len(args.checkpoint) == 1 and args.checkpoint[0].is_dir():
        count = protocol.average_last
    if count is None:
        files = [path / "checkpoint_best.pt" if path.is_dir() else path for path in args.checkpoint]
        return files, averaging(None) if len(files) == 1 else f"ensemble of {len(files)}"
    if len(args.checkpoint) > 1:
        raise CheckpointError("--average-last averages the checkpoints of one folder: give one --checkpoint")
    from lite_transformer.models.averaging import last_epochs, write_average

    folder = args.checkpoint[0] if args.checkpoint[0].is_dir() else args.checkpoint[0].parent
    paths = last_epochs(folder, count)
    output = folder / f"average_last{count}_{paths[0].stem}.pt"
    write_average(paths, output)
    return [output], averaging(count)


# --- scores --------------------------------------------------------------------------------------------------------


def _target_pipeline(data: Path, language: str) -> TextPipeline | None:
    """How the target text was made, if `prepare` made it."""
    if not (data / RECORD_FILE).is_file():
        return None
    pipelines = load_pipelines(data)
    if language not in pipelines:
        raise DataError(f"{data / RECORD_FILE} knows {', '.join(pipelines)}, not '{language}', the model's target")
    return pipelines[language]


class _Scoring:
    """What is scored, against which files; everything that can be missing is missed here, before the search.

    Attributes:
        metrics: the kinds of scores, keys of METRICS. compound_split: of tokenized_bleu.
    """

    def __init__(
        self, args: argparse.Namespace, protocol: Protocol | None, pipeline: TextPipeline | None, language: str
    ):
        self.args, self.pipeline = args, pipeline
        self.metrics: list[str] = args.metric or [protocol.metric if protocol else "bleu"]
        split = args.compound_split
        self.compound_split: bool = (protocol is not None and protocol.compound_split) if split is None else split
        self.reference = _raw_reference(args, language) if pipeline else None
        name = f"{args.split}.{language}"
        if pipeline is None:
            self._without_reference(f"{args.data} has no {RECORD_FILE}")
        elif self.reference is None:
            self._without_reference(f"there is no {name} beside {args.data}")

    def _without_reference(self, reason: str) -> None:
        if "rouge" in self.metrics:
            raise DataError(
                f"--metric rouge needs raw text, and {reason}. Make the data with: lite-transformer prepare CORPUS"
            )
        logger.warning("%s: tokenized_bleu only", reason)

    def score(self, hypotheses: list[Hypothesis]) -> tuple[list[Score], list[str]]:
        """The scores, and the translations as text, detokenized if it is known how."""
        from lite_transformer.scoring import bleu

        pipeline = self.pipeline
        join = _JOIN[self.args.subwords or (pipeline.subword if pipeline else "bpe")]
        words = [join(item.subwords) for item in hypotheses]
        texts = [" ".join(pipeline.detokenize(line).split()) for line in words] if pipeline else words
        scores: list[Score] = []
        if "bleu" in self.metrics:
            targets = [join(item.reference) for item in hypotheses]
            found = bleu.tokenized_bleu(words, targets, compound_split=self.compound_split)
            scores += self._sure([found], words, targets, compound_split=self.compound_split)
        if pipeline is None or self.reference is None:
            return scores, texts
        raw = read_lines(self.reference)
        if len(raw) != len(texts):
            raise ScoringError(
                f"{len(texts)} hypotheses for {len(raw)} lines of {self.reference}: not the same test set"
            )
        if "bleu" in self.metrics:
            pair = [metric(texts, raw, lowercase=pipeline.lowercase) for metric in (bleu.sacrebleu, bleu.chrf)]
            scores += self._sure(pair, texts, raw, lowercase=pipeline.lowercase)
        if "rouge" in self.metrics:
            from lite_transformer.scoring import rouge

            logging.getLogger("absl").setLevel(logging.WARNING)  # rouge-score reports its tokenizer every time
            scores += self._sure(rouge.rouge(texts, raw) + rouge.rouge(texts, raw, stem=True), texts, raw)
        return scores, texts

    def _sure(self, scores: list[Score], lines: list[str], targets: list[str], **options: bool) -> list[Score]:
        """The scores, with their intervals if those were asked for."""
        if not self.args.confidence:
            return scores
        from lite_transformer.scoring import significance

        return [significance.with_interval(score, lines, targets, **options) for score in scores]


def _raw_reference(args: argparse.Namespace, language: str) -> Path | None:
    if args.reference is not None:
        if not args.reference.is_file():
            raise DataError(f"--reference {args.reference}: no such file")
        return args.reference
    name = f"{args.split}.{language}"
    for folder in (args.data / "raw", args.data.parent / "raw"):
        path = folder / name
        if path.is_file():
            expected = read_json(args.data / RECORD_FILE).get("raw_sha256", {}).get(name)
            if expected is not None and sha256(path) != expected:
                raise DataError(
                    f"{path} was changed after the data was prepared. Prepare it again, or give --reference"
                )
            return path
    return None


# --- the record ----------------------------------------------------------------------------------------------------


def write_run_record(
    args: argparse.Namespace, loaded: Loaded, checkpoints: list[Path], scores: list[Score], how: str, task: str
) -> None:
    """Writes, or adds to, --record; ``task`` is the record's task unless --task is given."""
    from omegaconf import OmegaConf

    from lite_transformer import results
    from lite_transformer.macs.counter import count_model
    from lite_transformer.models.safe_load import load_checkpoint

    if len(checkpoints) > 1:
        raise ConfigError("--record describes one run, not an ensemble: give one --checkpoint")
    training = _training_record(checkpoints[0].parent)
    latest = training["runs"][-1] if training else {}
    state = load_checkpoint(checkpoints[0])
    config: Any = OmegaConf.to_container(loaded.config, resolve=True, enum_to_str=True)
    commit, dirty = _commit(args.commit or latest.get("commit"))
    config_file = args.config or _experiment_file(training)
    if config_file is not None and not config_file.is_file():
        raise DataError(f"--config {config_file}: no such file")
    trained_by = [args.train_command] if args.train_command else [item["command"] for item in training.get("runs", [])]
    model = loaded.models[0].float()
    report = count_model(model, *args.macs_lengths)
    arch = str(config["model"].get("_name") or config["model"].get("arch") or type(model).__name__)
    record = results.RunRecord(
        task=args.task or task,
        row=args.row or arch,
        kind="measured",
        arch=arch,
        commands=[*trained_by, shlex.join(["lite-transformer", *sys.argv[1:]])],
        commit=commit,
        dirty=dirty,
        config=(config_file if args.config else Path("configs") / config_file.name).as_posix() if config_file else "",
        config_sha256=sha256(config_file) if config_file else "",
        settings_sha256=settings_hash(config),
        data=data_hashes(args.data),
        seed=int(config["common"]["seed"]),
        device=str(latest.get("device") or _device(loaded)),
        versions={name: metadata.version(name) for name in _VERSIONS} | {"python": platform.python_version()},
        metrics=[results.Metric(args.split, item.metric, item.value, item.signature, how) for item in scores],
        macs=report.macs,
        taps_macs=report.taps_macs,
        params_core=report.params_core,
        params_total=report.params_total,
        updates=int(state["optimizer_history"][-1]["num_updates"]),
        wall_time_seconds=round(float(state.get("extra_state", {}).get("previous_training_time") or 0.0), 1),
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    results.write_record(args.record, record)


def _training_record(folder: Path) -> dict[str, Any]:
    """The train.json that `lite-transformer train` left beside the checkpoints; empty if there is none."""
    path = folder / "train.json"
    return read_json(path) if path.is_file() else {}


def _experiment_file(training: dict[str, Any]) -> Path | None:
    name = f"{training.get('experiment')}.yaml"
    folders = [Path("configs"), Path(__file__).parents[2] / "configs"]
    return next((folder / name for folder in folders if training and (folder / name).is_file()), None)


def _commit(known: str | None) -> tuple[str, bool]:
    """Commit of the code and whether files differed from it. Raises: ConfigError if it cannot be known."""
    if known:
        return known.removesuffix("-dirty"), known.endswith("-dirty")
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        raise ConfigError(
            "--record needs the commit of the code, and this is no git checkout: give --commit HASH"
        ) from None


def _device(loaded: Loaded) -> str:
    if loaded.device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(loaded.device)
    return "cpu"
