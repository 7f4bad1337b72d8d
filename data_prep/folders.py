"""Folders that appear whole or not at all, and that one process at a time works in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lite_transformer.errors import ConfigError, DataError


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the name ``path``, and the place of an older one, when the block ends without an error.

    Raises: ConfigError if it cannot be made or written.
    """
    out = path.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot make this folder ({error.strerror or error})") from None
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # mkdtemp makes folders for their owner only
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
            out.replace(old)
            try:
                partial.replace(out)
            except BaseException:
                old.replace(out)
                raise
            shutil.rmtree(old)
        else:
            partial.replace(out)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_folder(folder: Path, option: str) -> None:
    """Makes a folder. Raises: DataError that names the option which asked for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{option} {folder}: cannot make this folder ({error.strerror}). Give another {option}"
        ) from error


@contextlib.contextmanager
def locked(folder: Path, option: str, wait_seconds: float = 0.0) -> Iterator[int]:
    """Keeps a second process out of ``folder``; yields the lock's descriptor.

    The system releases the lock of a killed process when the ones that it handed the descriptor to have ended, too.

    Raises: DataError if another process still holds it after ``wait_seconds``.
    """
    with (folder / ".lock").open("w") as stream:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise DataError(
                        f"{folder}: another process is at work in this folder. Wait for it, or give another {option}"
                    ) from None
                time.sleep(0.2)
        yield stream.fileno()
