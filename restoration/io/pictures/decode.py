"""From the bytes of a picture file to values in [0, 1]: the range is the one that the file states,
not the width of its numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from restoration.io.containers.validity import of_all, valid_beside
from restoration.io.pictures import codecs, netpbm, png, tiff
from restoration.io.pictures.dicom import is_dicom, picture_of
from restoration.io.pictures.notes import ORIENTATION, Notes, exif_of_tiff, notes_of, to_srgb
from restoration.io.pictures.values import check_size, opened, unit
from solvers.inputs.errors import InputError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RAW = (
    *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".orf", ".raf", ".rw2"),
    *(".rwl", ".pef", ".srw", ".3fr", ".fff", ".iiq", ".erf", ".mrw", ".kdc", ".dcr", ".x3f"),
)
SRGB = (2.4, 12.92)  # its curve: the power, and the slope at black


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
    """Any file that is known. What a mask of valid pixels leaves out is transparent.

    Raises:
        InputError: too many pixels or pictures, a kind of pixels that is not accepted, or a package
            that is missing.
        Exception: whatever a library raises on a damaged file.
    """
    with path.open("rb") as file:
        head = file.read(64)
    found = _decoded(path, head, max_pixels)
    valid = valid_beside(path, found.values.shape[:2])
    # DICOM may begin like a TIFF, which holds the same picture, and raw files are built like one
    if head[:4] in TIFF and found.notes.origin is None and not _is_raw(path, head):
        own, place = tiff.ground(path, found.values)
        valid = own if valid is None else valid
        if place and found.orientation == 1:
            notes = replace(found.notes, place=(place, found.values.shape[:2]))
            found = replace(found, notes=notes)
    return found if valid is None else replace(found, values=_shown(found.values, of_all(valid)))


def _shown(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """``(H, W, C)`` with no opacity where pixels hold nothing."""
    colours = 1 if values.shape[2] <= 2 else 3
    opacity = values[..., colours:] if values.shape[2] > colours else np.ones_like(values[..., :1])
    return np.concatenate([values[..., :colours], opacity * valid[..., None]], -1)


def _is_raw(path: Path, head: bytes) -> bool:
    """Whether it is a camera's raw file, by its name or what it holds."""
    return path.suffix.lower() in RAW or (head[:4] in TIFF and tiff.is_raw(path))


def _decoded(path: Path, head: bytes, max_pixels: int) -> Decoded:
    if head[:2] in netpbm.KINDS:
        numbers = netpbm.decode(path, max_pixels)
        if numbers is not None:
            return Decoded(*numbers)
    if is_dicom(path):
        values, bits, origin = picture_of(path, max_pixels)
        icc = origin.head.get("ICCProfile") or None
        notes = Notes(icc=None if icc is None else bytes(icc), origin=origin)
        return Decoded(values, bits, notes=notes.of_channels(values.shape[2]))
    if _is_raw(path, head):
        return _camera(path, head, max_pixels)
    if head[:4] in TIFF:
        read = tiff.decode(path, max_pixels)
        if read is not None:
            return Decoded(*read)
    if codecs.is_heic(head):
        codecs.register(path)
    try:
        with opened(path) as image:
            return _pillow(path, image, head, max_pixels)
    except UnidentifiedImageError:
        read = tiff.decode(path, max_pixels, last=True) if head[:4] in TIFF else None
        if read is not None:
            return Decoded(*read)
        if (kind := _kind(path, head)) is not None:
            raise InputError(
                f"{path} is {kind}, which is not read; save it as PNG or TIFF"
            ) from None
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has too many pixels; at most {max_pixels / 1e6:.0f} megapixels are accepted"
        ) from error


def _pillow(path: Path, image: Image.Image, head: bytes, max_pixels: int) -> Decoded:
    if (kind := _not_read(image, head)) is not None:
        raise InputError(f"{path} is {kind}, which is not read; save it as PNG or TIFF")
    # Pillow counts a TIFF's masks and overviews too, and may not know their kinds of pixels; of a
    # PSD it gives all layers as they are shown
    frames = 1 if image.format in ("TIFF", "PSD") else getattr(image, "n_frames", 1)
    if image.format == "TIFF" and (place := tiff.index_of(path)):
        image.seek(place)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with its preview
        raise InputError(
            f"{path} holds {frames} pictures (an animation, or several pages); save the one to be"
            " restored as a file of its own"
        )
    check_size(path, image.width, image.height, max_pixels)
    said = png.chunks(path) if image.format == "PNG" else {}
    deep = image.format == "PNG" and head[24] == 16 and head[25] != 0
    stored = codecs.bits_of(path, image)
    wide = codecs.deep_pixels(path, image, stored) if stored > 8 else None
    lost = f"{path} has {stored} bits, of which 8 are read without a package: pip install"
    lost = f"{lost} 'restobox[heif]'" if stored > 8 and wide is None else ""
    top: float | np.ndarray | None = None
    if deep:
        array = png.deep_pixels(path)
        image.load()
    elif wide is not None:
        array, top = wide
        image.load()
        if array.shape[:2] != (image.height, image.width):
            raise InputError(
                f"{path} is damaged: its parts tell several sizes; copy or save it again"
            )
    else:
        array = _pixels(path, image, head[24] if image.format == "PNG" else 8)
    # after loading: some decoders turn the picture themselves, and then say so
    orientation, notes = int(image.getexif().get(ORIENTATION, 1)), notes_of(image)
    if image.format == "TIFF":
        notes = replace(notes, exif=exif_of_tiff(path))
    grey = array.shape[2] <= 2
    if said and (icc := png.profile(path, said, grey)) is not None:
        notes = replace(notes, icc=icc)
    if image.format in ("HEIF", "AVIF", "JPEG2000") and notes.icc is None:
        notes = replace(notes, icc=codecs.profile(path, grey))
    notes = replace(notes.of_channels(array.shape[2]), lost=lost)
    bits = 8 * array.dtype.itemsize if array.dtype.kind == "u" else 32
    if b"sBIT" in said and image.mode != "P" and bits in (head[24], 16):
        top = png.white_of(array, said[b"sBIT"], "transparency" in image.info)
    return Decoded(unit(path, array, top), bits, orientation, notes)


