"""Classical answers that networks of pairs start from: what too little light or a shadow did to a
picture is undone as far as a formula can (docs/design.md, "Lift, then diffuse").
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from restoration.paired.dark_channel import box_mean
from restoration.paired.haze import srgb_decode, srgb_encode

MEAN = 0.17  # light of a picture as cameras expose it, of 1 where it saturates: 0.45 in sRGB
BRIGHTEST = 10.0  # what a shadow may have left at the least is a tenth of the light


def brightened(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Dark pictures ``(B, 3, H, W)`` in [0, 1] as if exposed longer: their light times what brings
    its mean to that of a well exposed picture. A mask has no part in it.
    """
    return srgb_encode((srgb_decode(image) * _gain(image).clamp(min=1)).clamp(0, 1))


def underexposed(image: Tensor) -> Tensor:
    """How far pictures ``(B, C, H, W)`` in [0, 1] are from a good exposure, ``(B, 1, 1, 1)``: 1
    where they have half of its light or less, 0 where they have all of it.
    """
    return _gain(image).log2().clamp(0, 1)


def _gain(image: Tensor) -> Tensor:
    """Times that the light of pictures fits into a good exposure's, ``(B, 1, 1, 1)``."""
    return MEAN / srgb_decode(image).mean((1, 2, 3), keepdim=True).clamp(min=1e-5)


def relit(image: Tensor, mask: Tensor | None) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in [0, 1] whose shadows, where the mask ``(B, 1, H, W)`` is 1, are
    brightened to the light around them: colour by colour, by one factor for all of a picture's
    shadow (Finlayson et al. 2006).

    Raises:
        ValueError: no mask.
    """
    if mask is None:
        raise ValueError("a shadow is told by its mask: give one")
    light, side = srgb_decode(image), min(int(mask.shape[-2]), int(mask.shape[-1]))
    around = (box_mean(mask, max(1, side // 20)) > 0.01).to(mask) * (1 - mask)

    def mean(where: Tensor) -> Tensor:
        count = where.sum((2, 3), keepdim=True).clamp(min=1)
        return (light * where).sum((2, 3), keepdim=True) / count

    ratio = (mean(around) / mean(mask).clamp(min=1e-5)).clamp(1, BRIGHTEST)
    soft = box_mean(mask, max(1, side // 150))
    return srgb_encode((light * (1 + soft * (ratio - 1))).clamp(0, 1))


# by the word for what a network is shown
LIFTS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "brightened": brightened,
    "relit+mask": relit,
}
