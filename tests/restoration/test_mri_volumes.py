"""Files of several volumes: k-space of five axes, NIfTI of four; sampled alike or not."""

import json

import h5py
import nibabel
import numpy as np
import pytest
import torch
from helpers.commands import restobox
from helpers.scans import disc, scan

import restobox as restobox_api
from restoration.io.mri import read_scan
from restoration.io.mri_output import write_reconstruction
from restoration.io.mri_scan import Scan
from restoration.mri.task import sampled
from solvers.inputs.errors import InputError

COLUMNS = np.stack([np.arange(36) % 2 == 0, np.arange(36) % 3 == 0, np.arange(36) % 4 > 0])


@pytest.fixture(scope="module")
def kspace():
    """``(volumes, slices, coils, H, W)``: averages that were sampled at columns of their own."""
    whole = np.stack([scan(coils=3, seed=s)[3].numpy() for s in range(6)]).reshape(3, 2, 3, 40, 36)
    masks = COLUMNS | (np.abs(np.arange(36) - 18) < 6)
    return whole * masks[:, None, None, None], masks


def test_volumes_follow_one_another(tmp_path, kspace):
    values, masks = kspace
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"], file["mask"] = values, masks[:, None, None, None]
        file["reconstruction_rss"] = np.ones((3, 2, 40, 36), np.float32)
    read = read_scan(tmp_path / "a.h5")
    np.testing.assert_array_equal(read.kspace, values.reshape(6, 3, 40, 36))
    np.testing.assert_array_equal(read.mask[:, 7], masks.repeat(2, 0))
    assert (read.volumes, read.target.shape) == (3, (6, 40, 36))
    one = read.volume(1, tmp_path)
    np.testing.assert_array_equal(one.kspace, values[1])
    np.testing.assert_array_equal(one.mask[0, 3], masks[1])
    assert (one.volumes, len(one.target)) == (1, 2)
    with pytest.raises(InputError, match="holds volumes 0 to 2; there is no volume 3"):
        read.volume(3, tmp_path)


def test_pairs_and_matlab_hold_volumes_too(tmp_path, kspace):
    values, _ = kspace
    np.savez(tmp_path / "a.npz", kspace=np.stack([values.real, values.imag], -1))
    read = read_scan(tmp_path / "a.npz")
    np.testing.assert_array_equal(read.kspace, values.reshape(6, 3, 40, 36))
    assert read.volumes == 3


def test_each_slice_has_the_points_where_it_was_sampled(kspace):
    """Of a slice without signal nothing is known: it has those of the others."""
    values, masks = kspace
    flat = torch.from_numpy(values.reshape(6, 3, 40, 36).copy())
    flat[1] = 0
    found = sampled(flat).numpy()
    np.testing.assert_array_equal(found[[0, 2, 3, 4, 5], 0], masks.repeat(2, 0)[[0, 2, 3, 4, 5]])
    np.testing.assert_array_equal(found[1, 0], masks.any(0))


def test_one_volume_is_restored_as_if_it_were_alone(tmp_path, kspace):
    """Though the others are sampled elsewhere, and no mask says so."""
    values, _ = kspace
    results = {}
    for name, held in {"all": values, "one": values[1]}.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["kspace"] = held
        out = tmp_path / f"{name}-out.h5"
        run = restobox("restore", "mri", tmp_path / f"{name}.h5", "-o", out, "--sigma", 0)
        assert run.returncode == 0, run.stderr
        with h5py.File(out) as file:
            results[name] = file["reconstruction"][()]
    np.testing.assert_array_equal(results["all"][2:4], results["one"])
    out = tmp_path / "chosen.nii"
    run = restobox(*("restore", "mri", tmp_path / "all.h5", "-o", out, "--sigma", 0, "--volume", 1))
    assert run.returncode == 0, run.stderr
    chosen = nibabel.load(out).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(chosen.transpose(2, 1, 0), results["one"])


@pytest.mark.parametrize("kind", [np.float32, np.complex64])
def test_nifti_of_four_axes(tmp_path, kind):
    rng = np.random.default_rng(0)
    image = rng.random((8, 6, 3, 2)).astype(kind)
    image = image * 1j if kind == np.complex64 else image
    place = np.diag([2.0, 3.0, 4.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(image, place), tmp_path / "a.nii")
    read = read_scan(tmp_path / "a.nii")
    assert (read.volumes, read.spacing) == (2, (4.0, 3.0, 2.0))
    np.testing.assert_array_equal(
        read.magnitude.reshape(2, 3, 6, 8), np.abs(image).transpose(3, 2, 1, 0)
    )
    write_reconstruction(tmp_path / "b.nii.gz", read.magnitude, read)
    back = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), np.abs(image))
    np.testing.assert_array_equal(back.affine, place)
    second = read.volume(1, tmp_path).magnitude
    np.testing.assert_array_equal(second, np.abs(image[..., 1]).transpose(2, 1, 0))


def test_slices_of_each_volume_have_their_places_in_dicom(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    like = Scan(affine=np.diag([1.0, 1.0, 5.0, 1.0]), spacing=(5.0, 1.0, 1.0), volumes=2)
    files = write_reconstruction(tmp_path / "out", np.ones((4, 8, 8)), like)
    places = [float(pydicom.dcmread(f).ImagePositionPatient[2]) for f in files]
    assert places == [0, 5, 0, 5]


@pytest.mark.parametrize(("share", "refused"), [(-0.5, True), (-0.01, False)])
def test_parts_of_complex_images_are_no_magnitudes(tmp_path, share, refused):
    """Real parts and phases; what interpolation leaves below 0 is accepted."""
    image = np.ones((8, 6, 3), np.float32)
    image[0] = share
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "a.nii")
    if not refused:
        assert read_scan(tmp_path / "a.nii").magnitude.min() == np.float32(share)
        return
    with pytest.raises(InputError, match=r"numbers down to -0.5, which are no magnitudes"):
        read_scan(tmp_path / "a.nii")


def test_scans_of_images_are_simulated_with_maps_that_explain_them_about(tmp_path):
    """Without noise the data are exact, the estimated maps are not: taken for exact they lost 10 dB
    and more.
    """
    image = disc((64, 56)).numpy() + 0.02
    np.savez(tmp_path / "a.npz", image=image[None])
    out = tmp_path / "o.h5"
    run = restobox(
        *("restore", "mri", tmp_path / "a.npz", "-o", out),
        *("--mask", "equispaced", "--coils", 4, "--json"),
    )
    figures = json.loads(run.stdout)
    assert figures["sigma"] > 0
    assert figures["psnr"] > 25


def test_python_takes_one_volume(tmp_path, kspace):
    values, _ = kspace
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = values
    run = restobox_api.mri()
    one = run(tmp_path / "a.h5", volume=2, sigma=0.0).mean
    torch.testing.assert_close(one, run(values[2], sigma=0.0).mean)
    with pytest.raises(ValueError, match="of an array give the one"):
        run(values[2], volume=0)
