"""The compiled engine as ctypes sees it: found beside this file, or not there at all."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lite_transformer.errors import ConfigError, UnsupportedInputError

VERSION = 3  # of the functions below and of the plan
_NAME = "_engine"
_ERROR_BYTES = 512


class Library:
    """Functions of a compiled engine. Raises: ConfigError if a file is no such engine, or one of another version."""

    def __init__(self, path: Path):
        try:
            found = ctypes.CDLL(str(path))
            found.lt_version.restype = ctypes.c_int
            version = found.lt_version()
        except (OSError, AttributeError) as error:
            raise ConfigError(f"{path} is no native engine ({error}). Install lite-transformer again") from None
        if version != VERSION:
            raise ConfigError(f"{path} has version {version}, {VERSION} is needed. Install lite-transformer again")
        pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        text, real = ctypes.c_char_p, ctypes.c_double
        self._functions: dict[str, Any] = {}
        for name, result, arguments in (
            ("lt_kernels", text, [number]),
            ("lt_open", pointer, [pointer, integer, pointer, integer, number, text, text, number]),
            ("lt_close", None, [pointer]),
            ("lt_step_bytes", integer, [pointer]),
            ("lt_threads", number, [pointer]),
            ("lt_kernels_of", text, [pointer]),
            ("lt_encode", pointer, [pointer, pointer, integer, integer, pointer, text, number]),
            ("lt_release", None, [pointer]),
            ("lt_restrict", number, [pointer, pointer, integer, text, number]),
            ("lt_step", number, [*[pointer] * 5, *[integer] * 3, *[pointer] * 3, text, number]),
            ("lt_search", pointer, [pointer, pointer, pointer, *[integer] * 5, real, text, number]),
            ("lt_search_step", number, [pointer, text, number]),
            ("lt_search_found", integer, [pointer, integer, integer, pointer, integer, pointer]),
            ("lt_search_release", None, [pointer]),
            ("lt_machine", number, [number, integer, integer, real, pointer, text, number]),
            ("lt_linear", number, [text, pointer, integer, integer, *[pointer] * 3, integer, pointer, text, number]),
        ):
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function

    def call(self, name: str, *arguments: Any) -> Any:
        """What a function that cannot fail returns."""
        return self._functions[name](*arguments)

    def try_to(self, name: str, *arguments: Any, error: Callable[[str], Exception]) -> Any:
        """What a function returns that gives 0 and a line if it fails. Raises: ``error`` of that line."""
        line = ctypes.create_string_buffer(_ERROR_BYTES)
        result = self._functions[name](*arguments, line, _ERROR_BYTES)
        if not result:
            raise error(line.value.decode("utf-8", "replace"))
        return result

    def machine(self, threads: int, rows: int, size_bytes: int, seconds: float) -> float:
        """int8 multiply-adds a second that the processors give to threads of nothing but matrix products.

        With one row, as many bytes of weights a second: how fast the threads read. With more rows and little memory:
        how fast they compute.

        Args:
            size_bytes: of the weights that all threads together go through again and again, each through its own part.
            seconds: that it takes, about.
        """
        speed = ctypes.c_double()
        self.try_to("lt_machine", threads, rows, size_bytes, seconds, ctypes.byref(speed), error=UnsupportedInputError)
        return speed.value

    def kernels(self) -> list[str]:
        """The instruction sets that this processor has, the fastest first; 'generic' is always the last."""
        names: list[str] = []
        while (name := self.call("lt_kernels", len(names))) is not None:
            names.append(name.decode())
        return names


@functools.cache
def compiled() -> Library | None:
    """The engine that was built with the package; None if none was."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(_NAME + suffix)
        if path.is_file():
            return Library(path)
    return None
