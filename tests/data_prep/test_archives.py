"""Archives as streams: what is refused, what is named, how little is kept."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zipfile

import pytest

from data_prep.archives import iterate_member_lines, iterate_members, open_member
from lite_transformer.errors import DataError

FILES = {
    "a/one.txt": b"eins\nzwei\n",
    "a/two.txt": b"drei\n" * 50000,
    "three.gz": gzip.compress(b"vier\nf\xc3\xbcnf\n"),
}


def write_tar(path, files=FILES, extra=()):
    mode = {".tgz": "w:gz", ".tar": "w", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member)
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def write_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as container:
        for name, content in files.items():
            container.writestr(name, content)
    return path


@pytest.mark.parametrize("ending", ["tgz", "tar", "tar.bz2", "tar.xz", "zip"])
def test_members_come_in_order_with_their_bytes(tmp_path, ending):
    path = (write_zip if ending == "zip" else write_tar)(tmp_path / f"x.{ending}")
    assert {name: stream.read() for name, stream in iterate_members(path)} == FILES
    assert list(iterate_member_lines(path, "a/one.txt")) == ["eins", "zwei"]
    assert list(iterate_member_lines(path, "three.gz")) == ["vier", "fünf"]  # decompressed on the way
    with open_member(path, "./a/two.txt") as stream:
        assert stream.readline() == b"drei\n"


def test_missing_member_lists_what_is_there(tmp_path):
    with pytest.raises(DataError, match=r"x\.tgz: no member b\.txt; it has a/one\.txt, a/two\.txt, three\.gz"):
        list(iterate_member_lines(write_tar(tmp_path / "x.tgz"), "b.txt"))


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:/evil"])
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_names_outside_the_folder_are_refused(tmp_path, name, write):
    path = write(tmp_path / ("x.tar" if write is write_tar else "x.zip"), {name: b"x"})
    with pytest.raises(DataError, match=r"member '.*evil' points outside the archive's folder"):
        list(iterate_members(path))


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (link("a/link", "/etc/passwd"), "'a/link' is a link"),
        (link("a/hard", "a/one.txt", tarfile.LNKTYPE), "'a/hard' is a link"),
        (link("a/fifo", "", tarfile.FIFOTYPE), "'a/fifo' is no plain file"),
    ],
)
def test_links_and_devices_are_refused(tmp_path, member, message):
    with pytest.raises(DataError, match=message):
        list(iterate_members(write_tar(tmp_path / "x.tgz", extra=[member])))


def test_link_in_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as container:
        member = zipfile.ZipInfo("a/link")
        member.external_attr = 0o120777 << 16
        container.writestr(member, "/etc/passwd")
    with pytest.raises(DataError, match="'a/link' is a link"):
        list(iterate_members(tmp_path / "x.zip"))


@pytest.mark.parametrize("ending", ["tgz", "tar", "tar.bz2", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_archive_is_named(tmp_path, ending, share):
    path = (write_zip if ending == "zip" else write_tar)(tmp_path / f"x.{ending}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share) | 1])
    with pytest.raises(DataError, match=r"x\.\S+?(, a/two\.txt)?: truncated or damaged archive \(.*fetch it again"):
        for _, stream in iterate_members(path):
            stream.read()


def test_damage_inside_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tgz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum at the end
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tgz: truncated or damaged"):
        list(iterate_members(path))
    path = write_tar(tmp_path / "y.tar", {"three.gz": FILES["three.gz"][:-5]})
    with pytest.raises(DataError, match=r"y\.tar, three\.gz: truncated or damaged"):
        list(iterate_member_lines(path, "three.gz"))


@pytest.mark.parametrize("ending", ["tgz", "tar"])
def test_damage_met_while_a_large_member_is_read_names_it(tmp_path, ending):
    path = write_tar(tmp_path / f"x.{ending}", {"large": random.Random(1).randbytes(3 << 20)})
    path.write_bytes(path.read_bytes()[: 2 << 20])
    with pytest.raises(DataError, match=rf"x\.{ending}, large: truncated or damaged archive \("):
        for _, stream in iterate_members(path):
            while stream.read(1000):
                pass


def test_checksum_at_the_end_is_read(tmp_path):
    # the archive's last block is read in full without touching what comes after it
    content = write_tar(tmp_path / "x.tar").read_bytes()
    packed = bytearray(gzip.compress(content.ljust(1 << 20, b"\0")))
    packed[-6] ^= 1
    (tmp_path / "x.tgz").write_bytes(packed)
    with pytest.raises(DataError, match=r"x\.tgz: truncated or damaged"):
        list(iterate_members(tmp_path / "x.tgz"))


def test_line_that_is_no_utf8_names_member_and_line(tmp_path):
    path = write_tar(tmp_path / "x.tgz", {"t.txt": b"a\n\xff\n"})
    with pytest.raises(DataError, match=r"x\.tgz:t\.txt, line 2: not UTF-8"):
        list(iterate_member_lines(path, "t.txt"))
