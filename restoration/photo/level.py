"""How noisy a picture is by the network that denoises it: texture that looks like noise to a filter
it knows from noise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from restoration.metrics import noise_level
from restoration.operators.linear import Denoising
from restoration.photo.linear import LinearTask
from restoration.photo.patterns import patterns
from solvers.denoiser import Denoiser
from solvers.inputs.errors import UncalibratedError

SIDE, WINDOWS = 96, 2  # of the windows that are looked at, and how many along each side
MOST = 0.5  # noise that denoisers of photographs know
CLEARLY, SETTLED = 0.95, 0.95  # what an estimate falls to where it was wrong, and where it is found
CALLS = 8
# dots: least and most noise that they are taken for; where middle tones begin; the kurtosis of what
# was taken off, which is 1 for two values, 3 for noise and 1.8 for strong noise that was cut off;
# what of it patterns don't explain; the share of values that tells it
FEW, MANY, MIDDLE, FLAT, REST, ENOUGH_DOTS = 0.05, 0.38, 0.35, 1.7, 0.4, 0.05
LUMA = torch.tensor([0.299, 0.587, 0.114])
UNLIKE = 0.5  # what a network of colours finds of the brightness's noise, if it isn't white
# of the brightness's noise: as much as fine texture is taken for; of 67 photographs one had more
SEEN = 4 / 255
# the best for six photographs with noise of 8 to 25 of 255, then JPEG of quality 75 to 92
AS_WHITE = 1.7
ROOM = 2.0  # standard deviations from black and white within which noise was cut off
ENOUGH = 0.25  # share of pixels that keep that room, from which on the others don't count
PROBE = 0.1  # step of the derivative, of the noise
LEAST = 0.02  # share that is noise where one probe can tell it


@torch.no_grad()
def likely_level(denoiser: Denoiser, picture: Tensor, sigma: float) -> float:
    """The standard deviation of the white noise on a picture ``(C, H, W)`` in [0, 1] that the
    network finds likeliest, at most ``sigma``, an estimate that may have counted texture.

    The likelihood of a noisy picture ``y`` of N values has its maximum over the level where
    ``|y - D(y)|^2 = sigma^2 (N - div D(y))``: its derivative is the score's square and divergence,
    which Tweedie's formula gives by the denoiser D (after Stein 1981; the divergence by one random
    probe, Ramani et al. 2008). From ``sigma`` down by fixed-point steps, on a few windows. An
    estimate that is a twentieth too high or less stays as it is.
    """
    parts, found = windows(picture.float()), sigma
    try:
        for step in range(CALLS):
            level = _explained(denoiser, parts, min(found, MOST))
            if level > found * (CLEARLY if step == 0 else 1):
                return found
            settled, found = level > SETTLED * found, level
            if settled:
                break
    except UncalibratedError:  # a network that knows few levels
        return sigma
    return found


def coloured_level(planes: Callable[[], Denoiser], picture: Tensor, level: float) -> float | None:
    """The level of white noise that a network of colours is to be told of a picture ``(3, H, W)``
    whose noise is not white, but JPEG's or alike in all colours; None where it is white.

    Such a network takes that noise for detail and finds next to none (``level``); one of single
    planes, shown the brightness, knows it. White noise has 0.67 of its level there, and is found by
    both.

    Args:
        planes: gives the network of single planes, where it is needed.
        picture: in [0, 1].
        level: what :func:`likely_level` finds by the network of colours.

    Raises:
        ValueError: fewer than 4 pixels along a side.
    """
    brightness = (LUMA[:, None, None] * picture.float().cpu()).sum(0, keepdim=True)
    found = noise_level(brightness)
    if level > UNLIKE * found:
        return None
    found = likely_level(planes(), brightness, found)
    if found < SEEN or level > UNLIKE * found:
        return None
    return AS_WHITE * found


@torch.no_grad()
def made_of_dots(denoiser: Denoiser, picture: Tensor, level: float) -> bool:
    """Whether a picture ``(C, H, W)`` shows its tones by dots of two values (dithered, halftoned),
    which a network takes for noise of this level: in middle tones what it takes off has two values,
    not those of noise, and isn't a pattern either.
    """
    if not FEW < level < MANY:
        return False
    task, off, rest = LinearTask(denoiser, num_inference_steps=1), [], []
    parts = windows(picture.float().cpu())
    dark, bright = torch.cat([v.flatten() for v in parts]).quantile(torch.tensor([0.02, 0.98]))
    for y in parts:
        clean = task(y, Denoising(), sigma=min(level, MOST)).mean
        residual = y - clean
        tone = (clean - dark) / (bright - dark).clamp(min=1e-6)
        middle = (tone > MIDDLE) & (tone < 1 - MIDDLE)
        off.append(residual[middle])
        rest.append((residual - patterns(residual))[middle])
    found, left = torch.cat(off).double(), torch.cat(rest).double()
    if len(found) < ENOUGH_DOTS * sum(v.numel() for v in parts):
        return False
    deviation = found.std().clamp(min=1e-6)
    flatness = (((found - found.mean()) / deviation) ** 4).mean()
    return bool(flatness < FLAT and left.std() > REST * deviation)


def probed(denoiser: Denoiser, parts: list[Tensor], sigma: float) -> Tensor:
    """``(3, N)``: all values of pictures with white noise, what the network makes of them at a
    level, and one probe of each value's share in the divergence.
    """
    task, found = LinearTask(denoiser, num_inference_steps=1), []
    for k, y in enumerate(parts):
        probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(k))
        clean, moved = (
            task(v, Denoising(), sigma=sigma).mean for v in (y, y + PROBE * sigma * probe)
        )
        slope = probe * (moved - clean) / (PROBE * sigma)
        found.append(torch.stack([y, clean, slope]).double().flatten(1))
    return torch.cat(found, dim=1)


def _explained(denoiser: Denoiser, parts: list[Tensor], sigma: float) -> float:
    """The noise that explains what the network takes off at a level."""
    y, clean, slope = probed(denoiser, parts, sigma)
    below = clean if y.min() <= 0 else torch.full_like(clean, torch.inf)
    above = 1 - clean if y.max() >= 1 else torch.full_like(clean, torch.inf)
    within = torch.minimum(below, above) > ROOM * sigma
    if within.double().mean() < ENOUGH:
        within = torch.ones_like(within)
    left = left_over(below / sigma) + left_over(above / sigma) - 1
    share = (left * (1 - slope))[within].mean()
    if share < LEAST:
        return sigma
    return float((((y - clean) ** 2)[within].mean() / share).sqrt())


def left_over(room: Tensor) -> Tensor:
    """What cutting off leaves of the mean square of unit noise, ``room`` away from a limit."""
    near = room.clamp(0, 8)
    inside, density = torch.special.ndtr(near), (-(near**2) / 2).exp() / (2 * torch.pi) ** 0.5
    return inside - near * density + near**2 * (1 - inside)


def windows(picture: Tensor) -> list[Tensor]:
    """The whole of a small picture; of a large one windows spread over it."""
    spans = []
    for n in picture.shape[1:]:
        free = n - SIDE
        starts = [round(free * (2 * k + 1) / (2 * WINDOWS)) for k in range(WINDOWS)]
        spans.append([slice(s, s + SIDE) for s in starts] if free > SIDE else [slice(None)])
    return [picture[:, rows, columns] for rows, columns in product(*spans)]
