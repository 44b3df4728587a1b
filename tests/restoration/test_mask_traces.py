"""What is left of an overlay around its mask is found, and nothing where a mask is exact."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from restoration.io.pictures.masks import traces
from restoration.photo.masks import make_mask


@pytest.fixture(params=["astronaut", "coffee", "chelsea"])
def overlaid(request):
    """A photo, letters of soft edges over it, and how much of them each pixel shows."""
    photo = getattr(data, request.param)()[:260, :400]
    layer = Image.new("L", photo.shape[1::-1], 0)
    font = ImageFont.load_default(28)
    for top in range(10, 240, 50):
        ImageDraw.Draw(layer).text((8, top), "Copyright of nobody", fill=255, font=font)
    return photo, np.asarray(layer) / 255


def found(pixels, missing, quality=None):
    if quality is not None:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        pixels = np.asarray(Image.open(buffer))
    return traces(pixels.transpose(2, 0, 1) / np.float32(255), missing)


@pytest.mark.parametrize("colour", [(255, 255, 255), (230, 30, 30)])
def test_traces(overlaid, colour):
    photo, share = overlaid
    missing = share >= 0.5
    hard = np.where(missing[..., None], np.uint8(colour), photo)
    assert found(hard, missing) == 0
    soft = (photo * (1 - share[..., None]) + np.array(colour) * share[..., None]).round()
    soft = soft.astype(np.uint8)
    assert found(soft, missing) >= 1
    assert found(soft, missing, quality=80) >= 1
    assert found(soft, share > 0) == 0  # a mask that covers the edges


@pytest.mark.parametrize("name", ["moon", "brick", "coins"])
def test_exact_holes_are_not_grown(name):
    """Whatever chance makes of the rings of a picture."""
    picture = getattr(data, name)()
    top, left = ((n - m) // 2 for n, m in zip(picture.shape, (192, 256), strict=True))
    picture = picture[top : top + 192, left : left + 256, None]
    for seed in (1, 3, 5, 9, 15, 20):
        missing = make_mask("text", 192, 256, 0.1, seed) == 0
        assert found(np.where(missing[..., None], 0, picture), missing) == 0


def test_few_pixels_tell_nothing():
    picture = np.random.default_rng(0).random((3, 20, 20), np.float32)
    assert traces(picture, np.random.default_rng(1).random((20, 20)) < 0.8) == 0
    assert traces(picture, np.zeros((20, 20), bool)) == 0
