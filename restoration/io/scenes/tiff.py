"""TIFF and BigTIFF by parts, tiled or in strips."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.packages import need
from restoration.io.containers.tiff import NO_DATA, check_last_page, opened_tiff, place_of
from restoration.io.containers.validity import parted, refuse
from restoration.io.pictures.notes import ORIENTATION
from restoration.io.pictures.tiff import DEPTHS
from restoration.io.scenes.scene import Scene
from solvers.files import reserve
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

TIFF = (".tif", ".tiff")
MINISBLACK, RGB = 1, 2  # what the numbers of a page mean
MOST = 281  # MaxSampleValue
KEPT = (ORIENTATION, 34675, 700, MOST)  # pixels stay as they are stored; profile, XMP
WHITE = {"u1": 255.0, "u2": 65535.0, "f4": 1.0, "f8": 1.0}


def pixels_of(path: Path) -> int:
    """Pixels of a plane; 0 where the file can't be read."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return int(page.imagelength) * int(page.imagewidth)
    except Exception:  # who reads it says what is wrong
        return 0


class Parts:
    """The first image of a TIFF file, which is opened anew for each part that is read: contiguous
    ones are mapped, others decoded by their tiles or strips.
    """

    def __init__(self, path: Path):
        self.path = path
        with opened_tiff(path) as file:
            check_last_page(path, file)
            series = file.series[0]
            self.shape, self.dtype = tuple(map(int, series.shape)), np.dtype(series.dtype)
            self.plain = series.dataoffset is not None
            self.offset = series.dataoffset or 0
            self.order = file.byteorder
            if not self.plain:
                self._check_pieces(file)

    def _check_pieces(self, file: Any) -> None:
        """A tile or strip is decoded as a whole: it must fit into the memory."""
        need("zarr", "tiled and compressed TIFF files by parts", "scale")
        import zarr

        store: Any = file.series[0].aszarr(level=0)
        check_array(self.path, zarr.open_array(store, mode="r").chunks, self.dtype.itemsize)

    def __getitem__(self, index: Any) -> np.ndarray:
        if self.plain:
            dtype = self.dtype.newbyteorder(self.order)
            return np.asarray(np.memmap(self.path, dtype, "r", self.offset, self.shape)[index])
        import tifffile
        import zarr

        with tifffile.TiffFile(self.path) as file:
            store: Any = file.series[0].aszarr(level=0)
            array: Any = zarr.open_array(store, mode="r")
            return np.asarray(array[index])


def open_tiff(path: Path) -> Scene:
    """One page of grey or RGB, or pages of grey planes.

    Raises:
        InputError: another layout or type.
        ImportError: tiles need Zarr.
    """
    parts = Parts(path)
    with opened_tiff(path) as file:
        if parted(list(file.pages))[1]:
            refuse(path)
        if len(file.series) > 1:
            raise InputError(
                f"{path} holds {len(file.series)} images; give a file of one, or of pages that make"
                " one array"
            )
        page: Any = file.pages.first
        axes, shape = file.series[0].axes.upper(), parts.shape
        if page.photometric not in (MINISBLACK, RGB):
            raise InputError(
                f"{path} has pixels of the kind {page.photometric.name}; grey whose 0 is black and"
                " RGB are accepted: save it as one of these"
            )
        missing, bits, most = page.tags.get(NO_DATA), page.bitspersample, page.tags.get(MOST)
        head = place_of(page) + tuple(
            (t.code, int(t.dtype), t.count, t.value) for t in page.tags if t.code in KEPT
        )
    names = {"Y": "y", "X": "x", "S": "c", "Q": "p", "I": "p", "Z": "z", "C": "k", "T": "t"}
    known = "".join(names.get(a, "?") for a in axes)
    if "?" in known or ("c" in known and shape[known.index("c")] != 3):
        raise InputError(
            f"{path} has axes {axes} of {shape}; grey or RGB without alpha, and pages of grey"
            " planes, are accepted"
        )
    white = WHITE.get(parts.dtype.str[1:])
    if white is None:
        raise InputError(
            f"{path} holds values of type {parts.dtype}; 8 and 16 bits without sign, and floats in"
            " [0, 1], are accepted"
        )
    if parts.dtype == np.uint16 and bits < 16:
        white = 2.0**bits - 1
    elif parts.dtype == np.uint16 and most is not None and int(np.max(most.value)) + 1 in DEPTHS:
        white = float(np.max(most.value))
    no_data = None if missing is None else float(str(missing.value).strip("\0 "))
    return Scene(path, parts, known, 0.0, white, no_data, "tiff", head)


def write_tiff(place: Path, scene: Scene, fill: Callable[[Any], object]) -> None:
    """In strips, uncompressed, so that parts can be written in any order; as BigTIFF from 2 GB on.
    The place on the ground, the colour profile, XMP and how the picture is to be turned are kept.
    """
    import tifffile

    dtype = np.dtype(scene.array.dtype)
    nbytes = math.prod(scene.array.shape) * dtype.itemsize
    tags = [(*tag, True) for tag in scene.head]
    if scene.no_data is not None:
        text = f"{scene.no_data:.17g}"
        tags.append((NO_DATA, 2, len(text) + 1, text, True))
    planar = scene.channels == 3 and scene.axes.index("c") == 0
    options: dict[str, Any] = {"photometric": "rgb" if scene.channels == 3 else "minisblack"}
    options |= {"planarconfig": "separate"} if planar else {}
    reserve(place, nbytes)  # the room for it, before it is mapped
    values = tifffile.memmap(
        place,
        shape=scene.array.shape,
        dtype=dtype.newbyteorder("="),
        bigtiff=nbytes > 2**31,
        metadata=None,
        extratags=tags,
        **options,
    )
    fill(values)
    values.flush()
