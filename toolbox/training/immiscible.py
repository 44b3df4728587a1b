"""Immiscible noise: within a batch, every picture gets a noise that lies near (Li et al. 2024,
"Immiscible diffusion").
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def immiscible_noise(images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The same noises in another order: the linear assignment of least total squared distance to
    the images.

    ``|x_i - e_j|^2`` differs from ``-2 <x_i, e_j>`` by what no reordering changes, so units and
    offset of the images do not matter: only which noise points the image's way. As the noises are
    permuted, as a whole they stay what was drawn. That is not so for the released variant that
    draws k noises for each image and keeps the nearest: near noises are short ones (mean square
    0.95 at 3072 dimensions and k = 64), and sampling then starts from longer ones than were trained
    on. The released code takes the distance, not its square, of both tensors scaled by 0.1, in half
    precision.

    Args:
        images, noise: ``(B, ...)`` of one shape.

    Raises:
        ValueError: shapes that differ.
    """
    if images.shape != noise.shape:
        raise ValueError(
            f"images and noise must be of one shape; got {images.shape} and {noise.shape}"
        )
    flat = [v.reshape(len(v), -1).astype(np.float64) for v in (images, noise)]
    return noise[linear_sum_assignment(-flat[0] @ flat[1].T)[1]]
