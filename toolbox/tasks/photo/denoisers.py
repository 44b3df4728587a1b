"""Which denoiser a picture takes, and what noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from restoration.metrics import noise_level
from restoration.photo.compression import jpeg_error
from restoration.photo.level import coloured_level, likely_level, made_of_dots
from restoration.photo.noise import Cleaner
from restoration.photo.photons import noise_law
from solvers.denoiser import Denoiser
from solvers.inputs.errors import InputError
from toolbox.api import load
from toolbox.tasks.settings import COLOUR, GREY

# JPEG's errors are of the frequencies that are sharpened least: of factors from 2 to 7 the best for
# blurs of 1 to 2.4 pixels and qualities of 50 to 92
JPEG_AS_WHITE = 3.5
LEAST_ERROR = 0.003
ROUNDING = 0.001  # less than that, told of a picture of 8 bits, leaves nothing of it
LEFT_TO_ENLARGERS, KNOWS_JPEG = 0.0075, 4


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


def error_of(picture: Tensor, denoiser: Denoiser | None = None) -> float:
    """The white noise that all errors of a picture ``(C, H, W)`` in [0, 1] are taken for, where it
    is sharpened and nobody tells them: noise, and JPEG's. Never less than 0.003, since no blur is
    known exactly, and rounding to 8 bits is 0.0011.

    Args:
        denoiser: tells noise from texture.

    Raises:
        ValueError: fewer than 4 pixels along a side.
    """
    noise = noise_level(picture)
    if denoiser is not None and noise > LEAST_ERROR:
        noise = likely_level(denoiser, picture, noise)
    return max(noise, JPEG_AS_WHITE * jpeg_error(picture), LEAST_ERROR)


def check_error(sigma: float) -> None:
    """Refuse an error of a picture to be sharpened that is less than rounding leaves.

    Raises:
        InputError: says so.
    """
    if 0 <= sigma < ROUNDING:
        raise InputError(
            f"sigma is {sigma:g}, and rounding to 8 bits alone errs by 0.0011, which sharpening"
            f" would blow up: give at least {ROUNDING:g}, or leave sigma out to have it estimated"
        )


def noise_of_small(picture: Tensor, factor: int) -> float:
    """The noise that is to be taken off a small picture ``(C, H, W)`` in [0, 1] before it is
    enlarged, where nobody tells it; 0: none. Networks that enlarge take noise for detail; what is
    less than 2 of 255 does no harm. JPEG's errors count as noise where the network doesn't know
    them: the shipped one for a factor of 4 was trained on JPEGs.

    Raises:
        ValueError: fewer than 4 pixels along a side.
    """
    errors = 0.0 if factor == KNOWS_JPEG else jpeg_error(picture)
    level = noise_level(picture)
    if level > LEFT_TO_ENLARGERS:
        denoiser = load(denoiser_of(picture.cpu().numpy()))
        # noise that isn't white can't be told from what reduction makes of fine texture
        level = likely_level(denoiser, picture, level)
        level = 0.0 if made_of_dots(denoiser, picture, level) else level
    level = max(level, errors)
    return level if level > LEFT_TO_ENLARGERS else 0.0


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
