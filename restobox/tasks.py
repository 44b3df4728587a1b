"""One function for each task: it loads a model and gives a callable that restores measurements."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from restobox.models import Model, load_model, named
from restobox.pictures import Picture, RestoredPicture, read_mask, read_picture
from restoration.metrics import noise_level, psnr, ssim
from restoration.task import Restored
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from toolbox.api import advice, check_model
from toolbox.tasks.options import Settings

if TYPE_CHECKING:
    from restobox.many import Place, Tally


@dataclass(frozen=True)
class Restoration:
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
    call: dict[str, Any] | None = field(default=None, repr=False)  # for :meth:`map`

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

    def map(self, inputs: Place | Iterable[Place], out: Place, **options: Any) -> Tally:
        """Restore files, folders, globs and lists into a folder; see :func:`restobox.map`.

        Args:
            options: of :func:`restobox.map`; the model and settings are those of this object.

        Raises:
            ValueError: the model is an object of the caller's, or was converted to a ``dtype``;
                and as :func:`restobox.map`.
        """
        from restobox.many import map

        if self.call is None:
            raise ValueError(
                "map loads the model where it runs: give a name, a file or a folder, without dtype"
            )
        return map(self.task, inputs, out, **self.call | options)

    def _run(self, pixels: Tensor, extra: Sequence[Any], options: dict[str, Any]) -> Restored:
        with tqdm(
            desc=self.task, delay=1.0, disable=None if options.pop("progress") else True
        ) as bar:
            return self.run(pixels, *extra, callback=lambda *_: bar.update() and None, **options)


def inpaint(
    model: Model = "photo-int8",
    *,
    solver: str | None = None,
    steps: int | None = None,
    correction: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restoration:
    """Fill missing pixels: ``inpaint(...)(picture, mask, sigma=0.0)``; white (or True) is missing.

    Args:
        model: a shipped model's name, a folder, an exported bundle or a ``solvers.Denoiser``.
        solver, steps, correction: as ``restobox restore inpaint``: None: what the model's card
            advises, for inpainting one call, the mean, and five steps for several samples.
        device: ``cpu``, ``cuda``, or for bundles ``openvino``.
        dtype: of a PyTorch model's weights, such as ``torch.float16``.

    Raises:
        ValueError: an unknown model, solver or correction, or a model of another kind.
    """
    from restoration.photo.inpainting import InpaintingTask

    denoiser = load_model(model, device, dtype)
    plan, task = _plan("inpaint", model, solver, steps), denoiser
    if getattr(denoiser, "run", None) is None:
        check_model(denoiser, "inpaint", named(model))
        task = InpaintingTask(denoiser, **plan(1), correction=correction)

    def run(pixels: Tensor, mask: Picture, num_samples: int = 1, **options: Any) -> Restored:
        known = read_mask(mask, _size(pixels))
        drawn = replace(task, **plan(num_samples)) if isinstance(task, InpaintingTask) else task
        return drawn(pixels, known, num_samples=num_samples, **options)

    settings = {"solver": solver, "steps": steps, "correction": correction}
    made = Restoration("inpaint", denoiser, settings, run, ("a mask",))
    return _mappable(made, model, device, dtype)


def denoise(
    model: Model | None = None,
    *,
    solver: str | None = None,
    steps: int | None = None,
    correction: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restoration:
    """Remove white noise: ``denoise(...)(picture, sigma=0.1)``; ``sigma`` is in units of [0, 1] and
    is estimated where it isn't given.

    Args:
        model: by default ``colour``, for grey pictures ``grey``.

    The others, and Raises: as :func:`inpaint`.
    """
    from restoration.operators.linear import Denoising

    def measured(pixels: Tensor, sigma: float | None) -> tuple[Any, float]:
        found = noise_level(pixels.numpy()) if sigma is None else sigma
        if sigma is None and not found > 1e-4:
            raise ValueError("the picture shows no noise to estimate; give sigma")
        return Denoising(), found

    settings = {"solver": solver, "steps": steps, "correction": correction}
    made = _by_colour("denoise", model, (device, dtype), settings, measured)
    return _mappable(made, model, device, dtype)


def superresolve(
    factor: int = 4,
    model: Model | None = None,
    *,
    kernel: str = "any",
    solver: str | None = None,
    steps: int | None = None,
    correction: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restoration:
    """Enlarge ``factor`` times: ``superresolve(4)(picture, sigma=0.0)``.

    Args:
        factor: 2 to 8; the shipped networks know 2, 3 and 4.
        model: by default ``photo-x4-int8`` for a factor of 4, else ``photo-int8``.
        kernel: how the large picture became the small one: ``block`` (means of blocks),
            ``bicubic``, or ``any``: nobody knows, JPEG perhaps.

    The others, and Raises: as :func:`inpaint`.
    """
    from toolbox.tasks.photo import enlargement, enlarger

    chosen = model or enlarger(factor)

    def measured(pixels: Tensor, sigma: float | None) -> tuple[Any, float]:
        return enlargement(_size(pixels), factor, kernel), sigma or 0.0

    settings = {"solver": solver, "steps": steps, "correction": correction}
    loaded = load_model(chosen, device, dtype)
    made = _linear("superresolve", chosen, loaded, settings, measured)
    return _mappable(made, model, device, dtype, factor=factor, kernel=kernel)


def deblur(
    blur: float,
    model: Model | None = None,
    *,
    solver: str | None = None,
    steps: int | None = None,
    correction: str | None = None,
    start_level: float | None = 0.4,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restoration:
    """Sharpen what a Gaussian of standard deviation ``blur`` pixels blurred:
    ``deblur(1.6)(picture, sigma=0.01)``.

    Args:
        model: by default ``colour``, for grey pictures ``grey``.
        start_level: noise level to start at from the regularized inverse; None: from noise.

    The others, and Raises: as :func:`inpaint`.
    """
    from restoration.operators.separable import Blur, gaussian_kernel

    kernel = gaussian_kernel(blur)

    def measured(pixels: Tensor, sigma: float | None) -> tuple[Any, float]:
        return Blur(_size(pixels), kernel), 0.01 if sigma is None else sigma

    settings: dict[str, Any] = {"solver": solver, "steps": steps, "correction": correction}
    settings |= {"start_level": start_level}
    made = _by_colour("deblur", model, (device, dtype), settings, measured)
    start = 0.0 if start_level is None else start_level
    return _mappable(made, model, device, dtype, blur=blur, start_level=start)


def dehaze(
    model: Model = "haze-int8",
    *,
    solver: str | None = None,
    steps: int | None = None,
    view: int | None = 128,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restoration:
    """Take outdoor haze out of a photo: ``dehaze()(picture)``.

    Args:
        view: short side, in pixels, of the view that haze is judged on.

    The others, and Raises: as :func:`inpaint`.
    """
    from restoration.paired.task import PairedTask

    denoiser = check_model(load_model(model, device, dtype), "dehaze", named(model))
    task = PairedTask(denoiser, **_plan("dehaze", model, solver, steps)(1), view=view)
    settings = {"solver": solver, "steps": steps, "view": view}
    return _mappable(Restoration("dehaze", denoiser, settings, task), model, device, dtype)


def paired(
    model: Model,
    *,
    solver: str | None = None,
    steps: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restoration:
    """Restore with a model trained on pairs (recipe ``paired``): ``paired(MODEL)(picture)``, and a
    mask (white where it is degraded) for models that are shown one.

    Args, Raises: as :func:`inpaint`.
    """
    from restoration.paired.task import PairedTask

    denoiser = check_model(load_model(model, device, dtype), "paired", named(model))
    task = PairedTask(denoiser, **_plan("paired", model, solver, steps)(1))

    def run(pixels: Tensor, mask: Picture | None = None, **options: Any) -> Restored:
        shown = None if mask is None else read_mask(mask, _size(pixels), white_is_one=True)
        return task(pixels, shown, **options)

    settings = {"solver": solver, "steps": steps}
    made = Restoration("paired", denoiser, settings, run, ("a mask",))
    return _mappable(made, model, device, dtype)


# -- what they share ------------------------------------------------------------------------------


def _mappable(
    made: Restoration, model: Model | None, device: str, dtype: torch.dtype | None, **own: Any
) -> Restoration:
    """With what :meth:`Restoration.map` repeats elsewhere; nothing where that can't be."""
    if isinstance(model, Denoiser) or dtype is not None:
        return made
    return replace(made, call={"model": model, "device": device} | made.settings | own)


