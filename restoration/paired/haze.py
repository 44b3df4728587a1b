"""Haze by the atmospheric scattering model, with depth that is given or made up. Koschmieder 1924;
Narasimhan & Nayar 2002.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.io.containers.arrays import read_array
from restoration.paired.dark_channel import LUMA, guided_filter
from solvers.inputs.errors import InputError, reading

# RESIDE's indoor training set (Li et al. 2019): scattering of depth that is 1 at its largest
BETA = (0.6, 1.8)
AIRLIGHT = (0.7, 1.0)
WAVELENGTHS = (0.61, 0.55, 0.465)  # micrometres, where sRGB's red, green and blue lie


@dataclass(frozen=True)
class Scattering:
    """``I = J t + A (1 - t)``, ``t = exp(-beta d)``.

    Args:
        beta: scattering coefficient, in 1/(unit of depth).
        airlight: ``A``, one value or (R, G, B), in the units of the picture.
        linear_light: False: the model acts on the picture's values as they are (gamma-coded), as
            RESIDE and most data sets make their haze. True: on light, decoded by sRGB's curve and
            coded again, which is the physics; ``airlight`` is gamma-coded in both cases.
        exponent: Angstrom's: ``beta`` is green's, and a colour of wavelength ``l`` has
            ``beta (l / 0.55 um) ** -exponent``. 0 in fog, 1 to 2 in thin haze, whose distance is
            blue.

    Raises:
        ValueError: ``beta`` or the exponent negative, or an airlight outside [0, 1].
    """

    beta: float
    airlight: float | tuple[float, float, float] = 1.0
    linear_light: bool = False
    exponent: float = 0.0

    def __post_init__(self) -> None:
        light = np.atleast_1d(self.airlight)
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta must be a finite number >= 0; got {self.beta}")
        if not 0 <= self.exponent <= 4:
            raise ValueError(f"the exponent must lie in [0, 4]; got {self.exponent}")
        if light.shape not in ((1,), (3,)) or not ((light >= 0) & (light <= 1)).all():
            raise ValueError(
                f"airlight must be one value or three (R, G, B) in [0, 1]; got {self.airlight}"
            )

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        beta: tuple[float, float] = BETA,
        airlight: tuple[float, float] = AIRLIGHT,
        tint: float = 0.0,
    ) -> Scattering:
        """Both uniform in their ranges; ``tint`` lowers each channel of the airlight by up to that,
        on its own.
        """
        light = rng.uniform(*airlight) - tint * rng.random(3)
        red, green, blue = light.clip(0, 1).tolist()
        return cls(float(rng.uniform(*beta)), (red, green, blue))

    def transmission(self, depth: Tensor) -> Tensor:
        """Green's ``exp(-beta d)`` in (0, 1], of ``depth``'s shape."""
        return torch.exp(-self.beta * depth)

    def __call__(self, image: Tensor, depth: Tensor) -> Tensor:
        """Hazy pictures ``(..., C, H, W)`` from clear ones in [0, 1] and ``depth (H, W)`` or
        ``(..., 1, H, W)``.

        Raises:
            ValueError: sizes that differ, or depth that is negative or not finite.
        """
        if depth.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"depth is {tuple(depth.shape[-2:])} but the picture {tuple(image.shape[-2:])}"
                " pixels (H, W)"
            )
        if not torch.isfinite(depth).all() or depth.min() < 0:
            raise ValueError(
                "depth must be finite and not negative; fill unknown places first (read_depth does)"
            )
        light = torch.as_tensor(
            np.atleast_1d(self.airlight)[:, None, None].copy(),
            dtype=image.dtype,
            device=image.device,
        )
        t = self.transmission(depth).to(image)
        if self.exponent:  # (..., 3, H, W), or (3, H, W) for one depth of all
            of_green = (np.array(WAVELENGTHS) / WAVELENGTHS[1]) ** -self.exponent
            t = t ** torch.from_numpy(of_green[:, None, None]).to(image)
        if not self.linear_light:
            return image * t + light * (1 - t)
        return srgb_encode(srgb_decode(image) * t + srgb_decode(light) * (1 - t))


def srgb_decode(value: Tensor) -> Tensor:
    """sRGB's coded values in [0, 1] to light in [0, 1] (IEC 61966-2-1)."""
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb_encode(light: Tensor) -> Tensor:
    """Light in [0, 1] to sRGB's coded values in [0, 1]."""
    return torch.where(
        light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    )


