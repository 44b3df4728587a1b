"""Coil sensitivities from the fully sampled centre of k-space: ESPIRiT. Uecker et al. 2014 (MRM
71:990).
"""

from __future__ import annotations

import torch
from torch import Tensor

from restoration.mri.sense import AXES, ifft2c

MINIMUM_REGION = 6


def calibration_region(mask: Tensor) -> tuple[slice, slice]:
    """The largest centred rectangle of a sampling mask ``(H, W)`` that is fully sampled; empty
    slices if the centre is not sampled.

    Grown from the centre by whole rows and columns in turn, so it is maximal, not the largest of
    all.
    """
    height, width = mask.shape
    sampled = mask > 0
    top = bottom = height // 2
    left = right = width // 2
    if not sampled[top, left]:
        return slice(top, top), slice(left, left)
    bottom, right = bottom + 1, right + 1
    grown = True
    while grown:
        grown = False
        if top > 0 and sampled[top - 1, left:right].all():
            top, grown = top - 1, True
        if bottom < height and sampled[bottom, left:right].all():
            bottom, grown = bottom + 1, True
        if left > 0 and sampled[top:bottom, left - 1].all():
            left, grown = left - 1, True
        if right < width and sampled[top:bottom, right].all():
            right, grown = right + 1, True
    return slice(top, bottom), slice(left, right)


