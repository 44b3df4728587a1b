"""Photo files: 8 and 16 bits, grey, colour, alpha, any orientation; sizes are checked before
decoding.
"""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from solvers.files import replace_file
from solvers.inputs.errors import InputError, reading
from solvers.inputs.memory import check_array

MAX_PIXELS = 100_000_000
# that are read in folders, and written
# of pictures that are found in folders, and that are written
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_opening = threading.Lock()


@dataclass(frozen=True)
class Photo:
    """A decoded picture.

    Attributes:
        pixels: ``(C, H, W)`` float32 in [0, 1], C = 1 (grey) or 3 (RGB).
        alpha: ``(H, W)`` float32 in [0, 1], or None.
        bits: 8 or 16, the depth of the file.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 8


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a picture file (anything Pillow knows; TIFF also with 16 bits per channel), upright.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a picture, damaged, more than ``max_pixels`` pixels, or a pixel type that is
            not 8 or 16 bits.
        ResourceError: too large for the memory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    with reading(path, "an image"):
        with path.open("rb") as file:
            head = file.read(26)
        array, orientation = _decode_tiff16(path, max_pixels) if head[:4] in _TIFF else (None, 1)
        if array is None:
            try:
                with _open(path) as image:
                    _check_size(path, image.width, image.height, max_pixels)
                    orientation = image.getexif().get(0x0112, 1)
                    array = _decode(path, image, head)
            except Image.DecompressionBombError as error:
                raise InputError(
                    f"{path} has too many pixels; at most {max_pixels / 1e6:.0f} megapixels are"
                    " accepted"
                ) from error
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{path} has pixels of type {array.dtype}; 8- and 16-bit integers are accepted"
        )
    array = _upright(array, orientation)
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise InputError(
            f"{path} has shape {array.shape}; grey or RGB pictures with or without alpha are"
            " accepted"
        )
    bits = 8 * array.dtype.itemsize
    values = array.astype(np.float32) / (2**bits - 1)
    channels = 1 if values.shape[2] <= 2 else 3
    alpha = values[..., channels] if values.shape[2] > channels else None
    return Photo(np.ascontiguousarray(values[..., :channels].transpose(2, 0, 1)), alpha, bits)


def read_mask(path: str | Path, height: int, width: int) -> np.ndarray:
    """Read an inpainting mask: white = missing. Returns float32 ``(H, W)`` with 1 = known, 0 =
    missing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, another size than the image, or nothing (or everything) marked as
            missing.
    """
    photo = read_image(path)
    if photo.pixels.shape[1:] != (height, width):
        size = f"{photo.pixels.shape[2]} x {photo.pixels.shape[1]}"
        raise InputError(
            f"mask {path} is {size} pixels but the image is {width} x {height}; they must be the"
            " same size"
        )
    mask = (photo.pixels.mean(0) < 0.5).astype(np.float32)
    if mask.all():
        raise InputError(f"mask {path} marks nothing as missing; paint the missing pixels white")
    if not mask.any():
        raise InputError(f"mask {path} marks every pixel as missing; leave what is known black")
    return mask


def write_image(path: str | Path, photo: Photo) -> None:
    """Write PNG, JPEG, WebP or TIFF by suffix, with the photo's depth where the format has it (PNG,
    TIFF) and 8 bits elsewhere.

    Raises:
        ValueError: a suffix that is not known, or alpha in a JPEG.
        OSError: the place is not writable; nothing is left behind.
    """
    path = Path(path)
    check_writable(path)
    suffix = path.suffix.lower()
    bits = photo.bits if suffix in (".png", ".tif", ".tiff") else 8
    parts = [photo.pixels] if photo.alpha is None else [photo.pixels, photo.alpha[None]]
    values = np.concatenate(parts).transpose(1, 2, 0)
    array = np.rint(np.clip(values, 0, 1) * (2**bits - 1)).astype(
        np.uint8 if bits == 8 else np.uint16
    )
    array = array[..., 0] if array.shape[2] == 1 else array
    if suffix in (".tif", ".tiff"):
        import tifffile

        extra = ["unassalpha"] if photo.alpha is not None else None
        kind = "rgb" if photo.pixels.shape[0] == 3 else "minisblack"
        replace_file(
            path,
            lambda p: tifffile.imwrite(
                p, array, photometric=kind, extrasamples=extra, compression="zlib"
            ),
        )
    elif bits == 16:
        replace_file(path, lambda p: p.write_bytes(_png16(array)))
    else:
        if suffix in (".jpg", ".jpeg") and photo.alpha is not None:
            raise InputError("JPEG holds no alpha channel; write PNG, WebP or TIFF")
        format = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[suffix]
        options = {"quality": 95} if format != "PNG" else {}
        replace_file(path, lambda p: Image.fromarray(array).save(p, format=format, **options))


def check_writable(path: str | Path) -> None:
    """Raise before any work is done if an image can't be written to ``path``.

    Raises:
        ValueError: unknown suffix.
        OSError: the folder does not exist or is not writable, or ``path`` is a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"output {path} must end in one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} of the output does not exist")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} is not writable")


