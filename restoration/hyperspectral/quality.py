"""Quality of hyperspectral cubes ``(B, H, W)`` against a reference, values in [0, 1]; entries that
are not finite count nowhere.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

# (B, H, W)
Image = Tensor | np.ndarray


def _cubes(cube: Image, reference: Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cube, reference = (
        np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v, dtype=np.float64)
        for v in (cube, reference)
    )
    if cube.shape != reference.shape or cube.ndim != 3 or cube.size == 0:
        raise ValueError(
            f"both cubes must be (B, H, W) of one shape; got {cube.shape} and {reference.shape}"
        )
    valid = np.isfinite(cube) & np.isfinite(reference)
    if not valid.any():
        raise ValueError("the cubes have no finite entries in common")
    return np.where(valid, cube, 0), np.where(valid, reference, 0), valid


def mpsnr(cube: Image, reference: Image, highest: float = 100.0) -> float:
    """Mean over bands of the PSNR with peak 1, in dB. A band without error would make the mean
    infinite: none counts above ``highest``.
    """
    cube, reference, valid = _cubes(cube, reference)
    used = valid.any((1, 2))
    mse = ((cube - reference) ** 2).sum((1, 2))[used] / valid.sum((1, 2))[used]
    return float(np.mean(np.minimum(-10 * np.log10(np.maximum(mse, 1e-300)), highest)))


def mssim(cube: Image, reference: Image) -> float:
    """Mean over bands of the SSIM with peak 1 (Wang et al. 2004: Gaussian window, 1.5); constant
    bands are defined by its constants.

    Entries that are missing count as equal.

    Raises:
        ValueError: fewer than 11 x 11 pixels.
    """
    from restoration.metrics import ssim

    cube, reference, _ = _cubes(cube, reference)
    return float(np.mean([ssim(a[None], b[None]) for a, b in zip(cube, reference, strict=True)]))


def sam(cube: Image, reference: Image) -> float:
    """Spectral angle mapper: mean over pixels of the angle between spectra, in radians.

    Two zero spectra have no angle between them; a zero and another one are orthogonal.
    """
    cube, reference, valid = _cubes(cube, reference)
    norms = np.linalg.norm(cube, axis=0), np.linalg.norm(reference, axis=0)
    zero = (norms[0] == 0, norms[1] == 0)
    u, v = (c / np.where(z, 1, n) for c, n, z in zip((cube, reference), norms, zero, strict=True))
    # the arc cosine loses half the digits near 0, where angles of restored spectra lie; this form
    # does not (Kahan)
    angle = 2 * np.arctan2(np.linalg.norm(u - v, axis=0), np.linalg.norm(u + v, axis=0))
    angle = np.where(zero[0] & zero[1], 0, np.where(zero[0] | zero[1], np.pi / 2, angle))
    return float(angle[valid.any(0)].mean())


def ergas(cube: Image, reference: Image, ratio: float = 1.0) -> float:
    """``100 ratio sqrt(mean_b (RMSE_b / mean_b)^2)`` (Wald 2000); ``ratio`` of resolutions is 1 for
    denoising.

    Bands whose reference has the mean 0 have no relative error and are left out.

    Raises:
        ValueError: every band is like that.
    """
    cube, reference, valid = _cubes(cube, reference)
    count = np.maximum(valid.sum((1, 2)), 1)
    mean = reference.sum((1, 2)) / count
    mse = ((cube - reference) ** 2).sum((1, 2)) / count
    used = mean != 0
    if not used.any():
        raise ValueError("ERGAS is relative to the bands' means, and all of them are 0")
    return float(100 * ratio * np.sqrt(np.mean(mse[used] / mean[used] ** 2)))


def cube_quality(cube: Image, reference: Image) -> dict[str, float]:
    """All four: ``mpsnr`` (dB), ``mssim``, ``sam`` (radians), ``ergas``."""
    return {
        name: f(cube, reference)
        for name, f in (("mpsnr", mpsnr), ("mssim", mssim), ("sam", sam), ("ergas", ergas))
    }
