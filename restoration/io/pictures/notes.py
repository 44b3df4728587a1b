"""What a picture file says beside its pixels: read with them, written back with the result."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from restoration.io.containers.tiff import Tags, opened_tiff, resized
from restoration.io.pictures.dicom import Origin
from restoration.io.pictures.profiles import ADOBE, ADOBE_GAMMA, D65, rgb_profile
from restoration.io.pictures.values import quietly

ORIENTATION, EXIF, GPS, INTEROP = 0x0112, 0x8769, 0x8825, 0xA005
# of the first directory: description, maker, model, software, date, artist, copyright
KEPT = (270, 271, 272, 305, 306, 315, 33432)
COLOUR_SPACE, UNCALIBRATED = 0xA001, 65535
SIZE = (0xA002, 0xA003)  # of the picture along x and y
COMMENT = "Comment"
XMP = "XML:com.adobe.xmp"
# texts of old programs for what is kept as EXIF, XMP and profile
OTHERWISE = tuple(f"Raw profile type {kind}" for kind in ("exif", "APP1", "xmp", "icc", "icm"))
SEGMENT = 65_000  # bytes that a segment of JPEG holds for certain, its own header beside


@dataclass(frozen=True)
class Notes:
    """Attributes:
    icc: the colour profile.
    exif: with the orientation reset, since pixels are upright.
    xmp: the same.
    dpi: pixels per inch, ``(x, y)``.
    text: comments of PNG files, by keyword, and those of JPEG.
    origin: of a DICOM file, for the one that is derived from it.
    place: of a GeoTIFF, the tags that say where it lies, and its size ``(H, W)``.
    lost: what reading left out, for the user; else empty.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    origin: Origin | None = None
    place: tuple[Tags, tuple[int, int]] | None = None
    lost: str = ""

    def without_profile(self) -> Notes:
        """The same of pixels that are no longer in that profile."""
        return replace(self, icc=None)

    def of_channels(self, channels: int) -> Notes:
        """Without a profile that isn't one of pixels with so many channels (2, 4: with alpha)."""
        wanted = "GRAY" if channels <= 2 else "RGB"
        fits = self.icc is None or space_of(self.icc) == wanted
        return self if fits else self.without_profile()


def notes_of(image: Image.Image, upright: bool = True) -> Notes:
    """Of an opened file, once it is loaded.

    Args:
        upright: its pixels are turned as it says, so that the orientation is reset; else it is
            kept.
    """
    info, text = image.info, getattr(image, "text", {})
    dpi = info.get("dpi")
    with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
        dpi = None if dpi is None else (float(dpi[0]), float(dpi[1]))
    xmp = info.get("xmp") or text.get(XMP)
    return Notes(
        info.get("icc_profile") or _adobe(image),
        _exif(image, KEPT if upright else (*KEPT, ORIENTATION)),
        None if xmp is None else _upright(xmp if isinstance(xmp, bytes) else str(xmp).encode()),
        dpi if dpi and min(dpi) > 0 else None,
        _comment(info)
        | {key: str(value) for key, value in text.items() if key not in (XMP, *OTHERWISE)},
    )


def _comment(info: Any) -> dict[str, str]:
    """That of a JPEG or GIF, under PNG's word for it."""
    found = info.get("comment")
    words = found.decode("utf-8", "replace") if isinstance(found, bytes) else found
    return {COMMENT: words} if words and isinstance(words, str) else {}


def notes_of_tags(tags: dict[int, Any]) -> Notes:
    """Of a TIFF's tags, for kinds of pixels that Pillow doesn't read, without EXIF."""
    unit = {2: 1.0, 3: 2.54}.get(int(tags.get(296, 2)))  # per inch, per centimetre
    dpi = None
    with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        x, y = (tags[tag][0] / tags[tag][1] for tag in (282, 283))
        dpi = (x * unit, y * unit) if unit is not None and min(x, y) > 0 else None
    icc, xmp = (tags.get(tag) for tag in (34675, 700))
    return Notes(bytes(icc) if icc else None, None, _upright(bytes(xmp)) if xmp else None, dpi)


