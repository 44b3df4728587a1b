"""The restorations that a calibration records, by task: each draws its picture, degradation and
noise from the seed and its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.io.folders import random_window
from restoration.io.images import read_image
from restoration.io.mri import read_scan
from restoration.mri.task import MRITask
from restoration.operators.linear import Denoising, Inpainting, LinearOperator
from restoration.operators.separable import Bicubic, BlockMean, Blur, gaussian_kernel
from restoration.paired.simulation import Haze, make_hazy
from restoration.paired.task import PairedTask
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.linear import LinearTask
from restoration.photo.masks import KINDS, MISSING, make_mask
from restoration.task import Run, sample
from solvers import GRIDS, solver_by_name
from solvers.denoiser import Denoiser
from solvers.solver import Solver
from toolbox.api import float_model
from toolbox.tasks.mri import make_sampling, simulate


@dataclass(frozen=True)
class Restorations:
    """Restoration ``k`` of many: picture ``k // len(steps)`` of a folder, at ``steps[k %
    len(steps)]`` solver steps.

    Everything drawn for it (crop, mask, noise, start) depends on the seed and k alone.

    Args:
        files: pictures; empty for ``generate``.
        side: of the crops (or generated images), in pixels.
        sigma: noise on the measurements, in units of [0, 1].
    """

    denoiser: Denoiser
    task: str
    files: tuple[Path, ...]
    solver: Solver
    steps: tuple[int, ...]
    grid: str
    correction: str | None
    sigma: float
    side: int
    seed: int

    def __call__(self, k: int) -> None:
        number, steps = k // len(self.steps), self.steps[k % len(self.steps)]
        d, seed = self.denoiser, self.seed + k
        grid = GRIDS[self.grid](d.process, steps)
        if self.task == "generate":
            shape = (d.image_channels or 3, self.side, self.side)
            sample(Run(d, self.solver, grid, shape), seed=seed)
            return
        image = self.picture(number)
        generator = torch.Generator().manual_seed(seed)
        operator: LinearOperator
        noise = self.sigma * torch.randn(image.shape, generator=generator)
        if self.task == "inpaint":
            kind = KINDS[number % len(KINDS)]
            mask = torch.from_numpy(
                make_mask(kind, image.shape[1], image.shape[2], MISSING[kind], self.seed + number)
            )
            if image.shape[0] == 3:
                task = InpaintingTask(d, self.solver, steps, self.grid, self.correction)
                task((image + noise).clamp(0, 1), mask, sigma=self.sigma, seed=seed)
                return
            operator = Inpainting(mask)
        else:
            size = image.shape[1:]
            # networks that are shown a lift were trained on means of blocks
            small = BlockMean if d.condition_channels else Bicubic
            makers: dict[str, Callable[[], LinearOperator]] = {
                "denoise": Denoising,
                "superresolve": lambda: small(size, 4),
                "deblur": lambda: Blur(size, gaussian_kernel(1.6)),
            }
            operator = makers[self.task]()
        y = operator.A(image[None])
        y = y + self.sigma * torch.randn(y.shape, generator=generator)
        if self.task == "inpaint":
            y = operator.A(y)
        # of a denoiser too: its run visits the whole grid
        name = self.correction or ("diffpir" if self.sigma > 0 else "ddnm")
        LinearTask(d, self.solver, steps, self.grid, name)(
            y[0], operator, sigma=self.sigma, seed=seed
        )

    def picture(self, number: int) -> Tensor:
        """A random crop ``(C, h, w)`` in [0, 1], at most ``side`` x ``side``, of the network's
        channels.
        """
        order = np.random.default_rng(self.seed).permutation(len(self.files))
        pixels = read_image(self.files[order[number % len(order)]]).pixels
        rng = np.random.default_rng([self.seed, number])
        rows, columns = random_window(pixels.shape, self.side, rng)
        crop = torch.from_numpy(np.ascontiguousarray(pixels[:, rows, columns]))
        return (
            crop.mean(0, keepdim=True)
            if self.denoiser.image_channels == 1
            else crop.expand(3, -1, -1)
        )


class MRIRestorations:
    """Restoration ``k``: a slice of a volume of magnitudes, scanned by simulation with masks and
    accelerations that take turns.

    Everything drawn for it (slice, coils, phase, noise, mask, start) depends on the seed and k
    alone.

    Args:
        file: magnitude images.
        sigma: noise of the k-space as a share of the slice's 0.99 quantile.

    Raises:
        ValueError: a file of k-space.
    """

    def __init__(
        self,
        denoiser,
        file: Path,
        solver: Solver,
        steps: tuple[int, ...],
        grid: str,
        correction: str | None,
        sigma,
        seed: int,
    ):
        self.scan = read_scan(file)
        magnitude = self.scan.magnitude
        if magnitude is None:
            raise ValueError(
                f"{file} holds k-space; scans are simulated of magnitude images, whose truth is"
                " known"
            )
        self.magnitude = magnitude
        self.tasks = [MRITask(denoiser, solver, n, grid, correction) for n in steps]
        self.sigma, self.seed = sigma, seed

    def __call__(self, k: int) -> None:
        number, task = k // len(self.tasks), self.tasks[k % len(self.tasks)]
        rng = np.random.default_rng([self.seed, number])
        one = int(rng.integers(len(self.magnitude)))
        scan = replace(self.scan, magnitude=self.magnitude[one : one + 1])
        kspace, maps, noise = simulate(scan, None, 8, self.sigma, self.seed + number)
        kind, acceleration = (
            ("equispaced-fraction", "poisson", "random")[number % 3],
            (4.0, 8.0)[number // 3 % 2],
        )
        mask = make_sampling(
            kind, tuple(kspace.shape[-2:]), acceleration, None, self.seed + number
        ).expand(kspace.shape[-2:])
        task(kspace[0] * mask, mask, maps, sigma=noise, seed=self.seed + k)


class UltrasoundRestorations:
    """Restoration ``k``: a clean B-mode picture (or a crop of it) with simulated haze, of three
    strengths that take turns.

    Everything drawn for it (crop, haze, start) depends on the seed and k alone.

    Args:
        partner: the other prior, ``tissue:MODEL`` or ``haze:MODEL``.

    Raises:
        ValueError: a partner in another form.
    """

    def __init__(
        self,
        denoiser,
        partner: str | None,
        files: tuple[Path, ...],
        solver: Solver,
        steps,
        correction: str | None,
        side,
        seed: int,
    ):
        from restoration.ultrasound.task import UltrasoundTask

        role, _, name = (partner or "").partition(":")
        if role not in ("tissue", "haze") or not name:
            raise ValueError(
                "--task ultrasound needs the other prior: --partner haze:MODEL or tissue:MODEL;"
                f" got {partner!r}"
            )
        other = float_model(name)
        tissue, haze = (other, denoiser) if role == "tissue" else (denoiser, other)
        options: dict[str, Any] = {} if correction is None else {"correction": correction}
        self.tasks = [
            UltrasoundTask(tissue, haze, solver=solver, num_inference_steps=n, **options)
            for n in steps
        ]
        self.files, self.side, self.seed = files, side, seed

    def __call__(self, k: int) -> None:
        from restoration.ultrasound.simulation import simulate_haze

        number, task = k // len(self.tasks), self.tasks[k % len(self.tasks)]
        rng = np.random.default_rng([self.seed, number])
        clean = read_image(self.files[int(rng.integers(len(self.files)))]).pixels.mean(0)
        hazy = simulate_haze(clean, (0.5, 1.0, 2.0)[number % 3], self.seed + number)
        task(
            torch.from_numpy(hazy[random_window(hazy.shape, self.side, rng)].copy()),
            seed=self.seed + k,
        )


class PairedRestorations:
    """Restoration ``k`` of degraded pictures, with solvers and numbers of steps that take turns.

    Solvers of several processes ask a network at different levels; all that are deployed belong
    into one calibration.

    Args:
        task: ``dehaze``: ``files`` are clear pictures, to which haze is simulated; ``paired``: they
            are degraded ones.
        files: pictures, or (degraded picture, mask).
        side: of the crops, in pixels.
    """

    def __init__(
        self,
        denoiser,
        task: str,
        files: tuple,
        solvers: Sequence[str],
        steps: tuple[int, ...],
        grid: str,
        side: int,
        seed: int,
    ):
        self.tasks = [
            PairedTask(denoiser, solver_by_name(name), n, grid=grid)
            for n in steps
            for name in solvers
        ]
        self.task, self.files, self.side, self.seed = task, files, side, seed

    def __call__(self, k: int) -> None:
        number, task = k // len(self.tasks), self.tasks[k % len(self.tasks)]
        order = np.random.default_rng(self.seed).permutation(len(self.files))
        rng = np.random.default_rng([self.seed, number])
        picture = self.files[order[number % len(order)]]
        paths = picture if isinstance(picture, tuple) else (picture,)
        parts = [torch.from_numpy(read_image(path).pixels) for path in paths]
        if len({part.shape[1:] for part in parts}) > 1:
            raise ValueError(f"mask {paths[1]} has another size than {paths[0]}")
        # from whole scenes to details
        scale = rng.uniform(min(1, self.side / min(parts[0].shape[1:])), 1)
        parts = [
            F.interpolate(part[None], scale_factor=scale, mode="bilinear", antialias=True)[0].clamp(
                0, 1
            )
            for part in parts
        ]
        rows, columns = random_window(parts[0].shape, self.side, rng)
        image, *mask = (part[:, rows, columns] for part in parts)
        image = image.expand(3, -1, -1)
        if self.task == "dehaze":
            image = make_hazy(image, image[None], Haze(), rng)[1]
        task(image, (mask[0].mean(0) >= 0.5).float() if mask else None, seed=self.seed + k)


class CubeRestorations:
    """Restoration ``k``: a simulated cube in the pattern of a picture, with Gaussian noise or a
    mixture, from which eigen-images are taken.

    Everything drawn for it (crop, sensor, materials, noise) depends on the seed and k alone.

    Args:
        denoiser: of joint latents (recipe ``hsi``).
        files: pictures, and the one ``spectral_library.npz``.
        side: of the scenes, in pixels.
    """

    def __init__(self, denoiser: Denoiser, files: tuple[Path, ...], side: int, seed: int):
        from restoration.hyperspectral.simulation import SpectralLibrary
        from restoration.hyperspectral.task import HyperspectralTask

        self.library = SpectralLibrary.read(next(f for f in files if f.suffix == ".npz"))
        self.task = HyperspectralTask(denoiser, symmetries=1)
        self.files, self.side, self.seed = [f for f in files if f.suffix != ".npz"], side, seed

    def __call__(self, k: int) -> None:
        from restoration.hyperspectral.noise import SIGMAS, add_noise
        from restoration.hyperspectral.simulation import SENSORS, bands_of, simulate_cube

        rng = np.random.default_rng([self.seed, k])
        pixels = read_image(self.files[int(rng.integers(len(self.files)))]).pixels
        rows, columns = random_window(pixels.shape, self.side, rng)
        crop = pixels[:, rows, columns]
        picture = np.broadcast_to(crop, (3, *crop.shape[1:]))
        clean = simulate_cube(
            self.library, picture, bands_of(list(SENSORS)[k % len(SENSORS)]), [self.seed, k]
        )
        case = ("iid", "mixture")[k % 2]
        self.task(
            add_noise(
                clean, case, self.seed + k, SIGMAS[k // 2 % len(SIGMAS)] if case == "iid" else None
            ),
            seed=self.seed + k,
        )
