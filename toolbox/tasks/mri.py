"""Accelerated MRI: k-space in, images out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.jobs.mri import MRIJob
from restoration.io.images import DICOM
from restoration.io.mri import HDF5, NIFTI, read_maps, read_sampling, read_scan, suffix
from restoration.io.mri_output import check_output, std_file, write_reconstruction
from restoration.io.mri_scan import Scan
from restoration.io.pictures.dicom import ENDINGS, is_dicom
from restoration.io.pictures.folders import visible_files
from restoration.mri.espirit import mvue, rss
from restoration.mri.evaluation import volume_quality
from restoration.mri.geometry import regrid
from restoration.mri.openness import left_open
from restoration.mri.sampling import make_sampling, volume_seed
from restoration.mri.sense import cartesian, ifft2c, normalise_maps, to_channels, to_complex
from restoration.mri.simulation import simulate
from restoration.mri.task import SAMPLING_STEPS, MRITask, sampled
from restoration.task import Restored
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from solvers.files import check_outputs
from toolbox.api import load_for
from toolbox.tasks.base import Progress, Restorer, Size, Source, Task, Trial, silent, with_numbers
from toolbox.tasks.options import Scanning
from toolbox.tasks.pictures import said_of
from toolbox.tasks.settings import Output, Prior, Request, Settings

TISSUE = 0.05  # share of a slice's maximum above which a pixel counts
KINDS = ("equispaced-fraction", "poisson", "random")
# kinds and accelerations that intervals are fitted on
SCANS: tuple[tuple[str, float], ...] = (
    *(("poisson", 4), ("poisson", 8), ("equispaced-fraction", 3), ("poisson", 12)),
    *(("equispaced-fraction", 4), ("random", 4), ("random", 3), ("equispaced-fraction", 6)),
    *(("random", 5), ("random", 6), ("equispaced-fraction", 8), ("random", 8)),
)


class MRI(Task):
    """``kspace (2 coils, H, W)``, real parts first; ``mask (1, H, W)``; ``maps`` like k-space for
    more than one coil; ``sigma (1, 1, 1)`` where the data have noise. Files hold whole volumes.
    """

    name = "mri"
    suffixes = (*HDF5, *NIFTI, ".img", ".npz", ".mat", DICOM)
    written = (".h5", ".hdf5", *NIFTI, DICOM)
    prior = Prior("mri")
    settings = Settings()  # as many steps as the model says
    sampling_steps = SAMPLING_STEPS
    spreads = True
    difficulties = (0.06, 0.1, 0.155, 0.22, 0.3)
    calibration_sigma = 0.01
    files = ("mask",)

    def is_one(self, folder: Path) -> bool:
        """A DICOM series, whose files may have no ending."""
        return any(
            p.suffix.lower() in ENDINGS or (not p.suffix and is_dicom(p))
            for p in visible_files(folder)
        )

    def ending(self, path: Path) -> str:
        if path.is_dir():
            return ""
        return suffix(path) if suffix(path) in self.written else ".h5"

    def outputs(self, output: Output, options: Any, samples: int) -> list[Path]:
        spread = std_file(output.out)
        apart = [spread] if output.std and spread != output.out else []
        return super().outputs(output, options, samples) + apart

    def task(self, denoiser: Denoiser, settings: Settings) -> MRITask:
        """The algorithm."""
        solver = solver_by_name(settings.solver)
        return MRITask(denoiser, solver, settings.steps, settings.grid, settings.correction)

    def restore(self, request: Request, progress: Progress = silent) -> dict[str, Any]:
        prior, settings, draws = request.prior, request.settings, request.draws
        path, options, out, std = (
            request.path,
            request.options,
            request.output.out,
            request.output.std,
        )
        output = request.output
        if draws.samples > 1 and settings.steps == 1:
            raise ValueError(
                "one step gives the mean, the same for every sample: leave --steps out"
            )
        if std and draws.samples < 2:
            raise ValueError("--std needs at least two samples: add -n 4")
        drawn = output.sample_files(draws.samples)
        check_output(out)
        inputs = [path, options.mask, options.coils, prior.model]
        check_outputs(
            [out, *([std_file(out)] if std and std_file(out) != out else []), *drawn], inputs
        )
        scan = read_scan(path)
        scan = scan if options.volume is None else scan.volume(options.volume, path)
        data = acquired(scan, options, path, draws.seed)
        task = self.task(load_for(self.name, prior.model, **prior.place), settings)
        ran = replace(settings, steps=task.plan(draws.samples)[0])
        with self.calibrated(ran):
            result = task.volume(
                data.kspace,
                data.mask,
                data.maps,
                sigma=data.sigma,
                num_samples=draws.samples,
                seed=draws.seed,
                progress=progress,
            )
        known = self.spread(prior, ran, options, draws.samples, result.left_open)
        image, spread, truth = result.mean.numpy(), result.std.numpy(), data.truth
        drawn_images = [result.samples[:, k].numpy() for k in range(draws.samples)]
        if scan.crop is not None:
            image, spread, *drawn_images = (
                regrid(v, scan.crop, scan.extent) for v in (image, spread, *drawn_images)
            )
            spread = spread.clip(min=0)
            truth = None if truth is None else np.abs(regrid(truth, scan.crop, scan.extent))
        if known is not None and std:
            spread = torch.stack([known.std(torch.from_numpy(s)) for s in spread]).numpy()
        if truth is None and scan.target is not None and scan.target.shape == image.shape:
            truth = scan.target
        figures = {"task": self.name, "file": str(path), "slices": len(image)}
        figures |= {"volumes": scan.volumes} if scan.volumes > 1 else {}
        figures |= {
            "coils": data.kspace.shape[1],
            "maps": data.origin,
            "size": list(image.shape[1:]),
        }
        figures |= {"acceleration": round(data.acceleration, 2), "model": prior.model}
        figures |= {"solver": settings.solver, "steps": task.plan(draws.samples)[0]}
        figures |= {"samples": draws.samples, "seed": draws.seed, "sigma": result.sigma}
        figures |= {"residual": result.residual, "nfe": result.nfe}
        figures["seconds"] = round(result.seconds, 2)
        figures |= said_of(known) if std else {}
        if truth is not None and min(truth.shape[1:]) >= 7:
            quality = volume_quality(np.abs(image), truth)
            figures |= {"psnr": round(quality.psnr, 3), "ssim": round(quality.ssim, 4)}
            figures["nmse"] = round(quality.nmse, 6)
        if data.covers_air:
            figures["note"] = (
                "the coil maps cover the air around the object too; --coils espirit finds where the"
                " object ends"
            )
        samples = list(zip(drawn, drawn_images if drawn else (), strict=True))
        files = write_reconstruction(out, image, scan, spread if std else None, samples)
        return figures | {"out": [str(f) for f in files]}

    def recorded_steps(self, denoiser: Denoiser) -> tuple[int, ...]:
        task = self.task(denoiser, self.settings)
        return tuple(dict.fromkeys(task.plan(samples)[0] for samples in (1, 2)))

    def restorer(self, denoiser: Denoiser, options: Any, settings: Settings) -> Restorer:
        task = self.task(denoiser, settings)

        def run(inputs: Mapping[str, Tensor], **draws: Any) -> Restored:
            maps = inputs.get("maps")
            found = task(
                to_complex(inputs["kspace"][None])[0],
                inputs["mask"][0],
                None if maps is None else to_complex(maps[None])[0],
                sigma=float(inputs["sigma"]) if "sigma" in inputs else 0.0,
                **draws,
            )
            samples = torch.stack([found.samples.real, found.samples.imag], 1)
            return Restored(samples, samples.mean(0), found.std[None], found.nfe, found.seconds)

        return run

    def job(self, denoiser: Denoiser, options: Scanning, settings: Settings, size: Size) -> MRIJob:
        coils = _count(options.coils)
        exact = not options.sigma and coils == 1
        return MRIJob(self.task(denoiser, settings), coils, size, exact=exact)

    def simulated(self, denoiser: Denoiser, sigma: float | None = None, **numbers: Any) -> Scanning:
        """Without a mask in the options, kinds and accelerations take turns."""
        noise = self.calibration_sigma if sigma is None else sigma
        return with_numbers(Scanning(coils="8"), self.name, noise, numbers)

    def mixed(self, denoiser: Denoiser, k: int) -> Scanning:
        """Kinds and accelerations, in turn."""
        kind, acceleration = SCANS[k % len(SCANS)]
        return self.simulated(denoiser, mask=kind, acceleration=acceleration)

    def source(
        self, data: Path | None, denoiser: Denoiser, side: int | tuple[int, int], seed: int
    ) -> Source:
        """A file of true magnitudes, or a folder of pictures, which stand for them."""
        if data is not None and data.is_dir():
            return replace(super().source(data, denoiser, side, seed), channels=1)
        if data is None or not data.is_file():
            raise ValueError(
                "--task mri needs --data: a file of magnitude images (.nii.gz, .npz, DICOM) to"
                " simulate scans of, or a folder of pictures that stand for them"
            )
        volume = read_scan(data).magnitude
        if volume is None:
            raise ValueError(
                f"{data} holds k-space; scans are simulated of magnitude images, whose truth is"
                " known"
            )
        return replace(Source((data,), side, seed, 1), volume=volume)

    def trial(self, source: Source, k: int, options: Scanning) -> Trial:
        rng = source.rng(k)
        if source.volume is None:
            slices = source.picture(k).numpy()
        else:
            one = int(rng.integers(len(source.volume)))
            slices = source.volume[one : one + 1]
        # in units of its largest value, whatever the file's are
        scan = Scan(magnitude=slices / max(float(slices.max()), 1e-30))
        coils = _count(options.coils)
        made = simulate(scan, None, coils, options.sigma or 0.0, source.seed + k)
        kspace, maps, noise = made.kspace, made.maps, made.sigma
        kind, acceleration = KINDS[k % len(KINDS)], (4.0, 8.0)[k // len(KINDS) % 2]
        if options.mask is not None:
            kind, acceleration = options.mask, options.acceleration
        size = tuple(kspace.shape[-2:])
        mask = make_sampling(
            kind, size, acceleration, options.center_fraction, source.seed + k
        ).expand(size)
        inputs = {"kspace": to_channels(kspace * mask)[0], "mask": mask[None].clone()}
        inputs |= {"maps": to_channels(maps[None])[0]} if coils > 1 else {}
        inputs |= {"sigma": torch.full((1, 1, 1), noise)} if noise > 0 else {}
        truth = mvue(made.clean[0], normalise_maps(maps))
        return Trial(inputs, torch.stack([truth.real, truth.imag]), f"{kind} {acceleration:g}x")

    def picture(self, result: Tensor) -> np.ndarray:
        """The magnitude of real and imaginary part."""
        return result.square().sum(0, keepdim=True).sqrt().clamp(0, 1).numpy()

    def guessed(self, samples: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Magnitudes, where there is tissue."""
        found, true = (v.square().sum(-3).sqrt() for v in (samples, truth))
        return found, true, true > TISSUE * true.max()

    def own_spread(self, denoiser: Denoiser) -> bool:
        return denoiser.condition_channels > 0

    def difficulty(self, inputs: Mapping[str, Tensor]) -> float:
        """The share of an image that the scan leaves open."""
        maps, mask = inputs.get("maps"), inputs["mask"][0]
        sensed = None if maps is None else normalise_maps(to_complex(maps[None])[0])
        return left_open(cartesian(mask, sensed, tuple(mask.shape)))

    def seen(self, trial: Trial) -> np.ndarray:
        """The zero-filled image."""
        return rss(ifft2c(to_complex(trial.inputs["kspace"][None])[0]))[None].clamp(0, 1).numpy()


