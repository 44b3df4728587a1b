"""Ultrasound files: what is accepted, what is refused and how it is said."""

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from restoration.io.ultrasound import check_clip_writable, read_clip, write_clip
from restoration.ultrasound.beamforming import PlaneWaves, beamform
from restoration.ultrasound.bmode import log_compress


def clip(count=3, height=40, width=48):
    return (np.random.default_rng(0).random((count, height, width)) * 255).round() / 255


def hdf5(path, values, name="data/image"):
    with h5py.File(path, "w") as file:
        file[name] = values
    return path


@pytest.mark.parametrize("name", ["out.h5", "out"])
def test_round_trip(tmp_path, name):
    frames = clip()
    write_clip(tmp_path / name, iter(frames), len(frames))
    back = read_clip(tmp_path / name)
    assert (len(back), back.size) == (3, (40, 48))
    np.testing.assert_allclose(np.stack(list(back)), frames, atol=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_one_picture(tmp_path):
    frames = clip(1)
    assert write_clip(tmp_path / "a.png", iter(frames), 1) == [str(tmp_path / "a.png")]
    np.testing.assert_allclose(read_clip(tmp_path / "a.png").frame(0), frames[0], atol=1e-6)


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    for k in (0, 2, 10, 1):
        Image.new("L", (40, 40), 5 * k).save(tmp_path / f"f{k}.png")
    assert [round(float(f.mean() * 255)) for f in read_clip(tmp_path)] == [0, 5, 10, 50]


def test_hdf5_values(tmp_path):
    frames = clip().astype(np.float32)
    for name, values in (
        ("unit", frames),
        ("bytes", (255 * frames).round().astype(np.uint8)),
        ("db", 60 * (frames - 1)),
        ("255", 255 * frames),
    ):
        back = read_clip(hdf5(tmp_path / f"{name}.h5", values))
        np.testing.assert_allclose(np.stack(list(back)), frames, atol=1e-5, err_msg=name)
    last = read_clip(hdf5(tmp_path / "last.h5", frames[..., None]))
    assert last.size == (40, 48)


def test_scan_converted_pictures_of_zea(tmp_path):
    """Of files before version 0.0.12: on the screen's grid, with nothing (-inf) beside the sector,
    beside the signals that they were made of; they come back under their name.
    """
    frames = clip()
    decibels = (60 * (frames - 1)).astype(np.float32)
    decibels[:, :5, :7] = -np.inf
    path = hdf5(tmp_path / "a.h5", decibels, "data/image_sc")
    with h5py.File(path, "r+") as file:
        file["data/beamformed_data"] = np.zeros((3, 64, 80, 2), np.float32)
        file["data/image_sc"].attrs["unit"] = "unitless"
        file["scan/sound_speed"] = 1540.0
    found = read_clip(path)
    wanted = frames.copy()
    wanted[:, :5, :7] = 0
    np.testing.assert_allclose(np.stack(list(found)), wanted, atol=1e-5)
    write_clip(tmp_path / "b.h5", iter(wanted), 3, found)
    with h5py.File(tmp_path / "b.h5") as file:
        assert list(file["data"]) == ["image_sc"]
        assert file["scan/sound_speed"][()] == 1540
    np.testing.assert_allclose(np.stack(list(read_clip(tmp_path / "b.h5"))), wanted, atol=1e-6)
    # with both, the pictures as they were beamformed count
    with h5py.File(path, "r+") as file:
        file["data/image"] = (60 * (frames[:, ::-1] - 1)).astype(np.float32)
    np.testing.assert_allclose(next(iter(read_clip(path))), frames[0, ::-1], atol=1e-5)


def test_hdf5_signals(tmp_path):
    """Envelope, IQ and RF of the same echoes give the same pictures."""
    z = np.arange(256)[None, :, None]
    bell = (
        np.exp(-(((z - 128) / 50) ** 2))
        * np.linspace(0.2, 1, 40)[None, None]
        * np.array([1, 0.5])[:, None, None]
    )
    wave = np.exp(0.9j * z)
    expected = log_compress(bell, 40, 1.0)
    signal = bell * wave
    iq = np.stack([signal.real, signal.imag], -1)
    for name, values in (
        ("envelope_data", bell),
        ("beamformed_data", iq),
        ("beamformed_data", signal.real[..., None]),
    ):
        back = np.stack(
            list(read_clip(hdf5(tmp_path / "a.h5", values, f"data/{name}"), dynamic_range=40))
        )
        np.testing.assert_allclose(back[:, 40:-40], expected[:, 40:-40], atol=0.02, err_msg=name)


@pytest.mark.parametrize(
    ("values", "name", "message"),
    [
        (np.zeros((0, 40, 48)), "data/image", "is empty"),
        (np.zeros((40, 48, 19)), "data/image", r"axes must be \(n_frames, H, W\)"),
        (np.zeros((40, 48)), "data/image", "must be"),
        (np.zeros((2, 40, 48, 3)), "data/image", "must be"),
        (np.zeros((2, 40, 48, 3)), "data/beamformed_data", "1 or 2"),
        (np.zeros((2, 4, 40, 48, 1)), "data/raw_data", "beamform it first"),
        (np.zeros((2, 40, 48)), "images", "holds none of"),
        (np.linspace(-5, 5, 2 * 40 * 48).reshape(2, 40, 48), "data/image", "neither"),
        (np.full((2, 40, 48), np.nan), "data/image", "NaN"),
    ],
)
def test_bad_hdf5(tmp_path, values, name, message):
    with pytest.raises(ValueError, match=message):
        next(iter(read_clip(hdf5(tmp_path / "a.h5", values, name))))


def test_sizes_are_checked_before_decoding(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data/image", (2, 60_000, 60_000), np.uint8, chunks=(1, 64, 64))
    with pytest.raises(ValueError, match=r"too large|were ever written"):
        read_clip(tmp_path / "a.h5")


def test_values_in_other_files_are_refused(tmp_path):
    hdf5(tmp_path / "other.h5", clip())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/image"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "data/image")
    with pytest.raises(ValueError, match=r"another file|a link"):
        read_clip(tmp_path / "a.h5")


def test_outputs_take_over_nothing_from_other_files(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["g/key"] = np.arange(3)
    hdf5(tmp_path / "a.h5", clip())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["scan"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "g")
        file["probe/kind"] = np.arange(2)
    frames = read_clip(tmp_path / "a.h5")
    write_clip(tmp_path / "o.h5", iter(clip()), len(clip()), frames)
    with h5py.File(tmp_path / "o.h5") as file:
        assert "scan" not in file
        assert file["probe/kind"].shape == (2,)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_clip(tmp_path / "none.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no frame"):
        read_clip(tmp_path / "empty")
    (tmp_path / "a.wmv").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="no known kind"):
        read_clip(tmp_path / "a.wmv")
    for name in ("a.h5", "a.mat", "a.png"):
        (tmp_path / name).write_bytes(b"nonsense" * 50)
        with pytest.raises(ValueError, match="can't be read"):
            read_clip(tmp_path / name)


def test_colour_is_refused_unless_averaged(tmp_path):
    colour = np.zeros((40, 40, 3), np.uint8)
    colour[..., 0] = 90
    Image.fromarray(colour).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="in colour"):
        read_clip(tmp_path / "a.png")
    assert read_clip(tmp_path / "a.png", grey=True).frame(0).mean() == pytest.approx(30 / 255)


def test_frames_of_several_sizes(tmp_path):
    Image.new("L", (40, 40)).save(tmp_path / "0.png")
    Image.new("L", (44, 40)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="all must be equal"):
        list(read_clip(tmp_path))


def test_places_to_write_to(tmp_path):
    with pytest.raises(ValueError, match="do not go into one picture"):
        check_clip_writable(tmp_path / "a.png", 2)
    with pytest.raises(ValueError, match="must end in"):
        check_clip_writable(tmp_path / "a.wmv", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        check_clip_writable(tmp_path / "file", 2)
    with pytest.raises(OSError, match="is a file"):
        check_clip_writable(tmp_path / "file" / "a.h5", 2)


# -- channel data ----------------------------------------------------------------------------------

RATE, PITCH, SPEED = 20e6, 3e-4, 1540.0


def point_echo(angles, at=(2e-3, 15e-3), start=4e-6, samples=600, elements=48):
    """Channel data of one point scatterer ``at (x, z)`` under plane waves."""
    x_elements = (np.arange(elements) - (elements - 1) / 2) * PITCH
    t = start + np.arange(samples)[:, None] / RATE
    rf = np.empty((samples, elements, len(angles)))
    for k, angle in enumerate(angles):
        there = at[1] * np.cos(angle) + at[0] * np.sin(angle) + x_elements[-1] * abs(np.sin(angle))
        delay = t - (there + np.hypot(at[1], at[0] - x_elements)) / SPEED
        rf[..., k] = np.cos(2 * np.pi * 5e6 * delay) * np.exp(-((delay / 2e-7) ** 2))
    return rf


@pytest.mark.parametrize("angles", [(0.0,), (-0.1, 0.0, 0.1)])
def test_beamforming_focuses_a_point(angles):
    waves = PlaneWaves(RATE, PITCH, SPEED, 4e-6, angles)
    picture = np.abs(beamform(point_echo(angles), waves, 300, 96))
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    first, last = waves.depths(600)
    assert np.linspace(first, last, 300)[row] == pytest.approx(15e-3, abs=1e-4)
    assert np.linspace(-23.5 * PITCH, 23.5 * PITCH, 96)[column] == pytest.approx(
        2e-3, abs=2 * PITCH
    )
    with pytest.raises(ValueError, match="channel data must be"):
        beamform(np.zeros((600, 48, 9)), waves)


def mat(path, **content):
    savemat(path, content)
    return path


def test_channel_data(tmp_path):
    rf = point_echo((-0.1, 0.1))
    param = {"fs": RATE, "pitch": PITCH, "c": SPEED, "t0": 4e-6}
    compounded = read_clip(mat(tmp_path / "a.mat", RF=rf, param=param | {"TXangle": [-0.1, 0.1]}))
    assert len(compounded) == 1
    frame = compounded.frame(0)
    assert frame.shape == compounded.size
    assert frame.max() == 1
    single = read_clip(mat(tmp_path / "b.mat", RF2=rf, param2=param))
    assert len(single) == 2
    rate = read_clip(
        mat(tmp_path / "c.mat", RF=rf, param={"pitch": PITCH, "t0": 4e-6}), sampling_rate=RATE
    )
    np.testing.assert_allclose(rate.frame(0), single.frame(0), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"RF": np.ones((600, 48, 2)), "param": {"pitch": PITCH}}, "sampling rate"),
        ({"RF": np.ones((600, 48, 2))}, "sampling rate"),
        ({"RF": np.ones((600, 48, 2)), "param": {"fs": RATE}}, "distance of its elements"),
        (
            {"RF": np.ones((48, 600, 2)), "param": {"fs": RATE, "pitch": PITCH}},
            "more samples than elements",
        ),
        ({"image": np.ones((600, 48))}, "holds no channel data"),
    ],
)
def test_bad_channel_data(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_clip(mat(tmp_path / "a.mat", **content))


# -- DICOM -----------------------------------------------------------------------------------------


def dicom(path, pixels, kind="MONOCHROME2", **fields):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = (
        ExplicitVRLittleEndian,
        UltrasoundMultiFrameImageStorage,
    )
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    data.NumberOfFrames, data.Rows, data.Columns = len(pixels), pixels.shape[1], pixels.shape[2]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3 if pixels.ndim == 4 else 1), kind
    if pixels.ndim == 4:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = pixels.tobytes()
    for key, value in fields.items():
        setattr(data, key, value)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def test_dicom_clip(tmp_path):
    frames = clip()
    pixels = (255 * frames).round().astype(np.uint8)
    np.testing.assert_allclose(
        np.stack(list(read_clip(dicom(tmp_path / "a.dcm", pixels)))), frames, atol=1e-6
    )
    inverse = read_clip(dicom(tmp_path / "b.dcm", 255 - pixels, "MONOCHROME1"))
    np.testing.assert_allclose(inverse.frame(1), frames[1], atol=1e-6)
    rgb = read_clip(dicom(tmp_path / "c.dcm", pixels[..., None].repeat(3, -1), "RGB"))
    np.testing.assert_allclose(rgb.frame(2), frames[2], atol=1e-6)
    ybr = np.stack([pixels, np.full_like(pixels, 128), np.full_like(pixels, 128)], -1)
    found = read_clip(dicom(tmp_path / "d.dcm", ybr, "YBR_FULL")).frame(1)
    np.testing.assert_allclose(found, frames[1], atol=1e-6)