def _adobe(image: Image.Image) -> bytes | None:
    """A profile of Adobe RGB where a camera says so by its EXIF alone (DCF 2.0: the colour space is
    none, the interoperability R03).
    """
    with contextlib.suppress(Exception), quietly():  # a damaged directory says nothing
        words = image.getexif()
        space = words.get_ifd(EXIF).get(COLOUR_SPACE)
        if space == UNCALIBRATED and words.get_ifd(INTEROP).get(1) == "R03":
            return rgb_profile(ADOBE, D65, ADOBE_GAMMA)
    return None


def exif_of_tiff(path: Path) -> bytes | None:
    """Of a file whose pixels Pillow may not know, or which it closes before its directories are
    read.
    """
    try:
        old = Image.Exif()
        with path.open("rb") as file, quietly():
            old.load_from_fp(file)
            return _bytes(_copied(old, KEPT))
    except Exception:  # as below
        return None


def _exif(image: Image.Image, kept: tuple[int, ...]) -> bytes | None:
    """Tags that still hold; what belongs to the old pixels (strips, thumbnails) goes."""
    try:
        with quietly():
            return _bytes(_copied(image.getexif(), kept))
    except Exception:  # a damaged directory costs the notes, not the picture
        return None


def _bytes(exif: Image.Exif) -> bytes | None:
    return exif.tobytes() if len(exif) or exif.get_ifd(EXIF) or exif.get_ifd(GPS) else None


def _copied(old: Image.Exif, kept: tuple[int, ...]) -> Image.Exif:
    """Some tags of the first directory, and the directories of the camera's settings and place."""
    new = Image.Exif()
    new.update({tag: old[tag] for tag in kept if tag in old})
    for place in (EXIF, GPS):
        found = dict(old.get_ifd(place))
        if found.pop(INTEROP, None) is not None:  # a directory in it, known by its old place
            found[INTEROP] = dict(old.get_ifd(INTEROP))
        if found:
            new.get_ifd(place).update(found)
    return new


def sized(notes: Notes, size: tuple[int, int]) -> Notes:
    """With the EXIF of a picture of ``size (H, W)``, where it tells one: enlarged and turned ones
    have another.
    """
    old = Image.Exif()
    old.load(notes.exif or b"")
    found, told = old.get_ifd(EXIF), dict(zip(SIZE, size[::-1], strict=True))
    if not any(tag in found and found[tag] != n for tag, n in told.items()):
        return notes
    new = _copied(old, (*KEPT, ORIENTATION))
    new.get_ifd(EXIF).update({tag: n for tag, n in told.items() if tag in found})
    return replace(notes, exif=new.tobytes())


def _upright(xmp: bytes) -> bytes:
    xmp = re.sub(rb'(tiff:Orientation=")\d(")', rb"\g<1>1\2", xmp)
    return re.sub(rb"(<tiff:Orientation>)\d(<)", rb"\g<1>1\2", xmp)


def space_of(icc: bytes | None) -> str | None:
    """The profile's colour space, ``RGB``, ``GRAY``, ``CMYK`` ...; None where it doesn't tell."""
    if icc is None:
        return None
    try:
        return str(ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.xcolor_space).strip()
    except (OSError, ImageCms.PyCMSError):
        return None


def to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """A CMYK or Lab picture as sRGB, by its profile where it brings one.

    Raises:
        ValueError: Lab that can't be converted.
    """
    target = ImageCms.createProfile("sRGB")
    try:
        if image.mode == "LAB":
            source: Any = ImageCms.createProfile("LAB")
        elif space_of(icc) == "CMYK" and icc is not None:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        else:
            return image.convert("RGB")
        made = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (OSError, ImageCms.PyCMSError) as error:
        raise ValueError(f"{image.mode} pixels that its profile can't convert: {error}") from error
    assert made is not None
    return made


# -- back into files -------------------------------------------------------------------------------


def too_large(notes: Notes, format: str) -> list[str]:
    """What a JPEG has no room for: a segment of it holds less than 64 KiB."""
    if format != "JPEG":
        return []
    parts = {"EXIF": notes.exif, "XMP": notes.xmp}
    return [name for name, part in parts.items() if part is not None and len(part) > SEGMENT]


