"""Inpainting, denoising, super-resolution and deblurring as one graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from export.jobs.base import Job, Shape
from restoration.operators.linear import LinearOperator
from restoration.operators.measurement import Measurement
from restoration.operators.separable import SceneBlur
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.linear import LinearTask
from restoration.photo.noise import cleans
from restoration.task import Run


@dataclass(frozen=True)
class InpaintingJob(Job):
    """``image (B, 3, H, W)`` in [0, 1] and ``mask (B, 1, H, W)``, 1 = known. Of a network of
    latents encoder and decoder are in the graph, and the noise is of latents.
    """

    task: InpaintingTask
    size: tuple[int, int] = (256, 256)
    sigma: float = 0.0
    name = "inpaint"

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", replace(self.task, tile=2**31))

    @property
    def correction(self) -> str:
        d = self.denoiser
        if self.task.correction is None and d.autoencoder is not None and d.condition_channels:
            return "none"  # shown the mask, it goes by that alone
        return self.task.correction_for(self.sigma)

    @property
    def inputs(self) -> dict[str, Shape]:
        return {"image": (3, *self.size), "mask": (1, *self.size)}

    @property
    def state(self) -> Shape:
        if (autoencoder := self.denoiser.autoencoder) is None:
            return (3, *self.size)
        height, width = (n // autoencoder.fold for n in self.size)
        return (autoencoder.channels, height, width)

    def example(self) -> dict[str, Tensor]:
        return super().example() | {"mask": torch.ones(1, 1, *self.size)}

    def check(self) -> None:
        super().check()
        _check_correction(self.task)
        _check_cleaner(self.task, self.sigma)
        if self.denoiser.image_channels not in (1, 3) and self.denoiser.autoencoder is None:
            raise ValueError(
                "inpainting graphs hold networks of 1- or 3-channel images; this one works on"
                f" {self.denoiser.image_channels} channels"
            )

    def prepare(self, image: Tensor, mask: Tensor) -> Run:
        return self.task.prepare(image, mask, self.sigma)


@dataclass(frozen=True)
class LinearJob(Job):
    """``image``: what a fixed linear operator (denoising, super-resolution, deblurring) measured of
    pictures in [0, 1].

    Args:
        operator: of :mod:`restoration.operators.linear` or :mod:`restoration.operators.separable`.
        size: ``(H, W)`` of the restored pictures.
        name: ``denoise``, ``superresolve`` or ``deblur``.
        record: name and numbers of the operator.
    """

    task: LinearTask
    operator: LinearOperator
    size: tuple[int, int]
    sigma: float = 0.0
    name: str = "denoise"
    record: dict[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", replace(self.task, tile=2**31))

    @property
    def correction(self) -> str:
        return self.task.correction_for(self.operator, self.sigma) or "none"

    @property
    def operator_record(self) -> dict[str, str | float]:
        return self.record

    @property
    def inputs(self) -> dict[str, Shape]:
        channels, height, width = self.operator.A(torch.zeros(1, *self.state)).shape[1:]
        return {"image": (channels, height, width)}

    @property
    def state(self) -> Shape:
        scene = self.operator.size if isinstance(self.operator, SceneBlur) else self.size
        return (3, *scene)

    def check(self) -> None:
        super().check()
        _check_correction(self.task)
        if self.operator_record.get("factor"):
            _check_cleaner(self.task, self.sigma)

    def prepare(self, image: Tensor) -> Run:
        shape = (image.shape[0], 3, *self.size)
        return self.task.prepare(Measurement(self.operator, image, self.sigma), shape)


def _check_correction(task: InpaintingTask | LinearTask) -> None:
    if task.correction_options:
        raise ValueError(
            f"a bundle names its correction, without options such as"
            f" {next(iter(task.correction_options))}: export the network alone, and give them when"
            " restoring"
        )


def _check_cleaner(task: InpaintingTask | LinearTask, sigma: float) -> None:
    if cleans(task, sigma):
        raise ValueError(
            f"noise of sigma {sigma:g} is taken off by a second network (a denoiser), which a"
            " bundle doesn't hold: export for noiseless pictures and denoise beside it, or name a"
            " correction, such as diffpir, which this network is held to the noisy data by"
        )
