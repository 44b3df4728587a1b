"""Where a reconstruction may be wrong, by halves of its scan."""

import math

import numpy as np
import pytest
import torch

from restoration.mri.halves import CENTRE, halves, moved
from restoration.mri.sampling import column_mask, poisson_mask
from restoration.mri.sense import cartesian, ifft2c, normalise_maps, to_channels, to_complex
from restoration.mri.simulation import ring_maps
from restoration.mri.task import MRITask
from solvers import VP
from solvers.prediction import Prediction

SIZE = (64, 48)


def centre(size):
    y, x = (torch.arange(n) - n // 2 for n in size)
    return (y[:, None].abs() <= CENTRE * size[0]) & (x.abs() <= CENTRE * size[1])


@pytest.mark.parametrize("kind", ["columns", "rows", "points", "all"])
def test_halves_share_the_points_by_lot_and_keep_the_centre(kind):
    columns = column_mask("random", SIZE[1], 2, 0.1, 3).expand(SIZE)
    rows = column_mask("random", SIZE[0], 2, 0.1, 3)[:, None].expand(SIZE)
    mask = {
        **{"columns": columns, "rows": rows, "all": torch.ones(SIZE)},
        **{"points": poisson_mask(*SIZE, 3, 8, 0)},
    }[kind].float()
    one, other = halves(mask, 0)
    assert torch.equal(torch.maximum(one, other), mask)
    assert torch.equal((one * other)[centre(SIZE)], mask[centre(SIZE)])
    shared = (one * other).mean() / mask.mean()
    assert shared < 0.3  # the centre, and nothing else
    assert (one.sum() - other.sum()).abs() < 0.35 * mask.sum()
    assert not torch.equal(halves(mask, 1)[0], one)
    if kind in ("columns", "all"):
        assert (one == one[:1]).all()
    if kind == "rows":
        assert (one == one[:, :1]).all()


def test_an_image_of_noise_moves_by_the_half_that_is_left_out():
    """The zero-filled image is linear: what it moves by is the image of the points left out. Of
    white noise that is half of the power in each pixel, the root of a gamma variable.
    """
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(256, 256, generator=g).round()  # drawn with the seed of the lot
    kspace = torch.randn(256, 256, generator=g, dtype=torch.complex64)
    found = moved(lambda points: ifft2c(points * kspace), mask, 0)
    out = mask * ~centre(mask.shape)
    power = float((out * kspace.abs().square()).sum()) / mask.numel() / 2
    want = math.sqrt(power / 2) * math.gamma(2.5)  # mean of the root of a mean of two exponentials
    assert float(found.mean()) == pytest.approx(want, rel=0.01)
    assert float(found.std()) < 0.2 * want


class Shown:
    """Gives back the image that it is shown, the first two channels of its condition."""

    process = VP.from_diffusers({"num_train_timesteps": 100, "rescale_betas_zero_snr": True})
    data_std, condition_channels, device = 0.1, 7, torch.device("cpu")

    def __init__(self, image=None):
        self.image = image

    def conditioned(self, condition):
        return Shown(condition[:, :2])

    def __call__(self, x, t):
        return Prediction(self.image.expand_as(x), x)


@pytest.mark.parametrize("every", [3, 4])
def test_the_map_lies_where_errors_are_and_grows_with_the_data(every):
    """Flat tissue on one side, stripes on the other: there columns that were left out show."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (96, 96)), indexing="ij")
    image = ((x / 0.8) ** 2 + (y / 0.9) ** 2 < 1) * (0.7 + 0.3 * torch.sin(40 * x) * (x > 0.1))
    maps = normalise_maps(ring_maps(4, (96, 96), np.random.default_rng(0)))
    mask = column_mask("random", 96, every, 0.1, 1).expand(96, 96).contiguous()
    kspace = to_complex(cartesian(mask, maps, (96, 96)).A(to_channels(image[None, None] + 0j)))[0]
    task = MRITask(Shown(), num_inference_steps=2)
    found = task(kspace, mask, maps, sigma=1e-4, num_samples=2)
    error, flat, striped = (found.mean.abs() - image).abs(), (image > 0) & (x < 0.1), x > 0.1
    striped = striped & (image > 0)
    assert error[striped].mean() > 2 * error[flat].mean()
    assert found.std[striped].mean() > 1.4 * found.std[flat].mean()
    assert found.nfe == 2 * 2 + 3
    larger = task(50 * kspace, mask, maps, sigma=50e-4, num_samples=2)
    torch.testing.assert_close(larger.std, 50 * found.std, rtol=1e-3, atol=1e-3)
    assert not task(kspace, mask, maps, sigma=1e-4).std.any()  # one sample tells none
