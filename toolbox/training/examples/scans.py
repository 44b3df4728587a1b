"""Training examples for MRI: slices of a magnitude volume become many simulated multi-coil
scans.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from restoration.io.containers.arrays import arrays_of
from restoration.io.images import read_image
from restoration.io.pictures.folders import find_pictures, random_window
from restoration.mri.estimate import CONDITION_CHANNELS, condition
from restoration.mri.sampling import column_mask, poisson_mask
from restoration.mri.sense import Sense
from restoration.mri.simulation import resize_maps, ring_maps, simulate_kspace, smooth_phase
from restoration.operators.measurement import Measurement
from solvers.inputs.errors import InputError
from toolbox.training.sections import Simulation

MINIMUM_SLICE = 32
SOLVE = 1e-3  # relative residual of conjugate gradients while training through them


def read_slices(
    folder: str | Path, exclude: tuple[str, ...] = ()
) -> tuple[list[np.ndarray], list[Tensor]]:
    """Magnitude slices scaled to [0, 1] and measured coil maps of all ``.npz`` files in a folder.

    Real arrays ``(slices, H, W)`` are images; complex ones ``(coils, H, W)`` sensitivities.

    Raises:
        ValueError: no slices.
    """
    slices, maps = [], []
    for path in sorted(Path(folder).rglob("*.npz")):
        if path.name in exclude:
            continue
        with arrays_of(path) as arrays:
            for key in arrays.shapes:
                array = arrays.read(key)
                if array.ndim != 3 or min(array.shape[1:]) < MINIMUM_SLICE:
                    continue
                if np.iscomplexobj(array):
                    maps.append(
                        resize_maps(torch.from_numpy(array.astype(np.complex64)), array.shape[1:])
                    )
                else:
                    slices += [
                        s.astype(np.float32) / s.max()
                        for s in array
                        if (s > 0.1 * s.max()).mean() > 0.05
                    ]
    if not slices:
        raise ValueError(
            f"{folder} holds no magnitude slices: .npz files with arrays (slices, H, W) are"
            " accepted"
        )
    return slices, maps


def read_planes(folder: str | Path, exclude: tuple[str, ...] = ()) -> list[np.ndarray]:
    """The photographs of a folder as single planes ``(H, W)`` of bytes.

    Raises:
        ValueError: there is none.
    """
    try:
        paths = find_pictures(folder, exclude)
    except InputError as error:
        raise InputError(
            f"{folder} holds no photographs to take anatomy from; a recipe with photographs = 0 in"
            " its section [simulation] is trained on slices alone"
        ) from error
    planes = (np.rint(255 * read_image(path).pixels.mean(0)).astype(np.uint8) for path in paths)
    return [plane for plane in planes if min(plane.shape) >= MINIMUM_SLICE]


class KeptScans:
    """Scans, each made once from its number and kept in memory in half precision.

    Patches ``(x0, condition)`` of one scan: complex image in 2 channels and what the network is
    shown, in units of the scan's scale.
    """

    def __init__(self, count: int, size: int, seed: int):
        self.count, self.size, self.seed = count, size, seed
        self.kept: dict[int, Tensor] = {}

    def scan(self, number: int) -> Tensor:
        """``(2 + 7, H, W)``: image and condition of scan ``number``."""
        if number not in self.kept:
            x0, shown, _ = self.simulate(np.random.default_rng([self.seed, 1, number]))
            self.kept[number] = torch.cat([x0[0], shown[0]]).half()
        return self.kept[number].float()

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """``(count, 2, size, size)`` and ``(count, 7, size, size)``: random patches, turned,
        flipped, with a random global phase.
        """
        out = torch.empty(count, 2 + CONDITION_CHANNELS, self.size, self.size)
        for k in range(count):
            scan = self.scan(int(rng.integers(self.count)))
            for _ in range(4):  # rather not empty background
                rows, columns = random_window(scan.shape, self.size, rng)
                patch = scan[:, rows, columns]
                if patch[:2].square().sum(0).mean() > 0.02:
                    break
            patch = torch.rot90(patch, int(rng.integers(4)), (1, 2))
            patch = patch.flip(2) if rng.random() < 0.5 else patch
            out[k] = _turn_phase(patch, rng.uniform(0, 2 * np.pi), conjugate=rng.random() < 0.5)
        return out[:, :2], out[:, 2:]

    def simulate(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Measurement]:
        """Image ``(1, 2, H, W)``, condition ``(1, 7, H, W)`` and measurement, all in units of the
        scan's scale.
        """
        raise TypeError(f"{type(self).__name__} must define simulate")


class Scans(KeptScans):
    """Scans that are simulated of images."""

    def __init__(
        self,
        folder: str | Path,
        simulation: Simulation,
        size: int,
        seed: int,
        exclude: tuple[str, ...] = (),
    ):
        super().__init__(simulation.scans, size, seed)
        self.slices, self.maps = read_slices(folder, exclude)
        self.simulation = simulation
        self.planes = read_planes(folder, exclude) if simulation.photographs else []

    def simulate(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Measurement]:
        """Image ``(1, 2, H, W)``, condition ``(1, 7, H, W)`` and measurement, all in units of the
        scan's scale.
        """
        s = self.simulation
        low = max(s.sides[0], self.size)
        height, width = (int(rng.integers(low, max(low, s.sides[1]) + 1)) for _ in range(2))
        size = (height, width)
        magnitude = self._object(size, rng)
        image = torch.polar(
            torch.from_numpy(magnitude), smooth_phase(size, rng, rng.uniform(0, 1.5))
        )
        g = torch.Generator().manual_seed(int(rng.integers(2**31)))
        if (
            rng.random() < 0.8
            # images that come from scanners hold noise of their own: what was measured of it is to
            # be returned
        ):
            image = (
                image
                + rng.uniform(0, s.texture)
                * torch.randn(size, generator=g, dtype=torch.complex64)
                * 2**0.5
            )
        maps = self._maps(size, rng)
        if maps is not None and rng.random() < 0.6:  # estimated maps end soon after the object does
            support = torch.from_numpy(
                ndimage.binary_dilation(magnitude > 0.02, iterations=int(rng.integers(1, 8)))
            )
            maps, image = maps * support, image * support
        acceleration = float(rng.uniform(*s.accelerations))
        if maps is None:
            acceleration = min(acceleration, 4.0)
        mask = _mask(s.kinds[rng.integers(len(s.kinds))], size, acceleration, rng)
        sigma = float(np.exp(rng.uniform(*np.log(s.sigmas))))
        operator, y = simulate_kspace(image, maps, mask, sigma, g)
        if maps is not None and rng.random() < 0.7:  # estimated maps are off by a few percent
            error = (
                ring_maps(len(maps), size, rng, width=0.5)
                * rng.uniform(0, s.map_error)
                * len(maps) ** 0.5
            )
            maps = maps + error * (maps.abs().sum(0) > 0)
            operator = Sense(operator.mask, maps)
        assumed = sigma * float(np.exp(rng.normal(0, 0.15)))
        shown, scale = condition(operator, y, assumed)
        quick = (
            operator
            if maps is None
            else Sense(operator.mask, maps, tolerance=SOLVE, max_iterations=30)
        )
        return (
            torch.stack([image.real, image.imag])[None] / scale,
            shown,
            Measurement(quick, y / scale, assumed / scale),
        )

    def _maps(self, size: tuple[int, int], rng: np.random.Generator) -> Tensor | None:
        kind = rng.random()
        if kind < 0.08:
            return None
        if kind < 0.5 or not self.maps:
            return ring_maps(int(rng.integers(4, 13)), size, rng)
        maps = self.maps[rng.integers(len(self.maps))]
        maps = torch.rot90(maps, int(rng.integers(4)), (1, 2))
        maps = maps.flip(2) if rng.random() < 0.5 else maps
        part = [round(n * rng.uniform(0.75, 1)) for n in maps.shape[1:]]
        rows, columns = random_window(maps.shape, part, rng)
        return resize_maps(maps[:, rows, columns].contiguous(), size)

    def _object(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        if self.planes and rng.random() < self.simulation.photographs:
            return _body(self.planes[rng.integers(len(self.planes))], size, rng)
        if rng.random() < 0.15:
            return _shapes(np.zeros(size, np.float32), rng, int(rng.integers(3, 12)))
        source = self.slices[rng.integers(len(self.slices))]
        brain = _warp(source, size, rng)
        inside = brain > 0.08
        brain = _contrast(brain, rng) * inside
        if rng.random() < 0.6:
            brain = brain + _scalp(inside, rng)
        if rng.random() < 0.25:
            brain = _shapes(brain, rng, int(rng.integers(1, 4)))
        return np.clip(brain, 0, None).astype(np.float32)


def _body(plane: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A part of a photograph, inside a smooth outline that is 0.3 to 0.8 of the field away from its
    middle, in a random contrast; dark parts are as empty as air in a third of them.
    """
    ratios = [n / m for n, m in zip(plane.shape, size, strict=True)]
    reduced = min(rng.uniform(1, 3), *ratios)
    part = [
        max(MINIMUM_SLICE, min(n, int(reduced * m))) for n, m in zip(plane.shape, size, strict=True)
    ]
    rows, columns = random_window(plane.shape, part, rng)
    picture = Image.fromarray(plane[rows, columns])
    image = np.asarray(picture.resize(size[::-1], Image.Resampling.LANCZOS), np.float32) / 255
    image = np.rot90(image, 2) if rng.random() < 0.5 else image
    image = 1 - image if rng.random() < 0.5 else image
    y, x = (
        (np.arange(n) - (n - 1) / 2) / n - rng.normal(0, 0.04) for n in size
    )  # fields of view are one wide
    angle = np.arctan2(y[:, None], x)
    radius = rng.uniform(0.3, 0.8) * np.exp(
        sum(
            rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
            for k in range(1, 5)
        )
    )
    inside = np.hypot(y[:, None], x) < radius
    if rng.random() < 1 / 3:
        inside = inside & (image > np.quantile(image, rng.uniform(0.05, 0.4)))
    soft = ndimage.gaussian_filter(inside.astype(np.float32), rng.uniform(0.3, 0.8))
    return np.clip(_contrast(image, rng) * soft, 0, None).astype(np.float32)


