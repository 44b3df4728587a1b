"""Partial Fourier: where one side of k-space was not scanned, its conjugate tells it.

An image whose phase ``phi`` is smooth is ``e^(i phi) r`` with a real ``r``, whose k-space is
conjugate symmetric (homodyne, Noll et al. 1991; POCS, Haacke et al. 1991). The phase comes from the
lines that were scanned on both sides of the centre; ``r`` is the real image that explains the data
best, of all coils at once, with a Gaussian prior whose variance is the local power of the
zero-filled image. What it has on the other side fills k-space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.mri.sense import Sense, SingleCoil, cartesian, to_channels, to_complex
from restoration.operators.linear import conjugate_gradient

# lines that one side lacks, as a share of the axis; lines that both sides need
LEAST_GAP, LEAST_CENTRE = 1 / 32, 8
ITERATIONS, TOLERANCE = 30, 1e-4
VIEW = 9  # side, in pixels, of the window that power is averaged over
FORETOLD = 0.25  # of the energy of lines that are known: how far the symmetry may be off


@dataclass(frozen=True)
class Side:
    """Which side of an axis was not scanned.

    Attributes:
        axis: 0: rows, 1: columns.
        reach: lines from the centre that were scanned on both sides.
        far: lines from the centre that were scanned on one side.
    """

    axis: int
    reach: int
    far: int


def missing_side(mask: Tensor) -> Side | None:
    """The side that a mask ``(H, W)`` leaves out, if it does: of one axis the sampled lines end
    much nearer to the centre on one side than on the other: by twice the widest gap within them.
    """
    found = []
    for axis in (0, 1):
        lines, n = torch.nonzero(mask.amax(1 - axis) > 0)[:, 0], mask.shape[axis]
        before, after = n // 2 - int(lines[0]), int(lines[-1]) - n // 2
        # the first line of an even number has no mirrored one
        near, far = sorted((min(before, (n - 1) // 2), after))
        # undersampled lines may end early on one side by chance
        gap = max(LEAST_GAP * n, 2 * int(lines.diff().max())) if len(lines) > 1 else n
        if far - near > gap and near >= LEAST_CENTRE:
            found.append(Side(axis, near, far))
    return max(found, key=lambda side: side.far - side.reach, default=None)


@dataclass(frozen=True)
class Completed:
    """K-space ``(coils, H, W)`` and mask ``(H, W)``, filled; ``phase (1, H, W)`` of the image, of
    size 1.
    """

    kspace: Tensor
    mask: Tensor
    phase: Tensor

    def real(self, image: Tensor) -> Tensor:
        """Images ``(B, 2, H, W)`` without what is not of that phase: noise, where the symmetry
        holds.
        """
        return to_channels((to_complex(image) * self.phase.conj()).real * self.phase)


def completed(kspace: Tensor, mask: Tensor, maps: Tensor | None, sigma: float) -> Completed | None:
    """K-space of a partial Fourier scan with noise ``sigma`` per real part, filled where the
    mirrored point was scanned; None for other scans.

    None also where the symmetry does not hold: the outer ones of the lines that were scanned on
    both sides are foretold from one side, with the phase of the inner ones, and compared.
    """
    side = missing_side(mask)
    if side is None:
        return None
    inner = Side(side.axis, side.reach // 2, side.far)
    lines = _distance(mask, side.axis) * (1 if _ends_early(mask, side.axis) else -1)
    hidden = mask * ((lines > inner.reach) & (lines <= side.reach))
    told = _filled(kspace * (1 - hidden), mask * (1 - hidden), maps, inner, sigma).kspace
    noise = 2 * sigma**2 * float(hidden.sum()) * len(kspace)
    energy = float((hidden * kspace).abs().square().sum()) - noise
    error = float((hidden * (told - kspace)).abs().square().sum()) - 2 * noise
    if not error < FORETOLD * energy:
        return None
    return _filled(kspace, mask, maps, side, sigma)


def _filled(
    kspace: Tensor, mask: Tensor, maps: Tensor | None, side: Side, sigma: float
) -> Completed:
    size = (int(mask.shape[0]), int(mask.shape[1]))
    operator, y = cartesian(mask, maps, size), to_channels(kspace[None])
    phase = smooth_phase(kspace, operator, side)

    def turned(data: Tensor) -> Tensor:
        return (to_complex(operator.A_adjoint(data)) * phase.conj()).real

    power = operator.A_adjoint(y).square().sum(1, keepdim=True)
    power = F.avg_pool2d(F.pad(power, (VIEW // 2,) * 4, mode="replicate"), VIEW, stride=1)
    # never nothing: what is darker than the noise is shrunk, not lost
    power = (power - 2 * sigma**2).clamp(min=max(1e-2 * sigma**2, 1e-8 * float(power.max())))
    size_of, variance = power.sqrt(), max(sigma**2, 1e-6 * float(power.mean()))

    def normal(q: Tensor) -> Tensor:
        seen = turned(operator.A(to_channels(size_of * q * phase)))
        return size_of * seen + variance * q

    q = conjugate_gradient(
        normal, size_of * turned(y), max_iterations=ITERATIONS, tolerance=TOLERANCE
    )
    image = to_channels(size_of * q * phase)
    told = to_complex(cartesian(torch.ones(size, device=mask.device), maps, size).A(image))[0]
    known = torch.maximum(mask, _mirrored(mask))
    return Completed(torch.where(mask > 0, kspace, told * known), known, phase[0])


def smooth_phase(kspace: Tensor, operator: Sense | SingleCoil, side: Side) -> Tensor:
    """``e^(i phi)`` of the lines that were scanned on both sides, tapered, ``(1, 1, H, W)``."""
    distance = _distance(operator.mask, side.axis).abs() / (side.reach + 1)
    window = torch.cos(torch.pi / 2 * distance.clamp(max=1)).square()
    image = to_complex(operator.A_adjoint(to_channels((kspace * window)[None])))
    return torch.polar(torch.ones_like(image.real), image.angle())


def _distance(mask: Tensor, axis: int) -> Tensor:
    """Of every line to the centre, with its sign, ``(H, 1)`` or ``(1, W)``."""
    n = mask.shape[axis]
    lines = torch.arange(n, device=mask.device) - n // 2
    return lines[:, None] if axis == 0 else lines[None]


def _ends_early(mask: Tensor, axis: int) -> bool:
    """Whether the lines that lack come after the centre."""
    lines, n = torch.nonzero(mask.amax(1 - axis) > 0)[:, 0], mask.shape[axis]
    return int(lines[-1]) - n // 2 < n // 2 - int(lines[0])


def _mirrored(mask: Tensor) -> Tensor:
    """The mask at the opposite frequencies; the first line of an even number is its own."""
    for axis in (0, 1):
        mask = mask.flip(axis)
        if mask.shape[axis] % 2 == 0:
            mask = mask.roll(1, axis)
    return mask
