"""What is restored goes back into the formats that it came from: DICOM with its patient, place and
calibration, NIfTI with its geometry, zea's files with their scan.
"""

import h5py
import numpy as np
import pytest
from helpers.commands import restobox
from helpers.profiles import wide_profile

from restoration.io.images import Photo, read_image, write_image
from restoration.io.mri import read_scan
from restoration.io.mri_output import write_reconstruction
from restoration.io.mri_scan import Scan
from restoration.io.pictures.notes import Notes
from restoration.io.ultrasound import read_clip, write_clip
from solvers.inputs.errors import InputError

pydicom = pytest.importorskip("pydicom")
RNG = np.random.default_rng(0)
OBLIQUE = np.array([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0]])  # directions of columns and rows


def item(**tags):
    data = pydicom.Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def dicom(path, pixels, kind="MONOCHROME2", sop="MRImageStorage", **tags):
    """A file of ``(H, W)``, ``(n, H, W)`` or, for RGB, ``(H, W, 3)``."""
    colour = kind == "RGB"
    data = item(SOPClassUID=getattr(pydicom.uid, sop), SOPInstanceUID=pydicom.uid.generate_uid())
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    data.PatientName, data.PatientID, data.Modality = "Doe^Jane", "7", "MR"
    data.Rows, data.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if colour else 1, kind
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * pixels.itemsize
    data.BitsStored, data.PixelRepresentation = data.BitsAllocated, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3 and not colour:
        data.NumberOfFrames = len(pixels)
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return data


def series(folder, volume):
    """Oblique slices 4 mm apart, in an order that their names don't tell; spacing 0.5 x 0.75."""
    folder.mkdir()
    normal = np.cross(*OBLIQUE)
    for k, name in enumerate(RNG.permutation(len(volume))):
        dicom(
            folder / f"{name}.dcm",
            volume[k],
            BitsStored=12,
            RescaleSlope=2,
            RescaleIntercept=-10,
            PixelSpacing=[0.5, 0.75],
            SliceThickness=3,
            ImageOrientationPatient=[float(v) for v in OBLIQUE.ravel()],
            ImagePositionPatient=[float(v) for v in np.array([5, 6, 7]) + 4 * k * normal],
            SeriesDescription="T2 axial",
            EchoTime=80,
        )
    return folder


def world(k, row, column):
    """Where a voxel of :func:`series` lies, in the patient's system (left, posterior, head)."""
    return (
        np.array([5, 6, 7])
        + 4 * k * np.cross(*OBLIQUE)
        + 0.75 * column * OBLIQUE[0]
        + 0.5 * row * OBLIQUE[1]
    )


def test_a_series_goes_back_with_its_patient_and_place(tmp_path):
    volume = RNG.integers(100, 4000, (3, 8, 9)).astype(np.uint16)
    scan = read_scan(series(tmp_path / "in", volume))
    np.testing.assert_array_equal(scan.magnitude, 2.0 * volume - 10)
    assert scan.spacing == (4.0, 0.5, 0.75)  # the distance of the slices, not their thickness
    image = scan.magnitude * np.exp(1j * RNG.random(volume.shape))
    files = write_reconstruction(tmp_path / "out", image, scan, 0.1 * scan.magnitude)
    assert [f.parent.name for f in files] == ["out"] * 3 + ["out-std"] * 3
    again = read_scan(tmp_path / "out")
    np.testing.assert_allclose(again.magnitude, scan.magnitude, atol=1e-3)
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-6)
    old, new = scan.origins[1].head, again.origins[1].head
    assert (new.PatientName, new.StudyInstanceUID, new.EchoTime) == ("Doe^Jane", "1.2.3", 80)
    assert new.ImageType[0] == "DERIVED"
    assert new.SeriesInstanceUID != old.SeriesInstanceUID
    assert new.SOPInstanceUID not in {o.head.SOPInstanceUID for o in scan.origins}
    assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert new.SeriesDescription.startswith("T2 axial")
    spread = read_scan(tmp_path / "out-std")
    np.testing.assert_allclose(spread.magnitude, 0.1 * scan.magnitude, atol=0.01)
    assert spread.origins[0].head.SeriesInstanceUID != new.SeriesInstanceUID
    # values beyond the twelve bits get the room that sixteen have
    write_reconstruction(tmp_path / "more", 2 * image, scan)
    bright = read_scan(tmp_path / "more").magnitude
    np.testing.assert_allclose(bright, 2 * scan.magnitude, atol=1.01)


