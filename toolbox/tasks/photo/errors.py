"""What errs in a picture that is to be sharpened or enlarged, where nobody tells it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from restoration.metrics import noise_level
from restoration.operators.separable import SceneBlur, gaussian_kernel
from restoration.photo.compression import jpeg_error
from restoration.photo.level import likely_level, made_of_dots, windows
from restoration.photo.linear import LinearTask
from restoration.photo.start import deblurring_level
from solvers.denoiser import Denoiser
from solvers.inputs.errors import InputError, UncalibratedError
from toolbox.api import load
from toolbox.tasks.photo.denoisers import denoiser_of

# JPEG's errors are of the frequencies that are sharpened least: of factors from 2 to 7 the best for
# blurs of 1 to 2.4 pixels and qualities of 50 to 92
JPEG_AS_WHITE = 3.5
LEAST = 0.003  # no blur is known exactly
UNKNOWN = 0.01  # where nothing can be tried
ROUNDED = 0.0011  # what rounding to 8 bits leaves
ROUNDING = 0.001  # less than that, told of a picture of 8 bits, leaves nothing of it
STEPS, ROUNDS = 8, 3
# what a result leaves of the data: of the white noise, up to which that explains it, and of the
# error that was reckoned with, up to which it was enough; else how much more error there is.
# Lossless pictures leave 1 to 1.5 of their rounding, lossy ones 1.8 to 28
BY_NOISE, ENOUGH, MORE = 1.7, 0.4, 2.5
LEFT_TO_ENLARGERS, KNOWS_JPEG = 0.0075, 4


def error_of(picture: Tensor, blur: float, denoiser: Denoiser | None = None) -> float:
    """The white noise that all errors of a picture ``(C, H, W)`` in [0, 1] are taken for, where it
    is sharpened and nobody tells them.

    Noise and JPEG's errors the picture shows. Other codecs leave no such trace, and a blur may be
    told wrong: parts of the picture are sharpened, and where the result leaves more of the data
    than the noise explains, more error is reckoned with.

    Args:
        blur: standard deviation of the Gaussian, in pixels.
        denoiser: that sharpens it; None: the error is at least 0.01.

    Raises:
        ValueError: fewer than 4 pixels along a side.
    """
    noise = noise_level(picture)
    if denoiser is not None and noise > LEAST:
        noise = likely_level(denoiser, picture, noise)
    explained = BY_NOISE * (noise if noise > LEAST else ROUNDED)
    sigma = max(noise, JPEG_AS_WHITE * jpeg_error(picture), LEAST)
    for _ in range(ROUNDS):
        left = None if denoiser is None else _left(denoiser, picture, blur, sigma)
        if left is None:
            return max(sigma, UNKNOWN)
        if left <= max(explained, ENOUGH * sigma):
            break
        sigma = max(MORE * left, 1.5 * sigma, UNKNOWN)
    return sigma


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
        try:
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                misfit = task(part, SceneBlur(part.shape[1:], kernel), sigma=sigma).misfit
        except UncalibratedError:
            return None
        if misfit is None:
            return None
        squares.append(misfit**2)
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
