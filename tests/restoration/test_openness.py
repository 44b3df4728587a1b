"""How much of an image a scan leaves open."""

import numpy as np
import pytest
import torch

from restoration.mri.openness import DECAY, left_open
from restoration.mri.sampling import column_mask, poisson_mask
from restoration.mri.sense import cartesian, normalise_maps
from restoration.mri.simulation import ring_maps

SIZE = (64, 48)


def test_one_coil_leaves_open_what_is_not_sampled():
    """The share of the missing points in the spectrum, up to the draw of one image."""
    for acceleration in (2, 4):
        mask = column_mask("random", SIZE[1], acceleration, 0.1, 3).expand(SIZE).contiguous()
        y, x = (torch.fft.fftshift(torch.fft.fftfreq(n)) for n in SIZE)
        power = torch.hypot(y[:, None], x).clamp(min=1 / 64) ** (-2 * DECAY)
        want = (power[mask == 0].sum() / power.sum()).sqrt().item()
        assert left_open(cartesian(mask, None, SIZE)) == pytest.approx(want, rel=0.25)


def test_coils_bridge_narrow_gaps_and_not_wide_ones():
    rng = np.random.default_rng(0)

    def share(mask, coils):
        maps = normalise_maps(ring_maps(coils, SIZE, rng)) if coils > 1 else None
        return left_open(cartesian(mask.expand(SIZE).contiguous(), maps, SIZE))

    def columns(every):
        return column_mask("equispaced-fraction", SIZE[1], every, 0.1, 0)

    assert share(torch.ones(SIZE), 8) < 0.01
    narrow, wide = (share(columns(every), 8) for every in (3, 6))
    assert narrow < 0.5 * wide
    assert narrow < 0.5 * share(columns(3), 1)
    # points scattered in two dimensions, as many as columns
    assert share(poisson_mask(*SIZE, 6, 8, 0), 8) < 0.5 * wide


def test_air_that_no_coil_sees_does_not_count():
    rng = np.random.default_rng(0)
    maps = normalise_maps(ring_maps(4, SIZE, rng))
    maps[:, :, :20] = 0
    assert left_open(cartesian(torch.ones(SIZE), maps, SIZE)) < 0.01