def test_places_in_nifti_are_those_of_dicom(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = RNG.integers(0, 4000, (3, 8, 9)).astype(np.uint16)
    scan = read_scan(series(tmp_path / "in", volume))
    (file,) = write_reconstruction(tmp_path / "a.nii.gz", scan.magnitude + 0j, scan)
    affine, values = nibabel.load(file).affine, nibabel.load(file).get_fdata()
    for k, row, column in ((0, 0, 0), (2, 5, 7), (1, 7, 0)):
        right = world(k, row, column) * [-1, -1, 1]
        np.testing.assert_allclose((affine @ [column, row, k, 1])[:3], right, atol=1e-4)
        assert values[column, row, k] == 2.0 * volume[k, row, column] - 10
    # and from there to DICOM
    write_reconstruction(tmp_path / "b", scan.magnitude + 0j, read_scan(file))
    back = read_scan(tmp_path / "b")
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)
    step = (float(scan.magnitude.max()) / 65535) or 1
    np.testing.assert_allclose(back.magnitude, np.maximum(scan.magnitude, 0), atol=step)
    assert back.origins[0].head.PatientName == ""


def test_an_enhanced_file_becomes_a_series(tmp_path):
    pixels = np.stack([np.full((8, 8), 100 * k, np.uint16) for k in (3, 1, 2)])
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.75], SliceThickness=3)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 4.0 * k])],
            PixelValueTransformationSequence=[item(RescaleSlope=s, RescaleIntercept=0)],
        )
        for k, s in ((3, 1.0), (1, 0.5), (2, 0.25))
    ]
    dicom(
        tmp_path / "in.dcm",
        pixels,
        sop="EnhancedMRImageStorage",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )
    scan = read_scan(tmp_path / "in.dcm")
    np.testing.assert_allclose(scan.magnitude[:, 0, 0], [50, 50, 300])
    files = write_reconstruction(tmp_path / "out.dcm", scan.magnitude + 0j, scan)
    assert [f.name for f in files] == [f"out-{k:03d}.dcm" for k in range(3)]
    (tmp_path / "series").mkdir()
    for file in files:
        file.rename(tmp_path / "series" / file.name)
    again = read_scan(tmp_path / "series")
    np.testing.assert_allclose(again.magnitude, scan.magnitude)
    np.testing.assert_allclose(again.affine, scan.affine)
    source = again.origins[0].head.SourceImageSequence[0]
    assert source.ReferencedFrameNumber == 2
    assert again.origins[0].head.PatientID == "7"


def test_moments_of_an_enhanced_file_in_their_order(tmp_path):
    """However its frames are stored."""
    places = [(z, t) for z in (1, 0) for t in (2, 0, 1)]
    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 4.0 * z])],
            FrameContentSequence=[item(TemporalPositionIndex=t + 1)],
        )
        for z, t in places
    ]
    shared = item(PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])])
    dicom(
        tmp_path / "in.dcm",
        np.stack([np.full((8, 8), 10 * t + z, np.uint16) for z, t in places]),
        sop="EnhancedMRImageStorage",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )
    scan = read_scan(tmp_path / "in.dcm")
    assert scan.volumes == 3
    assert scan.magnitude[:, 0, 0].tolist() == [0, 1, 10, 11, 20, 21]


def test_kspace_invents_no_patient(tmp_path):
    image = RNG.random((2, 12, 10)) * 1e-6
    scan = Scan(kspace=np.ones((2, 1, 12, 10), np.complex64), spacing=(3.0, 0.5, 0.6))
    write_reconstruction(tmp_path / "out", image + 0j, scan)
    again = read_scan(tmp_path / "out")
    np.testing.assert_allclose(again.magnitude, image, atol=image.max() / 65535)
    assert again.spacing == (3.0, 0.5, 0.6)
    head = again.origins[0].head
    for tag in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"):
        assert str(head[tag].value) == ""
    assert head.Modality == "MR"
    assert "SourceImageSequence" not in head


def test_two_series_in_a_folder_are_refused(tmp_path):
    volume = RNG.integers(0, 4000, (2, 8, 9)).astype(np.uint16)
    folder = series(tmp_path / "in", volume)
    dicom(folder / "x.dcm", volume[0], SeriesInstanceUID="9.9", SeriesDescription="localizer")
    with pytest.raises(InputError, match="2 series"):
        read_scan(folder)