def _pixels(path: Path, image: Image.Image, depth: int) -> np.ndarray:
    """Pixels ``(H, W, C)`` of what Pillow decodes, from numbers of ``depth`` bits."""
    key = image.info.get("transparency")
    if isinstance(key, int) and (image.mode in ("1", "L") or image.mode.startswith("I;16")):
        single = image if image.mode.startswith("I") else image.convert("L")
        grey = np.asarray(single).astype(np.uint8 if single.mode == "L" else np.uint16)
        shown = key * 255 // (2**depth - 1) if depth < 8 else key  # the grey that is transparent
        opaque = (grey != shown) * grey.dtype.type(255 if single.mode == "L" else 65535)
        return np.stack([grey, opaque], -1)
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


def _not_read(image: Image.Image, head: bytes) -> str | None:
    """What a file is that Pillow knows and reads wrongly, or not without other programs."""
    if image.format in ("EPS", "WMF"):
        return "a drawing (PostScript or a Windows metafile)"
    return "an SGI picture of 16 bits" if image.format == "SGI" and head[3] == 2 else None


def _kind(path: Path, head: bytes) -> str | None:
    """What a file is that nothing here reads, in words."""
    begins = {
        b"\xff\x0a": "JPEG XL",
        b"\0\0\0\x0cJXL ": "JPEG XL",
        b"v/1\x01": "OpenEXR",
        b"#?RADIANCE": "a Radiance picture of high dynamic range",
        b"BPG\xfb": "BPG",
        b"II\xbc": "JPEG XR",
        b"8BPS": "a PSD of more than 8 bits, or of a kind that Pillow does not know",
        b"gimp xcf": "a picture of GIMP's",
        b"\x93NUMPY": "a NumPy array",
        b"PK\x03\x04": "a ZIP archive",
        b"MATLAB": "a file of MATLAB's",
        b"<svg": "a drawing (SVG)",
        b"<?xml": "XML, perhaps a drawing (SVG)",
        b"%PDF": "a PDF document",
        b"SIMPLE  =": "FITS",
        b"\x89HDF": "HDF 5",
    }
    found = next((kind for begin, kind in begins.items() if head.startswith(begin)), None)
    if found is None and head.startswith(b"\xff\xd8"):
        with path.open("rb") as file:
            frame = re.search(rb"\xff([\xc0-\xc3\xf7])..(.)", file.read(2**20), re.DOTALL)
        if frame is not None and frame[1] in (b"\xc3", b"\xf7"):
            return "a JPEG without loss (JPEG-LS or lossless JPEG)"
        if frame is not None and frame[2] != b"\x08":
            return f"a JPEG of {frame[2][0]} bits"
    return found


def _camera(path: Path, head: bytes, max_pixels: int) -> Decoded:
    """A camera's raw file, developed as its white balance says, in sRGB; no brighter than it was
    exposed.
    """
    try:
        import rawpy
    except ImportError as error:
        raise InputError(
            f"{path} is a camera's raw file, which needs a package: pip install 'restobox[raw]'"
        ) from error
    # DNG states the number of white; of others LibRaw lowers it to the brightest that it finds
    lowered = 0.0 if head[:4] in TIFF and tiff.is_dng(path) else 0.75
    with rawpy.imread(str(path)) as raw:
        check_size(path, raw.sizes.width, raw.sizes.height, max_pixels)
        developed = raw.postprocess(
            use_camera_wb=True,
            output_bps=16,
            gamma=SRGB,
            no_auto_bright=True,
            adjust_maximum_thr=lowered,
        )
    notes = tiff.notes_of_file(path).without_profile() if head[:4] in TIFF else Notes()
    return Decoded(unit(path, developed), 16, notes=notes)
