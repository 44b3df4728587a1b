"""DICOM files of restored images. They are derived from the file that was read: its patient, study,
place and calibration stay, it is named as the source, and they have identifiers of their own.
Without such a file they are secondary captures, in which nothing about a patient is made up.
"""

from __future__ import annotations

import copy
import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.containers.packages import need
from restoration.io.pictures.dicom import bits_of, padding_of
from solvers.inputs.errors import InputError

WHAT = "restored by restobox"
# how old numbers were stored, and what only holds for them
OLD = (
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "PlanarConfiguration"),
    *("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingRangeLimit"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    *("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData"),
    *("SegmentedBluePaletteColorLookupTableData", "PaletteColorLookupTableUID"),
    *("IconImageSequence", "MACParametersSequence", "DigitalSignaturesSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "ModalityLUTSequence"),
)
# of enhanced files, whose frames become files
GROUPS = (
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "NumberOfFrames"),
    *("DimensionOrganizationSequence", "DimensionIndexSequence", "DimensionOrganizationType"),
    "ConcatenationUID",
)
EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "StudyID"),
)


def _uid() -> str:
    found: str = need("pydicom", "DICOM files").uid.generate_uid(prefix=None)
    return found


@dataclass(frozen=True)
class Series:
    """What the files of one result share: identifiers, which are drawn when it is made."""

    study: str = field(default_factory=_uid)
    series: str = field(default_factory=_uid)
    what: str = WHAT


@dataclass(frozen=True)
class Codes:
    """Numbers to store.

    Attributes:
        values: integers ``(H, W)``, ``(n, H, W)`` or, with ``colour``, a last axis of RGB.
        bits: of which so many count.
        slope, shift: ``slope number + shift`` is what they mean; None: themselves.
    """

    values: np.ndarray
    bits: int
    slope: float | None = None
    shift: float = 0.0
    colour: bool = False


def codes_like(
    head: Any, values: np.ndarray, low: float, high: float, padding: np.ndarray | None = None
) -> Codes:
    """Numbers that mean ``values`` in a file with this head, where ``low`` and ``high`` are the
    meanings of the least and the largest that it can store.

    Files of fewer bits than their numbers have room for get them where the values go further; of
    files of floats, the ends of the values.

    Args:
        padding: bool, where there is no pixel, of the file's size, or of the values'.
    """
    colour = int(head.get("SamplesPerPixel", 1) or 1) == 3
    colour = colour or head.get("PhotometricInterpretation") == "PALETTE COLOR"
    if colour and values.ndim >= 3 and values.shape[-1] == 3:
        white = 255 if high <= 255 else 65535
        codes = np.rint(np.clip(values.astype(np.float64) / high, 0, 1) * white)
        return Codes(
            codes.astype(np.uint8 if white == 255 else np.uint16),
            8 if white == 255 else 16,
            colour=True,
        )
    bits = 8 if colour else bits_of(head)
    if not colour and not head.get("BitsStored") and int(head.get("BitsAllocated") or 0) > 16:
        low, high = float(values.min()), float(max(values.max(), np.nextafter(values.min(), 1e30)))
    signed = not colour and bool(head.get("PixelRepresentation", 0))
    room = 8 if bits <= 8 else 16 if bits <= 16 else 32
    least = -(2 ** (bits - 1)) if signed else 0
    slope = (high - low) / (2**bits - 1)
    shift = low - slope * least
    codes = np.rint((values.astype(np.float64) - shift) / slope)
    inverse = head.get("PhotometricInterpretation") == "MONOCHROME1"
    if not inverse and (codes.min() < least or codes.max() > least + 2**bits - 1):
        bits = room
        least = -(2 ** (bits - 1)) if signed else 0
    codes = codes.clip(least, least + 2**bits - 1)
    codes = 2 * least + 2**bits - 1 - codes if inverse else codes
    if padding is not None and (none := padding_of(head)) is not None:
        rows, columns = (
            np.arange(new) * old // new
            for new, old in zip(values.shape[-2:], padding.shape[-2:], strict=True)
        )
        codes[padding[..., rows, :][..., columns]] = none[0]
    dtype = np.dtype(f"{'i' if signed else 'u'}{room // 8}")
    same = (slope, shift) == (1.0, 0.0)
    return Codes(codes.astype(dtype), bits, None if same else slope, shift)


def codes_of(values: np.ndarray, top: float) -> Codes:
    """16-bit numbers of values from 0 to ``top``, in any unit."""
    slope = float(decimal(top / 65535)) if top > 0 else 1.0
    codes = np.rint(np.clip(values.astype(np.float64) / slope, 0, 65535))
    return Codes(codes.astype(np.uint16), 16, slope)


