"""A physical simulator of ultrasound haze: multipath clutter and correlated noise, added to the
signal before log compression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from restoration.ultrasound.bmode import (
    DYNAMIC_RANGE,
    Sector,
    amplitude_of,
    find_sector,
    log_compress,
)

# RMS amplitude of haze of strength 1 at its strongest depth, relative to white
LEVEL = 10 ** (-35 / 20)


def simulate_haze(
    image: np.ndarray,
    strength: float,
    seed: int,
    *,
    sector: Sector | None = None,
    dynamic_range: float = DYNAMIC_RANGE,
) -> np.ndarray:
    """A hazy version of a B-mode picture.

    The picture's amplitudes ``A`` get random speckle phases, the complex haze is added, and the sum
    is log-compressed again: ``sqrt(mean_k |A exp(i phi_k) + strength H_k|^2)`` over one to three
    looks k, as scanners compound. Haze covers dark regions and hardly changes bright ones; it can
    also extinguish. ``H``, drawn on the beams of the sector (columns where there is none), is a sum
    of two:

    - *correlated noise*: complex Gaussian, of a resolution coarser than tissue speckle (defocused),
      with a smooth random pattern and a profile that decays from the near field;
    - *multipath clutter*: the picture's own echoes, delayed (each delay up to a third of the depth,
      with its multiples) and spread over neighbouring beams.

    Args:
        image: ``(H, W)`` in [0, 1].
        strength: factor on the haze's amplitude, >= 0: 0.5 is a veil, 1 covers the blood pool, 2
            hides faint tissue.
        seed: every draw follows from it.
        sector: geometry; found by :func:`restoration.ultrasound.bmode.find_sector` by default.
        dynamic_range: of the picture's grey scale, in dB.

    Returns:
        ``(H, W)`` float32 in [0, 1]; black outside the sector stays black.

    Raises:
        ValueError: not one grey picture in [0, 1], or a negative strength.
    """
    image = np.asarray(image, np.float64)
    if image.ndim != 2 or not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"one grey picture (H, W) in [0, 1] is needed; got shape {image.shape}")
    if not 0 <= strength < np.inf:
        raise ValueError(f"strength must be a finite number >= 0; got {strength}")
    rng = np.random.default_rng(seed)
    sector = find_sector(image) if sector is None else sector
    amplitude = amplitude_of(image, dynamic_range)
    if sector is None:
        beams = amplitude
    else:
        samples = int(np.clip((sector.radii[1] - sector.radii[0]) / 1.5, 32, 1024))
        beams = sector.to_polar(amplitude, samples, max(64, samples // 2))
    looks = []
    pattern, paths = haze_pattern(beams.shape, rng), multipaths(rng)
    for _ in range(rng.integers(1, 4)):
        phase = smooth_noise(beams.shape, (1.2, 1.8), rng)
        phase /= np.maximum(np.abs(phase), 1e-6)
        haze = pattern.draw(rng) + 0.3 * multipath_clutter(beams * phase, paths, rng)
        if sector is not None:
            phase, haze = sector.to_cartesian(phase), sector.to_cartesian(haze)
            phase = np.where(phase == 0, 1, phase)  # outside: the picture as it is
        looks.append(
            np.abs(amplitude * phase / np.maximum(np.abs(phase), 1e-6) + strength * haze) ** 2
        )
    return log_compress(np.sqrt(np.mean(looks, axis=0)), dynamic_range, reference=1.0).astype(
        np.float32
    )


@dataclass(frozen=True)
class HazePattern:
    """Correlated noise: its mean amplitude ``(samples, beams)`` and its grain, the blur's standard
    deviations (samples, beams).
    """

    amplitude: np.ndarray
    grain: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One complex look."""
        return self.amplitude * smooth_noise(self.amplitude.shape, self.grain, rng)


def haze_pattern(shape: tuple[int, int], rng: np.random.Generator) -> HazePattern:
    """A random veil of strength 1 on ``(samples, beams)``: near field, decay with depth, smooth
    spots.
    """
    depth = np.linspace(0, 1, shape[0])[:, None]
    near = rng.uniform(0.3, 1)
    profile = near * np.exp(-depth / rng.uniform(0.15, 0.6)) + (1 - near) + 0.15
    size = (rng.uniform(0.05, 0.2) * shape[0], 0.15 * shape[1])
    spots = smooth_noise(shape, size, rng).real
    spots = np.exp(rng.uniform(0.3, 0.9) * spots / max(float(spots.std()), 1e-12))
    amplitude = (
        LEVEL * rng.uniform(0.7, 1.3) * profile / profile.max() * spots / np.sqrt(np.mean(spots**2))
    )
    return HazePattern(amplitude, (rng.uniform(1.5, 3), rng.uniform(2.5, 5)))


def multipaths(rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """One to three detours: delay as a share of the depth, blur in beams, reflected share of the
    amplitude.
    """
    return [
        (rng.uniform(0.03, 0.33), rng.uniform(3, 10), rng.uniform(0.03, 0.12))
        for _ in range(rng.integers(1, 4))
    ]


def multipath_clutter(
    echoes: np.ndarray, paths: list[tuple[float, float, float]], rng: np.random.Generator
) -> np.ndarray:
    """Complex ``echoes (samples, beams)`` again, three times for each path: delayed, defocused,
    weaker each time, in random phase.
    """
    clutter = np.zeros_like(echoes)
    for delay, spread, share in paths:
        step = max(1, int(delay * len(echoes)))
        smeared = (
            ndimage.gaussian_filter1d(echoes, spread, axis=1, mode="nearest")
            * (2 * np.sqrt(np.pi) * spread) ** 0.5
        )
        for k in (1, 2, 3):
            if k * step < len(echoes):
                clutter[k * step :] += (
                    share**k**0.7 * np.exp(2j * np.pi * rng.random()) * smeared[: -k * step]
                )
    return clutter


def smooth_noise(
    shape: tuple[int, int], grain: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Complex Gaussian noise of mean square 1, smoothed by a Gaussian of these standard deviations
    (samples, beams).
    """
    white = rng.standard_normal((2, *shape), dtype=np.float32)
    frequencies = (fft.fftfreq(n).astype(np.float32) for n in shape)
    gains = [
        np.exp(-2 * (np.pi * sigma * f) ** 2) for sigma, f in zip(grain, frequencies, strict=True)
    ]
    # white noise stays white under a Fourier transform
    field = fft.ifft2((white[0] + 1j * white[1]) * np.outer(*gains))
    return field / np.sqrt(np.mean(np.abs(field) ** 2))
