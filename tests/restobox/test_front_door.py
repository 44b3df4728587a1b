"""``import restobox``: every task by one function, pictures in the form they came in."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.data import ROOT, smooth_picture
from helpers.profiles import wide_profile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import restobox
from restobox.pictures import read_mask, read_picture
from restoration.io.images import Photo, read_image, write_image
from restoration.io.pictures.gamut import gamut_of
from restoration.io.pictures.notes import Notes
from restoration.photo.inpainting import InpaintingTask
from solvers import DDIM
from toolbox import load
from toolbox.cli import main
from toolbox.support.cards import spread_of


@pytest.fixture(scope="module")
def photo():
    return (smooth_picture(40, 48).transpose(1, 2, 0) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def mask():
    return np.random.default_rng(0).random((40, 48)) < 0.5


@pytest.fixture(scope="module")
def restore():
    return restobox.inpaint(load("photo-int8", threads=1), steps=2)


# -- pictures ------------------------------------------------------------------------------


@given(
    st.sampled_from(["HW", "HWC", "CHW"]),
    st.sampled_from(["uint8", "uint16", "float32", "float64"]),
    st.sampled_from(["numpy", "torch"]),
    st.integers(0, 2**32 - 1),
)
def test_arrays_come_back_as_they_came(layout, dtype, kind, seed):
    """To the bit for integers: reading and writing are each other's inverse."""
    if kind == "torch" and dtype == "uint16":
        dtype = "uint8"
    shape = {"HW": (7, 9), "HWC": (7, 9, 3), "CHW": (3, 7, 9)}[layout]
    rng = np.random.default_rng(seed)
    array = rng.random(shape).astype(dtype) if dtype[0] == "f" else None
    if array is None:
        array = rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True, dtype=dtype)
    given = torch.from_numpy(array) if kind == "torch" else array
    pixels, form = read_picture(given)
    assert pixels.shape == ((1, 7, 9) if layout == "HW" else (3, 7, 9))
    zero = torch.zeros_like(pixels)
    back = restobox.RestoredPicture(pixels[None], pixels, zero, 1, 0.0, pixels, form).image
    assert back.dtype == given.dtype
    assert back.shape == given.shape
    np.testing.assert_allclose(np.asarray(back), array, rtol=0, atol=1e-6 if dtype[0] == "f" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_pil_modes(photo, mode):
    if mode == "I;16":
        image = Image.fromarray(photo[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(photo).convert(mode)
    pixels, form = read_picture(image)
    assert pixels.shape[0] == (1 if mode in ("1", "L", "LA", "I;16") else 3)
    assert (form.alpha is not None) == (mode in ("LA", "RGBA"))
    want = np.asarray(image.convert("RGB" if pixels.shape[0] == 3 else "L"), np.float32) / 255
    want = want.transpose(2, 0, 1) if want.ndim == 3 else want[None]
    if mode != "I;16":
        np.testing.assert_allclose(pixels.numpy(), want, atol=1e-6)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 5)), r"\(H, W\), \(H, W, C\) or \(C, H, W\)"),
        (np.zeros((4, 4), np.int32), "8- or 16-bit"),
        (np.full((4, 4), 200.0), "lie in \\[0, 1\\]; this one holds 200 to 200"),
        (np.full((4, 4), np.nan), "lie in"),
        (Image.new("CMYK", (4, 4)), "mode CMYK"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        read_picture(picture)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="PIL image, a NumPy array, a torch tensor or a path"):
        read_picture(object())


def test_masks_say_white_is_missing(mask):
    white = Image.fromarray((mask * 255).astype(np.uint8))
    numbers = (mask.astype(np.float32), mask.astype(np.uint8), mask.astype(np.int64))
    for form in (mask, torch.from_numpy(mask), white, *numbers):
        np.testing.assert_array_equal(read_mask(form, mask.shape).numpy(), ~mask)
    with pytest.raises(ValueError, match="9 x 7 pixels but the picture is 48 x 40"):
        read_mask(np.zeros((7, 9), bool), (40, 48))
    with pytest.raises(ValueError, match="marks no pixel; white"):
        read_mask(np.zeros((7, 9), bool), (7, 9))
    with pytest.raises(ValueError, match="looks like a photograph"):
        read_mask(smooth_picture(40, 48), (40, 48))


