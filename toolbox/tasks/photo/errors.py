"""What errs in a picture that is to be sharpened or enlarged, where nobody tells it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from restoration.metrics import noise_level
from restoration.operators.measurement import Measurement
from restoration.operators.separable import SceneBlur, gaussian_kernel
from restoration.photo.compression import jpeg_error
from restoration.photo.level import coloured_level, likely_level, made_of_dots, windows
from restoration.photo.linear import LinearTask
from restoration.photo.start import deblurring_level
from restoration.task import sample
from solvers.denoiser import Denoiser
from solvers.inputs.errors import InputError, UncalibratedError
from toolbox.api import load
from toolbox.tasks.photo.denoisers import denoiser_of
from toolbox.tasks.settings import GREY

# JPEG's errors are of the frequencies that are sharpened least: of factors from 2 to 7 the best for
# blurs of 1 to 2.4 pixels and qualities of 50 to 92
JPEG_AS_WHITE = 3.5
COLOURED = 1.5  # noise of JPEGs is coarser than what denoisers are told of it
LEAST = 0.003  # no blur is known exactly
UNKNOWN = 0.01  # where nothing can be tried
ROUNDED = 0.0011  # what rounding to 8 bits leaves
ROUNDING = 0.001  # less than that, told of a picture of 8 bits, leaves nothing of it
STEPS = 8
# of rounding, what a result leaves of data that have no other errors: 1 to 1.5, of lossy ones 1.8
# to 28; the errors there are then, of what a careful result leaves; and the most
BY_ROUNDING, AS_WHITE, MOST = 1.7, 5.0, 0.05
LEFT_TO_ENLARGERS, KNOWS_JPEG = 0.0075, 4


def error_of(picture: Tensor, blur: float, denoiser: Denoiser | None = None) -> float:
    """The white noise that all errors of a picture ``(C, H, W)`` in [0, 1] are taken for, where it
    is sharpened and nobody tells them.

    Noise and JPEG's errors the picture shows. Other codecs leave no such trace, and a blur may be
    told wrong: where the picture shows nothing parts of it are sharpened, and if the result leaves
    more of the data than rounding does, there are such errors.

    Args:
        blur: standard deviation of the Gaussian, in pixels.
        denoiser: that sharpens it; None: 0.01 where the picture shows nothing.

    Raises:
        ValueError: fewer than 4 pixels along a side.
    """
    noise = noise_level(picture)
    if denoiser is not None and noise > LEAST:
        noise = likely_level(denoiser, picture, noise)
        if len(picture) == denoiser.image_channels == 3:
            coloured = coloured_level(partial(load, GREY), picture, noise)
            noise = noise if coloured is None else COLOURED * coloured
    sigma = max(noise, JPEG_AS_WHITE * jpeg_error(picture))
    if denoiser is None or sigma > LEAST:
        return sigma if sigma > LEAST else UNKNOWN
    left = _left(denoiser, picture, blur, LEAST)
    if left is not None and left <= BY_ROUNDING * ROUNDED:
        return LEAST
    left = _left(denoiser, picture, blur, UNKNOWN)
    return UNKNOWN if left is None else min(max(UNKNOWN, AS_WHITE * left), MOST)


def _left(denoiser: Denoiser, picture: Tensor, blur: float, sigma: float) -> float | None:
    """Root mean square of what a result leaves of the data, by parts of the picture; None: they
    are too small for the blur, or the network knows few levels.
    """
    kernel, squares = gaussian_kernel(blur).tolist(), []
    task = LinearTask(
        denoiser, num_inference_steps=STEPS, start_level=deblurring_level(blur, sigma)
    )
    for part in windows(picture.float().cpu()):
        if min(part.shape[1:]) < len(kernel):
            return None
        operator = SceneBlur(part.shape[1:], kernel)
        m = Measurement(operator, part[None].to(denoiser.device), sigma)
        try:
            run = task.prepare(m, operator.A_adjoint(m.y).shape)
        except UncalibratedError:
            return None
        if run.evidence is None:
            return None
        # the result is not handed on: nobody has to be warned of it
        result = sample(replace(run, evidence=None)).mean[None].to(m.y.device)
        squares.append(float(run.evidence.residual(result).square().mean()))
    return float(torch.tensor(squares).mean().sqrt())


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
