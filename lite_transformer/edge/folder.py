"""The folder of an exported model: what is in it, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data_prep.io import read_json, write_json
from lite_transformer import file_list
from lite_transformer.edge.vocabulary import END, PAD, UNKNOWN
from lite_transformer.errors import CheckpointError, DataError
from lite_transformer.scoring.protocols import Search

# Of the folder; a program reads this one and older ones. 1: small tensors are in the graphs alone; 2: the step gives
# (B, N, ...) and not rows.
FORMAT = 3
KIND = "lite-transformer edge model"
MANIFEST_FILE = "edge.json"
ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
RESTRICTED_FILE = "decoder_restricted.onnx"
SHORTLIST_FILE = "shortlist.bin"  # only if the model was exported with one
WEIGHTS_FILE = "weights.bin"
PRECISIONS = ("fp32", "int8", "int4")
SPECIAL = {"pad": PAD, "end": END, "unknown": UNKNOWN}

_LEAST_TOKENS = 2  # that a model reads and writes: one, and the end of the sentence
_ENTRY = {"sha256": str, "size_bytes": int}  # of a file
_AGAIN = "Export the model again: lite-transformer export CHECKPOINT --out DIR"


@dataclass(frozen=True)
class Manifest:
    """What edge.json says.

    Attributes:
        format: see FORMAT. kind: KIND.
        precision: of the weights, one of PRECISIONS.
        source_language, target_language: two-letter codes.
        text: settings of the `TextPipeline` of either language.
        vocabulary: file of the source's and of the target's dictionary.
        special: ids of 'pad', 'end' (of a sentence; a target begins with it, too) and 'unknown': SPECIAL.
        max_source_tokens, max_target_tokens: what the model was built for, end of the sentence included.
        caches: shape of each cache of the decoding step, for one row before the first step.
        model: sizes of the architecture, for people and other engines.
        search: settings of `Search` that are taken unless others are asked for.
        parity: how far the exported model is from the original one.
        tensors: of weights.bin: offset in bytes, dtype and shape by name.
        files: sha256 and size_bytes by path, for every file but edge.json.
    """

    format: int
    kind: str
    precision: str
    source_language: str
    target_language: str
    text: dict[str, Any]
    vocabulary: dict[str, str]
    special: dict[str, int]
    max_source_tokens: int
    max_target_tokens: int
    caches: list[list[int]]
    model: dict[str, Any]
    search: dict[str, Any]
    parity: dict[str, Any]
    tensors: dict[str, Any]
    files: dict[str, Any]


def is_edge_folder(path: Path) -> bool:
    return (path / MANIFEST_FILE).is_file()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file in ``folder`` but its manifest."""
    return {name: asdict(file) for name, file in file_list.describe_files(folder, but=[MANIFEST_FILE]).items()}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST_FILE, asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Raises: CheckpointError if ``folder`` is no exported model, is of a newer format, or its manifest is damaged."""
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder. Give one that was made by: lite-transformer export")
    if not path.is_file():
        raise CheckpointError(f"{folder} is no exported model ({MANIFEST_FILE} is missing). {_AGAIN}")
    try:
        content = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{error} {_AGAIN}") from None
    except RecursionError:
        raise CheckpointError(f"{path}: cannot be read as JSON (it nests too deep). {_AGAIN}") from None
    if not isinstance(content, dict) or content.get("kind") != KIND or type(content.get("format")) is not int:
        raise CheckpointError(f"{path} is of another program: it does not say kind '{KIND}'. {_AGAIN}")
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"{folder} has format {content['format']}; this program reads formats up to {FORMAT}. Install a newer "
            "lite-transformer, or export the model with this one"
        )
    known = {field.name: field.type for field in fields(Manifest)}
    if content["format"] < 1 or set(content) != set(known):
        odd = ", ".join(sorted(set(content) ^ set(known))) or "format"
        raise CheckpointError(f"{path} is damaged: missing or foreign entries: {odd}. {_AGAIN}")
    manifest = Manifest(**content)
    problem = _problem(manifest)
    if problem:
        raise CheckpointError(f"{path} is damaged: {problem}. {_AGAIN}")
    return manifest


def _problem(manifest: Manifest) -> str | None:
    """What of a manifest cannot be; None if all is well."""
    for field in fields(Manifest):
        wanted = {"int": int, "str": str}.get(str(field.type), dict if str(field.type).startswith("dict") else list)
        if type(getattr(manifest, field.name)) is not wanted:
            return f"'{field.name}' is no {wanted.__name__}"
    if manifest.precision not in PRECISIONS:
        return f"unknown precision '{manifest.precision}'"
    if (name := file_list.outside(manifest.files)) is not None:
        return f"'{name}' is a file outside the folder"
    for name, entry in manifest.files.items():
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != _ENTRY:
            return f"it does not say what '{name}' is"
    sides = [manifest.vocabulary.get(side) for side in ("source", "target")]
    needed = [ENCODER_FILE, DECODER_FILE, WEIGHTS_FILE, *sides]
    if "fixed" not in manifest.model:
        needed.append(RESTRICTED_FILE)
    missing = [str(name) for name in needed if name not in manifest.files]
    if missing:
        return f"it lists no {missing[0]}"
    for language in (manifest.source_language, manifest.target_language):
        if not isinstance(manifest.text.get(language), Mapping):
            return f"it has no text settings for {language}"
    if manifest.special != SPECIAL:
        return f"its special tokens are not {SPECIAL}"
    for name in ("max_source_tokens", "max_target_tokens"):
        if getattr(manifest, name) < _LEAST_TOKENS:
            return f"'{name}' is {getattr(manifest, name)}, less than {_LEAST_TOKENS}"
    unknown = set(manifest.search) - {field.name for field in fields(Search)}
    if unknown:
        return f"unknown setting of the search '{min(unknown)}'"
    for name in ("source_vocabulary", "target_vocabulary"):
        if type(manifest.model.get(name)) is not int:
            return f"it does not say the model's '{name}'"
    return None


def check_folder(folder: Path) -> Manifest:
    """The manifest of a folder whose files are all there, and are what it says.

    Raises: CheckpointError naming the file that is missing, damaged, or not part of the model.
    """
    manifest = read_manifest(folder)
    files = {name: file_list.File(**entry) for name, entry in manifest.files.items()}
    file_list.check_files(folder, files, [MANIFEST_FILE], _AGAIN)
    return manifest
