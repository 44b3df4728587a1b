"""Calibrate any diffusers U-Net on the trajectories of its deployment: what ``restobox calibrate`` does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quant.collect import collect
from quant.eda_dm import EDADM
from quant.ptq4dm import PTQ4DM
from quant.selection import Uniform
from quant.trajectory import CalibrationSet
from restoration.inpainting import InpaintingTask
from restoration.io.images import check_folder, read_image
from restoration.io.mri import read_scan
from restoration.linear import LinearTask
from restoration.masks import KINDS, make_mask
from restoration.mri.task import MRI
from restoration.operators import Denoising, Inpainting
from restoration.paired import HAZE, MASKED, PLAIN, PairedRestoration
from restoration.posterior import CORRECTIONS
from restoration.separable import Bicubic, Blur, gaussian_kernel
from restoration.task import sample
from solvers import GRIDS, solver_by_name
from solvers.denoiser import Denoiser
from solvers.solver import Solver
from toolbox.cost import Cost
from toolbox.deploy import MISSING, SUFFIXES, float_model
from toolbox.mri import make_sampling, simulate
from toolbox.paired_training import Haze, find_pairs, make_hazy

TASKS = ("inpaint", "denoise", "superresolve", "deblur", "mri", "ultrasound", "dehaze", "paired", "hsi", "generate")
SELECTIONS = ("uniform", "ptq4dm", "eda-dm")


@dataclass(frozen=True)
class Restorations:
    """Restoration ``k`` of many: picture ``k // len(steps)`` of a folder, at ``steps[k % len(steps)]`` solver steps.

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
            sample(d, (image_channels(d), self.side, self.side), grid, self.solver, seed=seed)
            return
        image = self.picture(number)
        generator = torch.Generator().manual_seed(seed)
        noise = self.sigma * torch.randn(image.shape, generator=generator)
        if self.task == "inpaint":
            kind = KINDS[number % len(KINDS)]
            mask = torch.from_numpy(make_mask(kind, *image.shape[1:], MISSING[kind], self.seed + number))
            if image.shape[0] == 3:
                task = InpaintingTask(d, self.solver, steps, self.grid, self.correction)
                task((image + noise).clamp(0, 1), mask, sigma=self.sigma, seed=seed)
                return
            operator = Inpainting(mask)
        else:
            size = image.shape[1:]
            makers = {"denoise": Denoising, "superresolve": lambda: Bicubic(size, 4), "deblur": lambda: Blur(size, gaussian_kernel(1.6))}
            operator = makers[self.task]()
        y = operator.A(image[None])
        y = y + self.sigma * torch.randn(y.shape, generator=generator)
        if self.task == "inpaint":
            y = operator.A(y)
        name = self.correction or ("diffpir" if self.sigma > 0 else "ddnm")  # of a denoiser too: its run visits the whole grid
        LinearTask(d, self.solver, steps, self.grid, name)(y[0], operator, sigma=self.sigma, seed=seed)

    def picture(self, number: int) -> Tensor:
        """A random crop ``(C, h, w)`` in [0, 1], at most ``side`` x ``side``, of the network's channels."""
        order = np.random.default_rng(self.seed).permutation(len(self.files))
        pixels = read_image(self.files[order[number % len(order)]]).pixels
        rng = np.random.default_rng([self.seed, number])
        height, width = (min(self.side, n) for n in pixels.shape[1:])
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(pixels.shape[1:], (height, width), strict=True))
        crop = torch.from_numpy(np.ascontiguousarray(pixels[:, top : top + height, left : left + width]))
        return crop.mean(0, keepdim=True) if image_channels(self.denoiser) == 1 else crop.expand(3, -1, -1)


