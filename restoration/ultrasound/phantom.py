"""Simulated echocardiograms without haze: speckle of random scatterers under a random anatomy."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from restoration.ultrasound.bmode import Sector
from restoration.ultrasound.simulation import smooth_noise


def simulate_tissue(height: int, width: int, seed: int) -> np.ndarray:
    """A B-mode picture ``(height, width)`` float32 in [0, 1]: a sector with cavities, walls, bright
    membranes, shadows.

    Scatterers are complex Gaussian with the anatomy's strength, blurred by the pulse (samples) and
    the beam (angles), so speckle is fully developed and grows with depth; one to four looks are
    averaged, as compounding scanners do. Then come log compression at a random dynamic range, scan
    conversion, a light smoothing and a random grey curve.
    """
    rng = np.random.default_rng(seed)
    sector = _sector(height, width, rng)
    samples = int(np.clip((sector.radii[1] - sector.radii[0]) / 1.5, 48, 640))
    beams = max(64, samples // 2)
    decibel, fine = _anatomy(sector, samples, beams, rng)
    strength = 10 ** (decibel / 20)
    grain = (rng.uniform(0.8, 1.6), rng.uniform(1.2, 2.6))
    looks = int(rng.integers(1, 5))
    power = (
        np.mean(
            [np.abs(smooth_noise(decibel.shape, grain, rng)) ** 2 for _ in range(looks)], axis=0
        )
        * strength**2
    )
    power = power + fine**2 * np.mean(
        [np.abs(smooth_noise(decibel.shape, (0.8, 2.5), rng)) ** 2 for _ in range(4)], axis=0
    )
    span = rng.uniform(40, 65)
    value = np.clip(1 + 10 * np.log10(power + 1e-12) / span, 0, 1)
    image = ndimage.gaussian_filter(
        sector.to_cartesian(value.astype(np.float32)), rng.uniform(0, 0.9)
    )
    return (np.clip(image, 0, 1) ** rng.uniform(0.8, 1.4) * sector.inside()).astype(np.float32)


def _sector(height: int, width: int, rng: np.random.Generator) -> Sector:
    half = rng.uniform(0.45, 0.85)
    tilt = rng.normal(0, 0.06)
    apex = (rng.uniform(-0.06, 0.08) * height, rng.uniform(0.4, 0.6) * width)
    last = rng.uniform(0.85, 1.25) * height - apex[0]
    return Sector(
        height, width, apex, (rng.uniform(0, 0.06) * height, last), (tilt - half, tilt + half)
    )


def _anatomy(
    sector: Sector, samples: int, beams: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mean level in dB ``(samples, beams)``, and the amplitude of thin bright structures."""
    radius = np.linspace(*sector.radii, samples)[:, None] / sector.radii[1]
    angle = np.linspace(*sector.angles, beams)
    # depth and width in units of the largest radius
    v, u = (radius * np.cos(angle), radius * np.sin(angle))
    shape = (samples, beams)
    level = (
        rng.uniform(-32, -10)
        + rng.uniform(2, 9) * _bumps(shape, 0.12, rng)
        + rng.uniform(0, 3) * _bumps(shape, 0.03, rng)
    )
    fine = np.zeros((samples, beams))
    for _ in range(rng.integers(1, 5)):  # cavities with a wall
        centre, size = (rng.uniform(-0.35, 0.35), rng.uniform(0.2, 0.95)), rng.uniform(0.06, 0.3, 2)
        turn = rng.uniform(0, math.pi)
        du, dv = u - centre[0], v - centre[1]
        p, q = (
            (math.cos(turn) * du + math.sin(turn) * dv) / size[0],
            (math.cos(turn) * dv - math.sin(turn) * du) / size[1],
        )
        around = np.arctan2(q, p)
        wobble = sum(
            rng.normal(0, 0.12 / k) * np.cos(k * around + rng.uniform(0, 6.3)) for k in range(2, 6)
        )
        edge = (np.hypot(p, q) - 1 - wobble) * float(np.sqrt(size.prod()))
        blood = _step(-edge, rng.uniform(0.003, 0.012))
        wall = _step(edge, 0.005) * _step(rng.uniform(0.03, 0.12) - edge, 0.01)
        level = level + wall * rng.uniform(-2, 10)
        level = level * (1 - blood) + blood * rng.uniform(-75, -48)
        # walls across the beam reflect
        facing = np.abs(np.cos(np.arctan2(dv, du) - np.arctan2(v, u))) ** 2
        fine = fine * (1 - blood) + np.exp(-((edge / rng.uniform(0.004, 0.012)) ** 2)) * 10 ** (
            rng.uniform(-18, 0) / 20
        ) * (0.15 + facing)
    for _ in range(rng.integers(0, 4)):  # membranes and valves
        at, bend, tilt = rng.uniform(0.2, 0.9), rng.normal(0, 1.2), rng.normal(0, 0.5)
        middle, half = rng.uniform(-0.35, 0.35), rng.uniform(0.04, 0.25)
        line = v - at - tilt * (u - middle) - bend * (u - middle) ** 2
        extent = _step(half - np.abs(u - middle), 0.01)
        fine = fine + np.exp(-((line / rng.uniform(0.003, 0.012)) ** 2)) * extent * 10 ** (
            rng.uniform(-18, -2) / 20
        )
    gain = np.zeros((samples, beams))
    for _ in range(rng.integers(0, 3)):  # shadows of ribs and lung
        middle, half = rng.uniform(*sector.angles), rng.uniform(0.03, 0.3)
        gain = gain - rng.uniform(8, 45) * _step(
            half - np.abs(angle - middle), rng.uniform(0.02, 0.08)
        ) * _step(radius - rng.uniform(0, 0.5), 0.05)
    side = rng.uniform(0.02, 0.2)
    gain = gain - rng.uniform(0, 30) * (
        np.exp(-(angle - sector.angles[0]) / side) + np.exp(-(sector.angles[1] - angle) / side)
    )
    gain = gain - rng.uniform(-5, 25) * np.clip(radius - rng.uniform(0.3, 0.9), 0, None)
    skin = rng.uniform(0.02, 0.08)
    level = level + rng.uniform(0, 10) * np.exp(-((radius / skin) ** 2))
    return level + gain, fine * 10 ** (gain / 20)


def _bumps(shape: tuple[int, int], size: float, rng: np.random.Generator) -> np.ndarray:
    field = smooth_noise(shape, (size * shape[0], size * shape[1]), rng).real
    return field / max(float(field.std()), 1e-9)


def _step(x: np.ndarray, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x / width, -40, 40)))
