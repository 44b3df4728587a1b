"""Noise that is not white, as JPEGs of noisy pictures have it: seen, and taken off."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import restobox
from restoration.photo.level import coloured_level, likely_level
from toolbox.api import load
from toolbox.tasks.photo.denoisers import noise_of

PICTURES = {"astronaut": (data.astronaut, 100, 140), "chelsea": (data.chelsea, 60, 130)}


def planes():
    return load("grey")


def picture(name):
    read, top, left = PICTURES[name]
    pixels = read()[top : top + 160, left : left + 160]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


def noisy(x, sigma, alike=False):
    g = torch.Generator().manual_seed(0)
    noise = torch.randn((1 if alike else 3, *x.shape[1:]), generator=g)
    return (255 * (x + sigma * noise).clamp(0, 1)).round() / 255


def jpeg(x, quality):
    file = io.BytesIO()
    pixels = (255 * x).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("quality", [80, 92])
def test_the_noise_of_a_jpeg_is_seen_and_taken_off(name, quality):
    """A third of the squared error and more. The network of colours alone finds next to nothing."""
    x = picture(name)
    y = jpeg(noisy(x, 15 / 255), quality)
    assert likely_level(load("colour"), y, 0.06) < 0.01
    noise = noise_of(load("colour"), y, 0.06)
    assert noise.coloured
    assert 0.03 < noise.sigma < 0.12
    clean = torch.as_tensor(restobox.denoise()(y).image)
    assert (clean - x).square().mean() < 2 / 3 * (y - x).square().mean()


def test_noise_that_is_alike_in_all_colours_is_seen():
    y = noisy(picture("astronaut"), 15 / 255, alike=True)
    level = likely_level(load("colour"), y, 0.06)
    assert coloured_level(planes, y, level) == pytest.approx(1.7 * 15 / 255, rel=0.15)


@pytest.mark.parametrize("sigma", [5 / 255, 25 / 255])
def test_white_noise_is_white(sigma):
    y = noisy(picture("astronaut"), sigma)
    assert coloured_level(planes, y, likely_level(load("colour"), y, sigma)) is None


@pytest.mark.parametrize("name", PICTURES)
def test_a_clean_jpeg_has_none(name):
    y = jpeg(picture(name), 85)
    assert coloured_level(planes, y, likely_level(load("colour"), y, 0.02)) is None