def _open(path: Path) -> Image.Image:
    """The header only. Pillow's warnings about it are no use: the size is checked here.

    Warning filters belong to the whole process: threads that change and restore them at once would
    leave them changed.
    """
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(path)


def _check_size(path: Path, width: int, height: int, limit: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{path} is empty ({width} x {height} pixels)")
    if width * height > limit:
        raise InputError(
            f"{path} has {width} x {height} pixels; at most {limit / 1e6:.0f} megapixels are"
            " accepted"
        )
    # colour and alpha in single precision
    check_array(path, (height, width, 4), 4)


def _decode_tiff16(path: Path, max_pixels: int) -> tuple[np.ndarray | None, int]:
    """Pixels ``(H, W, C)`` and orientation of a grey or RGB TIFF with 16 bits per channel (Pillow
    cuts colour to 8), else None.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        if page.bitspersample != 16 or page.photometric not in (
            tifffile.PHOTOMETRIC.MINISBLACK,
            tifffile.PHOTOMETRIC.MINISWHITE,
            tifffile.PHOTOMETRIC.RGB,
        ):
            return None, 1
        _check_size(path, page.imagewidth, page.imagelength, max_pixels)
        check_array(path, page.shape, 2)
        try:
            array = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise InputError(
                f"compression {tifffile.COMPRESSION(page.compression).name} needs the package"
                " imagecodecs; save it with ZIP or none"
            ) from error
        if array.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            array = np.moveaxis(array, 0, -1)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype == np.uint16:
            array = 65535 - array
        tag = page.tags.get(274)
        return array.reshape(page.imagelength, page.imagewidth, -1), (
            1 if tag is None else int(tag.value)
        )


def _decode(path: Path, image: Image.Image, head: bytes) -> np.ndarray:
    """Pixels ``(H, W, C)`` as stored, before turning upright."""
    if image.format == "PNG" and len(head) == 26 and head[24] == 16 and head[25] != 0:
        from torchvision.io import (
            ImageReadMode,
            decode_image,
        )  # Pillow cuts 16-bit colour down to 8

        with _open(path) as check:
            check.verify()  # checksums: the decoder below does not survive a wrong one
        return decode_image(str(path), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode in ("I", "F"):
        raise InputError(
            f"{path} has {image.mode!r} pixels (32 bits); 8- and 16-bit pictures are accepted"
        )
    transparent = "transparency" in image.info
    plain = {
        "1": "L",
        "L": "L",
        "LA": "LA",
        "RGB": "RGB",
        "RGBA": "RGBA",
        "La": "LA",
        "RGBa": "RGBA",
    }.get(image.mode)
    if plain is None or transparent:
        plain = "RGBA" if transparent or image.mode == "PA" else "RGB"
    array = np.asarray(image.convert(plain))
    return array[..., None] if array.ndim == 2 else array


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF orientation (1 to 8) to ``(H, W, C)``."""
    turns = {
        2: (0, True),
        3: (2, False),
        4: (2, True),
        5: (3, True),
        6: (3, False),
        7: (1, True),
        8: (1, False),
    }
    if orientation not in turns:
        return array
    quarter, mirror = turns[orientation]
    array = np.rot90(array, quarter)
    return array[:, ::-1] if mirror else array


def _png16(array: np.ndarray) -> bytes:
    """A 16-bit PNG of ``(H, W)`` or ``(H, W, 2..4)`` uint16; none of the image libraries here
    writes one in colour.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    array = array[..., None] if array.ndim == 2 else array
    height, width, channels = array.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = np.frombuffer(array.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    # each row begins with filter type 0
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 6)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