def derived(head: Any, codes: Codes, series: Series, number: int = 1, frame: int = 0) -> Any:
    """A dataset of pydicom's.

    Args:
        head: of the source's file; None: there is none.
        codes: its pixels.
        number: of the instance in the series.
        frame: of the source, where the pixels are one of several frames.
    """
    pydicom = need("pydicom", "DICOM files")
    frames = 1 if codes.values.ndim == 2 + codes.colour else len(codes.values)
    data = pydicom.Dataset() if head is None else _copy(head)
    uids, several = pydicom.uid, frames > 1
    enhanced = head is not None and "PerFrameFunctionalGroupsSequence" in head
    if head is None or enhanced or not head.get("SOPClassUID"):
        for name in GROUPS:
            _drop(data, name)
        data.SOPClassUID = (
            uids.SecondaryCaptureImageStorage
            if not several
            else uids.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
            if codes.values.dtype.itemsize == 2
            else uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage
        )
        data.ConversionType = "WSD"
    elif several and data.SOPClassUID == uids.UltrasoundImageStorage:
        data.SOPClassUID = uids.UltrasoundMultiFrameImageStorage
    for name in EMPTY:
        if name not in data:
            setattr(data, name, "")
    if not data.get("StudyInstanceUID"):
        data.StudyInstanceUID = series.study
    if "Modality" not in data:
        data.Modality = "OT"
    kind = [str(v) for v in data.get("ImageType", None) or []][2:]
    data.ImageType = ["DERIVED", "SECONDARY", *kind]
    data.SOPInstanceUID, data.SeriesInstanceUID = _uid(), series.series
    data.SeriesNumber, data.InstanceNumber = None, number
    before = "" if head is None else str(data.get("SeriesDescription", "") or "")
    data.SeriesDescription = f"{before}, {series.what}".removeprefix(", ")[:64]
    data.DerivationDescription = series.what
    now = datetime.datetime.now()
    data.InstanceCreationDate, data.InstanceCreationTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    if head is not None and head.get("SOPInstanceUID") and head.get("SOPClassUID"):
        data.SourceImageSequence = [_reference(head, frame if not several else None)]
    _store(data, codes, frames)
    if head is not None and (int(head.Rows), int(head.Columns)) != (data.Rows, data.Columns):
        _resize(data, head)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    data.file_meta = meta
    return data


def set_place(
    data: Any, corner: np.ndarray | None, axes: np.ndarray | None, spacing: tuple[float, ...]
) -> None:
    """Where the picture lies: as of :class:`restoration.io.pictures.dicom.Frame`."""
    data.SliceThickness = decimal(spacing[0])
    data.SpacingBetweenSlices = decimal(spacing[0])
    data.PixelSpacing = [decimal(spacing[1]), decimal(spacing[2])]
    if corner is not None and axes is not None:
        data.ImagePositionPatient = [decimal(v) for v in corner]
        data.ImageOrientationPatient = [decimal(v) for v in np.ravel(axes)]


def save(data: Any, path: Path) -> None:
    """Write a dataset as a file."""
    need("pydicom", "DICOM files").dcmwrite(path, data, enforce_file_format=True)


def _copy(head: Any) -> Any:
    """All tags but those that only hold for the old pixels, in a dataset of its own."""
    data = copy.deepcopy(head)
    for name in OLD:
        _drop(data, name)
    return data


def _drop(data: Any, name: str) -> None:
    if name in data:
        delattr(data, name)


def _reference(head: Any, frame: int | None) -> Any:
    pydicom = need("pydicom", "DICOM files")
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = (
        head.SOPClassUID,
        head.SOPInstanceUID,
    )
    if frame is not None and int(head.get("NumberOfFrames", 1) or 1) > 1:
        item.ReferencedFrameNumber = frame + 1
    return item


def _store(data: Any, codes: Codes, frames: int) -> None:
    values = codes.values
    signed = values.dtype.kind == "i"
    data.Rows, data.Columns = values.shape[-3:-1] if codes.colour else values.shape[-2:]
    data.SamplesPerPixel = 3 if codes.colour else 1
    if codes.colour:
        data.PhotometricInterpretation, data.PlanarConfiguration = "RGB", 0
    elif data.get("PhotometricInterpretation") != "MONOCHROME1":
        data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = 8 * values.dtype.itemsize
    data.BitsStored, data.HighBit, data.PixelRepresentation = codes.bits, codes.bits - 1, signed
    if frames > 1:
        data.NumberOfFrames = frames
    else:
        _drop(data, "NumberOfFrames")
    for name in ("RescaleSlope", "RescaleIntercept"):
        _drop(data, name)
    if codes.slope is not None:
        data.RescaleSlope, data.RescaleIntercept = decimal(codes.slope), decimal(codes.shift)
        if "RescaleType" not in data:
            data.RescaleType = "US"  # no unit is said
    content = values.astype(values.dtype.newbyteorder("<")).tobytes()
    if len(content) >= 2**32 - 2:
        raise InputError("DICOM files hold less than 4 GiB of pixels; write another format")
    data.PixelData = content + b"\0" * (len(content) % 2)
    data["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"


def _resize(data: Any, head: Any) -> None:
    """Distances of an enlarged picture's pixels; what counts pixels of the old one goes."""
    factors = int(head.Rows) / data.Rows, int(head.Columns) / data.Columns
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if old := data.get(name):
            setattr(data, name, [decimal(float(v) * f) for v, f in zip(old, factors, strict=True)])
    position, axes = data.get("ImagePositionPatient"), data.get("ImageOrientationPatient")
    if position and axes and head.get("PixelSpacing"):
        # the first pixel's centre moves by half of the difference of the pixels
        moved = np.array(position, float)
        for axis, old, f in zip(
            np.array(axes, float).reshape(2, 3),
            reversed([float(v) for v in head.PixelSpacing]),
            reversed(factors),
            strict=True,
        ):
            moved += axis * old * (f - 1) / 2
        data.ImagePositionPatient = [decimal(v) for v in moved]
    for name in ("SequenceOfUltrasoundRegions", "PixelAspectRatio"):
        _drop(data, name)
    for element in [e for e in data if 0x6000 <= e.tag.group <= 0x60FF]:  # overlays
        del data[element.tag]


def decimal(number: float) -> str:
    """A number in at most 16 characters, as DICOM's decimal strings have them."""
    for digits in range(15, 0, -1):
        text = f"{float(number):.{digits}g}"
        if len(text) <= 16:
            return text
    raise InputError(f"{number} can't be written to DICOM")