PICTURES = {
    "grey": (RNG.integers(0, 256, (16, 20)).astype(np.uint8), {}),
    "inverse": (RNG.integers(0, 256, (16, 20)).astype(np.uint8), {"kind": "MONOCHROME1"}),
    "colour": (RNG.integers(0, 256, (16, 20, 3)).astype(np.uint8), {"kind": "RGB"}),
    "twelve": (RNG.integers(300, 3000, (16, 20)).astype(np.uint16), {"BitsStored": 12}),
    "signed": (
        RNG.integers(-1000, 3000, (16, 20)).astype(np.int16),
        {"RescaleSlope": "0.5", "RescaleIntercept": "-20"},
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_go_back_to_the_bit(tmp_path, name):
    pixels, tags = PICTURES[name]
    old = dicom(tmp_path / "in.dcm", pixels, **tags, PixelSpacing=[0.1, 0.2], WindowCenter=500)
    photo = read_image(tmp_path / "in.dcm")
    assert photo.pixels.shape == (3 if name == "colour" else 1, 16, 20)
    assert photo.bits == (8 if pixels.itemsize == 1 else 16)
    grey = 255 - pixels if name == "inverse" else pixels  # the brightest is white
    if pixels.itemsize == 2:
        low, high = int(pixels.min()), int(pixels.max())
        np.testing.assert_allclose(photo.pixels[0], (pixels - float(low)) / (high - low), atol=1e-6)
    elif name != "colour":
        np.testing.assert_allclose(photo.pixels[0], grey / 255, atol=1e-6)
    write_image(tmp_path / "out.dcm", photo)
    new = pydicom.dcmread(tmp_path / "out.dcm")
    np.testing.assert_array_equal(new.pixel_array, pixels)
    for tag in ("PatientName", "PhotometricInterpretation", "PixelSpacing", "WindowCenter"):
        assert new[tag].value == old[tag].value
    for tag in ("RescaleSlope", "RescaleIntercept"):
        assert new.get(tag) == old.get(tag)
    # enlarged, its pixels lie nearer, and what was told in pixels goes
    large = photo.pixels.repeat(2, 1).repeat(2, 2)
    write_image(tmp_path / "large.dcm", Photo(large, None, photo.bits, photo.notes))
    assert list(pydicom.dcmread(tmp_path / "large.dcm").PixelSpacing) == [0.05, 0.1]


def test_pictures_become_secondary_captures(tmp_path):
    for name, shape in (("grey", (1, 9, 11)), ("colour", (3, 9, 11))):
        pixels = RNG.integers(0, 256, shape) / np.float32(255)
        write_image(tmp_path / f"{name}.dcm", Photo(pixels))
        np.testing.assert_allclose(read_image(tmp_path / f"{name}.dcm").pixels, pixels, atol=1e-6)
        head = pydicom.dcmread(tmp_path / f"{name}.dcm")
        assert head.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
        assert head.PatientName == ""
    with pytest.raises(InputError, match="no alpha"):
        write_image(tmp_path / "a.dcm", Photo(pixels, pixels[0]))


def test_profiles_go_to_dicom_and_back(tmp_path):
    notes, pixels = Notes(icc=wide_profile("Display P3")), np.full((3, 4, 5), 0.2, np.float32)
    write_image(tmp_path / "a.dcm", Photo(pixels, notes=notes))
    photo = read_image(tmp_path / "a.dcm")
    assert photo.notes.icc == notes.icc
    write_image(tmp_path / "b.dcm", photo)
    assert pydicom.dcmread(tmp_path / "b.dcm").ICCProfile == notes.icc


def test_regions_of_ultrasound_stay(tmp_path):
    frames = RNG.integers(0, 256, (3, 40, 48)).astype(np.uint8)
    region = item(RegionLocationMinX0=2, PhysicalDeltaX=0.02, PhysicalDeltaY=0.03)
    dicom(
        tmp_path / "in.dcm",
        frames,
        sop="UltrasoundMultiFrameImageStorage",
        SequenceOfUltrasoundRegions=[region],
        FrameTime=33,
    )
    clip = read_clip(tmp_path / "in.dcm")
    write_clip(tmp_path / "out.dcm", iter(clip), len(clip), clip)
    new = pydicom.dcmread(tmp_path / "out.dcm")
    np.testing.assert_array_equal(new.pixel_array, frames)
    assert new.SequenceOfUltrasoundRegions[0].PhysicalDeltaX == 0.02
    assert (new.FrameTime, new.NumberOfFrames, new.PatientName) == (33, 3, "Doe^Jane")
    write_clip(tmp_path / "plain.dcm", iter(clip), len(clip))
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "plain.dcm").pixel_array, frames)


