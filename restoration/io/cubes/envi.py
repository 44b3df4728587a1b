"""ENVI cubes: a text header beside a raw file, memory-mapped; BSQ, BIL and BIP."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from solvers.files import replace_file, reserve, together
from solvers.inputs.errors import InputError

# the IDL type codes; complex numbers (6, 9) are no images
TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
# from the order in the file to (bands, lines, samples), and back
ORDERS = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (2, 0, 1)}
_BACK = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}
MOST_OPEN = 10  # values of a header in which a brace stays open
_FIELD = re.compile(r"\s*[A-Za-z][\w ]*=")
RAW_SUFFIXES = ("", ".raw", ".img", ".dat", ".bsq", ".bil", ".bip", ".bin")


def read_header(path: Path) -> dict[str, str]:
    """Fields of a header by lower-case name, braces removed.

    Raises:
        FileNotFoundError: no such file.
        InputError: not an ENVI header, a field given twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"header {path} does not exist")
    if path.stat().st_size > 64_000_000:
        raise InputError(
            f"{path} is too large for an ENVI header; give the .hdr file, not the raw one"
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.lstrip("\ufeff").startswith("ENVI"):
        raise InputError(f"{path} is no ENVI header: its first line must be ENVI")
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(";"))
    fields: dict[str, str] = {}
    waiting = [line for line in text.splitlines() if line.strip()][::-1]  # the next one last
    open_braces = 0
    while waiting:
        name, equals, value = waiting.pop().partition("=")
        if not equals:
            continue
        if value.lstrip().startswith("{"):
            more, closed = _closing(value, waiting)
            open_braces += not closed  # each was looked for to the end of the header
            if more is None or open_braces > MOST_OPEN:
                raise InputError(f"{path} is damaged: a brace is not closed")
            rest = [waiting.pop() for _ in range(more)]
            value = "\n".join([value, *rest]).strip()[1:].rstrip().removesuffix("}")
        name, value = " ".join(name.lower().split()), value.strip()
        if fields.get(name, value) != value:
            raise InputError(f"{path} gives the field {name!r} twice; leave in the one that holds")
        fields[name] = value
    return fields


def _closing(value: str, waiting: list[str]) -> tuple[int | None, bool]:
    """How many further lines belong to a value that begins with a brace, and whether the last of
    them closes it. Where free text holds a brace that nothing closes, it ends with the first line
    that ends in one and is followed by a field, or by nothing. None: it doesn't end at all.

    Args:
        waiting: the lines that follow, none of them blank, the next one last.
    """
    count, depth = len(waiting), 0
    fallback: int | None = None
    for k in range(count + 1):
        line = value if k == 0 else waiting[count - k]
        depth += line.count("{") - line.count("}")
        if depth <= 0:
            return k, True
        ahead = waiting[count - k - 1] if k < count else None
        ends = fallback is None and line.rstrip().endswith("}")
        if ends and (ahead is None or _FIELD.match(ahead)):
            fallback = k
    return fallback, False


def open_raw(path: Path, header: dict[str, str]) -> np.ndarray:
    """The raw file of a header as a read-only memory map, seen as ``(bands, lines, samples)``.
    Bytes after the cube are left (:func:`left_over`).

    Raises:
        FileNotFoundError: no raw file beside the header.
        ValueError: fields that are missing or wrong, or a file that is too short for them, or holds
            several times as much.
    """
    samples, lines, bands = (
        _integer(path, header, name, 1) for name in ("samples", "lines", "bands")
    )
    offset = _integer(path, header, "header offset", 0, "0")
    code = _integer(path, header, "data type", 0)
    if code not in TYPES:
        what = " (complex numbers)" if code in (6, 9) else ""
        raise InputError(
            f"{path}: data type {code}{what} is not accepted; known: {', '.join(map(str, TYPES))}"
        )
    interleave = interleave_of(path, header)
    order = _integer(path, header, "byte order", 0, "0")
    if order > 1:
        raise InputError(
            f"{path}: byte order must be 0 (little-endian) or 1 (big-endian); got {order}"
        )
    if header.get("file compression", "0") not in ("0", ""):
        raise InputError(
            f"{path}: compressed raw files are not accepted; save it without compression"
        )
    for name in ("major frame offsets", "minor frame offsets"):
        if re.search("[1-9]", header.get(name, "")):
            raise InputError(
                f"{path}: {name} {{{header[name]}}} put other bytes among the values, which is not"
                " accepted; save it without them"
            )
    raw = _raw_file(path)
    dtype = np.dtype(("<", ">")[order] + TYPES[code])
    cube, found = samples * lines * bands * dtype.itemsize, raw.stat().st_size
    wanted = offset + cube
    # twice or four times as much: a wrong type or count, of which nothing could be read right
    if found < wanted or (found > wanted and (found - offset) % cube == 0):
        size = (
            f"{samples} samples x {lines} lines x {bands} bands of {dtype.itemsize} bytes after"
            f" {offset}"
        )
        raise InputError(
            f"{path} says {size}, which is {wanted} bytes, but {raw.name} has {found}; correct the"
            " header or the raw file"
        )
    stored = {
        "bsq": (bands, lines, samples),
        "bil": (lines, bands, samples),
        "bip": (lines, samples, bands),
    }[interleave]
    return np.memmap(raw, dtype, "r", offset, stored).transpose(ORDERS[interleave])


