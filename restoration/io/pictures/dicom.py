"""DICOM images, frame by frame: pixels as the file's own numbers say, wherever the file keeps these
(enhanced files keep them in functional groups), and places and spacing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.packages import need
from solvers.inputs.errors import InputError
from solvers.inputs.memory import check_array

ENDINGS = (".dcm", ".dicom", ".ima")
# what images of one place differ in, and the functional groups of enhanced files that hold it
MOMENTS = (
    ("TemporalPositionIndex", "FrameContentSequence"),
    ("TemporalPositionIdentifier", ""),
    ("EffectiveEchoTime", "MREchoSequence"),
    ("EchoTime", ""),
    ("DiffusionBValue", "MRDiffusionSequence"),
    ("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence"),
)
BARE = (b"\x02\0", b"\x08\0")  # groups of the first tag of files without a mark


@dataclass(frozen=True)
class Frame:
    """One picture of a file.

    Attributes:
        pixels: ``(H, W)`` in the units of the rescale, or RGB ``(H, W, 3)``.
        black, white: the pixels' values of the least and the largest number that can be stored.
        place: along the slice normal, in millimetres, else the instance's number.
        spacing: millimetres of ``(slice, row, column)``.
        corner: millimetres of the first pixel's centre in the patient's system, ``(3,)``, or None.
        axes: ``(2, 3)`` directions in which columns and rows go on, or None.
        padding: bool ``(H, W)``, where the file says that nothing was seen (there ``pixels`` hold
            the darkest of the others), or None.
        moment: what tells it from others of its place (time, echo, diffusion), growing.
    """

    pixels: np.ndarray
    black: float
    white: float
    place: float
    spacing: tuple[float, float, float]
    corner: np.ndarray | None = None
    axes: np.ndarray | None = None
    padding: np.ndarray | None = None
    moment: tuple[float, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where a picture comes from, for the file that is derived from it.

    Attributes:
        head: the tags of its file.
        frame: its number there.
        low, high: the pixels' values, in the file's units, of the least and the largest number that
            can be stored.
        zero, one: of those of 0 and 1 in the picture as it is restored.
        padding: as of :class:`Frame`.
    """

    head: Any
    frame: int
    low: float
    high: float
    zero: float
    one: float
    padding: np.ndarray | None = None


