"""Numbers of DICOM files in whatever form: padding, signs, negative slopes, floats, black that is
the largest. What is read is how bright the picture is, and goes back as the file's numbers.
"""

import numpy as np
import pytest

from restoration.io.images import read_image, write_image
from restoration.io.mri import read_scan
from restoration.io.mri_output import write_reconstruction
from restoration.io.ultrasound import read_clip, write_clip
from solvers.inputs.errors import InputError

pydicom = pytest.importorskip("pydicom")
ROWS, COLUMNS = np.mgrid[0:20, 0:24]
BRIGHT = 200 + 60 * (ROWS + COLUMNS)  # 200 to 2720
HOLE = (ROWS < 4) | (COLUMNS > 20)


def dicom(path, pixels, bits, **tags):
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = 8 * pixels.itemsize
    if pixels.dtype.kind == "f":
        data.FloatPixelData = pixels.tobytes()
    else:
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.BitsStored, data.HighBit = bits, bits - 1
        data.PixelData, data["PixelData"].VR = pixels.tobytes(), "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def kinds():
    inverse = {"PhotometricInterpretation": "MONOCHROME1"}
    high = BRIGHT.astype(np.uint16) | (ROWS.astype(np.uint16) % 2 << 13)
    return {
        "12 of 16 bits": (BRIGHT.astype(np.uint16), 12, {}),
        "inverse": ((4095 - BRIGHT).astype(np.uint16), 12, inverse),
        "signed": (BRIGHT.astype(np.int16), 16, {}),
        "signed, inverse": ((3000 - BRIGHT).astype(np.int16), 16, inverse),
        "signed, 12 bits, not extended": ((BRIGHT - 2048).astype(np.uint16) & 4095, 12, "signed"),
        "rescaled below 0": (
            BRIGHT.astype(np.uint16),
            12,
            {"RescaleSlope": 1, "RescaleIntercept": -1024},
        ),
        "negative slope": (
            (4095 - BRIGHT).astype(np.uint16),
            12,
            {"RescaleSlope": -1, "RescaleIntercept": 4095},
        ),
        "other things in the high bits": (high, 12, {}),
        "32 bits": ((BRIGHT * 1e6).astype(np.uint32), 32, {}),
        "floats": ((BRIGHT / 1e3).astype(np.float32), 0, {}),
    }


def copy_as_shown(path, shown):
    """Read as a picture and as a clip, whose values are known; written again as b.dcm and c.dcm."""
    photo, clip = read_image(path), read_clip(path)
    np.testing.assert_allclose(photo.pixels[0], shown, atol=1e-6)
    np.testing.assert_allclose(clip.frame(0), shown, atol=1e-6)
    write_image(path.with_name("b.dcm"), photo)
    write_clip(path.with_name("c.dcm"), iter([clip.frame(0)]), 1, clip)


@pytest.mark.parametrize("kind", kinds())
def test_numbers_of_any_form(tmp_path, kind):
    stored, bits, tags = kinds()[kind]
    tags = {"PixelRepresentation": 1} if tags == "signed" else tags
    path = dicom(tmp_path / "a.dcm", stored, bits, **tags)
    shown = (BRIGHT - BRIGHT.min()) / np.ptp(BRIGHT)
    copy_as_shown(path, shown)
    for name in ("b.dcm", "c.dcm"):
        before, after = (pydicom.dcmread(tmp_path / n) for n in ("a.dcm", name))
        old, new = (pydicom.pixels.apply_rescale(d.pixel_array, d) for d in (before, after))
        np.testing.assert_allclose(new, old, rtol=1e-4)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("stored", "tags"),
    [
        (np.int16, {"PixelPaddingValue": -2000}),
        (np.uint16, {"PixelPaddingValue": 65535}),
        (np.uint16, {"PixelPaddingValue": 0}),
        (np.uint16, {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 60020}),
    ],
)
def test_padding_is_no_part_of_the_picture(tmp_path, stored, tags, inverse):
    """It has no part in what black and white are, and comes back."""
    first = tags["PixelPaddingValue"]
    pixels = (3000 - BRIGHT if inverse else BRIGHT).astype(stored)
    pixels[HOLE] = first + (ROWS % 5 * ("PixelPaddingRangeLimit" in tags))[HOLE]
    kind = "MONOCHROME1" if inverse else "MONOCHROME2"
    path = dicom(tmp_path / "a.dcm", pixels, 16, PhotometricInterpretation=kind, **tags)
    least, most = BRIGHT[~HOLE].min(), BRIGHT[~HOLE].max()
    shown = np.where(HOLE, 0, (BRIGHT - least) / (most - least))
    copy_as_shown(path, shown)
    for name in ("b.dcm", "c.dcm"):
        after = pydicom.dcmread(tmp_path / name).pixel_array
        np.testing.assert_array_equal(after, np.where(HOLE, first, pixels))
    if stored == np.uint16 and not inverse:
        scan = read_scan(path)
        np.testing.assert_array_equal(scan.magnitude[0], np.where(HOLE, least, BRIGHT))
        write_reconstruction(tmp_path / "d.dcm", scan.magnitude, scan)
        after = pydicom.dcmread(tmp_path / "d.dcm").pixel_array
        np.testing.assert_array_equal(after, np.where(HOLE, first, pixels))


