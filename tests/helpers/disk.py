"""A disk without room."""

import os
import tempfile
from pathlib import Path

import pytest

needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a temporary file takes no byte; its name is there, as on a disk that is full."""
    make = tempfile.mkstemp

    def on_a_full_disk(**options):
        descriptor, name = make(**options)
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(tempfile, "mkstemp", on_a_full_disk)
