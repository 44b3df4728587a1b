"""Large pictures are filled window by window."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.commands import restobox
from helpers.data import ROOT, smooth_picture
from helpers.networks import shallow_unet
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_cdt

from restoration.io.images import Photo, read_image, write_image
from restoration.metrics import psnr
from restoration.operators.linear import Denoising, Inpainting
from restoration.operators.separable import BlockMean, UnknownReduction
from restoration.photo import inpainting, linear
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.linear import LinearTask
from restoration.photo.masks import make_mask
from restoration.task import Part, Restored
from restoration.wrappers import windows as wrappers_windows
from restoration.wrappers.tiling import tile_starts
from restoration.wrappers.windows import all_near, by_windows, windows
from solvers.denoiser import Denoiser
from solvers.processes.process import VP
from toolbox import load
from toolbox.cli.output import ProgressBar


@given(st.integers(1, 400), st.integers(1, 50), st.integers(2, 30), st.data())
def test_windows_cover_the_picture_with_its_tiles(height, width, half, data):
    tile, overlap = 2 * half, data.draw(st.integers(0, half - 1))
    covered = np.zeros((height, width), int)
    for rows, columns in windows((height, width), tile, overlap):
        assert max(rows.stop - rows.start, columns.stop - columns.start) <= tile
        covered[rows, columns] += 1
    assert covered.all()
    count = len(tile_starts(height, tile, overlap)) * len(tile_starts(width, tile, overlap))
    assert len(windows((height, width), tile, overlap)) == count


def test_what_depends_on_pixels_alone_is_the_same_in_windows():
    g = torch.Generator().manual_seed(0)
    image = torch.rand(3, 50, 70, generator=g)
    asked = []

    def halved(window):
        if window[0].start == 0:
            return None  # stays as it is
        asked.append(window)
        mean = image[:, *window] / 2
        return Restored(mean[None], mean, 0 * mean, 2, 0.0, misfit=0.1, warning="so")

    found = by_windows(halved, image, 16, 2)
    assert 0 < len(asked) < len(windows((50, 70), 16, 2))
    first = min(rows.start for rows, _ in asked)
    assert 0 < first <= 14
    torch.testing.assert_close(found.mean[:, :first], image[:, :first])
    torch.testing.assert_close(found.mean[:, 16:], image[:, 16:] / 2)
    assert (found.nfe, found.misfit, found.warning) == (2, pytest.approx(0.1), "so")
    assert found.samples.shape == (1, 3, 50, 70)
    assert not found.std.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0.01, 0.5))
def test_gaps_are_thin_where_something_known_is_near(seed, reach, share):
    known = (np.random.default_rng(seed).random((23, 31)) < share).astype(np.float32)
    known[0, 0] = 1
    far = distance_transform_cdt(known == 0, "chessboard").max()
    assert all_near(torch.from_numpy(known), reach) == (far <= reach)


@pytest.fixture
def in_windows(monkeypatch):
    """Pictures of more than 20,000 pixels are large; and how often one was done by windows."""
    asked = []

    def noted(restore, image, *where, **how):
        asked.append(tuple(image.shape))
        return by_windows(restore, image, *where, **how)

    monkeypatch.setattr(wrappers_windows, "LARGE", 20_000)
    for module in (inpainting, linear):
        monkeypatch.setattr(module, "by_windows", noted)
    return asked


def test_wide_holes_steps_and_samples_take_the_whole_picture(in_windows, tiny_model):
    image = torch.from_numpy(smooth_picture(160, 160))
    thin, wide = torch.ones(160, 160), torch.ones(160, 160)
    thin[:, 80:84], wide[40:90, 40:90] = 0, 0
    one, two = (InpaintingTask(load(tiny_model), num_inference_steps=n, tile=64) for n in (1, 2))
    one(image, wide)
    two(image, thin)
    one(image, thin, num_samples=2)
    one(image[:, :100], thin[:100])  # not large
    assert in_windows == []
    unknown = torch.where(thin > 0, image, torch.nan)  # missing pixels may hold anything
    seen = []
    found = one(unknown, thin, callback=lambda *step: seen.append(step))
    assert in_windows == [(3, 160, 160)]
    assert seen == [(0, Part(k + 1, 9)) for k in range(9)]  # those without a gap too
    assert torch.equal(found.mean[:, thin > 0], image[:, thin > 0])
    assert torch.isfinite(found.mean).all()
    image[0, 0, 0] = torch.inf  # far from what is missing
    with pytest.raises(ValueError, match="known pixels hold NaN or infinite values"):
        one(image, thin)


def test_noise_is_taken_off_in_windows(in_windows):
    g = torch.Generator().manual_seed(0)
    image = torch.from_numpy(smooth_picture(150, 170))
    noisy = image + 0.1 * torch.randn(image.shape, generator=g)
    one = LinearTask(Denoiser(shallow_unet(1, 1), VP.cosine(), "v_prediction"), tile=64)
    one = replace(one, num_inference_steps=1)
    seen = []
    found = one(noisy, Denoising(), sigma=0.1, callback=lambda *step: seen.append(step))
    assert in_windows == [(3, 150, 170)]
    assert seen == [(0, Part(k + 1, 9)) for k in range(9)]
    assert found.misfit == pytest.approx(float((noisy - found.mean).square().mean().sqrt()), 0.05)
    for other in (replace(one, num_inference_steps=2), replace(one, symmetries=2)):
        other(noisy[:, :130, :130], Denoising(), sigma=0.1)
    assert len(in_windows) == 1
    one(noisy, Inpainting(torch.ones(1, 1, 150, 170)), sigma=0.1)
    assert len(in_windows) == 1
    with pytest.raises(ValueError, match="denoising needs the noise level"):
        one(noisy, Denoising())


def test_pictures_are_enlarged_in_windows(in_windows, tiny_model):
    image = torch.from_numpy(smooth_picture(50, 70))
    one = LinearTask(load(tiny_model), num_inference_steps=1, tile=64)
    operator = UnknownReduction((150, 210), 3)
    found = one(image, operator)
    assert in_windows == [(3, 50, 70)]
    assert found.mean.shape == (3, 150, 210)
    assert found.misfit is None  # nobody knows the operator
    whole = replace(one, overlap=0, tile=256)(image, operator)
    assert in_windows == [(3, 50, 70)]  # its windows would be no smaller
    assert float((whole.mean - found.mean).abs().mean()) < 0.02
    one(image, BlockMean((150, 210), 3))
    replace(one, correction="ddnm")(image, operator)
    assert len(in_windows) == 1
    with pytest.raises(ValueError, match=r"makes \(153, 210\) pixels \(H, W\) 3 times smaller"):
        one(image, UnknownReduction((153, 210), 3))


def test_the_bar_of_a_command_moves_with_the_windows(in_windows, tiny_model, tmp_path, monkeypatch):
    image = smooth_picture(160, 160)
    mask = np.zeros((1, 160, 160), np.float32)
    mask[:, :, 80:84] = 1
    write_image(tmp_path / "a.png", Photo(image))
    write_image(tmp_path / "mask.png", Photo(mask))
    seen = []
    monkeypatch.setattr(ProgressBar, "update_of", lambda bar, *at: seen.append(at))
    shared = ("--model", tiny_model, "--tile", 64, "--mask", "mask.png")
    for steps in (1, 2):
        args = ("restore", "inpaint", "a.png", *shared, "--steps", steps, "-o", f"{steps}.png")
        assert restobox(*args, cwd=tmp_path).returncode == 0
    assert seen == [(k + 1, 9) for k in range(9)] + [(1, 2), (2, 2)]


@pytest.mark.long
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_large_picture_is_as_good_in_windows(share, monkeypatch):
    image = torch.from_numpy(read_image(ROOT / "toolbox/zoo/demo/chelsea.png").pixels)
    height, width = image.shape[1:]
    mask = torch.from_numpy(make_mask("random", height, width, share, 0))
    noisy = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    fill = InpaintingTask(load("photo-int8"), num_inference_steps=1, tile=64)
    clean = LinearTask(load("colour-int8"), num_inference_steps=1, tile=64)

    def results():
        return fill(image, mask).mean, clean(noisy, Denoising(), sigma=0.1).mean

    whole = results()
    monkeypatch.setattr(wrappers_windows, "LARGE", 17_000)
    for a, b in zip(whole, results(), strict=True):
        assert not torch.equal(a, b)
        assert psnr(b.numpy(), image.numpy()) >= psnr(a.numpy(), image.numpy()) - 0.05
