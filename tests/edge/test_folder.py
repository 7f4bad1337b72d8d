"""Every damage of an exported folder is found before anything of it is loaded, and named."""

from __future__ import annotations

import json

import pytest

from data_prep.io import sha256
from data_prep.text import TextPipeline
from lite_transformer.edge import Translator
from lite_transformer.edge.folder import FORMAT, MANIFEST_FILE, check_folder
from lite_transformer.edge.vocabulary import Vocabulary
from lite_transformer.errors import CheckpointError, DataError

FILES = ["encoder.onnx", "decoder.onnx", "weights.bin", "dict.txt"]


def change(folder, **entries):
    path = folder / MANIFEST_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | entries), encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(copy, name):
    path = copy / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=f"{name} has {len(content) - 1} bytes, edge.json says {len(content)}"):
        Translator.load(copy)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        Translator.load(copy)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing. Export the model again"):
        Translator.load(copy)


def test_foreign_files(copy):
    (copy / "model.pt").touch()
    with pytest.raises(CheckpointError, match=r"model\.pt is no part of the model"):
        Translator.load(copy)
    (copy / "model.pt").rename(copy / ".hidden")
    assert check_folder(copy).precision == "fp32"


def test_a_newer_format(copy):
    change(copy, format=FORMAT + 1, something="new")
    with pytest.raises(CheckpointError, match=f"has format {FORMAT + 1}; this program reads formats up to {FORMAT}"):
        Translator.load(copy)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"kind": "a toaster"}, "of another program"),
        ({"format": "1"}, "of another program"),
        ({"format": 0}, "missing or foreign entries: format"),
        ({"surplus": 1}, "missing or foreign entries: surplus"),
        ({"precision": "int3"}, "unknown precision 'int3'"),
        ({"caches": {}}, "'caches' is no list"),
        ({"files": {"../secret": {}}}, "outside the folder"),
        ({"files": {"/etc/passwd": {}}}, "outside the folder"),
        ({"files": {}}, "it lists no encoder.onnx"),
        ({"files": {"encoder.onnx": 3}}, "it does not say what 'encoder.onnx' is"),
        ({"files": {"encoder.onnx": {"sha256": "x"}}}, "it does not say what 'encoder.onnx' is"),
        ({"text": {"de": {}}}, "no text settings for en"),
        ({"special": {"pad": 1}}, "special tokens are not {'pad': 1, 'end': 2, 'unknown': 3}"),
        ({"format": True}, "of another program"),
        ({"max_source_tokens": True}, "'max_source_tokens' is no int"),
        ({"max_source_tokens": 1}, "'max_source_tokens' is 1, less than 2"),
        ({"max_target_tokens": 0}, "'max_target_tokens' is 0, less than 2"),
        ({"search": {"beam": 4, "depth": 1}}, "unknown setting of the search 'depth'"),
        ({"model": {"source_vocabulary": 44}}, "does not say the model's 'target_vocabulary'"),
    ],
)
def test_damaged_manifests(copy, entries, message):
    change(copy, **entries)
    with pytest.raises(CheckpointError, match=message):
        Translator.load(copy)


def test_manifests_that_are_none(copy, tmp_path):
    (copy / MANIFEST_FILE).write_text('{"kind"', encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        Translator.load(copy)
    (copy / MANIFEST_FILE).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        Translator.load(copy)
    (copy / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"no exported model \(edge.json is missing\)"):
        Translator.load(copy)
    with pytest.raises(CheckpointError, match="no such folder"):
        Translator.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"text": {"de": {"language": "de", "subword": "bpe"}, "en": {"language": "en"}}},
            "its subword model bpe/codes is empty or not listed",
        ),
        (
            {"text": {"de": {"language": "de", "subword": "bpe", "codes": "/etc/passwd"}, "en": {"language": "en"}}},
            "its subword model /etc/passwd is empty or not listed",  # and is not read
        ),
        ({"text": {"de": {"language": "de", "colour": 1}, "en": {"language": "en"}}}, "text settings cannot be used"),
        (
            {"model": {"source_vocabulary": 44, "target_vocabulary": 45}},
            r"of \[44, 44\] subwords, the model has \[44, 45\]",
        ),
        ({"caches": [[1, 2, 0]]}, "do not belong together"),
        ({"caches": [[4, 0, 3], "x", [4, 10**6, 10**6]]}, "do not belong together"),
    ],
)
def test_parts_that_do_not_fit(copy, entries, message):
    change(copy, **entries)
    with pytest.raises(CheckpointError, match=message):
        Translator.load(copy, engine="portable")


def replace(folder, name, content):
    """A file of other content, which the manifest takes for its own."""
    path = folder / name
    path.write_bytes(content)
    files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    change(folder, files=files | {name: {"sha256": sha256(path), "size_bytes": len(content)}})


def test_caches_are_those_of_the_graph(copy):
    caches = json.loads((copy / MANIFEST_FILE).read_text(encoding="utf-8"))["caches"]
    caches[0] = [*caches[0][:2], caches[0][2] + 1]
    change(copy, caches=caches)
    with pytest.raises(CheckpointError, match="do not belong together"):
        Translator.load(copy, engine="portable")


def test_a_graph_that_is_none(copy):
    replace(copy, "decoder.onnx", b"no graph")
    with pytest.raises(CheckpointError, match=r"decoder\.onnx: cannot be loaded"):
        Translator.load(copy, engine="portable")


def test_subwords_of_an_empty_file(copy):
    """subword_nmt would end the process."""
    (copy / "bpe").mkdir()
    replace(copy, "bpe/codes", b"")
    text = {"language": "de", "subword": "bpe"}
    change(copy, text={"de": text, "en": text})
    with pytest.raises(CheckpointError, match="its subword model bpe/codes is empty"):
        Translator.load(copy)
    with pytest.raises(DataError, match="codes: empty, so no file of BPE codes"):
        TextPipeline.from_json(text, copy).split("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("der 3\ndie\n", "line 2: no subword and count"),
        ("der 3\nder 2\n", "line 2: 'der' stands there a second time"),
        ("der x\n", "line 1: no subword and count"),
    ],
)
def test_dictionaries(tmp_path, text, message):
    path = tmp_path / "dict.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        Vocabulary(path)


def test_a_dictionary_is_read_as_fairseq_reads_it(tmp_path):
    from fairseq.data import Dictionary

    path = tmp_path / "dict.txt"
    path.write_text("der 3\n<unk> 2 #fairseq:overwrite\n@-@ 1\n\u2028x 1\n", encoding="utf-8")
    ours, theirs = Vocabulary(path), Dictionary.load(str(path))
    assert ours.symbols == theirs.symbols
    for line in ("der @-@", "der nobody", "<unk> der"):
        assert [*ours.encode(line), 2] == theirs.encode_line(line, add_if_not_exist=False).tolist()
    assert ours.decode([4, 3, 5, 2]) == theirs.string([4, 3, 5, 2])
