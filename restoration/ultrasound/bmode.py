"""B-mode pictures: envelope, log compression, scan conversion between beams and pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

DYNAMIC_RANGE = 60.0  # dB


def envelope(rf: np.ndarray, axis: int = -2) -> np.ndarray:
    """Magnitude of the analytic signal of real RF along its axial (fast-time) axis; complex IQ has
    it already.

    Raises:
        ValueError: fewer than two samples along the axis.
    """
    rf = np.asarray(rf)
    if np.iscomplexobj(rf):
        return np.abs(rf)
    if rf.shape[axis] < 2:
        raise ValueError(
            f"an envelope needs at least 2 samples along axis {axis}; got shape {rf.shape}"
        )
    from scipy.signal import hilbert

    return np.abs(hilbert(rf, axis=axis))


def log_compress(
    amplitude: np.ndarray, dynamic_range: float = DYNAMIC_RANGE, reference: float | None = None
) -> np.ndarray:
    """``1 + 20 log10(amplitude/reference)/dynamic_range`` clipped to [0, 1]; 1 is the reference, by
    default the largest value.

    Raises:
        ValueError: a dynamic range that is not positive, or amplitudes that are negative or not
            finite.
    """
    amplitude = np.asarray(amplitude, np.float64)
    _check_range(dynamic_range)
    if not np.isfinite(amplitude).all() or (amplitude < 0).any():
        raise ValueError("amplitudes must be finite and not negative")
    reference = float(amplitude.max()) if reference is None else reference
    if reference <= 0:
        return np.zeros_like(amplitude)
    floor = 10 ** (-dynamic_range / 20)
    return np.clip(
        1 + 20 * np.log10(np.maximum(amplitude / reference, floor)) / dynamic_range, 0, 1
    )


def amplitude_of(image: np.ndarray, dynamic_range: float = DYNAMIC_RANGE) -> np.ndarray:
    """The amplitudes, in units of the reference, that :func:`log_compress` shows as ``image``;
    black stands for none at all.
    """
    _check_range(dynamic_range)
    image = np.asarray(image, np.float64)
    return np.where(image > 0, 10 ** ((image - 1) * dynamic_range / 20), 0.0)


@dataclass(frozen=True)
class Sector:
    """Where the beams of a sector lie in a picture; pixels and radians, angle 0 straight down,
    positive to the right.

    Args:
        height, width: of the picture.
        apex: row and column where the beams meet, possibly outside the picture.
        radii: distance from the apex to the first and last sample.
        angles: first and last beam.

    Raises:
        ValueError: an empty picture, or radii or angles that do not increase.
    """

    height: int
    width: int
    apex: tuple[float, float]
    radii: tuple[float, float]
    angles: tuple[float, float]

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a picture has at least one pixel; got {self.width} x {self.height}")
        if not (
            0 <= self.radii[0] < self.radii[1]
            and -math.pi <= self.angles[0] < self.angles[1] <= math.pi
        ):
            raise ValueError(f"radii and angles must increase; got {self.radii} and {self.angles}")

    def inside(self) -> np.ndarray:
        """``(H, W)``: whether a pixel lies in the sector."""
        radius, angle = self._polar()
        return (
            (radius >= self.radii[0])
            & (radius <= self.radii[1])
            & (angle >= self.angles[0])
            & (angle <= self.angles[1])
        )

    def to_cartesian(self, polar: np.ndarray) -> np.ndarray:
        """Samples ``(..., samples, beams)``, real or complex, to pixels ``(..., H, W)``, bilinear;
        zero outside.
        """
        radius, angle = self._polar()
        rows = (radius - self.radii[0]) / (self.radii[1] - self.radii[0]) * (polar.shape[-2] - 1)
        columns = (
            (angle - self.angles[0]) / (self.angles[1] - self.angles[0]) * (polar.shape[-1] - 1)
        )
        return _sample(polar, rows, columns, self.inside())

    def to_polar(self, image: np.ndarray, samples: int, beams: int) -> np.ndarray:
        """Pixels ``(..., H, W)`` to ``(..., samples, beams)``, bilinear; zero where the sector
        leaves the picture.

        Raises:
            ValueError: a picture of another size, or fewer than two samples or beams.
        """
        if image.shape[-2:] != (self.height, self.width):
            raise ValueError(
                f"the sector is of {self.height} x {self.width} pixels (H, W); the picture has"
                f" {image.shape[-2:]}"
            )
        if min(samples, beams) < 2:
            raise ValueError(
                f"at least 2 samples and 2 beams are needed; got {samples} and {beams}"
            )
        radius = np.linspace(*self.radii, samples)[:, None]
        angle = np.linspace(*self.angles, beams)
        rows, columns = self.apex[0] + radius * np.cos(angle), self.apex[1] + radius * np.sin(angle)
        tolerance = 1e-9
        inside = (
            (rows >= -tolerance) & (rows <= self.height - 1 + tolerance) & (columns >= -tolerance)
        )
        return _sample(image, rows, columns, inside & (columns <= self.width - 1 + tolerance))

    def _polar(self) -> tuple[np.ndarray, np.ndarray]:
        down, right = (
            np.arange(self.height)[:, None] - self.apex[0],
            np.arange(self.width) - self.apex[1],
        )
        return np.hypot(down, right), np.arctan2(right, down)


def find_sector(image: np.ndarray, threshold: float = 0.03) -> Sector | None:
    """The sector of a scan-converted picture ``(H, W)`` in [0, 1], from the straight sides of its
    lit area; None where it has none.

    Sides are lines (Theil-Sen) through the convex hull of the largest lit component, in the rows
    before it is cut off.
    """
    from scipy.stats import theilslopes
    from skimage.morphology import convex_hull_image

    lit = ndimage.binary_opening(
        ndimage.gaussian_filter(np.asarray(image, np.float64), 2) > threshold, iterations=2
    )
    labels, count = ndimage.label(lit)
    if count == 0:
        return None
    hull = convex_hull_image(
        labels == 1 + np.argmax(ndimage.sum_labels(lit, labels, range(1, count + 1)))
    )
    rows = np.flatnonzero(hull.any(1))
    height, width = hull.shape
    left, right = hull.argmax(1), width - 1 - hull[:, ::-1].argmax(1)
    lines = []
    for edge in (left, right):
        use = [
            r
            for r in rows[: max(8, len(rows) * 6 // 10)][len(rows) // 20 :]
            if 0 < edge[r] < width - 1
        ]
        if len(use) < 8:
            return None
        lines.append(theilslopes(edge[use], use)[:2])
    (slope_l, start_l), (slope_r, start_r) = lines
    if slope_r - slope_l < 0.2:  # a linear array: sides that do not meet
        return None
    row = (start_l - start_r) / (slope_r - slope_l)
    apex = (float(row), float(start_l + slope_l * row))
    where = np.argwhere(hull)
    radii = np.hypot(where[:, 0] - apex[0], where[:, 1] - apex[1])
    return Sector(
        height,
        width,
        apex,
        (float(radii.min()), float(radii.max())),
        (math.atan(slope_l), math.atan(slope_r)),
    )


def _sample(
    values: np.ndarray, rows: np.ndarray, columns: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    values = np.asarray(values)
    if np.iscomplexobj(values):
        return _sample(values.real, rows, columns, inside) + 1j * _sample(
            values.imag, rows, columns, inside
        )
    flat = values.reshape(-1, *values.shape[-2:])
    out = [
        np.where(inside, ndimage.map_coordinates(v, (rows, columns), order=1, mode="nearest"), 0)
        for v in flat
    ]
    return np.stack(out).reshape(*values.shape[:-2], *rows.shape).astype(values.dtype)


def _check_range(dynamic_range: float) -> None:
    if not 0 < dynamic_range < math.inf:
        raise ValueError(f"the dynamic range must be a positive number of dB; got {dynamic_range}")