# -- tasks ------------------------------------------------------------------------------


def test_inpainting_is_the_tasks(photo, mask, restore):
    """All forms of one picture give what the task gives, to the bit."""
    pixels = torch.from_numpy(photo.transpose(2, 0, 1).astype(np.float32) / 255)
    task = InpaintingTask(restore.model, DDIM(), 2)
    want = task(pixels, torch.from_numpy(~mask).float(), num_samples=2, seed=5)
    for form in (photo, Image.fromarray(photo), pixels, pixels.permute(1, 2, 0).numpy()):
        found = restore(form, mask, num_samples=2, seed=5, reference=form)
        torch.testing.assert_close(found.mean, want.mean, rtol=0, atol=0)
        torch.testing.assert_close(found.std, want.std, rtol=0, atol=0)
        assert found.nfe == 4
        assert found.metrics["psnr"] > 20
        assert type(found.image) is type(form)
    assert "data:image/png;base64" in found._repr_html_()


def test_lists_are_restored_one_by_one(photo, mask, restore):
    both = restore([photo, photo[::-1]], [mask, mask[::-1]], seed=1)
    one = restore(photo, mask, seed=1)
    assert len(both) == 2
    np.testing.assert_array_equal(both[0].image, one.image)


def test_files_in_and_out(tmp_path, photo, mask, restore):
    write_image(tmp_path / "a.png", Photo(photo.transpose(2, 0, 1) / np.float32(255), bits=16))
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "m.png")
    found = restore(tmp_path / "a.png", str(tmp_path / "m.png"))
    assert isinstance(found.image, Image.Image)
    assert read_image(found.save(tmp_path / "b.png")).bits == 16
    notes = Notes(dpi=(300.0, 300.0), text={"Title": "a"})
    write_image(tmp_path / "c.tif", Photo(photo.transpose(2, 0, 1) / 255, None, 32, notes))
    write_image(tmp_path / "c.png", Photo(photo.transpose(2, 0, 1) / 255, None, 8, notes))
    again = restore(tmp_path / "c.tif", str(tmp_path / "m.png"))
    assert read_image(again.save(tmp_path / "d.tif")).bits == 32
    again = restore(tmp_path / "c.png", str(tmp_path / "m.png"))
    back = read_image(again.save(tmp_path / "d.png")).notes
    assert back.text == {"Title": "a"}
    assert back.dpi == pytest.approx((300, 300), abs=0.1)
    with pytest.raises(ValueError, match="must end in"):
        found.save(tmp_path / "b.xyz")


@pytest.mark.parametrize("kind", ["path", "pil"])
def test_wide_gamuts_are_restored_in_srgb_and_come_back(tmp_path, restore, mask, kind):
    icc = wide_profile("ProPhoto")
    pixels = gamut_of(icc).from_srgb(smooth_picture(40, 48))
    codes = np.rint(pixels * 255).astype(np.uint8).transpose(1, 2, 0)
    codes[mask] = (10, 240, 10)  # painted with a colour far outside sRGB
    Image.fromarray(codes).save(tmp_path / "a.png", icc_profile=icc, dpi=(300, 300))
    given = tmp_path / "a.png" if kind == "path" else Image.open(tmp_path / "a.png")
    for sigma in (0.0, 0.001):
        found = restore(given, mask, sigma=sigma, num_samples=2, reference=pixels)
        back = found.to_pil()
        assert back.info["icc_profile"] == icc
        assert back.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        if sigma == 0:
            np.testing.assert_array_equal(np.asarray(back)[~mask], codes[~mask])
        # filled with the colours of the surroundings, not with what was painted over them
        assert np.abs(np.asarray(back) / 255 - pixels.transpose(1, 2, 0))[mask].mean() < 0.03
        assert found.metrics["psnr"] > 30
        assert read_image(found.save(tmp_path / "b.png")).notes.icc == icc
    assert found.std[:, mask].max() > 0