def zea(path, values, track=""):
    """As zea 0.0.12 and later write it."""
    with h5py.File(path, "w") as file:
        file.attrs["probe_name"] = "L11-4v"
        image = file.create_group(f"{track}data/image")
        image["values"] = values
        image["coordinates"] = np.zeros((*values.shape[1:], 3), np.float32)
        image["unit"] = "dB"
        file[f"{track}scan/center_frequency"] = np.float32(7e6)
        file["metadata/subject/type"] = "phantom"
    return path


@pytest.mark.parametrize("track", ["", "tracks/track_0/"])
def test_zea_files_of_today(tmp_path, track):
    decibels = RNG.uniform(-60, 0, (3, 40, 48)).astype(np.float32)
    decibels[0, 0, 0] = -np.inf  # no echo
    clip = read_clip(zea(tmp_path / "a.h5", decibels, track))
    assert (clip.count, clip.size) == (3, (40, 48))
    np.testing.assert_allclose(clip.frame(1), 1 + decibels[1] / 60, atol=1e-6)
    assert clip.frame(0)[0, 0] == 0
    write_clip(tmp_path / "b.h5", iter(clip), len(clip), clip)
    with h5py.File(tmp_path / "b.h5") as file:
        assert file.attrs["probe_name"] == "L11-4v"
        assert file[f"{track}scan/center_frequency"][()] == np.float32(7e6)
        assert file["metadata/subject/type"][()] == b"phantom"
        assert file[f"{track}data/image/values"].dtype == np.uint8
        assert file[f"{track}data/image/coordinates"].shape == (40, 48, 3)
        assert "unit" not in file[f"{track}data/image"]  # grey values have none
    np.testing.assert_allclose(
        np.stack(list(read_clip(tmp_path / "b.h5"))), np.stack(list(clip)), atol=0.6 / 255
    )
    numbers = RNG.integers(0, 256, (2, 40, 48)).astype(np.uint8)
    found = read_clip(zea(tmp_path / "c.h5", numbers, track))
    np.testing.assert_allclose(found.frame(0), numbers[0] / 255, atol=1e-6)


def test_zea_files_say_what_is_missing(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tracks/track_0/data/raw_data"] = np.zeros((1, 2, 3, 4, 1))
    with pytest.raises(InputError, match="tracks/track_0/data/raw_data: beamform"):
        read_clip(tmp_path / "a.h5")
    values = RNG.random((1, 40, 48))
    zea(tmp_path / "b.h5", values, "tracks/track_0/")
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file["tracks/track_1/data/image/values"] = values
    with pytest.raises(InputError, match="several tracks"):
        read_clip(tmp_path / "b.h5")


@pytest.mark.parametrize("ending", [".h5", ".nii.gz", ".dcm", ""])
def test_samples_of_volumes_are_files_of_their_own(tmp_path, ending):
    samples = RNG.random((2, 2, 9, 8)) + 0j
    places = [tmp_path / f"a-sample-{k}{ending}" for k in range(2)]
    files = write_reconstruction(
        tmp_path / f"a{ending}", samples.mean(0), samples=list(zip(places, samples, strict=True))
    )
    assert len(files) == (6 if ending in (".dcm", "") else 3)
    assert len(list(tmp_path.iterdir())) == (6 if ending == ".dcm" else 3)
    if ending == ".h5":
        with h5py.File(places[1]) as file:
            np.testing.assert_allclose(file["reconstruction"], samples[1].real, rtol=1e-6)
    elif ending != ".dcm":
        found = read_scan(places[1]).magnitude
        np.testing.assert_allclose(found, samples[1].real, atol=1 / 65535)


def test_samples_are_written(tmp_path):
    pixels = RNG.integers(0, 256, (3, 32, 32)) / np.float32(255)
    write_image(tmp_path / "a.png", Photo(pixels, bits=16))
    done = restobox(
        *("restore", "inpaint", tmp_path / "a.png", "-o", tmp_path / "b.png", "--mask"),
        *("random:0.5", "--steps", "2", "-n", "2", "--write-samples"),
    )
    assert done.returncode == 0, done.stderr
    samples = [read_image(tmp_path / f"b-sample-{k:03d}.png").pixels for k in range(2)]
    mean = read_image(tmp_path / "b.png").pixels
    np.testing.assert_allclose(np.mean(samples, 0), mean, atol=2 / 65535)
    assert np.std(samples, 0).max() > 0.01
    done = restobox(
        *("restore", "inpaint", tmp_path / "a.png", "-o", tmp_path / "c.png", "--mask"),
        *("random:0.5", "--write-samples"),
    )
    assert done.returncode == 2
    assert "at least two samples" in done.stderr
