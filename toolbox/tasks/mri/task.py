"""Accelerated MRI: k-space in, images out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.jobs.mri import MRIJob
from restoration.io.images import DICOM
from restoration.io.mri import HDF5, NIFTI, read_scan, suffix
from restoration.io.mri_output import check_output, std_file, write_reconstruction
from restoration.io.mri_scan import Scan
from restoration.io.pictures.dicom import ENDINGS, is_dicom
from restoration.io.pictures.folders import visible_files
from restoration.mri.espirit import mvue, rss
from restoration.mri.evaluation import volume_quality
from restoration.mri.geometry import regrid
from restoration.mri.openness import left_open
from restoration.mri.sampling import make_sampling
from restoration.mri.sense import cartesian, ifft2c, normalise_maps, to_channels, to_complex
from restoration.mri.simulation import simulate
from restoration.mri.task import SAMPLING_STEPS, MRITask
from restoration.task import Restored
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from solvers.files import check_outputs
from toolbox.api import load_for
from toolbox.tasks.base import Progress, Restorer, Size, Source, Task, Trial, silent, with_numbers
from toolbox.tasks.mri.acquired import acquired, coil_count
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
        coils = coil_count(options.coils)
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
        coils = coil_count(options.coils)
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
