"""Made-up haze on clear pictures: what haze networks are trained, calibrated and verified on."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from restoration.io.pictures.values import after_jpeg
from restoration.paired.haze import (
    AIRLIGHT,
    BETA,
    Scattering,
    depth_of_cues,
    follow_edges,
    procedural_depth,
    smooth_field,
)


class Haze(BaseModel):
    """How haze is made: section ``[haze]`` of a recipe."""

    model_config = ConfigDict(extra="forbid")

    beta: tuple[float, float] = BETA
    airlight: tuple[float, float] = AIRLIGHT
    tint: float = Field(0.05, ge=0, le=1)
    # share of samples with haze up to three times as dense
    dense: float = Field(0.0, ge=0, le=1)
    # share of samples whose haze drifts: denser here than there at the same distance
    uneven: float = Field(0.0, ge=0, le=1)
    # share of samples in which nothing is near: depth begins at up to half of its largest
    distant: float = Field(0.0, ge=0, le=1)
    exponent: float = Field(0.0, ge=0, le=4)  # largest exponent of scattering, see Scattering
    # share of samples whose depth is told by the clear picture, in place of a made-up room
    cues: float = Field(0.0, ge=0, le=1)
    jpeg: float = Field(0.0, ge=0, le=1)  # share of hazy pictures that are kept as JPEG
    # share of samples whose haze is made in linear light
    linear_light: float = Field(0.0, ge=0, le=1)
    # share of things in front that are filled from other pictures or painted plain
    paste: float = Field(0.5, ge=0, le=1)
    # share of samples whose surfaces are painted plain, as walls indoors are
    rooms: float = Field(0.3, ge=0, le=1)
    # share of clear pictures stretched to black and white, as cameras expose them
    levels: float = Field(0.8, ge=0, le=1)
    # how far exposure, gamma and saturation of the clear pictures vary
    jitter: float = Field(0.4, ge=0, le=1)
    drop: float = Field(0.0, ge=0, le=1)  # share of samples that are shown nothing

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if not 0 <= self.beta[0] <= self.beta[1]:
            raise ValueError("beta must be [low, high] with 0 <= low <= high")
        if not 0 <= self.airlight[0] <= self.airlight[1] <= 1:
            raise ValueError("airlight must be [low, high] in [0, 1]")
        return self


def vary(image: Tensor, amount: float, rng: np.random.Generator) -> Tensor:
    """A clear picture ``(3, H, W)`` at another exposure, gamma, white balance and saturation; what
    is too bright saturates.
    """
    gamma, gain = (
        np.exp(rng.uniform(-amount, amount)),
        np.exp(rng.uniform(-1.2 * amount, 0.6 * amount)),
    )
    colour = np.exp(rng.uniform(-0.3, 0.3, 3) * amount)
    image = image**gamma
    grey = image.mean(0, keepdim=True)
    image = grey + (1 + rng.uniform(-1.5, 0.5) * amount) * (image - grey)
    return (image * torch.from_numpy(gain * colour).to(image)[:, None, None]).clamp(0, 1)


def plain(texture: Tensor, rng: np.random.Generator) -> Tensor:
    """A surface of one colour, often white, with a trace of a picture ``(3, H, W)``: near and
    bright, yet without haze.
    """
    level = rng.uniform(0.05, 0.95) if rng.random() < 0.85 else 1.0
    colour = torch.from_numpy(level * (1 - 0.3 * rng.random() * rng.random(3))).float()[
        :, None, None
    ]
    trace = rng.uniform(0.02, 0.3)
    return colour * (1 - trace + trace * texture)


def furnished(
    clear: Tensor, labels: np.ndarray, others: Tensor, settings: Haze, rng: np.random.Generator
) -> Tensor:
    """A picture ``(3, H, W)`` whose surfaces and things in front, by the ``labels (H, W)`` of
    :func:`procedural_depth`, are painted plain or filled from ``others (N, 3, H, W)``.
    """
    if rng.random() < settings.rooms:
        for k in range(labels.min(), 0):
            clear = torch.where(torch.from_numpy(labels == k), plain(clear, rng), clear)
    for k in range(1, labels.max() + 1):
        inside = torch.from_numpy(labels == k)
        if rng.random() < settings.paste and inside.any():
            filling = vary(others[rng.integers(len(others))], settings.jitter, rng)
            filling = plain(filling, rng) if rng.random() < 0.4 else filling
            clear = torch.where(inside, filling, clear)
    return clear


def make_hazy(
    clear: Tensor, others: Tensor, settings: Haze, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """One pair ``(3, H, W)``, clear and hazy, from a picture and others to fill things in front
    with, all in [0, 1].
    """

    def chance(share: float) -> bool:
        return share > 0 and rng.random() < share

    clear = vary(clear, settings.jitter, rng)
    outdoors = chance(settings.cues)
    depth, labels = procedural_depth(clear.shape[1], clear.shape[2], rng)
    if not outdoors:
        clear = furnished(clear, labels, others, settings, rng)
    if rng.random() < settings.levels:
        low, high = np.quantile(clear.numpy(), (rng.uniform(0.01, 0.08), rng.uniform(0.94, 0.995)))
        clear = ((clear - float(low)) / max(float(high - low), 0.1)).clamp(0, 1)
    if outdoors:
        depth = depth_of_cues(clear, rng)
    elif rng.random() < 0.5:
        depth = follow_edges(depth, clear, int(rng.integers(3, 17)))
    if chance(settings.distant):
        nearest = float(rng.uniform(0, 0.5))
        depth = nearest + (1 - nearest) * depth
    scattering = Scattering.draw(
        rng, settings.beta, settings.airlight, settings.tint * rng.random()
    )
    if rng.random() < settings.linear_light:
        scattering = replace(scattering, linear_light=True)
    if chance(settings.dense):
        scattering = replace(scattering, beta=scattering.beta * float(rng.uniform(1, 3)))
    if settings.exponent:
        scattering = replace(scattering, exponent=float(rng.uniform(0, settings.exponent)))
    if chance(settings.uneven):
        field = torch.from_numpy(smooth_field(clear.shape[1], clear.shape[2], rng))
        depth = depth * torch.exp(float(rng.uniform(0, 0.6)) * field)
    hazy = scattering(clear, depth)
    if chance(settings.jpeg):
        levels = (hazy * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        kept = torch.from_numpy(after_jpeg(levels, int(rng.integers(50, 96))))
        hazy = kept.permute(2, 0, 1).to(hazy) / 255
    return clear, hazy
