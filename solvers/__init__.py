"""Samplers, processes and the one loop that runs them.

    from solvers import PNDM, Denoiser, generators, randn, solve, trailing

    denoiser = Denoiser.from_pretrained("model")
    x = randn((1, 3, 64, 64), generators(0, 1))
    image = solve(PNDM(), denoiser, x, trailing(denoiser.process, 20)).x0

The diffusers adapter (``as_scheduler``, ``SolverScheduler``) is imported on first use, and
diffusers with it.
"""

from functools import partial

from solvers.analytic import GaussianMixture
from solvers.continuous import VE, ContinuousVP
from solvers.denoiser import Denoiser
from solvers.editing.ddpm_inversion import DDPMInversion, Inversion, invert, regenerate
from solvers.editing.text_editing import edit_prompt
from solvers.grid import (
    GRIDS,
    Grid,
    consistency,
    explicit,
    karras,
    leading,
    linspace,
    log_snr,
    pndm_nodes,
    trailing,
)
from solvers.interop.diffusers_solver import DiffusersSolver
from solvers.methods.ddcm import DDCM, Branches, edit
from solvers.methods.ddim import DDIM
from solvers.methods.evodiff import EVODiff
from solvers.methods.pndm import PNDM
from solvers.methods.probability_flow import ProbabilityFlow
from solvers.methods.rddm import RDDM, RDDMSampler, rddm_nodes
from solvers.methods.red_diff import REDDiff
from solvers.methods.resampled import Resampled
from solvers.methods.resfusion import Resfusion, ResfusionSampler
from solvers.prediction import PREDICTION_TYPES, Prediction, ResidualPrediction
from solvers.process import CLEAN, VP, Process, StepIndexed
from solvers.solver import (
    LevelMatched,
    Problem,
    Query,
    Solution,
    Solver,
    Step,
    as_solver,
    generators,
    randn,
    solve,
)

# Names for the command line and for scheduler configs; the value called without arguments is a
# solver.
SOLVERS = {
    "ddim": DDIM,
    "ddpm": partial(DDIM, eta=1.0),
    "pndm": PNDM,
    "s-pndm": partial(PNDM, "s-pndm"),
    "f-pndm": partial(PNDM, "f-pndm"),
    "plms": partial(PNDM, "plms"),
    "ipndm": partial(PNDM, "ipndm", "fixed"),
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


def solver_by_name(name: str, **options):
    """The solver of this name, with its fields set from ``options``.

    Raises:
        ValueError: an unknown name (the message lists the known ones), or options that the solver
            does not have.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is unknown; known: {', '.join(SOLVERS)}")
    try:
        return SOLVERS[name](**options)
    except TypeError as error:
        raise ValueError(
            f"solver {name!r} can't be made with options {options}: {error}"
        ) from error


def __getattr__(name: str):
    if name in ("SolverScheduler", "as_scheduler"):
        from solvers.interop import scheduler

        return getattr(scheduler, name)
    raise AttributeError(f"module 'solvers' has no attribute {name!r}")


__all__ = [
    "CLEAN",
    "DDCM",
    "DDIM",
    "GRIDS",
    "PNDM",
    "PREDICTION_TYPES",
    "RDDM",
    "SOLVERS",
    "VE",
    "VP",
    "Branches",
    "ContinuousVP",
    "DDPMInversion",
    "Denoiser",
    "DiffusersSolver",
    "EVODiff",
    "GaussianMixture",
    "Grid",
    "Inversion",
    "LevelMatched",
    "Prediction",
    "ProbabilityFlow",
    "Problem",
    "Process",
    "Query",
    "RDDMSampler",
    "REDDiff",
    "Resampled",
    "Resfusion",
    "ResfusionSampler",
    "ResidualPrediction",
    "Solution",
    "Solver",
    "SolverScheduler",
    "Step",
    "StepIndexed",
    "as_scheduler",
    "as_solver",
    "consistency",
    "edit",
    "edit_prompt",
    "explicit",
    "generators",
    "invert",
    "karras",
    "leading",
    "linspace",
    "log_snr",
    "pndm_nodes",
    "randn",
    "rddm_nodes",
    "regenerate",
    "solve",
    "solver_by_name",
    "trailing",
]
