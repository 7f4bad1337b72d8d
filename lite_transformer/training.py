"""Training an experiment file with fairseq: reading it strictly, checking its data, one or more processes, resuming.

fairseq does the training. This module takes away its traps: options that nobody reads, a folder that is half a data
set, a batch that grows with the number of GPUs, processes that each train a copy of their own, and a checkpoint that
was cut off while it was written.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import logging
import math
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fairseq
import numpy as np
import torch
import yaml
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import omegaconf_no_object_check
from fairseq.registry import REGISTRIES
from fairseq.tasks import FairseqTask
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lite_transformer import __version__
from lite_transformer.compression.packed import is_packed
from lite_transformer.compression.training import TASK_PREFIX
from lite_transformer.errors import CheckpointError, ConfigError, DataError, UnknownArchitectureError
from lite_transformer.models.architectures import ARCHITECTURES
from lite_transformer.models.safe_load import load_checkpoint

logger = logging.getLogger(__name__)

# OmegaConf brings PyYAML, which has no types of its own.

PACKAGE_DIR = Path(__file__).parent
CONFIG_DIR = PACKAGE_DIR.parent / "configs"

# What `lite-transformer prepare` needs besides the name of a corpus.
_SOURCE_OF_CORPUS = {"embedded": "", "multi30k": " --source FOLDER_OF_RAW_FILES"}

# Corpora of one language: an experiment's name begins with its corpus's.
_LANGUAGE_MODEL_CORPORA = ("wikitext103", "wikitext2", "linux_docs")

# fairseq's loggers that tell a user nothing.
_CHATTER = ("fairseq.tasks.fairseq_task", "fairseq.data.iterators")

# Longer log records (the whole configuration, the whole model) go to the log file only.
_LONGEST_CONSOLE_RECORD = 1500


def register() -> None:
    """Makes fairseq know our models and tasks, as its --user-dir does.

    fairseq skips a user-dir whose package is already imported, which it always is here.
    """
    for folder in ("tasks", "criterions", "optim", "models"):
        for file in sorted((PACKAGE_DIR / folder).glob("*.py")):
            name = f"lite_transformer.{folder}"
            importlib.import_module(name if file.stem == "__init__" else f"{name}.{file.stem}")


# --- the experiment file -------------------------------------------------------------------------------------------


def known_configs() -> dict[str, Path]:
    """Experiments by name: those of the checkout, and of ``configs`` in the working folder."""
    found: dict[str, Path] = {}
    for folder in (CONFIG_DIR, Path.cwd() / "configs"):
        found |= {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return dict(sorted(found.items()))


def find_config(name: str) -> Path:
    """The experiment file of that name or path. Raises ConfigError, which lists the known ones."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path.resolve()
        if path.parent != Path():
            raise ConfigError(f"there is no experiment file {name}")
    known = known_configs()
    if path.stem == name.removesuffix(".yaml") and path.stem in known:
        return known[path.stem].resolve()
    raise ConfigError(f"unknown experiment '{name}'. Known: {', '.join(known)}; or give the path of a YAML file")


def load_config(path: Path, overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> DictConfig:
    """The experiment with fairseq's defaults filled in, every option known and of its type.

    Args:
        overrides: Hydra's ``key=value``. An option that the file does not mention needs no leading '+'.
        settings: options with their values, set after the overrides.
    Raises: ConfigError that names the file or the option; UnknownArchitectureError.
    """
    register()
    file = read_config(path)
    hydra_init(path.stem)
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Hydra's advice about matching a schema by name: fairseq relies on it
            with initialize_config_dir(config_dir=str(path.parent), version_base="1.1"):
                config = compose(config_name=path.stem)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {_reason(error)}") from error
    changes = [*parse_overrides(overrides), *(settings or {}).items()]
    for key, value in changes:
        _override(config, key, value)
    # we registered ourselves; and a checkpoint should not name a folder of the machine it was trained on
    config.common.user_dir = None
    # fairseq's default is the number of visible GPUs, whatever the experiment's batch is
    if OmegaConf.select(file, "distributed_training.distributed_world_size") is None:
        config.distributed_training.distributed_world_size = 1
    _check_names(config, path)
    _check_options(config, path, {key for key, _ in changes})
    try:
        add_defaults(config)
        with omegaconf_no_object_check():
            resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True, enum_to_str=True))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_reason(error)}") from error
    assert isinstance(resolved, DictConfig)
    OmegaConf.set_struct(resolved, True)
    return resolved


