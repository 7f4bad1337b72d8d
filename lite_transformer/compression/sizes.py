"""What a packed file's bytes are spent on, in two accountings: the paper's, core only, and all that a user ships."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lite_transformer.compression import container, packed
from lite_transformer.compression.packed import EMBEDDINGS, PackedModel
from lite_transformer.compression.tensors import Quantized, Tensor

FP32_BYTES = 4
# The paper's yardstick: Transformer base without embeddings.
TRANSFORMER_BASE_CORE_PARAMS = 44_138_496


def core_only(model: PackedModel) -> PackedModel:
    """The model without embeddings, output matrix and texts: the file that the paper's accounting measures."""
    kept = {name: tensor for name, tensor in model.tensors.items() if name not in model.embeddings}
    return replace(model, meta={**model.meta, "part": "core"}, tensors=kept, embeddings=frozenset(), texts={})


def report(path: Path) -> dict[str, Any]:
    """Sizes in bytes, parameters, bits and ratios of a packed file, as plain data.

    ``core`` counts every byte that is neither of ``embeddings.*`` nor of ``text/*``: header, table, metadata and index
    are the core's. ``everything`` is the file. Ratios are to fp32. Raises: CheckpointError.
    """
    sections, meta, rows = packed.read_index(path)
    model = packed.read(path)
    size = path.stat().st_size
    stored = {name: part.stored_bytes for name, part in sections.items()}
    embedding_bytes = sum(count for name, count in stored.items() if name.startswith(f"{EMBEDDINGS}."))
    text_bytes = sum(count for name, count in stored.items() if name.startswith("text/"))
    groups = {name: _weights(model, embeddings=name == EMBEDDINGS) for name in packed.GROUPS}
    core = _accounting(groups["core"]["parameters"], size - embedding_bytes - text_bytes)
    base = TRANSFORMER_BASE_CORE_PARAMS * FP32_BYTES
    return {
        "file": str(path),
        "size_bytes": size,
        "format_version": container.VERSION,
        "recipe": meta.get("recipe"),
        "part": meta.get("part", "everything"),
        "sections_bytes": {"header and table": container.header_bytes(len(sections))} | stored,
        "core": core | groups["core"] | {"times_smaller_than_transformer_base": round(base / core["bytes"], 2)},
        "embeddings": _accounting(groups[EMBEDDINGS]["parameters"], embedding_bytes) | groups[EMBEDDINGS],
        "texts_bytes": text_bytes,
        "everything": _accounting(sum(group["parameters"] for group in groups.values()), size),
        "tensors": [_tensor(row, model.tensors[row.name]) for row in rows],
    }


def _accounting(parameters: int, count: int) -> dict[str, Any]:
    return {
        "parameters": parameters,
        "fp32_bytes": parameters * FP32_BYTES,
        "bytes": count,
        "ratio": round(parameters * FP32_BYTES / count, 2) if count else None,
        "bits_per_parameter": round(8 * count / parameters, 3) if parameters else None,
    }


def _weights(model: PackedModel, embeddings: bool) -> dict[str, Any]:
    """Parameters of a part (shared ones once), how many of them are 0, and how many different values they can take."""
    chosen = {id(item): item for name, item in model.tensors.items() if (name in model.embeddings) == embeddings}
    weights = [item for item in chosen.values() if _is_weight(item)]
    parameters = sum(math.prod(item.shape) for item in weights)
    zeros = sum(_zeros(item) for item in weights)
    return {
        "parameters": parameters,
        "sparsity": round(zeros / parameters, 4) if parameters else None,
        "code_bits": sorted({_bits(item) for item in weights if isinstance(item, Quantized)}),
    }


def _is_weight(item: Tensor) -> bool:
    """Not a buffer such as fairseq's version numbers: floating-point and more than one number."""
    return isinstance(item, Quantized) or (item.values.dtype.kind == "f" and item.values.size > 1)


def _zeros(item: Tensor) -> int:
    if isinstance(item, Quantized):
        return 0 if item.zero is None else int(np.count_nonzero(item.codes == item.zero))
    return int(np.count_nonzero(item.values == 0))


def _bits(item: Quantized) -> int:
    return max(1, (item.levels.size - 1).bit_length())


def _tensor(row: packed.Described, item: Tensor) -> dict[str, Any]:
    elements = math.prod(item.shape)
    return row.to_json() | {"sparsity": round(_zeros(item) / elements, 4) if elements else None}


def steps(dense: PackedModel, quantized: PackedModel, final: PackedModel) -> list[dict[str, Any]]:
    """What each step of a recipe saves: the sizes in bytes of the files after it, core alone and everything.

    Args:
        dense: the model in fp32; every file deflates what it does not code.
        quantized: without pruning. final: with everything the recipe asks for.
    """
    rows: list[tuple[str, PackedModel, bool]] = [
        ("fp32, deflated", dense, True),
        ("quantized, codes of fixed width", quantized, False),
        ("and entropy-coded", quantized, True),
        ("and pruned: the file", final, True),
    ]
    return [
        {
            "step": name,
            "core_bytes": len(packed.pack(core_only(model), entropy)),
            "bytes": len(packed.pack(model, entropy)),
        }
        for name, model, entropy in rows
    ]