def read_depth(path: str | Path, height: int, width: int) -> Tensor:
    """Depth ``(H, W)`` from ``.npy``, or ``.npz`` with one array or one named ``depth``; NaN
    (unknown) takes the value of the nearest known pixel.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, another size, nothing known, or negative values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"depth file {path} does not exist")
    with reading(path, "depth (.npy or .npz)"):
        depth = np.asarray(read_array(path, "depth"), dtype=np.float32)
    if depth.shape != (height, width):
        raise InputError(
            f"depth {path} has shape {depth.shape} but the picture is {(height, width)} (H, W)"
        )
    unknown = ~np.isfinite(depth)
    if unknown.all() or (depth[~unknown] < 0).any():
        raise InputError(
            f"depth {path} holds {'nothing known' if unknown.all() else 'negative values'}"
        )
    if unknown.any():
        from scipy.ndimage import distance_transform_edt

        nearest = distance_transform_edt(unknown, return_distances=False, return_indices=True)
        depth = depth[tuple(nearest)]
    return torch.from_numpy(np.ascontiguousarray(depth))


def procedural_depth(
    height: int, width: int, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """Made-up depth for pictures that have none: a room or open ground, bumps, things in front, a
    far layer.

    Rays of a pinhole camera meet a floor and, at random, walls, a ceiling and an end; the distance
    is multiplied by a smooth random field; up to five ellipses and rectangles stand in front of
    what is behind them.

    Returns:
        Depth ``(H, W)``, 1 at its largest and at least 0.02, and what is seen ``(H, W)``: things
            from 1 up, surfaces (floor, walls, end,
        ceiling) from -1 down, 0 the far layer.
    """
    view = rng.uniform(0.5, 1.2)
    x = np.linspace(-view, view, width, dtype=np.float32) + rng.uniform(-0.3, 0.3)
    y = np.linspace(-view, view, height, dtype=np.float32)[:, None] * (
        height / width
    ) + rng.uniform(-0.4, 0.4)
    yaw = rng.uniform(-0.8, 0.8)
    right, ahead = x * np.cos(yaw) + np.sin(yaw), np.cos(yaw) - x * np.sin(yaw)

    def hit(along: np.ndarray, distance: float) -> np.ndarray:
        return distance / np.maximum(along, 1e-3)

    depth = np.full((height, width), rng.uniform(2, 8), np.float32)  # the far layer
    labels = np.zeros((height, width), np.int64)
    planes = [hit(y + 0 * x, rng.uniform(0.4, 1.5))]
    if rng.random() < 0.6:
        sides = (
            (right + 0 * y, rng.uniform(0.5, 3)),
            (-right + 0 * y, rng.uniform(0.5, 3)),
            (ahead + 0 * y, rng.uniform(1, 6)),
        )
        planes += [hit(*side) for side in sides]
    if rng.random() < 0.5:
        planes.append(hit(-y + 0 * x, rng.uniform(0.6, 3)))
    for k, plane in enumerate(planes):
        labels[plane < depth] = -1 - k
        depth = np.minimum(depth, plane)
    depth = depth * np.exp(rng.uniform(0, 0.5) * smooth_field(height, width, rng))
    rows, columns = np.arange(height)[:, None] / height, np.arange(width) / width
    for k in range(rng.integers(0, 6)):
        centre, size, angle = rng.random(2), rng.uniform(0.05, 0.4, 2), rng.uniform(0, np.pi)
        v, u = rows - centre[0], columns - centre[1]
        u, v = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        u, v = np.abs(u) / size[0], np.abs(v) / size[1]
        inside = (u**2 + v**2 < 1) if rng.random() < 0.5 else (np.maximum(u, v) < 1)
        if not inside.any():
            continue
        distance = rng.uniform(0.3, 1) * depth[inside].mean()
        front = inside & (depth > distance)
        depth[front], labels[front] = distance, k + 1
    depth = depth / depth.max()
    return torch.from_numpy(depth.clip(0.02, 1).astype(np.float32)), labels


def depth_of_cues(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Made-up depth ``(H, W)`` of a clear picture ``(3, H, W)`` in [0, 1], 1 at its largest and at
    least 0.02, by what tells distance outdoors: high in the picture, bright and pale (after the
    colour attenuation prior, Zhu, Mai & Shao 2015), without detail. The cues' weights are random.
    """
    height, width = image.shape[1:]
    bright = image.amax(0)
    pale = bright - (bright - image.amin(0)) / bright.clamp(min=0.05)  # value less saturation
    mean = partial(F.avg_pool2d, kernel_size=5, stride=1, padding=2, count_include_pad=False)
    smooth = -mean((bright - mean(bright[None])).abs())[0]
    high = torch.linspace(1, 0, height)[:, None].expand(-1, width)
    total = torch.zeros(height, width)
    for cue, largest in ((high, 1.5), (pale, 0.7), (smooth, 0.4)):
        total += float(rng.uniform(0, largest)) * (cue - cue.mean()) / (cue.std() + 1e-3)
    total = follow_edges(total, image, int(rng.integers(3, 13)))
    total = (total - total.min()) / (total.max() - total.min() + 1e-3)
    depth = torch.exp(float(rng.uniform(0.3, 2)) * total)  # distance grows fast towards the horizon
    return (depth / depth.max()).clamp(0.02, 1)


def smooth_field(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field ``(H, W)`` of about unit size: coarse noise, enlarged."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, *rng.integers(2, 7, 2)), dtype=np.float32))
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0, 0].numpy()


def follow_edges(depth: Tensor, image: Tensor, radius: int = 8, eps: float = 1e-3) -> Tensor:
    """Depth ``(H, W)`` drawn to the edges of the picture ``(3, H, W)`` by a guided filter, as
    things' outlines are edges in both.
    """
    guide = (image * image.new_tensor(LUMA)[:, None, None]).sum(0)[None, None]
    low, high = depth.min(), depth.max()
    return guided_filter(depth[None, None], guide, radius, eps)[0, 0].clamp(low, high)
