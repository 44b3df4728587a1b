"""Haze that is made (scattering model, made-up depth) and haze that is taken away without learning
(dark channel prior).
"""

import numpy as np
import pytest
import torch
from helpers.data import smooth_picture
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import minimum_filter

from restoration.metrics import psnr
from restoration.paired.dark_channel import (
    DarkChannelPrior,
    airlight,
    box_mean,
    dark_channel,
    guided_filter,
)
from restoration.paired.haze import (
    BETA,
    WAVELENGTHS,
    Scattering,
    depth_of_cues,
    follow_edges,
    procedural_depth,
    read_depth,
    srgb_decode,
    srgb_encode,
)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# -- scattering ------------------------------------------------------------------------------------


def test_scattering_is_its_closed_form():
    image, depth = noise(3, 5, 7), noise(5, 7, seed=1)
    light = (0.9, 0.8, 0.7)
    hazy = Scattering(1.3, light)(image, depth)
    for c in range(3):
        t = np.exp(-1.3 * depth.numpy())
        np.testing.assert_allclose(
            hazy[c].numpy(), image[c].numpy() * t + light[c] * (1 - t), atol=1e-6
        )
    batch = Scattering(1.3, light)(
        torch.stack([image, image]), torch.stack([depth, depth])[:, None]
    )
    torch.testing.assert_close(batch[1], hazy)


def test_scattering_at_its_ends():
    image, depth = noise(3, 4, 4), noise(4, 4, seed=1) + 0.5
    torch.testing.assert_close(Scattering(0.0, 0.8)(image, depth), image)
    torch.testing.assert_close(Scattering(1e4, 0.8)(image, depth), torch.full_like(image, 0.8))
    torch.testing.assert_close(
        Scattering(0.0, 0.8, linear_light=True)(image, depth), image, atol=1e-5, rtol=0
    )


def test_linear_light_mixes_light():
    image, depth = torch.full((3, 2, 2), 0.2), torch.ones(2, 2)
    t = np.exp(-0.7)

    def decode(v):
        return ((v + 0.055) / 1.055) ** 2.4

    want = 1.055 * (decode(0.2) * t + decode(0.9) * (1 - t)) ** (1 / 2.4) - 0.055
    got = Scattering(0.7, 0.9, linear_light=True)(image, depth)
    torch.testing.assert_close(got, torch.full_like(got, want))
    assert want > float(Scattering(0.7, 0.9)(image, depth)[0, 0, 0])  # bright haze wins in light


def test_the_exponent_is_angstroms():
    """Blue scatters more: the optical depths of two colours are as the power of their wavelengths;
    green's is beta's. In fog, exponent 0, all are alike.
    """
    image, depth = torch.full((3, 2, 2), 0.2), torch.full((2, 2), 0.8)
    hazy = Scattering(0.7, 1.0, exponent=1.3)(image, depth)
    depths = -torch.log((1 - hazy) / (1 - image))[:, 0, 0]
    assert float(depths[1]) == pytest.approx(0.7 * 0.8, rel=1e-4)
    red, green, blue = WAVELENGTHS
    assert float(depths[2] / depths[1]) == pytest.approx((green / blue) ** 1.3, rel=1e-4)
    assert float(depths[0] / depths[1]) == pytest.approx((green / red) ** 1.3, rel=1e-4)
    batch = Scattering(0.7, 1.0, exponent=1.3)(image[None], depth[None, None])
    torch.testing.assert_close(batch[0], hazy)


