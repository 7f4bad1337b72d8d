"""Prepare, train, evaluate, record: every row of a table, each step only if it is not done.

What is done is known by what was computed, not by a file's name: a row is finished if there is a record of its task,
seed, data, decoding and of the settings that its experiment has now (their hash). A row that fails does not stop the
others.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data_prep.folders import locked, make_folder
from data_prep.io import read_json, write_json
from lite_transformer import results, training
from lite_transformer.errors import ConfigError, DataError, LiteTransformerError
from lite_transformer.reproduction.tables import Table, TableRow
from lite_transformer.scoring.protocols import Protocol, averaging
from lite_transformer.scoring.text_protocols import TextProtocol

logger = logging.getLogger(__name__)

SMOKE_EPOCHS = 2
SMOKE_DIVISOR = 8  # of channels
SMOKE_LAYERS = 2
SMOKE_SETTINGS = (f"optimization.max_epoch={SMOKE_EPOCHS}", "optimization.update_freq=[1]", "dataset.num_workers=0")
# Of a language model: short blocks, whose ends cut longer lines, and bands that a slice's few words fill.
SMOKE_WINDOW: dict[str, Any] = {"tokens_per_sample": 64, "context_window": 48, "sample_break_mode": "none"}
SMOKE_TEXT = (
    "model.decoder_embed_dim=32",
    "model.decoder_ffn_embed_dim=32",
    "model.adaptive_input_cutoff=[100,200]",
    "model.adaptive_softmax_cutoff=[100,200]",
    f"task.tokens_per_sample={SMOKE_WINDOW['tokens_per_sample']}",
    "dataset.max_tokens=512",
)
STATE_FILE = "reproduce.json"
_LOCK_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the user asked for.

    Attributes:
        rows, seeds: one run each; the table shows the other rows as well.
        out: folder of data, checkpoints, logs, table and plot.
        results: folder whose runs/ gets the records; None: as `results_of` says.
        source: folder of the corpus's original files; None: they are downloaded.
        overrides: KEY=VALUE for every training.
        smoke: a slice of the corpus, small models, two epochs.
        devices: options of `lite-transformer train` that say where; cpu: also evaluate without a GPU.
        commit: of the code, for the records; None: git knows.
    """

    table: Table
    rows: Sequence[TableRow]
    seeds: Sequence[int] = (1,)
    out: Path = Path("runs")
    results: Path | None = None
    source: Path | None = None
    overrides: Sequence[str] = ()
    smoke: bool = False
    devices: Sequence[str] = ()
    cpu: bool = False
    commit: str | None = None

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def task(self) -> str:
        """The records' task: a smoke run's can stand in no table of real ones."""
        return f"{self.table.task}-smoke" if self.smoke else self.table.task

    @property
    def average_last(self) -> int | None:
        count = self.table.protocol.average_last
        return min(count, SMOKE_EPOCHS) if count and self.smoke else count

    @property
    def protocol(self) -> Protocol | TextProtocol:
        """The table's; a smoke run of a language model has shorter windows."""
        protocol = self.table.protocol
        if self.smoke and isinstance(protocol, TextProtocol):
            return dataclasses.replace(protocol, **SMOKE_WINDOW)
        return protocol

    @property
    def decoding(self) -> str:
        """What evaluate writes into a score's ``decoding``."""
        if isinstance(self.protocol, TextProtocol):
            return averaging(self.average_last)
        return f"{self.protocol.search}, {averaging(self.average_last)}"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of one row: what it computes, and where its files go."""

    row: TableRow
    seed: int
    overrides: tuple[str, ...]
    settings: str
    out: Path

    @property
    def name(self) -> str:
        return f"{self.row.config}_seed{self.seed}"

    @property
    def save_dir(self) -> Path:
        return self.out / "runs" / self.name

    @property
    def log(self) -> Path:
        return self.out / "logs" / f"{self.name}.log"

    def __str__(self) -> str:
        return f"{self.row.name}, seed {self.seed}"


@dataclasses.dataclass
class Outcome:
    """How a row stands: the records of its runs, and why others failed (a text by run)."""

    row: TableRow
    records: dict[Path, results.RunRecord] = dataclasses.field(default_factory=dict)
    failures: dict[Run, str] = dataclasses.field(default_factory=dict)


# --- settings ------------------------------------------------------------------------------------------------------


@functools.cache
def settings_of(row: TableRow, overrides: tuple[str, ...]) -> str:
    """The hash of what the row's experiment computes with ``overrides``. Raises: ConfigError."""
    config = training.load_config(training.find_config(row.config), overrides, {"task.data": "none"})
    return results.settings_hash(_plain(config))


