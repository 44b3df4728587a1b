"""SENSE in real numbers and matrix products, for graphs that know no complex type: ``y = M F S x``
with the DFT as two matrices.

ONNX has an operator DFT, but TensorRT does not run it, and ONNX Runtime's, of 320 x 320 on a CPU,
takes six times as long as the matrix products and errs by 7e-4 where they err by 2e-6. Nothing here
depends on the values: iterations are counted, not stopped by tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from restoration.mri.consistency import DOUBLINGS, STALLED
from restoration.mri.estimate import ITERATIONS
from restoration.operators.measurement import Measurement

# 1 / gamma of the proximal steps of :func:`restoration.mri.consistency.agree`
SHIFTS = tuple(2.0**-k for k in range(DOUBLINGS))


class RealSense:
    """The measurement, tensors in and out; a batch of slices, each with its own mask, maps and
    noise.

    Args:
        mask: ``(B, 1, H, W)``, 1 = sampled, zero frequency in the centre.
        maps: ``(B, 2 coils, H, W)``, all real parts, then all imaginary parts; None: one coil that
            is equally sensitive everywhere.
        iterations: of conjugate gradients. One coil needs 2: its normal map is a projection.
    """

    def __init__(self, mask: Tensor, maps: Tensor | None, iterations: int = 40):
        self.mask, self.iterations = mask[:, :, None], 2 if maps is None else iterations
        self.maps = None if maps is None else coil_pairs(maps)
        height, width = mask.shape[-2:]
        self.rows, self.columns = dft(height).to(mask), dft(width).to(mask)

    def A(self, x: Tensor) -> Tensor:
        """``(B, 2, H, W)`` to ``(B, coils, 2, H, W)``."""
        z = x[:, None] if self.maps is None else times(self.maps, x[:, None])
        return self.mask * both(self.rows, z, self.columns)

    def A_adjoint(self, y: Tensor) -> Tensor:
        z = both(self.rows.T, self.mask * y, self.columns.T)
        if self.maps is not None:
            z = times(self.maps, z, conjugate=True)
        return z.sum(1)

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.solve(self.A_adjoint(y), 0.0, self.iterations)

    def normal(self, x: Tensor) -> Tensor:
        return self.A_adjoint(self.A(x))

    def solve(self, b: Tensor, shift: Tensor | float, iterations: int) -> Tensor:
        """``(A^H A + shift) x = b`` by conjugate gradients from zero."""
        x, r, p = torch.zeros_like(b), b, b
        rr = energy(r)
        goal = (10 * torch.finfo(b.dtype).eps) ** 2 * rr
        for _ in range(iterations):
            q = self.normal(p) + shift * p
            going = rr > goal
            step = torch.where(going, rr / dot(p, q).clamp(min=1e-30), torch.zeros_like(rr))
            x, r = x + step * p, r - step * q
            new = energy(r)
            p = r + torch.where(going, new / rr.clamp(min=1e-30), torch.zeros_like(rr)) * p
            rr = new
        return x

    def agree(self, x: Tensor, y: Tensor, sigma: Tensor | None) -> Tensor:
        """:func:`restoration.mri.consistency.agree`: exact data (``sigma`` None), or the first
        weight whose residual is the noise's or hardly less than the one before.

        All weights share one Krylov space, so all their solutions come from the iterations of one.
        """
        gap = y - self.A(x)
        b = self.A_adjoint(gap)
        if sigma is None:
            return x + self.solve(b, 0.0, self.iterations)
        moves = self._shifted(b)
        entries = 2 * y.shape[1] * self.mask.sum((1, 2, 3, 4), keepdim=True)[:, 0]
        limit = sigma**2 * entries
        chosen, open_ = torch.zeros_like(x), torch.ones_like(limit)
        candidates = [torch.zeros_like(x), *moves]
        before = torch.full_like(limit, torch.inf)
        for k, move in enumerate(candidates):
            left = (
                (gap - self.A(move) if k else gap).square().sum((1, 2, 3, 4))[:, None, None, None]
            )
            stops = ((left <= limit) | (left > (1 - STALLED) * before)).to(x)
            take = open_ * (stops if k < len(candidates) - 1 else torch.ones_like(stops))
            chosen, open_, before = chosen + take * move, open_ * (1 - take), left
        return x + chosen

    def prox_l2(self, x: Tensor, y: Tensor, gamma: Tensor | float) -> Tensor:
        """``argmin_z gamma |A z - y|^2 + |z - x|^2`` with one ``gamma (B, 1, 1, 1)`` per sample."""
        return x + self.solve(self.A_adjoint(y - self.A(x)), 1 / gamma, self.iterations)

    def _shifted(self, b: Tensor) -> list[Tensor]:
        """``(A^H A + s) x = b`` for each of SHIFTS: conjugate gradients for the last, recurrences
        for the others (Jegerlehner 1996).
        """
        deltas = torch.tensor([s - SHIFTS[-1] for s in SHIFTS], dtype=b.dtype).view(-1, 1, 1, 1, 1)
        x = torch.zeros_like(b).expand(len(SHIFTS), *b.shape)
        directions, r, p = b.expand_as(x), b, b
        rr = energy(r)
        goal = (10 * torch.finfo(b.dtype).eps) ** 2 * rr
        one = torch.ones_like(rr)
        last_step, turn = one, torch.zeros_like(rr)
        ratio, zeta = one.expand(len(SHIFTS), *one.shape), one.expand(len(SHIFTS), *one.shape)
        for _ in range(self.iterations):
            q = self.normal(p) + SHIFTS[-1] * p
            going = rr > goal
            step = torch.where(going, rr / dot(p, q).clamp(min=1e-30), torch.zeros_like(rr))
            below = step * turn * (1 - ratio) + last_step * (1 + deltas * step)
            ratio = torch.where(going, last_step / below, torch.ones_like(ratio))
            x = x + step * ratio * directions
            r = r - step * q
            new = energy(r)
            turn = torch.where(going, new / rr.clamp(min=1e-30), torch.zeros_like(rr))
            zeta = zeta * ratio
            directions = zeta * r + turn * ratio**2 * directions
            p, rr, last_step = r + turn * p, new, torch.where(going, step, one)
        return list(x.unbind(0))


@dataclass(frozen=True)
class RealSlice:
    """Slices ``y (B, coils, 2, H, W)`` with noise ``sigma (B, 1, 1, 1)`` each; None: exact."""

    operator: RealSense
    y: Tensor
    sigma: Tensor | None

    @property
    def first(self) -> Tensor:
        """As :func:`restoration.mri.estimate.lift`."""
        zero_filled = self.zero_filled
        if self.operator.maps is None:
            return zero_filled
        power = zero_filled.square().sum(1, keepdim=True).mean((2, 3), keepdim=True)
        weight = (0.0 if self.sigma is None else self.sigma**2) / power.clamp(min=1e-12)
        return self.operator.solve(zero_filled, weight.clamp(min=1e-4), ITERATIONS)

    @property
    def zero_filled(self) -> Tensor:
        return self.operator.A_adjoint(self.y)

    @property
    def seen(self) -> Tensor | float:
        maps = self.operator.maps
        return 1.0 if maps is None else (maps.abs().sum((1, 2)) > 0).to(self.y)[:, None]

    @property
    def noise(self) -> Tensor | float:
        return 0.0 if self.sigma is None else self.sigma

    @property
    def measurement(self) -> Measurement:
        """Operator and data; the noise of each sample is this object's."""
        return Measurement(self.operator, self.y)

    def scaled(self, scale: Tensor) -> RealSlice:
        sigma = None if self.sigma is None else self.sigma / scale
        return RealSlice(self.operator, self.y / scale[:, None], sigma)

    def agree(self, x: Tensor) -> Tensor:
        return self.operator.agree(x, self.y, self.sigma)

    def pull(self, x: Tensor, variance: float) -> Tensor:
        if self.sigma is None or variance == math.inf:
            return self.operator.agree(x, self.y, None)
        return self.operator.prox_l2(x, self.y, variance / self.sigma.clamp(min=1e-12) ** 2)


