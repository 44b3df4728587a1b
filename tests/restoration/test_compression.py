"""What JPEG left in a picture, told by the picture, against what it did."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from skimage import data

from restoration.photo.compression import LUMA, jpeg_error

PHOTOGRAPHS = {"cat": data.chelsea, "cup": data.coffee, "woman": data.astronaut}


def photograph(name, blur):
    """``(3, 256, 256)`` of 8 bits; blurred, so that what JPEG left in the file is gone."""
    crop = PHOTOGRAPHS[name]()[20:276, 60:316].transpose(2, 0, 1)
    soft = np.stack([gaussian_filter(plane.astype(float), blur) for plane in crop])
    return soft.round().astype(np.uint8)


def as_jpeg(pixels, quality, **options):
    file = io.BytesIO()
    grey = len(pixels) == 1
    shown = pixels[0] if grey else pixels.transpose(1, 2, 0)
    Image.fromarray(shown).save(file, "JPEG", quality=quality, **options)
    back = np.asarray(Image.open(file))
    return back[None] if grey else back.transpose(2, 0, 1)


def brightness(pixels):
    return np.tensordot(np.array(LUMA), pixels / 255, 1)


@pytest.mark.parametrize("quality", [95, 85, 70, 50])
@pytest.mark.parametrize("cut", [(0, 0), (3, 5)])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_it_is_found_about_as_large_as_it_is(name, cut, quality):
    clean = photograph(name, 1.6)
    given = as_jpeg(clean, quality)
    clean, given = (v[:, cut[0] :, cut[1] :] for v in (clean, given))
    error = np.sqrt(np.mean((brightness(given) - brightness(clean)) ** 2))
    assert 0.8 < jpeg_error(given / 255) / error < 1.4


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_the_kind_of_jpeg_does_not_matter(options):
    clean = photograph("cat", 1.6)
    given = as_jpeg(clean, 75, **options)
    error = np.sqrt(np.mean((brightness(given) - brightness(clean)) ** 2))
    assert 0.8 < jpeg_error(torch.from_numpy(given / 255)) / error < 1.4


def test_of_grey_pictures_and_large_ones():
    enlarged = zoom(data.camera().astype(float), 2.6, order=3)  # larger than what is looked at
    clean = enlarged.clip(0, 255).round().astype(np.uint8)[None]
    given = as_jpeg(clean, 75)
    error = np.sqrt(np.mean((given / 255 - clean / 255) ** 2))
    assert 0.8 < jpeg_error(given / 255) / error < 1.4


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("noise", [0, 2, 12])
def test_there_is_none_where_nobody_made_a_jpeg(name, noise):
    pixels = photograph(name, 1.0) + noise * np.random.default_rng(0).normal(size=(3, 256, 256))
    assert jpeg_error(pixels.round().clip(0, 255) / 255) == 0


ROWS, COLUMNS = np.mgrid[:128, :160]


@pytest.mark.parametrize(
    "picture",
    [
        (ROWS // 4 + COLUMNS // 4) % 2,
        ROWS // 16 % 2,
        COLUMNS / 159,
        0 * ROWS + 0.3,
        0.5 + 0.5 * np.sin(COLUMNS / 5),
        np.random.default_rng(0).random(ROWS.shape),
        data.text()[:128, :160] / 255,
    ],
)
def test_patterns_are_no_jpegs(picture):
    assert jpeg_error(np.asarray(picture, dtype=float)[None]) == 0


def test_pictures_of_a_few_blocks_tell_nothing():
    assert jpeg_error(as_jpeg(photograph("cat", 1.6)[:, :20, :200], 50) / 255) == 0


@pytest.mark.parametrize("shape", [(64, 64), (2, 64, 64), (1, 3, 64, 64)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"1 or 3, H, W"):
        jpeg_error(np.zeros(shape))
