"""The errors of restobox, and how a library's errors become them."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

# of such errors a user learns nothing: a parser met bytes that its author didn't think of
_SPEECHLESS = (
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
    struct.error,
    zlib.error,
)


MOST_SAID, MOST_QUOTED = 1500, 300  # letters


class RestoboxError(ValueError):
    """What restobox refuses, in one sentence: what was given, what is accepted, what to do.

    It is one line, whatever stands in a damaged file.
    """

    def __init__(self, text: str = ""):
        plain = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
            for c in " ".join(text[:MOST_SAID].split())
        )
        super().__init__(plain + (" ..." if len(text) > MOST_SAID else ""))


class InputError(RestoboxError):
    """A file or a value that is not accepted."""


class ModelError(RestoboxError):
    """A model folder, bundle, calibration set or quantized network that is not accepted."""


class UncalibratedError(ModelError):
    """A run that asks an exported or quantized network at times that it was not calibrated for."""


class ResourceError(RestoboxError):
    """More memory or disk than there is, or than may be used (:mod:`solvers.inputs.memory`)."""


class FullDiskError(ResourceError):
    """An output found no room."""


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line, cut where it goes on and on; its class
    where it says nothing.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MOST_QUOTED]


@contextlib.contextmanager
def reading(path: str | Path, what: str, kind: type[RestoboxError] = InputError) -> Iterator[None]:
    """Whatever a library raises in this block becomes a ``kind`` that names the file.

    A damaged file leads a parser to any error at all. Errors that say what is wrong pass: those of
    restobox that name the file, a file that is not there, a package that is missing.

    Args:
        path: what is read.
        what: what it should be, in words that follow "can't be read as".
    """
    try:
        yield
    except (FileNotFoundError, ImportError, ResourceError):
        raise
    except MemoryError as error:
        raise ResourceError(
            f"{path} needs more memory than there is; give a smaller one"
        ) from error
    except Exception as error:
        if isinstance(error, RestoboxError) and str(path) in str(error):
            raise
        said = "" if isinstance(error, _SPEECHLESS) else f" ({first_line(error)})"
        raise kind(
            f"{path} can't be read as {what}{said}; it may be damaged or cut short: copy or make it"
            " again"
        ) from error
