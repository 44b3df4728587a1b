"""A first split of a B-mode frame into tissue and haze by local power subtraction; posterior
sampling starts from it.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from restoration.ultrasound.bmode import DYNAMIC_RANGE, amplitude_of, find_sector

BLOCK = 16  # pixels; the haze floor is found on such blocks
SMOOTHING = (
    0.0175  # standard deviation of the local power's window, as a share of the frame's longer side
)
FACTOR = 2.5  # of the floor's amplitude


def haze_floor(image: np.ndarray, window: float = 0.45, share: float = 0.3) -> np.ndarray:
    """Grey level of the haze at each pixel ``(H, W)``: the ``share`` quantile of the frame around
    it, smoothed.

    Haze is what even the dark part of a neighbourhood does not fall below (minimum statistics,
    Martin 2001). A neighbourhood without any dark part, tissue alone, is mistaken for haze.

    Args:
        image: ``(H, W)`` in [0, 1].
        window: side of the neighbourhood as a share of the frame's longer side.
        share: of the neighbourhood that is taken to be without tissue.
    """
    sector = find_sector(image)
    inside = np.ones(image.shape, bool) if sector is None else sector.inside()
    smooth = ndimage.gaussian_filter(image, 4)
    rows, columns = (
        np.arange(BLOCK // 2, n, BLOCK) if n > BLOCK else np.array([n // 2]) for n in image.shape
    )
    reach = max(BLOCK, round(window * max(image.shape) / 2))
    floor = np.zeros((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            place = (
                slice(max(0, row - reach), row + reach, 4),
                slice(max(0, column - reach), column + reach, 4),
            )
            values = smooth[place][inside[place]]
            floor[i, j] = np.quantile(values, share) if values.size > 32 else 0.0
    where = np.meshgrid(
        (np.arange(image.shape[0]) - rows[0]) / BLOCK,
        (np.arange(image.shape[1]) - columns[0]) / BLOCK,
        indexing="ij",
    )
    return ndimage.map_coordinates(
        ndimage.gaussian_filter(floor, 1, mode="nearest"), where, order=1, mode="nearest"
    )


def power_split(
    image: np.ndarray, strength: float = 1.0, dynamic_range: float = DYNAMIC_RANGE
) -> np.ndarray:
    """Tissue ``(H, W)`` in [0, 1]: ``image`` with the Wiener-like gain ``1 - (2.5 strength)^2
    P_haze/P`` on its power, where P is local.

    P is a mean over some grains of the haze's speckle, so that its peaks are not kept as tissue.
    The factor (over-subtraction, Berouti et al. 1979) is for a floor that lies below the haze's
    mean and for what P still varies. What is taken off is the haze.
    """
    image = np.asarray(image, np.float64)
    power = ndimage.gaussian_filter(
        amplitude_of(image, dynamic_range) ** 2, SMOOTHING * max(image.shape)
    )
    floor = amplitude_of(haze_floor(image), dynamic_range) ** 2
    gain = 1 - (FACTOR * strength) ** 2 * floor / np.maximum(power, 1e-12)
    lowest = 10 ** (-dynamic_range / 10)
    return np.clip(image + 10 * np.log10(np.maximum(gain, lowest)) / dynamic_range, 0, 1)