def _calibration(kspace: Tensor, mask: Tensor, width: int) -> Tensor:
    rows, columns = calibration_region(mask)
    found = (rows.stop - rows.start, columns.stop - columns.start)
    if min(found) < MINIMUM_REGION:
        raise ValueError(
            f"k-space has no calibration region: its fully sampled centre is {found[0]} x"
            f" {found[1]} points (rows, columns) and sensitivities need at least {MINIMUM_REGION} x"
            f" {MINIMUM_REGION}; give the coil maps"
        )

    def middle(part: slice, size: int) -> slice:
        n = min(part.stop - part.start, width)
        # around the zero frequency, as far as the region allows
        start = min(max(size // 2 - n // 2, part.start), part.stop - n)
        return slice(start, start + n)

    return kspace[:, middle(rows, kspace.shape[1]), middle(columns, kspace.shape[2])]


def espirit(
    kspace: Tensor,
    mask: Tensor,
    *,
    calibration_width: int = 24,
    kernel_width: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    max_iterations: int = 100,
) -> Tensor:
    """One set of sensitivities ``(coils, H, W)`` with ``sum_j |S_j|^2 = 1`` inside the object and 0
    outside.

    The calibration matrix holds every kernel-sized patch of the centre as a row; its dominant right
    singular vectors span the signals that coils can give. Per pixel, the projection on that span is
    a coils x coils matrix, whose eigenvector of eigenvalue 1 is the sensitivity. Parameters and
    thresholds are those of sigpy and BART. The phase that is left free is set so that the strongest
    combination of coils (first singular vector over the centre) sees a real positive sensitivity:
    it is then smooth wherever there is signal, which the phase of the first coil, sigpy's choice,
    is not.

    Args:
        kspace: complex ``(coils, H, W)``, zero frequency in the centre.
        mask: ``(H, W)``, 1 = sampled.
        calibration_width: largest side of the centre that is used.
        kernel_width: side of the patches; at most half of the region's shorter side is used, so
            that there are enough of them.
        threshold: singular values below this share of the largest count as noise.
        crop: pixels with a smaller eigenvalue have no signal.
        max_iterations: of the power method.

    Raises:
        ValueError: no calibration region large enough, or one that holds only zeros.
    """
    calibration = _calibration(kspace, mask, calibration_width)
    kernel_width = min(kernel_width, min(calibration.shape[1:]) // 2)
    coils, (height, width) = len(kspace), kspace.shape[1:]
    # (coils, a, b, k, k)
    patches = calibration.unfold(1, kernel_width, 1).unfold(2, kernel_width, 1)
    rows = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel_width**2)
    if not rows.abs().any():
        raise ValueError("the calibration region holds only zeros")
    # right singular vectors through the smaller normal matrix; double precision makes up for the
    # squared condition number
    values, vectors = torch.linalg.eigh(rows.to(torch.complex128).mH @ rows.to(torch.complex128))
    keep = values.clamp(min=0).sqrt() > threshold * values[-1].clamp(min=0).sqrt()
    kernels = vectors[:, keep].mH.reshape(-1, coils, kernel_width, kernel_width).to(kspace.dtype)
    projection = _projection(kernels, (height, width))
    reference = torch.linalg.svd(calibration.reshape(coils, -1), full_matrices=False).U[:, 0]
    maps, eigenvalue = _dominant(projection, reference, max_iterations)
    phase = torch.einsum("c,chw->hw", reference.conj(), maps)
    maps = maps * torch.where(
        phase.abs() > 0, phase.conj() / phase.abs().clamp(min=1e-30), torch.ones_like(phase)
    )
    return maps * (eigenvalue > crop)


def _projection(kernels: Tensor, size: tuple[int, int]) -> Tensor:
    """Per pixel ``sum_k g_k g_k^H`` of the kernels' images: ``(H, W, coils, coils)``, eigenvalues
    in [0, 1].
    """
    coils, side = kernels.shape[1], kernels.shape[-1]
    # the product of two kernels' images is the image of their correlation: 2k - 1 points, however
    # many kernels there are
    small = (2 * side - 1,) * 2
    spectra = torch.fft.fft2(kernels, s=small)
    pairs = torch.einsum("kahw,kbhw->abhw", spectra, spectra.conj())
    # lags -(k-1) .. k-1, zero lag in the middle
    correlation = torch.fft.fftshift(torch.fft.ifft2(pairs), AXES)
    out = torch.empty(*size, coils, coils, dtype=kernels.dtype)
    for a in range(coils):
        padded = correlation.new_zeros(coils - a, *size)
        _add_centred(padded, correlation[a, a:])
        image = ifft2c(padded) * (size[0] * size[1]) ** 0.5 / side**2
        out[..., a, a:] = image.permute(1, 2, 0)
        out[..., a:, a] = image.permute(1, 2, 0).conj()
    return out


def _add_centred(target: Tensor, block: Tensor) -> None:
    """Add ``block (n, h, w)``, whose middle is lag zero, around the zero frequency of ``target``;
    lags wrap where it is smaller.
    """
    height, width = target.shape[1:]
    middle = block.shape[-1] // 2
    rows = (torch.arange(block.shape[1]) - middle + height // 2) % height
    columns = (torch.arange(block.shape[2]) - middle + width // 2) % width
    flat = (rows[:, None] * width + columns).flatten()
    target.view(len(target), -1).index_add_(1, flat, block.reshape(len(block), -1).to(target))


def _dominant(matrix: Tensor, start: Tensor, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue ``(H, W)`` and its unit eigenvector ``(n, H, W)`` of Hermitian matrices
    ``(H, W, n, n)``: power method.
    """
    matrix = matrix.permute(2, 3, 0, 1).contiguous()
    v = start[:, None, None].expand(-1, *matrix.shape[2:])
    # a start orthogonal to the wanted vector would never leave: mix in a little of everything
    v = v + 0.1 * matrix.sum(1) / len(matrix)
    value = torch.zeros(matrix.shape[2:])
    for _ in range(max_iterations):
        w = (matrix * v).sum(1)  # pixels last: batches of tiny matrix products are ten times slower
        new = w.norm(dim=0)
        v = w / new.clamp(min=1e-30)
        if bool((new - value).abs().max() < 1e-7):
            break
        value = new
    return v, new


def rss(images: Tensor) -> Tensor:
    """Root of the sum of squares over coils ``(..., coils, H, W)``: a magnitude image ``(..., H,
    W)``.
    """
    return images.abs().square().sum(-3).sqrt()


def mvue(kspace: Tensor, maps: Tensor) -> Tensor:
    """``S^H F^H y / |S|^2`` for fully sampled data: the complex image of least variance under white
    noise; 0 outside the maps.

    Args:
        kspace, maps: complex ``(coils, H, W)``.
    """
    power = maps.abs().square().sum(0)
    image = (maps.conj() * ifft2c(kspace)).sum(0)
    return torch.where(power > 0, image / power.clamp(min=1e-12), torch.zeros_like(image))
