"""States continued to the sizes that a network takes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("replicate", "reflect", "zeros")


def continued(z: Tensor, unit: int, least: int, how: str) -> Tensor:
    """``z (B, C, H, W)`` with more columns to the right and rows below, to multiples of ``unit``
    and at least ``least`` pixels (a multiple of it, too), in one of the ways in :data:`PADDINGS`.
    """
    height, width = z.shape[-2:]
    pad = (-width % unit, -height % unit)
    if least > 1:
        pad = (max(pad[0], least - width), max(pad[1], least - height))
    if not any(pad):
        return z
    if how == "zeros":
        return F.pad(z, (0, pad[0], 0, pad[1]))
    if how == "reflect":  # as far as there is something to reflect
        columns, rows = (min(p, n - 1) for p, n in zip(pad, (width, height), strict=True))
        z, pad = F.pad(z, (0, columns, 0, rows), mode="reflect"), (pad[0] - columns, pad[1] - rows)
    return F.pad(z, (0, pad[0], 0, pad[1]), mode="replicate")
