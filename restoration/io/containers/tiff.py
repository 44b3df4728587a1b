"""TIFF files, opened so that their pages can be counted."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from solvers.inputs.errors import InputError


@contextlib.contextmanager
def opened_tiff(path: str | Path) -> Iterator[Any]:
    """A ``tifffile.TiffFile`` whose pages have an end: each names the next one, and in a damaged
    file they may go round for ever.

    Raises:
        InputError: they do.
        tifffile.TiffFileError, OSError: no TIFF.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        seen: set[int] = set()
        for page in file.pages:
            if page.offset in seen:
                raise InputError(
                    f"{path} is damaged: after {len(seen)} pages it names one of them as the next;"
                    " copy or make it again"
                )
            seen.add(page.offset)
        yield file


def check_last_page(path: str | Path, file: Any) -> None:
    """Refuse a file whose last page names another one, which isn't there: tifffile stops there as
    if it were the end.

    Args:
        file: as :func:`opened_tiff` gives it.

    Raises:
        InputError: it was cut short.
    """
    form, handle, last = file.tiff, file.filehandle, len(file.pages)
    handle.seek(file.pages[-1].offset)
    count = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))[0]
    handle.seek(count * form.tagsize, 1)
    following = struct.unpack(form.offsetformat, handle.read(form.offsetsize))[0]
    if following:
        raise InputError(
            f"{path} was cut short or is damaged: after page {last}, another should lie at byte"
            f" {following} of {handle.size}; copy or save it again"
        )