def _plain(config: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@functools.cache
def smoke_overrides(row: TableRow) -> tuple[str, ...]:
    """The row's architecture with an eighth of its channels and two layers a side, trained for two epochs."""
    model = training.load_config(training.find_config(row.config), ["task.data=none"]).model
    changes = list(SMOKE_SETTINGS)
    for name in ("encoder_embed_dim", "encoder_ffn_embed_dim", "decoder_ffn_embed_dim"):
        if model.get(name):
            # a multiple of 8: two branches of four heads
            changes.append(f"model.{name}={8 * math.ceil(model[name] / SMOKE_DIVISOR / 8)}")
    for side in ("encoder", "decoder"):
        if f"{side}_layers" not in model:
            continue
        changes.append(f"model.{side}_layers={min(model[f'{side}_layers'], SMOKE_LAYERS)}")
        if model.get(f"{side}_kernel_sizes"):
            changes.append(f"model.{side}_kernel_sizes={list(model[f'{side}_kernel_sizes'])[:SMOKE_LAYERS]}")
    if "tokens_per_sample" in model:
        changes += SMOKE_TEXT
    return tuple(text.replace(" ", "") for text in changes)


def overrides_of(plan: Plan, row: TableRow) -> tuple[str, ...]:
    """All overrides of a row's training, the user's last."""
    return (*(smoke_overrides(row) if plan.smoke else ()), *plan.overrides)


def is_changed(plan: Plan) -> bool:
    """Whether what is computed is not what the experiments say."""
    return plan.smoke or any(settings_of(row, tuple(plan.overrides)) != settings_of(row, ()) for row in plan.rows)


def results_of(plan: Plan) -> Path:
    """The folder of the records: results, or OUT/results for changed experiments, unless the user chose one."""
    return plan.results or (plan.out / "results" if is_changed(plan) else Path("results"))


def changes_of(plan: Plan) -> list[str]:
    """In what the runs differ from the experiments, a sentence each, for the head of the table."""
    changes = ["**Not the published experiments.**"] if is_changed(plan) else []
    if plan.smoke:
        units = "lines" if plan.table.is_of_language_models else "pairs"
        average = f", the last {plan.average_last} are averaged" if plan.average_last else ""
        changes.append(
            f"The first {plan.table.smoke_pairs} {units} of each split; of every architecture an eighth of its "
            f"channels and {SMOKE_LAYERS} layers a side; {SMOKE_EPOCHS} epochs{average}: the scores mean nothing."
        )
    if plan.overrides:
        changes.append(f"Every training with `{shlex.join(plan.overrides)}`.")
    return changes


# --- the chain -----------------------------------------------------------------------------------------------------


def reproduce(plan: Plan, folder: Path, on_change: Callable[[Sequence[Outcome]], object]) -> list[Outcome]:
    """Does what is not done yet; returns how every row of the table stands.

    Args:
        folder: of the records, as `results_of` says.
        on_change: called with all rows at the beginning and after each run, to write the table.
    Raises: DataError if the corpus cannot be prepared, if another process works in ``plan.out``, or if a record is
        damaged; ConfigError if an experiment cannot be read or overrides do not fit.
    """
    started = time.monotonic()
    runs = [
        Run(row, seed, changes, settings_of(row, changes), plan.out)
        for row in plan.rows
        for changes in [overrides_of(plan, row)]
        for seed in plan.seeds
    ]
    for name in ("logs", "runs"):
        make_folder(plan.out / name, "--out")
    with locked(plan.out, "--out", _LOCK_SECONDS) as lock:  # what a killed one started needs a moment to end
        logger.info("%s: %d runs in %s, records in %s", plan.table.title, len(runs), plan.out, folder / results.RUNS)
        _prepare(plan, lock)
        data = results.data_hashes(plan.data / "bin")
        outcomes = {row.name: Outcome(row) for row in plan.table.rows}
        _find_records(plan, folder, data, outcomes)
        on_change(list(outcomes.values()))
        for number, run in enumerate(runs, start=1):
            where = f"[{number}/{len(runs)}] {run}"
            outcome = outcomes[run.row.name]
            found = next((path for path, record in outcome.records.items() if record.seed == run.seed), None)
            if found is not None:
                logger.info("%s: measured before, %s", where, found)
                continue
            logger.info("%s: begun after %s; log: %s", where, _clock(started), run.log)
            try:
                # a row has one label, whoever measured its first seed
                label = next((record.row for record in outcome.records.values()), run.row.label)
                path = _measure(plan, run, label, folder, data, lock)
                outcome.records[path] = results.read_record(path)
                logger.info("%s: done after %s, %s", where, _clock(started), path)
            except LiteTransformerError as error:
                outcome.failures[run] = " ".join(str(error).split())
                logger.error("%s: failed after %s: %s", where, _clock(started), outcome.failures[run])
            on_change(list(outcomes.values()))
    return list(outcomes.values())


def _clock(started: float) -> str:
    seconds = int(time.monotonic() - started)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _prepare(plan: Plan, lock: int) -> None:
    """Makes DATA whole; what an earlier run did is kept. Raises: DataError."""
    table = plan.table
    words = ["prepare", table.corpus, *(["--pair", "-".join(table.pair)] if table.pair else [])]
    words += ["--dest", str(plan.data)]
    words += ["--source", str(plan.source)] if plan.source else []
    if plan.smoke:
        words += ["--limit", str(table.smoke_pairs)]
        words += ["--bpe-merges", str(table.smoke_merges)] if table.smoke_merges else []
    log = plan.out / "logs" / "prepare.log"
    logger.info("corpus %s in %s; log: %s", table.corpus, plan.data, log)
    _step(plan, words, log, lock)


def _find_records(plan: Plan, folder: Path, data: Mapping[str, str], outcomes: Mapping[str, Outcome]) -> None:
    """Puts every record of what the table's rows compute now into their outcomes."""
    records = {path: item for path, item in results.read_records(folder).items() if _is_of(item, plan, data)}
    for outcome in outcomes.values():
        # reading an experiment takes most of a second: only if there is a record that may be its own
        candidates = {path: item for path, item in records.items() if Path(item.config).stem == outcome.row.config}
        if outcome.row.config and candidates:
            settings = settings_of(outcome.row, overrides_of(plan, outcome.row))
            by_seed = {item.seed: path for path, item in candidates.items() if item.settings_sha256 == settings}
            outcome.records = {path: candidates[path] for path in sorted(by_seed.values())}


def _is_of(record: results.RunRecord, plan: Plan, data: Mapping[str, str]) -> bool:
    """Whether a record is of the plan's task, data and decoding."""
    return (record.task, record.data) == (plan.task, data) and any(
        (item.split, item.metric, item.decoding) == ("test", plan.table.metrics[-1], plan.decoding)
        for item in record.metrics
    )


def _measure(plan: Plan, run: Run, label: str, folder: Path, data: Mapping[str, str], lock: int) -> Path:
    """Trains and evaluates one run; returns its record's path. Raises: LiteTransformerError saying why not."""
    record = folder / results.RUNS / f"{run.name}.json"
    if record.exists():
        raise ConfigError(
            f"{record} is the record of another configuration or other data; move it away, or give --results DIR"
        )
    state = {"settings_sha256": run.settings, "seed": run.seed, "data": dict(data)}
    path = run.save_dir / STATE_FILE
    before = read_json(path) if path.is_file() else None
    if before is None and any(run.save_dir.glob("checkpoint*.pt")):
        raise ConfigError(
            f"{run.save_dir} has checkpoints of another program: delete the folder, or give another --out"
        )
    if before is not None and {key: before.get(key) for key in state} != state:
        raise ConfigError(f"{run.save_dir} was begun with other settings: delete the folder, or give another --out")
    if before is None or not before.get("trained"):
        make_folder(run.save_dir, "--out")
        write_json(path, state | {"trained": False})
        words = ["train", run.row.config, "--data", str(plan.data / "bin"), "--save-dir", str(run.save_dir)]
        _step(plan, [*words, "--seed", str(run.seed), *plan.devices, *run.overrides], run.log, lock)
        write_json(path, state | {"trained": True})
    words = ["evaluate", run.row.config, "--checkpoint", str(run.save_dir), "--data", str(plan.data / "bin")]
    words += ["--average-last", str(plan.average_last)] if plan.smoke and plan.average_last else []
    words += ["--macs-lengths", *map(str, plan.table.macs_lengths), *(["--cpu"] if plan.cpu else [])]
    words += ["--commit", plan.commit] if plan.commit else []
    if plan.table.is_of_language_models:
        for name, value in SMOKE_WINDOW.items() if plan.smoke else ():
            words += [f"--{name.replace('_', '-')}", str(value)]
    else:
        words += ["--output", str(run.save_dir / "test.txt")]
    words += ["--record", str(record)]
    _step(plan, [*words, "--task", plan.task, "--row", label], run.log, lock)
    return record


# --- processes -----------------------------------------------------------------------------------------------------


def _step(plan: Plan, words: Sequence[str], log: Path, lock: int) -> None:
    """Runs `lite-transformer WORDS`, its output appended to ``log``.

    The process holds the lock too and ends when this one does: a killed reproduction leaves no training behind that
    the next one would meet. Raises: DataError with the last line of the output if it fails.
    """
    environment = {"PYTHONWARNINGS": "ignore", **({"OMP_NUM_THREADS": "1"} if plan.smoke else {}), **os.environ}
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {shlex.join(['lite-transformer', *words])}\n")
        stream.flush()
        done = subprocess.run(
            [sys.executable, "-m", "lite_transformer.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[lock],
            preexec_fn=_end_with_parent,
        )
    if done.returncode:
        raise DataError(f"{_reason(log, done.returncode)}, see {log}")


def _end_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _reason(log: Path, code: int) -> str:
    """What the log's last line says of a process that ended with ``code``."""
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4000))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output").rstrip(".")
    return last if len(last) <= 500 else f"{last[:500]}..."
