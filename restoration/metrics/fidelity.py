"""Image quality against a reference. PSNR and SSIM are scikit-image's, with the settings of the
SSIM paper.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

# (C, H, W)
Image = Tensor | np.ndarray


def pair_of(image: Image, reference: Image) -> tuple[np.ndarray, np.ndarray]:
    """Both images in double precision.

    Raises:
        ValueError: other than ``(C, H, W)`` of one shape.
    """
    image, reference = (
        np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v, dtype=np.float64)
        for v in (image, reference)
    )
    if image.shape != reference.shape or image.ndim != 3:
        raise ValueError(
            f"both images must be (C, H, W) of one shape; got {image.shape} and {reference.shape}"
        )
    return image, reference


def psnr(image: Image, reference: Image) -> float:
    """Peak signal-to-noise ratio in dB of ``(C, H, W)`` images in [0, 1] (peak 1); infinite for
    equal images.
    """
    from skimage.metrics import peak_signal_noise_ratio

    image, reference = pair_of(image, reference)
    if np.array_equal(image, reference):
        return float("inf")
    return float(peak_signal_noise_ratio(reference, image, data_range=1.0))


def ssim(image: Image, reference: Image) -> float:
    """Structural similarity in [-1, 1] of ``(C, H, W)`` images in [0, 1], mean over channels (Wang
    et al. 2004: Gaussian window, 1.5).

    Raises:
        ValueError: an image smaller than the 11 x 11 window.
    """
    from skimage.metrics import structural_similarity

    image, reference = pair_of(image, reference)
    if min(image.shape[1:]) < 11:
        raise ValueError(
            f"SSIM needs at least 11 x 11 pixels; got {image.shape[2]} x {image.shape[1]}"
        )
    return float(
        structural_similarity(
            reference,
            image,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
