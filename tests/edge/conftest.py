"""Tiny models in fairseq's shape, exported once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lite_transformer.edge import Translator
from tests.edge.models import exported, loaded_model
from tests.released.conftest import released, trained  # noqa: F401


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``loaded``: a model whose words are w0, w1, ...; ``folder``: it, exported in fp32."""
    loaded = loaded_model()
    return SimpleNamespace(loaded=loaded, folder=exported(loaded, tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same of a model with one matrix for both embeddings and the output."""
    loaded = loaded_model(share_all_embeddings=True)
    return SimpleNamespace(loaded=loaded, folder=exported(loaded, tmp_path_factory.mktemp("tied")))


@pytest.fixture
def translator(tiny: SimpleNamespace) -> Translator:
    """A new one for each test, so that it may be broken."""
    return Translator.load(tiny.folder)


@pytest.fixture
def copy(tiny: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of the exported folder, to be damaged."""
    import shutil

    return Path(shutil.copytree(tiny.folder, tmp_path / "copy"))
