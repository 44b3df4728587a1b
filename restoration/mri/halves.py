"""Where a reconstruction may be wrong, told by its own data: how far it moves when half of the
sampled points are left out.

The jackknife that deletes half of the data (McCarthy 1969, "Pseudo-replication: half samples";
Shao & Wu 1989, "A general theory for jackknife variance estimation"). An image that hangs on few
points moves where they carried it: at edges, and where aliases fold onto each other. Samples of a
network lie apart alike everywhere and don't show that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

CENTRE = 0.04  # share of k-space on each side of its centre that stays: the image's contrast
WIDTH = 1.5  # pixels: two halves alone leave chance in each


def halves(mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two masks ``(H, W)`` that share the sampled points of ``mask`` by lot; both keep its centre.

    Where all rows sample alike, whole columns are drawn, as they were measured; where all columns
    do, rows.
    """
    height, width = mask.shape
    rows = (torch.arange(height)[:, None] - height // 2).abs() > CENTRE * height
    columns = (torch.arange(width) - width // 2).abs() > CENTRE * width
    if (mask == mask[:1]).all():
        drawn, outside = (1, width), columns
    elif (mask == mask[:, :1]).all():
        drawn, outside = (height, 1), rows
    else:
        drawn, outside = (height, width), rows | columns
    # numbers of its own: a mask may have been drawn with the same seed
    first = torch.from_numpy(np.random.default_rng([seed, *b"halves"]).random(drawn)) < 0.5
    return mask * (first | ~outside).to(mask), mask * (~first | ~outside).to(mask)


def moved(estimate: Callable[[Tensor], Tensor], mask: Tensor, seed: int) -> Tensor:
    """How far the estimates of both halves lie from that of all points: root mean square, averaged
    over each pixel's surroundings. ``(H, W)``, in units of the image.

    Args:
        estimate: gives the complex image ``(H, W)`` of what a mask leaves of the scan.
        mask: ``(H, W)``, 1 = sampled.
        seed: of the lot.
    """
    whole = estimate(mask)
    apart = torch.stack([(estimate(half) - whole).abs() for half in halves(mask, seed)])
    spread = apart.square().mean(0).sqrt()
    return torch.from_numpy(gaussian_filter(spread.cpu().numpy(), WIDTH))