def saving(notes: Notes, format: str) -> dict[str, Any]:
    """Options of Pillow's ``save``, without what is :func:`too_large`."""
    left_out = too_large(notes, format)
    exif, xmp = (
        None if name in left_out else part
        for name, part in (("EXIF", notes.exif), ("XMP", notes.xmp))
    )
    found: dict[str, Any] = {"icc_profile": notes.icc, "exif": exif, "dpi": notes.dpi}
    if format in ("JPEG", "WEBP"):
        found["xmp"] = xmp
    comment = notes.text.get(COMMENT, "").encode()
    if format == "JPEG" and comment and len(comment) <= SEGMENT:
        found["comment"] = comment
    if format == "WEBP":
        found.pop("dpi")
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        for key, value in notes.text.items():
            info.add_itxt(key, value)
        if notes.xmp is not None:
            info.add_itxt(XMP, notes.xmp.decode("utf-8", "replace"))
        found["pnginfo"] = info
    return {key: value for key, value in found.items() if value is not None}


def png_chunks(notes: Notes) -> list[tuple[bytes, bytes]]:
    """The same for a PNG that is written chunk by chunk, between header and pixels."""
    found = []
    if notes.icc is not None:
        found.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(notes.icc)))
    if notes.dpi is not None:
        metres = [round(value / 0.0254) for value in notes.dpi]
        found.append((b"pHYs", struct.pack(">IIB", *metres, 1)))
    if notes.exif is not None:
        found.append((b"eXIf", notes.exif.removeprefix(b"Exif\0\0")))
    text = notes.text | ({} if notes.xmp is None else {XMP: notes.xmp.decode("utf-8", "replace")})
    for key, value in text.items():
        name = key.encode("latin-1", "replace")[:79]
        found.append((b"iTXt", name + b"\0\0\0\0\0" + value.encode()))
    return found


def tiff_options(notes: Notes, size: tuple[int, int]) -> dict[str, Any]:
    """Options of ``tifffile.imwrite`` for a picture of ``size (H, W)``: of EXIF the first
    directory's words, and room for the places of the others (:func:`add_directories`).
    """
    old = Image.Exif()
    old.load(notes.exif or b"")
    words = {tag: str(old[tag]) for tag in KEPT if isinstance(old.get(tag), str)}
    found: dict[str, Any] = {"metadata": None}
    # of the date tifffile takes no other form than EXIF's, which cameras don't always keep to
    for tag, name in ((270, "description"), (305, "software")):
        if tag in words:
            found[name] = words.pop(tag)
    tags: list[tuple[Any, ...]] = [(tag, "s", 0, word, True) for tag, word in words.items()]
    if ORIENTATION in old:
        tags.append((ORIENTATION, "H", 1, int(old[ORIENTATION]), True))
    for tag, data in ((34675, notes.icc), (700, notes.xmp)):
        if data is not None:
            tags.append((tag, "B", len(data), data, True))
    # tifffile writes no directories: their tags have numbers beside their own for now
    tags += [(tag - 1, "I", 1, 0, True) for tag in (EXIF, GPS) if old.get_ifd(tag)]
    if notes.place is not None:
        place, (height, width) = notes.place
        tags += [(*tag, True) for tag in resized(place, size[0] / height, size[1] / width)]
    found["extratags"] = tags
    if notes.dpi is not None:
        found |= {"resolution": notes.dpi, "resolutionunit": "INCH"}
    return found


def add_directories(path: Path, notes: Notes) -> None:
    """Write EXIF's directories (the camera's settings, its place on the ground) behind the pixels
    of a TIFF that was written with :func:`tiff_options`.
    """
    exif = Image.Exif()
    exif.load(notes.exif or b"")
    exif = _copied(exif, ())
    with opened_tiff(path) as file:
        order, tags = file.byteorder, file.pages.first.tags
        found = {tag: tags[tag - 1] for tag in (EXIF, GPS) if tag - 1 in tags}
        places = {tag: (one.offset, one.valueoffset) for tag, one in found.items()}
    head = b"II*\0" if order == "<" else b"MM\0*"
    with path.open("r+b") as target:
        for tag, (begin, at) in places.items():
            directory = ImageFileDirectory_v2(head + bytes(4), group=tag)
            for key, value in exif.get_ifd(tag).items():
                directory[key] = value
            end = target.seek(0, os.SEEK_END)
            end += target.write(bytes(end % 2))  # directories begin at even places
            target.write(directory.tobytes(end))
            target.seek(begin)
            target.write(struct.pack(f"{order}H", tag))
            target.seek(at)
            target.write(struct.pack(f"{order}I", end))
