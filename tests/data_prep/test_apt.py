"""Fetching through apt, with a program in its place that answers from a folder."""

from __future__ import annotations

import pytest

from data_prep import apt
from lite_transformer.errors import DataError

# Knows the packages and indexes whose files lie in $MIRROR; `update` is what makes the indexes known.
APT_GET = """#!/bin/sh
echo "$@" >> "$MIRROR/calls"
case "$*" in
  *Dir::State*indextargets*) ls -d "$MIRROR"/known_* "$MIRROR"/mirror_*;;
  *indextargets*) ls -d "$MIRROR"/known_*;;
  *update*) test -d "$PWD/lists/partial";;
  download*) shift; for name in "$@"; do cp "$MIRROR/$name"_* . || { echo "E: no $name" >&2; exit 100; }; done;;
esac
"""
HELPER = "#!/bin/sh\ntest $1 = cat-file && tr a-z A-Z < $2\n"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The folder that the false apt-get takes everything from."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("apt-get", APT_GET), ("apt-helper", HELPER)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("MIRROR", str(folder))
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr(apt, "APT_HELPER", programs / "apt-helper")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_packages_are_downloaded_once(tmp_path, mirror):
    for name in ("one_1_all.deb", "two_1_all.deb"):
        (mirror / name).write_text(name)
    apt.download_packages(["one"], tmp_path)
    (tmp_path / "one_1_all.deb").write_text("kept")
    apt.download_packages(["one", "two"], tmp_path)
    apt.download_packages(["one", "two"], tmp_path)
    assert (mirror / "calls").read_text().splitlines() == ["download one", "download two"]
    assert (tmp_path / "one_1_all.deb").read_text() == "kept"
    assert names(tmp_path) == ["mirror", "one_1_all.deb", "programs", "two_1_all.deb"]


def test_failure_names_reason_and_remedy(tmp_path, mirror, monkeypatch):
    with pytest.raises(DataError, match=r"apt-get download failed \(E: no one\)\. On .* apt-get download one; "):
        apt.download_packages(["one"], tmp_path)
    assert not list(tmp_path.glob("*.deb"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"apt-get download: cannot be run on this machine \(No such file"):
        apt.download_packages(["one"], tmp_path)


def test_indexes_of_the_machine_come_first(tmp_path, mirror):
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("known_Translation-en.lz4", "known_Packages", "known_Sources", "mirror_Packages"):
        (mirror / name).write_text(name)
    for _ in range(2):
        apt.fetch_indexes(("Translation-en", "Packages"), folder)
    assert names(folder) == ["known_Packages", "known_Translation-en"]
    assert (folder / "known_Translation-en").read_text() == "KNOWN_TRANSLATION-EN.LZ4"
    assert len((mirror / "calls").read_text().splitlines()) == 1


def test_missing_indexes_come_from_the_mirror(tmp_path, mirror):
    folder = tmp_path / "out"
    folder.mkdir()
    (mirror / "known_Packages").write_text("p")
    (mirror / "mirror_Translation-en.xz").write_text("t")
    apt.fetch_indexes(("Translation-en", "Packages"), folder)
    assert names(folder) == ["known_Packages", "mirror_Translation-en"]
    assert "Acquire::Languages=en" in (mirror / "calls").read_text().splitlines()[1]
