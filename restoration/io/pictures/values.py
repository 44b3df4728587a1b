"""What the decoders of pictures share: sizes checked, numbers to [0, 1], extra channels."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

_opening = threading.Lock()


@contextmanager
def quietly() -> Iterator[None]:
    """Without Pillow's warnings.

    Warning filters belong to the whole process: threads that change and restore them at once would
    leave them changed.
    """
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def opened(path: Path) -> Image.Image:
    """The header only. Pillow's warnings about it are no use: the size is checked here."""
    with quietly():
        return unmapped(Image.open(path))


def unmapped(image: Image.Image) -> Image.Image:
    """An opened TIFF as a file that Pillow doesn't map into memory, for which it needs the name:
    there it takes the sides of a picture that is to be turned by a quarter for each other.
    """
    if image.format == "TIFF" and hasattr(image, "filename"):
        image.filename = ""
    return image


def check_size(path: Path, width: int, height: int, limit: int) -> None:
    """Refuse nothing and too much, before it is decoded.

    Raises:
        InputError, ResourceError: which.
    """
    if width < 1 or height < 1:
        raise InputError(f"{path} is empty ({width} x {height} pixels)")
    if width * height > limit:
        raise InputError(
            f"{path} has {width} x {height} pixels; at most {limit / 1e6:.0f} megapixels are"
            " accepted"
        )
    # colour and alpha in single precision
    check_array(path, (height, width, 4), 4)


def unit(path: Path, array: np.ndarray, top: float | np.ndarray | None = None) -> np.ndarray:
    """Integers from 0 to ``top`` (of all or of each channel; by default what their type holds), or
    floats that lie in [0, 1] already, as float32.

    Raises:
        InputError: other numbers.
    """
    if array.dtype.kind == "f":
        low, high = float(np.nanmin(array)), float(np.nanmax(array))
        if not (np.isfinite(array).all() and low >= 0 and high <= 1):
            raise InputError(
                f"{path} holds floats from {low:.4g} to {high:.4g}; a float picture must lie in"
                " [0, 1]: divide it by its white first"
            )
        return array.astype(np.float32)
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{path} has pixels of type {array.dtype}; 8- and 16-bit integers and floats in [0, 1]"
            " are accepted"
        )
    white = np.asarray(np.iinfo(array.dtype).max if top is None else top, np.float32)
    values = array.astype(np.float32)
    np.divide(values, white, out=values)
    return np.minimum(values, 1, out=values)


def without_padding(array: np.ndarray, colours: int) -> np.ndarray:
    """Pixels ``(H, W, C)`` without a last channel that is the same everywhere, and so holds
    nothing: for files that don't say what it is. Else it is taken for transparency.
    """
    extra = array[..., colours]
    return array[..., :colours] if (extra == extra.flat[0]).all() else array


def after_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """8-bit values ``(H, W)`` or ``(H, W, 3)`` as they come back from a JPEG file of that quality,
    1 to 95.
    """
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return np.array(Image.open(file))
