#!/usr/bin/env python
"""Damaged and hostile packed files: each must be read, or refused with one line, in bounded time and memory.

  scripts/fuzz_packed.py                                       50,000 inputs, a few minutes
  scripts/fuzz_packed.py --inputs 200000 --seed 7 --record results/compression/fuzz_packed.json
  scripts/fuzz_packed.py --corpus tests/fixtures/packed        writes one small file of every kind of damage

Hashes find accidents, so most inputs here have right ones: a part is damaged first and the file is signed anew. Ends
with exit code 1 if any input raised anything but CheckpointError, or took more memory than the format allows.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _benchmark import provenance
from tqdm import tqdm

from data_prep.io import write_json
from lite_transformer.compression import container, packed
from lite_transformer.compression.packed import PackedModel
from lite_transformer.compression.tensors import Quantized, Raw, linear_levels
from lite_transformer.errors import CheckpointError

# What the free elements of a small file may take: 4 bytes each, as codes and decoded, and the program itself.
MEMORY_LIMIT_BYTES = 1 << 30
LONGEST_MESSAGE = 400

# The layout of FORMAT.md, written down a second time: a fault in the reader must not hide itself here.
_HEADER, _ENTRY = struct.Struct("<8sHHI32s"), struct.Struct("<48sIIQQ32s")

_NUMBERS = [0, 1, -1, 2, 7, 255, 256, 257, 65536, 2**31 - 1, 2**31, 2**32, 2**48, 2**63 - 1, 2**63, 2**64 - 1, 10**30]
_VALUES = [*_NUMBERS, None, True, False, 0.5, 1e308, "", "core", "rans", "gaps", "quantized", "same", [], {}, [[]]]
_VALUES += ["x" * 400, [3, 3], [2**31 - 1] * 4, [["rans", 10**12]], [["constant", 2**40]], "embed", "float16"]


def base_file() -> bytes:
    """A small file with every form, coding and way of writing zeros."""
    generator = np.random.default_rng(5)

    def codebook(shape: tuple[int, ...], levels: int, zeros: float) -> Quantized:
        zero = levels // 2
        values = np.linspace(-1, 1, levels).astype(np.float16)
        values[zero] = 0
        codes = np.clip(generator.normal(zero, levels / 8, shape), 0, levels - 1).astype(np.uint8)
        codes[generator.random(shape) < zeros] = zero
        return Quantized(codes, values)

    clustered = codebook((16, 128), 64, 0)
    clustered.codes[:, 20:] = 32
    embed = Quantized(
        generator.integers(0, 15, (20, 8)).astype(np.uint8), linear_levels(15), np.ones(20, np.float16), linear=True
    )
    tensors = {
        "embed": embed,
        "coded": codebook((30, 40), 16, 0),
        "masked": codebook((30, 40), 200, 0.5),
        "gaps": clustered,
        "constant": Quantized(np.zeros((3, 4), np.uint8), np.array([0.5, 0.25], np.float32), np.ones(3, np.float32)),
        "bias": Raw(np.linspace(-1, 1, 30, dtype=np.float16)),
        "flag": Raw(np.array([True, False])),
        "tied": embed,
    }
    model = PackedModel(
        {"config": {}}, tensors, frozenset({"embed", "tied"}), {"dict.de.txt": b"a 1\n", "dict.en.txt": b"a 1\n"}
    )
    return packed.pack(model)


# --- ways to damage a file -----------------------------------------------------------------------------------------


def contents(file: bytes) -> dict[str, bytes]:
    """The contents of its sections."""
    return {name: part.content for name, part in container.parse(io.BytesIO(file), len(file)).items()}


def signed(sections: dict[str, bytes]) -> bytes:
    """A file of these sections with right hashes, whatever the writer would say to their sizes."""
    bodies = [zlib.compress(content, 1) for content in sections.values()]
    rows = zip(sections.items(), bodies, strict=True)
    table = b"".join(
        _ENTRY.pack(name.encode(), 1, 0, len(body), len(content), hashlib.sha256(body).digest())
        for (name, content), body in rows
    )
    return _HEADER.pack(container.MAGIC, 1, len(sections), 0, hashlib.sha256(table).digest()) + table + b"".join(bodies)


def truncated(file: bytes, chance: random.Random) -> bytes:
    return file[: chance.randrange(len(file))]


def flipped_bits(file: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(file)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(len(file))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def other_bytes(file: bytes, chance: random.Random) -> bytes:
    """A run of bytes overwritten, inserted or taken out."""
    start = chance.randrange(len(file))
    length = chance.choice([1, 2, 4, 8, 64])
    kept = chance.choice([start, start + length])
    return file[:start] + chance.randbytes(chance.choice([0, length])) + file[kept:]


def noise(file: bytes, chance: random.Random) -> bytes:
    """Random bytes behind a right beginning."""
    return file[: chance.choice([0, 8, 16, 48])] + chance.randbytes(chance.choice([0, 1, 30, 200, 2000]))


def signed_section(file: bytes, chance: random.Random) -> bytes:
    """One section damaged, all hashes right."""
    sections = contents(file)
    name = chance.choice(list(sections))
    damage = chance.choice([truncated, flipped_bits, other_bytes])
    sections[name] = damage(sections[name], chance) if sections[name] else chance.randbytes(3)
    if chance.random() < 0.1:
        del sections[chance.choice(list(sections))]
    return signed(sections)


def signed_index(file: bytes, chance: random.Random) -> bytes:
    """Values of the index, or of the metadata, replaced by hostile ones, all hashes right."""
    sections = contents(file)
    name = chance.choice(["index", "index", "index", "index", "meta"])
    tree = json.loads(sections[name])
    for _ in range(chance.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            break
        node, key = chance.choice(places)
        if chance.random() < 0.15:
            del node[key]
        elif chance.random() < 0.3 and isinstance(node[key], int):
            node[key] += chance.choice([-1, 1, 8, 255])
        else:
            node[key] = copy.deepcopy(chance.choice(_VALUES))
    sections[name] = json.dumps(tree).encode()
    return signed(sections)


def _places(tree: Any):
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def signed_table(file: bytes, chance: random.Random) -> bytes:
    """A field of the table of sections replaced, the table's hash right: sizes, names, ways of compression."""
    magic, version, count, zero, _ = _HEADER.unpack_from(file)
    rows = [list(_ENTRY.unpack_from(file, _HEADER.size + number * _ENTRY.size)) for number in range(count)]
    bodies = file[_HEADER.size + count * _ENTRY.size :]
    row = chance.choice(rows)
    column = chance.randrange(6)
    if column == 0:
        row[0] = chance.choice([chance.choice(rows)[0], b"text/../../etc", b"\xff" * 48, b"", b"text/a/b/c", b"odd"])
    elif column == 5:
        row[5] = chance.randbytes(32)
    else:
        row[column] = chance.choice(_NUMBERS[:3] + _NUMBERS[3:16]) % (2**32 if column < 3 else 2**64)
    if chance.random() < 0.2:
        chance.shuffle(rows)
    if chance.random() < 0.1:
        version, count, zero = (chance.choice([value, chance.randrange(65536)]) for value in (version, count, zero))
    table = b"".join(_ENTRY.pack(*row) for row in rows)
    return _HEADER.pack(magic, version, count, zero, hashlib.sha256(table).digest()) + table + bodies


