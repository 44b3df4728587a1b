"""Low light, shadows and rain drops on the glass, made on clear pictures: pairs to train on where
none can be had. All is seeded; light is light, not sRGB's values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from restoration.paired.haze import smooth_field, srgb_decode, srgb_encode


def low_light(clear: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A picture ``(3, H, W)`` in [0, 1] exposed 5 to 50 times too short, and where it is degraded,
    which is everywhere: ``(1, H, W)`` of ones.

    The sensor counts photons (a variance that grows with the light, Poisson's, here Gaussian) and
    adds read noise; what it has of colour is off by up to a tenth (Foi et al. 2008; Wei et al.
    2020, whose noise has more parts).
    """
    light = srgb_decode(clear) / float(np.exp(rng.uniform(np.log(5), np.log(50))))
    light = light * torch.from_numpy(np.exp(rng.uniform(-0.1, 0.1, (3, 1, 1)))).to(clear)
    photon, read = np.exp(rng.uniform(np.log([1e-5, 1e-4]), np.log([4e-4, 2e-3])))
    noise = torch.from_numpy(rng.standard_normal(clear.shape)).to(clear)
    light = light + noise * (float(photon) * light + float(read) ** 2).sqrt()
    return srgb_encode(light.clamp(0, 1)), torch.ones_like(clear[:1])


def shadow(clear: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A picture ``(3, H, W)`` in [0, 1] with a shadow cast on it, and that shadow's mask ``(1, H,
    W)``.

    In it the sun is missing: 15 to 60 % of the light are left, more of blue than of red, since
    they are the sky's (Finlayson et al. 2006). Its edge is a penumbra of random width.
    """
    height, width = clear.shape[1:]
    field = smooth_field(height, width, rng)
    inside = torch.from_numpy((field > np.quantile(field, rng.uniform(0.4, 0.9))).astype("f4"))
    left = rng.uniform(0.15, 0.6) * (1 + rng.uniform(0, 0.3) * np.array([-0.5, 0.0, 1.0]))
    depth = blurred(inside[None], float(rng.uniform(0.3, 0.03 * min(height, width) + 0.4)))
    kept = 1 - depth * (1 - torch.from_numpy(left[:, None, None]).to(clear))
    return srgb_encode(srgb_decode(clear) * kept), inside[None]


def rain_drops(clear: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A picture ``(3, H, W)`` in [0, 1] behind a pane with drops, and the drops' mask ``(1, H,
    W)``.

    A drop is a small lens: it shows a wide part of the scene, upside down and out of focus, with a
    dark rim (Garg & Nayar 2007; Roser & Geiger 2009). Its edge is soft, as the pane is too near.
    """
    height, width = clear.shape[1:]
    soft = blurred(clear, rng.uniform(0.02, 0.05) * min(height, width) + 1)[None]
    hidden, through = torch.zeros(1, height, width), clear.clone()
    for _ in range(rng.integers(3, 25)):
        radius = rng.uniform(0.02, 0.1) * min(height, width) + 1
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        rows, columns = (
            slice(max(0, int(at - 2 * radius)), min(side, int(at + 2 * radius) + 1))
            for at, side in ((row, height), (column, width))
        )
        y, x = np.mgrid[rows, columns]
        down, right = (y - row) / rng.uniform(0.9, 1.5), x - column
        bumps = 1 + 0.15 * rng.random() * np.sin(2 * np.arctan2(down, right) + rng.uniform(0, 6))
        distance = np.hypot(down, right) / (radius * bumps)
        wide = rng.uniform(3, 8)  # how much more of the scene it shows than it hides
        points = np.stack([column - wide * right, row - wide * down], -1)
        points = 2 * (points + 0.5) / np.array([width, height]) - 1  # as grid_sample counts
        at = torch.from_numpy(points).to(clear)[None]
        seen = F.grid_sample(soft, at, padding_mode="reflection", align_corners=False)[0]
        rim = torch.from_numpy(1 - rng.uniform(0.1, 0.5) * distance.clip(0, 1) ** 6).to(clear)
        inside = torch.from_numpy(((1.1 - distance) * radius / 2).clip(0, 1)).to(clear)
        behind = through[:, rows, columns]
        through[:, rows, columns] = behind + inside * (seen * rim - behind)
        hidden[0, rows, columns] = torch.maximum(hidden[0, rows, columns], inside)
    return through.clamp(0, 1), (hidden > 0.05).float()


def blurred(image: Tensor, sigma: float) -> Tensor:
    """``(C, H, W)`` convolved with a Gaussian of ``sigma`` pixels, edges repeated."""
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, sigma, sigma), mode="nearest"))


MADE: dict[str, Callable[[Tensor, np.random.Generator], tuple[Tensor, Tensor]]] = {
    "low-light": low_light,
    "shadow": shadow,
    "rain": rain_drops,
}