def _mask(
    kind: str, size: tuple[int, int], acceleration: float, rng: np.random.Generator
) -> Tensor:
    seed = int(rng.integers(2**31))
    if kind == "poisson":
        side = min(int(rng.integers(12, 25)), int((size[0] * size[1] / acceleration) ** 0.5 / 2))
        return poisson_mask(*size, acceleration, side, seed)
    share = float(np.clip(0.32 / acceleration * rng.uniform(0.7, 1.3), 0.03, 0.2))
    return column_mask(kind, size[1], acceleration, share, seed)


def _warp(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Random scale, turn, stretch and smooth displacement, centred on the head."""
    rows, cols = (np.flatnonzero((image > 0.1).any(axis)) for axis in (1, 0))
    centre = np.array([rows.mean(), cols.mean()])
    extent = np.array([np.ptp(rows), np.ptp(cols)]) + 1
    fill = rng.uniform(0.55, 1.1)
    scale = max(extent / (fill * np.array(size)))
    angle, stretch = (
        rng.normal(0, 0.25) + np.pi / 2 * rng.integers(4),
        np.exp(rng.normal(0, 0.08, 2)),
    )
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    y, x = np.meshgrid(
        *(np.arange(n) - (n - 1) / 2 - rng.normal(0, 0.03 * n) for n in size), indexing="ij"
    )
    field = turn @ (scale * stretch[:, None] * np.stack([y.ravel(), x.ravel()]))
    coarse = rng.normal(0, rng.uniform(0, 4), (2, 6, 6))
    bend = np.stack(
        [
            ndimage.zoom(c, (size[0] / 6, size[1] / 6), order=3, grid_mode=True, mode="nearest")
            for c in coarse
        ]
    )
    where = field.reshape(2, *size) + centre[:, None, None] + bend
    image = ndimage.gaussian_filter(image, 0.4 * (scale - 1)) if scale > 1 else image
    return np.clip(
        ndimage.map_coordinates(
            image, where, order=3 if rng.random() < 0.7 else 1, mode="constant"
        ),
        0,
        1,
    ).astype(np.float32)


def _contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random smooth curve through the grey values (monotone half of the time), a bias field, some
    fine structure.
    """
    knots = np.linspace(0, 1, 6)
    values = np.sort(rng.uniform(0, 1, 6)) if rng.random() < 0.5 else rng.uniform(0.05, 1, 6)
    if rng.random() < 0.3:
        values = knots ** rng.uniform(0.5, 2)
    image = np.interp(image / max(float(image.max()), 1e-6), knots, values).astype(np.float32)
    bias = ndimage.zoom(
        rng.normal(0, 0.1, (4, 4)),
        tuple(n / 4 for n in image.shape),
        order=3,
        grid_mode=True,
        mode="nearest",
    )
    if rng.random() < 0.5:  # vessels, nuclei, texture that a smooth template lacks
        grain = ndimage.gaussian_filter(rng.normal(size=image.shape), rng.uniform(0.5, 1.5))
        image = image * (1 + rng.uniform(0, 0.15) * grain / grain.std())
    return image * np.exp(bias)


def _scalp(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A bright shell at some distance around the brain: fluid and bone dark, then skin and fat."""
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(inside, 12), iterations=8))[
        12:-12, 12:-12
    ]
    distance = ndimage.distance_transform_edt(~brain)
    wobble = ndimage.zoom(
        rng.normal(0, 1.5, (6, 6)),
        tuple(n / 6 for n in inside.shape),
        order=3,
        grid_mode=True,
        mode="nearest",
    )
    distance = distance + wobble * (distance > 0)
    gap, skin = rng.uniform(3, 9), rng.uniform(3, 12)
    shell = np.clip(distance - gap, 0, 1) * np.clip(gap + skin - distance, 0, 1) * (distance > 0)
    fluid = (
        (distance > 0)
        * np.clip(gap * rng.uniform(0.2, 0.8) - distance, 0, 1)
        * rng.uniform(0, 0.9)
        * ~inside
    )
    patchy = ndimage.gaussian_filter(rng.normal(size=inside.shape), rng.uniform(1, 3))
    return (
        rng.uniform(0.3, 1.3)
        * shell
        * np.clip(1 + rng.uniform(0, 0.5) * patchy / patchy.std(), 0, 3)
        + fluid
    )


def _shapes(image: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Ellipses, bars and combs of random grey, as in test phantoms."""
    height, width = image.shape
    y, x = np.mgrid[:height, :width]
    for k in range(count):
        body = k == 0 and not image.any()
        centre = rng.uniform(0.4, 0.6, 2) if body else rng.uniform(0.15, 0.85, 2)
        radius = rng.uniform(0.25, 0.45, 2) if body else rng.uniform(0.02, 0.2, 2)
        angle = rng.uniform(0, np.pi)
        v, u = (y - centre[0] * height) / height, (x - centre[1] * width) / width
        v, u = (
            (np.cos(angle) * v + np.sin(angle) * u) / radius[0],
            (np.cos(angle) * u - np.sin(angle) * v) / radius[1],
        )
        form = rng.random()
        inside = np.hypot(u, v) < 1 if body or form < 0.6 else np.maximum(abs(u), abs(v)) < 1
        if not body and form > 0.85:
            inside = inside & (np.mod(u * rng.uniform(2, 6), 1) < 0.5)
        soft = ndimage.gaussian_filter(inside.astype(np.float32), rng.uniform(0.3, 0.8))
        image = image * (1 - soft) + soft * rng.uniform(0.3 if body else 0, 1)
    return image.astype(np.float32)


def _turn_phase(patch: Tensor, angle: float, conjugate: bool) -> Tensor:
    """Multiply the complex pairs of channels by one phase; optionally conjugate: the physics allows
    both.

    Compressed pairs are first expanded, so the result is what the network would be shown for the
    turned image.
    """
    pairs = torch.cat([patch[:4], patch[4:8].sinh()])
    z = torch.complex(pairs[0::2], pairs[1::2])
    z = (z.conj() if conjugate else z) * np.exp(1j * angle)
    pairs = torch.stack([z.real, z.imag], 1).flatten(0, 1)
    return torch.cat([pairs[:4], pairs[4:].asinh(), patch[8:]])