def signed_bomb(file: bytes, chance: random.Random) -> bytes:
    """Sections that inflate a thousandfold, deep JSON, and tensors without bytes, all hashes right."""
    sections = contents(file)
    kind = chance.randrange(4)
    if kind == 0:
        sections[chance.choice(list(sections))] = bytes(chance.choice([1 << 16, 1 << 20, 1 << 22]))
    elif kind == 1:
        sections[chance.choice(["index", "meta"])] = chance.choice([b"[" * 100_000, b'{"a":' * 50_000, b"1" * 100_000])
    elif kind == 2:
        sections["index"] = b'{"tensors":[' + b",".join([b"{}"] * chance.choice([1000, 100_000])) + b"]}"
    else:
        side = chance.choice([100, 1000, 4000, 2**20, 2**31 - 1])
        row = {"name": "huge", "group": "core", "shape": [side, side], "form": "quantized", "levels": 2}
        row |= {"level_dtype": "float16", "zeros": "symbol", "streams": [["constant", side * side]]}
        tree = json.loads(sections["index"])
        tree["tensors"].append(row)
        sections["index"] = json.dumps(tree).encode()
    return signed(sections)


Damage = Callable[[bytes, random.Random], bytes]
DAMAGES: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (
        truncated, flipped_bits, other_bytes, noise, signed_section, signed_index, signed_table, signed_bomb,
    )
}  # fmt: skip
# signed damage gets past the hashes, so there is more of it
_WEIGHTS = {"signed_section": 5, "signed_index": 6, "signed_table": 3}