def read_config(path: Path) -> DictConfig:
    """The file as it is written, its groups and their fixed options known. Raises ConfigError."""
    try:
        file = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {_reason(error)}") from error
    if not isinstance(file, DictConfig):
        raise ConfigError(f"{path}: an experiment is a mapping of groups (task, model, ...) to their options")
    groups = FairseqConfig.__dataclass_fields__
    for group in map(str, file):
        if group in ("defaults", "hydra"):
            continue
        if group not in groups:
            raise ConfigError(f"unknown group '{group}' ({path}).{_suggest(group, groups)}")
        if _is_typed(group) and isinstance(file[group], DictConfig):
            _check_keys(group, map(str, file[group]), groups[group].type, str(path))
    return file


def parse_overrides(overrides: Iterable[str]) -> list[tuple[str, Any]]:
    """(option, value) pairs of Hydra's ``key=value``. Raises ConfigError that names what cannot be read."""
    pairs = []
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"'{text}' is not an override: write group.option=value, such as optimization.lr=[0.001]")
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise ConfigError(f"override '{text}' cannot be read: {_reason(error)}") from error
        if parsed.is_delete() or parsed.is_sweep_override():
            raise ConfigError(f"override '{text}': only group.option=value is understood here")
        pairs.append((parsed.key_or_group, parsed.value()))
    return pairs


def _override(config: DictConfig, key: str, value: Any) -> None:
    group, _, option = key.partition(".")
    if group not in config:
        raise ConfigError(f"unknown option '{key}'.{_suggest(group, config)} Groups: {', '.join(sorted(config))}")
    if not option and not isinstance(value, dict):
        value = {"_name": value}
        config[group] = None
    elif option and config[group] is None:
        raise ConfigError(f"option '{key}' has no group to belong to: give {group}._name, or {group}=NAME, first")
    if _is_typed(group):
        _check_keys(group, [option.partition(".")[0]] if option else list(value), config[group], "the command line")
    try:
        with open_dict(config):
            OmegaConf.update(config, key, value, merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"option '{key}={value}': {_reason(error)}") from error


def _is_typed(group: str) -> bool:
    """Whether a group has one fixed set of options (optimization), rather than a choice's own (model, optimizer)."""
    item = FairseqConfig.__dataclass_fields__.get(group)
    return item is not None and item.type is not Any