def left_over(path: Path, header: dict[str, str], values: np.ndarray) -> str:
    """What to tell of bytes after the cube of :func:`open_raw`, which some programs put there;
    nothing where there are none.
    """
    raw, offset = _raw_file(path), _integer(path, header, "header offset", 0, "0")
    extra = raw.stat().st_size - offset - values.nbytes
    if extra == 0:
        return ""
    return (
        f"{raw} has {extra} bytes after the cube that {path.name} describes, which are left out; if"
        " the header has a wrong type or count, correct it"
    )


def interleave_of(path: Path, header: dict[str, str]) -> str:
    """``bsq``, ``bil`` or ``bip``."""
    interleave = header.get("interleave", "").lower()
    if interleave not in ORDERS:
        raise InputError(
            f"{path}: interleave {interleave!r} is unknown; known: {', '.join(ORDERS)}"
        )
    return interleave


# writes the values into an array (bands, lines, samples)
Fill = Callable[[np.ndarray], object]


def write_envi(
    path: Path, header: dict[str, str], shape: tuple[int, int, int], dtype: np.dtype, fill: Fill
) -> None:
    """Write a header and, beside it, a ``.raw`` file; never more than a block of lines is held in
    memory.

    Args:
        path: ends in ``.hdr``.
        header: fields to keep; those that describe the layout are replaced, all but the interleave.
        shape: bands, lines, samples.
        dtype: of the values; one of :data:`TYPES`.
        fill: called with a writable ``(bands, lines, samples)`` view to fill.
    """
    dtype = np.dtype(dtype)
    code = next((k for k, v in TYPES.items() if v == dtype.str[1:]), None)
    if code is None:
        raise InputError(f"ENVI files can't hold values of type {dtype}")
    interleave = header.get("interleave", "bsq").lower()
    fields = header | {
        "samples": shape[2],
        "lines": shape[1],
        "bands": shape[0],
        "header offset": 0,
        "data type": code,
    }
    fields |= {
        "interleave": interleave,
        "byte order": 0,
        "file type": header.get("file type", "ENVI Standard"),
    }
    stored = tuple(shape[k] for k in _BACK[interleave])

    def write_raw(temporary: Path) -> None:
        reserve(temporary, math.prod(stored) * dtype.itemsize)
        values = np.memmap(temporary, dtype.newbyteorder("<"), "r+", shape=stored)
        fill(values.transpose(ORDERS[interleave]))
        values.flush()

    text = "ENVI\n" + "".join(
        f"{name} = {_braced(name, str(value))}\n" for name, value in fields.items()
    )
    with together():
        replace_file(path.with_suffix(".raw"), write_raw)
        replace_file(path, lambda p: p.write_text(text, encoding="utf-8"))


def _braced(name: str, value: str) -> str:
    plain = (
        "," not in value
        and "\n" not in value
        and name not in ("description", "wavelength", "band names", "fwhm", "bbl")
    )
    if plain and "{" not in value and "}" not in value:
        return value
    if value.count("{") != value.count("}"):  # which no reader could pair
        value = value.replace("{", "(").replace("}", ")")
    return f"{{{value}}}"


def raw_file(path: Path) -> Path | None:
    """Where the values of an ENVI header are, or go; None for other files."""
    if path.suffix.lower() != ".hdr":
        return None
    try:
        return _raw_file(path)
    except FileNotFoundError:
        return path.with_suffix(".raw")


def _raw_file(path: Path) -> Path:
    base = path.with_suffix("")
    names = [f"{base.name}{suffix}" for suffix in RAW_SUFFIXES]
    tried = [*names, *(f"{base.name}{suffix.upper()}" for suffix in RAW_SUFFIXES[1:])]
    found = [raw for name in tried if (raw := path.with_name(name)).is_file()]
    if not found:
        raise FileNotFoundError(f"no raw file beside {path}; looked for {', '.join(names)}")
    # a disk that takes both cases for one finds each file twice
    if others := [raw.name for raw in found[1:] if not raw.samefile(found[0])]:
        raise InputError(
            f"{path} has several raw files beside it: {', '.join([found[0].name, *others])}; move"
            " away what it doesn't describe"
        )
    return found[0]


def _integer(
    path: Path, header: dict[str, str], name: str, lowest: int, default: str | None = None
) -> int:
    text = header.get(name, default)
    if text is None:
        raise InputError(f"{path} lacks the field {name!r}")
    if not re.fullmatch(r"\+?\d{1,12}", text) or int(text) < lowest:
        raise InputError(
            f"{path}: {name} must be a whole number of at least {lowest}; got {text!r}"
        )
    return int(text)
