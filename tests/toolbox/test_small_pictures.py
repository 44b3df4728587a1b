"""Small pictures whose noise nobody told, enlarged."""

import io
import json

import numpy as np
import pytest
import torch
from helpers.commands import restobox as command
from PIL import Image
from skimage import data

import restobox
from restoration.metrics import psnr


def small(factor, noise=0.0, quality=None):
    """A photograph and a small picture of it, ``(H, W, 3)`` of 8 bits."""
    clean = np.ascontiguousarray(data.chelsea()[60:252, 130:322])
    side = 192 // factor
    seen = np.asarray(Image.fromarray(clean).resize((side, side), Image.Resampling.BICUBIC))
    seen = seen + 255 * noise * np.random.default_rng(0).normal(size=seen.shape)
    seen = seen.round().clip(0, 255).astype(np.uint8)
    if quality is not None:
        file = io.BytesIO()
        Image.fromarray(seen).save(file, "JPEG", quality=quality)
        seen = np.asarray(Image.open(file))
    return clean / 255, seen


def figure(restored, clean):
    return psnr(np.asarray(restored.image) / 255, clean)


@pytest.mark.parametrize(
    ("factor", "noise", "quality", "more"),
    [(2, 0.03, None, 1), (4, 0.05, None, 1), (3, 0.02, None, 0.5), (2, 0.0, 50, 0.1)],
)
def test_noise_is_found_and_taken_off(factor, noise, quality, more):
    clean, seen = small(factor, noise, quality)
    restore = restobox.superresolve(factor)
    assert figure(restore(seen), clean) > figure(restore(seen, sigma=0.0), clean) + more


@pytest.mark.parametrize(("factor", "quality"), [(2, None), (3, None), (4, None), (4, 75)])
def test_what_shows_none_stays_as_it_was(factor, quality):
    _, seen = small(factor, quality=quality)
    restore = restobox.superresolve(factor)
    assert torch.equal(restore(seen).mean, restore(seen, sigma=0.0).mean)


def test_the_command_says_what_it_found(tmp_path):
    _, seen = small(2, 0.03)
    given, out = tmp_path / "small.png", tmp_path / "large.png"
    Image.fromarray(seen).save(given)
    words = ("restore", "superresolve", given, "--factor", "2", "-o", out, "--json")
    done = command(*words)
    assert done.returncode == 0
    assert "taken off first" in done.stderr
    said = json.loads(done.stdout)
    assert said["sigma"] == pytest.approx(0.03, rel=0.2)
    assert "taken off first" in said["note"]
    assert (np.asarray(Image.open(out)) == restobox.superresolve(2)(seen).image).all()
    plain = json.loads(command(*words, "--sigma", "0").stdout)
    assert plain["sigma"] == 0
    assert "note" not in plain
