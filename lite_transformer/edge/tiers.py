"""Which engine runs a model: the native one where it can, else the portable one; or the one that is asked for."""

from __future__ import annotations

import logging
from pathlib import Path

from lite_transformer.edge.engine import Engine, OnnxEngine
from lite_transformer.edge.fixed import FixedEngine
from lite_transformer.edge.folder import Manifest
from lite_transformer.edge.native import NativeEngine, obstacle
from lite_transformer.errors import ConfigError

logger = logging.getLogger(__name__)

ENGINES = ("auto", "native", "portable")


def load_engine(name: str, folder: Path, manifest: Manifest, threads: int, restricted: bool = False) -> Engine:
    """The engine of that name, one of ENGINES; which one it is, and why, is logged.

    Args:
        restricted: whether steps will be restricted to some tokens, see `Engine.restrict`.
    Raises: ConfigError if there is no such engine, or the one that is asked for cannot run here.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine '{name}' is not one of {', '.join(ENGINES)}")
    if "fixed" in manifest.model:
        if name == "native":
            raise ConfigError("a model exported with --static-length runs in the portable engine alone")
        return FixedEngine(folder, manifest, threads)
    reason = obstacle(manifest) if name == "auto" else None
    if name == "native" or (name == "auto" and reason is None):
        native = NativeEngine(folder, manifest, threads)
        logger.info("native engine: %s, %s, threads: %d", manifest.precision, native.kernels, native.threads)
        return native
    logger.info("portable engine%s", f": the native one cannot run, {reason}" if reason else "")
    return OnnxEngine(folder, manifest, threads, restricted)
