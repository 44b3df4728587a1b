"""One budget of memory for everything that is read: sizes are compared with it before anything is
allocated, so that a small file can't take the machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from solvers.inputs.errors import InputError, ResourceError

VARIABLE = "RESTOBOX_MAX_BYTES"
SHARE = 0.5  # of the machine's memory, where the variable doesn't say
COPIES = 2  # a reader holds what the file stores, and what it makes of it


def budget() -> int:
    """Bytes that one array and the copies made of it while it is read may take: the environment's
    ``RESTOBOX_MAX_BYTES``, else half of the machine's memory.

    Raises:
        InputError: the variable is set and is no positive whole number.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        import psutil

        return int(SHARE * psutil.virtual_memory().total)
    if not text.strip().isdecimal() or not 0 < int(text) < 2**63:
        raise InputError(f"{VARIABLE} must be a number of bytes, such as 8000000000; got {text!r}")
    return int(text)


def check_array(what: object, shape: Sequence[int], itemsize: int) -> None:
    """Refuse an empty array, or one that is too large to be read, by its shape.

    Args:
        what: the file or the array, which begins the sentence.
        shape: of the array.
        itemsize: bytes of one value.

    Raises:
        InputError: an empty array, or a negative length.
        ResourceError: more than the budget.
    """
    shape = tuple(int(n) for n in shape)
    if min(shape, default=1) < 1:
        raise InputError(f"{what} has an array of shape {shape}, which is empty")
    needed = itemsize
    for n in shape:
        needed *= n
    check_bytes(f"{what} has an array of shape {shape}, which", needed * COPIES)


def check_bytes(what: str, needed: int) -> None:
    """Refuse what needs more than the budget; ``what`` begins the sentence "... needs ...".

    Raises:
        ResourceError: it does.
    """
    if needed > (most := budget()):
        raise ResourceError(
            f"{what} needs {_amount(needed)} of memory; at most {_amount(most)} are used here: give"
            f" a smaller one, or set {VARIABLE} to the bytes that it may take"
        )


def _amount(count: int) -> str:
    size = float(min(count, 10**30))
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.0f} TB"
