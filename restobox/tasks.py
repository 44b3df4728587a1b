"""One function for each task: it loads a model and gives a callable that restores measurements."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from restobox.pictures import Picture, RestoredPicture, read_mask, read_picture
from restoration.metrics import noise_level, psnr, ssim
from restoration.task import Restored
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from toolbox.api import check_model, load

if TYPE_CHECKING:
    from restoration.hyperspectral.task import RestoredCube
    from restoration.mri.task import RestoredScan
    from restoration.ultrasound.task import Dehazed

Model = str | os.PathLike[str] | Denoiser
log = logging.getLogger("restobox")


@dataclass(frozen=True)
class Restorer:
    """A loaded model and a task's settings. Call it on a picture, or on a list of them.

    Attributes:
        task: its name.
        model: what was loaded.
        settings: as given to the task's function.
    """

    task: str
    model: Any
    settings: dict[str, Any]
    run: Callable[..., Restored] = field(repr=False)
    extra: tuple[str, ...] = ()

    @overload
    def __call__(self, picture: Picture, *extra: Any, **options: Any) -> RestoredPicture: ...

    @overload
    def __call__(
        self, picture: list[Picture] | tuple[Picture, ...], *extra: Any, **options: Any
    ) -> list[RestoredPicture]: ...

    def __call__(
        self,
        picture: Picture | list[Picture] | tuple[Picture, ...],
        *extra: Any,
        reference: Picture | None = None,
        num_samples: int = 1,
        seed: int = 0,
        progress: bool = True,
        **options: Any,
    ) -> RestoredPicture | list[RestoredPicture]:
        """Restore one picture, or each of a list.

        Args:
            picture: PIL, NumPy, torch or a path (:func:`restobox.pictures.read_picture`).
            extra: what else the task needs, such as a mask; for a list of pictures a list too.
            reference: the true picture: the result then has ``metrics``.
            num_samples: posterior samples; the result is their mean, ``std`` where they disagree.
            seed: sample k uses ``seed + k``.
            progress: a bar in terminals and notebooks, for what takes longer than a second.
            options: the task's own, such as ``sigma``.

        Raises:
            TypeError, ValueError: a picture or an option that doesn't fit.
        """
        options |= {"num_samples": num_samples, "seed": seed, "progress": progress}
        if isinstance(picture, (list, tuple)):
            others = [e if isinstance(e, (list, tuple)) else [e] * len(picture) for e in extra]
            truths = (
                reference if isinstance(reference, (list, tuple)) else [reference] * len(picture)
            )
            rows = zip(picture, truths, *others, strict=True)
            return [self(p, *more, reference=truth, **options) for p, truth, *more in rows]
        if len(extra) > len(self.extra):
            takes = ", ".join(("a picture", *self.extra))
            raise TypeError(f"{self.task} takes {takes}; got {len(extra) + 1} arguments")
        pixels, form = read_picture(picture)
        found = self._run(pixels, extra, options)
        metrics = {} if reference is None else _compare(found.mean, read_picture(reference)[0])
        fields = {
            name: getattr(found, name) for name in ("samples", "mean", "std", "nfe", "seconds")
        }
        return RestoredPicture(**fields, given=pixels, form=form, metrics=metrics)

    def _run(self, pixels: Tensor, extra: Sequence[Any], options: dict[str, Any]) -> Restored:
        with tqdm(
            desc=self.task, delay=1.0, disable=None if options.pop("progress") else True
        ) as bar:
            return self.run(pixels, *extra, callback=lambda *_: bar.update() and None, **options)


def inpaint(
    model: Model = "photo-int8",
    *,
    solver: str = "ddim",
    steps: int = 5,
    correction: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restorer:
    """Fill missing pixels: ``inpaint(...)(picture, mask, sigma=0.0)``; white (or True) is missing.

    Args:
        model: a shipped model's name, a folder, an exported bundle or a ``solvers.Denoiser``.
        solver, steps, correction: as ``restobox restore inpaint``.
        device: ``cpu``, ``cuda``, or for bundles ``openvino``.
        dtype: of a PyTorch model's weights, such as ``torch.float16``.

    Raises:
        ValueError: an unknown model, solver or correction, or a model of another kind.
    """
    from restoration.photo.inpainting import InpaintingTask

    denoiser = _load(model, device, dtype)
    task: Any = denoiser
    if getattr(denoiser, "run", None) is None:
        check_model(denoiser, "inpaint", _named(model))
        task = InpaintingTask(denoiser, solver_by_name(solver), steps, correction=correction)

    def run(pixels: Tensor, mask: Picture, **options: Any) -> Restored:
        return task(pixels, read_mask(mask, _size(pixels)), **options)

    settings = {"solver": solver, "steps": steps, "correction": correction}
    return Restorer("inpaint", denoiser, settings, run, ("a mask",))


def denoise(
    model: Model = "grey",
    *,
    solver: str = "ddim",
    steps: int = 1,
    correction: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restorer:
    """Remove white noise: ``denoise(...)(picture, sigma=0.1)``; ``sigma`` is in units of [0, 1] and
    is estimated where it isn't given.

    Args, Raises: as :func:`inpaint`.
    """
    from restoration.operators.linear import Denoising

    def measured(pixels: Tensor, sigma: float | None) -> tuple[Any, float]:
        found = noise_level(pixels.numpy()) if sigma is None else sigma
        if sigma is None and not found > 1e-4:
            raise ValueError("the picture shows no noise to estimate; give sigma")
        return Denoising(), found

    settings = {"solver": solver, "steps": steps, "correction": correction}
    return _linear("denoise", _load(model, device, dtype), settings, measured)


def superresolve(
    factor: int = 4,
    model: Model | None = None,
    *,
    kernel: str = "block",
    solver: str = "ddim",
    steps: int = 1,
    correction: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restorer:
    """Enlarge ``factor`` times: ``superresolve(4)(picture, sigma=0.0)``.

    Args:
        factor: 2 to 8; the shipped networks know 2, 3 and 4.
        model: by default ``photo-x4-int8`` for means of 4 x 4 blocks, else ``photo-int8``.
        kernel: how the large picture became the small one: ``block`` or ``bicubic``.

    The others, and Raises: as :func:`inpaint`.
    """
    from toolbox.tasks.photo import enlargement

    chosen = model or ("photo-x4-int8" if (factor, kernel) == (4, "block") else "photo-int8")

    def measured(pixels: Tensor, sigma: float | None) -> tuple[Any, float]:
        return enlargement(_size(pixels), factor, kernel), sigma or 0.0

    settings = {"solver": solver, "steps": steps, "correction": correction}
    return _linear("superresolve", _load(chosen, device, dtype), settings, measured)


def deblur(
    blur: float,
    model: Model = "grey",
    *,
    solver: str = "ddim",
    steps: int = 5,
    correction: str | None = None,
    start_level: float | None = 0.4,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restorer:
    """Sharpen what a Gaussian of standard deviation ``blur`` pixels blurred:
    ``deblur(1.6)(picture, sigma=0.01)``.

    Args:
        start_level: noise level to start at from the regularized inverse; None: from noise.

    The others, and Raises: as :func:`inpaint`.
    """
    from restoration.operators.separable import Blur, gaussian_kernel

    kernel = gaussian_kernel(blur)

    def measured(pixels: Tensor, sigma: float | None) -> tuple[Any, float]:
        return Blur(_size(pixels), kernel), 0.01 if sigma is None else sigma

    settings = {"solver": solver, "steps": steps, "correction": correction}
    settings |= {"start_level": start_level}
    return _linear("deblur", _load(model, device, dtype), settings, measured)


def dehaze(
    model: Model = "haze-int8",
    *,
    solver: str = "rddm",
    steps: int = 5,
    view: int | None = 128,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restorer:
    """Take outdoor haze out of a photo: ``dehaze()(picture)``.

    Args:
        view: short side, in pixels, of the view that haze is judged on.

    The others, and Raises: as :func:`inpaint`.
    """
    from restoration.paired.task import PairedTask

    denoiser = check_model(_load(model, device, dtype), "dehaze", _named(model))
    task = PairedTask(denoiser, solver_by_name(solver), steps, view=view)
    settings = {"solver": solver, "steps": steps, "view": view}
    return Restorer("dehaze", denoiser, settings, task)


def paired(
    model: Model,
    *,
    solver: str = "rddm",
    steps: int = 5,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restorer:
    """Restore with a model trained on pairs (recipe ``paired``): ``paired(MODEL)(picture)``, and a
    mask (white where it is degraded) for models that are shown one.

    Args, Raises: as :func:`inpaint`.
    """
    from restoration.paired.task import PairedTask

    denoiser = check_model(_load(model, device, dtype), "paired", _named(model))
    task = PairedTask(denoiser, solver_by_name(solver), steps)

    def run(pixels: Tensor, mask: Picture | None = None, **options: Any) -> Restored:
        shown = None if mask is None else read_mask(mask, _size(pixels), white_is_one=True)
        return task(pixels, shown, **options)

    return Restorer("paired", denoiser, {"solver": solver, "steps": steps}, run, ("a mask",))


def ultrasound(
    tissue: Model = "ultrasound-tissue",
    haze: Model = "ultrasound-haze",
    *,
    strength: float = 1.0,
    sigma: float = 0.02,
    solver: str = "ddim",
    steps: int = 4,
    correction: str = "diffpir",
    device: str = "cpu",
) -> Callable[..., Dehazed]:
    """Take the haze out of B-mode frames: ``ultrasound()(frame)`` with a frame ``(H, W)`` in [0, 1]
    or a picture; the result has ``image``, ``haze`` and ``std``.

    Args:
        strength: above 1 more haze is taken away, below 1 less.
        sigma: noise that is neither tissue nor haze, in units of [0, 1].
    """
    from restoration.ultrasound.task import UltrasoundTask

    task = UltrasoundTask(
        check_model(_load(tissue, device, None), "ultrasound", _named(tissue)),
        check_model(_load(haze, device, None), "ultrasound", _named(haze)),
        strength=strength,
        sigma=sigma,
        solver=solver_by_name(solver),
        num_inference_steps=steps,
        correction=correction,
    )

    def run(frame: Picture, **options: Any) -> Dehazed:
        return task(read_picture(frame)[0].mean(0), **options)

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
    k-space ``(coils, H, W)`` or ``(slices, coils, H, W)``, zero frequency in the centre, or a file;
    the result has complex ``mean``, ``std``, ``sigma`` and ``residual``.
    """
    from restoration.mri.task import MRITask

    task = MRITask(
        check_model(_load(model, device, None), "mri", _named(model)),
        solver_by_name(solver),
        steps,
        correction=correction,
    )

    def run(
        kspace: np.ndarray | Tensor | str | os.PathLike[str],
        mask: np.ndarray | Tensor | None = None,
        maps: np.ndarray | Tensor | None = None,
        **options: Any,
    ) -> RestoredScan:
        if isinstance(kspace, (str, os.PathLike)):
            from restoration.io.mri import read_scan

            scan = read_scan(Path(kspace))
            if scan.kspace is None:
                raise ValueError(f"{kspace} holds images, not k-space")
            kspace = scan.kspace
            mask = scan.mask if mask is None else mask
            maps = scan.maps if maps is None else maps
        data = torch.as_tensor(kspace).to(torch.complex64)
        sampled = None if mask is None else torch.as_tensor(mask).float()
        sensed = None if maps is None else torch.as_tensor(maps).to(torch.complex64)
        one = task if data.ndim == 3 else task.volume
        return one(data, sampled, sensed, **options)

    return run


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
    from restoration.io.cube import Cube

    denoiser = check_model(_load(model, device, None), "hsi", _named(model))
    channels = denoiser.image_channels or 1
    task = HyperspectralTask(
        denoiser, solver_by_name(solver), steps, None, symmetries, channels=channels
    )

    def run(cube: np.ndarray | str | os.PathLike[str] | Cube, **options: Any) -> RestoredCube:
        if isinstance(cube, (str, os.PathLike)):
            from restoration.io.cubes import read_cube

            cube = read_cube(cube)
        return task(cube if isinstance(cube, Cube) else Cube(np.asarray(cube)), **options)

    return run


