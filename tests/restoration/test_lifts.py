"""Lifts of dark and shadowed pictures, on light that is known, and what networks start from."""

import numpy as np
import pytest
import torch
from helpers.data import smooth_picture

from restoration.paired.degradations import low_light
from restoration.paired.haze import srgb_decode, srgb_encode
from restoration.paired.lifts import MEAN, brightened, relit
from restoration.paired.task import PairedTask
from solvers import VP, Denoiser


def exposed(height=48, width=64):
    """A picture ``(1, 3, H, W)`` whose light has the mean of good exposures."""
    light = srgb_decode(torch.from_numpy(smooth_picture(height, width)))[None]
    return srgb_encode(light * MEAN / light.mean())


@pytest.mark.parametrize("times", [2, 17.5, 50])
def test_short_exposures_are_undone(times):
    picture = exposed()
    dark = srgb_encode(srgb_decode(picture) / times)
    torch.testing.assert_close(brightened(dark), picture, atol=1e-4, rtol=0)


def test_bright_pictures_are_not_made_darker_and_black_ones_stay_finite():
    bright = srgb_encode((2 * srgb_decode(exposed())).clamp(0, 1))
    torch.testing.assert_close(brightened(bright), bright, atol=1e-5, rtol=0)
    black = torch.zeros(1, 3, 8, 8)
    assert torch.equal(brightened(black), black)


def test_shadows_on_an_even_wall_are_undone():
    """The sky's light is left in them, colour by colour."""
    light = torch.full((2, 3, 60, 90), 0.6)
    mask = torch.zeros(2, 1, 60, 90)
    mask[0, :, 20:50, 30:80] = 1
    mask[1, :, 5:20, 5:20] = 1
    left = torch.tensor([[0.2, 0.25, 0.35], [0.5, 0.55, 0.6]])[..., None, None]
    shadowed = srgb_encode(light * (1 - mask * (1 - left)))
    inner = 1 - torch.nn.functional.max_pool2d(
        (torch.nn.functional.max_pool2d(mask, 5, 1, 2) - mask)
        + (torch.nn.functional.max_pool2d(1 - mask, 5, 1, 2) - (1 - mask)),
        5,
        1,
        2,
    )
    found = srgb_decode(relit(shadowed, mask))
    torch.testing.assert_close(found * inner, light * inner, atol=1e-4, rtol=0)


def test_a_shadow_without_a_mask_is_refused():
    with pytest.raises(ValueError, match="give one"):
        relit(exposed(), None)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_without_shadow_or_of_nothing_else_change_nothing(value):
    picture = exposed()
    mask = torch.full_like(picture[:, :1], value)
    torch.testing.assert_close(relit(picture, mask), picture, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shown", "lift"), [("brightened", brightened), ("relit+mask", relit)])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_start_from_the_lift(shown, lift, channels):
    """One that adds nothing leaves it; grey pictures too."""
    masked = "+mask" in shown
    d = Denoiser(
        lambda z, t: torch.zeros_like(z[:, :3]),
        VP.cosine(zero_terminal_snr=True),
        "v_prediction",
        condition_channels=4 if masked else 3,
        residual=True,
        shown=shown,
    )
    picture, _ = low_light(exposed()[0], np.random.default_rng(0))
    picture = picture[:channels]
    mask = torch.zeros(48, 64)
    mask[10:30, 20:40] = 1
    result = PairedTask(d, num_inference_steps=1)(picture, mask if masked else None)
    start = lift(picture.expand(3, -1, -1)[None], mask[None, None])[0].mean(0, keepdim=True)
    found = result.mean if channels == 1 else result.mean.mean(0, keepdim=True)
    torch.testing.assert_close(found, start, atol=1e-5, rtol=0)
    assert result.mean.shape == picture.shape
