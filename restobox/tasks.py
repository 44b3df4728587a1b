"""One function for each task: it loads a model and gives a callable that restores measurements."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from restobox.loaded import Restoration
from restobox.models import Model, load_model, named
from restobox.pictures import Picture, read_mask
from restoration.metrics import noise_level
from restoration.task import Restored
from solvers import solver_by_name
from solvers.denoiser import Denoiser
from toolbox.api import check_model
from toolbox.tasks import task_by_name
from toolbox.tasks.settings import Prior, Settings


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
            advises, for inpainting one call, the mean, and five steps for several samples (30
            steps in latents).
        device: ``cpu``, ``cuda``, or for bundles ``openvino``.
        dtype: of a PyTorch model's weights, such as ``torch.float16``.

    Raises:
        ValueError: an unknown model, solver or correction, or a model of another kind.
    """
    from restoration.photo.inpainting import InpaintingTask
    from restoration.photo.latent import STEPS as LATENT_STEPS
    from toolbox.tasks.photo.denoisers import cleaner_of

    denoiser = load_model(model, device, dtype)
    if steps is None and getattr(denoiser, "autoencoder", None) is not None:
        steps = LATENT_STEPS
    plan, task = _Plan("inpaint", model, solver, steps, correction), denoiser
    if getattr(denoiser, "run", None) is None:
        check_model(denoiser, "inpaint", named(model))
        cleaner = cleaner_of(denoiser)
        task = InpaintingTask(denoiser, **plan(1), correction=correction, cleaner=cleaner)

    def known(pixels: Tensor, mask: Picture) -> Tensor:
        return read_mask(mask, _size(pixels))

    def run(pixels: Tensor, mask: Picture, num_samples: int = 1, **options: Any) -> Restored:
        if not isinstance(task, InpaintingTask):  # a whole restoration in one graph
            return task(pixels, known(pixels, mask), num_samples=num_samples, **options)
        drawn = replace(task, **plan(num_samples))
        found = drawn(pixels, known(pixels, mask), num_samples=num_samples, **options)
        if options.get("sigma"):
            return found
        return plan.judged(found, {"mask": known(pixels, mask)})

    settings = {"solver": solver, "steps": steps, "correction": correction}
    made = Restoration("inpaint", denoiser, settings, run, ("a mask",), known=known)
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
    is estimated where it isn't given, and how it grows with brightness too. Patterns that the
    network takes for noise are given back.

    Args:
        model: by default ``colour``, for grey pictures ``grey``.

    The others, and Raises: as :func:`inpaint`.
    """
    from restoration.operators.counting import Counting
    from restoration.operators.linear import Denoising
    from restoration.photo.patterns import given_back
    from toolbox.tasks.photo.denoisers import noise_of

    def measured(pixels: Tensor, sigma: float | None, denoiser: Denoiser) -> tuple[Any, float]:
        if sigma is not None:
            return Denoising(), sigma
        found = noise_level(pixels.numpy())
        if not found > 1e-4:
            raise ValueError("the picture shows no noise to estimate; give sigma")
        noise = noise_of(denoiser, pixels, found)
        return Counting(noise.gain) if noise.gain else Denoising(), noise.sigma

    settings = {"solver": solver, "steps": steps, "correction": correction}
    made = _by_colour("denoise", model, (device, dtype), settings, measured)

    def run(pixels: Tensor, **options: Any) -> Restored:
        return given_back(made.run(pixels, **options), pixels)

    return _mappable(replace(made, run=run), model, device, dtype)


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
    """Enlarge ``factor`` times: ``superresolve(4)(picture, sigma=0.0)``. ``sigma``, of the noise on
    the small picture in units of [0, 1], is estimated where it isn't given.

    Args:
        factor: 2 to 8; the shipped networks know 2, 3 and 4.
        model: by default ``photo-x4-int8`` for a factor of 4, else ``photo-int8``.
        kernel: how the large picture became the small one: ``block`` (means of blocks),
            ``bicubic``, or ``any``: nobody knows, JPEG perhaps.

    The others, and Raises: as :func:`inpaint`.
    """
    from toolbox.tasks.photo.denoisers import cleaner_of
    from toolbox.tasks.photo.errors import noise_of_small
    from toolbox.tasks.photo.superresolve import enlargement, enlarger

    chosen = model or enlarger(factor)

    def measured(pixels: Tensor, sigma: float | None, _: Denoiser) -> tuple[Any, float]:
        operator = enlargement(_size(pixels), factor, kernel)
        return operator, noise_of_small(pixels, factor) if sigma is None else sigma

    settings = {"solver": solver, "steps": steps, "correction": correction}
    loaded = load_model(chosen, device, dtype)
    made = _linear("superresolve", chosen, loaded, settings, measured, cleaner=cleaner_of(loaded))
    return _mappable(made, model, device, dtype, factor=factor, kernel=kernel)


def deblur(
    blur: float,
    model: Model | None = None,
    *,
    solver: str | None = None,
    steps: int | None = None,
    correction: str | None = None,
    start_level: float | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Restoration:
    """Sharpen what a Gaussian of standard deviation ``blur`` pixels blurred:
    ``deblur(1.6)(picture, sigma=0.01)``. ``sigma``, of the errors in the picture in units of
    [0, 1], is estimated where it isn't given.

    Args:
        model: by default ``colour``, for grey pictures ``grey``.
        start_level: noise level to start at from the regularized inverse; None: what suits the
            blur and the noise, 0: from noise.

    The others, and Raises: as :func:`inpaint`.
    """
    from restoration.operators.separable import SceneBlur, gaussian_kernel
    from toolbox.tasks.photo.errors import check_error, error_of

    kernel = gaussian_kernel(blur)

    def measured(pixels: Tensor, sigma: float | None, denoiser: Denoiser) -> tuple[Any, float]:
        level = error_of(pixels, blur, denoiser) if sigma is None else sigma
        check_error(level)
        return SceneBlur(_size(pixels), kernel), level

    settings: dict[str, Any] = {"solver": solver, "steps": steps, "correction": correction}
    settings |= {"blur": blur, "start_level": start_level}
    made = _by_colour("deblur", model, (device, dtype), settings, measured)
    return _mappable(made, model, device, dtype)


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
    plan = _Plan("dehaze", model, solver, steps, usual=view == 128)
    task = PairedTask(denoiser, **plan(1), view=view)

    def run(pixels: Tensor, **options: Any) -> Restored:
        return plan.judged(task(pixels, **options))

    settings = {"solver": solver, "steps": steps, "view": view}
    return _mappable(Restoration("dehaze", denoiser, settings, run), model, device, dtype)


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
    plan = _Plan("paired", model, solver, steps)
    task = PairedTask(denoiser, **plan(1))

    def run(pixels: Tensor, mask: Picture | None = None, **options: Any) -> Restored:
        shown = None if mask is None else read_mask(mask, _size(pixels), white_is_one=True)
        return plan.judged(task(pixels, shown, **options))

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


@dataclass(frozen=True)
class _Plan:
    """The settings of a task's runs: as given, else as the model's card advises, else the task's
    own. ``usual``: nothing else of the algorithm is set.
    """

    task: str
    model: Model
    solver: str | None
    steps: int | None
    correction: str | None = None
    usual: bool = True

    @property
    def named(self) -> str | None:
        """The model as the command line takes it; None of an object."""
        return None if isinstance(self.model, Denoiser) else os.fspath(self.model)

    def settings(self, samples: int) -> Settings:
        """Of a run that draws so many samples."""
        own = task_by_name(self.task)
        told = own.advised(self.named, samples)
        solver = told.get("solver", own.settings.solver) if self.solver is None else self.solver
        steps = told.get("steps", own.steps(Settings(), samples))
        return Settings(
            solver, steps if self.steps is None else self.steps, "trailing", self.correction
        )

    def __call__(self, samples: int) -> dict[str, Any]:
        """The same, as the algorithms take it."""
        found = self.settings(samples)
        return {"solver": solver_by_name(found.solver), "num_inference_steps": found.steps}

    def judged(self, found: Restored, inputs: Mapping[str, Tensor] | None = None) -> Restored:
        """With a standard deviation as large as the errors of such runs are, where the model's card
        knows it for such measurements.
        """
        samples = len(found.samples)
        if self.named is None or samples < 2 or not self.usual:
            return found
        run, task = self.settings(samples), task_by_name(self.task)
        hard = task.difficulty(inputs or {})
        known = task.spread(Prior(self.named), run, None, samples, hard)
        return found if known is None else known.applied(found)


def _by_colour(
    name: str,
    model: Model | None,
    place: tuple[str, torch.dtype | None],
    settings: dict[str, Any],
    measured: Callable[[Tensor, float | None, Denoiser], tuple[Any, float]],
) -> Restoration:
    """With the model that is named; with none, the shipped one for each picture: ``colour``, and
    ``grey`` once a grey picture comes.
    """
    from toolbox.tasks.photo.denoisers import denoiser_of
    from toolbox.tasks.settings import COLOUR

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
    measured: Callable[[Tensor, float | None, Denoiser], tuple[Any, float]],
    **further: Any,
) -> Restoration:
    from restoration.operators.counting import Counting
    from restoration.photo.linear import LinearTask
    from restoration.photo.start import deblurring_level

    denoiser = check_model(loaded, name, "the model")
    correction, blur, level = map(settings.get, ("correction", "blur", "start_level"))
    plan = _Plan(name, model, settings["solver"], settings["steps"], correction, level is None)
    task = LinearTask(denoiser, **plan(1), correction=correction, **further)

    def run(
        pixels: Tensor, sigma: float | None = None, num_samples: int = 1, **given: Any
    ) -> Restored:
        operator, noise = measured(pixels, sigma, denoiser)
        start = deblurring_level(blur, noise) if blur and level is None else level
        drawn = replace(task, **plan(num_samples), start_level=start or None)
        found = drawn(pixels, operator, sigma=noise, num_samples=num_samples, **given)
        # runs that nobody measured the spread of
        other = (noise > 0 and bool(further)) or isinstance(operator, Counting)
        return found if other else plan.judged(found)

    return Restoration(name, denoiser, settings, run)


def _size(pixels: Tensor) -> tuple[int, int]:
    return int(pixels.shape[-2]), int(pixels.shape[-1])


__all__ = ["Restoration", "deblur", "dehaze", "denoise", "inpaint", "paired", "superresolve"]
