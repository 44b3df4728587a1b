"""Multi-coil k-space simulated of magnitude images: coil maps, smooth phase, noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.io.mri_scan import Scan
from restoration.mri.sense import Sense, SingleCoil, cartesian, fft2c, normalise_maps


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Complex maps at another size (bicubic on real and imaginary part), normalised again."""
    parts = torch.view_as_real(maps).permute(3, 0, 1, 2)
    parts = F.interpolate(parts, size=size, mode="bicubic", align_corners=False)
    return normalise_maps(torch.complex(parts[0], parts[1]))


def ring_maps(
    coils: int, size: tuple[int, int], rng: np.random.Generator, width: float = 1.0
) -> Tensor:
    """Coils on a ring around the field of view, normalised: ``1/(d^2 + w^2)`` profiles with a phase
    that turns across the image.

    A simple stand-in for an array of surface loops (not a solution of Biot-Savart's law); the
    ring's radius, centre and start angle are drawn.
    """
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    radius, turn, shift = (
        rng.uniform(1.1, 1.6),
        rng.uniform(0, 2 * np.pi),
        rng.uniform(-0.1, 0.1, 2),
    )
    angle = turn + 2 * np.pi * np.arange(coils) / coils
    maps = []
    for a in angle:
        dy, dx = y - radius * np.sin(a) - shift[0], x - radius * np.cos(a) - shift[1]
        profile = 1 / (dx**2 + dy**2 + (width * rng.uniform(0.3, 0.8)) ** 2)
        slope = rng.uniform(-1.5, 1.5, 2)
        maps.append(
            profile * np.exp(1j * (rng.uniform(0, 2 * np.pi) + slope[0] * y + slope[1] * x))
        )
    return normalise_maps(torch.from_numpy(np.stack(maps)).to(torch.complex64))


def smooth_phase(size: tuple[int, int], rng: np.random.Generator, strength: float = 1.0) -> Tensor:
    """``(H, W)`` in radians: a random constant and slope plus slow waves of about ``strength``
    radians.
    """
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    phase = rng.uniform(-np.pi, np.pi) + strength * (rng.normal() * y + rng.normal() * x)
    for _ in range(4):
        frequency = rng.normal(size=2) * 2.0
        phase = phase + strength * 0.5 * rng.normal() * np.cos(
            frequency[0] * y + frequency[1] * x + rng.uniform(0, 2 * np.pi)
        )
    return torch.from_numpy(phase.astype(np.float32))


def simulate_kspace(
    image: Tensor, maps: Tensor | None, mask: Tensor, sigma: float, generator: torch.Generator
) -> tuple[Sense | SingleCoil, Tensor]:
    """The operator and ``y = M (F S x + sigma n)`` for one complex image.

    Args:
        image: complex ``(H, W)``.
        maps: ``(coils, H, W)`` or None.
        mask: ``(H, W)`` or ``(W,)``.
        sigma: standard deviation of the real and of the imaginary part of the noise.

    Returns:
        operator and ``(1, 2 coils, H, W)``.
    """
    operator = cartesian(mask, maps, tuple(image.shape))
    x = torch.view_as_real(image).permute(2, 0, 1)[None]
    clean = operator.A(x)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return operator, clean + sigma * operator.mask.to(clean) * noise


@dataclass(frozen=True)
class Simulated:
    """Fully sampled k-space ``(slices, coils, H, W)`` with noise and without, the coil maps
    ``(coils, H, W)``, and the noise of a real part in the data's units.
    """

    kspace: Tensor
    clean: Tensor
    maps: Tensor
    sigma: float


def simulate(scan: Scan, maps: np.ndarray | None, coils: int, sigma: float, seed: int) -> Simulated:
    """A scan of magnitudes.

    The phase is the file's where it has one, else smooth and random, one for all slices; maps are a
    ring of coils unless given.

    Args:
        sigma: noise of real and imaginary part as a share of the volume's 0.99 quantile.
    """
    magnitude: Any = scan.magnitude
    size, rng = magnitude.shape[1:], np.random.default_rng(seed)
    if maps is None:
        sens = (
            ring_maps(coils, size, rng)
            if coils > 1
            else torch.ones(1, *size, dtype=torch.complex64)
        )
    else:
        sens = resize_maps(torch.from_numpy(maps), size)
    phase = smooth_phase(size, rng) if scan.phase is None else torch.from_numpy(scan.phase)
    images = torch.polar(torch.from_numpy(magnitude), phase.expand(magnitude.shape))
    noise = sigma * float(np.quantile(magnitude, 0.99))
    clean = fft2c(images[:, None] * sens)
    # its own stream: a sampler's starts from the seed alone
    g = torch.Generator().manual_seed(seed + 2**32)
    white = torch.randn(clean.shape, generator=g, dtype=clean.dtype)
    return Simulated(clean + noise * 2**0.5 * white, clean, sens, noise)