def test_orientations_of_pil_images_are_handed_on(tmp_path, photo, mask, restore):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    found = restore(Image.open(tmp_path / "a.png"), mask)
    for name in ("b.png", "b.tif", "b.jpg"):
        assert read_image(found.save(tmp_path / name)).pixels.shape == (3, 48, 40)
    # a file is turned
    assert restore(tmp_path / "a.png", mask.T[:, ::-1]).to_pil().size == (40, 48)


def test_transparency_is_handed_on(photo, mask, restore):
    image = Image.fromarray(photo).convert("RGBA")
    image.putalpha(Image.fromarray(photo[..., 1]))
    back = restore(image, mask).to_pil()
    assert back.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(back)[..., 3], photo[..., 1])


@pytest.mark.parametrize(
    ("task", "size"),
    [
        (restobox.denoise, (48, 40)),
        (lambda: restobox.superresolve(2), (96, 80)),
        (lambda: restobox.deblur(1.5, steps=2), (48, 40)),
        (restobox.dehaze, (48, 40)),
    ],
    ids=["denoise", "superresolve", "deblur", "dehaze"],
)
def test_picture_tasks(photo, task, size):
    noise = np.random.default_rng(1).normal(0, 20, photo.shape)
    noisy = np.clip(photo + noise, 0, 255).astype(np.uint8)
    restore = task()
    found = restore(Image.fromarray(noisy))
    assert found.image.size == size
    assert torch.isfinite(found.mean).all()


def test_denoising_helps(photo):
    noise = np.random.default_rng(1).normal(0, 0.1, photo.shape).astype(np.float32)
    noisy = (photo / np.float32(255) + noise).clip(0, 1)
    clean = photo / np.float32(255)
    found = restobox.denoise()(noisy, sigma=0.1, reference=clean)
    assert found.metrics["psnr"] > 10 * np.log10(1 / np.mean((noisy - clean) ** 2)) + 3


def test_measurements_of_other_kinds(photo):
    cube = restobox.hsi(symmetries=1)(np.random.default_rng(0).random((12, 24, 20)))
    assert cube.rows().shape == (12, 24, 20)
    frame = restobox.ultrasound(steps=1)(photo[..., 0])
    assert frame.image.shape == photo.shape[:2]
    kspace = torch.fft.fftshift(torch.fft.fft2(torch.from_numpy(photo[..., 0] / 255.0)))[None]
    scan = restobox.mri()(kspace, torch.ones(48), sigma=0.01)
    assert scan.mean.shape == photo.shape[:2]


def test_scans_of_files_come_on_the_headers_matrix(photo, tmp_path):
    h5py = pytest.importorskip("h5py")
    data = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(photo[..., 0] / 255.0)))
    size = "<matrixSize><x>{}</x><y>48</y><z>1</z></matrixSize>"
    text = f"<encodedSpace>{size.format(40)}</encodedSpace><reconSpace>{size.format(20)}"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = data[None].astype(np.complex64)
        file["ismrmrd_header"] = f"<h>{text}</reconSpace></h>"
    scan = restobox.mri()(tmp_path / "a.h5", torch.ones(48), sigma=0.01, num_samples=2)
    whole = restobox.mri()(data[None, None], torch.ones(48), sigma=0.01, num_samples=2)
    assert scan.mean.shape == (1, 20, 48)
    assert torch.equal(scan.mean, whole.mean[:, 10:30])
    assert torch.equal(scan.samples, whole.samples[..., 10:30, :])


