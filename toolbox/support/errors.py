"""What a command prints of an error: one line, in words of ours; libraries print nothing."""

from __future__ import annotations

import contextlib
import linecache
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

OURS = ("solvers", "restoration", "quant", "export", "toolbox", "restobox", "typer", "click")


def in_a_line(error: Exception) -> str:
    """The error in one line. What a library says is named as such: it is no sentence of ours."""
    from solvers.inputs.errors import RestoboxError, first_line

    if hasattr(error, "format_message"):  # of the command line
        return " ".join(error.format_message().split())
    text = " ".join(str(error).split())
    if isinstance(error, RestoboxError):
        return text
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return (
            "there is not enough memory for this; give a smaller input, fewer samples, smaller"
            " tiles (--tile), or another device"
        )
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"{error.filename or 'a file'} can't be read or written: {error.strerror}"
    frame, number = list(traceback.walk_tb(error.__traceback__))[-1]
    library = str(frame.f_globals.get("__name__")).split(".")[0]
    line = linecache.getline(frame.f_code.co_filename, number)
    if text and library in OURS and (not line or line.lstrip().startswith("raise ")):
        return text
    return (
        f"this input led to an error in {library or 'a library'} that restobox doesn't know"
        f" ({type(error).__name__}: {first_line(error)[:200]}); check what was given, and please"
        " report it: RESTOBOX_DEBUG=1 shows where"
    )


class Said:
    """A stream that remembers the first error of writing to it, instead of raising it."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Any, *arguments: str) -> None:
        try:
            if self.error is None:
                call(*arguments)
        except OSError as error:
            self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_native(stream: Any) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Warnings and log lines of libraries are for developers; whatever concerns the user is said in
    the output.
    """
    if os.environ.get("RESTOBOX_DEBUG"):
        yield
        return
    warnings.simplefilter("ignore")
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with _quiet_native() if _is_native(sys.stderr) else contextlib.nullcontext():
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _quiet_native() -> Iterator[None]:
    """Native libraries print to the process's stderr, past Python's: it leads nowhere meanwhile,
    but Python's own goes where it went.
    """
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    encoding, was = sys.stderr.encoding, sys.stderr
    sys.stderr = open(os.dup(2), "w", 1, encoding, "backslashreplace")  # noqa: SIM115
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = was
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
