"""Masks of valid pixels as GDAL keeps them: a page of a TIFF that is a mask, or a TIFF file beside
(``NAME.msk``). They are no pictures and no bands.

Reference: GDAL, RFC 15 (band masks); TIFF 6.0, NewSubfileType.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.tiff import opened_tiff
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

TRANSPARENCY = 4  # how a page of a TIFF that is a mask says what its numbers mean


def parted(pages: list[Any]) -> tuple[list[Any], list[Any]]:
    """Of a TIFF's pages those that are pictures, and those that are masks of them; overviews are
    neither.
    """
    pictures, masks = (
        [p for p in pages if (p.is_mask or p.photometric == TRANSPARENCY) == mask]
        for mask in (False, True)
    )
    full = [p for p in pictures if not p.is_reduced]
    return full or pictures, [p for p in masks if not p.is_reduced]


def sidecar(path: Path) -> Path | None:
    """The file beside that holds a mask of valid pixels, or None."""
    names = (path.with_name(path.name + ending) for ending in (".msk", ".MSK"))
    return next((name for name in names if name.is_file()), None)


def of_all(mask: np.ndarray) -> np.ndarray:
    """``(H, W)``: where any band is valid by a mask of all or of each."""
    found: np.ndarray = mask if mask.ndim == 2 else np.any(mask, axis=0)
    return found


def refuse(path: Path) -> None:
    """For readers that know no masks.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"{path} has a mask of valid pixels, which scenes don't take; write it with a no-data value"
        " instead (gdal_translate -mask none -a_nodata)"
    )


def valid_beside(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """Bool ``(H, W)``, or ``(B, H, W)`` where each band has its own: where pixels hold data by the
    file beside; None where there is no such file, or all do.

    Raises:
        InputError: it is no TIFF, or of another size.
    """
    beside = sidecar(path)
    if beside is None:
        return None
    with reading(beside, f"the mask of valid pixels of {path.name}"), opened_tiff(beside) as file:
        page = parted(list(file.pages))[0][:1] or parted(list(file.pages))[1]
        return valid_of(beside, page, size)


def valid_of(path: Path, masks: list[Any], size: tuple[int, int]) -> np.ndarray | None:
    """The same of pages that are masks, one for all bands or one for each.

    Raises:
        InputError: of another size than the picture, or nothing is valid.
        ResourceError: too large.
    """
    if not masks:
        return None
    found = []
    for page in masks:
        if (page.imagelength, page.imagewidth) != size:
            raise InputError(
                f"{path} holds a mask of {page.imagewidth} x {page.imagelength} pixels for a"
                f" picture of {size[1]} x {size[0]}; they must be equal: make it again"
            )
        check_array(path, page.shape, 1)
        values = page.asarray() != 0
        apart = values.ndim == 3 and page.planarconfig == 1  # samples are the last axis
        values = np.moveaxis(values, -1, 0) if apart else values
        found += [values] if values.ndim == 2 else list(values)
    if not any(one.any() for one in found):
        raise InputError(f"{path} holds a mask by which no pixel is valid; correct or remove it")
    if all(one.all() for one in found):
        return None
    return found[0] if all((one == found[0]).all() for one in found) else np.stack(found)
