"""Large pictures are filled window by window."""

import numpy as np
import pytest
import torch
from helpers.data import ROOT, smooth_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_cdt

from restoration.io.images import read_image
from restoration.metrics import psnr
from restoration.photo import inpainting
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.masks import make_mask
from restoration.task import Restored
from restoration.wrappers.tiling import tile_starts
from restoration.wrappers.windows import all_near, filled_by_windows, windows
from toolbox import load


@given(st.integers(1, 400), st.integers(2, 30), st.integers(1, 4), st.data())
def test_windows_hold_the_tiles_of_the_picture(length, half, most, data):
    tile, overlap = 2 * half, data.draw(st.integers(0, half - 1))
    whole, held = tile_starts(length, tile, overlap), []
    for rows, columns in windows((length, 1), tile, overlap, most):
        assert columns == slice(0, 1)
        inside = tile_starts(rows.stop - rows.start, tile, overlap)
        assert len(inside) <= most
        held += [rows.start + start for start in inside]
    assert len(held) <= len(whole)
    assert max(abs(a - b) for a, b in zip(held, whole, strict=False)) <= overlap + tile // 2
    assert held[0] == 0
    assert held[-1] + min(tile, length) == length


def test_what_depends_on_pixels_alone_is_the_same_in_windows():
    g = torch.Generator().manual_seed(0)
    image, known = torch.rand(3, 50, 70, generator=g), torch.ones(50, 70)
    known[3:9, 5:30] = 0
    image *= known
    asked = []

    def fill(part, mask, last):
        asked.append((tuple(part.shape), last))
        mean = torch.where(mask > 0, part, torch.full_like(part, 0.3))
        return Restored(mean[None], mean, 0 * mean, 2, 0.0, misfit=0.1)

    parts = windows((50, 70), 16, 2, 2)
    found = filled_by_windows(fill, image, known, parts, 2)
    hole = known == 0
    torch.testing.assert_close(found.mean[:, hole], torch.full_like(image[:, hole], 0.3))
    assert torch.equal(found.mean[:, ~hole], image[:, ~hole])
    touched = sum(not known[part].all() for part in parts)
    assert 0 < len(asked) == touched < len(parts)  # those that miss nothing are not asked for
    assert [last for _, last in asked] == [False] * (touched - 1) + [True]
    assert (found.nfe, found.misfit, found.samples.shape[0]) == (2, 0.1, 1)
    assert not found.std.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0.01, 0.5))
def test_gaps_are_thin_where_something_known_is_near(seed, reach, share):
    known = (np.random.default_rng(seed).random((23, 31)) < share).astype(np.float32)
    known[0, 0] = 1
    far = distance_transform_cdt(known == 0, "chessboard").max()
    assert all_near(torch.from_numpy(known), reach) == (far <= reach)


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(inpainting, "LARGE", 20_000)


def test_wide_holes_steps_and_samples_take_the_whole_picture(small_limit, monkeypatch, tiny_model):
    def refuse(*_):
        raise AssertionError("in windows")

    monkeypatch.setattr(inpainting, "filled_by_windows", refuse)
    image = torch.from_numpy(smooth_picture(160, 160))
    thin, wide = torch.ones(160, 160), torch.ones(160, 160)
    thin[:, 80:84], wide[40:90, 40:90] = 0, 0
    one, two = (InpaintingTask(load(tiny_model), num_inference_steps=n, tile=64) for n in (1, 2))
    one(image, wide)
    two(image, thin)
    one(image, thin, num_samples=2)
    one(image[:, :100], thin[:100])  # not large
    with pytest.raises(AssertionError, match="in windows"):
        one(image, thin)


@pytest.mark.long
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_large_picture_is_as_good_in_windows(share, monkeypatch):
    image = torch.from_numpy(read_image(ROOT / "toolbox/zoo/demo/chelsea.png").pixels)
    height, width = image.shape[1:]
    mask = torch.from_numpy(make_mask("random", height, width, share, 0))
    task = InpaintingTask(load("photo-int8"), num_inference_steps=1, tile=64)
    whole = task(image, mask)
    monkeypatch.setattr(inpainting, "LARGE", 17_000)
    parts = task(image, mask)
    assert not torch.equal(whole.mean, parts.mean)
    a, b = (psnr(r.mean.numpy(), image.numpy()) for r in (whole, parts))
    assert b >= a - 0.05, (a, b)