@given(st.floats(0, 1))
def test_srgb_round_trip(value):
    v = torch.tensor([value], dtype=torch.float64)
    torch.testing.assert_close(srgb_encode(srgb_decode(v)), v, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Scattering(-1.0), "beta"),
        (lambda: Scattering(float("nan")), "beta"),
        (lambda: Scattering(1.0, exponent=-0.1), "exponent"),
        (lambda: Scattering(1.0, exponent=float("nan")), "exponent"),
        (lambda: Scattering(1.0, 1.2), "airlight"),
        (lambda: Scattering(1.0, (0.5, 0.5)), "airlight"),
        (lambda: Scattering(1.0)(noise(3, 4, 4), noise(4, 5)), "depth is"),
        (lambda: Scattering(1.0)(noise(3, 4, 4), noise(4, 4) - 2), "not negative"),
        (lambda: Scattering(1.0)(noise(3, 4, 4), noise(4, 4) / 0), "finite"),
    ],
)
def test_bad_scattering(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_draws_stay_in_their_ranges_and_repeat():
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(50):
        s = Scattering.draw(rng, tint=0.1)
        assert BETA[0] <= s.beta <= BETA[1]
        assert 0.6 <= min(s.airlight) <= max(s.airlight) <= 1
        assert s == Scattering.draw(again, tint=0.1)


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 100))
def test_depth_of_cues(height, width, seed):
    """In its range for any picture."""
    rng = np.random.default_rng(seed)
    for image in (noise(3, height, width, seed=seed), torch.full((3, height, width), 0.3)):
        depth = depth_of_cues(image, rng)
        assert depth.shape == (height, width)
        assert torch.isfinite(depth).all()
        assert 0.02 <= depth.min() <= depth.max() <= 1


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (32, 24)])
def test_a_bright_pale_sky_lies_behind_dark_ground(size):
    """Whatever the cues' weights."""
    height = size[0]
    image = torch.full((3, *size), 0.3)
    image[:, : height // 2] = 0.9
    image[0, height // 2 :] = 0.1
    for seed in range(300):
        depth = depth_of_cues(image, np.random.default_rng(seed))
        assert depth[: height // 2].mean() > depth[height // 2 :].mean()


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 100))
def test_made_up_depth(height, width, seed):
    depth, labels = procedural_depth(height, width, np.random.default_rng(seed))
    assert depth.shape == labels.shape == (height, width)
    assert depth.max() == 1
    assert depth.min() >= 0.02
    again, _ = procedural_depth(height, width, np.random.default_rng(seed))
    assert torch.equal(depth, again)
    for k in range(1, labels.max() + 1):
        assert (
            depth[torch.from_numpy(labels == k)].unique().numel() <= 1
        )  # a thing in front has one distance


def test_depth_follows_edges():
    image = torch.zeros(3, 24, 24)
    image[:, :, 12:] = 1
    soft = torch.linspace(0.2, 1, 24).expand(24, 24).clone()
    sharp = follow_edges(soft, image, radius=6, eps=1e-4)
    jump = (sharp[:, 12] - sharp[:, 11]).mean()
    assert jump > 4 * (soft[:, 12] - soft[:, 11]).mean()


def test_depth_files(tmp_path):
    depth = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, 4.0]], np.float64)
    np.save(tmp_path / "d.npy", depth)
    np.savez(tmp_path / "d.npz", depth_m=depth)
    for name in ("d.npy", "d.npz"):
        found = read_depth(tmp_path / name, 2, 3)
        assert found[0, 0] == 1
        assert found[1, 0] == 1  # nearest known
        assert torch.isfinite(found).all()
    np.savez(tmp_path / "two.npz", a=depth, b=depth)
    np.save(tmp_path / "none.npy", depth * np.nan)
    np.save(tmp_path / "negative.npy", -depth)
    (tmp_path / "text.npy").write_text("no")
    for name, says in (
        ("two.npz", "one array depth"),
        ("none.npy", "nothing known"),
        ("negative.npy", "negative"),
        ("text.npy", "as .npy"),
    ):
        with pytest.raises(ValueError, match=says):
            read_depth(tmp_path / name, 2, 3)
    with pytest.raises(ValueError, match="shape"):
        read_depth(tmp_path / "d.npy", 3, 2)
    with pytest.raises(FileNotFoundError):
        read_depth(tmp_path / "missing.npy", 2, 3)


# -- dark channel prior ----------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 7]), st.integers(0, 100))
def test_dark_channel_is_the_minimum_in_a_window(height, width, window, seed):
    image = noise(2, 3, height, width, seed=seed)
    want = [minimum_filter(one.amin(0).numpy(), window, mode="nearest") for one in image]
    np.testing.assert_array_equal(dark_channel(image, window)[:, 0].numpy(), np.stack(want))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 6))
