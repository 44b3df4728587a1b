"""From the bytes of a picture file to values in [0, 1]: the range is the one that the file states,
not the width of its numbers.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from restoration.io.containers.tiff import opened_tiff
from restoration.io.pictures.dicom import is_dicom, picture_of
from restoration.io.pictures.notes import ORIENTATION, Notes, notes_of, space_of, to_srgb
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RAW = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw")
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_opening = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """``values (H, W, C)`` in [0, 1] as stored, the depth (8, 16; 32: float), how the picture is to
    be turned, and what the file says beside.
    """

    values: np.ndarray
    bits: int
    orientation: int = 1
    notes: Notes = field(default_factory=Notes)


def decode(path: Path, max_pixels: int) -> Decoded:
    """Any file that is known.

    Raises:
        InputError: too many pixels or pictures, a kind of pixels that is not accepted, or a package
            that is missing.
        Exception: whatever a library raises on a damaged file.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[:2] in (b"P5", b"P6", b"PF", b"Pf"):
        found = _netpbm(path, max_pixels)
        if found is not None:
            return found
    if is_dicom(path):
        values, bits, origin = picture_of(path, max_pixels)
        return Decoded(values, bits, notes=Notes(origin=origin))
    if path.suffix.lower() in RAW:
        return _camera(path, max_pixels)
    if head[:4] in TIFF:
        found = _tiff(path, max_pixels)
        if found is not None:
            return found
    if head[4:8] == b"ftyp" and head[8:12] in HEIF:
        _register_heif(path)
    try:
        with opened(path) as image:
            return _pillow(path, image, head, max_pixels)
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has too many pixels; at most {max_pixels / 1e6:.0f} megapixels are accepted"
        ) from error


def opened(path: Path) -> Image.Image:
    """The header only. Pillow's warnings about it are no use: the size is checked here.

    Warning filters belong to the whole process: threads that change and restore them at once would
    leave them changed.
    """
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(path)


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


def unit(path: Path, array: np.ndarray, top: float | None = None) -> np.ndarray:
    """Integers from 0 to ``top`` (by default what their type holds), or floats that lie in [0, 1]
    already, as float32.

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
    top = float(np.iinfo(array.dtype).max) if top is None else top
    return np.minimum(array.astype(np.float32) / np.float32(top), 1)


def _pillow(path: Path, image: Image.Image, head: bytes, max_pixels: int) -> Decoded:
    check_size(path, image.width, image.height, max_pixels)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with its preview
        raise InputError(
            f"{path} holds {frames} pictures (an animation, or several pages); save the one to be"
            " restored as a file of its own"
        )
    deep = image.format == "PNG" and head[24] == 16 and head[25] != 0
    if deep:
        array = _deep_png(path)
        image.load()
    else:
        array = _pixels(path, image)
    # after loading: some decoders turn the picture themselves, and then say so
    orientation, notes = int(image.getexif().get(ORIENTATION, 1)), notes_of(image)
    channels = array.shape[2] if array.ndim == 3 else 1
    wanted = ("GRAY",) if channels <= 2 else ("RGB",)
    if notes.icc is not None and space_of(notes.icc) not in wanted:
        notes = notes.without_profile()
    bits = 8 * array.dtype.itemsize if array.dtype.kind == "u" else 32
    top = None
    if bits == 16:
        top = _stated(array, _sbit(path, image.format))
    return Decoded(unit(path, array, top), bits, orientation, notes)


def _pixels(path: Path, image: Image.Image) -> np.ndarray:
    """Pixels ``(H, W, C)`` of what Pillow decodes."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in a wider container
        return np.asarray(image).clip(0, 65535).astype(np.uint16)[..., None]
    if image.mode == "F":
        return np.asarray(image)[..., None]
    if image.mode == "I":
        raise InputError(
            f"{path} has 'I' pixels (32 bits); 8- and 16-bit integers and floats in [0, 1] are"
            " accepted"
        )
    if image.mode in ("CMYK", "LAB"):
        return np.asarray(to_srgb(image, image.info.get("icc_profile")))
    transparent = "transparency" in image.info
    plain = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
    plain |= {"La": "LA", "RGBa": "RGBA"}
    mode = plain.get(image.mode)
    if mode is None or transparent:
        mode = "RGBA" if transparent or image.mode == "PA" else "RGB"
    array = np.asarray(image.convert(mode))
    return array[..., None] if array.ndim == 2 else array


