"""How much of an image a scan leaves open: what neither sampled points nor coils tell."""

from __future__ import annotations

import torch

from restoration.mri.sense import Sense, SingleCoil, ifft2c, to_channels

DECAY = 1.5  # of images' amplitudes with spatial frequency, by which brain slices fall off
WEIGHT, ITERATIONS = 1e-3, 20
SEED = 0


@torch.no_grad()
def left_open(operator: Sense | SingleCoil) -> float:
    """The share (root mean square, 0 to about 1) of an image that SENSE doesn't get back from such
    a scan without noise; the image is random, with the falling spectrum of images.

    It depends on the sampled points and the coils alone: which frequencies are missing, how wide
    the gaps are, whether the coils bridge them, and whether aliases add up or scatter. The errors
    of a reconstruction grow with it; the spread of its samples less so.
    """
    mask = operator.mask
    height, width = mask.shape[-2:]
    y, x = (torch.fft.fftshift(torch.fft.fftfreq(n)) for n in (height, width))
    frequency = torch.hypot(y[:, None], x).clamp(min=1 / max(height, width))
    g = torch.Generator().manual_seed(SEED)
    white = torch.randn((1, 1, height, width), generator=g, dtype=torch.complex64)
    image = to_channels(ifft2c(white / frequency**DECAY)).to(mask)
    if isinstance(operator, Sense):  # where no coil is sensitive there is nothing to get back
        image = image * (operator.maps.abs().sum(0) > 0)
    back = operator.sense(operator.A(image), WEIGHT, ITERATIONS)
    return float(((image - back).square().sum() / image.square().sum()).sqrt())