# -- what they share ------------------------------------------------------------------------------


def _linear(
    name: str,
    model: Denoiser,
    settings: dict[str, Any],
    measured: Callable[[Tensor, float | None], tuple[Any, float]],
) -> Restorer:
    from restoration.photo.linear import LinearTask

    denoiser = check_model(model, name, "the model")
    options = {key: value for key, value in settings.items() if key not in ("solver", "steps")}
    task = LinearTask(denoiser, solver_by_name(settings["solver"]), settings["steps"], **options)

    def run(pixels: Tensor, sigma: float | None = None, **given: Any) -> Restored:
        operator, noise = measured(pixels, sigma)
        return task(pixels, operator, sigma=noise, **given)

    return Restorer(name, denoiser, settings, run)


def _load(model: Model, device: str, dtype: torch.dtype | None) -> Any:
    """The model on its device; weights of another type where that is asked for."""
    found = model if isinstance(model, Denoiser) else load(os.fspath(model), device=device)
    if dtype is not None:
        network = getattr(found, "network", None)
        if not isinstance(network, torch.nn.Module):
            raise ValueError(
                f"{_named(model)} is an exported bundle, whose precision is its graph's; leave out"
                " dtype"
            )
        network.to(dtype)
    log.info("loaded %s on %s", _named(model), device)
    return found


def _named(model: Model) -> str:
    return type(model).__name__ if isinstance(model, Denoiser) else f"model {os.fspath(model)!r}"


def _size(pixels: Tensor) -> tuple[int, int]:
    return int(pixels.shape[-2]), int(pixels.shape[-1])


def _compare(restored: Tensor, truth: Tensor) -> dict[str, float]:
    if restored.shape != truth.shape:
        raise ValueError(
            f"the reference is {tuple(truth.shape)} but the result {tuple(restored.shape)}"
            " (channels, height, width)"
        )
    pair = restored.numpy(), truth.numpy()
    found = {"psnr": psnr(*pair)}
    return found | ({"ssim": ssim(*pair)} if min(restored.shape[1:]) >= 11 else {})


__all__ = [
    "Restorer",
    "deblur",
    "dehaze",
    "denoise",
    "hsi",
    "inpaint",
    "mri",
    "paired",
    "superresolve",
    "ultrasound",
]
