"""Making a released model of a training run: averaged weights as fp16, what text needs, a card; checked, then named."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq.utils import resolve_max_positions
from omegaconf import OmegaConf
from tqdm import tqdm

from data_prep.corpora import CORPORA, Corpus
from data_prep.folders import atomic_folder
from data_prep.io import read_json, write_json, write_lines
from data_prep.pipeline import RECORD_FILE, load_pipelines
from data_prep.text import TextPipeline
from lite_transformer.compression import packed
from lite_transformer.compression.recipes import Recipe, load_recipe
from lite_transformer.errors import CheckpointError, ConfigError, DataError
from lite_transformer.file_list import describe_files
from lite_transformer.macs.counter import count_model
from lite_transformer.models import packed_checkpoint
from lite_transformer.models.averaging import write_average
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.released.card import (
    CARD_FILE,
    FORMAT,
    PAGE_FILE,
    Card,
    Cost,
    Data,
    Fidelity,
    Training,
    language_name,
    render_page,
)
from lite_transformer.released.folder import check_folder
from lite_transformer.results import Metric, RunRecord, read_record, settings_hash
from lite_transformer.scoring import decoding
from lite_transformer.scoring.decoding import Loaded
from lite_transformer.scoring.protocols import Search

WEIGHTS_FILE, PACKED_FILE = "model.pt", "model.ltpack"

_BATCH = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# fp16 keeps 11 bits: the models here move by 1e-4 to 6e-4 on average. More than this is no rounding.
MOST_LOGPROB_DIFFERENCE = 0.005
# Of the lines: two hypotheses of nearly equal score may change places, in 4 lines of 1000 of a trained model here.
LEAST_IDENTICAL = 0.9
# Of a file packed by a recipe: int8 moves a model here by 0.01. What training has not seen is seen here.
MOST_PACKED_DIFFERENCE, LEAST_PACKED_IDENTICAL = 0.05, 0.6


@dataclass(frozen=True)
class Release:
    """What is asked for.

    Attributes:
        checkpoints: of one run; their weights are averaged.
        data: the bin folder it was trained on.
        out: the folder to make; its name is the model's.
        records: run records of the same training, whose scores and history the card takes over.
        split, check_lines: on how many lines of which split fp16 is compared with fp32.
        source_length, target_length: of the pass whose Mult-Adds the card gives.
        recipe: of compression, for a packed file in place of fp16 weights.
        licence, intended_use, limits: words of the card; None or empty for the usual ones.
        commit: of the code that trained; None: as the records or train.json say.
        max_bytes: the most that all files together may have.
        force: whether a released model in ``out`` is replaced.
        command: what was typed, for the card.
    """

    checkpoints: Sequence[Path]
    data: Path
    out: Path
    records: Sequence[Path]
    split: str
    check_lines: int
    search: Search
    source_length: int
    target_length: int
    recipe: str | None
    licence: str | None
    intended_use: str | None
    limits: Sequence[str]
    commit: str | None
    max_bytes: int
    force: bool
    command: Sequence[str]


def make_release(release: Release) -> Card:
    """Makes the folder of a released model; returns its card. ``out`` appears whole or not at all.

    Raises: CheckpointError if a checkpoint cannot be loaded or the model is too large, or its outputs as stored are not
        those in fp32; ConfigError or DataError if the data, a record or the recipe is not the model's, or ``out`` is in
        use.
    """
    _check_out(release)
    recipe = load_recipe(release.recipe) if release.recipe else None
    pipelines = load_pipelines(release.data)
    records = {path: read_record(path) for path in release.records}
    with tempfile.TemporaryDirectory() as scratch:
        average = Path(scratch) / "average.pt"
        write_average(release.checkpoints, average)
        decoding.check_data(release.data, release.split, decoding.languages_of(average))
        wide = decoding.load([average], release.data, cpu=True)
        _check_languages(wide, pipelines, release.data)
        config: Any = OmegaConf.to_container(wide.config, resolve=True, enum_to_str=True)
        state = load_checkpoint(average)
        with atomic_folder(release.out) as folder:
            _copy_text(release.data, folder, [pipelines[code] for code in wide.languages])
            whole = average if len(release.checkpoints) > 1 else release.checkpoints[0]
            weights = _write_weights(folder, whole, state, config, recipe)
            narrow = decoding.load([folder / weights], folder, cpu=True)
            card = _card(release, wide, narrow, config, state, records, folder)
            card = dataclasses.replace(
                card, weights=weights, recipe=recipe.name if recipe else "", fidelity=compare(wide, narrow, release)
            )
            _check_size(card, release.max_bytes)
            write_json(folder / CARD_FILE, asdict(card))
            write_lines(folder / PAGE_FILE, render_page(card).splitlines())
            check_folder(folder)
    return card


def _check_out(release: Release) -> None:
    out = release.out
    if not _NAME.fullmatch(out.name):
        raise ConfigError(f"--out {out}: a model's name has letters, digits, '.', '_' and '-' only")
    if not out.exists():
        return
    if not out.is_dir() or not (out / CARD_FILE).is_file():  # never replaced: it is something else
        raise ConfigError(f"--out {out}: already there, and no released model. Choose another name")
    if not release.force:
        raise ConfigError(f"--out {out}: there is a released model already. Choose another name, or add --force")


def _check_languages(loaded: Loaded, pipelines: dict[str, TextPipeline], data: Path) -> None:
    if not set(loaded.languages) <= set(pipelines):
        raise DataError(
            f"the model translates {'-'.join(loaded.languages)}, but {data} was prepared for {'-'.join(pipelines)}. "
            "Give the data folder that it was trained on"
        )


# --- files ---------------------------------------------------------------------------------------------------------


def _copy_text(data: Path, folder: Path, pipelines: Sequence[TextPipeline]) -> None:
    """Dictionaries, subword codes and text settings, byte for byte, by the names they have in the data folder."""
    names = [RECORD_FILE, *(f"dict.{pipeline.language}.txt" for pipeline in pipelines)]
    for name in dict.fromkeys([*names, *(name for pipeline in pipelines for name in pipeline.files)]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / name, folder / name)


def _write_weights(
    folder: Path, checkpoint: Path, state: dict[str, Any], config: dict[str, Any], recipe: Recipe | None
) -> str:
    """Writes the weights as they are released; returns the file's name. The texts lie beside it, not in it."""
    if recipe is None:
        torch.save(half_precision_state(state, config), folder / WEIGHTS_FILE)
        return WEIGHTS_FILE
    model = packed_checkpoint.pack_checkpoint(checkpoint, recipe, {})
    packed.write(folder / PACKED_FILE, dataclasses.replace(model, meta=_without_paths(model.meta)))
    return PACKED_FILE