class MRIRestorations:
    """Restoration ``k``: a slice of a volume of magnitudes, scanned by simulation with masks and accelerations that take turns.

    Everything drawn for it (slice, coils, phase, noise, mask, start) depends on the seed and k alone.

    Args:
        file: magnitude images.
        sigma: noise of the k-space as a share of the slice's 0.99 quantile.

    Raises:
        ValueError: a file of k-space.
    """

    def __init__(self, denoiser, file: Path, solver: Solver, steps: tuple[int, ...], grid: str, correction: str | None, sigma, seed: int):
        self.scan = read_scan(file)
        if self.scan.magnitude is None:
            raise ValueError(f"{file} holds k-space; scans are simulated of magnitude images, whose truth is known")
        self.tasks = [MRI(denoiser, solver, n, grid, correction) for n in steps]
        self.sigma, self.seed = sigma, seed

    def __call__(self, k: int) -> None:
        number, task = k // len(self.tasks), self.tasks[k % len(self.tasks)]
        rng = np.random.default_rng([self.seed, number])
        one = int(rng.integers(len(self.scan.magnitude)))
        scan = replace(self.scan, magnitude=self.scan.magnitude[one : one + 1])
        kspace, maps, noise = simulate(scan, None, 8, self.sigma, self.seed + number)
        kind, acceleration = ("equispaced-fraction", "poisson", "random")[number % 3], (4.0, 8.0)[number // 3 % 2]
        mask = make_sampling(kind, tuple(kspace.shape[-2:]), acceleration, None, self.seed + number).expand(kspace.shape[-2:])
        task(kspace[0] * mask, mask, maps, sigma=noise, seed=self.seed + k)


class UltrasoundRestorations:
    """Restoration ``k``: a clean B-mode picture (or a crop of it) with simulated haze, of three strengths that take turns.

    Everything drawn for it (crop, haze, start) depends on the seed and k alone.

    Args:
        partner: the other prior, ``tissue:MODEL`` or ``haze:MODEL``.

    Raises:
        ValueError: a partner in another form.
    """

    def __init__(
        self, denoiser, partner: str | None, files: tuple[Path, ...], solver: Solver, steps, correction: str | None, side, seed: int
    ):
        from restoration.ultrasound.task import UltrasoundTask

        role, _, name = (partner or "").partition(":")
        if role not in ("tissue", "haze") or not name:
            raise ValueError(f"--task ultrasound needs the other prior: --partner haze:MODEL or tissue:MODEL; got {partner!r}")
        pair = (float_model(name), denoiser) if role == "tissue" else (denoiser, float_model(name))
        options = {} if correction is None else {"correction": correction}
        self.tasks = [UltrasoundTask(*pair, solver=solver, num_inference_steps=n, **options) for n in steps]
        self.files, self.side, self.seed = files, side, seed

    def __call__(self, k: int) -> None:
        from restoration.ultrasound.haze import simulate_haze

        number, task = k // len(self.tasks), self.tasks[k % len(self.tasks)]
        rng = np.random.default_rng([self.seed, number])
        clean = read_image(self.files[int(rng.integers(len(self.files)))]).pixels.mean(0)
        hazy = simulate_haze(clean, (0.5, 1.0, 2.0)[number % 3], self.seed + number)
        height, width = (min(self.side, n) for n in hazy.shape)
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(hazy.shape, (height, width), strict=True))
        task(torch.from_numpy(hazy[top : top + height, left : left + width].copy()), seed=self.seed + k)


class PairedRestorations:
    """Restoration ``k`` of degraded pictures, with solvers and numbers of steps that take turns.

    Solvers of several processes ask a network at different levels; all that are deployed belong into one calibration.

    Args:
        task: ``dehaze``: ``files`` are clear pictures, to which haze is simulated; ``paired``: they are degraded ones.
        files: pictures, or (degraded picture, mask).
        side: of the crops, in pixels.
    """

    def __init__(self, denoiser, task: str, files: tuple, solvers: Sequence[str], steps: tuple[int, ...], grid: str, side: int, seed: int):
        self.tasks = [PairedRestoration(denoiser, solver_by_name(name), n, grid=grid) for n in steps for name in solvers]
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
        scale = rng.uniform(min(1, self.side / min(parts[0].shape[1:])), 1)  # from whole scenes to details
        parts = [F.interpolate(part[None], scale_factor=scale, mode="bilinear", antialias=True)[0].clamp(0, 1) for part in parts]
        height, width = (min(self.side, n) for n in parts[0].shape[1:])
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(parts[0].shape[1:], (height, width), strict=True))
        image, *mask = (part[:, top : top + height, left : left + width] for part in parts)
        image = image.expand(3, -1, -1)
        if self.task == "dehaze":
            image = make_hazy(image, image[None], Haze(), rng)[1]
        task(image, (mask[0].mean(0) >= 0.5).float() if mask else None, seed=self.seed + k)


