"""The samplers, one paper to a file, and their names on the command line and in configs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from solvers.interop.diffusers_solver import DiffusersSolver
from solvers.methods.auto import Auto
from solvers.methods.ddcm import DDCM
from solvers.methods.ddim import DDIM
from solvers.methods.eabm import EABM
from solvers.methods.evodiff import EVODiff
from solvers.methods.pndm import PNDM
from solvers.methods.rddm import RDDMSampler
from solvers.methods.red_diff import REDDiff
from solvers.methods.resfusion import ResfusionSampler
from solvers.solver import Solver

# The value called without arguments is a solver.
SOLVERS: dict[str, Callable[..., Solver]] = {
    "auto": Auto,
    "ddim": DDIM,
    "ddpm": partial(DDIM, eta=1.0),
    "pndm": PNDM,
    "s-pndm": partial(PNDM, "s-pndm"),
    "f-pndm": partial(PNDM, "f-pndm"),
    "plms": partial(PNDM, "plms"),
    "ipndm": partial(PNDM, "ipndm", "fixed"),
    "eab": partial(PNDM, "ipndm", "exponential"),
    "eabm": EABM,
    "fon": partial(PNDM, "fon"),
    "evodiff": EVODiff,
    "resfusion": ResfusionSampler,
    "rddm": RDDMSampler,
    "ddcm": DDCM,
    "dpm-solver++-2m": partial(DiffusersSolver, "DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm-solver++-3m": partial(DiffusersSolver, "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc": partial(DiffusersSolver, "UniPCMultistepScheduler", {"solver_order": 2}),
    "deis": partial(DiffusersSolver, "DEISMultistepScheduler", {"solver_order": 2}),
    "diffusers-ddim": partial(DiffusersSolver, "DDIMScheduler", {"clip_sample": False}),
    "diffusers-plms": partial(DiffusersSolver, "PNDMScheduler", {"skip_prk_steps": True}),
}

# solvers of tasks, which give them what was measured; nothing else can run them
MEASURED: dict[str, Callable[..., Solver]] = {"red-diff": partial(REDDiff, decay=True)}


def solver_by_name(name: str, **options: Any) -> Solver:
    """The solver of this name, with its fields set from ``options``.

    Raises:
        ValueError: an unknown name (the message lists the known ones), or options that the solver
            does not have.
    """
    known = {**SOLVERS, **MEASURED}
    if name not in known:
        raise ValueError(f"solver {name!r} is unknown; known: {', '.join(known)}")
    try:
        return known[name](**options)
    except TypeError as error:
        raise ValueError(
            f"solver {name!r} can't be made with options {options}: {error}"
        ) from error
