"""MRI files: what is written is read back; what is broken, hostile or of another kind is refused;
the command on all of them.
"""

import json
import re

import h5py
import numpy as np
import pytest
import torch
from helpers.scans import disc, scan
from scipy import io

from restoration.io.mri import read_maps, read_sampling, read_scan
from restoration.io.mri_output import check_output, write_reconstruction
from restoration.mri import column_mask, normalise_maps
from restoration.mri.simulation import ring_maps
from solvers.inputs.errors import InputError

HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace><matrixSize><x>40</x><y>36</y>
<z>1</z></matrixSize></encodedSpace><reconSpace><matrixSize><x>20</x><y>24</y><z>1</z></matrixSize><fieldOfView_mm><x>200</x><y>120</y>
<z>5</z></fieldOfView_mm></reconSpace></encoding></ismrmrdHeader>"""


@pytest.fixture(scope="module")
def kspace():
    return np.stack([scan(coils=3, seed=s, sigma=0.002)[3].numpy() for s in range(2)])


def fastmri_file(path, kspace, **extra):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = HEADER
        file.attrs["acquisition"] = "AXT2"
        file.attrs["max"] = 1.5
        for key, value in extra.items():
            file[key] = value
    return path


def test_fastmri_files(tmp_path, kspace):
    target = np.ones((2, 20, 24), np.float32)
    mask = np.arange(36) % 2
    read = read_scan(fastmri_file(tmp_path / "a.h5", kspace, reconstruction_rss=target, mask=mask))
    np.testing.assert_array_equal(read.kspace, kspace)
    np.testing.assert_array_equal(read.target, target)
    np.testing.assert_array_equal(read.mask, mask)
    assert (read.crop, read.spacing) == ((20, 24), (5.0, 10.0, 5.0))
    assert read.attributes == {"acquisition": "AXT2", "max": 1.5}
    single = read_scan(fastmri_file(tmp_path / "b.h5", kspace[:, 0].astype(np.complex128)))
    assert single.kspace.shape == (2, 1, 40, 36)
    assert single.kspace.dtype == np.complex64
    pairs = read_scan(fastmri_file(tmp_path / "c.h5", np.stack([kspace.real, kspace.imag], -1)))
    np.testing.assert_array_equal(pairs.kspace, kspace)


@pytest.mark.parametrize(
    "form",
    [
        HEADER,
        HEADER.encode(),
        np.array([HEADER], dtype=h5py.string_dtype()),
        np.frombuffer(HEADER.encode(), np.uint8),
    ],
    ids=["text", "bytes", "array", "codes"],
)
@pytest.mark.parametrize("place", ["dataset", "attribute"])
def test_headers_of_fastmri_in_any_form(tmp_path, kspace, form, place):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = kspace
        (file if place == "dataset" else file.attrs)["ismrmrd_header"] = form
    read = read_scan(tmp_path / "a.h5")
    assert (read.crop, read.spacing) == ((20, 24), (5.0, 10.0, 5.0))
    assert (read.header, read.attributes) == (HEADER, {})


def test_images_of_fastmri_without_a_header_are_the_middle(tmp_path, kspace):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"], file["reconstruction_rss"] = kspace, np.ones((2, 20, 24), np.float32)
    assert read_scan(tmp_path / "a.h5").crop == (20, 24)


def test_masks_with_the_axes_of_kspace(tmp_path, kspace):
    """As fastMRI's programs keep them; it may differ along slices, not along coils."""
    columns = (np.arange(36) % 3 == 0).astype(np.float32)
    plane = np.broadcast_to(columns, (40, 36))
    for mask in (columns[None], columns[None, None, :, None], columns[None, None, None, :, None]):
        read = read_scan(fastmri_file(tmp_path / "a.h5", kspace, mask=mask))
        np.testing.assert_array_equal(read.mask, columns)
    for shape in ((2, 40, 36), (2, 3, 40, 36), (1, 1, 40, 36)):
        mask = np.broadcast_to(plane, shape)
        read = read_scan(fastmri_file(tmp_path / "a.h5", kspace, mask=mask))
        np.testing.assert_array_equal(read.mask, plane)
    mask = np.stack([plane, 1 - plane])
    read = read_scan(fastmri_file(tmp_path / "a.h5", kspace, mask=mask))
    np.testing.assert_array_equal(read.mask, mask)
    mask = np.stack([plane, 1 - plane, plane])
    with pytest.raises(InputError, match=r"mask of shape \(3, 40, 36\)"):
        read_scan(fastmri_file(tmp_path / "a.h5", kspace, mask=mask))


