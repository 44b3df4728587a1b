"""Delay and sum of plane waves: raw channel data to complex picture lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlaneWaves:
    """How channel data of a linear array were taken.

    Args:
        sampling_rate: Hz.
        pitch: distance of elements, m.
        sound_speed: m/s.
        start: time of the first sample after the first element fired, s.
        angles: steering of each plane wave, radians; one for each acquisition that is compounded
            into a frame.

    Raises:
        ValueError: a number that is not positive, or no angle.
    """

    sampling_rate: float
    pitch: float
    sound_speed: float = 1540.0
    start: float = 0.0
    angles: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        for name in ("sampling_rate", "pitch", "sound_speed"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number; got {getattr(self, name)}")
        if not self.angles:
            raise ValueError("at least one plane wave is needed")

    def depths(self, samples: int) -> tuple[float, float]:
        """First and last depth that ``samples`` samples reach, m."""
        first, last = (
            self.start * self.sound_speed / 2,
            (self.start + samples / self.sampling_rate) * self.sound_speed / 2,
        )
        return max(first, 1e-3), last


def beamform(
    rf: np.ndarray, waves: PlaneWaves, height: int = 512, width: int = 256, f_number: float = 1.5
) -> np.ndarray:
    """Delay and sum with an aperture that grows with depth, coherently compounded over the plane
    waves.

    Args:
        rf: real ``(samples, elements, waves)``.
        height, width: of the result; it covers the recorded depths and the array's width.
        f_number: depth over aperture.

    Returns:
        complex ``(height, width)``: the envelope is its magnitude.

    Raises:
        ValueError: axes that do not fit the acquisition.
    """
    from scipy.signal import hilbert

    if rf.ndim != 3 or rf.shape[2] != len(waves.angles) or rf.shape[0] < 16:
        raise ValueError(
            f"channel data must be (samples, elements, {len(waves.angles)} plane waves); got"
            f" {rf.shape}"
        )
    samples, elements = rf.shape[:2]
    analytic = hilbert(rf - rf.mean(0), axis=0)
    x_elements = (np.arange(elements) - (elements - 1) / 2) * waves.pitch
    first, last = waves.depths(samples)
    z, x = (
        np.linspace(first, last, height)[:, None],
        np.linspace(x_elements[0], x_elements[-1], width)[None],
    )
    out = np.zeros((height, width), complex)
    for k, angle in enumerate(waves.angles):
        # the first element fires at time 0, whichever side it is on
        there = z * np.cos(angle) + x * np.sin(angle) + x_elements[-1] * abs(np.sin(angle))
        for n, at in enumerate(x_elements):
            aperture = np.abs(x - at) <= z / (2 * f_number)
            where = (
                (there + np.hypot(z, x - at)) / waves.sound_speed - waves.start
            ) * waves.sampling_rate
            low = np.clip(where, 0, samples - 2).astype(np.intp)
            share = where - low
            line = analytic[:, n, k]
            out += (aperture & (share >= 0) & (share <= 1)) * (
                line[low] * (1 - share) + line[low + 1] * share
            )
    return out