def is_dicom(path: Path) -> bool:
    """By the mark behind a file's preamble, or, in files without one, by its ending."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in ENDINGS


def head_of(path: Path) -> Any:
    """The tags of a file without its pixels; None where it holds no image.

    Raises:
        InputError: no DICOM file.
    """
    head = _read(path, stop_before_pixels=True)
    return head if "Rows" in head and "Columns" in head else None


def _read(path: Path, **options: Any) -> Any:
    """A dataset of pydicom's, also of old files that begin with their first tag, without a mark.

    Raises:
        InputError: no DICOM file.
    """
    pydicom = need("pydicom", "DICOM files")
    try:
        return pydicom.dcmread(path, **options)
    except pydicom.errors.InvalidDicomError:
        with path.open("rb") as file:
            begins = file.read(4)
        data = None
        if begins[:2] in BARE and begins[3:] == b"\0":
            data = pydicom.dcmread(path, force=True, **options)
        if data is None or "SOPClassUID" not in data:
            raise InputError(f"{path} is no DICOM file") from None
        if "TransferSyntaxUID" not in data.file_meta:
            implicit = bool(data.original_encoding[0])
            syntaxes = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian
            data.file_meta.TransferSyntaxUID = syntaxes[implicit]
        return data


def picture_of(path: Path, max_pixels: int) -> tuple[np.ndarray, int, Origin]:
    """The one picture of a file: values ``(H, W, C)`` in [0, 1], their bits, and where they come
    from.

    Of 8 bits 0 and 1 are the ends of what can be stored; of more, which files never use to their
    ends, the least and the largest value that it holds.

    Raises:
        InputError: several frames, none, or too many pixels.
    """
    head = head_of(path)
    if head is None:
        raise InputError(f"{path} holds no image")
    if count_of(head) > 1:
        raise InputError(
            f"{path} holds {count_of(head)} frames; clips are restored by `restobox restore"
            " ultrasound`, volumes by `restobox restore mri`"
        )
    if int(head.Rows) * int(head.Columns) > max_pixels:
        raise InputError(
            f"{path} has {head.Columns} x {head.Rows} pixels; at most {max_pixels / 1e6:.0f}"
            " megapixels are accepted"
        )
    frame = next(frames_of(path))
    pixels, bits = frame.pixels.astype(np.float64), bits_of(head)
    if not np.isfinite(pixels).all():
        raise InputError(f"{path} holds NaN or infinite values")
    zero, one = sorted((frame.black, frame.white))
    if bits > 8 and pixels.ndim == 2:
        zero, one = float(pixels.min()), float(pixels.max())
    if not zero < one:
        raise InputError(f"{path} shows nothing: all its pixels hold {zero:g}")
    values = ((pixels - zero) / (one - zero)).astype(np.float32)
    values = values[..., None] if values.ndim == 2 else values
    origin = Origin(head, 0, frame.black, frame.white, zero, one, frame.padding)
    return values.clip(0, 1), 8 if bits <= 8 else 16, origin


def bits_of(head: Any) -> int:
    """Bits of the numbers that count; of floats, which have none, those of integers in their
    place.
    """
    return int(_number(head, "BitsStored", 8 if _number(head, "BitsAllocated", 8) <= 8 else 16))


def padding_of(head: Any) -> tuple[int, int] | None:
    """The numbers, from the least to the largest, that stand for no pixel (Pixel Padding Value,
    Range Limit); None: there are none.
    """
    if not _filled(head.get("PixelPaddingValue")):
        return None
    first = int(_number(head, "PixelPaddingValue", 0))
    ends = first, int(_number(head, "PixelPaddingRangeLimit", first))
    room = 2 ** bits_of(head)
    # as they are stored, whatever sign the tag was written with
    signed = bool(_number(head, "PixelRepresentation", 0))
    low, high = sorted((v + room // 2) % room - room // 2 if signed else v % room for v in ends)
    return low, high


def count_of(head: Any) -> int:
    """Number of frames."""
    return int(_number(head, "NumberOfFrames", 1))


def frames_of(path: Path) -> Iterator[Frame]:
    """The pictures of a file, in the order that they are stored in.

    Raises:
        InputError: a kind of pixels that is not known, or whose decoder is missing.
    """
    pydicom = need("pydicom", "DICOM files")
    data = _read(path)
    count, size = count_of(data), (int(data.Rows), int(data.Columns))
    if "PixelData" in data:
        _complete(data, count * size[0] * size[1])
    samples = int(_number(data, "SamplesPerPixel", 1))
    check_array(path, (count, *size, samples), 8)
    kind = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    bits = bits_of(data)
    above = int(_number(data, "HighBit", bits - 1)) + 1 - bits
    signed = bool(_number(data, "PixelRepresentation", 0))
    if above > 0:  # old files keep other things in the low bits
        data.BitsStored, data.HighBit = data.BitsAllocated, data.BitsAllocated - 1
        data.PixelRepresentation = 0
    try:
        pixels = data.pixel_array
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        found = data.file_meta.get("TransferSyntaxUID", "")
        syntax = getattr(found, "name", "unknown")
        if not getattr(found, "is_compressed", True):
            raise InputError(
                f"{path} does not say how its pixels are stored ({str(error).splitlines()[0]});"
                " write it again with another program"
            ) from error
        raise InputError(
            f"{path} is compressed as {syntax}, which needs another decoder: pip install"
            f" 'pylibjpeg[all]' ({str(error).splitlines()[0]})"
        ) from error
    if above > 0:
        pixels = (pixels >> above) & (2**bits - 1)
        pixels = np.where(pixels >> (bits - 1), pixels - 2.0**bits, pixels) if signed else pixels
    low = -float(2 ** (bits - 1)) if signed else 0.0
    high = low + 2**bits - 1
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
    padding = None
    if samples == 1 and kind != "PALETTE COLOR" and (none := padding_of(data)) is not None:
        falling = _number(data, "RescaleSlope", 1, 0, "PixelValueTransformationSequence") < 0
        pixels, padding = _without(pixels, none, (kind == "MONOCHROME1") != falling)
        padding = None if padding is None else padding.reshape(count, *size)
    table = (data.get("ModalityLUTSequence") or [None])[0]
    if kind == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, data)
        low, high, samples = 0.0, float(np.iinfo(pixels.dtype).max), 3
    elif not (
        kind in ("MONOCHROME1", "MONOCHROME2", "RGB")
        or (kind.startswith("YBR") and samples == 3)  # pydicom has made it RGB
    ):
        raise InputError(
            f"{path} has the photometric interpretation {kind}; MONOCHROME1, MONOCHROME2, RGB, YBR"
            " and PALETTE COLOR are accepted"
        )
    if table is not None and samples == 1:  # takes the place of slope and intercept
        pixels = pydicom.pixels.apply_modality_lut(pixels.astype(np.int64), data)
        low, high = 0.0, 2.0 ** int(table.LUTDescriptor[2]) - 1
    pixels = pixels.reshape(count, *size, samples).astype(np.float32)
    if kind == "MONOCHROME1":
        pixels = low + high - pixels
    for k, frame in enumerate(pixels):
        geometry = (_place(data, k), spacing_of(data, k), *where(data, k))
        if samples == 3:
            yield Frame(frame, low, high, *geometry)
            continue
        slope = _number(data, "RescaleSlope", 1, k, "PixelValueTransformationSequence")
        shift = _number(data, "RescaleIntercept", 0, k, "PixelValueTransformationSequence")
        black, white = low * slope + shift, high * slope + shift
        hidden = None if padding is None or not padding[k].any() else padding[k]
        one = Frame(frame[..., 0] * slope + shift, black, white, *geometry)
        moment = tuple(_number(data, name, 0, k, group) for name, group in MOMENTS)
        yield replace(one, padding=hidden, moment=moment)


def _complete(data: Any, pixels: int) -> None:
    """Fill in what files leave out of how their numbers are stored, where it can be meant but one
    way.

    Args:
        pixels: of all frames.
    """
    words: dict[str, Any] = {"SamplesPerPixel": 1}
    samples = int(_number(data, "SamplesPerPixel", 1))
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not syntax.is_compressed and pixels > 0:
        words["BitsAllocated"] = len(data.PixelData) // (pixels * samples) * 8
    words["BitsStored"] = data.get("BitsAllocated") or words.get("BitsAllocated")
    words["HighBit"] = int(data.get("BitsStored") or words["BitsStored"] or 1) - 1
    words["PixelRepresentation"] = 0
    words["PhotometricInterpretation"] = "MONOCHROME2" if samples == 1 else "RGB"
    for name, value in words.items():
        if not _filled(data.get(name)) and value is not None:
            setattr(data, name, value)


def _without(
    pixels: np.ndarray, none: tuple[int, int], inverse: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Stored numbers in which those that stand for no pixel are the darkest of the others, and
    where they were.
    """
    hidden = (pixels >= none[0]) & (pixels <= none[1])
    if not hidden.any() or hidden.all():
        return pixels, None
    shown = pixels[~hidden]
    return np.where(hidden, shown.max() if inverse else shown.min(), pixels), hidden


