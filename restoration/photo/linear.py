"""Denoising, super-resolution, deblurring: pictures from any linear measurement of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from restoration.operators.counting import Counting
from restoration.operators.linear import Denoising, Operator
from restoration.operators.measurement import Measurement
from restoration.operators.separable import SceneBlur, UnknownReduction
from restoration.photo.noise import Cleaner, cleaned, cleans, warned
from restoration.photo.shown import condition_of, is_denoising, reduction
from restoration.photo.start import PRIOR_STD, entered, grid_from, nearest, regularized
from restoration.posterior import correction_by_name
from restoration.task import Restored, Run, Watch, check_noise, check_settings, sample
from restoration.wrappers.planes import planewise
from restoration.wrappers.symmetry import Symmetric
from restoration.wrappers.tiling import in_tiles, set_tile
from restoration.wrappers.windows import Window, are_smaller, by_windows
from solvers.denoiser import Denoiser, timesteps_of
from solvers.grid import Grid, lay
from solvers.methods.ddim import DDIM
from solvers.methods.red_diff import REDDiff
from solvers.processes.process import Process
from solvers.solver import DenoiserLike, Solver

# calls that red-diff needs on a network that is shown nothing: on crops of 64 pixels, blurred by
# 1.6, 23.3 dB at 10, 26.5 at 50 and 27.0 at 100, where ddim has 27.6
RED_DIFF = 50


@dataclass(frozen=True)
class LinearTask:
    """Pictures from ``y = A x + sigma n`` with any denoiser, solver and correction.

    - ``Denoising`` without a correction starts where the process is as noisy as the picture: one
      step gives the posterior mean (Tweedie's formula), more steps of a solver that draws noise
      (``ddpm``) posterior samples.
    - Noise that grows with brightness (``restoration.operators.counting.Counting``) is made white
      by Anscombe's transform first.
    - With ``start_level`` the run starts from the regularized inverse of the data at that noise
      level, without fresh noise: the path of plug-and-play restoration (Zhang et al. 2021), closer
      to the mean than a sample is, and the same for every seed. Several samples do start with fresh
      noise, of that level.
    - Anything else starts from noise and is held to the data by the correction. A network that is
      shown a lifted picture and what is known of each pixel (the model ``photo``) is shown the
      filled measurement of an operator with a ``mask``, and the enlarged one of an operator with a
      ``factor``; for others nothing, and the correction alone steers it.

    A :class:`restoration.operators.separable.SceneBlur` sees more than the picture: the run goes
    over the whole scene, and the result is the picture's part.

    An operator may be of any class, deepinv's too. By ``mask``, a tensor ``(B or 1, 1 or C, H, W)``
    of zeros and ones, it says that it measures the pixels marked 1 and nothing else (which is
    tried); by ``factor``, a whole number above 1, that it measures a picture so many times smaller;
    by ``exact = False``, that it only stands in for a measurement that nobody knows: a network that
    is shown noiseless data of it then works alone, without a correction.

    Args:
        denoiser: PyTorch, fake-quantized or ONNX. One of single planes (the model ``grey``)
            restores colours one by one.
        solver: any solver of this toolbox.
        num_inference_steps: solver steps, from 1 to the number of levels of the process.
        grid: ``trailing``, ``leading``, ``linspace``, ``log-snr`` or ``karras``.
        correction: a name in ``restoration.posterior.CORRECTIONS``, or None for the default: none
            for denoising, which takes no other, and inexact operators, else DDNM for noiseless data
            and DiffPIR for noisy.
        correction_options: settings of a named correction, such as ``{"scale": 2.0}``
            (:func:`restoration.posterior.correction_by_name`).
        tile: side of the tiles for larger pictures, in pixels, rounded down to what the network
            takes; 0: what suits it (:func:`restoration.wrappers.tiling.tile_for`).
        overlap: pixels shared by neighbouring tiles; at most an eighth of a tile.
        symmetries: flips and turns that every network call is averaged over (1, 2, 4, 8); each is a
            call more.
        start_level: noise-to-signal ratio ``b/a`` in the denoiser's value range, or None;
            :func:`restoration.photo.start.deblurring_level` suits deblurring in eight steps.
        timesteps: for denoising without a correction: the times that the network may be asked at,
            such as those that its scales were calibrated at; a run takes the nearest. Empty: all of
            them, or those that an exported network holds.
        whole_grid: run from noise through all times of the grid, for denoising too, as calibration
            needs it.
        cleaner: what denoises a picture, for a network that is shown an enlarged one and would take
            noise for detail: without a correction by name noisy small pictures are denoised first
            and enlarged as noiseless. None: the network is held to the noisy data.

    Raises:
        ValueError: an unknown grid or correction, a number of symmetries other than these, a start
            level that is not positive.
    """

    denoiser: Denoiser
    solver: Solver = field(default_factory=DDIM)
    num_inference_steps: int = 5
    grid: str = "trailing"
    correction: str | None = None
    tile: int = 0
    overlap: int = 64
    symmetries: int = 1
    start_level: float | None = None
    timesteps: tuple[float, ...] = ()
    correction_options: Mapping[str, Any] = field(default_factory=dict)
    whole_grid: bool = False
    cleaner: Cleaner | None = None

    def __post_init__(self) -> None:
        set_tile(self)
        check_settings(self)
        if self.start_level is not None and not 0 < self.start_level < math.inf:
            raise ValueError(f"start_level must be a positive number; got {self.start_level}")

    def __call__(
        self,
        y: Tensor,
        operator: Operator,
        *,
        sigma: float = 0.0,
        num_samples: int = 1,
        seed: int = 0,
        callback: Watch | None = None,
    ) -> Restored:
        """Restore one picture.

        Args:
            y: what was measured of a picture ``(C, H, W)`` in [0, 1], without the batch axis; C = 1
                or 3.
            operator: see ``restoration.operators.linear``.
            sigma: standard deviation of the noise on ``y``, in units of [0, 1].
            num_samples: posterior samples; their mean and standard deviation are returned too.
            seed: sample k uses ``seed + k``.
            callback: called after each network call with the sample's number and the step; window
                by window after each of them, with a :class:`restoration.task.Part`.

        Raises:
            ValueError: data that is not finite or does not fit the operator, pictures of other than
                1 or 3 channels, a network of other channels, denoising without noise or with noise
                far from every time that the network knows, or an impossible step count.
        """
        check_noise(sigma)
        if num_samples == 1 and self._is_local(y, operator):
            return self._by_windows(y.float(), operator, sigma, callback)
        measurement = Measurement(operator, y[None].float().to(self.denoiser.device), sigma)
        shape = measurement.operator.A_adjoint(measurement.y).shape
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise ValueError(
                "the measurement must be of a picture (1 or 3, H, W); this operator makes"
                f" {tuple(shape[1:])} of it"
            )
        if self.cleaner and cleans(self, sigma) and reduction(measurement, shape):
            data = denoised(self.cleaner(y), measurement.y[0], sigma)
            plain = replace(measurement, y=data[None].to(measurement.y.device), sigma=0.0)
            run = self.prepare(plain, shape)
            unjudged = replace(run, evidence=None)
            found = sample(unjudged, num_samples=num_samples, seed=seed, callback=callback)
            return cleaned(found, run, measurement, calls=1)
        run = self.prepare(measurement, shape)
        found = sample(run, num_samples=num_samples, seed=seed, callback=callback)
        return warned(found, self, sigma)

    def _is_local(self, y: Tensor, operator: Operator) -> bool:
        """Whether a picture is large and its pixels depend on those nearby alone: one step of
        denoising, or of a network that enlarges by itself.
        """
        shown = self.denoiser.condition_channels > 0
        if not isinstance(operator, Denoising) and not (
            shown and isinstance(operator, UnknownReduction)
        ):
            return False
        size = getattr(operator, "size", tuple(y.shape[1:]))
        return (
            y.ndim == 3
            and y.shape[0] in (1, 3)
            and size == _enlarged(y, operator)
            and are_smaller(size, self.tile)
            and self.num_inference_steps == 1
            and type(self.solver) is DDIM
            and self.correction is None
        )

    def _by_windows(
        self, y: Tensor, operator: Operator, sigma: float, callback: Watch | None
    ) -> Restored:
        factor = getattr(operator, "factor", 1)
        tile = self.tile // factor
        overlap = min(self.overlap // factor, tile // 8)

        def restored(window: Window) -> Restored:
            part, own = y[:, *window], operator
            if isinstance(operator, UnknownReduction):
                own = UnknownReduction(_enlarged(part, operator), factor)
            return self(part, own, sigma=sigma)

        return by_windows(restored, y, tile, overlap, factor, callback)

    def prepare(self, measurement: Measurement, shape: Sequence[int]) -> Run:
        """The run on this measurement. Tensor operations only: it can be traced.

        Args:
            measurement: of pictures of ``shape (B, C, H, W)`` in [0, 1].
        """
        if isinstance(measurement.operator, Counting):
            return self._counted(measurement.operator, measurement, shape)
        d, evidence = self.denoiser, _evidence(measurement)
        cut = _cut(measurement.operator)
        grey = shape[1] == 1
        if (
            _network_channels(d, shape[1]) != shape[1]
        ):  # a network of colours is shown three equal planes
            measurement = Measurement(
                measurement.operator,
                measurement.y.expand(-1, 3, *measurement.y.shape[2:]),
                measurement.sigma,
            )
        elif shape[1] == 3 and d.image_channels == 1:
            d = planewise(d)
        like = measurement.operator.A_adjoint(measurement.y)
        m = measurement.in_range(*d.value_range, like=like)
        condition = condition_of(m, like.shape) if d.condition_channels else None
        d = d if condition is None else d.conditioned(condition)
        d = in_tiles(d, like.shape, self.tile, self.overlap)

        def finish(x0: Tensor) -> Tensor:
            unit = cut(d.to_unit(x0))
            return (unit.mean(1, keepdim=True) if grey else unit).clamp(0, 1)

        def run(
            asked: DenoiserLike,
            grid: Grid,
            start: Tensor | None = None,
            finish: Callable[[Tensor], Tensor] = finish,
            solver: Solver = self.solver,
        ) -> Run:
            state = (int(like.shape[1]), int(like.shape[2]), int(like.shape[3]))
            return Run(
                asked, solver, grid, state, finish, start, calls=self.symmetries, evidence=evidence
            )

        asked: DenoiserLike = Symmetric(d, self.symmetries) if self.symmetries > 1 else d
        if is_denoising(m, like.shape) and not self.whole_grid:
            if isinstance(self.solver, REDDiff):
                raise ValueError(
                    "denoising begins at the noisy picture, a state of the process as it is, which"
                    " red-diff does not: take another solver"
                )
            if self.correction is not None:
                raise ValueError(
                    f"denoising begins at the noisy picture, a state of the process as it is, and"
                    f" {self.correction} would begin it from noise alone, 1 to 6 dB worse: leave"
                    " the correction out"
                )
            start, grid, contrast = entered(
                self.denoiser, m, self.num_inference_steps, self._known(d.process)
            )
            middle = sum(d.value_range) / 2
            return run(asked, grid, start, lambda x0: finish(middle + (x0 - middle) / contrast))
        if isinstance(self.solver, REDDiff):
            if self.correction is not None or self.start_level is not None:
                raise ValueError(
                    "red-diff holds a run to the data by itself, from an estimate of its own: leave"
                    " out the correction and the start level"
                )
            if self.num_inference_steps < RED_DIFF and condition is None:
                raise ValueError(
                    "red-diff approaches the data by small gradient steps and needs at least"
                    f" {RED_DIFF} where the network is shown nothing of them; got"
                    f" {self.num_inference_steps}: take more, or ddim"
                )
            solver = self.solver.on(m, d.lift(like))
            nodes = lay(self.grid, d.process, self.num_inference_steps)
            return run(asked, nodes, solver=solver)
        correction = self.correction_for(m.operator, m.sigma)
        if correction is None:
            return run(asked, lay(self.grid, d.process, self.num_inference_steps))
        asked = correction_by_name(
            correction,
            asked,
            m,
            steps=self.num_inference_steps,
            solver=self.solver,
            from_noise=self.start_level is None,
            prior_std=math.inf if self.start_level else PRIOR_STD,
            options=self.correction_options,
        )
        if self.start_level is None:
            return run(asked, lay(self.grid, d.process, self.num_inference_steps))
        known = self._known(d.process)
        # start levels are a choice: one that the network knows will do
        t = d.process.time_at(-2 * math.log(self.start_level))
        t = nearest(d.process, known, d.process.log_snr(t)) if known else t
        grid = grid_from(d.process, t, self.num_inference_steps, known)
        return replace(run(asked, grid, d.process.a(t) * regularized(m)), stirred=True)

    def _counted(self, photons: Counting, m: Measurement, shape: Sequence[int]) -> Run:
        """The run on the picture that Anscombe's transform makes of counted photons."""
        stabilized, level = photons.stabilized(m.y, m.sigma)
        run = self.prepare(Measurement(Denoising(), stabilized, level), shape)

        def finish(x0: Tensor) -> Tensor:
            return photons.restored(run.finish(x0), m.sigma)

        evidence = Measurement(Denoising(), m.y, photons.deviation(m.sigma))
        return replace(run, finish=finish, evidence=evidence)

    def _known(self, process: Process) -> list[float]:
        """The times that the network may be asked at, where it knows a few only."""
        times = self.timesteps or timesteps_of(self.denoiser.network)
        return [t for t in times if process.a(t) > 0]

    def correction_for(self, operator: Operator, sigma: float) -> str | None:
        """The correction that a run on such data has; None: none."""
        if self.correction is not None:
            return self.correction
        alone = not getattr(operator, "exact", True) and self.denoiser.condition_channels > 0
        if isinstance(operator, Denoising) or (alone and sigma == 0):
            return None
        return "diffpir" if sigma > 0 else "ddnm"


def _enlarged(y: Tensor, operator: Operator) -> tuple[int, int]:
    """The size of the picture that a reduction made ``y (C, h, w)`` of."""
    factor = getattr(operator, "factor", 1)
    return factor * int(y.shape[1]), factor * int(y.shape[2])


def denoised(denoiser: Denoiser, picture: Tensor, sigma: float) -> Tensor:
    """A picture ``(C, H, W)`` in [0, 1] without its white noise, by one call."""
    return LinearTask(denoiser, num_inference_steps=1)(picture, Denoising(), sigma=sigma).mean


def _cut(operator: Operator) -> Callable[[Tensor], Tensor]:
    """From the scene that an operator measures to the picture that is asked for."""
    return operator.cut if isinstance(operator, SceneBlur) else lambda scene: scene


def _evidence(m: Measurement) -> Measurement | None:
    """What a result is judged by: the data, but for those that an operator only stands in for or
    that hang on what lies beyond the picture.
    """
    if not getattr(m.operator, "exact", True):
        return None
    if not isinstance(m.operator, SceneBlur):
        return m
    found = m.operator.inside(m.y)
    return None if found is None else Measurement(found[1], found[0], m.sigma)


def _network_channels(denoiser: Denoiser, channels: int) -> int:
    """Channels of the state of a run on pictures of ``channels`` (1 or 3)."""
    own = denoiser.image_channels or 3  # where the network does not tell
    if own not in (1, 3):
        raise ValueError(f"the network works on {own} channels, not on pictures (1 or 3)")
    if denoiser.condition_channels not in (0, own + 1):
        raise ValueError(
            f"the network's condition has {denoiser.condition_channels} channels; pictures are"
            f" restored with {own + 1} or none"
        )
    return max(own, channels)
