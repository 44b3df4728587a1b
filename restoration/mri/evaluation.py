"""Image quality of reconstructed magnitudes: fastMRI's volume-level figures, and slice-level ones
under their own names.

The two are not comparable: a slice's own maximum as data range raises or lowers PSNR by several dB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

# (slices, H, W)
Volume = Tensor | np.ndarray


@dataclass(frozen=True)
class Quality:
    """Figures of one volume or slice: ``psnr`` in dB, ``ssim`` in [-1, 1], ``nmse`` >= 0."""

    psnr: float
    ssim: float
    nmse: float


def volume_quality(reconstruction: Volume, truth: Volume) -> Quality:
    """fastMRI's evaluation of one volume (Zbontar et al. 2018, section 6.2, and ``evaluate.py``).

    Both are cropped to a centred square of the truth's width; NMSE and PSNR run over the whole
    volume, SSIM is the mean over slices (uniform 7 x 7 window, sample covariance); the data range
    is the maximum of the cropped true volume throughout.

    Args:
        reconstruction, truth: magnitudes ``(slices, H, W)``.

    Raises:
        ValueError: shapes that differ or are too small for the window, values that are not finite,
            or a truth of zeros.
    """
    x, y = _pair(reconstruction, truth)
    width = y.shape[-1]
    return _quality(_centre_crop(x, width), _centre_crop(y, width))


def slice_quality(reconstruction: Volume, truth: Volume) -> list[Quality]:
    """The same figures for each slice alone, with that slice's own maximum as data range; no
    cropping.
    """
    x, y = _pair(reconstruction, truth)
    return [_quality(a[None], b[None]) for a, b in zip(x, y, strict=True)]


def _quality(x: np.ndarray, y: np.ndarray) -> Quality:
    from skimage.metrics import structural_similarity

    peak, error = float(y.max()), float(np.mean((x - y) ** 2))
    if peak <= 0:
        raise ValueError("the true image holds no signal: PSNR and SSIM are not defined")
    psnr = float("inf") if error == 0 else 10 * np.log10(peak**2 / error)
    ssim = np.mean(
        [structural_similarity(b, a, data_range=peak) for a, b in zip(x, y, strict=True)]
    )
    return Quality(float(psnr), float(ssim), float(np.sum((x - y) ** 2) / np.sum(y**2)))


def _centre_crop(x: np.ndarray, side: int) -> np.ndarray:
    height, width = x.shape[-2:]
    if side > height:
        return x
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]


def _pair(reconstruction: Volume, truth: Volume) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(v, dtype=np.float64) for v in (reconstruction, truth))
    if x.shape != y.shape or x.ndim != 3 or x.size == 0:
        raise ValueError(
            f"both volumes must be (slices, H, W) of one shape; got {x.shape} and {y.shape}"
        )
    if min(x.shape[1:]) < 7:
        raise ValueError(
            f"SSIM needs slices of at least 7 x 7 pixels; got {x.shape[1]} x {x.shape[2]}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the volumes hold NaN or infinite values")
    return x, y


def coverage(
    mean: Volume, spread: Volume, truth: Volume, level: float = 0.9, where: Volume | None = None
) -> float:
    """Share of pixels whose true value lies in ``mean +- z spread``, z the Gaussian quantile of
    ``level``.

    Args:
        where: pixels that count (bool); all by default.
    """
    from statistics import NormalDist

    z = NormalDist().inv_cdf(0.5 + level / 2)
    mean, spread, truth = (np.asarray(v, dtype=np.float64) for v in (mean, spread, truth))
    inside = np.abs(truth - mean) <= z * spread
    return float(inside.mean() if where is None else inside[np.asarray(where, bool)].mean())