def test_spreads_of_scans_are_those_of_the_command_line(photo, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    data = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(photo[..., 0] / 255.0)))
    np.savez(tmp_path / "a.npz", kspace=data[None, None].astype(np.complex64))
    np.savez(tmp_path / "m.npz", mask=(np.arange(48) % 3 == 0) | (abs(np.arange(48) - 24) < 5))
    words = ["mri", str(tmp_path / "a.npz"), "--mask", str(tmp_path / "m.npz"), "--sigma", "0.01"]
    out = tmp_path / "o.h5"
    words = ["restobox", "restore", *words, "-n", "2", "--std", "-o", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 0
    with h5py.File(out) as file:
        wanted = file["std"][:]
    mask = torch.from_numpy(np.load(tmp_path / "m.npz")["mask"])
    found = restobox.mri()(data[None, None], mask, sigma=0.01, num_samples=2)
    assert found.level == 0.9
    np.testing.assert_allclose(found.std.numpy(), wanted, rtol=1e-4)
    one = restobox.mri()(data[None], mask, sigma=0.01, num_samples=2)
    torch.testing.assert_close(one.std, found.std[0])
    unknown = restobox.mri(solver="ddpm")(data[None], mask, sigma=0.01, num_samples=2)
    assert unknown.level is None
    # halves of the scan don't ask which solver draws; that map is as it comes where nobody measured
    run = {"solver": "ddim", "steps": 4, "correction": None}
    known = spread_of("mri", "mri", run, 2, one.left_open)
    torch.testing.assert_close(known.std(unknown.std), one.std)


def test_wrong_arguments_are_refused(photo, mask, restore, tmp_path):
    with pytest.raises(TypeError, match="inpaint takes a picture, a mask; got 3 arguments"):
        restore(photo, mask, mask)
    with pytest.raises(ValueError, match="neither a shipped model"):
        restobox.inpaint(tmp_path / "none")
    with pytest.raises(ValueError, match="leave out dtype"):
        restobox.inpaint("photo-int8", dtype=torch.float16)


# -- the module itself -----------------------------------------------------------------------------


def python(code: str, cwd, **environment) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("hidden", ["export.py", "quant/__init__.py"])
def test_a_module_that_hides_a_package_is_named(tmp_path, hidden):
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / hidden).write_text("")
    done = python("import restobox", tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError")
    assert str(tmp_path / hidden) in last
    assert "rename that file" in last


def test_importing_is_light(tmp_path):
    done = python(
        "import restobox, sys; print(sorted({'torch', 'numpy'} & set(sys.modules)))", tmp_path
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_everything_named_is_there():
    for name in restobox.__all__:
        assert getattr(restobox, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'sharpen'"):
        _ = restobox.sharpen


def test_transparency_is_enlarged_with_the_picture(photo):
    image = Image.fromarray(photo).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 128))
    large = restobox.superresolve(2)(image).to_pil()
    assert (large.mode, large.size) == ("RGBA", (96, 80))
    assert set(np.asarray(large)[..., 3].ravel().tolist()) == {128}


def test_grey_pictures_of_16_bits_come_back_with_them(photo, mask, restore):
    image = Image.fromarray(photo[..., 0].astype(np.uint16) * 257)
    back = restore(image, mask).image
    assert back.mode == "I;16"
    known = ~mask
    np.testing.assert_array_equal(np.asarray(back)[known], np.asarray(image)[known])


def test_a_denoiser_of_the_callers_stays_as_it_is():
    denoiser = load("photo-x4")
    before = next(denoiser.network.parameters()).dtype
    made = restobox.superresolve(4, denoiser, dtype=torch.float64)
    assert next(made.model.network.parameters()).dtype == torch.float64
    assert next(denoiser.network.parameters()).dtype == before
    with pytest.raises(ValueError, match="lives on cpu; move its network to cuda"):
        restobox.superresolve(4, denoiser, device="cuda")
