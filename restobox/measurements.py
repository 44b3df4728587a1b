"""Tasks whose measurements are no pictures: ultrasound frames, MRI, hyperspectral cubes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from restobox.models import Model, load_model, named
from restobox.pictures import Picture, read_picture
from solvers import solver_by_name
from toolbox.api import check_model

if TYPE_CHECKING:
    from restoration.hyperspectral.task import RestoredCube
    from restoration.io.mri_scan import Scan
    from restoration.mri.task import RestoredScan
    from restoration.ultrasound.shown import ShownFrameTask
    from restoration.ultrasound.task import Dehazed, UltrasoundTask


def ultrasound(
    tissue: Model = "ultrasound",
    haze: Model | None = None,
    *,
    strength: float = 1.0,
    sigma: float | None = None,
    solver: str = "ddim",
    steps: int | None = None,
    correction: str | None = None,
    device: str = "cpu",
) -> Callable[..., Dehazed]:
    """Take the haze out of B-mode frames: ``ultrasound()(frame)`` with a frame ``(H, W)`` in [0, 1]
    or a picture; the result has ``image``, ``haze`` and ``std``.

    Args:
        tissue: a network that is shown the hazy frame, or a tissue prior.
        haze: beside a tissue prior the haze prior, by default ``ultrasound-haze``.
        strength: above 1 more haze is taken away, below 1 less.
        sigma: with priors, noise that is neither tissue nor haze, in units of [0, 1]; 0.02.
        steps: by default one, of several samples and of priors four.
        correction: with priors; ``diffpir`` by default.

    Raises:
        ValueError: a model of another kind, or options that this one has no use for.
    """
    from toolbox.tasks.options import Frames
    from toolbox.tasks.settings import Settings
    from toolbox.tasks.ultrasound import HAZE_PRIOR, PRIORS_STEPS, Ultrasound

    first = check_model(load_model(tissue, device, None), "ultrasound", named(tissue))
    second = None
    if haze is not None or not first.condition_channels:
        other = haze or HAZE_PRIOR
        second = check_model(load_model(other, device, None), "ultrasound", named(other))
    options = Frames(strength, haze=None if haze is None else named(haze), sigma=sigma)

    def task(samples: int) -> UltrasoundTask | ShownFrameTask:
        several = PRIORS_STEPS if samples > 1 else None
        settings = Settings(solver, several if steps is None else steps, correction=correction)
        return Ultrasound().task(first, second, options, settings)

    task(1)  # options that don't fit are refused before the first frame

    def run(frame: Picture, num_samples: int = 1, **draws: Any) -> Dehazed:
        picture = read_picture(frame)[0].mean(0)
        return task(num_samples)(picture, num_samples=num_samples, **draws)

    return run


def mri(
    model: Model = "mri",
    *,
    solver: str = "ddim",
    steps: int | None = None,
    correction: str | None = None,
    device: str = "cpu",
) -> Callable[..., RestoredScan]:
    """Reconstruct undersampled Cartesian MRI: ``mri()(kspace, mask=None, maps=None)`` with complex
    k-space ``(coils, H, W)`` or ``(slices, coils, H, W)``, zero frequency in the centre, or a file,
    whose header says the image's matrix (of several volumes ``volume=0`` takes the first); the
    result has complex ``mean``, ``std``, ``sigma`` and ``residual``. Of several samples ``std`` is
    as large as the errors are where the model's card knows that of such runs, and ``level`` says
    so.
    """
    from restoration.mri.task import MRITask
    from toolbox.tasks import task_by_name
    from toolbox.tasks.settings import Prior, Settings

    card = Prior(str(model)) if isinstance(model, (str, os.PathLike)) else None
    task = MRITask(
        check_model(load_model(model, device, None), "mri", named(model)),
        solver_by_name(solver),
        steps,
        correction=correction,
    )

    def run(
        kspace: np.ndarray | Tensor | str | os.PathLike[str],
        mask: np.ndarray | Tensor | None = None,
        maps: np.ndarray | Tensor | None = None,
        volume: int | None = None,
        **options: Any,
    ) -> RestoredScan:
        scan = None
        if volume is not None and not isinstance(kspace, (str, os.PathLike)):
            raise ValueError("volume counts the volumes of a file; of an array give the one")
        if isinstance(kspace, (str, os.PathLike)):
            from restoration.io.mri import read_scan

            scan = read_scan(Path(kspace))
            scan = scan if volume is None else scan.volume(volume, Path(kspace))
            if scan.kspace is None:
                raise ValueError(f"{kspace} holds images, not k-space")
            kspace = scan.kspace
            mask = scan.mask if mask is None else mask
            maps = scan.maps if maps is None else maps
        data = torch.as_tensor(kspace).to(torch.complex64)
        sampled = None if mask is None else torch.as_tensor(mask).float()
        sensed = None if maps is None else torch.as_tensor(maps).to(torch.complex64)
        one = task if data.ndim == 3 else task.volume
        found = one(data, sampled, sensed, **options)
        if scan is not None and scan.crop is not None:
            found = _on_matrix(found, scan)
        count = found.samples.shape[-3]
        ran = Settings(solver, task.plan(count)[0], correction=correction)
        own = task_by_name("mri")
        known = None if card is None else own.spread(card, ran, None, count, found.left_open)
        if known is None:
            return found
        slices = found.std if data.ndim == 4 else found.std[None]
        std = torch.stack([known.std(one) for one in slices]).reshape(found.std.shape)
        return replace(found, std=std, level=known.level)

    return run


def _on_matrix(found: RestoredScan, scan: Scan) -> RestoredScan:
    """On the matrix that the file's header asks for."""
    from restoration.mri.geometry import regrid

    assert scan.crop is not None
    mean, samples, std = (
        torch.from_numpy(regrid(v.numpy(), scan.crop, scan.extent))
        for v in (found.mean, found.samples, found.std)
    )
    return replace(found, mean=mean, samples=samples, std=std.clamp(min=0))


def hsi(
    model: Model = "grey",
    *,
    solver: str = "ddim",
    steps: int = 1,
    symmetries: int = 8,
    device: str = "cpu",
) -> Callable[..., RestoredCube]:
    """Denoise a hyperspectral cube: ``hsi()(cube)`` with an array ``(bands, H, W)`` or a file; the
    result's ``rows()`` are the restored values.

    Args:
        symmetries: flips and turns to average over: 1, 2, 4, 8.
    """
    from restoration.hyperspectral.task import HyperspectralTask
    from restoration.io.cubes.cube import Cube

    denoiser = check_model(load_model(model, device, None), "hsi", named(model))
    channels = denoiser.image_channels or 1
    task = HyperspectralTask(
        denoiser, solver_by_name(solver), steps, None, symmetries, channels=channels
    )

    def run(cube: np.ndarray | str | os.PathLike[str] | Cube, **options: Any) -> RestoredCube:
        if isinstance(cube, (str, os.PathLike)):
            from restoration.io.cubes import read_cube

            cube = read_cube(cube)
            if cube.note:
                warnings.warn(cube.note, stacklevel=2)
        return task(cube if isinstance(cube, Cube) else Cube(np.asarray(cube)), **options)

    return run
