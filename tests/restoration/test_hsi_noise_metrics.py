"""Noise cases do what their definition says, estimates find what was put in, metrics equal their
closed forms.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from restoration.hyperspectral.noise import (
    CASES,
    RATIOS,
    SIGMAS,
    add_noise,
    band_sigma,
    dead_pixels,
)
from restoration.hyperspectral.quality import cube_quality, ergas, mpsnr, mssim, sam

SHAPE = (31, 60, 80)


@pytest.fixture(scope="module")
def clean():
    y, x = np.meshgrid(np.linspace(0, 1, SHAPE[1]), np.linspace(0, 1, SHAPE[2]), indexing="ij")
    return np.stack([0.5 + 0.2 * np.sin(4 * x + 3 * y + b / 9) for b in range(SHAPE[0])])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bands", [1, 3, 31])
def test_cases_are_seeded_and_leave_the_input_alone(clean, case, bands):
    sigma = 0.1 if case == "iid" else None
    before = clean[:bands].copy()
    a, b, c = (add_noise(clean[:bands], case, seed, sigma) for seed in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    np.testing.assert_array_equal(clean[:bands], before)
    assert a.shape == (bands, *SHAPE[1:])


def test_gaussian_levels(clean):
    noise = add_noise(clean, "iid", 0, 0.2) - clean
    assert noise.std() == pytest.approx(0.2, rel=0.01)
    levels = (add_noise(clean, "non-iid", 0) - clean).std((1, 2))
    nearest = np.array(SIGMAS)[np.abs(levels[:, None] - SIGMAS).argmin(1)]
    np.testing.assert_allclose(levels, nearest, rtol=0.05)
    assert set(nearest) == set(SIGMAS)


def test_stripes_and_deadlines_hit_the_right_share_of_columns(clean):
    low, high = math.ceil(0.05 * 80), math.ceil(0.15 * 80)
    dead = (add_noise(clean, "deadline", 1) == 0).all(1)  # (B, W)
    counts = dead.sum(1)
    assert (counts > 0).sum() == 10
    assert ((counts[counts > 0] >= low) & (counts[counts > 0] <= high)).all()
    # same seed: same Gaussian noise, then the same order of bands, so the difference of the two is
    # the stripes alone
    stripes = add_noise(clean, "stripe", 1) - add_noise(clean, "non-iid", 1)
    np.testing.assert_allclose(stripes, stripes[:, :1].repeat(60, 1), atol=1e-12)
    offsets = stripes[:, 0]
    counts = (offsets != 0).sum(1)
    assert (counts > 0).sum() == 10
    assert ((counts[counts > 0] >= low) & (counts[counts > 0] <= high)).all()
    assert 0.15 < np.abs(offsets).max() <= 0.25


def test_impulse_ratios_and_clipping(clean):
    noisy = add_noise(clean, "impulse", 2)
    extremes = ((noisy == 0) | (noisy == 1)).mean((1, 2))
    hit = extremes > 0.05
    assert hit.sum() == 10
    assert noisy[hit].min() == 0
    assert noisy[hit].max() == 1
    assert ((noisy < 0) | (noisy > 1)).any()  # bands without impulses are not clipped
    base = add_noise(clean, "non-iid", 2)
    beyond = ((base <= 0) | (base >= 1)).mean((1, 2))[hit]
    ratio = (extremes[hit] - beyond) / (1 - beyond)
    assert np.abs(ratio[:, None] - RATIOS).min(1).max() < 0.03


def test_mixture_hits_disjoint_thirds(clean):
    change = add_noise(clean, "mixture", 5) - add_noise(clean, "non-iid", 5)
    np.testing.assert_array_equal((change != 0).any((1, 2)).sum(), 30)
    dead = (add_noise(clean, "mixture", 5) == 0).all(1).any(1)
    assert dead.sum() == 10


def test_noise_input_is_checked(clean):
    with pytest.raises(ValueError, match="known: iid"):
        add_noise(clean, "gaussian", 0)
    with pytest.raises(ValueError, match="sigma"):
        add_noise(clean, "iid", 0)
    with pytest.raises(ValueError, match="sigma"):
        add_noise(clean, "mixture", 0, 0.1)
    with pytest.raises(ValueError, match="B, H, W"):
        add_noise(clean[0], "mixture", 0)


def test_sigma_is_found_per_band(clean):
    noisy = add_noise(clean, "non-iid", 7)
    np.testing.assert_allclose(band_sigma(noisy), (noisy - clean).std((1, 2)), rtol=0.06)
    assert np.isnan(band_sigma(clean[:1], np.zeros((1, *SHAPE[1:]), bool))[0])
    lines = add_noise(clean, "deadline", 7)
    np.testing.assert_allclose(
        band_sigma(lines, ~dead_pixels(lines)), (noisy - clean).std((1, 2)), rtol=0.08
    )


def test_dead_entries_are_found_and_nothing_else(clean):
    lines = add_noise(clean, "deadline", 3)
    np.testing.assert_array_equal(dead_pixels(lines), lines == 0)
    impulses = add_noise(clean, "impulse", 3)
    found = dead_pixels(impulses)
    changed = impulses != add_noise(clean, "non-iid", 3)
    assert found[changed].mean() > 0.99
    for plain in (
        add_noise(clean, "iid", 3, 0.1),
        np.rint(1000 * clean),
        np.rint(20 * clean),
        np.zeros((2, 9, 9)),
    ):
        assert not dead_pixels(plain).any()


@given(st.floats(-0.4, 0.4), st.integers(1, 6))
def test_metrics_of_a_constant_shift(shift, bands):
    reference = np.full((bands, 12, 13), 0.5)
    cube = reference + shift
    expected = 100.0 if shift == 0 else min(100.0, -20 * math.log10(abs(shift)))
    assert mpsnr(cube, reference) == pytest.approx(expected, abs=1e-9)
    assert ergas(cube, reference) == pytest.approx(100 * abs(shift) / 0.5)
    assert sam(cube, reference) == pytest.approx(0, abs=1e-9)


@given(st.floats(1e-7, 3.1), st.floats(0.1, 10))
def test_sam_is_the_angle_whatever_the_length(angle, length):
    reference = np.zeros((3, 2, 2))
    reference[0] = 0.7
    cube = np.stack(
        [
            np.full((2, 2), length * math.cos(angle)),
            np.full((2, 2), length * math.sin(angle)),
            np.zeros((2, 2)),
        ]
    )
    assert sam(cube, reference) == pytest.approx(angle, rel=1e-6)
    assert sam(cube, np.zeros_like(cube)) == pytest.approx(math.pi / 2)
    assert sam(0 * cube, 0 * cube) == 0


def test_metrics_agree_with_scikit_image_and_are_finite_on_constant_bands(clean):
    noisy = add_noise(clean, "iid", 0, 0.1)
    bands = [
        peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(clean, noisy, strict=True)
    ]
    assert mpsnr(noisy, clean) == pytest.approx(np.mean(bands))
    flat = np.concatenate([clean, np.zeros((2, *SHAPE[1:]))])
    assert all(math.isfinite(v) for v in cube_quality(flat, flat).values())
    assert mssim(flat, flat) == pytest.approx(1)


def test_missing_entries_do_not_count(clean):
    noisy = add_noise(clean, "iid", 0, 0.1)
    holes = noisy.copy()
    holes[:, 10:20] = np.nan
    kept = np.r_[0:10, 20:60]
    assert mpsnr(holes, clean) == pytest.approx(mpsnr(noisy[:, kept], clean[:, kept]))
    assert sam(holes, clean) == pytest.approx(sam(noisy[:, kept], clean[:, kept]))
    assert ergas(holes, clean) == pytest.approx(
        100
        * np.sqrt(
            np.mean(((noisy - clean)[:, kept] ** 2).mean((1, 2)) / clean[:, kept].mean((1, 2)) ** 2)
        )
    )
    with pytest.raises(ValueError, match="finite"):
        mpsnr(clean * np.nan, clean)
    with pytest.raises(ValueError, match="one shape"):
        sam(clean[:2], clean)
