"""Sharpening of pictures whose errors nobody told."""

import io
import json

import numpy as np
import pytest
import torch
from helpers.commands import restobox as command
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data

import restobox
from restoration.metrics import psnr
from restoration.photo.start import deblurring_level

SIDE, MARGIN = 96, 12


def soft(blur, noise=0.0, quality=None, colours=True, codec="JPEG"):
    """A photograph and what a camera saw of it, ``(H, W, C)`` of 8 bits; the scene goes on."""
    scene = (data.chelsea() if colours else data.camera()[..., None]) / 255
    scene = scene[70 : 70 + SIDE + 2 * MARGIN, 140 : 140 + SIDE + 2 * MARGIN]
    seen = np.stack([gaussian_filter(v, blur) for v in np.moveaxis(scene, 2, 0)], axis=2)
    seen = seen + noise * np.random.default_rng(0).normal(size=seen.shape)
    clean, seen = (v[MARGIN:-MARGIN, MARGIN:-MARGIN] for v in (scene, seen))
    seen = (255 * seen).round().clip(0, 255).astype(np.uint8)
    if quality is not None:
        file = io.BytesIO()
        Image.fromarray(seen).save(file, codec, quality=quality)
        seen = np.asarray(Image.open(file))
    return clean, seen


@pytest.mark.parametrize(
    ("blur", "noise", "quality", "gain", "more"),
    [
        # decibels above what was given, and above what an error of 0.01 does
        (1.6, 0.0, None, 3, 0.5),
        (1.0, 0.03, None, 2, 5),
        (1.6, 0.03, None, 1.5, 5),
        (1.6, 0.0, 60, 0.5, 0),
        (1.6, 0.015, 88, 0.5, 2),
        (1.6, 0.03, 90, 0.5, 3),
    ],
)
def test_errors_of_a_picture_are_found(blur, noise, quality, gain, more):
    clean, seen = soft(blur, noise, quality)
    restore = restobox.deblur(blur)
    found = psnr(np.asarray(restore(seen).image) / 255, clean)
    told = psnr(np.asarray(restore(seen, sigma=0.01).image) / 255, clean)
    assert found > psnr(seen / 255, clean) + gain
    assert found > told + more


@pytest.mark.parametrize(("codec", "quality"), [("WEBP", 90), ("WEBP", 60), ("AVIF", 70)])
def test_errors_of_other_codecs_are_found(codec, quality):
    """They leave no trace that is looked for, and sharpening for 0.003 makes noise of them."""
    clean, seen = soft(1.6, quality=quality, codec=codec)
    restore = restobox.deblur(1.6)
    found = psnr(np.asarray(restore(seen).image) / 255, clean)
    least = psnr(np.asarray(restore(seen, sigma=0.003).image) / 255, clean)
    assert found > psnr(seen / 255, clean)
    assert found > least + 1


def test_a_blur_that_is_told_wrong_is_an_error_too():
    clean, seen = soft(1.3)
    restored = np.asarray(restobox.deblur(1.6)(seen).image) / 255
    assert psnr(restored, clean) > psnr(seen / 255, clean) + 1


@pytest.mark.parametrize("colours", [True, False])
def test_command_and_python_give_the_same(tmp_path, colours):
    _, seen = soft(1.2, 0.02, colours=colours)
    seen = seen if colours else seen[..., 0]
    given, out = tmp_path / "soft.png", tmp_path / "sharp.png"
    Image.fromarray(seen).save(given)
    done = command("restore", "deblur", given, "--blur", "1.2", "-o", out, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["sigma"] == pytest.approx(0.02, rel=0.2)
    restored = np.asarray(restobox.deblur(1.2)(seen).image)
    assert (np.asarray(Image.open(out)) == restored).all()


@pytest.mark.parametrize("sigma", ["much", "nan", "-0.1", "0", "0.0005"])
def test_a_sigma_that_is_no_level_is_refused(tmp_path, sigma):
    given, out = tmp_path / "soft.png", tmp_path / "sharp.png"
    Image.fromarray(soft(1.2)[1]).save(given)
    done = command("restore", "deblur", given, "--blur", "1.2", f"--sigma={sigma}", "-o", out)
    assert done.returncode == 2
    assert "sigma" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_python_refuses_less_than_rounding_too():
    with pytest.raises(ValueError, match="or leave sigma out"):
        restobox.deblur(1.2)(soft(1.2)[1], sigma=0.0)


def test_runs_start_where_lost_detail_drowns():
    levels = [deblurring_level(blur, 0.01) for blur in (0.5, 1.0, 1.6, 2.4, 4.0)]
    assert levels == sorted(levels)
    assert levels[-1] == 2  # more would drown what the data tell
    assert deblurring_level(0.5, 0.05) == pytest.approx(0.3)  # the data's noise has to drown too


@pytest.mark.parametrize(("start", "same"), [(None, True), (0.45, True), (0.0, False)])
def test_a_start_level_can_be_given(start, same):
    _, seen = soft(1.0)
    usual = restobox.deblur(1.0)(seen, sigma=0.01).mean
    chosen = restobox.deblur(1.0, start_level=start)(seen, sigma=0.01).mean
    assert torch.equal(usual, chosen) == same
