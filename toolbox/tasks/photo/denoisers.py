"""Which denoiser a picture takes, and what noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from restoration.photo.level import coloured_level, likely_level, made_of_dots
from restoration.photo.noise import Cleaner
from restoration.photo.photons import noise_law
from solvers.denoiser import Denoiser
from solvers.inputs.errors import InputError
from toolbox.api import load
from toolbox.tasks.settings import COLOUR, GREY


def denoiser_of(pixels: np.ndarray) -> str:
    """The shipped denoiser for a picture ``(C, H, W)``: of colours, or of planes where all channels
    are one, noise too.
    """
    return GREY if (pixels == pixels[:1]).all() else COLOUR


@dataclass(frozen=True)
class Noise:
    """Of variance ``gain x + sigma^2`` where the clean picture is ``x``; ``coloured``: not white,
    and of this sigma only as networks are to be told.
    """

    sigma: float
    gain: float = 0.0
    coloured: bool = False


def noise_of(denoiser: Denoiser, picture: Tensor, sigma: float) -> Noise:
    """The noise that networks find on a picture ``(C, H, W)`` in [0, 1].

    Args:
        denoiser: that will take it off.
        sigma: an estimate by a filter, which may have counted texture.

    Raises:
        ValueError: a dithered picture.
    """
    level = likely_level(denoiser, picture, sigma)
    if made_of_dots(denoiser, picture, level):
        raise InputError(
            "the picture shows its tones by dots (dithered or halftoned), which would be taken off"
            f" as noise of sigma {level:.2g}: give sigma, the noise on the dots"
        )
    if len(picture) == 3 and denoiser.image_channels == 3:
        coloured = coloured_level(partial(load, GREY), picture, level)
        if coloured is not None:
            return Noise(coloured, coloured=True)
    gain, level = noise_law(denoiser, picture, level)
    return Noise(level, gain)


def cleaner_of(denoiser: Denoiser) -> Cleaner:
    """What takes the noise off pictures that this network restores: the shipped denoiser for their
    colours, at 8 bits beside an exported network.
    """
    in_torch = isinstance(getattr(denoiser, "network", None), torch.nn.Module)

    def cleaner(picture: Tensor) -> Denoiser:
        name = denoiser_of(picture.cpu().numpy())
        if in_torch:
            return load(name, device=str(denoiser.device))
        return load(f"{name}-int8")

    return cleaner
