"""How noisy pictures are, where texture or blank paper could mislead."""

import numpy as np
import pytest
import torch

from restoration.metrics import noise_level
from restoration.photo.level import likely_level
from solvers import Denoiser
from toolbox.api import load

TEXTURE = 0.1  # spread of what the exact prior knows as texture, in [0, 1]


def of_texture(x, sigma):
    """The exact denoiser of white texture around 0.5, in [0, 1]."""
    share = TEXTURE**2 / (TEXTURE**2 + sigma.reshape(-1, 1, 1, 1) ** 2)
    return 0.5 + share * (x - 0.5)


def noisy(picture, sigma, seed=0):
    """As a file of 8 bits holds it."""
    noise = np.random.default_rng(seed).standard_normal(picture.shape)
    return np.round(255 * np.clip(picture + sigma * noise, 0, 1)) / 255


def page(height=192, width=256):
    """Lines of grey-edged black strokes on white paper."""
    y, x = np.mgrid[:height, :width]
    stroke = np.minimum(abs(x % 7 - 3), abs((x + y) % 11 - 5)) / 2
    return np.where(y % 20 < 9, stroke, 1).clip(0, 1)[None]


@pytest.mark.parametrize("sigma", [0.02, 0.05])
def test_an_exact_prior_tells_its_texture_from_noise(sigma):
    generator = torch.Generator().manual_seed(0)
    texture = 0.5 + TEXTURE * torch.randn(1, 250, 300, generator=generator)
    y = texture + sigma * torch.randn(1, 250, 300, generator=generator)
    denoiser = Denoiser.from_sigma(of_texture, 1e-3, 1.0, value_range=(0.0, 1.0))
    estimate = noise_level(y)
    assert estimate > 2 * sigma  # of texture too: a filter can't tell
    # steps are small where nearly all is texture
    assert sigma < likely_level(denoiser, y, estimate) < 0.8 * estimate
    assert likely_level(denoiser, y, 1.02 * sigma) == pytest.approx(sigma, rel=0.05)


def test_pages_and_drawings_show_no_noise_and_objects_on_white_do():
    assert noise_level(page()) == 0
    assert noise_level((page() > 0.5).astype(float)) == 0
    y, x = np.mgrid[:192, :256] / 100
    thing = noisy(0.5 + 0.2 * np.sin(3 * y + 2 * x), 0.05)
    cut = np.where((abs(y - 1) < 0.4) & (abs(x - 1.3) < 0.5), thing, 1)
    assert (cut == 1).mean() > 0.7
    assert noise_level(cut[None]) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("sigma", [5, 25])
def test_noise_on_paper_and_in_the_dark(sigma):
    """Where half of it is cut off, and nothing else is free of structure."""
    for picture in (page(), np.zeros((1, 192, 256))):
        found = noise_level(noisy(picture, sigma / 255)) * 255
        assert found == pytest.approx(sigma, rel=0.4 if picture.any() else 0.05)


@pytest.mark.long
def test_a_network_tells_squares_from_noise():
    """All of the picture is edges."""
    y, x = np.mgrid[:128, :128] // 6
    squares = 0.2 + 0.6 * ((x + y) % 2)[None]
    picture = torch.from_numpy(noisy(squares, 5 / 255)).float()
    assert (estimate := noise_level(picture)) > 3 * 5 / 255
    assert likely_level(load("grey"), picture, estimate) == pytest.approx(5 / 255, rel=0.25)