def _tag(data: Any, name: str, k: int, sequence: str) -> Any:
    """A tag of frame k: its functional group's, the shared one, or the file's; None where it is
    missing or empty.
    """
    groups = []
    frames = data.get("PerFrameFunctionalGroupsSequence") or []
    groups += [frames[k]] if k < len(frames) else []
    groups += list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    for group in groups:
        for item in list(group.get(sequence) or [])[:1]:
            if _filled(item.get(name)):
                return item.get(name)
    value = data.get(name)
    return value if _filled(value) else None


def _filled(value: Any) -> bool:
    return (
        value is not None
        and str(value) != ""
        and not (hasattr(value, "__len__") and not len(value))
    )


def _number(data: Any, name: str, default: float, k: int = 0, sequence: str = "") -> float:
    value = _tag(data, name, k, sequence)
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError):
        raise InputError(f"the tag {name} holds {value!r}, which is no number") from None


def where(data: Any, k: int) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """The first pixel's place in frame k, and the directions in which columns and rows go on.

    Files of several frames that are not enhanced name the first one's place, and the others'
    distances from it, or the spacing; else only the first is known, and so none.
    """
    position = _tag(data, "ImagePositionPatient", k, "PlanePositionSequence")
    axes = _tag(data, "ImageOrientationPatient", k, "PlaneOrientationSequence")
    if position is None or axes is None or len(position) != 3 or len(axes) != 6:
        return None, None
    corner, directions = np.array(position, float), np.array(axes, float).reshape(2, 3)
    if count_of(data) == 1 or "PerFrameFunctionalGroupsSequence" in data:
        return corner, directions
    offsets = np.ravel(data.get("GridFrameOffsetVector") or ()).astype(float)
    between = _number(data, "SpacingBetweenSlices", 0)
    if len(offsets) == count_of(data):
        far = float(offsets[k] - offsets[0])
    elif between:
        far = k * between
    else:
        return None, None
    return corner + far * np.cross(*directions), directions


def _place(data: Any, k: int) -> float:
    corner, axes = where(data, k)
    if corner is not None and axes is not None:
        return float(np.cross(*axes) @ corner)
    number = _number(data, "InstanceNumber", 0)
    return number + k if count_of(data) > 1 else number


def spacing_of(data: Any, k: int) -> tuple[float, float, float]:
    """Millimetres of frame k's (slice, row, column)."""
    plane = _tag(data, "PixelSpacing", k, "PixelMeasuresSequence") or (1, 1)
    thick = _number(data, "SliceThickness", 1, k, "PixelMeasuresSequence")
    depth = _number(data, "SpacingBetweenSlices", thick, k, "PixelMeasuresSequence")
    row, column = (float(v) for v in plane)
    return abs(depth) or 1.0, row, column
