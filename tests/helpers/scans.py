"""A disc in a scanner of several coils."""

import numpy as np
import torch

from restoration.mri.simulation import ring_maps, simulate_kspace, smooth_phase


def disc(size, radius=0.7):
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    inside = (y**2 + x**2 < radius**2).float()
    return inside * (1 + 0.5 * torch.sin(6 * x) * torch.cos(5 * y))


def scan(size=(40, 36), coils=5, mask=None, sigma=0.0, seed=0, phase=0.3):
    rng = np.random.default_rng(seed)
    maps = ring_maps(coils, size, rng)
    image = torch.polar(disc(size), smooth_phase(size, rng, phase))
    mask = torch.ones(size) if mask is None else mask
    op, y = simulate_kspace(image, maps, mask, sigma, torch.Generator().manual_seed(seed))
    return image, maps, op, torch.complex(*y[0].chunk(2))
