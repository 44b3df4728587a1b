"""MATLAB files of version 5 to 7 (R8 to R2006a): arrays of numbers, and structs of them.

An own reader: scipy's is a native one that a damaged file can crash. Here each length is checked
before it is used, and an array's size before it is read.

Reference: MathWorks, MAT-File Format (version 5).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array, check_bytes

_INT32, _MATRIX, _COMPRESSED = 5, 14, 15
# types of stored values, and of the arrays that they are values of
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_CLASSES = {
    6: "f8",
    7: "f4",
    8: "i1",
    9: "u1",
    10: "i2",
    11: "u2",
    12: "i4",
    13: "u4",
    14: "i8",
    15: "u8",
}
_STRUCT = 2
_COMPLEX = 0x0800
_MOST_AXES, _MOST_FIELDS, _NAMES = 32, 1000, 4096  # bytes that hold an array's shape and name


@dataclass(frozen=True)
class _Matrix:
    """The beginning of an array, and the bytes that follow it."""

    name: str
    shape: tuple[int, ...]
    kind: int
    flags: int
    rest: memoryview


class Matlab:
    """The variables of a file.

    Args:
        path: a ``.mat`` file of version 5 to 7; of 7.3 :func:`is_hdf5` tells, which is HDF5.

    Attributes:
        shapes: of each variable, by its name.

    Raises:
        InputError: another kind of file, or a damaged one.
    """

    def __init__(self, path: Path):
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[int, int, int]] = {}
        self._structs: set[str] = set()
        with reading(path, "a MATLAB file"):
            self._content = memoryview(_content(path))
            self._order = {b"IM": "<", b"MI": ">"}.get(bytes(self._content[126:128]), "")
            if not self._order:
                raise InputError(
                    f"{path} can't be read as MATLAB of version 5 to 7.3; save it with"
                    " save(..., '-v7')"
                )
            at = 128
            while at < len(self._content):
                kind, size = self._words(self._content[at : at + 8], 2)
                if at + 8 + size > len(self._content):
                    raise InputError(f"{path} was cut short: copy or save it again")
                head = self._unpacked(at, kind, size, _NAMES)
                if head is not None and (found := self._matrix(head)).name:
                    self.shapes[found.name] = found.shape
                    self._places[found.name] = (at, kind, size)
                    self._structs |= {found.name} if found.kind == _STRUCT else set()
                at += 8 + size

    def read(self, name: str) -> Any:
        """A variable as an array, real or complex, with MATLAB's axes; or a struct's fields by
        name (of a struct array the first).

        Raises:
            InputError: no such variable, a damaged one, or one that is neither.
            ResourceError: too large.
        """
        with reading(self.path, "a MATLAB file"):
            if name not in self._places:
                raise InputError(
                    f"{self.path} holds no {name!r}; it holds {', '.join(self.shapes) or 'nothing'}"
                )
            at, kind, size = self._places[name]
            content = self._unpacked(at, kind, size, None)
            value = None if content is None else self._value(self._matrix(content))
            if value is None:
                raise InputError(
                    f"{self.path}: {name} is no array of numbers; cells, text, sparse arrays and"
                    " objects are not accepted"
                )
            return value

    def is_struct(self, name: str) -> bool:
        """Whether a variable is a struct."""
        return name in self._structs

    # -- elements ----------------------------------------------------------------------------------

    def _words(self, content: memoryview, count: int) -> tuple[int, ...]:
        return struct.unpack(f"{self._order}{count}I", content[: 4 * count])

    def _unpacked(self, at: int, kind: int, size: int, most: int | None) -> memoryview | None:
        """The content of an array's element, or its first ``most`` bytes; None of another kind."""
        content = self._content[at + 8 : at + 8 + size]
        if kind == _COMPRESSED:
            unpack = zlib.decompressobj()
            tag = unpack.decompress(content, 8)
            kind, size = self._words(memoryview(tag), 2)
            if kind == _MATRIX and most is None:
                check_bytes(f"{self.path} holds an array that", 2 * size)
            length = size if most is None else min(size, most)
            content = memoryview(unpack.decompress(unpack.unconsumed_tail, length))
            if len(content) < length:
                raise InputError(f"{self.path} was cut short: copy or save it again")
        return content if kind == _MATRIX else None

    def _element(self, content: memoryview) -> tuple[int, memoryview, memoryview]:
        """Type and bytes of the first element, and what follows it."""
        kind, size = self._words(content, 2)
        if kind >> 16:  # four bytes or fewer stand in the tag itself
            kind, size = kind & 0xFFFF, kind >> 16
            first, end = 4, 8
        else:
            first, end = 8, 8 + size + -size % 8
        if size > (4 if first == 4 else len(content) - 8):
            raise InputError(f"{self.path} is damaged: an element is longer than what holds it")
        return kind, content[first : first + size], content[end:]

    def _matrix(self, content: memoryview) -> _Matrix:
        _, flags, rest = self._element(content)
        word = self._words(flags, 1)[0]
        kind, axes, rest = self._element(rest)
        if kind != _INT32 or not 8 <= len(axes) <= 4 * _MOST_AXES or len(axes) % 4:
            raise InputError(f"{self.path} is damaged: an array has no shape")
        shape = struct.unpack(f"{self._order}{len(axes) // 4}i", axes)
        if min(shape) < 0:
            raise InputError(f"{self.path} is damaged: an array has the shape {shape}")
        _, name, rest = self._element(rest)
        return _Matrix(bytes(name).decode("latin-1"), shape, word & 0xFF, word, rest)

    def _value(self, matrix: _Matrix) -> Any:
        if matrix.kind == _STRUCT:
            return self._struct(matrix)
        if matrix.kind not in _CLASSES:
            return None
        where = f"{self.path}: {matrix.name}"
        dtype = np.dtype(_CLASSES[matrix.kind])
        if 0 not in matrix.shape:
            check_array(where, matrix.shape, dtype.itemsize)
        real, rest = self._numbers(where, matrix, matrix.rest)
        values = real.astype(dtype)
        if matrix.flags & _COMPLEX:
            imaginary, _ = self._numbers(where, matrix, rest)
            both = np.empty(len(real), np.result_type(dtype, np.complex64))
            both.real, both.imag = real, imaginary  # a sum would make NaN of infinite parts
            values = both
        return values.reshape(matrix.shape, order="F")

    def _numbers(
        self, where: str, matrix: _Matrix, content: memoryview
    ) -> tuple[np.ndarray, memoryview]:
        kind, stored, rest = self._element(content)
        if kind not in _STORED:
            raise InputError(f"{where} is damaged: its values have the unknown type {kind}")
        dtype = np.dtype(self._order + _STORED[kind])
        if len(stored) != math.prod(matrix.shape) * dtype.itemsize:
            raise InputError(
                f"{where} has the shape {matrix.shape} but {len(stored)} bytes of {dtype}; it is"
                " damaged or was cut short: copy or save it again"
            )
        return np.frombuffer(stored, dtype), rest

    def _struct(self, matrix: _Matrix) -> dict[str, Any]:
        _, length, rest = self._element(matrix.rest)
        width = self._words(length, 1)[0]
        _, names, rest = self._element(rest)
        if not 1 <= width <= 64 or len(names) % width or len(names) // width > _MOST_FIELDS:
            raise InputError(f"{self.path} is damaged: the struct {matrix.name} has no field names")
        found: dict[str, Any] = {}
        for k in range(0, len(names), width):
            kind, content, rest = self._element(rest)
            if kind != _MATRIX:
                raise InputError(f"{self.path} is damaged: a field of {matrix.name} is no array")
            if len(content):  # a field that was never set has no content
                inner = self._matrix(content)
                name = bytes(names[k : k + width]).split(b"\0")[0].decode("latin-1")
                found[name] = None if inner.kind == _STRUCT else self._value(inner)
        return found


def is_hdf5(path: Path) -> bool:
    """Whether a ``.mat`` file is of version 7.3: HDF5 behind a text of 512 bytes."""
    import h5py

    return bool(h5py.is_hdf5(path))


def read_variables(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """Those of these variables that the file holds."""
    content = Matlab(path)
    return {name: content.read(name) for name in names if name in content.shapes}


def _content(path: Path) -> bytes:
    check_bytes(f"{path}", path.stat().st_size)
    return path.read_bytes()
