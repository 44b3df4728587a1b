"""Patterns that a denoiser takes for noise: found to the last wave, never in noise."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import restobox
from restoration.metrics import psnr
from restoration.photo.level import made_of_dots
from restoration.photo.linear import denoised
from restoration.photo.patterns import given_back, patterns
from restoration.task import Restored
from toolbox.api import load

NOISE = torch.randn(3, 200, 301, generator=torch.Generator().manual_seed(0))


def checkerboard(height=96, width=96):
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return ((rows + columns) % 2).float()[None]


@pytest.mark.parametrize("size", [(1, 5, 7), (3, 32, 32), (1, 33, 95), (2, 64, 31)])
def test_frames_add_up_to_the_picture(size, monkeypatch):
    monkeypatch.setattr("restoration.photo.patterns.CLEARLY", 1e-9)
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(patterns(x), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", [0.01, 1.0])
def test_noise_holds_no_patterns(level):
    assert float(patterns(level * NOISE).square().mean()) < 1e-4 * level**2


def test_noise_of_a_colour_or_that_grows_holds_none():
    smooth = torch.nn.functional.avg_pool2d(NOISE, 3, 1, 1)
    assert float(patterns(smooth).square().mean()) < 0.01 * float(smooth.square().mean())
    growing = NOISE * torch.linspace(0.2, 1, 301)
    assert float(patterns(growing).square().mean()) < 1e-3


@pytest.mark.parametrize("period", [(2, 2), (3.2, 100), (5, 7)])
def test_waves_are_found_in_as_much_noise(period):
    rows, columns = torch.arange(200)[:, None], torch.arange(301)
    wave = torch.cos(2 * torch.pi * (rows / period[0] + columns / period[1]) + 0.3).expand(
        3, -1, -1
    )
    found = patterns(wave + NOISE)
    inner = (slice(None), slice(16, -16), slice(16, -16))
    assert float((found - wave)[inner].square().mean()) < 0.1 * float(wave[inner].square().mean())


def test_a_checkerboard_comes_out_of_denoising_better_than_it_went_in():
    """The network alone takes half of it off."""
    picture = 0.3 + 0.4 * checkerboard()
    noisy = picture + 0.06 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    alone = denoised(load("grey"), noisy, 0.06)
    kept = torch.from_numpy(restobox.denoise("grey")(noisy, sigma=0.06).image.numpy())
    assert psnr(alone, picture) < psnr(noisy, picture) + 2
    assert psnr(kept, picture) > psnr(noisy, picture) + 4


def test_a_photograph_is_left_as_it_was_denoised():
    x = torch.from_numpy(data.camera()[100:228, 170:298]).float()[None] / 255
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    alone = denoised(load("grey"), noisy, 0.1)
    found = given_back(Restored(alone[None], alone, 0 * alone, 1, 0.0), noisy)
    assert abs(psnr(found.mean, x) - psnr(alone, x)) < 0.02


def dots(kind):
    """A photograph in dots of 0.1 and 0.9."""
    tones = data.camera()[100:228, 170:298]
    if kind == "ordered":
        order = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
        ones = tones / 255 > (np.tile(order, (32, 32)) + 0.5) / 16
    else:
        ones = np.asarray(Image.fromarray(tones).convert("1"))
    return torch.from_numpy(0.1 + 0.8 * ones).float()[None]


@pytest.mark.parametrize("kind", ["ordered", "diffused"])
@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_dithered_pictures_are_refused_where_the_noise_is_to_be_estimated(kind, sigma):
    x = dots(kind)
    y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    y = y.clamp(0, 1)
    with pytest.raises(ValueError, match="dots"):
        restobox.denoise("grey")(y)
    restobox.denoise("grey")(y, sigma=0.02)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.2, 0.3, 0.4])
def test_noisy_photographs_are_not_taken_for_dots(sigma):
    for read in (data.camera, data.brick, data.grass, data.page):
        x = torch.from_numpy(read()[20:148, 70:198]).float()[None] / 255
        y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        assert not made_of_dots(load("grey"), (255 * y.clamp(0, 1)).round() / 255, sigma)
