"""The packed file: exact for every bit width and shape, and one line for whatever is damaged."""

import hashlib
import io
import json
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_transformer.compression import bits, container, packed, rans
from lite_transformer.compression.packed import PackedModel
from lite_transformer.compression.tensors import Quantized, Raw, codes_of, gaps_before, linear_levels, streams_of
from lite_transformer.errors import CheckpointError, UnsupportedInputError
from tests.compression.models import codebook, same, small_model
from tests.helpers import commands
from tests.helpers.disk import fill_disk, needs_full_device

HOSTILE = commands.ROOT / "tests" / "fixtures" / "packed"
shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


# --- exactness -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(0, 700), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_bits_come_back(width, count, chance):
    values = np.array([chance.randrange(2**width) for _ in range(count)], np.uint8)
    data = bits.pack_bits(values, width)
    assert len(data) == -(-count * width // 8)
    np.testing.assert_array_equal(bits.unpack_bits(data, width, count), values)


def test_bits_beyond_one_chunk_come_back():
    values = (np.arange(bits._CHUNK + 11) % 8).astype(np.uint8)
    np.testing.assert_array_equal(bits.unpack_bits(bits.pack_bits(values, 3), 3, values.size), values)


def test_bits_have_one_spelling():
    assert bits.pack_bits(np.array([1, 2, 3], np.uint8), 3) == bytes([0b11010001, 0b0])
    with pytest.raises(CheckpointError, match="not zero"):
        bits.unpack_bits(bytes([0b11010001, 0b10]), 3, 3)
    with pytest.raises(CheckpointError, match="2 bytes are not 2 numbers"):
        bits.unpack_bits(b"ab", 3, 2)
    with pytest.raises(UnsupportedInputError, match="8 does not fit into 3 bits"):
        bits.pack_bits(np.array([8], np.uint8), 3)


@given(st.integers(1, 40), st.lists(st.integers(0, 400), min_size=1, max_size=5), st.integers(0, 2**32))
@settings(deadline=None)
def test_entropy_code_comes_back(lanes, lengths, seed):
    generator = np.random.default_rng(seed)
    streams = []
    for length in lengths:
        symbols = np.minimum(generator.geometric(generator.uniform(0.02, 0.98), length + 2) - 1, 255).astype(np.uint8)
        symbols[:2] = 0, 255  # two different ones at least
        frequencies = rans.quantized_frequencies(np.bincount(symbols, minlength=256))
        streams.append(rans.Stream(symbols, frequencies))
    data = rans.encode(streams, lanes)
    decoded = rans.decode(data, lanes, [(stream.frequencies, stream.symbols.size) for stream in streams])
    assert all(np.array_equal(a, b.symbols) for a, b in zip(decoded, streams, strict=True))
    for wrong in (data[:-2], data + b"\0\0", data[:-1]):
        with pytest.raises(CheckpointError, match="entropy code"):
            rans.decode(wrong, lanes, [(stream.frequencies, stream.symbols.size) for stream in streams])


def test_entropy_code_is_as_short_as_its_entropy():
    symbols = np.minimum(np.random.default_rng(0).geometric(0.3, 200_000) - 1, 255).astype(np.uint8)
    counts = np.bincount(symbols, minlength=256)
    share = counts[counts > 0] / symbols.size
    entropy_bytes = -(share * np.log2(share)).sum() * symbols.size / 8
    data = rans.encode([rans.Stream(symbols, rans.quantized_frequencies(counts))], 16)
    assert entropy_bytes < len(data) < 1.005 * entropy_bytes


@given(st.lists(st.integers(0, 10**7), min_size=2, max_size=256).filter(lambda counts: sum(map(bool, counts)) > 1))
def test_frequencies_are_complete(counts):
    frequencies = rans.quantized_frequencies(np.array(counts))
    assert int(frequencies.sum()) == rans.TOTAL
    assert [value > 0 for value in frequencies.tolist()] == [count > 0 for count in counts]


@given(shapes, st.integers(1, 8), st.booleans(), st.booleans(), st.floats(0, 1), st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_quantized_tensors_come_back(shape, width, linear, scaled, zeros, seed):
    generator = np.random.default_rng(seed)
    levels = 2**width - 1 if linear else int(generator.integers(1, 2**width + 1))
    codes = generator.integers(0, levels, shape).astype(np.uint8)
    codes = np.where(generator.random(shape) < zeros, np.uint8(levels // 2), codes).astype(np.uint8)
    values = linear_levels(levels) if linear else generator.normal(size=levels).astype(np.float16)
    if not linear:
        values[levels // 2] = 0
    scales = generator.random(shape[0]).astype(np.float32) if scaled and shape else None
    tensor = Quantized(codes, values, scales, linear)
    model = packed.unpack(packed.pack(PackedModel({}, {"a": tensor})))
    assert same(model.tensors["a"], tensor)
    assert model.tensors["a"].dense().tobytes() == tensor.dense().tobytes()


@given(shapes, st.sampled_from(["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]))
@settings(deadline=None)
def test_raw_tensors_come_back(shape, dtype):
    values = (np.arange(np.prod(shape, dtype=int)) * 37 % 251).astype(dtype).reshape(shape)
    model = packed.unpack(packed.pack(PackedModel({}, {"a": Raw(values)})))
    assert same(model.tensors["a"], Raw(values))


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("clustered", [False, True])
def test_sparse_tensors_come_back(zeros, clustered):
    tensor = codebook((300, 70), 64, zeros)
    if clustered:
        tensor.codes[5:280] = 32
    assert same(packed.unpack(packed.pack(PackedModel({}, {"a": tensor}))).tensors["a"], tensor)


def test_gaps_longer_than_a_symbol_come_back():
    places = np.array([0, 254, 255, 511, 1022, 2999])  # a gap of 255, and multiples of it, are the border cases
    gaps = gaps_before(places)
    assert gaps.tolist() == [0, 253, 0, 255, 0, 255, 255, 0, *[255] * 7, 191]
    expected = np.zeros(3001, np.uint8)
    expected[places] = 1
    codes = codes_of("gaps", iter([gaps, np.zeros(6, np.uint8)]), 3001, zero=0)
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize(
    ("gaps", "elements"), [([1, 255], 300), ([200, 200], 401), ([0, 255, 5], 262 - 1), ([4, 4], 11)]
)
def test_gaps_that_reach_beyond_the_tensor_are_refused(gaps, elements):
    values = np.zeros(sum(gap != 255 for gap in gaps) + (elements == 11), np.uint8)
    with pytest.raises(CheckpointError, match=r"beyond their tensor|do not belong together"):
        codes_of("gaps", iter([np.array(gaps, np.uint8), values]), elements, zero=0)


def test_mask_longer_than_its_tensor_is_refused():
    with pytest.raises(CheckpointError, match="a mask is longer than its tensor"):
        codes_of("mask", iter([np.array([0b10000001], np.uint8), np.zeros(2, np.uint8)]), 5, zero=0)


def test_whole_model_comes_back():
    model = small_model()
    file = packed.pack(model)
    found = packed.unpack(file)
    assert list(found.tensors) == list(model.tensors)
    assert all(same(found.tensors[name], tensor) for name, tensor in model.tensors.items())
    assert found.tensors["tied"] is found.tensors["embed"]
    assert (found.meta, found.embeddings, found.texts) == (model.meta, model.embeddings, model.texts)
    assert packed.pack(found) == file and b"text/dict.en.txt" not in file
    # every branch of the format is in this model
    sections = container.parse(io.BytesIO(file), len(file))
    rows = json.loads(sections["index"].content)["tensors"]
    assert {row["form"] for row in rows} == {"raw", "quantized", "same"}
    assert {row.get("zeros") for row in rows} == {None, "symbol", "mask", "gaps"}
    assert {stream[0] for row in rows for stream in row.get("streams", [])} == {"constant", "fixed", "rans"}


def test_zeros_take_the_shortest_form(monkeypatch):
    regular = codebook((200, 200), 64)
    regular.codes[:, 3:] = 32
    for tensor in (codebook((200, 200), 64, zeros=0.5), codebook((200, 200), 64), regular):
        sizes = {}
        for way in (["symbol"], ["mask"], ["gaps"], ["symbol", "mask", "gaps"]):
            monkeypatch.setattr(packed, "streams_of", lambda item, way=way, **_: streams_of(item, way))
            file = packed.pack(PackedModel({}, {"a": tensor}))
            assert same(packed.unpack(file).tensors["a"], tensor)
            sizes[tuple(way)] = len(file)
        assert sizes["symbol", "mask", "gaps"] <= 1.001 * min(sizes.values())
    assert max(sizes.values()) > 1.2 * min(sizes.values())


# --- what cannot be packed -----------------------------------------------------------------------------------------


def test_what_the_reader_would_refuse_is_not_written():
    for wrong, reason in (
        (lambda: Quantized(np.array([2], np.uint8), np.zeros(2, np.float16)), "code 2 of 2 levels is out of range"),
        (lambda: Quantized(np.zeros(2, np.uint8), np.zeros(2, np.float64)), "float16 or float32"),
        (lambda: Quantized(np.zeros((2, 2), np.uint8), np.zeros(2, np.float16), np.ones(3, np.float16)), "one a row"),
        (lambda: Quantized(np.zeros(2, np.uint8), np.zeros(3, np.float32), linear=True), "whole numbers"),
        (lambda: Raw(np.zeros(2, np.complex64)), "complex64"),
        (lambda: packed.pack(PackedModel({"x": float("nan")}, {})), "plain JSON"),
        (lambda: packed.pack(PackedModel({}, {}, texts={"../escape": b""})), "no name"),
    ):
        with pytest.raises(UnsupportedInputError, match=reason):
            wrong()
    void = Quantized(np.zeros((3000, 3000), np.uint8), np.zeros(1, np.float16))
    with pytest.raises(UnsupportedInputError, match="9,000,000 elements"):
        packed.pack(PackedModel({}, {"a": void}))


# --- hostile files -------------------------------------------------------------------------------------------------


def refused(file: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        packed.unpack(file)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300
    return text


def test_corpus_of_hostile_files_is_refused_in_one_line(tmp_path):
    files = sorted(HOSTILE.glob("*.ltpack"))
    assert len(files) == 9
    for file in files:
        if file.stem == "whole":
            assert len(packed.read(file).tensors) == 8
            continue
        with pytest.raises(CheckpointError) as caught:
            packed.read(file)
        text = str(caught.value)
        assert str(file) in text and "\n" not in text and text.endswith("Copy or compress the file again")


def test_every_truncation_is_refused():
    file = packed.pack(small_model())
    for size in [*range(0, 1400, 7), *range(1400, len(file), 97), len(file) - 1]:
        refused(file[:size])
    assert "longer than its sections" in refused(file + b"\0")


def test_every_flipped_bit_is_noticed():
    file = packed.pack(small_model())
    for place in [*range(8 * 48), *range(8 * 48, 8 * len(file), 211)]:
        damaged = bytearray(file)
        damaged[place // 8] ^= 1 << place % 8
        refused(bytes(damaged))


def sections_of(file: bytes) -> dict[str, bytes]:
    return {name: part.content for name, part in container.parse(io.BytesIO(file), len(file)).items()}


def test_other_versions_are_named():
    file = bytearray(packed.pack(small_model()))
    file[8:10] = struct.pack("<H", 7)
    assert "format version 7, and this program reads version 1" in refused(bytes(file))


def resigned(file: bytes, number: int, **changes) -> bytes:
    """The file with fields of one entry of its table changed, and the table's hash right again."""
    header, entry = struct.Struct("<8sHHI32s"), struct.Struct("<48sIIQQ32s")
    magic, version, count, zero, _ = header.unpack_from(file)
    rows = [list(entry.unpack_from(file, header.size + i * entry.size)) for i in range(count)]
    for field, value in changes.items():
        rows[number][["name", "method", "zero", "stored", "size", "digest"].index(field)] = value
    table = b"".join(entry.pack(*row) for row in rows)
    head = header.pack(magic, version, count, zero, hashlib.sha256(table).digest())
    return head + table + file[header.size + len(table) :]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stored": 2**63}, "cut off"),
        ({"stored": 1}, "longer than its sections"),
        ({"size": 2**62}, "claims 4,611,686,018,427,387,904 bytes"),
        ({"size": 100}, "does not inflate to the size it claims"),
        ({"method": 0}, "does not have the size it claims"),
        ({"method": 9}, r"compressed in an unknown way \(9\)"),
        ({"name": b"index"}, "twice the same"),
        ({"name": b"text/../../x"}, "a name that is none"),
        ({"zero": 1}, "damaged table"),
        ({"digest": bytes(32)}, r"section core.levels is damaged \(SHA-256 differs\)"),
    ],
)
def test_table_that_lies_is_refused(changes, reason):
    file = packed.pack(small_model())
    number = list(sections_of(file)).index("core.levels")
    with pytest.raises(CheckpointError, match=reason):
        packed.unpack(resigned(file, number, **changes))


def with_index(change) -> bytes:
    """The small model with its index changed, and every hash right."""
    sections = sections_of(packed.pack(small_model()))
    tree = json.loads(sections["index"])
    change({row["name"]: row for row in tree["tensors"]}, tree)
    return container.to_bytes(sections | {"index": json.dumps(tree).encode()})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows, tree: rows["fixed"].update(levels=300), "entry of tensor fixed is damaged"),
        (lambda rows, tree: rows["coded"].update(shape=[80, 51]), "do not have as many symbols"),
        (lambda rows, tree: rows["bias"].update(shape=[31]), "shorter than the index says"),
        (lambda rows, tree: rows["bias"].update(shape=[29]), "longer than the index says"),
        (lambda rows, tree: rows["bias"].update(shape=[2**31]), "entry of tensor bias is damaged"),
        (lambda rows, tree: rows["bias"].update(shape=[2**30]), "elements are claimed, at most"),
        (lambda rows, tree: rows["bias"].update(shape=[-30]), "entry of tensor bias is damaged"),
        (lambda rows, tree: rows["bias"].update(shape=[True] * 9), "entry of tensor bias is damaged"),
        (lambda rows, tree: rows["bias"].update(dtype="object"), "entry of tensor bias is damaged"),
        (lambda rows, tree: rows["bias"].update(code="import os"), "entry of tensor bias is damaged"),
        (lambda rows, tree: rows["bias"].update(name="coded"), "two tensors are called coded"),
        (lambda rows, tree: rows["tied"].update(same_as="tied"), "a tensor that is not there"),
        (lambda rows, tree: rows["tied"].update(shape=[16, 40]), "do not have the same shape"),
        (lambda rows, tree: rows["masked"]["streams"][1].__setitem__(1, 5), "the entropy code"),
        (lambda rows, tree: rows["masked"]["streams"][0].__setitem__(1, 5), "as many symbols as its shape"),
        (lambda rows, tree: rows["gaps"].update(zeros="symbol"), "entry of tensor gaps is damaged"),
        (lambda rows, tree: tree.update(tensors={}), "lists no tensors"),
        (lambda rows, tree: tree.update(same_texts=[]), "same_texts"),
        (lambda rows, tree: tree.update(same_texts={"../up": "dict.de.txt"}), "text ../up is to be the same as one"),
        (lambda rows, tree: tree.update(same_texts={"dict.en.txt": "dict.fr.txt"}), "text dict.en.txt is to be"),
        (lambda rows, tree: tree.update(same_texts={"bpe/codes": "dict.de.txt"}), "text bpe/codes is to be"),
        (lambda rows, tree: tree["tensors"].append(3), "no object"),
    ],
)
def test_index_that_lies_is_refused(change, reason):
    with pytest.raises(CheckpointError, match=reason):
        packed.unpack(with_index(change))


def test_codes_out_of_range_are_refused():
    sections = sections_of(packed.pack(PackedModel({}, {"a": codebook((6, 5), 200)})))
    damaged = sections | {"core.fixed": b"\xff" * 30}
    assert refused(container.to_bytes(damaged)) == "code 255 is out of range, there are 200 levels"


def test_mask_and_values_that_contradict_are_refused():
    sections = sections_of(packed.pack(small_model()))
    fixed = bytearray(sections["core.fixed"])
    fixed[:512] = b"\xff" * 512  # the mask of 'masked': now more elements than there are values
    assert "do not belong together" in refused(container.to_bytes(sections | {"core.fixed": bytes(fixed)}))


def test_levels_that_are_not_finite_are_refused():
    sections = sections_of(packed.pack(small_model()))
    levels = np.full(len(sections["core.levels"]) // 2, np.inf, np.float16).tobytes()
    assert "not finite" in refused(container.to_bytes(sections | {"core.levels": levels}))


def test_tables_that_do_not_sum_up_are_refused():
    sections = sections_of(packed.pack(small_model()))
    table = bytearray(sections["core.tables"])
    table[0] ^= 1
    assert "does not sum up" in refused(container.to_bytes(sections | {"core.tables": bytes(table)}))


def test_deep_json_and_bombs_are_refused():
    sections = sections_of(packed.pack(small_model()))
    assert "section meta is no JSON" in refused(container.to_bytes(sections | {"meta": b"[" * 100_000}))
    assert "section meta is no JSON object" in refused(container.to_bytes(sections | {"meta": b"[]"}))
    assert "section index is missing" in refused(container.to_bytes({"meta": b"{}"}))
    assert "unknown section core.more" in refused(container.to_bytes(sections | {"core.more": b"1"}))
    bomb = container.to_bytes(sections | {"core.values": bytes(4 << 20)})
    assert "longer than the index says" in refused(bomb)
    stored = len(container.parse(io.BytesIO(bomb), len(bomb))["core.values"].content)
    assert stored == 4 << 20 and len(bomb) > 4 << 20, "what inflates more than 64-fold is not deflated by the writer"


def test_a_folder_or_no_file_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            packed.read(path)
    assert not packed.is_packed(tmp_path / "none")


# --- writing -------------------------------------------------------------------------------------------------------


def test_file_is_written_and_read(tmp_path):
    path = tmp_path / "model.ltpack"
    size = packed.write(path, small_model())
    assert path.stat().st_size == size and packed.is_packed(path)
    assert list(packed.read(path).tensors) == list(small_model().tensors)
    sections, meta, rows = packed.read_index(path)
    assert len(rows) == 12 and meta == small_model().meta
    assert container.header_bytes(len(sections)) + sum(part.stored_bytes for part in sections.values()) == size


@needs_full_device
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.ltpack"
    path.write_bytes(b"old")
    fill_disk(monkeypatch)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left on device.*old file, if any, is kept"):
        packed.write(path, small_model())
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match="cannot write"):
        packed.write(tmp_path / "no folder" / "model.ltpack", small_model())


def test_reading_needs_neither_torch_nor_fairseq():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'fairseq', 'omegaconf']))"
    code = f"{blocked}; from pathlib import Path; from lite_transformer.compression import packed"
    commands.run(sys.executable, "-c", f"{code}; packed.read(Path({str(HOSTILE / 'whole.ltpack')!r}))")