def test_links_out_of_the_file_are_refused(tmp_path, kspace):
    outside = fastmri_file(tmp_path / "outside.h5", kspace)
    cases = {
        "external": lambda file: file.__setitem__(
            "kspace", h5py.ExternalLink(str(outside), "kspace")
        ),
        "soft": lambda file: file.__setitem__("kspace", h5py.SoftLink("/elsewhere")),
        "stored": lambda file: file.create_dataset(
            "kspace",
            (1, 8, 8),
            np.complex64,
            external=[(str(tmp_path / "raw.bin"), 0, h5py.h5f.UNLIMITED)],
        ),
    }

    def virtual(file):
        layout = h5py.VirtualLayout(kspace.shape, np.complex64)
        layout[...] = h5py.VirtualSource(str(outside), "kspace", kspace.shape, np.complex64)
        file.create_virtual_dataset("kspace", layout)

    for name, make in (cases | {"virtual": virtual}).items():
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(ValueError, match="only data inside the file"):
            read_scan(path)
    path = tmp_path / "ismrmrd.h5"
    with h5py.File(path, "w") as file:
        file["dataset"] = h5py.ExternalLink(str(outside), "/")
    with pytest.raises(ValueError, match="only data inside the file"):
        read_scan(path)


def test_arrays(tmp_path, kspace):
    mask, maps = np.ones((40, 36), np.uint8), kspace[0]
    np.savez(tmp_path / "a.npz", kspace=kspace[0], mask=mask, smaps=maps)
    read = read_scan(tmp_path / "a.npz")
    np.testing.assert_array_equal(read.kspace, kspace[:1])
    np.testing.assert_array_equal(read.maps, maps)
    np.testing.assert_array_equal(read.mask, mask)
    io.savemat(
        tmp_path / "b.mat", {"kspace": kspace.astype(np.complex128), "mask": np.ones((1, 36))}
    )
    read = read_scan(tmp_path / "b.mat")
    np.testing.assert_array_equal(read.kspace, kspace)
    assert read.mask.shape == (36,)
    with h5py.File(
        tmp_path / "c.mat", "w", userblock_size=512
    ) as file:  # MATLAB 7.3: HDF5 in Fortran's order
        record = np.zeros(kspace.T.shape, [("real", "f8"), ("imag", "f8")])
        record["real"], record["imag"] = kspace.T.real, kspace.T.imag
        file["kspace"] = record
    with (tmp_path / "c.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(128))
    np.testing.assert_array_equal(read_scan(tmp_path / "c.mat").kspace, kspace)
    np.savez(tmp_path / "d.npz", image=np.ones((3, 8, 9), np.uint8))
    assert read_scan(tmp_path / "d.npz").magnitude.shape == (3, 8, 9)
    np.savez(tmp_path / "m.npz", maps)
    np.testing.assert_array_equal(read_maps(tmp_path / "m.npz"), maps)
    np.save(tmp_path / "mask.npy", mask)
    np.testing.assert_array_equal(read_sampling(tmp_path / "mask.npy", (40, 36)), mask)


def test_nifti(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).random((3, 20, 24)).astype(np.float32)
    affine = np.diag([0.5, 0.7, 4.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine), tmp_path / "a.nii.gz")
    read = read_scan(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read.magnitude, volume)
    np.testing.assert_allclose(read.spacing, (4.0, 0.7, 0.5), rtol=1e-6)
    files = write_reconstruction(tmp_path / "b.nii.gz", volume * 1j, read, std=0.1 * volume)
    assert (tmp_path / "b.nii.gz").read_bytes()[3:8] == bytes(5)  # no name, and no time
    assert [f.name for f in files] == ["b.nii.gz", "b-std.nii.gz"]
    again = read_scan(files[0])
    np.testing.assert_allclose(again.magnitude, volume, rtol=1e-6)
    np.testing.assert_allclose(again.affine, affine)
    (tmp_path / "broken.nii").write_bytes(b"\0" * 400)
    with pytest.raises(ValueError, match="NIfTI"):
        read_scan(tmp_path / "broken.nii")


def test_dicom(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    volume = np.random.default_rng(0).integers(0, 1000, (3, 8, 9)).astype(np.uint16)
    folder = tmp_path / "series"
    folder.mkdir()
    for k, name in enumerate(["c", "a", "b"]):  # the position tells the order, not the name
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = (
            ExplicitVRLittleEndian,
            MRImageStorage,
        )
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = (
            8,
            9,
            1,
            "MONOCHROME2",
        )
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 0
        ds.PixelSpacing, ds.SliceThickness, ds.RescaleSlope, ds.RescaleIntercept = (
            [0.8, 0.9],
            5,
            2,
            1,
        )
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5.0 * k]
        ds.PixelData = volume[k].tobytes()
        ds.save_as(folder / name, enforce_file_format=True)
    (folder / "notes.txt").write_text("not a picture")
    read = read_scan(folder)
    np.testing.assert_array_equal(read.magnitude, 2.0 * volume + 1)
    assert read.spacing == (5.0, 0.8, 0.9)
    assert pydicom is not None
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no DICOM"):
        read_scan(tmp_path / "empty")


COUNTERS = ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase")
COUNTERS += ("repetition", "set", "segment")
HEAD = np.dtype(
    [("version", "<u2"), ("flags", "<u8")]
    + [(n, "<u2") for n in ("number_of_samples", "available_channels", "active_channels")]
    + [(n, "<u2") for n in ("discard_pre", "discard_post", "center_sample", "encoding_space_ref")]
    + [("idx", np.dtype([(n, "<u2") for n in COUNTERS]))]
)
FLAGS = {"IS_NOISE_MEASUREMENT": 19, "IS_REVERSE": 22, "COMPRESSION1": 53}
SPACE = """<{0}Space><matrixSize><x>{1}</x><y>{2}</y><z>{3}</z></matrixSize><fieldOfView_mm>
<x>{4}</x><y>{5}</y><z>{6}</z></fieldOfView_mm></{0}Space>"""
LIMIT = """<kspace_encoding_step_{0}><maximum>{1}</maximum><center>{2}</center>
</kspace_encoding_step_{0}>"""


def ismrmrd_file(path, lines, matrix=(40, 36), recon=None, centre_line=None, **options):
    """Of ``(data (coils, samples), step, slice, centre, flags)`` and perhaps other counters;
    ``recon``: matrix and field of view, of an encoded one of 10 mm a pixel.

    Args:
        depth: of the encoded matrix, in steps of 5 mm; ``recon_depth`` of the image's.
    """
    (x, y), z = matrix, options.get("depth", 1)
    rz = options.get("recon_depth", z)
    (rx, ry), (fx, fy) = ((x, y), (10.0 * x, 10.0 * y)) if recon is None else recon
    middle = y // 2 if centre_line is None else centre_line
    text = SPACE.format("encoded", x, y, z, 10.0 * x, 10.0 * y, 5.0 * z)
    text += SPACE.format("recon", rx, ry, rz, fx, fy, 5.0 * rz)
    limits = LIMIT.format(1, y - 1, middle) + LIMIT.format(2, z - 1, z // 2)
    text += f"<encodingLimits>{limits}</encodingLimits><trajectory>cartesian</trajectory>"
    text = f"<ismrmrdHeader><encoding>{text}</encoding></ismrmrdHeader>"
    records = np.zeros(len(lines), [("head", HEAD), ("data", h5py.vlen_dtype(np.float32))])
    for record, (data, step, part, centre, flags, *more) in zip(records, lines, strict=True):
        head, values = record["head"], np.ascontiguousarray(data, np.complex64)
        head["flags"] = sum(1 << (FLAGS[flag] - 1) for flag in flags)
        head["number_of_samples"], head["center_sample"] = values.shape[1], centre
        head["available_channels"] = head["active_channels"] = len(values)
        head["idx"]["kspace_encode_step_1"], head["idx"]["slice"] = step, part
        for name, value in (more[0] if more else {}).items():
            (head["idx"] if name in COUNTERS else head)[name] = value
        record["data"] = values.view(np.float32).ravel()
    with h5py.File(path, "w") as file:
        file["dataset/data"], file["dataset/xml"] = records, [text]
    return path


def test_ismrmrd(tmp_path, kspace):
    lines = [
        (kspace[part, :, :, line], line, part, 20, ())
        for part in range(2)
        for line in range(0, 36, 2)
    ]
    lines.append((np.full((3, 40), 1e6, np.complex64), 0, 0, 0, ("IS_NOISE_MEASUREMENT",)))
    read = read_scan(ismrmrd_file(tmp_path / "scan.h5", lines))
    np.testing.assert_array_equal(read.mask, np.arange(36) % 2 == 0)
    np.testing.assert_array_equal(read.kspace, kspace * read.mask)
    assert (read.crop, read.spacing) == ((40, 36), (5.0, 10.0, 10.0))


def test_ismrmrd_under_another_name(tmp_path, kspace):
    """As converters of several measurements write them."""
    lines = [(kspace[0, :, :, line], line, 0, 20, ()) for line in range(36)]
    path = ismrmrd_file(tmp_path / "scan.h5", lines)
    with h5py.File(path, "r+") as file:
        file.move("dataset", "dataset_1")
    np.testing.assert_array_equal(read_scan(path).kspace, kspace[:1])
    with h5py.File(path, "r+") as file:
        file.copy("dataset_1", "dataset_2")
    with pytest.raises(InputError, match=r"holds 2 measurements \(dataset_1, dataset_2\)"):
        read_scan(path)


def test_ismrmrd_moments_may_be_sampled_differently(tmp_path, kspace):
    """As in dynamic imaging, where the sampled lines move on from moment to moment."""
    lines = [
        (kspace[part, :, :, line], line, part, 20, (), {"phase": moment})
        for line in range(36)
        for moment in range(3)
        for part in range(2)
        if line % 3 == moment
    ]
    read = read_scan(ismrmrd_file(tmp_path / "scan.h5", lines))
    assert read.volumes == 3
    columns = np.arange(36) % 3 == np.repeat(np.arange(3), 2)[:, None]
    np.testing.assert_array_equal(read.mask, np.broadcast_to(columns[:, None], (6, 40, 36)))
    expected = np.tile(kspace, (3, 1, 1, 1)) * columns[:, None, None]
    np.testing.assert_array_equal(read.kspace, expected)


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize("told", ["after the turn", "before it"])
def test_ismrmrd_lines_that_are_turned_or_short(tmp_path, kspace, first, told):
    """Every second line runs backwards; partial echoes begin late, and what they lack is missing,
    not zero.
    """
    samples, lines = 40 - first, []
    for line in range(36):
        data, centre, back = kspace[0][:, first:, line], 20 - first, line % 2 == 1
        if back and (told == "after the turn" or first):
            centre = samples - 1 - centre
        lines.append(
            (data[:, ::-1] if back else data, line, 0, centre, ("IS_REVERSE",) if back else ())
        )
    read = read_scan(ismrmrd_file(tmp_path / "scan.h5", lines))
    sampled = np.arange(40)[:, None] >= first
    np.testing.assert_array_equal(np.broadcast_to(read.mask, (40, 36)), np.tile(sampled, 36))
    np.testing.assert_array_equal(read.kspace[0], kspace[0] * sampled)


def bump(size, spacing):
    """A smooth object on a matrix of pixels of this size, about its centre, in millimetres."""
    rows, columns = (
        (np.arange(n) - n // 2)[(slice(None), *(None,) * k)] * d
        for n, d, k in zip(size, spacing, (1, 0), strict=True)
    )
    return np.exp(-(((rows - 20) / 45) ** 2) - ((columns + 30) / 40) ** 2)


@pytest.mark.parametrize(
    ("matrix", "recon"),
    [
        ((80, 36), ((40, 36), (400.0, 360.0))),  # oversampled readout
        ((40, 36), ((40, 72), (400.0, 360.0))),  # finer pixels
        ((40, 36), ((60, 50), (400.0, 360.0))),  # of no whole ratio
        ((80, 72), ((40, 36), (800.0, 720.0))),  # coarser
        ((80, 36), ((64, 64), (400.0, 320.0))),  # part of the field, in more pixels
    ],
)
def test_matrices_follow_the_fields_of_view(tmp_path, matrix, recon):
    from restoration.mri.geometry import regrid

    image = bump(matrix, (10, 10))
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho")).astype(
        np.complex64
    )
    lines = [(kspace[None, :, k], k, 0, matrix[0] // 2, ()) for k in range(matrix[1])]
    scan = read_scan(ismrmrd_file(tmp_path / "scan.h5", lines, matrix, recon))
    size, fields = recon
    spacing = tuple(f / n for f, n in zip(fields, size, strict=True))
    assert scan.crop == size
    assert scan.spacing == pytest.approx((5.0, *spacing))
    found = regrid(image + 0j, scan.crop, scan.extent)
    assert found.shape == size
    np.testing.assert_allclose(found, bump(size, spacing), atol=2e-3)


def test_partial_fourier_and_discarded_samples(tmp_path, kspace):
    """Lines count from the first that was measured; the header says which one is central."""
    lines = [(kspace[0][:, :, k], k - 10, 0, 20, ()) for k in range(10, 36)]
    scan = read_scan(ismrmrd_file(tmp_path / "a.h5", lines, centre_line=8))
    np.testing.assert_array_equal(scan.mask, np.arange(36) >= 10)
    np.testing.assert_array_equal(scan.kspace[0], kspace[0] * scan.mask)
    wide = [np.pad(kspace[0][:, :, k], ((0, 0), (3, 2)), constant_values=9) for k in range(36)]
    lines = [(data, k, 0, 23, ()) for k, data in enumerate(wide)]
    with pytest.raises(ValueError, match="does not fit the encoded matrix"):
        read_scan(ismrmrd_file(tmp_path / "b.h5", lines))
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        records = file["dataset/data"][()]
        records["head"]["discard_pre"], records["head"]["discard_post"] = 3, 2
        file["dataset/data"][()] = records
    np.testing.assert_array_equal(read_scan(tmp_path / "b.h5").kspace[0], kspace[0])


def test_ismrmrd_in_3d(tmp_path, kspace):
    """Slices by a transform along the second phase encoding, whose oversampling is cropped."""
    rng = np.random.default_rng(3)
    volume = rng.normal(size=(2, 40, 36, 8, 2)).astype(np.float32).view(np.complex64)[..., 0]
    axes = (1, 2, 3)
    full = np.fft.fftshift(
        np.fft.fftn(np.fft.ifftshift(volume, axes), axes=axes, norm="ortho"), axes
    ).astype(np.complex64)

    def line(step, depth):
        return full[:, :, step, depth], step, 0, 20, (), {"kspace_encode_step_2": depth}

    lines = [line(k, d) for d in range(8) for k in range(0, 36, 2)]
    scan = read_scan(ismrmrd_file(tmp_path / "a.h5", lines, depth=8, recon_depth=6))
    assert scan.kspace.shape == (6, 2, 40, 36)
    np.testing.assert_array_equal(scan.mask, np.arange(36) % 2 == 0)
    assert scan.spacing == (5.0, 10.0, 10.0)
    plane = (1, 2)
    right = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(volume, plane), axes=plane, norm="ortho"), plane
    )
    np.testing.assert_allclose(scan.kspace, np.moveaxis(right, 3, 0)[1:7] * scan.mask, atol=1e-5)
    with pytest.raises(InputError, match=r"second phase encoding is not sampled in full \(7 of 8"):
        read_scan(
            ismrmrd_file(tmp_path / "b.h5", [v for v in lines if v[5] != lines[0][5]], depth=8)
        )
    # slices whose number was written as the encoded depth
    lines = [(kspace[part, :, :, k], k, part, 20, ()) for part in range(2) for k in range(36)]
    scan = read_scan(ismrmrd_file(tmp_path / "c.h5", lines, depth=2))
    np.testing.assert_array_equal(scan.kspace, kspace)


def test_lines_of_fewer_channels_are_refused(tmp_path, kspace):
    lines = [(kspace[0, : 2 if line == 7 else 3, :, line], line, 0, 20, ()) for line in range(36)]
    with pytest.raises(InputError, match="image lines of 2 and of 3 channels"):
        read_scan(ismrmrd_file(tmp_path / "scan.h5", lines))


def test_other_encodings_are_refused(tmp_path, kspace):
    lines = [(kspace[0][:, :, k], k, 0, 20, (), {"encoding_space_ref": k % 2}) for k in range(36)]
    with pytest.raises(InputError, match="image lines of the encodings 0, 1; write those of one"):
        read_scan(ismrmrd_file(tmp_path / "a.h5", lines))
    lines = [(kspace[0][:, :, k], k, 0, 20, ("COMPRESSION1",)) for k in range(36)]
    with pytest.raises(InputError, match="holds compressed lines"):
        read_scan(ismrmrd_file(tmp_path / "b.h5", lines))


def test_headers_with_attributes_and_comments(tmp_path, kspace):
    lines = [(kspace[0][:, :, k], k - 10, 0, 20, ()) for k in range(10, 36)]
    ismrmrd_file(tmp_path / "a.h5", lines, centre_line=8)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        text = file["dataset/xml"][0].decode()
        text = text.replace("<encoding>", "<!-- <trajectory>radial</trajectory> --><encoding>")
        text = re.sub(r"<((?:ns\d:)?(?:matrixSize|center|x))>", r'<\1 unit="1">', text)
        file["dataset/xml"][0] = text.encode()
    np.testing.assert_array_equal(read_scan(tmp_path / "a.h5").mask, np.arange(36) >= 10)


def test_complex_nifti_keeps_its_phase(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    from restoration.mri.simulation import simulate

    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 12, 10)) + 1j * rng.standard_normal((2, 12, 10))
    stored = nibabel.Nifti1Image(image.transpose(2, 1, 0).astype(np.complex64), np.eye(4))
    nibabel.save(stored, tmp_path / "a.nii.gz")
    scan = read_scan(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(scan.magnitude, np.abs(image), rtol=1e-6)
    made = simulate(scan, None, 1, 0.0, 0).kspace[:, 0].numpy()
    right = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, (1, 2)), norm="ortho"), (1, 2))
    np.testing.assert_allclose(made, right, atol=1e-4)


