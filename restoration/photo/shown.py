"""What a network is shown of a linear measurement, by what the operator can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from restoration.operators.linear import Denoising, Inpainting, Operator
from restoration.operators.measurement import Measurement
from restoration.photo.lift import enlarge, thin_plate


def condition_of(m: Measurement, shape: Sequence[int]) -> Tensor | None:
    """The lifted picture and what is known of each pixel, ``(B, C + 1, H, W)``; None where there is
    no lift for the operator.
    """
    size = (shape[-2], shape[-1])
    if (mask := _mask(m, shape)) is not None:
        known = mask.to(m.y).amin(1, keepdim=True).expand(shape[0], 1, *size)
        return torch.cat([thin_plate(m.y, known), known], dim=1)
    if (factor := reduction(m, shape)) is not None:
        share = m.y.new_full((shape[0], 1, *size), 1 / factor**2)
        return torch.cat([enlarge(m.y, factor, size), share], dim=1)
    return None


def reduction(m: Measurement, shape: Sequence[int]) -> int | None:
    """How many times smaller the data are, a picture; None: they are something else."""
    factor = getattr(m.operator, "factor", 1)
    fits = isinstance(factor, int) and factor > 1 and m.y.shape[1:] == _reduced(shape, factor)
    return factor if fits else None


def _mask(m: Measurement, shape: Sequence[int]) -> Tensor | None:
    """The operator's ``mask (B or 1, 1 or C, H, W)`` of zeros and ones, if it does nothing else
    than to take away what that marks with 0; else None.
    """
    operator = m.operator
    mask = getattr(operator, "mask", None)
    if isinstance(operator, Inpainting):
        return operator.mask
    if not isinstance(mask, Tensor) or mask.ndim != 4 or not ((mask == 0) | (mask == 1)).all():
        return None
    return mask if _acts_as(operator, lambda x: mask.to(x) * x, shape, m.y.device) else None


def is_denoising(m: Measurement, shape: Sequence[int]) -> bool:
    """Whether every pixel is measured as it is. Without noise others than :class:`Denoising` are
    held to the data, which gives these back.
    """
    if isinstance(m.operator, Denoising):
        return True
    return m.sigma > 0 and _acts_as(m.operator, lambda x: x, shape, m.y.device)


def _acts_as(
    operator: Operator,
    function: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    device: torch.device,
) -> bool:
    """Whether the operator does to a picture of random values what the function does. Never while
    a graph is traced, where no values are there to tell.
    """
    if torch.compiler.is_exporting():
        return False
    probe = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0))
    probe = probe.to(device)
    try:
        found, wanted = operator.A(probe), function(probe)
    except RuntimeError:  # shapes that don't fit one another
        return False
    return found.shape == wanted.shape and bool(torch.allclose(found, wanted, atol=1e-6))


def _reduced(shape: Sequence[int], factor: int) -> torch.Size:
    return torch.Size((shape[1], -(-shape[2] // factor), -(-shape[3] // factor)))