def half_precision_state(state: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with fp16 weights that holds nothing but what loading needs.

    Tensors of equal content (shared embeddings) are stored once. Paths of the machine that trained are left out.

    Raises: CheckpointError if a weight is not finite in fp16.
    """
    shared: dict[tuple[Any, ...], torch.Tensor] = {}
    weights = {}
    for name, value in state["model"].items():
        tensor = value.half() if value.is_floating_point() else value.clone()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} has values that are too large for fp16, or no numbers: not released")
        digest = hashlib.sha256(tensor.contiguous().numpy().tobytes()).digest()
        weights[name] = shared.setdefault((tensor.dtype, tuple(tensor.shape), digest), tensor)
    return {
        "args": None,
        "cfg": _without_paths(config),
        "model": weights,
        "optimizer_history": [
            {
                "optimizer_name": str(state["optimizer_history"][-1].get("optimizer_name", "")),
                "lr_scheduler_state": {},
                "num_updates": int(state["optimizer_history"][-1]["num_updates"]),
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }


def _without_paths(value: Any) -> Any:
    """The configuration with '' in place of every absolute path, or list of paths."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and any(Path(part).is_absolute() for part in value.split(os.pathsep)):
        return ""
    return value


def _check_size(card: Card, max_bytes: int) -> None:
    if card.size_bytes > max_bytes:
        largest = max(card.files, key=lambda name: card.files[name].size_bytes)
        raise CheckpointError(
            f"the model has {card.size_bytes:,} bytes, {card.files[largest].size_bytes:,} of them in {largest}; "
            f"{max_bytes:,} are allowed (--max-megabytes)"
        )


# --- as stored, against fp32 -----------------------------------------------------------------------------------------


def compare(wide: Loaded, narrow: Loaded, release: Release) -> Fidelity:
    """What the weights as stored change, on evenly spaced lines of a split of the task of ``wide``.

    Raises: CheckpointError if they change more than rounding does, or than int8 by several times.
    """
    task, models = wide.task, (wide.models[0], narrow.models[0])
    task.load_dataset(release.split, task_cfg=wide.config.task)
    dataset = task.dataset(release.split)
    limits = resolve_max_positions(task.max_positions(), models[0].max_positions())
    readable = [i for i in range(len(dataset)) if max(dataset.src.sizes[i], dataset.tgt.sizes[i]) <= min(limits)]
    if not readable:
        raise DataError(f"the {release.split} split of {release.data} has no line that the model can read whole")
    places = np.linspace(0, len(readable) - 1, min(release.check_lines, len(readable)), dtype=int)
    chosen = sorted((readable[place] for place in places), key=lambda index: int(dataset.src.sizes[index]))
    # a model that does not end its sentences shows what it does soon enough
    search = GenerationConfig(**asdict(dataclasses.replace(release.search, max_len_a=2.0, max_len_b=10)))
    # a generator keeps the models it was built with, whatever inference_step is given
    generators = [task.build_generator([model], search) for model in models]
    identical, differences = 0, []
    for start in tqdm(
        range(0, len(chosen), _BATCH), desc="stored against fp32", unit="batch", disable=None, leave=False
    ):
        sample = dataset.collater([dataset[i] for i in chosen[start : start + _BATCH]])
        with torch.no_grad():
            found = zip(*(task.inference_step(item, None, sample) for item in generators), strict=True)
            scores = [_reference_logprobs(model, sample, dataset.tgt_dict.pad()) for model in models]
        identical += sum(torch.equal(first[0]["tokens"], second[0]["tokens"]) for first, second in found)
        differences.append((scores[0] - scores[1]).abs())
    difference = torch.cat(differences)
    check = Fidelity(
        release.split, len(chosen), identical, round(difference.mean().item(), 8), round(difference.max().item(), 8)
    )
    least, most = LEAST_IDENTICAL, MOST_LOGPROB_DIFFERENCE
    if release.recipe:
        least, most = LEAST_PACKED_IDENTICAL, MOST_PACKED_DIFFERENCE
    if identical < least * len(chosen) or not check.mean_logprob_difference <= most:
        stored = "packed" if release.recipe else "fp16"
        raise CheckpointError(
            f"the outputs with {stored} weights are not those with fp32 weights: {check}. "
            f"Not released; {most} on average and {1 - least:.0%} of the lines are allowed"
        )
    return check


def _reference_logprobs(model: Any, sample: dict[str, Any], pad: int) -> torch.Tensor:
    """(N,) log-probabilities of the N tokens of the references of a batch."""
    output = model(**sample["net_input"])
    logprobs = model.get_normalized_probs(output, log_probs=True)  # (B, T, V)
    target = sample["target"]  # (B, T)
    return logprobs.gather(-1, target[..., None])[..., 0][target != pad].float()


# --- the card ------------------------------------------------------------------------------------------------------


def _card(
    release: Release,
    loaded: Loaded,
    stored: Loaded,
    config: dict[str, Any],
    state: dict[str, Any],
    records: dict[Path, RunRecord],
    folder: Path,
) -> Card:
    """Everything but how the weights are stored, and what their comparison with fp32 will find."""
    model = loaded.models[0]
    report = count_model(model, release.source_length, release.target_length)
    source, target = loaded.languages
    data = _data(release.data)
    scores: dict[Any, Metric] = {}
    # a record may be of the packed file, whose settings are those of the plain task
    plain: Any = OmegaConf.to_container(stored.config, resolve=True, enum_to_str=True)
    settings = (settings_hash(config), settings_hash(plain))
    for path, record in records.items():
        _check_record(path, record, settings, int(config["common"]["seed"]), report.params_total, data)
        scores |= {score.column: score for score in record.metrics}
    return Card(
        format=FORMAT,
        name=release.out.name,
        arch=str(config["model"].get("_name") or config["model"].get("arch") or type(model).__name__),
        source_language=source,
        target_language=target,
        licence=release.licence or data.licence,
        intended_use=release.intended_use or _intended_use(source, target, data.corpus),
        limits=[*_limits(data, min(model.max_positions())), *release.limits],
        beam=release.search.beam,
        lenpen=release.search.lenpen,
        cost=Cost(
            release.source_length, release.target_length, report.macs, report.taps_macs, report.params_core,
            report.params_total,
        ),
        scores=list(scores.values()),
        records=[path.name for path in records],
        recipe="",
        fidelity=Fidelity(release.split, 0, 0, 0.0, 0.0),
        data=data,
        training=_training(release, config, state, list(records.values())),
        weights="",
        files=describe_files(folder),
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )  # fmt: skip


def _check_record(path: Path, record: RunRecord, settings: Sequence[str], seed: int, params: int, data: Data) -> None:
    """Raises: ConfigError if the record is of another training than the checkpoint's."""
    for what, there, here in (
        ("settings", record.settings_sha256 in settings, True),
        ("seed", record.seed, seed),
        ("parameters", record.params_total, params),
        ("data", record.data, data.sha256),
    ):
        if there != here and not (what == "data" and not here):
            shown = "" if what in ("settings", "data") else f" ({there} there, {here} here)"
            raise ConfigError(f"--record {path} is of another run: its {what} are not the checkpoint's{shown}")


def _data(folder: Path) -> Data:
    prepared = read_json(folder / RECORD_FILE)
    return Data(
        corpus=str(prepared["corpus"]),
        licence=str(prepared["licence"]),
        citation=str(prepared["citation"]),
        command=_prepare_command(prepared),
        lines=dict(prepared["lines"]),
        sha256=dict(prepared["raw_sha256"]),
    )


def _prepare_command(prepared: dict[str, Any]) -> str:
    """The `lite-transformer prepare` that makes the same data, with the options that are not the corpus's own."""
    name, pair = prepared["corpus"], (prepared["source_language"], prepared["target_language"])
    words = ["lite-transformer", "prepare", name, "--pair", "-".join(pair), "--dest", f"data/{'_'.join([name, *pair])}"]
    corpus = CORPORA.get(name)
    if corpus is None:
        return shlex.join(words)
    if _needs_files(corpus, pair):
        words += ["--source", "DIR"]
    text = prepared["text"][pair[0]]
    usual = TextPipeline(language=text["language"], **corpus.text).to_json()
    for key, value in text.items():
        if key in ("language", "codes") or usual[key] == value:
            continue
        flag = key.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", value]
    for flag, key, value in (
        ("bpe-merges", "subword_units", corpus.merges),
        ("seed", "seed", 1),
        ("limit", "limit", None),
    ):
        if prepared.get(key, value) != value:
            words += [f"--{flag}", str(prepared[key])]
    if prepared.get("joined_dictionary", corpus.joined_dictionary) != corpus.joined_dictionary:
        words.append("--joined-dictionary" if prepared["joined_dictionary"] else "--no-joined-dictionary")
    return shlex.join(words)


def _needs_files(corpus: Corpus, pair: tuple[str, str]) -> bool:
    """Whether the user must have the corpus's files: they are neither downloaded nor generated."""
    if corpus.sources is not None or corpus.fetch is not None or corpus.find_sources is None:
        return False
    try:
        corpus.find_sources(None, pair)
    except DataError:
        return True
    return False


def _training(release: Release, config: dict[str, Any], state: dict[str, Any], records: list[RunRecord]) -> Training:
    """The history of the weights, from the records or else from the train.json beside the checkpoint.

    Raises: ConfigError if nothing says which commit trained, or two records say different things.
    """
    beside = release.checkpoints[0].parent / "train.json"
    history = read_json(beside) if beside.is_file() else {}
    runs = history.get("runs") or [{}]
    commits = {f"{record.commit}{'-dirty' if record.dirty else ''}" for record in records}
    if len(commits) > 1:
        raise ConfigError(f"the records name different commits: {', '.join(sorted(commits))}. Give those of one run")
    commit = release.commit or next(iter(commits), None) or runs[-1].get("commit")
    if not commit:
        raise ConfigError("it is unknown which commit of the code trained: give --record FILE or --commit HASH")
    typed = [command for record in records for command in record.commands] or [
        run["command"] for run in runs if "command" in run
    ]
    first = records[0] if records else None
    return Training(
        commands=list(dict.fromkeys(map(_without_folders, [*map(shlex.split, typed), release.command]))),
        averaged=len(release.checkpoints),
        commit=commit.removesuffix("-dirty"),
        dirty=commit.endswith("-dirty"),
        config=first.config if first else f"configs/{history['experiment']}.yaml" if "experiment" in history else "",
        seed=int(config["common"]["seed"]),
        updates=first.updates if first else int(state["optimizer_history"][-1]["num_updates"]),
        device=first.device if first else str(runs[-1].get("device", "")),
        versions=dict(first.versions if first else runs[-1].get("versions", {})),
    )


def _without_folders(words: Sequence[str]) -> str:
    """A command line whose absolute paths are cut to their last part: the rest is of one machine."""

    def without(word: str) -> str:
        key, equals, value = word.partition("=")
        if Path(word).is_absolute():
            return Path(word).name
        return f"{key}={Path(value).name}" if equals and Path(value).is_absolute() else word

    return shlex.join(map(without, words))


def _intended_use(source: str, target: str, corpus: str) -> str:
    known = CORPORA.get(corpus)
    about = f"text like its training data ({known.description})" if known else f"text like that of {corpus}"
    return (
        f"For translating {about} from {language_name(source)} to {language_name(target)}, on machines without a GPU, "
        "and for trying this project out."
    )


def _limits(data: Data, positions: int) -> list[str]:
    return [
        f"It has seen {data.lines['train']:,} pairs of `{data.corpus}` and nothing else: other kinds of text come out "
        "badly, fluent but wrong.",
        "Line by line: a sentence's neighbours are not looked at.",
        f"At most {positions - 1:,} subwords of a line are read; the rest is cut off, with a warning.",
        "Not for use where a wrong translation does harm: nobody has reviewed its output for that.",
    ]
