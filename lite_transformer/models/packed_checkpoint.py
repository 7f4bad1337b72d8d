"""fairseq checkpoints as packed files and back."""

from __future__ import annotations

import dataclasses
import io
import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from data_prep.io import atomic_bytes
from data_prep.pipeline import RECORD_FILE, load_pipelines
from lite_transformer import __version__
from lite_transformer.compression import apply, packed, sizes
from lite_transformer.compression.packed import PackedModel, is_packed
from lite_transformer.compression.recipes import Quantization, Recipe
from lite_transformer.compression.training import TASK_OPTIONS, TASK_PREFIX
from lite_transformer.errors import CheckpointError, DataError, UnsupportedInputError

# Of the configuration: folders and files of the machine that trained, and accounts.
_PLACES: dict[str, dict[str, Any]] = {
    "task": {"data": ""},
    "checkpoint": {"save_dir": "checkpoints", "restore_file": "checkpoint_last.pt", "finetune_from_model": None},
    "common": {
        "user_dir": None, "log_file": None, "tensorboard_logdir": None, "wandb_project": None, "azureml_logging": False,
    },
}  # fmt: skip


def pack_checkpoint(
    path: Path,
    recipe: Recipe,
    texts: Mapping[str, bytes],
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> PackedModel:
    """A checkpoint, old or new, compressed by a recipe, with the files that its text needs.

    A packed file of the same recipe keeps its weights as they are: levels of levels would be others.

    Raises: CheckpointError if it cannot be read, or holds what cannot be packed.
    """
    from lite_transformer.models.safe_load import load_checkpoint

    if is_packed(path):
        model = packed.read(path)
        if model.meta.get("recipe") == recipe.to_json() and "part" not in model.meta:
            return dataclasses.replace(model, texts=texts)
    state = _as_fairseq_upgrades(load_checkpoint(path), {})
    try:
        tensors = apply.compress(state["model"], recipe, progress)
        return PackedModel(_meta(state, recipe), tensors, frozenset(filter(apply.is_embedding, tensors)), texts)
    except UnsupportedInputError as error:
        raise CheckpointError(f"{path} cannot be compressed: {error}") from None


def steps(path: Path, recipe: Recipe, final: PackedModel) -> list[dict[str, Any]]:
    """What each step of a recipe saves on a checkpoint, see `sizes.steps`; ``final`` is what it became."""
    dense = Recipe("fp32", "", Quantization("none"), Quantization("none"), rest="float32")
    unpruned = dataclasses.replace(recipe, prune=None)
    before, between = (pack_checkpoint(path, each, final.texts) for each in (dense, unpruned))
    return sizes.steps(before, between, final)


def texts_of(path: Path, data: Path) -> dict[str, bytes]:
    """What the text of a checkpoint's languages needs of its data folder: dictionaries, prepare.json, subword model.

    A folder that `prepare` did not make has dictionaries alone. Raises: DataError if one of them is missing.
    """
    from lite_transformer.models.safe_load import load_checkpoint

    config = load_checkpoint(path)
    options = config["cfg"]["task"] if config.get("cfg") is not None else vars(config["args"])
    names = [f"dict.{options[key]}.txt" for key in ("source_lang", "target_lang") if options.get(key)]
    names = names or sorted(file.name for file in data.glob("dict*.txt"))  # a language model has dict.txt
    if (data / RECORD_FILE).is_file():
        names += [RECORD_FILE, *sorted({name for pipeline in load_pipelines(data).values() for name in pipeline.files})]
    texts = {}
    for name in dict.fromkeys(names):
        try:
            texts[name] = (data / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"{data}: {name} cannot be read ({error.strerror or error}). Give the bin folder the model was "
                "trained on: --data DIR/bin"
            ) from None
    return texts


def write_texts(path: Path, folder: Path) -> list[Path]:
    """Writes the texts of a packed file into a folder, a data folder to translate with; returns their paths.

    Raises: CheckpointError if the file cannot be read or the folder not be written.
    """
    written = []
    for name, content in packed.read(path).texts.items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_bytes(target) as stream:
                stream.write(content)
        except OSError as error:
            raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from None
        written.append(target)
    return written


def write_checkpoint(path: Path, output: Path) -> None:
    """Writes a packed file as a checkpoint of its dequantized weights, atomically. Raises: CheckpointError."""
    state = read_state(path)
    content = io.BytesIO()  # into a file, torch's writer would turn a full disk into words of its own
    torch.save(state, content)
    try:
        with atomic_bytes(output) as stream:
            stream.write(content.getbuffer())
    except OSError as error:
        raise CheckpointError(
            f"cannot write {output}: {error.strerror or error}. The old file, if any, is kept"
        ) from None


def _as_fairseq_upgrades(state: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A state that was read without fairseq, as fairseq's own reading would have given it."""
    from fairseq import checkpoint_utils
    from fairseq.dataclass.utils import overwrite_args_by_name
    from omegaconf import OmegaConf

    for name, value in overrides.items():
        if state.get("args") is not None:
            setattr(state["args"], name, value)
    if state.get("cfg") is not None:
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
        overwrite_args_by_name(state["cfg"], dict(overrides))
    return checkpoint_utils._upgrade_state_dict(state)


def _meta(state: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    from omegaconf import OmegaConf

    extra = state.get("extra_state") or {}
    content: dict[str, Any] = {"made_by": f"lite_transformer {__version__}", "recipe": recipe.to_json()}
    if state.get("args") is not None:  # from before fairseq had configurations
        places = {name: value for group in _PLACES.values() for name, value in group.items()}
        content["args"] = _without(vars(state["args"]), places)
    else:
        groups: Any = state["cfg"]
        if OmegaConf.is_config(groups):
            groups = OmegaConf.to_container(groups, resolve=True, enum_to_str=True)
        content["config"] = {group: _without(options, _PLACES.get(group, {})) for group, options in groups.items()}
        content["config"]["task"] = _plain_task(content["config"]["task"])
    content["optimizer_history"] = state.get("optimizer_history") or []
    content["extra_state"] = {name: extra[name] for name in ("previous_training_time",) if name in extra}
    return _plain(content)


def _plain_task(options: dict[str, Any]) -> dict[str, Any]:
    """A task that trained by a recipe is the plain one afterwards: whoever loads the file need not know the other."""
    name = str(options.get("_name"))
    if not name.startswith(TASK_PREFIX):
        return options
    kept = {key: value for key, value in options.items() if key not in TASK_OPTIONS}
    return kept | {"_name": name.removeprefix(TASK_PREFIX)}


def _without(options: Any, places: Mapping[str, Any]) -> Any:
    """The options with the places of one machine replaced."""
    if not isinstance(options, dict):
        return options
    return options | {name: value for name, value in places.items() if name in options}


def _plain(content: Any) -> Any:
    """The content as JSON has it; what JSON has not (infinity, functions) becomes text."""
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    if isinstance(content, torch.Tensor) and content.numel() == 1:
        return _plain(content.item())
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError):
        return getattr(content, "__name__", str(content))
    return content


def state_of(model: PackedModel, name: str | Path) -> dict[str, Any]:
    """A packed model as the contents of a checkpoint, without optimizer state; see `safe_load.load_checkpoint`.

    Raises: CheckpointError if the file is a part of a model, or its metadata is no fairseq configuration.
    """
    if "part" in model.meta:
        raise CheckpointError(
            f"{name} holds only the core of a model, to measure its size: compress without --core-only to translate"
        )
    config, args, history = (model.meta.get(key) for key in ("config", "args", "optimizer_history"))
    if isinstance(config, dict) and all(isinstance(config.get(group), dict) for group in ("model", "task")):
        options: dict[str, Any] = {"args": None, "cfg": config}
    elif isinstance(args, dict) and not any(key.startswith("__") for key in args):
        options = {"args": Namespace(**args), "cfg": None}
    else:
        options = {}
    if not options or not isinstance(history, list):
        raise CheckpointError(f"{name} has no configuration to build its model from. Compress the checkpoint again")
    return {
        **options,
        "model": apply.dense(model.tensors),
        "criterion": None,
        "optimizer_history": history,
        "task_state": {},
        "extra_state": dict(model.meta.get("extra_state") or {}),
        "last_optimizer_state": None,
    }


def read_state(path: Path) -> dict[str, Any]:
    """`state_of` a packed file. Raises: CheckpointError."""
    return state_of(packed.read(path), path)


def fairseq_state(path: Path, data: Path) -> dict[str, Any]:
    """What fairseq's ``load_checkpoint_to_cpu`` would give for a packed file, with ``data`` as its data folder.

    Raises: CheckpointError, also if the folder's dictionaries are not those of the file.
    """
    model = packed.read(path)
    for name, content in model.texts.items():
        if name.startswith("dict.") and (data / name).is_file() and (data / name).read_bytes() != content:
            raise CheckpointError(
                f"{path} was made with another {name} than that of {data}: give the data folder of its training, or "
                f"take the dictionaries out of it with: lite-transformer decompress {path} --data-out DIR"
            )
    return _as_fairseq_upgrades(state_of(model, path), {"data": str(data)})
