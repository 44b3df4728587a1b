"""Whether an HDF 4 file can be read, before the library reads it here: it fills what was cut off
with nothing, follows elements into other files, and some damaged files end its process.

HDF 4.2 Specification and Developer's Guide, chapters 2 (data descriptor blocks) and 10 (special
elements).
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from solvers.inputs.errors import InputError
from solvers.inputs.memory import budget

MAGIC = b"\x0e\x03\x13\x01"
BLOCK, DESCRIPTOR = struct.Struct(">HI"), struct.Struct(">HHII")
NOTHING, NOWHERE = 1, 0xFFFFFFFF  # a descriptor that is free; of one whose data never came
ROOM = 1 << 30  # for the interpreter and the libraries
SPECIAL, EXTERNAL = 0x4000, 2  # the bit of tags, and the kind that lies in another file
# reads all of a file in a process of its own, in bounded memory
TRIAL = """
import sys
try:
    from resource import RLIMIT_AS, setrlimit
    setrlimit(RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
except ImportError:
    pass
from pyhdf.SD import SD, SDC
file = SD(sys.argv[1], SDC.READ)
file.attributes()
for name in file.datasets():
    one = file.select(name)
    one.attributes()
    one.get()
    one.endaccess()
file.end()
"""


def check_hdf4(path: Path) -> None:
    """Refuse a file that lacks a part that it names, that reads other files, or that the library
    fails on.

    Raises:
        InputError: says which.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise InputError(f"{path} is damaged: it doesn't begin as files of HDF 4 do")
        for tag, offset, length in _descriptors(file, path, size):
            if offset + length > size:
                raise InputError(
                    f"{path} is damaged: it names data up to byte {offset + length:,} and has"
                    f" {size:,}; it was cut short"
                )
            if tag & SPECIAL and length >= 2:
                file.seek(offset)
                if int.from_bytes(file.read(2), "big") == EXTERNAL:
                    raise InputError(
                        f"{path} keeps data in another file, which is not opened: write it as one"
                        " file (hrepack)"
                    )
    command = [sys.executable, "-c", TRIAL, str(path), str(budget() + ROOM)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        raise InputError(f"{path} is damaged: the library of HDF 4 fails on it")


def _descriptors(file: BinaryIO, path: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """Tag, offset and length of each element; the blocks that hold them follow one another."""
    place, seen = len(MAGIC), set[int]()
    while place:
        if place in seen or place + BLOCK.size > size:
            raise InputError(f"{path} is damaged: its blocks of descriptors have no end")
        seen.add(place)
        file.seek(place)
        count, place = BLOCK.unpack(file.read(BLOCK.size))
        block = file.read(count * DESCRIPTOR.size)
        if len(block) < count * DESCRIPTOR.size:
            raise InputError(f"{path} is damaged: a block of descriptors was cut short")
        for tag, _, offset, length in DESCRIPTOR.iter_unpack(block):
            if tag != NOTHING and NOWHERE not in (offset, length):
                yield tag, offset, length