def _deep_png(path: Path) -> np.ndarray:
    """16 bits per channel ``(H, W, 2 to 4)``.

    In colour Pillow gives the high bytes. Here it gives the low ones too, as what it takes for the
    high bytes of little-endian numbers: torchvision's decoder, which gives both, ends the process
    where a file is damaged.
    """
    with opened(path) as check:
        check.verify()  # checksums

    def plain(kind: str, mode: str | None = None) -> np.ndarray:
        image: Any
        with opened(path) as image:
            image._mode = mode or image.mode
            image.tile = [tile._replace(args=kind) for tile in image.tile]
            return np.asarray(image).astype(np.uint16)

    image: Any
    with opened(path) as image:
        kind, colour = str(image.tile[0].args), image.info.get("transparency")
    if kind == "LA;16B":  # as many bytes as four channels of 8 bits
        bytes_ = plain("RGBA", "RGBA")
        return bytes_[..., ::2] << 8 | bytes_[..., 1::2]
    found = plain(kind) << 8 | plain(kind.replace("16B", "16L"))
    if isinstance(colour, tuple):  # this one is transparent
        alpha = 65535 * (found != np.array(colour)).any(-1, keepdims=True)
        found = np.concatenate([found, alpha.astype(np.uint16)], axis=-1)
    return found


def _sbit(path: Path, format: str | None) -> int | None:
    """Significant bits that a PNG states."""
    if format != "PNG":
        return None
    with path.open("rb") as file:
        file.seek(8)
        while len(begin := file.read(8)) == 8:
            size, kind = int.from_bytes(begin[:4], "big"), begin[4:]
            if kind == b"sBIT" and 0 < size <= 4:
                return max(file.read(size))
            if kind in (b"IDAT", b"IEND") or size > 2**31:
                return None
            file.seek(size + 4, os.SEEK_CUR)
    return None


def _stated(array: np.ndarray, bits: int | None) -> float | None:
    """White of 16-bit numbers of which a PNG says that fewer ``bits`` count.

    The standard has them scaled to all 16 bits. Files of scanners and microscopes often hold them
    as they are: then no number is larger, and they don't have the low bits that scaling leaves.
    """
    if bits is None or not 8 < bits < 16 or int(array.max()) >= 2**bits:
        return None
    high = array >> (16 - bits)
    low = array & (2 ** (16 - bits) - 1)
    scaled = (low == 0) | (low == high >> max(2 * bits - 16, 0))
    return None if scaled.all() else float(2**bits - 1)


def _tiff(path: Path, max_pixels: int) -> Decoded | None:
    """Grey or RGB with more than 8 bits, which Pillow cuts or doesn't read; None for others."""
    import tifffile

    with opened_tiff(path) as file:
        page: Any = file.pages.first
        pages = [p for p in file.pages if not getattr(p, "is_reduced", False)]
        if len(pages) > 1:
            raise InputError(
                f"{path} holds {len(pages)} pages; save the one to be restored as a file of its own"
            )
        kinds = tifffile.PHOTOMETRIC
        known = (kinds.MINISBLACK, kinds.MINISWHITE, kinds.RGB)
        bits = page.bitspersample
        if page.photometric not in known or not (8 < bits <= 16 or page.sampleformat == 3):
            return None
        check_size(path, page.imagewidth, page.imagelength, max_pixels)
        check_array(path, page.shape, 4)
        array = _packed(path, page, bits) if bits < 16 else _page(page)
        if array.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            array = np.moveaxis(array, 0, -1)
        top = None
        if array.dtype == np.uint16:
            most = page.tags.get(281)  # MaxSampleValue
            stated = int(np.max(most.value)) if most is not None else 2**bits - 1
            # only a depth: images store their brightest number there, too
            top = (
                float(stated) if stated + 1 in {2**n for n in range(9, 17)} else float(2**bits - 1)
            )
            if int(array.max()) > top:
                top = 65535.0
        values = unit(path, array.reshape(page.imagelength, page.imagewidth, -1), top)
        if page.photometric == kinds.MINISWHITE:
            values[..., :1] = 1 - values[..., :1]
        tag = page.tags.get(ORIENTATION)
        orientation = 1 if tag is None else int(tag.value)
    return Decoded(values, 32 if array.dtype.kind == "f" else 16, orientation, _notes(path))