def test_nifti_pairs_and_units(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    for kind, name in (("Nifti1Pair", "a.img"), ("Spm99AnalyzeImage", "b.img")):
        nibabel.save(getattr(nibabel, kind)(values, affine), tmp_path / name)
    for name in ("a.img", "a.hdr", "b.hdr"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.magnitude, values.transpose(2, 1, 0))
        assert scan.spacing == (4, 3, 2)
    np.testing.assert_allclose(read_scan(tmp_path / "a.hdr").affine, affine)
    small = nibabel.Nifti1Image(values, np.diag([2000.0, 3000, 4000, 1]))
    small.header.set_xyzt_units("micron")
    nibabel.save(small, tmp_path / "c.nii")
    scan = read_scan(tmp_path / "c.nii")
    assert scan.spacing == pytest.approx((4, 3, 2))
    write_reconstruction(tmp_path / "d.nii", scan.magnitude + 0j, scan)
    back = nibabel.load(tmp_path / "d.nii")
    np.testing.assert_allclose(back.affine, np.diag([2.0, 3, 4, 1]))
    assert back.header.get_xyzt_units()[0] == "mm"


def dicom_file(path, pixels, bits=12, **tags):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData, data["PixelData"].VR = pixels.tobytes(), "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_dicom_numbers_in_the_high_bits(tmp_path, dtype):
    """Overlays of old files lie in the low ones."""
    pytest.importorskip("pydicom")
    low = -2048 if dtype == np.int16 else 0
    values = np.random.default_rng(0).integers(low, low + 4096, (8, 6)).astype(dtype)
    stored = (values << 4 | 5).astype(dtype)
    path = dicom_file(tmp_path / "a.dcm", stored, HighBit=15, RescaleIntercept=-low)
    np.testing.assert_array_equal(read_scan(path).magnitude[0], values.astype(int) - low)


def test_dicom_tables_of_meaning(tmp_path):
    """A modality LUT takes the place of slope and intercept."""
    pydicom = pytest.importorskip("pydicom")
    table = (np.arange(4096) ** 2 % 5000).astype(np.uint16)
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [4096, 0, 16], "US", table.tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    values = np.random.default_rng(0).integers(0, 4096, (8, 6)).astype(np.uint16)
    path = dicom_file(tmp_path / "a.dcm", values, ModalityLUTSequence=[item])
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.magnitude[0], table[values])
    write_reconstruction(tmp_path / "b.dcm", scan.magnitude + 0j, scan)
    np.testing.assert_allclose(
        read_scan(tmp_path / "b.dcm").magnitude, scan.magnitude, atol=65535 / 4095
    )


