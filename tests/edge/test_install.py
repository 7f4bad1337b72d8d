"""What an exported model needs is installed without torch and fairseq, and is enough."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools

from lite_transformer.edge import Translator
from tests.helpers.commands import ROOT

REQUIREMENTS = ROOT / "requirements-edge.txt"


def requirements() -> list[str]:
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_requirements_are_those_of_the_package(monkeypatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: asked.update(options))
    content = (ROOT / "setup.py").read_text(encoding="utf-8")
    exec(compile(content, str(ROOT / "setup.py"), "exec"), {"__file__": str(ROOT / "setup.py"), "__name__": "setup"})
    known = {*asked["install_requires"], *asked["extras_require"]["edge"]}
    assert len(requirements()) == 7
    assert set(requirements()) <= known
    assert not any(re.match("torch|ve-fairseq", line) for line in requirements())


@pytest.mark.slow
@pytest.mark.network
def test_a_fresh_environment(tiny, tmp_path):
    """The two commands of the requirements, without a compiler, and a translation by the portable engine."""
    source, python = tmp_path / "source", tmp_path / "venv" / "bin" / "python"
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("lite_transformer", "data_prep", "checkpoints"):
        shutil.copytree(ROOT / name, source / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    no_compiler = os.environ | {"CC": "false", "CXX": "false"}
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    for words in (["-r", REQUIREMENTS], ["--no-deps", source]):
        install = [python, "-m", "pip", "install", "-q", *words]
        done = subprocess.run(install, capture_output=True, text=True, env=no_compiler)
        assert done.returncode == 0, done.stderr
    folder = Path(tmp_path / "elsewhere")
    folder.mkdir()
    command = [python.parent / "lite-transformer", "translate", "--model", tiny.folder]
    done = subprocess.run(command, input="w1 w2\n\nw3\n", capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == Translator.load(tiny.folder, engine="portable").translate(["w1 w2", "", "w3"])
    assert "portable engine: the native one cannot run" in done.stderr
    missing = "import importlib.util as u; print([u.find_spec(name) for name in ('torch', 'fairseq', 'onnx')])"
    found = subprocess.run([python, "-c", missing], capture_output=True, text=True, cwd=folder)
    assert found.stdout.strip() == "[None, None, None]"