def test_box_mean_is_cut_at_the_border(height, width, radius):
    x = noise(1, 2, height, width)
    got = box_mean(x, radius)
    for i in range(height):
        for j in range(width):
            part = x[..., max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1]
            torch.testing.assert_close(got[..., i, j], part.mean((-2, -1)))


def test_guided_filter_keeps_what_is_linear_in_the_guide():
    guide = noise(1, 1, 20, 24)
    torch.testing.assert_close(
        guided_filter(0.3 * guide + 0.2, guide, 3, 1e-10), 0.3 * guide + 0.2, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        guided_filter(torch.full_like(guide, 0.7), guide, 3, 1e-3), torch.full_like(guide, 0.7)
    )
    flat = torch.full_like(guide, 0.5)  # without edges it is a mean of means
    torch.testing.assert_close(
        guided_filter(guide, flat, 2, 1e-3), box_mean(box_mean(guide, 2), 2), atol=1e-5, rtol=0
    )


def test_airlight_is_the_brightest_of_the_haziest():
    image = torch.zeros(1, 3, 10, 10)
    image[0, :, 2, 3] = torch.tensor([0.9, 0.8, 0.7])
    image[0, :, 4, 4] = 1.0
    dark = torch.zeros(1, 1, 10, 10)
    dark[0, 0, 2, 3], dark[0, 0, 2, 4] = 0.8, 0.9
    # not the white lamp at (4, 4)
    torch.testing.assert_close(
        airlight(image, dark, 0.02)[0, :, 0, 0], torch.tensor([0.9, 0.8, 0.7])
    )


def test_prior_is_exact_where_it_holds():
    """Every pixel of the scene lacks one channel, and one patch is nothing but airlight: the
    prior's two assumptions.
    """
    scene = noise(1, 3, 40, 50)
    scene.scatter_(
        1, torch.randint(3, (1, 1, 40, 50), generator=torch.Generator().manual_seed(1)), 0.0
    )
    light, t = torch.tensor([0.95, 0.9, 0.85])[None, :, None, None], 0.4
    hazy = scene * t + light * (1 - t)
    hazy[..., :15, :15] = light
    found = DarkChannelPrior(window=5, omega=1.0, radius=0)(hazy)
    torch.testing.assert_close(found.airlight, light)
    torch.testing.assert_close(
        found.transmission[..., 17:], torch.full((1, 1, 40, 33), t), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.image[..., 17:], scene[..., 17:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.image[..., :15, :15], light.expand(1, 3, 15, 15))
    half = DarkChannelPrior(window=5, omega=0.5, radius=0)(hazy)
    torch.testing.assert_close(
        half.transmission[..., 17:],
        torch.full((1, 1, 40, 33), 1 - 0.5 * (1 - t)),
        atol=1e-5,
        rtol=0,
    )


def test_prior_clears_made_up_haze():
    scene = torch.from_numpy(smooth_picture(96, 128)) * torch.tensor([0.3, 0.7, 0.9])[:, None, None]
    scene[:, ::6] *= 0.1
    depth, _ = procedural_depth(96, 128, np.random.default_rng(0))
    hazy = Scattering(1.5, 0.95)(scene, depth)
    assert (
        psnr(DarkChannelPrior(window=9, radius=16)(hazy[None]).image[0], scene)
        > psnr(hazy, scene) + 2
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: DarkChannelPrior(window=4), "odd"),
        (lambda: DarkChannelPrior(omega=0.0), "omega"),
        (lambda: DarkChannelPrior(floor=2.0), "floor"),
        (lambda: DarkChannelPrior(radius=-1), "radius"),
        (lambda: DarkChannelPrior(eps=0.0), "eps"),
        (lambda: dark_channel(noise(1, 3, 4, 4), 2), "odd"),
        (lambda: DarkChannelPrior()(noise(1, 1, 8, 8)), "colour"),
    ],
)
def test_bad_prior(call, says):
    with pytest.raises(ValueError, match=says):
        call()