def test_dicom_volumes_follow_one_another(tmp_path):
    """Two moments of three places, stored by place."""
    pytest.importorskip("pydicom")
    (tmp_path / "series").mkdir()
    for number, (place, moment) in enumerate([(z, t) for z in range(3) for t in range(2)]):
        dicom_file(
            tmp_path / "series" / f"{number}.dcm",
            np.full((8, 6), 10 * moment + place, np.uint16),
            InstanceNumber=3 * moment + place + 1,
            ImagePositionPatient=[0, 0, 4.0 * place],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[2, 1],
        )
    scan = read_scan(tmp_path / "series")
    np.testing.assert_array_equal(scan.magnitude[:, 0, 0], [0, 1, 2, 10, 11, 12])
    assert (scan.spacing, scan.volumes) == ((4, 2, 1), 2)
    np.testing.assert_array_equal(np.diag(scan.affine), [-1, -2, 4, 1])  # of each volume


def test_reconstructions_are_written_whole(tmp_path):
    image = np.stack([disc((20, 24)).numpy() * np.exp(0.3j), 0.5 * disc((20, 24)).numpy() + 0j])
    scanned = read_scan(fastmri_file(tmp_path / "a.h5", image[:, None].astype(np.complex64)))
    (out,) = write_reconstruction(tmp_path / "out.h5", image, scanned, std=np.abs(image))
    with h5py.File(out) as file:
        np.testing.assert_allclose(file["reconstruction"][()], np.abs(image), rtol=1e-6)
        np.testing.assert_allclose(file["reconstruction_complex"][()], image, rtol=1e-6)
        assert file.attrs["acquisition"] == "AXT2"
        assert "std" in file
    from restoration.io.images import read_image

    files = write_reconstruction(tmp_path / "out.png", image)
    assert [f.name for f in files] == ["out-000.png", "out-001.png"]
    first, second = (read_image(f).pixels[0] for f in files)  # one scale for the volume
    np.testing.assert_allclose(second, 0.5 * first, atol=0.01)
    assert not list(tmp_path.glob(".*"))


