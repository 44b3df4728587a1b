"""Samplers, processes and the one loop that runs them.

    from solvers import PNDM, Denoiser, generators, randn, solve, trailing

    denoiser = Denoiser.from_pretrained("model")
    x = randn((1, 3, 64, 64), generators(0, 1))
    image = solve(PNDM(), denoiser, x, trailing(denoiser.process, 20)).x0

The diffusers adapter (``as_scheduler``, ``SolverScheduler``) is imported on first use, and
diffusers with it.
"""

from typing import TYPE_CHECKING, Any

from solvers.analytic import GaussianMixture
from solvers.denoiser import Denoiser
from solvers.editing.ddpm_inversion import DDPMInversion, Inversion, invert, regenerate
from solvers.editing.text_editing import PromptEdit, edit_prompt
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
from solvers.interop.diffusers_solver import DiffusersSolver, as_solver
from solvers.loop import solve
from solvers.methods import SOLVERS, solver_by_name
from solvers.methods.auto import Auto
from solvers.methods.ddcm import DDCM, Branches, edit
from solvers.methods.ddim import DDIM
from solvers.methods.eabm import EABM
from solvers.methods.evodiff import EVODiff
from solvers.methods.pndm import PNDM
from solvers.methods.probability_flow import ProbabilityFlow
from solvers.methods.rddm import RDDM, RDDMSampler, rddm_nodes
from solvers.methods.red_diff import REDDiff
from solvers.methods.resampled import Resampled
from solvers.methods.resfusion import Resfusion, ResfusionSampler
from solvers.prediction import PREDICTION_TYPES, Prediction, ResidualPrediction
from solvers.processes.continuous import VE, ContinuousVP, Flow
from solvers.processes.level_matching import LevelMatched
from solvers.processes.process import CLEAN, VP, Process, StepIndexed
from solvers.solver import DenoiserLike, Problem, Query, Solution, Solver, Step, generators, randn

if TYPE_CHECKING:
    from solvers.interop.scheduler import SolverScheduler, as_scheduler


def __getattr__(name: str) -> Any:
    if name in ("SolverScheduler", "as_scheduler"):
        from solvers.interop import scheduler

        return getattr(scheduler, name)
    raise AttributeError(f"module 'solvers' has no attribute {name!r}")


__all__ = [
    "CLEAN",
    "DDCM",
    "DDIM",
    "EABM",
    "GRIDS",
    "PNDM",
    "PREDICTION_TYPES",
    "RDDM",
    "SOLVERS",
    "VE",
    "VP",
    "Auto",
    "Branches",
    "ContinuousVP",
    "DDPMInversion",
    "Denoiser",
    "DenoiserLike",
    "DiffusersSolver",
    "EVODiff",
    "Flow",
    "GaussianMixture",
    "Grid",
    "Inversion",
    "LevelMatched",
    "Prediction",
    "ProbabilityFlow",
    "Problem",
    "Process",
    "PromptEdit",
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
