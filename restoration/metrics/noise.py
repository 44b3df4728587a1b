"""How much noise a picture holds."""

from __future__ import annotations

from collections.abc import Sequence

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
INSIDE = 0.3  # share of a channel between black and white, of which noise would leave a half
WHOLE = 0.9  # the same of a block that can tell nevertheless
LEAST_ROOM = 5  # side of blocks that lie between lines of text, in pixels
SOME = 0.1  # share of such a block's pixels that are cut off, or not, where both are to be seen
CENSORED = 2.8  # values that count as one where a half is cut off


def noise_level(image: Image) -> float:
    """Standard deviation of the white noise on ``(C, H, W)`` in [0, 1], root mean square over the
    channels.

    From the quietest blocks of each channel, so that texture counts little; blocks that are so dark
    or bright that noise was cut off at 0 or 1 do not count, where the channel reaches these.
    Channels that are exactly black or white but for edges, as pages of text and drawings are, tell
    nothing; where all are so there is no noise.

    Raises:
        ValueError: fewer than 4 pixels along a side.
    """
    image = np.asarray(
        image.detach().cpu() if isinstance(image, Tensor) else image, dtype=np.float64
    )
    if image.ndim != 3 or min(image.shape[1:]) < 4:
        raise ValueError(
            "the noise of (C, H, W) with at least 4 x 4 pixels can be estimated; got"
            f" {image.shape}: say how much there is (sigma)"
        )
    small = min(image.shape[1:]) < 2 * LEAST_BLOCK + len(DIFFERENCES)
    of_plane = _haar if small else _quiet
    told = [of_plane(plane) ** 2 for plane in image if small or not _drawn(plane)]
    return float(np.sqrt(np.mean(told or [0.0])))


def _drawn(plane: np.ndarray) -> bool:
    """Whether a channel is exactly black or white but for edges."""
    inside = ((plane > 0) & (plane < 1)).astype(float)
    return inside.mean() < INSIDE and _blocks(inside, _side(plane)).max() < WHOLE


def _side(plane: np.ndarray) -> int:
    """Of the blocks of a channel."""
    return int(np.clip((plane.size / BLOCKS) ** 0.5, LEAST_BLOCK, BLOCK))


def _quiet(plane: np.ndarray) -> float:
    """Of one channel, from blocks."""
    from scipy.ndimage import correlate1d

    margin = len(DIFFERENCES) // 2
    detail = correlate1d(correlate1d(plane, DIFFERENCES, 0), DIFFERENCES, 1)
    inner = (slice(margin, -margin),) * 2
    detail, plane = detail[inner], plane[inner]
    side = _side(plane)
    power, mean = _blocks(detail**2, side), _blocks(plane, side)
    room = np.full_like(mean, np.inf)
    ends = []
    if 0 <= plane.min() <= 0.002:
        room, ends = np.minimum(room, mean), [0.0]
    if 0.998 <= plane.max() <= 1:
        room, ends = np.minimum(room, 1 - mean), [*ends, 1.0]
    whole = _blocks(np.isin(plane, ends), side) < 1 - WHOLE
    if not whole.any():
        return _cut_off(plane, ends)
    power, room = power[whole], room[whole]
    sigma = float(np.sqrt(np.median(power)))
    deep = float(np.quantile(room, 1 - DEEP)) if np.isfinite(room).all() else np.inf
    for _ in range(ITERATIONS):
        seen = power[room >= min(ROOM * sigma, deep)]
        found = _of_quantile(seen, side**2 / CORRELATED / 2)
        if abs(found - sigma) <= 0.005 * sigma:
            return found
        sigma = found
    return sigma


def _cut_off(plane: np.ndarray, ends: Sequence[float]) -> float:
    """Of one channel all of whose blocks reach black or white, where noise was cut off: from how
    many pixels of a block lie off that and how far (Tobin 1958, for one mean). Blocks that lie on
    it as a whole, or nearly, don't count.
    """
    from scipy.special import ndtri

    found = [np.zeros(1)]
    for end in ends:
        off = abs(plane - end)
        step = off[off > 0].min(initial=1.0)  # less than half of one is rounded off too
        off = np.maximum(off - step / 2, 0)
        share, mean = _blocks(off > 0, LEAST_ROOM), _blocks(off, LEAST_ROOM)
        some = (share > SOME) & (share < 1 - SOME)
        share, mean = share[some], mean[some]
        depth = ndtri(share)  # of the mean, in standard deviations
        density = np.exp(-(depth**2) / 2) / (2 * np.pi) ** 0.5
        found.append((mean / (density + depth * share)) ** 2)
    seen = np.concatenate(found)[1:]
    return _of_quantile(seen, LEAST_ROOM**2 / CENSORED / 2) if len(seen) else 0.0


def _of_quantile(power: np.ndarray, half: float) -> float:
    """The noise of blocks of which the quietest hold nothing else; ``half`` the degrees of freedom
    of one.
    """
    # the quantile that the interpolated rank has on average, and the power of noise at it
    at = (1 + (len(power) - 1) * QUIET) / (len(power) + 1)
    return float(np.sqrt(np.quantile(power, QUIET) * half / gammaincinv(half, at)))


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
