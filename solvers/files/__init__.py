"""Outputs that are whole or not there, and that never take anything of the user's with them.

Everything is written under a hidden name beside its place and renamed when it is complete. Inside
:func:`together` the renames wait for the end of the block, so that files that belong together
appear together.
"""

from solvers.files.checks import (
    MARK,
    check_file,
    check_folder,
    check_free,
    check_marked,
    check_outputs,
    check_replaceable,
)
from solvers.files.replace import (
    alone_in,
    clear_parts,
    replace_file,
    replace_folder,
    replace_marked_folder,
    reserve,
    room_beside,
    room_for,
    together,
)

__all__ = [
    "MARK",
    "alone_in",
    "check_file",
    "check_folder",
    "check_free",
    "check_marked",
    "check_outputs",
    "check_replaceable",
    "clear_parts",
    "replace_file",
    "replace_folder",
    "replace_marked_folder",
    "reserve",
    "room_beside",
    "room_for",
    "together",
]
