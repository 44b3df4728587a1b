"""Partial Fourier: the side that was not scanned is told by its conjugate, and only where it is."""

import numpy as np
import pytest
import torch

from restoration.mri.partial_fourier import completed, missing_side
from restoration.mri.sampling import column_mask
from restoration.mri.sense import fft2c, ifft2c, normalise_maps


def smooth(size, seed):
    """A phase of low order, and coils that vary slowly."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    a, b, c = np.random.default_rng(seed).normal(size=3)
    return torch.polar(torch.ones(size), (a * x + b * y + c * x * y).float())


def scene(size, seed=0):
    """A positive image with edges, band-limited little."""
    rng, image = np.random.default_rng(seed), torch.zeros(size)
    for _ in range(12):
        top, left = (int(rng.integers(4, n - 20)) for n in size)
        image[top : top + int(rng.integers(5, 16)), left : left + int(rng.integers(5, 16))] += (
            float(rng.uniform(0.2, 1))
        )
    return image


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("size", [(96, 104), (95, 103)])
def test_which_side_lacks(axis, early, size):
    n, mask = size[axis], torch.zeros(size)
    lines = slice(0, round(5 * n / 8)) if early else slice(n - round(5 * n / 8), n)
    mask[(lines, slice(None)) if axis == 0 else (slice(None), lines)] = 1
    side = missing_side(mask)
    assert side.axis == axis
    # lines n/2 - reach to n/2 + reach are all there
    centre = n // 2
    whole = slice(centre - side.reach, centre + side.reach + 1)
    assert mask.movedim(axis, 0)[whole].all()
    assert missing_side(torch.ones(size)) is None
    for kind in ("random", "equispaced"):
        assert missing_side(column_mask(kind, 128, 4, 0.1, 0).expand(64, 128)) is None


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("size", [(64, 72), (63, 71)])
def test_what_lacks_is_filled(coils, size):
    """Without noise, with a phase that the centre knows, nearly all of it."""
    image = scene(size) * smooth(size, 1)
    maps = None
    if coils > 1:
        maps = normalise_maps(torch.stack([smooth(size, k) * (1.2 + k) for k in range(coils)]))
    full = fft2c(image[None, None] * (1 if maps is None else maps))[0]
    mask = column_mask("partial", size[1], 1.6, 0, 0).expand(size).clone()
    whole = completed(full * mask, mask, maps, 0.0)
    assert whole is not None
    assert torch.equal(whole.kspace[:, mask > 0], full[:, mask > 0])
    # all but the first line of an even number, which is its own mirror
    assert int((whole.mask == 0).sum()) == (size[0] if size[1] % 2 == 0 else 0)
    before = float((whole.mask * (full - full * mask)).abs().square().sum())
    after = float((whole.mask * (full - whole.kspace)).abs().square().sum())
    assert after < 0.03 * before
    # all energy of an image of that phase is kept
    x = torch.cat([image.real[None], image.imag[None]])[None]
    assert float((whole.real(x) - x).square().mean()) < 1e-3 * float(x.square().mean())


def test_a_phase_that_is_not_smooth_is_not_believed():
    size = (64, 64)
    g = torch.Generator().manual_seed(0)
    rough = scene(size) * torch.polar(torch.ones(size), 6.28 * torch.rand(size, generator=g))
    mask = column_mask("partial", 64, 1.6, 0, 0).expand(size).clone()
    assert completed(fft2c(rough[None, None])[0] * mask, mask, None, 0.0) is None
    assert completed(fft2c(rough[None, None])[0], torch.ones(size), None, 0.0) is None


def test_a_scan_gains_by_it():
    """The task: the same scan, twice; the second time what fills it is hidden from it."""
    from restoration.mri.task import MRITask
    from toolbox.api import load

    size = (64, 64)
    image = scene(size, 3) * smooth(size, 2)
    g = torch.Generator().manual_seed(1)
    noise = 0.01 * torch.randn((2, *size), generator=g)
    full = fft2c(image[None, None])[0] + torch.complex(*noise)
    mask = column_mask("partial", 64, 1.6, 0, 0).expand(size).clone()
    result = MRITask(load("mri"))(full * mask, mask, sigma=0.01)
    zero_filled = ifft2c((full * mask)[None])[0, 0].abs()

    def error(x):
        return float((x - image.abs()).square().mean())

    assert error(result.magnitude) < 0.2 * error(zero_filled)
    assert result.residual < 1.2 * 0.01