def _notes(path: Path) -> Notes:
    """By Pillow, which may not know this kind of TIFF."""
    try:
        with opened(path) as image:
            return notes_of(image)
    except (OSError, ValueError, SyntaxError):
        return Notes()


def _page(page: Any) -> np.ndarray:
    import tifffile

    try:
        found: np.ndarray = page.asarray()
        return found
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise InputError(
            f"compression {tifffile.COMPRESSION(page.compression).name} needs the package"
            " imagecodecs; save it with ZIP or none"
        ) from error


def _packed(path: Path, page: Any, bits: int) -> np.ndarray:
    """Numbers of 9 to 15 bits that follow one another bit by bit, each row from a new byte."""
    if page.compression != 1 or page.is_tiled:
        return _page(page)
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    row = page.imagewidth * samples
    size = -(-row * bits // 8)
    planes = []
    with path.open("rb") as file:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            planes.append(np.frombuffer(file.read(count), np.uint8))
    rows = np.concatenate(planes).reshape(-1, size)
    flags = np.unpackbits(rows, axis=1)[:, : row * bits].reshape(len(rows), row, bits)
    weights = 1 << np.arange(bits - 1, -1, -1)
    array = (flags * weights.astype(np.uint16)).sum(-1, dtype=np.uint16)
    return array.reshape(page.shape)


def _netpbm(path: Path, max_pixels: int) -> Decoded | None:
    """PGM and PPM of more than 8 bits, and PFM; None for others, which Pillow reads."""
    with path.open("rb") as file:
        head = file.read(512)
        clean = re.sub(rb"#[^\n]*\n", b" ", head)
        if clean == head or b"#" not in head:
            match = re.match(rb"(P[56Ff])\s+(\d+)\s+(\d+)\s+(-?[\d.eE+]+)\s", head)
        else:
            pattern = rb"(P[56Ff])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+"
            match = re.match(pattern + rb"(-?[\d.eE+]+)\s", head)
        if match is None:  # another file that happens to begin so, or a damaged one: Pillow says
            return None
        kind, width, height = match[1], int(match[2]), int(match[3])
        floats = kind in (b"PF", b"Pf")
        white = float(match[4])
        if not floats and white < 256:
            return None
        check_size(path, width, height, max_pixels)
        channels = 3 if kind in (b"P6", b"PF") else 1
        file.seek(match.end())
        dtype = np.dtype("<f4" if white < 0 else ">f4") if floats else np.dtype(">u2")
        wanted = width * height * channels
        data = np.frombuffer(file.read(wanted * dtype.itemsize), dtype)
    if len(data) < wanted:
        raise InputError(f"{path} ends after {len(data)} of {wanted} numbers; it is cut short")
    array = data.reshape(height, width, channels).astype(dtype.newbyteorder("="))
    if floats:
        return Decoded(unit(path, array[::-1]), 32)  # rows from the bottom up
    if white > 65535:
        raise InputError(f"{path} states a white of {white:g}; at most 65535 is possible")
    return Decoded(unit(path, array, white), 16)


def _register_heif(path: Path) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise InputError(
            f"{path} is a HEIC picture, which needs a package: pip install 'restobox[heif]'"
        ) from error
    register_heif_opener()


def _camera(path: Path, max_pixels: int) -> Decoded:
    """A camera's raw file, developed as its white balance says, in sRGB."""
    try:
        import rawpy
    except ImportError as error:
        raise InputError(
            f"{path} is a camera's raw file, which needs a package: pip install 'restobox[raw]'"
        ) from error
    with rawpy.imread(str(path)) as raw:
        check_size(path, raw.sizes.width, raw.sizes.height, max_pixels)
        developed = raw.postprocess(use_camera_wb=True, output_bps=16)
    return Decoded(unit(path, developed), 16)