def _choices(group: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(every name of a group of choices, the configuration classes of those that have one)."""
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    if group == "model":
        classes = dict(MODEL_DATACLASS_REGISTRY)
        classes |= {arch: classes[model] for arch, model in ARCH_MODEL_NAME_REGISTRY.items() if model in classes}
        return {**MODEL_REGISTRY, **ARCH_MODEL_REGISTRY}, classes
    if group == "task":
        return TASK_REGISTRY, TASK_DATACLASS_REGISTRY
    if group in REGISTRIES:
        return REGISTRIES[group]["registry"], REGISTRIES[group]["dataclass_registry"]
    return {}, {}


def _check_names(config: DictConfig, path: Path) -> None:
    """Every chosen name exists: model, task, criterion, optimizer, scheduler."""
    for group in ("task", "model", "criterion", "optimizer", "lr_scheduler"):
        node = config.get(group)
        name = node if isinstance(node, str) else (node or {}).get("_name")
        names, _ = _choices(group)
        if name is None:
            raise ConfigError(f"{path}: {group}._name is missing")
        if name in names:
            continue
        if group == "model":
            raise UnknownArchitectureError(
                f"unknown architecture '{name}'.{_suggest(name, ARCHITECTURES)} Known: {', '.join(ARCHITECTURES)}"
            )
        raise ConfigError(f"unknown {group} '{name}'.{_suggest(name, names)} Known: {', '.join(sorted(names))}")


def _check_options(config: DictConfig, path: Path, changed: set[str]) -> None:
    """The options of every choice are options of it, and of its types; fairseq's own words name only a Python class."""
    for group in map(str, config):
        node = config.get(group)
        _, classes = _choices(group)
        if not isinstance(node, DictConfig) or node.get("_name") not in classes:
            continue
        known = classes[node["_name"]]
        for key in map(str, node):
            _check_keys(group, [key], known, "the command line" if f"{group}.{key}" in changed else str(path))
        try:
            OmegaConf.merge(known, node)
        except OmegaConfBaseException as error:
            raise ConfigError(f"option '{group}.{error.full_key}': {str(error.msg).splitlines()[0]}") from error


def _check_keys(group: str, keys: Iterable[str], known: Any, where: str) -> None:
    names = (
        {item.name for item in dataclasses.fields(known)}
        if dataclasses.is_dataclass(known)
        else {str(k) for k in known}
    )
    for key in keys:
        if key not in names | {"_name"}:
            raise ConfigError(f"unknown option '{group}.{key}' ({where}).{_suggest(key, names, f'{group}.')}")


def _suggest(name: str, known: Iterable[Any], prefix: str = "") -> str:
    close = difflib.get_close_matches(str(name), [str(item) for item in known], n=3)
    return f" Did you mean {' or '.join(prefix + item for item in close)}?" if close else ""


def _reason(error: BaseException) -> str:
    """The text of an error of Hydra, OmegaConf or YAML on one line, without its advice to programmers."""
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
    kept = [line for line in lines if line and not line.startswith(("object_type", "reference_type", "See "))]
    return "; ".join(kept) or type(error).__name__


# --- the data folder -----------------------------------------------------------------------------------------------


def check_data(config: DictConfig, experiment: str) -> None:
    """Every file that training opens is there and whole.

    Raises: DataError that names the first missing file and the command that makes it.
    """
    if "data" not in config.task:
        return
    if _is_language_modeling(config) and config.task.sample_break_mode == "eos" and int(np.__version__[0]) >= 2:
        raise ConfigError(
            "task.sample_break_mode=eos: fairseq 0.12 needs numpy 1 for one line a block. Take complete or complete_doc"
        )
    if not config.task.data or str(config.task.data) == "???":
        raise DataError(
            f"no data folder given: --data DIR. {_how_to_prepare(experiment, Path('data/NAME/bin'), config)}"
        )
    for text in str(config.task.data).split(os.pathsep):
        folder = Path(text)
        advice = _how_to_prepare(experiment, folder, config)
        if not folder.is_dir():
            raise DataError(f"no binarized data in {folder} (no such folder). {advice}")
        splits = ["train"]
        if not config.dataset.disable_validation:
            splits += str(config.dataset.valid_subset).split(",")
        if _is_language_modeling(config):
            names = ["dict.txt", *(f"{split}.{end}" for split in splits for end in ("idx", "bin"))]
        else:
            names = _files_of_pairs(config, folder, splits, advice)
        for name in names:
            if not (folder / name).is_file():
                raise DataError(f"no complete binarized data in {folder} ({name} is missing). {advice}")
            if (folder / name).stat().st_size == 0:
                raise DataError(f"no complete binarized data in {folder} ({name} is empty). {advice}")
        for name in (name for name in names if name.endswith(".idx")):
            _check_index(folder / name, advice)


def _is_language_modeling(config: DictConfig) -> bool:
    return str(config.task.get("_name")).removeprefix(TASK_PREFIX) == "language_modeling"


def _files_of_pairs(config: DictConfig, folder: Path, splits: Iterable[str], advice: str) -> list[str]:
    source, target = _languages(config, folder, advice)
    names = [f"dict.{language}.txt" for language in (source, target)]
    for split in splits:
        pair = f"{source}-{target}"
        if (
            not (folder / f"{split}.{pair}.{source}.idx").exists()
            and (folder / f"{split}.{target}-{source}.{source}.idx").exists()
        ):
            pair = f"{target}-{source}"
        names += [f"{split}.{pair}.{side}.{end}" for side in (source, target) for end in ("idx", "bin")]
    return names


def _languages(config: DictConfig, folder: Path, advice: str) -> tuple[str, str]:
    source, target = config.task.get("source_lang"), config.task.get("target_lang")
    if source and target:
        return source, target
    for file in sorted(folder.glob("train.*-*.*.idx")):
        first, _, second = file.name.split(".")[1].partition("-")
        return source or first, target or second
    raise DataError(f"no binarized data in {folder} (no train.SOURCE-TARGET.*.idx). {advice}")


def _check_index(index: Path, advice: str) -> None:
    """The text file is as long as its index says: fairseq-preprocess may have been interrupted."""
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    if index.read_bytes()[:9] != MMapIndexedDataset.Index._HDR_MAGIC:
        return  # another format of fairseq's, which checks itself
    try:
        reader = MMapIndexedDataset.Index(str(index))
        expected = int(reader._sizes.astype("int64").sum()) * reader.dtype().itemsize
    except Exception as error:  # a truncated index fails in as many ways as there are fields
        raise DataError(f"no complete binarized data in {index.parent} ({index.name} is cut off). {advice}") from error
    text = index.with_suffix(".bin")
    if text.stat().st_size != expected:
        raise DataError(
            f"no complete binarized data in {index.parent} ({text.name} has {text.stat().st_size} bytes, its index "
            f"says {expected}). {advice}"
        )


def _how_to_prepare(experiment: str, folder: Path, config: DictConfig) -> str:
    """The command that makes such a folder. ``lite-transformer prepare --dest DIR`` puts it into DIR/bin."""
    pair = f"{config.task.get('source_lang') or 'SRC'}-{config.task.get('target_lang') or 'TGT'}"
    dest = folder.parent if folder.name == "bin" else folder
    note = "" if folder.name == "bin" else f", then train with --data {folder / 'bin'}"
    if _is_language_modeling(config):
        corpus = next((name for name in _LANGUAGE_MODEL_CORPORA if experiment.startswith(name)), "linux_docs")
        return f"Run: lite-transformer prepare {corpus} --dest {shlex.quote(str(dest))}{note}"
    corpus = next((name for name in _SOURCE_OF_CORPUS if experiment.startswith(name)), "parallel")
    command = f"lite-transformer prepare {corpus}{_SOURCE_OF_CORPUS.get(corpus, ' --source FOLDER_OF_TEXT')}"
    return f"Run: {command} --pair {pair} --dest {shlex.quote(str(dest))}{note}"


# --- the model and the batch ---------------------------------------------------------------------------------------


def build_model(config: DictConfig) -> torch.nn.Module:
    """The untrained model of an experiment whose data folder is whole. Raises ConfigError listing what does not fit."""
    from fairseq import tasks

    logging.disable(logging.INFO)  # the same is logged again when training starts
    try:
        return tasks.setup_task(config.task).build_model(config.model)
    finally:
        logging.disable(logging.NOTSET)


def check_model_options(config: DictConfig) -> None:
    """Checks the options of one of our models without building it. Raises ConfigError that lists what does not fit."""
    _, classes = _choices("model")
    chosen: Any = classes.get(config.model._name)
    if hasattr(chosen, "resolved"):
        chosen.resolved(config.model)


def spread(config: DictConfig, processes: int) -> None:
    """Divides the experiment's batch among processes: max_tokens x update_freq x processes stays what the file says.

    Raises: ConfigError if update_freq cannot be divided.
    """
    before = config.distributed_training.distributed_world_size
    if processes == before:
        return
    divided = []
    for freq in config.optimization.update_freq:
        if freq * before % processes:
            factor = processes // math.gcd(freq * before, processes)
            tokens = config.dataset.max_tokens
            smaller = f"dataset.max_tokens={tokens // factor}" if tokens else "a smaller dataset.batch_size"
            raise ConfigError(
                f"the batch cannot be kept on {processes} processes: optimization.update_freq {freq} x {before} does "
                f"not divide by {processes}. Take another number of processes, or cut it finer: {smaller} "
                f"optimization.update_freq=[{freq * factor}]"
            )
        divided.append(freq * before // processes)
    config.optimization.update_freq = divided
    config.distributed_training.distributed_world_size = processes


# --- resuming ------------------------------------------------------------------------------------------------------


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: torch's zip format keeps its table of contents there."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def mend_last_checkpoint(config: DictConfig) -> None:
    """Puts the newest whole checkpoint in the place of a checkpoint_last.pt that a kill cut off or prevented.

    fairseq writes a numbered checkpoint first, atomically, and copies it to checkpoint_last.pt, which is not atomic.
    Raises: CheckpointError if checkpoint_last.pt is damaged and nothing can replace it.
    """
    if config.checkpoint.no_last_checkpoints or config.checkpoint.restore_file != "checkpoint_last.pt":
        return
    save_dir = Path(config.checkpoint.save_dir)
    last = save_dir / "checkpoint_last.pt"
    if last.exists() and is_whole(last):
        return
    numbered = [file for file in save_dir.glob("checkpoint*.pt") if re.fullmatch(r"checkpoint_?\d+(_\d+)?", file.stem)]
    numbered.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    newest = next((file for file in numbered if is_whole(file)), None)
    if newest is None:
        if last.exists():
            raise CheckpointError(f"{last} is cut off and there is no other checkpoint: delete it to start again")
        return
    logger.warning("%s %s; going on from %s", last, "is cut off" if last.exists() else "was never written", newest.name)
    copy = last.with_suffix(".pt.tmp")
    shutil.copyfile(newest, copy)
    copy.replace(last)


def check_same_model(config: DictConfig, save_dir: Path) -> None:
    """A folder with checkpoints goes on with the model it began with. Raises ConfigError naming what differs."""
    record = save_dir / "train.json"
    if not (save_dir / "checkpoint_last.pt").exists() or not record.exists():
        return
    with suppress(json.JSONDecodeError, KeyError):
        before = json.loads(record.read_text(encoding="utf-8"))["config"]["model"]
        now = OmegaConf.to_container(config.model)
        assert isinstance(now, dict)
        changed = [
            f"model.{key} is {now.get(key)}, was {before.get(key)}"
            for key in sorted({*before, *map(str, now)})
            if now.get(key) != before.get(key) and "dropout" not in key
        ]
        if changed:
            raise ConfigError(
                f"{save_dir} holds checkpoints of another model ({'; '.join(changed)}): "
                "give another --save-dir, or go on with the model it has"
            )


def check_first_weights(config: DictConfig, save_dir: Path) -> None:
    """What checkpoint.finetune_from_model names, if it is going to be read, can be. Raises CheckpointError."""
    name = config.checkpoint.get("finetune_from_model")
    if not name or (save_dir / "checkpoint_last.pt").exists():
        return
    if is_packed(Path(name)):
        raise CheckpointError(
            f"checkpoint.finetune_from_model={name} is a packed file, from which fairseq cannot go on. "
            f"Run: lite-transformer decompress {name} --out {Path(name).with_suffix('.pt')}, and give that"
        )
    load_checkpoint(Path(name))


# --- running -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """How many processes train together and which one this is; ``joined`` if a launcher (torchrun) started them."""

    size: int
    rank: int = 0
    local_rank: int = 0
    joined: bool = False

    @classmethod
    def from_environment(cls) -> ProcessGroup | None:
        """The group that torchrun announces, or None."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if not all(name in os.environ for name in names):
            return None
        rank, local_rank, size = (int(os.environ[name]) for name in names[:3])
        return cls(size, rank, local_rank, joined=True)


def run(config: DictConfig, group: ProcessGroup) -> None:
    """Trains until the experiment's end. Raises ConfigError, CheckpointError; fairseq's own errors otherwise."""
    cuda = torch.cuda.is_available() and not config.common.cpu
    training = config.distributed_training
    try:
        if group.size == 1:
            _train(config)
            return
        if not cuda:
            training.distributed_backend = "gloo"
            # fairseq gives torch's DistributedDataParallel a device number, which it refuses on a CPU
            training.ddp_backend = "legacy_ddp"
        training.distributed_world_size = group.size
        training.distributed_no_spawn = True
        # otherwise the first process sends what it loaded, and torch refuses to read the configuration in it
        config.checkpoint.load_checkpoint_on_all_dp_ranks = True
        if group.joined:
            training.distributed_init_method = "env://"
            training.distributed_rank = group.rank
            _train_in_group(group.local_rank, config, group.rank)
            return
        training.distributed_init_method = f"tcp://localhost:{_free_port()}"
        training.distributed_num_procs = group.size
        torch.multiprocessing.spawn(_train_in_group, args=(config, None), nprocs=group.size, join=True)
    except Exception as error:
        if "Cannot load model parameters from checkpoint" in str(error):
            raise ConfigError(
                f"{config.checkpoint.save_dir} holds checkpoints of another model: give another --save-dir"
            ) from error
        raise


def _train_in_group(local_rank: int, config: DictConfig, rank: int | None) -> None:
    """One process of a group; the rank is the number of the process unless given."""
    from fairseq.distributed.utils import distributed_main

    training = config.distributed_training
    training.distributed_rank = local_rank if rank is None else rank
    if rank is None:
        start_logging(Path(config.checkpoint.save_dir), training.distributed_rank)
    distributed_main(local_rank, _train, config, {})


def _train(config: DictConfig) -> None:
    register()
    from fairseq_cli import train as fairseq_train

    # fairseq keeps the best score on its functions, which outlive a training in the same process
    for function, names in ((checkpoint_utils.save_checkpoint, ["best"]), (fairseq_train.should_stop_early, ["best"])):
        for name in names:
            if hasattr(function, name):
                delattr(function, name)
    with _batches_of_the_first_epoch():
        fairseq_train.main(config)


@contextmanager
def _batches_of_the_first_epoch() -> Iterator[None]:
    """While it lasts, a training that goes on in a later epoch has the batches that it began with.

    fairseq puts sentences together into batches once and only shuffles the batches anew in each epoch; but how they are
    put together is drawn with the number of the epoch in which the program was started, so that a training resumed in
    epoch 2 would see other batches than one that was never interrupted. Where fairseq makes new batches for each epoch
    (data in several folders), its numbers stay.
    """
    original = FairseqTask.get_batch_iterator

    def begun_in_the_first(
        task: FairseqTask, dataset: Any, *, disable_iterator_cache: bool = False,
        update_epoch_batch_itr: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        if task.can_reuse_epoch_itr(dataset) and not (disable_iterator_cache or update_epoch_batch_itr):
            options["epoch"] = 1
        return original(
            task, dataset, disable_iterator_cache=disable_iterator_cache,
            update_epoch_batch_itr=update_epoch_batch_itr, **options,
        )  # fmt: skip

    FairseqTask.get_batch_iterator = begun_in_the_first
    try:
        yield
    finally:
        FairseqTask.get_batch_iterator = original


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_logging(save_dir: Path, rank: int = 0) -> None:
    """Log lines on stderr (from LOGLEVEL up) and all of them in train.log of the save folder; of the first process."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(fairseq|torch)(\.|$)")
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true but no accelerator")
    root = logging.getLogger()
    if rank != 0:
        root.setLevel(logging.WARNING)
        return
    layout = logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s", "%Y-%m-%d %H:%M:%S")
    root.setLevel(logging.INFO)
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
    for handler in root.handlers:
        handler.setLevel(os.environ.get("LOGLEVEL", "INFO").upper())
        handler.setFormatter(layout)
        handler.addFilter(_is_for_console)
    save_dir.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(save_dir / "train.log", encoding="utf-8")
    file.setFormatter(layout)
    root.addHandler(file)


def _is_for_console(record: logging.LogRecord) -> bool:
    if record.levelno > logging.INFO:
        return True
    return record.name not in _CHATTER and len(record.getMessage()) <= _LONGEST_CONSOLE_RECORD


# --- the record ----------------------------------------------------------------------------------------------------


def write_record(config: DictConfig, experiment: Path, group: ProcessGroup, command: Sequence[str]) -> Path:
    """Writes train.json into the save folder: configuration, commands so far, commit, versions, device."""
    path = Path(config.checkpoint.save_dir) / "train.json"
    previous: list[Any] = []
    with suppress(OSError, json.JSONDecodeError, KeyError):
        previous = json.loads(path.read_text(encoding="utf-8"))["runs"]
    cuda = torch.cuda.is_available() and not config.common.cpu
    run_entry = {
        "command": shlex.join(command),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _commit(),
        "processes": group.size,
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "versions": {
            "lite_transformer": __version__,
            "fairseq": fairseq.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    record = {
        "experiment": experiment.stem,
        "seed": config.common.seed,
        "runs": [*previous, run_entry],
        "config": OmegaConf.to_container(config, resolve=True, enum_to_str=True),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".json.tmp")
    unfinished.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def _commit() -> str | None:
    """The commit of the checkout this package lies in, with '-dirty' if files differ from it; None outside one."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE_DIR), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != PACKAGE_DIR.parent:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def hydra_command(path: Path, overrides: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The fairseq-hydra-train command line that trains the same."""
    raw = OmegaConf.load(path)
    words = ["fairseq-hydra-train", "--config-dir", str(path.parent), "--config-name", path.stem]
    words.append(f"common.user_dir={PACKAGE_DIR}")
    for key, value in [*parse_overrides(overrides), *settings.items()]:
        typed = _is_typed(key.partition(".")[0])
        known = OmegaConf.select(raw, key, throw_on_missing=False) is not None
        text = json.dumps(value).replace('"', "") if isinstance(value, (list, dict, bool)) else str(value)
        words.append(f"{'' if typed or known or key == 'task.data' else '++'}{key}={text}")
    return shlex.join(words)


__all__ = [
    "ProcessGroup",
    "build_model",
    "check_data",
    "check_same_model",
    "find_config",
    "hydra_command",
    "known_configs",
    "load_config",
    "mend_last_checkpoint",
    "read_config",
    "run",
    "spread",
    "start_logging",
    "write_record",
]
