"""Low light, shadows and drops that are made: what light they leave, where, and repeatably."""

import numpy as np
import pytest
import torch
from helpers.data import smooth_picture
from hypothesis import given
from hypothesis import strategies as st

from restoration.paired.degradations import MADE, blurred, low_light, rain_drops, shadow
from restoration.paired.haze import srgb_decode


def seeded(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", MADE)
@given(st.integers(16, 40), st.integers(16, 40), st.integers(0, 50))
def test_any_picture_is_degraded_within_its_range_and_again_the_same(kind, height, width, seed):
    clear = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    kept = clear.clone()
    degraded, mask = MADE[kind](clear, seeded(seed))
    assert degraded.shape == clear.shape
    assert mask.shape == (1, height, width)
    assert ((mask == 0) | (mask == 1)).all()
    assert 0 <= degraded.min() <= degraded.max() <= 1
    assert torch.equal(clear, kept)
    again = MADE[kind](clear, seeded(seed))
    assert torch.equal(degraded, again[0])
    assert torch.equal(mask, again[1])


@pytest.mark.parametrize("seed", range(8))
def test_low_light_is_less_light_and_its_noise_grows_with_it(seed):
    """On a flat picture the mean light is 1/50 to 1/5 of it (and a tenth for the colour); twice
    the light has more noise.
    """
    bright, dark = torch.full((3, 200, 200), 0.9), torch.full((3, 200, 200), 0.6)
    found = [srgb_decode(low_light(image, seeded(seed))[0]) for image in (bright, dark)]
    share = (found[0].mean((1, 2)) / srgb_decode(bright)[:, 0, 0]).tolist()
    assert 0.9 / 50 < min(share) <= max(share) < 1.11 / 5
    assert (found[0].var((1, 2)) > found[1].var((1, 2))).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_shadow_leaves_the_skys_light_in_it_and_all_of_it_outside(seed):
    clear = torch.from_numpy(smooth_picture(96, 96)) * 0.8 + 0.1
    degraded, mask = shadow(clear, seeded(seed))
    left = srgb_decode(degraded) / srgb_decode(clear)
    width = 3 * (0.03 * 96 + 0.4)  # the widest penumbra
    near = blurred(mask, width / 3)[0]
    outside, inside = near < 1e-4, near > 1 - 1e-4
    assert outside.any() or inside.any()
    torch.testing.assert_close(
        left[:, outside], torch.ones_like(left[:, outside]), atol=2e-3, rtol=0
    )
    if inside.any():
        red, green, blue = left[:, inside].mean(1).tolist()
        assert 0.15 - 1e-3 <= green <= 0.6 + 1e-3
        assert red <= green + 1e-3 <= blue + 2e-3
        assert left[:, inside].std(1).max() < 5e-3


@pytest.mark.parametrize("seed", range(8))
def test_drops_show_the_scene_upside_down(seed):
    """In front of a picture that grows brighter downwards, drops grow darker; beside them nothing
    changes.
    """
    rows = torch.linspace(0.3, 0.7, 120)[:, None].expand(-1, 120)
    clear = rows.expand(3, -1, -1).clone()
    degraded, mask = rain_drops(clear, seeded(seed))
    change = (degraded - clear).abs().amax(0)
    assert change[mask[0] == 0].max() <= 0.05
    assert 0 < mask.mean() < 0.9
    inside = blurred(mask, 1.5)[0] > 0.999
    slope = (degraded[1, 1:] - degraded[1, :-1])[inside[1:] & inside[:-1]]
    assert slope.median() < 0 < rows[1, 0] - rows[0, 0]
