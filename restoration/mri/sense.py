"""Cartesian MRI with one or many receive coils: ``y = M F S x`` (Pruessmann et al. 2001, "SENSE").

Images and data are complex; networks and corrections see them as two real channels: ``(B, 2, H,
W)`` real and imaginary part, ``(B, 2 coils, H, W)`` all real parts, then all imaginary parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from restoration.operators.linear import LinearOperator, conjugate_gradient

AXES = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Centred orthonormal 2D FFT, fastMRI's: zero frequency at ``(H // 2, W // 2)``."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, AXES), norm="ortho"), AXES)


def ifft2c(kspace: Tensor) -> Tensor:
    """Inverse of :func:`fft2c`."""
    return torch.fft.fftshift(
        torch.fft.ifft2(torch.fft.ifftshift(kspace, AXES), norm="ortho"), AXES
    )


def normalise_maps(maps: Tensor) -> Tensor:
    """Sensitivities ``(coils, H, W)`` scaled to ``sum_j |S_j|^2 = 1``; 0 where their norm is below
    a thousandth of its maximum. Maps that are scaled already are left as they are, to the bit.

    Only products of sensitivities and image are measured, so a scale of the maps is a shading of
    the image: with norm 1 the image is the one that all coils see together, as with ESPIRiT.

    Raises:
        ValueError: maps of another rank, real or not finite.
    """
    _check_maps(maps)
    norm = maps.abs().square().sum(0).sqrt()
    if torch.logical_or(norm == 0, (norm - 1).abs() < 1e-5).all():
        return maps
    return torch.where(
        norm > 1e-3 * norm.max(), maps / norm.clamp(min=1e-30), torch.zeros_like(maps)
    )


def _check_maps(maps: Tensor) -> None:
    if maps.ndim != 3 or not maps.is_complex() or not torch.isfinite(maps).all():
        raise ValueError(
            f"maps must be complex, finite, (coils, H, W); got {maps.dtype} of shape"
            f" {tuple(maps.shape)}"
        )


def to_channels(z: Tensor) -> Tensor:
    """Complex ``(B, N, H, W)`` to real ``(B, 2 N, H, W)``."""
    return torch.cat([z.real, z.imag], dim=1)


def to_complex(x: Tensor) -> Tensor:
    """Real ``(B, 2 N, H, W)`` to complex ``(B, N, H, W)``."""
    return torch.complex(*x.chunk(2, dim=1))


class Sense(LinearOperator):
    """``A x = M F (S_j x)_j``: sampled k-space of every coil; unsampled points are measured as
    zeros.

    Args:
        mask: ``(H, W)``, or ``(W,)`` for whole columns; 1 = sampled. Zero frequency in the centre.
        maps: complex sensitivities ``(coils, H, W)``.
        tolerance: relative residual at which conjugate gradients stop; ten times the machine
            epsilon by default.
        max_iterations: of conjugate gradients.

    Raises:
        ValueError: shapes that don't fit, mask values other than 0 and 1, a mask that samples
            nothing, maps that are not finite.
    """

    def __init__(
        self,
        mask: Tensor,
        maps: Tensor,
        *,
        tolerance: float | None = None,
        max_iterations: int = 200,
    ):
        _check_maps(maps)
        self.mask, self.maps = sampling_mask(mask, tuple(maps.shape[1:])), maps
        self.tolerance, self.max_iterations = tolerance, max_iterations
        # with the image's centre at index 0 each application saves two shifts per coil
        self._mask = torch.fft.ifftshift(self.mask, AXES)
        self._maps = torch.fft.ifftshift(maps, AXES)

    @property
    def coils(self) -> int:
        """Number of receive coils."""
        return len(self.maps)

    def A(self, x: Tensor) -> Tensor:
        z = self._expand(torch.fft.ifftshift(_complex(x), AXES))
        k = self._mask.to(x) * torch.fft.fft2(z, norm="ortho")
        return to_channels(torch.fft.fftshift(k, AXES))

    def A_adjoint(self, y: Tensor) -> Tensor:
        k = self._mask.to(y) * torch.fft.ifftshift(to_complex(y), AXES)
        z = self._combine(torch.fft.ifft2(k, norm="ortho"))
        return to_channels(torch.fft.fftshift(z, AXES))

    def normal(self, x: Tensor) -> Tensor:
        """``A^H A x``."""
        return to_channels(
            torch.fft.fftshift(self._normal(torch.fft.ifftshift(_complex(x), AXES)), AXES)
        )

    def A_dagger(self, y: Tensor) -> Tensor:
        return self._solve(self.A_adjoint(y), 0.0, None)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        return self._solve(z / gamma + self.A_adjoint(y), 1 / gamma, z)

    def sense(self, y: Tensor, lam: float, iterations: int) -> Tensor:
        """``argmin_x |A x - y|^2 + lam |x|^2``, at most ``iterations`` of conjugate gradients from
        zero ("CG-SENSE").
        """
        return self._solve(self.A_adjoint(y), lam, None, iterations)

    def _solve(
        self, b: Tensor, lam: float, start: Tensor | None, iterations: int | None = None
    ) -> Tensor:
        shift = torch.fft.ifftshift
        x = conjugate_gradient(
            lambda v: self._normal(v) + lam * v,
            shift(_complex(b), AXES),
            start=None if start is None else shift(_complex(start), AXES),
            max_iterations=self.max_iterations if iterations is None else iterations,
            tolerance=self.tolerance,
        )
        return to_channels(torch.fft.fftshift(x, AXES))

    def _normal(self, z: Tensor) -> Tensor:
        k = torch.fft.fft2(self._expand(z), norm="ortho")
        return self._combine(torch.fft.ifft2(self._mask.to(k.real) * k, norm="ortho"))

    def _expand(self, z: Tensor) -> Tensor:
        return self._maps.to(z) * z

    def _combine(self, z: Tensor) -> Tensor:
        return (self._maps.to(z).conj() * z).sum(1, keepdim=True)


class SingleCoil(LinearOperator):
    """``A x = M F x``: one coil that is equally sensitive everywhere; all of it in closed form.

    Args:
        mask: ``(H, W)``, 1 = sampled. Zero frequency in the centre.

    Raises:
        ValueError: as for :class:`Sense`.
    """

    coils = 1

    def __init__(self, mask: Tensor):
        self.mask = sampling_mask(mask, tuple(mask.shape))

    def A(self, x: Tensor) -> Tensor:
        return to_channels(self.mask.to(x) * fft2c(_complex(x)))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return to_channels(ifft2c(self.mask.to(y) * to_complex(y)))

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        weight = gamma * self.mask.to(z)
        return to_channels(ifft2c((fft2c(_complex(z)) + weight * to_complex(y)) / (1 + weight)))

    def sense(self, y: Tensor, lam: float, iterations: int) -> Tensor:
        """``argmin_x |A x - y|^2 + lam |x|^2``: the zero-filled image, scaled."""
        return self.A_adjoint(y) / (1 + lam)

    def spectral_filter(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``V f(S) V^H x``: frequencies are the singular directions, the mask holds their
        values.
        """
        return to_channels(ifft2c(f(self.mask.to(x)) * fft2c(_complex(x))))


def sampling_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """``(H, W)`` float from ``(H, W)`` or ``(W,)``, checked.

    Raises:
        ValueError: another shape, values other than 0 and 1, a mask that samples nothing.
    """
    if len(size) != 2 or tuple(mask.shape) not in (size, size[1:]):
        raise ValueError(
            f"mask must be (H, W) or (W,) for images of (H, W) = {size}; got {tuple(mask.shape)}"
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("a sampling mask holds only 0 and 1")
    if not mask.any():
        raise ValueError("the mask samples nothing: no k-space point is measured")
    return mask.float().expand(size)


def cartesian(
    mask: Tensor, maps: Tensor | None, size: tuple[int, ...], **settings: Any
) -> Sense | SingleCoil:
    """The operator for coil maps, or for one coil where there are none; ``settings`` are those of
    :class:`Sense`.
    """
    return SingleCoil(sampling_mask(mask, size)) if maps is None else Sense(mask, maps, **settings)


def _complex(x: Tensor) -> Tensor:
    if x.ndim != 4 or x.shape[1] != 2:
        raise ValueError(
            f"complex images are (B, 2, H, W), real and imaginary part; got {tuple(x.shape)}"
        )
    return to_complex(x)