class CubeRestorations:
    """Restoration ``k``: a simulated cube in the pattern of a picture, with Gaussian noise or a mixture, from which eigen-images are taken.

    Everything drawn for it (crop, sensor, materials, noise) depends on the seed and k alone.

    Args:
        denoiser: of joint latents (recipe ``hsi``).
        files: pictures, and the one ``spectral_library.npz``.
        side: of the scenes, in pixels.
    """

    def __init__(self, denoiser: Denoiser, files: tuple[Path, ...], side: int, seed: int):
        from restoration.hsi_simulation import SpectralLibrary
        from restoration.hyperspectral import HyperspectralTask

        self.library = SpectralLibrary.read(next(f for f in files if f.suffix == ".npz"))
        self.task = HyperspectralTask(denoiser, symmetries=1)
        self.files, self.side, self.seed = [f for f in files if f.suffix != ".npz"], side, seed

    def __call__(self, k: int) -> None:
        from restoration.hsi_noise import SIGMAS, add_noise
        from restoration.hsi_simulation import SENSORS, bands_of, simulate_cube

        rng = np.random.default_rng([self.seed, k])
        pixels = read_image(self.files[int(rng.integers(len(self.files)))]).pixels
        height, width = (min(self.side, n) for n in pixels.shape[1:])
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(pixels.shape[1:], (height, width), strict=True))
        picture = np.broadcast_to(pixels[:, top : top + height, left : left + width], (3, height, width))
        clean = simulate_cube(self.library, picture, bands_of(list(SENSORS)[k % len(SENSORS)]), [self.seed, k])
        case = ("iid", "mixture")[k % 2]
        self.task(add_noise(clean, case, self.seed + k, SIGMAS[k // 2 % len(SIGMAS)] if case == "iid" else None), seed=self.seed + k)


def run_calibrate(
    model: str,
    data: Path | None,
    out: Path,
    *,
    task: str = "inpaint",
    solver: str = "ddim",
    steps: Sequence[int] = (5,),
    grid: str = "trailing",
    correction: str | None = None,
    sigma: float | None = None,
    count: int = 16,
    side: int | None = None,
    per_timestep: int | None = None,
    select: str | None = None,
    samples: int | None = None,
    partner: str | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Restore ``count`` pictures with the deployed solver at each number of steps and record what the network sees.

    Masks take turns through all kinds. An interrupted call goes on when it is repeated. Returns the figures that the command prints.

    Args:
        model: a shipped float model, or any diffusers ``UNet2DModel``/``UNet2DConditionModel`` folder.
        data: folder of pictures (``hsi``: with ``spectral_library.npz``); for ``mri`` a file of true magnitudes; None for ``generate``.
        solver: the one to deploy; for ``dehaze`` and ``paired`` also several, separated by commas.
        sigma: noise on the measurements, in units of [0, 1]; by default 0.1 for ``denoise``, 0.01 for ``mri``, else 0.
        side: of the crops, in pixels; by default what the network's config says it was trained on, else 256.
        per_timestep: most network inputs kept per timestep; by default 8, and all that a selection may need where there is one.
        partner: for ``ultrasound``, the other prior, ``tissue:MODEL`` or ``haze:MODEL``.
        select, samples: keep ``samples`` of the recorded inputs, chosen in this way (``uniform`` where only their number is given).

    Raises:
        ValueError, OSError: bad names, numbers or files; ``out`` is not written then.
    """
    check_folder(out.parent)
    _check_names(
        task=(task, TASKS), grid=(grid, GRIDS), correction=(correction, (None, *CORRECTIONS)), select=(select, (None, *SELECTIONS))
    )
    if samples is not None and samples < 1:
        raise ValueError(f"--samples must be at least 1; got {samples}")
    if select is not None and samples is None:
        raise ValueError(f"--select {select} needs --samples: how many network inputs to choose")
    denoiser = float_model(model)
    sigma = {"denoise": 0.1, "mri": 0.01}.get(task, 0.0) if sigma is None else sigma
    files = _files(denoiser, task, data)
    side = _side(denoiser) if side is None else side
    steps = tuple(steps)
    paired = task in ("dehaze", "paired")
    solvers = solver.split(",") if paired else [solver]
    for n in () if paired else steps:
        GRIDS[grid](denoiser.process, n)
    if paired:
        restore = PairedRestorations(denoiser, task, files, solvers, steps, grid, side, seed)
    elif task == "mri":
        restore = MRIRestorations(denoiser, files[0], solver_by_name(solver), steps, grid, correction, sigma, seed)
    elif task == "hsi":
        restore = CubeRestorations(denoiser, files, side, seed)
    elif task == "ultrasound":
        restore = UltrasoundRestorations(denoiser, partner, files, solver_by_name(solver), steps, correction, side, seed)
    else:
        restore = Restorations(denoiser, task, files, solver_by_name(solver), steps, grid, correction, sigma, side, seed)
    total = count * len(steps) * len(solvers)
    chosen = select or ("uniform" if samples is not None else None)
    pool = out if chosen is None else out.with_name(f".{out.name}.pool")
    hashes = sorted({hashlib.sha256(path.read_bytes()).hexdigest() for path in (f[0] if isinstance(f, tuple) else f for f in files)})
    with Cost() as cost:
        try:
            recorded = collect(
                denoiser,
                restore,
                total,
                pool,
                per_timestep=per_timestep or samples or 8,
                crop=_crop(denoiser, side),
                seed=seed,
                solver=solver,
                steps=max(steps),
                task=f"{task}, steps {', '.join(map(str, steps))}, sigma {sigma:g}, side {side}",
                grid=grid,
                correction=correction or "",
                data=hashes,
                progress=progress,
            )
            if chosen is not None:
                recorded = select_samples(recorded, denoiser, chosen, samples, seed)
                recorded.save(out)
        finally:
            if pool != out:
                pool.unlink(missing_ok=True)
    shares = {f"{t:g}": len(positions) for t, positions in recorded.positions().items()}
    figures = {"out": str(out), "samples": len(recorded), "timesteps": list(recorded.grid), "per_timestep": shares}
    return figures | {"selection": recorded.provenance.selection, "hash": recorded.hash, "cost": cost.to_dict()}


def select_samples(pool: CalibrationSet, denoiser: Denoiser, name: str, count: int, seed: int) -> CalibrationSet:
    """``count`` samples of a recorded set, chosen in one of the ways in ``SELECTIONS``."""
    if name == "eda-dm":
        return EDADM().select(pool, denoiser.network, count, seed)
    return {"uniform": Uniform, "ptq4dm": PTQ4DM}[name]().select(pool, count, seed)


def image_channels(denoiser: Denoiser) -> int:
    """Channels of the images (or latents) that the network denoises."""
    return denoiser.network.config.in_channels // denoiser.fold**2 - denoiser.condition_channels


def _files(denoiser: Denoiser, task: str, data: Path | None) -> tuple[Path, ...]:
    if task == "generate":
        if data is not None:
            raise ValueError("the task generate starts from noise and takes no --data")
        return ()
    channels = image_channels(denoiser)
    if task == "mri":
        if data is None or not data.is_file():
            raise ValueError("--task mri needs --data: a file of magnitude images (.nii.gz, .npz, DICOM) to simulate scans of")
        if channels != 2:
            raise ValueError(f"MRI networks work on 2 channels (real, imaginary); this one works on {channels}")
        return (data,)
    if task == "hsi":
        return _scene_files(denoiser, data)
    if channels not in (1, 3):
        raise ValueError(f"the network works on {channels} channels, not on pictures; calibrate it with --task generate")
    fitting = {
        0: ("inpaint", "denoise", "superresolve", "deblur", "ultrasound"),
        PLAIN: ("paired",),
        MASKED: ("inpaint", "superresolve", "paired"),
        HAZE: ("dehaze",),
    }
    known = fitting.get(denoiser.condition_channels, ())
    if task not in known:
        raise ValueError(
            f"the network is shown {denoiser.condition_channels} channels besides the state; "
            f"--task {', '.join((*known, 'generate'))} fits it, not {task}"
        )
    if data is None:
        raise ValueError(f"--task {task} needs --data: a folder of pictures like those to be restored")
    if not data.is_dir():
        raise FileNotFoundError(f"data folder {data} does not exist")
    if task == "paired" and denoiser.condition_channels == MASKED:
        return tuple(find_pairs(data, "degraded", "mask"))
    files = tuple(sorted(p for p in data.rglob("*") if p.suffix.lower() in SUFFIXES))
    if not files:
        raise ValueError(f"{data} holds no picture ({', '.join(sorted(SUFFIXES))})")
    return files


def _scene_files(denoiser: Denoiser, data: Path | None) -> tuple[Path, ...]:
    from restoration.latent_field import CHANNELS, CONDITION_CHANNELS

    if (image_channels(denoiser), denoiser.condition_channels) != (CHANNELS, CONDITION_CHANNELS):
        raise ValueError("--task hsi fits networks of joint latents (recipe hsi); calibrate those of single planes with --task denoise")
    if data is None or not data.is_dir():
        raise ValueError(f"--task hsi needs --data: a folder of pictures and spectral_library.npz; got {data}")
    pictures = sorted(p for p in data.rglob("*") if p.suffix.lower() in SUFFIXES)
    library = sorted(data.rglob("spectral_library.npz"))[:1]
    if not pictures or not library:
        raise ValueError(f"{data} must hold pictures ({', '.join(sorted(SUFFIXES))}) and spectral_library.npz, for simulated scenes")
    return (*library, *pictures)


def _side(denoiser: Denoiser) -> int:
    size = denoiser.network.config.sample_size
    size = min(size) if isinstance(size, (list, tuple)) else size
    return 256 if size is None else size * denoiser.fold


def _crop(denoiser: Denoiser, side: int) -> int | None:
    """Convolutions see the same statistics on a part of the picture; attention looks at all of it."""
    if any("Attention" in type(m).__name__ for m in denoiser.network.modules()):
        return None
    return min(side // denoiser.fold, 64) // denoiser.multiple * denoiser.multiple


def _check_names(**choices: tuple) -> None:
    for what, (given, known) in choices.items():
        if given not in known:
            raise ValueError(f"{what} {given!r} is unknown; known: {', '.join(name for name in known if name)}")
