"""Haze and other degradations known by pairs, as one graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from export.jobs.base import Job, Shape
from restoration.paired.task import FINER, HAZE, MASKED, PairedTask, reduced_size
from restoration.task import Run


@dataclass(frozen=True)
class PairedJob(Job):
    """``image (B, 3, H, W)`` in [0, 1]: degraded pictures; and ``mask (B, 1, H, W)``, 1 where
    degraded, for networks that are shown one.

    Reduction to the task's view, the haze prior, the run and the way back to the whole picture are
    inside.

    Args:
        task: with any solver and process.
    """

    task: PairedTask
    size: tuple[int, int] = (256, 256)
    products: dict[tuple[int, int], Tensor] = field(init=False, repr=False, compare=False)
    correction = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", replace(self.task, tile=2**31))
        steps = [pair for a, b in pairwise(self.sizes) for pair in zip(a, b, strict=True)]
        products = {pair: _reduction(*pair) for pair in steps}
        object.__setattr__(self, "products", products)

    @property
    def name(self) -> str:
        return "dehaze" if self.denoiser.condition_channels == HAZE else "paired"

    @property
    def inputs(self) -> dict[str, Shape]:
        masked = self.denoiser.condition_channels == MASKED
        return {"image": (3, *self.size)} | ({"mask": (1, *self.size)} if masked else {})

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The picture's size and those it is reduced to, one after the other."""
        sizes, side = [self.size], self.task.side
        if side is not None:
            for finer in (FINER, 1) if self.name == "dehaze" else (1,):
                sizes.append(reduced_size(sizes[-1], finer * side))
        return sizes

    @property
    def state(self) -> Shape:
        return (3, *self.sizes[-1])

    def prepare(self, image: Tensor, mask: Tensor | None = None) -> Run:
        return self.task.prepare(image, mask, self._reduced)

    def _reduced(self, image: Tensor, side: int) -> Tensor:
        """What ``restoration.paired.task.reduced`` does, as two matrix products: TensorRT resizes
        with aliasing only.
        """
        size = (int(image.shape[-2]), int(image.shape[-1]))
        smaller = reduced_size(size, side)
        if smaller == size:
            return image
        rows, columns = (self.products[pair] for pair in zip(size, smaller, strict=True))
        return (rows @ image @ columns.T).clamp(0, 1)


def _reduction(size: int, smaller: int) -> Tensor:
    """The matrix ``(smaller, size)`` of resizing one axis without aliasing."""
    unit = torch.eye(size)[None, None]
    return F.interpolate(unit, (smaller, size), mode="bilinear", antialias=True)[0, 0]
