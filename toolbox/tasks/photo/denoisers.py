"""Which denoiser a picture takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from restoration.photo.noise import Cleaner
from solvers.denoiser import Denoiser
from toolbox.api import load
from toolbox.tasks.settings import COLOUR, GREY


def denoiser_of(pixels: np.ndarray) -> str:
    """The shipped denoiser for a picture ``(C, H, W)``: of colours, or of planes where all channels
    are one, noise too.
    """
    return GREY if (pixels == pixels[:1]).all() else COLOUR


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