def test_bad_files(tmp_path, kspace):
    def npz(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return read_scan(tmp_path / "x.npz")

    def huge():
        with h5py.File(tmp_path / "huge.h5", "w") as file:
            file.create_dataset(
                "kspace", (100, 64, 1024, 1024), np.complex64, chunks=(1, 1, 64, 64)
            )
        return read_scan(tmp_path / "huge.h5")

    def text(name, content=b"no data"):
        (tmp_path / name).write_bytes(content)
        return read_scan(tmp_path / name)

    one = kspace[0]
    cases = [
        (lambda: npz(kspace=one.real), "complex arrays"),
        (lambda: npz(kspace=one[0]), "complex arrays"),
        (lambda: npz(other=one), "neither kspace nor image"),
        (lambda: npz(kspace=one, mask=np.ones(5)), "mask of shape"),
        (lambda: npz(kspace=one, mask=np.full(36, 2)), "other than 0 and 1"),
        (lambda: npz(kspace=one, mask=np.zeros(36)), "samples nothing"),
        (lambda: npz(kspace=one[:, :0]), "empty"),
        (lambda: npz(image=np.full((1, 8, 8), np.nan)), "NaN"),
        (lambda: npz(kspace=np.array([{}], dtype=object)), "kspace|pickle|Object"),
        (huge, "of memory"),
        (lambda: text("a.h5"), "HDF5"),
        (lambda: text("a.npz"), "npz"),
        (lambda: text("a.mat"), "MATLAB"),
        (lambda: text("a.raw"), "known ending"),
        (lambda: read_maps(tmp_path / "x.npz"), "Python objects|axes"),
        (lambda: check_output(tmp_path / "x.txt"), "ending"),
    ]
    np.savez(tmp_path / "two.npz", a=one, b=one)
    cases.append((lambda: read_maps(tmp_path / "two.npz"), "one array maps"))
    cases.append((lambda: read_sampling(tmp_path / "two.npz", (40, 36)), "one array mask"))
    for run, says in cases:
        with pytest.raises(ValueError, match=says):
            run()
    for run in (
        lambda: read_scan(tmp_path / "none.h5"),
        lambda: read_maps(tmp_path / "none"),
        lambda: check_output(tmp_path / "no" / "x.png"),
    ):
        with pytest.raises(OSError, match=r"exist|folder"):
            run()
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("kspace")
    with pytest.raises(ValueError, match="group"):
        read_scan(tmp_path / "group.h5")


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny network after two training steps on two drawn heads."""
    from toolbox.training.loop import train
    from toolbox.training.recipe import TrainingRecipe

    folder = tmp_path_factory.mktemp("mri")
    head = (255 * disc((72, 64)) / 1.5).numpy().astype(np.uint8)
    np.savez(folder / "heads.npz", axial=np.stack([head, head[::-1]]))
    (folder / "recipe.toml").write_text(
        'name = "tiny"\ntask = "mri"\nsteps = 2\nbatch_size = 2\npatch_size ='
        " 32\n[network]\nblock_out_channels = [8, 16]\nlayers_per_block = 1\nnorm_num_groups ="
        " 4\nfold = 2\n[process]\nnoise_scale = 0.03\n[loss]\ndata_std = 0.03\n[simulation]\nscans"
        ' = 2\nsides = [48, 56]\nkinds = ["random", "poisson"]\n[optimizer]\nwarmup = 1\n'
    )
    return train(TrainingRecipe.read(folder / "recipe.toml"), folder, folder / "model")


def run(capsys, *arguments, command=("restore", "mri")):
    from toolbox.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["restobox", *command, *map(str, arguments), "--json"])
        code = main()
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if code == 0 else captured.err


def test_command_on_kspace(capsys, tmp_path, kspace, model):
    full = fastmri_file(tmp_path / "full.h5", kspace)
    code, figures = run(
        capsys,
        full,
        "-o",
        tmp_path / "out.h5",
        "--mask",
        "equispaced-fraction",
        "--acceleration",
        3,
        "--center-fraction",
        0.25,
        "--model",
        model,
        "--steps",
        2,
        "-n",
        2,
        "--std",
    )
    assert code == 0
    assert figures["size"] == [20, 24]
    assert figures["acceleration"] == pytest.approx(3, rel=0.15)
    assert figures["nfe"] == 2 * (2 * 2 + 3)  # samples of two slices, halves of each
    assert figures["psnr"] > 15
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["std"].shape == (2, 20, 24)
    # the same data, undersampled at the source
    mask = column_mask("random", 36, 2, 0.25, 0).numpy()
    np.savez(tmp_path / "under.npz", kspace=kspace * mask)
    code, figures = run(
        capsys, tmp_path / "under.npz", "-o", tmp_path / "out.png", "--model", model, "--steps", 1
    )
    assert code == 0
    assert len(figures["out"]) == 2
    assert figures["acceleration"] == pytest.approx(36 / mask.sum(), abs=0.01)
    assert "psnr" not in figures
    code, error = run(
        capsys,
        tmp_path / "under.npz",
        "-o",
        tmp_path / "no.png",
        "--mask",
        "random",
        "--model",
        model,
    )
    assert code == 2
    assert "undersampled already" in error


def test_command_says_where_its_maps_come_from(capsys, tmp_path, kspace, model):
    """Those in the file, of whatever scale, unless ESPIRiT or another file is asked for."""
    rng = np.random.default_rng(2)
    maps = 5 * (1 + rng.random((1, 36))) * ring_maps(len(kspace[0]), kspace.shape[2:], rng).numpy()
    np.savez(tmp_path / "own.npz", kspace=kspace[0], maps=maps)
    np.savez(tmp_path / "norm.npz", maps=normalise_maps(torch.from_numpy(maps)).numpy())
    settings = (
        "-m",
        "random",
        "--acceleration",
        2,
        "--center-fraction",
        0.25,
        "--model",
        model,
        "--steps",
        1,
        "-o",
        tmp_path / "o.png",
    )
    found = {}
    for coils in ("auto", "espirit", tmp_path / "norm.npz"):
        code, found[coils] = run(capsys, tmp_path / "own.npz", "--coils", coils, *settings)
        assert code == 0, found[coils]
    own, estimated, other = found.values()
    assert [own["maps"], estimated["maps"], other["maps"]] == [
        "file",
        "espirit",
        str(tmp_path / "norm.npz"),
    ]
    assert own["psnr"] == pytest.approx(other["psnr"], abs=0.01)
    assert "espirit" in own["note"]
    assert "note" not in estimated
    np.savez(tmp_path / "two.npz", maps=maps[:2])
    code, error = run(capsys, tmp_path / "own.npz", "--coils", tmp_path / "two.npz", *settings)
    assert code == 2
    assert "same coils" in error


def test_command_on_magnitudes(capsys, tmp_path, model):
    image = disc((48, 40)).numpy()[None]
    np.savez(tmp_path / "image.npz", image=image)
    arguments = (tmp_path / "image.npz", "-o", tmp_path / "out.png", "--model", model, "--steps", 1)
    code, figures = run(
        capsys, *arguments, "--mask", "random", "--acceleration", 2, "--coils", 4, "--sigma", 0.01
    )
    assert code == 0
    assert figures["coils"] == 4
    assert figures["psnr"] > 20
    code, error = run(capsys, *arguments)
    assert code == 2
    assert "--mask" in error


def test_bad_commands(capsys, tmp_path, kspace, model):
    full = fastmri_file(tmp_path / "full.h5", kspace)
    np.savez(tmp_path / "maps.npz", maps=kspace[0, :2])
    broken = kspace.copy()
    broken[1, 0, :, 3] = np.nan
    bad = fastmri_file(tmp_path / "nan.h5", broken)
    for arguments, says in [
        ((full, "-o", tmp_path / "x.txt"), "ending"),
        ((full, "-o", tmp_path / "x.png", "--mask", "spiral"), "neither a file nor a kind"),
        ((full, "-o", tmp_path / "x.png", "--coils", tmp_path / "maps.npz"), "same coils"),
        ((full, "-o", tmp_path / "x.png", "--coils", "4"), "--coils takes"),
        ((full, "-o", tmp_path / "x.png", "--std"), "two samples"),
        ((bad, "-o", tmp_path / "x.png"), "slice 1: k-space holds NaN"),
        (
            (full, "-o", tmp_path / "x.png", "--mask", "random", "--acceleration", "12"),
            "centre|calibration",
        ),
        ((tmp_path / "none.h5", "-o", tmp_path / "x.png"), "does not exist"),
    ]:
        code, error = run(capsys, *arguments, "--model", model, "--steps", 1)
        assert code == 2
        assert says.split("|")[0] in error or says.split("|")[-1] in error
        assert error.count("\n") == 1
    assert not list(tmp_path.glob("x*"))


def test_bench(tmp_path, model):
    from toolbox.bench.mri import run_mri_bench
    from toolbox.bench.options import Extent, Methods, Scans

    np.savez(tmp_path / "image.npz", image=disc((48, 40)).numpy()[None])
    rows = run_mri_bench(
        tmp_path / "image.npz",
        Scans(["poisson"], [2.0]),
        Methods(["zero-filled", "cg-sense", str(model)], steps=2),
        Extent(limit=1, samples=2),
    )
    zero, sense, mine = rows
    assert all(isinstance(r["lpips"], str) or r["lpips"] > 0 for r in rows)
    assert sense["psnr"] > zero["psnr"] + 3
    assert sense["weight"] > 0
    assert mine["nfe"] == 2 * 2 + 3
    assert 0 <= mine["coverage_90"] <= 1
    assert mine["residual_over_sigma"] <= 1.001


def test_bench_tells_lpips():
    """Of slices scaled by the volume's maximum, whatever its unit; small ones have none."""
    from restoration.metrics import lpips
    from toolbox.bench.mri import mean_lpips

    truth = torch.stack([disc((64, 72)), disc((64, 72), 0.5)])
    found = truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert mean_lpips(truth, truth) == 0
    near, far = mean_lpips(truth + 0.1 * (found - truth), truth), mean_lpips(found, truth)
    assert 0 < near < far
    scaled = [(v / truth.max()).clamp(0, 1)[:, None].repeat(1, 3, 1, 1) for v in (found, truth)]
    assert far == pytest.approx(
        np.mean([lpips(*pair) for pair in zip(*scaled, strict=True)]), abs=1e-4
    )
    assert mean_lpips(100 * found, 100 * truth) == pytest.approx(far, abs=1e-4)
    assert "at least 32 x 32" in mean_lpips(truth[:, :20], truth[:, :20])


def test_raw_data_of_scanners_are_told_what_converts_them(tmp_path):
    (tmp_path / "meas.dat").write_bytes(bytes(9))
    with pytest.raises(InputError, match="siemens_to_ismrmrd converts it"):
        read_scan(tmp_path / "meas.dat")


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_axes_in_another_order_are_refused(tmp_path, kspace, suffix):
    """As programs in MATLAB have them: (H, W, coils), (H, W, coils, slices), (H, W, slices)."""

    def save(**arrays):
        path = tmp_path / f"a{suffix}"
        np.savez(path, **arrays) if suffix == ".npz" else io.savemat(path, arrays)
        return path

    np.testing.assert_array_equal(read_scan(save(kspace=kspace)).kspace, kspace)
    for turned in (kspace[0].transpose(1, 2, 0), kspace.transpose(2, 3, 1, 0)):
        with pytest.raises(InputError, match=r"the axes must be \(slices, coils, H, W\)"):
            read_scan(save(kspace=turned))
    with pytest.raises(InputError, match=r"the axes must be \(volumes, slices, coils, H, W\)"):
        read_scan(save(kspace=np.ones((40, 36, 3, 8, 9), np.complex64)))
    volume = np.ones((3, 40, 36))
    assert read_scan(save(image=volume)).magnitude.shape == volume.shape
    with pytest.raises(InputError, match=r"40 slices of 36 x 3 pixels; the axes must be"):
        read_scan(save(image=volume.transpose(1, 2, 0)))
