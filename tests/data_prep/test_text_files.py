"""Reading and writing text: encodings, lengths, compression, atomic writes."""

from __future__ import annotations

import gzip

import pytest

from data_prep import io
from lite_transformer.errors import DataError


def test_not_utf8_names_file_line_and_byte(tmp_path):
    path = tmp_path / "train.de"
    path.write_bytes(b"gut\n" + "schön\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.de, line 2: not UTF-8 \(byte 0xf6 at position 4\).*iconv"):
        io.read_lines(path)


def test_not_utf8_inside_gzip(tmp_path):
    path = tmp_path / "train.de.gz"
    path.write_bytes(gzip.compress(b"a\nb\n\xff\n"))
    with pytest.raises(DataError, match=r"train\.de\.gz, line 3: not UTF-8"):
        io.read_lines(path)


@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda data: b"no gzip at all\n"])
def test_damaged_gzip_is_named(tmp_path, damage):
    path = tmp_path / "train.de.gz"
    path.write_bytes(damage(gzip.compress(b"a line\n" * 1000)))
    with pytest.raises(DataError, match=r"train\.de\.gz: damaged gzip file"):
        io.read_lines(path)


def test_unequal_lengths_name_both_files_and_counts(tmp_path):
    (tmp_path / "train.de").write_text("a\nb\nc\n", encoding="utf-8")
    (tmp_path / "train.en").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.de has 3 lines, .*train\.en has 2\."):
        io.read_parallel(tmp_path / "train.de", tmp_path / "train.en")


def test_empty_files_are_refused(tmp_path):
    for language in ("de", "en"):
        (tmp_path / f"train.{language}").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="are empty"):
        io.read_parallel(tmp_path / "train.de", tmp_path / "train.en")


def test_only_line_feeds_end_a_line(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffone\u2028still one\r\ntwo\x0bstill two\n".encode())
    assert io.read_lines(path) == ["one\u2028still one", "two\x0bstill two"]


def test_last_line_without_line_feed_counts(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"one\n\ntwo")
    assert io.read_lines(path) == ["one", "", "two"]


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "text"
    io.write_lines(path, ["old"])

    def lines():
        yield "new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        io.write_lines(path, lines())
    assert io.read_lines(path) == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["text"]


def test_plain_file_is_found_before_compressed_one(tmp_path):
    for name in ("val.de.gz", "dev.de"):
        (tmp_path / name).touch()
    assert io.find_text(tmp_path, ["valid.de", "val.de", "dev.de"]) == tmp_path / "val.de.gz"
    assert io.find_text(tmp_path, ["test.de"]) is None


def test_pairs_come_one_by_one_and_unequal_lengths_are_named_at_the_end():
    pairs = io.iterate_parallel(iter("abc"), iter("xyz!"), names=["one", "two"])
    assert [next(pairs) for _ in range(3)] == [("a", "x"), ("b", "y"), ("c", "z")]
    with pytest.raises(DataError, match=r"one has 3 lines, two has 4\. Line n of one"):
        next(pairs)