def _plan(
    task: str, model: Model, solver: str | None, steps: int | None
) -> Callable[[int], dict[str, Any]]:
    """Solver and steps of a run that draws so many samples: as given, else as the model's card
    advises, else the task's own.
    """
    from toolbox.tasks import task_by_name

    def plan(samples: int) -> dict[str, Any]:
        told = {} if isinstance(model, Denoiser) else advice(os.fspath(model), task, samples)
        own = task_by_name(task)
        name = told.get("solver", own.settings.solver) if solver is None else solver
        count = told.get("steps", own.steps(Settings(), samples)) if steps is None else steps
        return {"solver": solver_by_name(name), "num_inference_steps": count}

    return plan


def _by_colour(
    name: str,
    model: Model | None,
    place: tuple[str, torch.dtype | None],
    settings: dict[str, Any],
    measured: Callable[[Tensor, float | None], tuple[Any, float]],
) -> Restoration:
    """With the model that is named; with none, the shipped one for each picture: ``colour``, and
    ``grey`` once a grey picture comes.
    """
    from toolbox.tasks.options import COLOUR
    from toolbox.tasks.photo import denoiser_of

    if model is not None:
        return _linear(name, model, load_model(model, *place), settings, measured)

    @cache
    def of(chosen: str) -> Restoration:
        return _linear(name, chosen, load_model(chosen, *place), settings, measured)

    def run(pixels: Tensor, *extra: Any, **options: Any) -> Restored:
        return of(denoiser_of(pixels.numpy())).run(pixels, *extra, **options)

    return Restoration(name, of(COLOUR).model, settings, run)


def _linear(
    name: str,
    model: Model,
    loaded: Denoiser,
    settings: dict[str, Any],
    measured: Callable[[Tensor, float | None], tuple[Any, float]],
) -> Restoration:
    from restoration.photo.linear import LinearTask

    denoiser = check_model(loaded, name, "the model")
    options = {key: value for key, value in settings.items() if key not in ("solver", "steps")}
    plan = _plan(name, model, settings["solver"], settings["steps"])
    task = LinearTask(denoiser, **plan(1), **options)

    def run(
        pixels: Tensor, sigma: float | None = None, num_samples: int = 1, **given: Any
    ) -> Restored:
        operator, noise = measured(pixels, sigma)
        drawn = replace(task, **plan(num_samples))
        return drawn(pixels, operator, sigma=noise, num_samples=num_samples, **given)

    return Restoration(name, denoiser, settings, run)


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


__all__ = ["Restoration", "deblur", "dehaze", "denoise", "inpaint", "paired", "superresolve"]