@dataclass(frozen=True)
class Acquired:
    """What is reconstructed: ``kspace (slices, coils, H, W)``, the mask (of all slices or of each)
    and maps that are known, its noise, the true magnitudes where they are known, and where the maps
    come from.
    """

    kspace: Tensor
    mask: Tensor | None
    maps: Tensor | None
    sigma: float | None
    truth: np.ndarray | None
    origin: str
    covers_air: bool

    @property
    def acceleration(self) -> float:
        """Points over sampled points."""
        mask = sampled(self.kspace) if self.mask is None else self.mask
        size = self.kspace.shape[-2:]
        return float(1 / mask.float().expand(*mask.shape[:-2], *size).mean())


def acquired(scan: Scan, options: Scanning, path: Path, seed: int) -> Acquired:
    """The scan of a file, simulated where it holds images, undersampled where that is asked for.

    ``options.sigma`` is the noise of the k-space in its units; of magnitude images the noise that
    is simulated, as a share of their 0.99 quantile. By default it is estimated; no noise is
    simulated, and with known maps the data are exact.

    Raises:
        ValueError: options that don't fit the file.
    """
    coils, mask, sigma = options.coils, options.mask, options.sigma
    given, origin = _maps(coils, scan)
    _check_maps(given, scan)
    maps, truth = given, None
    if scan.kspace is None:
        if mask is None:
            raise ValueError(
                f"{path} holds images, not k-space: say how to undersample them with --mask"
            )
        count, own = _count(coils), None if given is None else given.numpy()
        made = simulate(scan, own, count, sigma or 0.0, seed)
        kspace, estimated = made.kspace, count > 1 and given is None
        maps = None if estimated else made.maps
        # maps that are estimated explain no data exactly: without noise, not even its estimate is 0
        sigma = None if estimated and sigma is None else made.sigma
        truth = scan.magnitude
    else:
        kspace = torch.from_numpy(scan.kspace)
        if coils.isdigit():
            raise ValueError(
                f"{path} holds k-space of {kspace.shape[1]} coils; --coils takes auto, espirit or a"
                " file of maps"
            )
    sampling = None if scan.mask is None else torch.from_numpy(scan.mask)
    if mask is not None:
        if scan.kspace is not None and sampling is None and _is_full(kspace):
            each = [
                given if given is None or given.ndim == 3 else given[k] for k in range(len(kspace))
            ]
            full = [_full(one, own) for one, own in zip(kspace, each, strict=True)]
            truth = torch.stack(full).numpy()
        elif scan.kspace is not None and not Path(mask).exists():
            raise ValueError(
                f"{path} is undersampled already; leave --mask out, or give the mask it was sampled"
                " with as a file"
            )
        sampling = _sampling(options, tuple(kspace.shape[-2:]), path)
        if not Path(mask).exists() and truth is not None and scan.kspace is not None:
            inside = sampled(kspace).any(0).any(0).to(sampling)
            sampling = sampling * inside  # what was filled with zeros isn't known
    covers_air = (
        scan.kspace is not None and given is not None and bool((given.abs().sum(-3) > 0).all())
    )
    origin = "none" if maps is None and kspace.shape[1] == 1 else origin
    return Acquired(kspace, sampling, maps, sigma, truth, origin, covers_air)


