"""Intervals of the uncertainty map: the promise of split-conformal calibration, in closed form and
for any data.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from restoration.metrics.intervals import conformal_factor, gap, interval_std, least_slices, shrunk


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_one_pixel_per_slice_is_the_textbooks_quantile(level):
    rng = np.random.default_rng(0)
    for count in (least_slices(level), 25, 60):
        score = rng.exponential(size=count)
        rank = math.ceil(level * (count + 1) - 1e-9)
        spread = rng.uniform(1, 2, count)
        assert conformal_factor((score * spread)[:, None], spread[:, None], level) == pytest.approx(
            np.sort(score)[rank - 1]
        )


@pytest.mark.parametrize("wrong", [0.4, 1.0, 3.0])
def test_gaussian_errors_with_a_wrong_spread(wrong):
    """The spread is ``wrong`` times too small: the factor is that times the normal quantile of the
    corrected level.
    """
    rng, count, level = np.random.default_rng(1), 60, 0.9
    true = rng.uniform(0.5, 2, (count + 40, 4000))
    error, std = true * rng.standard_normal(true.shape), true / wrong
    factor = conformal_factor(error[:count], std[:count], level)
    corrected = level * (count + 1) / count
    assert factor == pytest.approx(wrong * NormalDist().inv_cdf(0.5 + corrected / 2), rel=0.01)
    inside = np.abs(error[count:]) <= factor * std[count:]
    assert inside.mean() == pytest.approx(corrected, abs=0.003)


slices = st.lists(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=6), min_size=5, max_size=14)


@given(slices, st.sampled_from([0.5, 0.7, 0.8]), st.floats(0.1, 10.0))
def test_the_promise_holds_for_any_slices(errors, level, unit):
    """Each slice in turn is the new one: mean coverage is the level or more. That is the guarantee
    for exchangeable slices, whatever the errors, the number of pixels per slice, and the spread."""
    errors = [np.array(e) for e in errors]
    stds = [np.full(e.shape, unit) for e in errors]
    inside = []
    for k in range(len(errors)):
        rest = [i for i in range(len(errors)) if i != k]
        factor = conformal_factor([errors[i] for i in rest], [stds[i] for i in rest], level)
        inside.append(np.mean(errors[k] <= factor * stds[k] + 1e-9))
    assert np.mean(inside) >= level - 1e-9
    order = np.random.default_rng(0).permutation(len(errors))
    assert conformal_factor(
        [errors[i] for i in order], [stds[i] for i in order], level
    ) == conformal_factor(errors, stds, level)


def test_slices_that_are_hard_as_a_whole_are_why_slices_count():
    """Every tenth slice has errors 20 times as large, all its pixels together: pooled pixels
    without a correction promise too much.
    """
    rng, level, count = np.random.default_rng(2), 0.9, 12
    corrected, naive = [], []
    for _ in range(400):
        scale = np.where(rng.random(count + 1) < 0.1, 20.0, 1.0)
        error = scale[:, None] * rng.standard_normal((count + 1, 50))
        ones = np.ones_like(error)
        new = np.abs(error[-1])
        corrected.append(np.mean(new <= conformal_factor(error[:-1], ones[:-1], level)))
        naive.append(np.mean(new <= np.quantile(np.abs(error[:-1]), level)))
    noise = 2 * np.std(corrected) / 400**0.5
    assert np.mean(corrected) > level - noise
    assert np.mean(naive) < np.mean(corrected)


def test_spreads_are_shrunk_towards_their_mean_and_what_is_known_stays_known():
    std = torch.tensor([[0.0, 3.0], [5.0, 4.0]])
    np.testing.assert_allclose(shrunk(std), [[0, 5], [41**0.5, 32**0.5]], rtol=1e-6)
    assert torch.equal(shrunk(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("count", [2, 4])
def test_intervals_of_few_samples_hold_as_much_and_are_narrower(count):
    """Errors and samples of one normal distribution: read with the fitted factor, shrunk spreads
    cover as the plain ones do, with less width; and 1.645 of their std covers 90 %.
    """
    g = torch.Generator().manual_seed(0)
    true = 0.5 + torch.rand((80, 1500), generator=g)
    samples = true * torch.randn((count, *true.shape), generator=g)
    error, std = true * torch.randn(true.shape, generator=g), samples.std(0)
    widths = []
    for made in (std, torch.stack([shrunk(s) for s in std])):
        factor = conformal_factor(error[:40].numpy(), made[:40].numpy())
        held = float((error[40:].abs() <= factor * made[40:]).float().mean())
        assert held == pytest.approx(0.9 * 41 / 40, abs=0.01)
        widths.append(factor * made[40:].mean())
    assert widths[1] < 0.8 * widths[0]
    shown = torch.stack([interval_std(s, factor) for s in std[40:]])
    assert float((error[40:].abs() <= 1.6449 * shown).float().mean()) == pytest.approx(
        held, abs=1e-3
    )


ten = np.ones((10, 4))


@pytest.mark.parametrize(
    ("error", "std", "level", "says"),
    [
        (ten[:8], ten[:8], 0.9, "at least 9 calibration slices; got 8"),
        (ten, ten[:9], 0.9, "10 and 9 slices"),
        (ten, ten[:, :3], 0.9, "one size"),
        (ten[:, :0], ten[:, :0], 0.9, "at least one pixel"),
        (ten, 0 * ten, 0.9, "positive"),
        (math.nan * ten, ten, 0.9, "finite"),
        (ten, ten, 1.0, "between 0 and 1"),
        (ten, ten, math.nan, "between 0 and 1"),
    ],
)
def test_bad_calibrations(error, std, level, says):
    with pytest.raises(ValueError, match=says):
        conformal_factor(error, std, level)


def test_gaps_are_harmonic_means_of_distances():
    mask = np.ones((20, 30), np.float32)
    assert gap(mask) == 0
    mask[:, 10:15] = 0  # columns that lie 1, 2, 3, 2 and 1 pixels from known ones
    assert gap(torch.from_numpy(mask)) == pytest.approx(5 / (1 + 1 / 2 + 1 / 3 + 1 / 2 + 1))
    scattered = np.indices((20, 30)).sum(0) % 2
    assert gap(scattered) == 1
    wide = np.ones((64, 64))
    wide[16:48, 16:48] = 0
    assert gap(wide) > 2 * gap(mask)
    with pytest.raises(ValueError, match="knows nothing"):
        gap(np.zeros((4, 4)))
