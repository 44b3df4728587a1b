"""From the matrix that k-space was sampled on to the one that the header asks for."""

from __future__ import annotations

import numpy as np


def regrid(
    images: np.ndarray, size: tuple[int, int], extent: tuple[float, float] | None = None
) -> np.ndarray:
    """Images ``(..., H, W)`` on the matrix ``size`` about the same centre.

    An axis of ``n`` pixels, of which ``extent`` of the field of view is wanted in ``m`` pixels, is
    cropped (or filled with zeros) where pixels keep their size: oversampling. Else the image's
    Fourier series is evaluated at the new pixels' places, without the frequencies that these can't
    hold. That is what filling k-space with zeros does, for any ratio.

    Args:
        images: real or complex; real ones are interpolated as such.
        extent: share of the field of view along rows and columns; None: pixels keep their size.
    """
    for axis, m in zip((-2, -1), size, strict=True):
        n = images.shape[axis]
        share = m / n if extent is None else extent[axis]
        images = _axis(np.moveaxis(images, axis, -1), m, share)
        images = np.moveaxis(images, -1, axis)
    return np.ascontiguousarray(images)


def _axis(x: np.ndarray, m: int, share: float) -> np.ndarray:
    n = x.shape[-1]
    fine = m / share  # pixels of the new size in the whole field of view
    if abs(fine - n) < 0.5:
        if m <= n:
            first = (n - m) // 2
            return x[..., first : first + m]
        first = (m - n) // 2
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(first, m - n - first)])
    places = (np.arange(m) - m // 2) * share / m
    k = np.arange(n) - n // 2
    series = np.exp(2j * np.pi * np.outer(k, places)) * (np.abs(places) <= 0.5)
    series[np.abs(k) > fine / 2] = 0
    if n % 2 == 0:  # the highest frequency stands for both its signs
        series[0] = series[0].real
    spectrum = np.fft.fftshift(
        np.fft.fft(np.fft.ifftshift(x.astype(np.complex128), -1), axis=-1), -1
    )
    found = spectrum @ series / n
    return (found if np.iscomplexobj(x) else found.real).astype(x.dtype)