# --- running -------------------------------------------------------------------------------------------------------


def outcome(file: bytes) -> str:
    """'read' or 'refused'; anything else is a fault, in words."""
    try:
        model = packed.unpack(file)
        for tensor in model.tensors.values():
            tensor.dense()
    except CheckpointError as error:
        text = str(error)
        return "refused" if "\n" not in text and 0 < len(text) <= LONGEST_MESSAGE else f"message {text[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "read"


def fuzz(inputs: int, seed: int) -> dict[str, Any]:
    """Outcomes of so many damaged files, by kind of damage, with the faults and the most time and memory taken."""
    base = base_file()
    names = list(DAMAGES)
    weights = [_WEIGHTS.get(name, 1) for name in names]
    chance = random.Random(seed)
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in names}
    faults: list[dict[str, str]] = []
    longest_seconds = 0.0
    for _ in tqdm(range(inputs), desc="fuzz", unit="input", disable=None):
        (name,) = chance.choices(names, weights)
        file = DAMAGES[name](base, chance)
        started = time.perf_counter()
        found = outcome(file)
        longest_seconds = max(longest_seconds, time.perf_counter() - started)
        outcomes[name][found if found in ("read", "refused") else "fault"] += 1
        if found not in ("read", "refused"):
            faults.append({"damage": name, "fault": found, "sha256": hashlib.sha256(file).hexdigest()})
    return {
        "inputs": inputs,
        "seed": seed,
        "outcomes": {name: dict(sorted(counter.items())) for name, counter in outcomes.items()},
        "faults": faults,
        "longest_seconds": round(longest_seconds, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def write_corpus(folder: Path) -> int:
    """One refused file of every kind of damage, and the whole one; returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    base = base_file()
    (folder / "whole.ltpack").write_bytes(base)
    for name, damage in DAMAGES.items():
        chance = random.Random(1)
        file = damage(base, chance)
        while outcome(file) != "refused" or len(file) > 8000:
            file = damage(base, chance)
        (folder / f"{name}.ltpack").write_bytes(file)
    return len(DAMAGES) + 1


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=50_000, metavar="N", help="how many (default 50,000)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the damage (default 1)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the outcomes as JSON")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="write a small corpus instead")
    words = list(sys.argv[1:] if words is None else words)
    args = parser.parse_args(words)
    if args.corpus is not None:
        print(f"{write_corpus(args.corpus)} files in {args.corpus}")
        return 0
    started = time.monotonic()
    result = fuzz(args.inputs, args.seed)
    result["seconds"] = round(time.monotonic() - started, 1)
    ok = not result["faults"] and result["peak_memory_bytes"] <= MEMORY_LIMIT_BYTES
    if args.record is not None:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.record, provenance("fuzz_packed.py", words, "cpu") | result)
    for name, counts in result["outcomes"].items():
        print(f"{name:<16} {', '.join(f'{what} {count:,}' for what, count in counts.items())}")
    for fault in result["faults"][:20]:
        print(f"fault: {fault}")
    print(
        f"{args.inputs:,} inputs in {result['seconds']} s, the longest {result['longest_seconds']} s, at most "
        f"{result['peak_memory_bytes'] / 1e6:.0f} MB: {'no fault' if ok else 'FAULTS'}"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