def test_dicom_ranges(tmp_path):
    """White is the largest number that can be stored, whatever the file rescales it to."""
    frames = clip()
    pixels = (255 * frames).round().astype(np.uint8)
    rescaled = {"RescaleSlope": "0.5", "RescaleIntercept": "-20"}
    found = read_clip(dicom(tmp_path / "a.dcm", pixels, **rescaled)).frame(1)
    np.testing.assert_allclose(found, frames[1], atol=1e-6)
    signed = (pixels.astype(np.int16) - 128).astype(np.int8)
    for kind, stored in (("MONOCHROME2", signed), ("MONOCHROME1", -1 - signed)):
        file = dicom(tmp_path / f"{kind}.dcm", stored, kind, PixelRepresentation=1)
        np.testing.assert_allclose(read_clip(file).frame(1), frames[1], atol=1e-6)


def test_bad_dicom(tmp_path):
    pixels = np.zeros((1, 40, 48, 3), np.uint8)
    pixels[..., 0] = 200
    with pytest.raises(ValueError, match="in colour"):
        read_clip(dicom(tmp_path / "a.dcm", pixels, "RGB")).frame(0)
    (tmp_path / "b.dcm").write_bytes(b"nonsense" * 50)
    with pytest.raises(ValueError, match="no DICOM file"):
        read_clip(tmp_path / "b.dcm")
    huge = dicom(
        tmp_path / "c.dcm",
        np.zeros((1, 40, 48), np.uint8),
        NumberOfFrames=200,
        Rows=60_000,
        Columns=60_000,
    )
    with pytest.raises(ValueError, match="of memory"):
        read_clip(huge)