def test_padding_of_a_negative_slope(tmp_path):
    pixels = np.where(HOLE, 0, 4095 - BRIGHT).astype(np.uint16)
    tags = {"RescaleSlope": -1, "RescaleIntercept": 4095, "PixelPaddingValue": 0}
    path = dicom(tmp_path / "a.dcm", pixels, 12, **tags)
    least = BRIGHT[~HOLE].min()
    np.testing.assert_array_equal(read_scan(path).magnitude[0], np.where(HOLE, least, BRIGHT))
    write_image(tmp_path / "b.dcm", read_image(path))
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "b.dcm").pixel_array, pixels)


def test_what_is_no_magnitude_is_said(tmp_path):
    path = dicom(tmp_path / "a.dcm", (3000 - BRIGHT).astype(np.int16), 16)
    data = pydicom.dcmread(path)
    data.PhotometricInterpretation = "MONOCHROME1"
    data.save_as(path)
    with pytest.raises(InputError, match=r"which are no magnitudes .*\(MONOCHROME1\)"):
        read_scan(path)


def test_old_files_without_a_mark(tmp_path):
    """They begin with their first tag."""
    data = pydicom.dcmread(dicom(tmp_path / "a.dcm", BRIGHT.astype(np.uint16), 12))
    plain = pydicom.dataset.Dataset(data)
    with (tmp_path / "b.ima").open("wb") as file:
        pydicom.dcmwrite(file, plain, implicit_vr=True, little_endian=True)
    assert (tmp_path / "b.ima").read_bytes()[:2] == b"\x08\0"
    np.testing.assert_array_equal(read_scan_of(tmp_path / "b.ima"), BRIGHT)
    (tmp_path / "c.dcm").write_bytes(b"\x08\0\x05\0\x02\0\0\0ab")
    with pytest.raises(InputError, match="is no DICOM file"):
        read_image(tmp_path / "c.dcm")


def read_scan_of(path):
    """The one slice of a file, under an ending that scans have."""
    return read_scan(path.rename(path.with_suffix(".dcm"))).magnitude[0]


def test_mosaics_are_refused(tmp_path):
    kind = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    path = dicom(tmp_path / "a.dcm", BRIGHT.astype(np.uint16), 12, ImageType=kind)
    with pytest.raises(InputError, match="is a mosaic, whose tiles are slices"):
        read_scan(path)


@pytest.mark.parametrize(
    ("tags", "depth"),
    [({"GridFrameOffsetVector": [0, 3, 6]}, 3), ({"SpacingBetweenSlices": 2}, 2), ({}, None)],
)
def test_frames_of_plain_files_are_slices(tmp_path, tags, depth):
    """Of files that aren't enhanced: with the places that they tell, or without any."""
    place = {"ImagePositionPatient": [0, 0, 7], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    data = pydicom.dcmread(dicom(tmp_path / "a.dcm", BRIGHT.astype(np.uint16), 12, **place))
    data.NumberOfFrames = 3
    frames = np.stack([BRIGHT + k for k in range(3)]).astype(np.uint16)
    data.PixelData = frames.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(tmp_path / "b.dcm")
    scan = read_scan(tmp_path / "b.dcm")
    np.testing.assert_array_equal(scan.magnitude, frames)
    assert scan.volumes == 1
    assert (scan.affine is None) == (depth is None)
    if depth is not None:
        assert scan.affine[2].tolist() == [0, 0, depth, 7]


HOW_STORED = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("tag", [*HOW_STORED, "PhotometricInterpretation", "SOPClassUID"])
def test_tags_that_can_be_meant_but_one_way(tmp_path, tag, empty):
    data = pydicom.dcmread(dicom(tmp_path / "a.dcm", BRIGHT.astype(np.uint16), 16))
    if empty:
        data[tag].value = None
    else:
        del data[tag]
    data.save_as(tmp_path / "b.dcm", enforce_file_format=False)
    scan, photo = read_scan(tmp_path / "b.dcm"), read_image(tmp_path / "b.dcm")
    np.testing.assert_array_equal(scan.magnitude[0], BRIGHT)
    write_image(tmp_path / "c.dcm", photo)
    write_reconstruction(tmp_path / "d.dcm", scan.magnitude, scan)
    for name in ("c.dcm", "d.dcm"):
        np.testing.assert_array_equal(pydicom.dcmread(tmp_path / name).pixel_array, BRIGHT)
