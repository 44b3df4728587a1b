"""A diffusers scheduler as a solver: its update rule on our levels, processes and predictions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.grid import Grid
from solvers.processes.process import Process
from solvers.solver import Problem, Queries, Query, Solver

# any of diffusers': each has options and attributes of its own
Scheduler = Any

# what a run decides itself, wherever a scheduler has the option: its levels are the grid's, its
# network speaks epsilon
LEVELS = {
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "interpolation_type": "linear",
}
ONE_STEP = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
)
# where schedulers keep the state that a later call goes on from
STORED = ("sample", "last_sample", "cur_sample")


@dataclass(frozen=True)
class DiffusersSolver:
    """The update rule of any diffusers scheduler: DDIM, PLMS, DPM-Solver++, UniPC, DEIS, Heun,
    Euler and their like.

    ``x_s = scheduler.step(eps, t, x_t)``, with the scheduler's own formula. Each run makes a
    scheduler of its own, whose training levels are the nodes of the grid: all are visited, so every
    target is the next node (diffusers' own constant strides miss it where N does not divide T). Any
    process will do: ``(x - c y)/sqrt(a^2 + b^2)`` is a variance-preserving state with the same
    log-SNR. On the grid of its own timesteps a run gives what diffusers' loop gives; options that
    lay out levels (``timestep_spacing``, ``use_karras_sigmas``, ``final_sigmas_type``, ...) are the
    grid's part and have no effect.

    A scheduler that can't reach the clean level (DEIS) is run to the last noisy node, whose image
    estimate is the result. Where there is no signal (zero terminal SNR) the first step is first
    order. States follow ``a x0 + b eps`` of the answer: corrections count. Where a scheduler goes
    on from a state that it stored (UniPC, Heun) only the estimates do. Sigmas are single precision
    in most schedulers, which ends their convergence at about 1e-5; DPM-Solver's multi-step one also
    holds its states in single precision.

    When to use it: to compare with ours on the same levels, or to run a restoration with a
    scheduler you trust.

    NFE: as many as steps; Heun twice as many less one, PLMS one more.

    Reference: diffusers' schedulers, each with its own paper: Song et al. 2021 (DDIM), Liu et al.
    2022 (PLMS), Lu et al. 2022 (DPM-Solver++), Zhao et al. 2023 (UniPC), Zhang & Chen 2023 (DEIS).

    Args:
        scheduler: name of a class in diffusers, or the class.
        options: its config.

    Raises:
        ValueError: no such scheduler, options it does not have, or one whose rule is not about
            levels alone (flow matching, EDM's own parametrisation, consistency models, SA-Solver,
            PNDM with Runge-Kutta steps).
    """

    scheduler: str | type
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = _options(self._class())
        needed, foreign = (
            {"trained_betas", "num_train_timesteps", "prediction_type"},
            {"original_inference_steps", "tau_func"},
        )
        if not needed <= set(known) or foreign & set(
            known
        ):  # rules that look at the training times themselves
            raise ValueError(
                f"{self.name} does not walk the levels of any diffusion; DDIM, DPM-Solver, UniPC,"
                " DEIS and Heun do"
            )
        if unknown := [key for key in self.options if key not in known]:
            raise ValueError(
                f"{self.name} has no option {', '.join(unknown)}; it has {', '.join(known)}"
            )
        if "skip_prk_steps" in known and not self.options.get("skip_prk_steps", False):
            raise ValueError(
                "PNDMScheduler's Runge-Kutta calls fall between levels: give skip_prk_steps=True,"
                " or use PNDM('f-pndm')"
            )
        if str(self.options.get("variance_type", "")).startswith("learned"):
            raise ValueError(
                "a prediction holds no learned variance: give variance_type='fixed_small' or"
                " 'fixed_large'"
            )

    @classmethod
    def of(cls, scheduler: Scheduler) -> DiffusersSolver:
        """The update rule of a scheduler object, which stays as it is.

        Raises:
            ValueError: as the class.
        """
        known = _options(type(scheduler))
        return cls(
            type(scheduler), {key: value for key, value in scheduler.config.items() if key in known}
        )

    @property
    def name(self) -> str:
        return self.scheduler if isinstance(self.scheduler, str) else self.scheduler.__name__

    @property
    def keeps_history(self) -> bool:
        """Whether a step also uses earlier answers."""
        return self.name not in ONE_STEP and self.options.get("solver_order", 2) > 1

    @property
    def combines_noise(self) -> bool:
        """Whether these are noise estimates."""
        return self.name in ("PNDMScheduler", "IPNDMScheduler", "LMSDiscreteScheduler")

    def _class(self) -> type[Any]:
        if not isinstance(self.scheduler, str):
            return self.scheduler
        import diffusers

        found = getattr(diffusers, self.scheduler, None)
        if not isinstance(found, type):
            raise ValueError(
                f"diffusers has no scheduler {self.scheduler!r}; it has DDIMScheduler,"
                " UniPCMultistepScheduler, ..."
            )
        return found

    def make(self, kappas: list[float], to_last: bool) -> Scheduler:
        """A scheduler whose training levels are ``kappas`` (descending), set to visit them and to
        end clean, or ``to_last`` of them.

        Raises:
            ValueError: it would not visit each of them in order.
        """
        made, count = self._class(), len(kappas)
        known = _options(made)
        abar = 1 / (1 + np.array(kappas[::-1]) ** 2)
        betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
        levels = {"num_train_timesteps": count, "trained_betas": betas.tolist(), **LEVELS}
        levels["final_sigmas_type"] = "sigma_min" if to_last else "zero"
        if self.name == "DPMSolverSinglestepScheduler":
            # its rounds of two or three calls fit any number of steps only so
            levels["lower_order_final"] = True
        scheduler = made(
            **{**self.options, **{key: value for key, value in levels.items() if key in known}}
        )
        # the product of single-precision betas is a few 1e-4 off near clean
        scheduler.alphas_cumprod = torch.from_numpy(abar.copy())
        scheduler.set_timesteps(count)
        wanted = [float(k) for k in reversed(range(count))]
        if _visited(scheduler) != wanted and "timesteps" in _options(scheduler.set_timesteps):
            scheduler.set_timesteps(timesteps=[int(t) for t in wanted])
        if _visited(scheduler) != wanted:
            raise ValueError(
                f"{self.name} does not visit the levels of a grid in order, one call after the"
                " other; use another scheduler"
            )
        if to_last:
            scheduler.timesteps = scheduler.timesteps[:-1]
            if hasattr(scheduler, "sigmas"):
                scheduler.sigmas = scheduler.sigmas[: len(scheduler.timesteps) + 1]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return scheduler

    def run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))
        return (yield from self._run(problem, grid, x)).to(dtype)

    def _run(self, problem: Problem, grid: Grid, x: Tensor) -> Queries:
        process, y = problem.process, problem.y
        nodes = list(grid.times)
        # 1. diffusers' rules know no level without signal: leave it by a first-order step.
        while process.a(nodes[0]) <= 0 and len(nodes) > 1:
            p = yield Query(x, nodes[0], editable=True)
            x = process.add_noise(p.x0, p.eps, nodes[1], y)
            del nodes[0]
        # 2. Nor does the clean level belong to their training levels.
        end = nodes[-1]
        while nodes and process.b(nodes[-1]) == 0:
            nodes.pop()
        if not nodes:
            return x
        # 3. The scheduler walks the noisy nodes, and on to the clean image if it can.
        to_clean = nodes[-1] != end
        denoise = to_clean and self._ends_noisy()
        if len(nodes) > 1 or (to_clean and not denoise):
            x = yield from self._walk(problem, nodes, x, to_last=denoise or not to_clean)
        # 4. Where it can't, one more question gives the image.
        if denoise:
            x = (yield Query(x, nodes[-1], editable=True)).x0
        elif not to_clean:
            return x
        return process.add_noise(x, torch.zeros_like(x), end, y)

    def _walk(self, problem: Problem, nodes: list[float], x: Tensor, to_last: bool) -> Queries:
        """From the state at the first node to that at the last, or to the image."""
        process, y = problem.process, problem.y
        # 1. A scheduler whose training levels are those of the nodes.
        kappas = [process.kappa(t) for t in nodes]
        scheduler = self.make(kappas, to_last)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        # 2. Schedulers hold x/a (variance exploding) or the state of unit variance;
        # scale_model_input tells which.
        exploding = not torch.equal(
            scheduler.scale_model_input(torch.ones(1), scheduler.timesteps[0]), torch.ones(1)
        )
        sample = process.unshifted(x, nodes[0], y) / (
            process.a(nodes[0]) if exploding else _size(process, nodes[0])
        )
        for index in scheduler.timesteps:
            # 3. Its next level as our time and state; the answer as its noise estimate.
            t = _time(process, nodes, kappas, float(index))
            a, b, size = process.a(t), process.b(t), _size(process, t)
            z = size * scheduler.scale_model_input(sample, index)
            editable = all(getattr(scheduler, name, None) is None for name in STORED)
            p = yield Query(process.shifted(z, t, y), t, editable)
            state = a * p.x0 + b * p.eps  # x - c y as the network, or whoever corrected it, saw it
            noise = {"generator": problem.generator} if takes_generator else {}
            sample = scheduler.step(
                p.eps, index, state / (a if exploding else size), **noise
            ).prev_sample.to(x.dtype)
        # 4. The end: the image, or the state at the last node.
        if not to_last:
            return sample
        end = nodes[-1]
        return process.shifted(
            sample * (process.a(end) if exploding else _size(process, end)), end, y
        )

    def _ends_noisy(self) -> bool:
        """Whether the rule can't reach the clean level."""
        if str(self.options.get("algorithm_type")).endswith("dpmsolver"):  # on noise estimates
            return True
        sigmas = getattr(self.make([2.0, 1.0], to_last=False), "sigmas", None)
        return sigmas is not None and float(sigmas[-1]) > 0


def _visited(scheduler: Scheduler) -> list[float]:
    """Its whole times in order, each once."""
    return [t for t in dict.fromkeys(float(t) for t in scheduler.timesteps) if t == int(t)]


def _options(scheduler: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(scheduler).parameters


def _size(process: Process, t: float) -> float:
    return math.hypot(process.a(t), process.b(t))


def _time(process: Process, nodes: list[float], kappas: list[float], index: float) -> float:
    """The process's time of a scheduler's own: node times at whole ones, levels between (KDPM2)
    log-linear as diffusers counts them.
    """
    at = len(nodes) - 1 - index
    k = math.floor(at)
    if at == k:
        return nodes[k]
    weight = at - k
    return process.time_at(
        -2 * ((1 - weight) * math.log(kappas[k]) + weight * math.log(kappas[k + 1]))
    )


def as_solver(solver: Any) -> Solver:
    """``solver`` itself, the solver behind a ``SolverScheduler``, or the update rule of any other
    diffusers scheduler.

    Raises:
        TypeError: none of these.
        ValueError: a scheduler that can't serve (:class:`solvers.DiffusersSolver`).
    """
    if callable(getattr(solver, "run", None)):
        return solver
    if callable(getattr(solver, "set_timesteps", None)) and callable(getattr(solver, "step", None)):
        return solver.solver if hasattr(solver, "solver") else DiffusersSolver.of(solver)
    raise TypeError(
        f"{solver!r} is no solver: give an object with run(problem, grid, x), or a diffusers"
        " scheduler"
    )
