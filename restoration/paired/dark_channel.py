"""Dark channel prior: single picture dehazing without learning. He, Sun & Tang 2011; guided filter:
He, Sun & Tang 2013.

Written in tensor operations for batches: the classical baseline, and what the dehazing network is
shown beside the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def dark_channel(image: Tensor, window: int = 15) -> Tensor:
    """Smallest value of any channel in a ``window`` x ``window`` neighbourhood (eq. 5): ``(B, C, H,
    W)`` to ``(B, 1, H, W)``.

    Raises:
        ValueError: a window that is not odd and positive.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive; got {window}")
    darkest = -image.amin(1, keepdim=True)
    for kernel, pad in (((window, 1), (window // 2, 0)), ((1, window), (0, window // 2))):
        # pads with -inf: the window is cut at the border
        darkest = F.max_pool2d(darkest, kernel, 1, pad)
    return -darkest


def airlight(image: Tensor, dark: Tensor, share: float = 0.001) -> Tensor:
    """Atmospheric light ``(B, C, 1, 1)``: the brightest pixel (mean of channels) among the
    ``share`` with the lightest dark channel.

    Section 4.3. At least one pixel is looked at; the first one wins where several are equally
    bright.
    """
    flat, dark = image.flatten(2), dark.flatten(1)
    count = max(1, int(share * dark.shape[1]))
    place = dark.topk(count, dim=1).indices
    candidates = flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1))
    brightest = candidates.mean(1).argmax(1)[:, None, None].expand(-1, flat.shape[1], 1)
    return candidates.gather(2, brightest)[..., None]


def box_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over ``(2 radius + 1)^2`` pixels, cut at the border, by running sums in float64; in a
    graph by pooling in its own precision, since TensorRT narrows float64.
    """
    if torch.compiler.is_exporting():
        side = 2 * radius + 1
        columns = F.avg_pool2d(x, (side, 1), 1, (radius, 0), count_include_pad=False)
        return F.avg_pool2d(columns, (1, side), 1, (0, radius), count_include_pad=False)
    for dim in (-2, -1):
        length = x.shape[dim]
        sums = F.pad(x.double().cumsum(dim), (1, 0) if dim == -1 else (0, 0, 1, 0))
        place = torch.arange(length, device=x.device)
        high, low = (place + radius + 1).clamp(max=length), (place - radius).clamp(min=0)
        total = sums.index_select(dim, high) - sums.index_select(dim, low)
        count = (high - low).double()
        x = (total / (count if dim == -1 else count[:, None])).to(x.dtype)
    return x


def guided_filter(image: Tensor, guide: Tensor, radius: int = 40, eps: float = 1e-3) -> Tensor:
    """Smooth ``image (B, C, H, W)`` along the edges of ``guide (B, 1, H, W)``: in every window a
    linear function of the guide.

    He et al. 2013, algorithm 1. ``eps`` is in units of the guide's squared values.
    """
    mean_g, mean_i = box_mean(guide, radius), box_mean(image, radius)
    slope = (box_mean(guide * image, radius) - mean_g * mean_i) / (
        box_mean(guide * guide, radius) - mean_g**2 + eps
    )
    offset = mean_i - slope * mean_g
    return box_mean(slope, radius) * guide + box_mean(offset, radius)


@dataclass(frozen=True)
class DarkChannelEstimate:
    """The picture ``(B, 3, H, W)`` in [0, 1], its transmission ``(B, 1, H, W)`` and atmospheric
    light ``(B, 3, 1, 1)``.
    """

    image: Tensor
    transmission: Tensor
    airlight: Tensor


@dataclass(frozen=True)
class DarkChannelPrior:
    """``t = 1 - omega dark(I/A)``, refined by the guided filter; ``J = (I - A)/max(t, floor) + A``
    (eq. 11, 12, 16, 22).

    Reference: He, Sun & Tang, "Single Image Haze Removal Using Dark Channel Prior", TPAMI 2011; the
    guided filter takes the place of its soft matting, as the authors propose in "Guided Image
    Filtering" (TPAMI 2013).

    Args:
        window: of the dark channel, in pixels (15 in the paper, on pictures of about 600 x 400).
        omega: share of the haze that is removed (0.95 in the paper).
        floor: smallest transmission that the picture is divided by (0.1 in the paper).
        radius, eps: of the guided filter, whose guide is the grey picture. Radius 0: no refinement.

    Raises:
        ValueError: values out of their ranges.
    """

    window: int = 15
    omega: float = 0.95
    floor: float = 0.1
    radius: int = 40
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"window must be odd and positive; got {self.window}")
        if not (0 < self.omega <= 1 and 0 < self.floor <= 1):
            raise ValueError(
                f"omega and floor must lie in (0, 1]; got {self.omega} and {self.floor}"
            )
        if self.radius < 0 or not self.eps > 0:
            raise ValueError(
                f"radius must be at least 0 and eps positive; got {self.radius} and {self.eps}"
            )

    def __call__(self, image: Tensor) -> DarkChannelEstimate:
        """Dehaze pictures ``(B, 3, H, W)`` in [0, 1].

        Raises:
            ValueError: another shape.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                "the dark channel prior needs colour pictures (B, 3, H, W); got"
                f" {tuple(image.shape)}"
            )
        light = airlight(image, dark_channel(image, self.window)).clamp(min=1e-3)
        transmission = 1 - self.omega * dark_channel(image / light, self.window)
        if self.radius > 0:
            guide = (image * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
            transmission = guided_filter(transmission, guide, self.radius, self.eps)
        restored = (image - light) / transmission.clamp(min=self.floor) + light
        return DarkChannelEstimate(restored.clamp(0, 1), transmission.clamp(0, 1), light)