def _is_full(kspace: Tensor) -> bool:
    """Whether all of it was measured, perhaps but for margins that were filled with zeros alike on
    both sides (as fastMRI delivers its columns). Margins on one side are partial Fourier.
    """
    seen = sampled(kspace).all(0)
    if not seen.any():
        return False
    for axis in (0, 1):
        where = torch.nonzero(seen.any(axis))[:, 0]
        first, last = int(where[0]), seen.shape[1 - axis] - 1 - int(where[-1])
        if abs(first - last) > 2:
            return False
        seen = seen.narrow(1 - axis, first, len(seen.any(axis)) - first - last)
    return bool(seen.float().mean() > 0.95) and seen.numel() > kspace[0, 0].numel() / 4


def _sampling(options: Scanning, size: tuple[int, ...], path: Path) -> Tensor:
    """A file's mask, or one of the kinds, drawn for the file's name."""
    mask = options.mask or ""
    if Path(mask).exists():
        return torch.from_numpy(read_sampling(mask, size))
    seed = volume_seed(path.name)
    return make_sampling(mask, size, options.acceleration, options.center_fraction, seed)


def _count(coils: str) -> int:
    """How many coils are simulated."""
    return int(coils) if coils.isdigit() else 8


def _maps(coils: str, scan: Scan) -> tuple[Tensor | None, str]:
    """Sensitivities, None where they are to be estimated, and where they come from."""
    if coils.isdigit():
        if not 1 <= int(coils) <= 64:
            raise ValueError(f"--coils takes 1 to 64 simulated coils; got {coils}")
        return None, "espirit"
    if coils == "auto" and scan.maps is not None:
        return torch.from_numpy(scan.maps), "file"
    if coils in ("auto", "espirit"):
        return None, "espirit"
    return torch.from_numpy(read_maps(coils)), coils


def _check_maps(maps: Tensor | None, scan: Scan) -> None:
    if maps is None:
        return
    if scan.kspace is None:
        if maps.ndim != 3:
            raise ValueError(
                f"coils are simulated with maps (coils, H, W); got {tuple(maps.shape)}"
            )
    elif tuple(maps.shape) not in (scan.kspace.shape, scan.kspace.shape[1:]):
        raise ValueError(
            f"the coil maps are {tuple(maps.shape)} but k-space is {scan.kspace.shape} (slices,"
            " coils, H, W): give the same coils and size, for one slice or for all"
        )


def _full(kspace: Tensor, maps: Tensor | None) -> Tensor:
    """The magnitude that fully sampled data give: combined by the maps, or root of the sum of
    squares without them.
    """
    return rss(ifft2c(kspace)) if maps is None else mvue(kspace, normalise_maps(maps)).abs()
