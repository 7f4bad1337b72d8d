"""What Debian and Ubuntu machines can fetch by themselves and without root: packages and indexes, verified by apt."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_prep.folders import make_folder
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

APT_HELPER = Path("/usr/lib/apt/apt-helper")
COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", ".lz4", ".zst")  # how apt keeps indexes


def download_packages(packages: Sequence[str], folder: Path) -> None:
    """Puts the .deb files of packages into ``folder``, those that are not there yet, in the machine's version.

    Raises: DataError if apt-get is missing or fails; the text holds its reason and how to go on by hand.
    """
    wanted = [package for package in packages if not list(folder.glob(f"{package}_*.deb"))]
    if not wanted:
        return
    partial = _empty_folder(folder / ".partial-apt")
    advice = f"On a Debian or Ubuntu machine type: apt-get download {' '.join(packages)}; then add --source DIR"
    _apt(["apt-get", "download", *wanted], partial, advice)
    for path in sorted(partial.iterdir()):
        path.rename(folder / path.name)
        logger.info("%s: downloaded by apt-get", folder / path.name)
    shutil.rmtree(partial)


def fetch_indexes(names: Sequence[str], folder: Path) -> None:
    """Puts the machine's package indexes of these names into ``folder``, uncompressed; does nothing if some are there.

    Where the machine keeps no index of a name, all are fetched from its mirror, without touching the machine's own.

    Raises: DataError as ``download_packages``.
    """
    if any(path.is_file() and path.name.endswith(tuple(names)) for path in folder.glob("*")):
        return
    partial = _empty_folder(folder / ".partial-apt")
    lists = _empty_folder(partial / "lists")
    (lists / "partial").mkdir()
    own = ["-o", f"Dir::State::lists={lists.absolute()}/", "-o", f"Dir::Cache={partial.absolute()}/"]
    languages = ["-o", "Acquire::Languages=en"]
    update = f"apt-get {' '.join(languages)} update"
    advice = f"As root on a Debian or Ubuntu machine type: {update}; or copy its {' and '.join(names)} and add --source"
    for options in ([], own):
        if options:
            logger.info("this machine keeps no %s: fetching them from its mirror", " and ".join(names))
            _apt(["apt-get", *languages, *options, "update"], partial, advice)
        found = _indexes(names, [*languages, *options], partial, advice)
        if all(found.values()):
            break
    for path in (path for paths in found.values() for path in paths):
        text = partial / (path.stem if path.suffix in COMPRESSED else path.name)
        with text.open("wb") as stream:
            _apt([str(APT_HELPER), "cat-file", str(path)], partial, advice, stream.fileno())
        text.rename(folder / text.name)
        logger.info("%s: copied from apt", folder / text.name)
    shutil.rmtree(partial)


def _indexes(names: Sequence[str], options: Sequence[str], folder: Path, advice: str) -> dict[str, list[Path]]:
    """The index files that exist, by name, as apt calls them: deb.debian.org_..._Packages.lz4."""
    listed = _apt(["apt-get", *options, "indextargets", "--format", "$(FILENAME)"], folder, advice)
    paths = [Path(line) for line in listed.splitlines()]
    ends = {name: tuple(f"_{name}{ending}" for ending in ("", *COMPRESSED)) for name in names}
    return {name: sorted(p for p in paths if p.name.endswith(ends[name]) and p.is_file()) for name in names}


def _empty_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder, "--dest")
    return folder


def _apt(command: Sequence[str], folder: Path, advice: str, output: int = subprocess.PIPE) -> str:
    """What a command of apt, run in ``folder``, prints. Raises: DataError with its last line, then ``advice``."""
    what = " ".join(command[:2])
    try:
        done = subprocess.run(command, cwd=folder, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise DataError(f"{what}: cannot be run on this machine ({error.strerror}). {advice}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DataError(f"{what} failed ({reason}). {advice}")
    return done.stdout or ""
