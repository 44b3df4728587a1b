"""Any solver as a diffusers scheduler: the pipeline's own network answers the solver's queries, one
``step`` each.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Tensor

from solvers.grid import GRIDS, Grid
from solvers.interop.diffusers_solver import DiffusersSolver
from solvers.interop.pipeline_run import PipelineRun, Repeated
from solvers.methods import SOLVERS, solver_by_name
from solvers.methods.pndm import PNDM
from solvers.methods.probability_flow import ProbabilityFlow
from solvers.methods.red_diff import REDDiff
from solvers.prediction import PREDICTION_TYPES, Prediction
from solvers.processes.process import CLEAN, VP
from solvers.solver import RNG, Problem, Solver, all_finite

MOST_WARM_UPS = 3  # steps of a solver that may call between the nodes of its grid


class SolverScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # as all of diffusers' do
    """A solver's generator behind ``set_timesteps`` / ``step``.

    ``timesteps`` lists every network call (times repeat where a method calls twice at one level);
    ``step`` answers the call before it and returns the state of the next. Each output is converted
    to image and noise with the state and level of its own call. A run begins when no run is under
    way, or when the first timestep comes again; so a second loop equals the first. Runs always end
    on the clean level.

    *Partial runs* (``timesteps[k:]``, image-to-image): the grid is rebuilt from the level of the
    first call. Where PNDM's warm-up calls no longer fit the list, its ``single_call()`` form goes
    on from there; calls that repeat a level are then made twice for one answer. Steps of other
    solvers can't be cut inside.

    *Edited samples* (a blend with known pixels between calls): the run goes on from the edited
    state. At calls whose query is not ``editable`` it begins anew there, and the history is lost
    (every step is then a first one: EVODiff and UniPC are DDIM under edits in every step). Trial
    points of Runge-Kutta steps can't begin a run: there the edit counts for the call's answer.

    *Copies* (``copy.deepcopy``) go on by themselves, also in the middle of a run, with a copy of
    its noise source. For that a run keeps its answers, up to KEPT bytes of them.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas,
            rescale_betas_zero_snr: the process, in diffusers' words (:meth:`VP.from_diffusers`).
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.
        timestep_spacing: a name in ``solvers.GRIDS``.
        steps_offset: added to the times of the ``leading`` grid (as in diffusers, there alone).
        solver: a name in ``solvers.SOLVERS``, or ``DiffusersSolver``.
        solver_options: the solver's fields.

    Attributes:
        timesteps: times of the network calls, ``(NFE,)``; int64 if all are whole, else float32.
        alphas_cumprod, betas: of the process, ``(T,)``, as diffusers' schedulers have them.
        solver, process: what runs.

    Raises:
        ValueError: unknown names.
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # noqa: RUF012
    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]  # it is diffusers'
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "trailing",
        steps_offset: int = 0,
        solver: str = "pndm",
        solver_options: dict[str, Any] | None = None,
    ):
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type {prediction_type!r} is unknown; known:"
                f" {', '.join(PREDICTION_TYPES)}"
            )
        if timestep_spacing not in GRIDS:
            raise ValueError(
                f"timestep_spacing {timestep_spacing!r} is unknown; known: {', '.join(GRIDS)}"
            )
        known = solver == DiffusersSolver.__name__
        options = solver_options or {}
        self.solver = DiffusersSolver(**options) if known else solver_by_name(solver, **options)
        _check_steps(self.solver)
        self.process = VP.from_diffusers(self.config)
        abar = self.process.alphas_cumprod
        self.alphas_cumprod = torch.from_numpy(abar.copy()).float()
        self.betas = torch.from_numpy(1 - abar / np.concatenate([[1.0], abar[:-1]])).float()
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._grid: Grid | None = None
        self._times: list[float] = []
        self._begin_index: int | None = None
        self._run: PipelineRun | None = None

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    # -- before the run ----------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Iterable[float] | None = None,
    ) -> None:
        """Lay the grid of ``num_inference_steps`` steps, or of the descending ``timesteps``, both
        ending clean; list the calls.

        Args:
            timesteps: the levels to visit; or all calls of such a run, as in :attr:`timesteps`.

        Raises:
            ValueError: both or none given; a step count or times outside the process.
        """
        if timesteps is not None and num_inference_steps is None:
            grid = self._grid_of([float(t) for t in timesteps])
        elif timesteps is not None or num_inference_steps is None:
            raise ValueError("give num_inference_steps or timesteps, and not both")
        else:
            grid = GRIDS[self.config["timestep_spacing"]](self.process, num_inference_steps)
            if self.config["timestep_spacing"] == "leading":
                grid = Grid((*(t + self.config["steps_offset"] for t in grid.times[:-1]), CLEAN))
        if grid.times[0] > len(self.process) - 1:
            raise ValueError(
                f"the grid starts at t={grid.times[0]} but the process ends at"
                f" t={len(self.process) - 1}"
            )
        self._grid = grid
        self._times = _call_times(self.solver, self.process, grid)
        whole = all(t == int(t) for t in self._times)
        self.timesteps = torch.tensor(
            self._times, dtype=torch.int64 if whole else torch.float32, device=device
        )
        self.num_inference_steps = len(grid)
        self._begin_index = self._run = None

    def _grid_of(self, times: list[float]) -> Grid:
        """The grid of these levels; or that whose calls they are."""
        if all(s < t for t, s in itertools.pairwise(times)):
            return Grid((*times, CLEAN))
        levels = sorted(set(times), reverse=True)
        for steps in range(MOST_WARM_UPS + 1):  # each has called once between its ends
            between = levels[1 : 2 * steps : 2]
            grid = Grid((*(t for t in levels if t not in between), CLEAN))
            if _call_times(self.solver, self.process, grid) == times:
                return grid
        raise ValueError(
            f"timesteps must descend, or be all calls of {type(self.solver).__name__} on such"
            f" levels; got {times}"
        )

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The next run begins at ``timesteps[begin_index]``."""
        self._begin_index = begin_index
        self._run = None

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``a x0 + b eps`` with one time per sample, ``timesteps (B,)``."""
        column = (-1, *(1 for _ in original_samples.shape[1:]))
        a, b = (v.to(original_samples).reshape(column) for v in self._levels(timesteps))
        return a * original_samples + b * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``a eps - b x0``, what a ``v_prediction`` network learns; one time per sample,
        ``timesteps (B,)``.
        """
        column = (-1, *(1 for _ in sample.shape[1:]))
        a, b = (v.to(sample).reshape(column) for v in self._levels(timesteps))
        return a * noise - b * sample

    def _levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """``a`` and ``b`` in double precision on the CPU, which not every device has."""
        times = timesteps.cpu().double()
        return self.process.a(times), self.process.b(times)

    # -- the run -----------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: RNG = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor]:
        """Answer the call at ``timestep`` with ``model_output (B, C or 2C, H, W)`` and return the
        next call's state.

        Args:
            model_output: the network's output; a learned variance behind the first C channels is
                left out.
            timestep: the call's time, as in ``timesteps``.
            sample: the state that the network saw, ``(B, C, H, W)``.
            eta, use_clipped_model_output: accepted for ``DDIMPipeline``; only their defaults are.
            generator: noise source; the one of a run's first step serves the whole run.

        Raises:
            ValueError: a timestep that is not the next call; a run that ends in NaN or infinity;
                ``eta`` or clipping.
        """
        if eta or use_clipped_model_output:
            raise ValueError(
                "eta and clipping belong to the solver here: use as_scheduler(DDIM(eta=...))"
            )
        if self._grid is None:
            self.set_timesteps(len(self.process))
        assert self._grid is not None
        t = float(np.float32(float(timestep)))  # as published in timesteps
        run = self._run
        if run is None or not run.expects(t):
            if run is not None and t not in (np.float32(run.times[0]), np.float32(self._times[0])):
                raise ValueError(
                    f"the run's next call is at timestep {run.query.t}, not {t}; call set_timesteps"
                    " to begin another run"
                )
            run = self._run = self._begin(self._grid, t, sample, generator)
        elif run.edited(sample) and not run.query.editable:
            run = self._run = self._go_on(run, sample)
        model_output = model_output[:, : sample.shape[1]]
        prediction = run.answer(model_output, sample, self.config["prediction_type"])
        previous = run.shown
        if run.done:
            self._run = None
            if not all_finite(previous):
                raise ValueError(
                    "the run ended in NaN or infinite values: the network answered with them; check"
                    " its weights, and half precision, which overflows beyond 65504"
                )
        if not return_dict:
            return (previous,)
        return DDPMSchedulerOutput(
            prev_sample=previous, pred_original_sample=prediction.x0.to(sample.dtype)
        )

    def _begin(self, whole: Grid, t: float, sample: Tensor, generator: RNG) -> PipelineRun:
        """Start a run at the call at ``t``: the whole grid, or the rest of it."""
        shown = [float(v) for v in np.array(self._times, dtype=np.float32)]
        if t not in shown:
            raise ValueError(f"timestep {t} is not among the scheduler's timesteps")
        k = shown.index(t)
        if self._begin_index is not None and shown[self._begin_index] == t:
            k = self._begin_index
        times = self._times[k:]
        if k == 0:
            return PipelineRun(
                Problem(self.process, None, generator), sample, self.solver, whole, times
            )
        run = self._rest(whole, times, sample, generator)
        if run is not None:
            return run
        if not _is_pndm(self.solver):
            raise ValueError(
                f"the timesteps were cut inside a step of {self.solver}, whose calls don't fit the"
                " rest of the list; use a solver with one call per step, or"
                " set_timesteps(timesteps=...) with the levels to visit"
            )
        # cut inside a warm-up: the rest by the same gradients without one, from the cut on
        grid = Grid((*sorted(set(times), reverse=True), CLEAN))
        problem = Problem(self.process, None, generator)
        return PipelineRun(problem, sample, Repeated(PNDM(weights="fixed"), times), grid, times)

    def _rest(
        self, whole: Grid, times: list[float], sample: Tensor, generator: RNG
    ) -> PipelineRun | None:
        """A run that begins at the first of the ``times`` and calls at all of them; None where no
        form of the solver does.
        """
        grid = whole.start_at(times[0])
        for solver in _forms(self.solver):
            if _call_times(solver, self.process, grid) == times:
                return PipelineRun(
                    Problem(self.process, None, generator), sample, solver, grid, times
                )
        return None

    def _go_on(self, run: PipelineRun, sample: Tensor) -> PipelineRun:
        """The run after an edit that its solver would not see: begun anew from the edited state, or
        itself where nothing can begin.
        """
        left = run.times[run.calls :]
        return self._rest(run.grid, left, sample, run.problem.generator) or run


def as_scheduler(
    solver: Any,
    process: VP | Mapping[str, Any] | None = None,
    grid: str = "trailing",
    *,
    prediction_type: str | None = None,
    steps_offset: int | None = None,
) -> SolverScheduler:
    """A diffusers scheduler that runs ``solver``.

    Args:
        solver: a solver object; to save and load the scheduler, one of the classes in
            ``solvers.SOLVERS``.
        process: a :class:`VP`, or a scheduler config (``pipeline.scheduler.config``); DDPM's linear
            process by default.
        grid: a name in ``solvers.GRIDS``.
        prediction_type, steps_offset: by default the config's, else ``epsilon`` and 0.

    Raises:
        ValueError: a process that is not a plain VP, unknown names, a solver whose calls a pipeline
            can't make.
    """
    _check_steps(solver)
    config: dict[str, Any] = {}
    if isinstance(process, VP):
        if type(process) is not VP:
            raise ValueError(
                f"diffusers has no words for a {type(process).__name__} process; give a VP"
            )
        abar = process.alphas_cumprod
        betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
        config = {"num_train_timesteps": len(process), "trained_betas": betas.tolist()}
    elif process is not None:
        known = inspect.signature(SolverScheduler.__init__).parameters
        config = {
            key: value
            for key, value in process.items()
            if key in known and not key.startswith("solver")
        }
    config["timestep_spacing"] = grid
    if prediction_type is not None:
        config["prediction_type"] = prediction_type
    if steps_offset is not None:
        config["steps_offset"] = steps_offset
    name, options = _words(solver)
    if name in (*SOLVERS, DiffusersSolver.__name__):
        scheduler = SolverScheduler(**config, solver=name, solver_options=options)
    else:  # it can be saved, but not loaded
        scheduler = SolverScheduler(**config)
        scheduler.register_to_config(solver=name, solver_options=options)
    scheduler.solver = solver
    if isinstance(process, VP):
        scheduler.process = process  # to the last bit; the betas in the config lose a few
    return scheduler


def _words(solver: Any) -> tuple[str, dict[str, Any] | None]:
    """A solver's name and options in a config, from which :class:`SolverScheduler` makes it again
    where it knows the name.
    """
    for name, made in SOLVERS.items():
        if made is type(solver):
            return name, asdict(solver)
        if isinstance(made, partial) and made() == solver:
            return name, {}
    if isinstance(solver, DiffusersSolver):
        return type(solver).__name__, {"scheduler": solver.name, "options": solver.options}
    plain = is_dataclass(solver) and not isinstance(solver, type)
    return type(solver).__name__, asdict(solver) if plain else None


def _is_pndm(solver: Any) -> bool:
    """Whether PNDM's form without a warm-up gives its gradients: ours, or diffusers'."""
    named = isinstance(solver, DiffusersSolver) and solver.name == "PNDMScheduler"
    return named or isinstance(solver, PNDM)


def _check_steps(solver: Any) -> None:
    """Raises ValueError for a solver whose calls a pipeline can't make."""
    if isinstance(solver, (ProbabilityFlow, REDDiff)):
        raise ValueError(
            f"{type(solver).__name__} can't run in a pipeline: its calls are not the steps of a"
            " state from noise to image, which pipelines take; use solvers.solve"
        )


def _forms(solver: Any) -> list[Solver]:
    """The solver, and what it is without its warm-up, if it has such a form."""
    if isinstance(solver, PNDM) and solver.variant != "fon":
        return [solver, solver.single_call()]
    return [solver]


def _call_times(solver: Solver, process: VP, grid: Grid) -> list[float]:
    """Times of all network calls, found by answering zeros."""
    zero = torch.zeros(1, 1, 8, 8)
    run = solver.run(Problem(process, None, torch.Generator().manual_seed(0)), grid, zero)
    times, query = [], next(run)
    while True:
        times.append(float(query.t))
        try:
            query = run.send(Prediction(torch.zeros_like(query.x), torch.zeros_like(query.x)))
        except StopIteration:
            return times
