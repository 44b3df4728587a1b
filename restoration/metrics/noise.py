"""How much noise a picture holds."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaincinv
from torch import Tensor

from restoration.metrics.fidelity import Image

# fourth differences along rows and columns: of a picture they leave next to nothing but texture
DIFFERENCES = np.array([1.0, -4.0, 6.0, -4.0, 1.0]) / 70**0.5
CORRELATED = 6.9  # values that count as one, so far are neighbouring ones of white noise alike
BLOCK, LEAST_BLOCK, BLOCKS = 24, 8, 20  # sides in pixels; a picture has at least so many
QUIET = 0.05  # the quantile of blocks that are taken to hold noise alone
ROOM = 2.5  # standard deviations that a block's mean keeps from black and white
DEEP = 0.05  # share of blocks that are used where none keeps it: those that keep most
ITERATIONS = 6


def noise_level(image: Image) -> float:
    """Standard deviation of the white noise on ``(C, H, W)`` in [0, 1], root mean square over the
    channels.

    From the quietest blocks of each channel, so that texture counts little; blocks that are so dark
    or bright that noise was cut off at 0 or 1 do not count, where the channel reaches these.

    Raises:
        ValueError: fewer than 4 pixels along a side.
    """
    image = np.asarray(
        image.detach().cpu() if isinstance(image, Tensor) else image, dtype=np.float64
    )
    if image.ndim != 3 or min(image.shape[1:]) < 4:
        raise ValueError(
            f"the noise of (C, H, W) with at least 4 x 4 pixels can be estimated; got {image.shape}"
        )
    small = min(image.shape[1:]) < 2 * LEAST_BLOCK + len(DIFFERENCES)
    of_plane = _haar if small else _quiet
    return float(np.sqrt(np.mean([of_plane(plane) ** 2 for plane in image])))


def _quiet(plane: np.ndarray) -> float:
    """Of one channel, from blocks."""
    from scipy.ndimage import correlate1d

    margin = len(DIFFERENCES) // 2
    detail = correlate1d(correlate1d(plane, DIFFERENCES, 0), DIFFERENCES, 1)
    inner = (slice(margin, -margin),) * 2
    detail, plane = detail[inner], plane[inner]
    side = int(np.clip((plane.size / BLOCKS) ** 0.5, LEAST_BLOCK, BLOCK))
    power, mean = _blocks(detail**2, side), _blocks(plane, side)
    room = np.full_like(mean, np.inf)
    if 0 <= plane.min() <= 0.002:
        room = np.minimum(room, mean)
    if 0.998 <= plane.max() <= 1:
        room = np.minimum(room, 1 - mean)
    deep = float(np.quantile(room, 1 - DEEP)) if np.isfinite(room).all() else np.inf
    sigma = float(np.sqrt(np.median(power)))
    for _ in range(ITERATIONS):
        seen = power[room >= min(ROOM * sigma, deep)]
        # the quantile that the interpolated rank has on average, and the power of noise at it
        at = (1 + (len(seen) - 1) * QUIET) / (len(seen) + 1)
        half = side**2 / CORRELATED / 2
        found = float(np.sqrt(np.quantile(seen, QUIET) * half / gammaincinv(half, at)))
        if abs(found - sigma) <= 0.005 * sigma:
            return found
        sigma = found
    return sigma


def _blocks(plane: np.ndarray, side: int) -> np.ndarray:
    """Means of whole blocks, flat."""
    height, width = (n // side for n in plane.shape)
    whole = plane[: height * side, : width * side]
    found: np.ndarray = whole.reshape(height, side, width, side).mean((1, 3)).ravel()
    return found


def _haar(plane: np.ndarray) -> float:
    """Of pictures too small for blocks: the median of the finest diagonal Haar coefficients (Donoho
    & Johnstone 1994); fine texture counts as noise.
    """
    height, width = (n // 2 * 2 for n in plane.shape)
    a, b, c, d = (plane[i:height:2, j:width:2] for i in (0, 1) for j in (0, 1))
    return float(np.median(np.abs(a - b - c + d)) / 2 / 0.6744897501960817)