def dft(length: int) -> Tensor:
    """The centred orthonormal DFT of pairs ``[real; imaginary]``: ``(2 length, 2 length)``,
    orthogonal.
    """
    n = torch.arange(length, dtype=torch.float64) - length // 2
    angle = 2 * torch.pi * torch.outer(n, n) / length
    cosine, sine = torch.cos(angle) / length**0.5, torch.sin(angle) / length**0.5
    return torch.cat([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)])


def both(rows: Tensor, z: Tensor, columns: Tensor) -> Tensor:
    """One matrix on the pairs of each column, the other on those of each row, of ``(B, coils, 2, H,
    W)``.
    """
    z = torch.cat((rows @ torch.cat((z[:, :, 0], z[:, :, 1]), -2)).chunk(2, -2), -1) @ columns.T
    return torch.stack(z.chunk(2, -1), 2)


def times(a: Tensor, b: Tensor, conjugate: bool = False) -> Tensor:
    """Complex product of pairs on axis 2; ``conjugate``: of the conjugate of ``a``."""
    (a_re, a_im), (b_re, b_im) = a.unbind(2), b.unbind(2)
    a_im = -a_im if conjugate else a_im
    return torch.stack([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], 2)


def coil_pairs(y: Tensor) -> Tensor:
    """``(B, 2 coils, H, W)``, real parts first, to ``(B, coils, 2, H, W)``."""
    return torch.stack(y.chunk(2, 1), 2)


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Inner products ``(B, 1, 1, 1)``."""
    return (u * v).sum((1, 2, 3), keepdim=True)


def energy(u: Tensor) -> Tensor:
    """Squared norms ``(B, 1, 1, 1)``."""
    return dot(u, u)
