"""How much noise a picture holds."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from restoration.metrics.fidelity import Image


def noise_level(image: Image) -> float:
    """Standard deviation of the white noise on ``(C, H, W)``, from the median of the finest
    diagonal Haar coefficients (Donoho & Johnstone 1994); fine texture counts as noise.

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
    height, width = (n // 2 * 2 for n in image.shape[1:])
    a, b, c, d = (image[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1))
    # a median of each channel's magnitudes, over that of a normal distribution
    return float(
        np.mean(np.median(np.abs(a - b - c + d).reshape(len(image), -1), axis=1))
        / 2
        / 0.6744897501960817
    )
