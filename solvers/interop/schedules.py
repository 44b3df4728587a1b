"""What a diffusers scheduler's configuration says of the network beside it: process, prediction,
scaling of the input and of time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solvers.inputs.errors import ModelError
from solvers.interop.checkpoints.container import HOW_TO_WRAP
from solvers.processes.continuous import VE, Flow
from solvers.processes.process import VP, Process

# schedulers of the VP process, whatever their steps
VP_CLASSES = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DDIMInverseScheduler"),
    *("DDIMParallelScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
    *("DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler"),
    *("EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler", "LCMScheduler", "TCDScheduler"),
    *("UniPCMultistepScheduler", "SASolverScheduler", "RePaintScheduler", "SolverScheduler"),
)
EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW_CLASSES = (
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    "FlowMatchLCMScheduler",
)
KNOWN = (*VP_CLASSES, "ScoreSdeVeScheduler", *EDM_CLASSES, *FLOW_CLASSES)


@dataclass(frozen=True)
class Schedule:
    """A network's process and how it is asked.

    Attributes:
        process: that it was trained under.
        prediction_type: what it estimates.
        settings: arguments of :class:`solvers.Denoiser`.
        adapted: arguments of :func:`solvers.interop.networks.clock.adapt`.
        negated: its output is the negative of that.
    """

    process: Process
    prediction_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    adapted: dict[str, Any] = field(default_factory=dict)
    negated: bool = False


def schedule_of(path: Path, config: Mapping[str, Any]) -> Schedule:
    """The schedule of the ``scheduler_config.json`` at ``path``; of none DDPM's linear one.

    Raises:
        ModelError: a scheduler of an unknown class.
        ValueError: values that make no process.
    """
    name = config.get("_class_name")
    if name is not None and name not in KNOWN:
        raise ModelError(
            f"{path}: the scheduler is a {name}, whose process is not known here; known:"
            f" {', '.join(known.removesuffix('Scheduler') for known in KNOWN)}; {HOW_TO_WRAP}"
        )
    config = _defaults(name) | dict(config)
    if name == "ScoreSdeVeScheduler":
        process = VE(float(config["sigma_min"]), float(config["sigma_max"]))
        settings = {"value_range": (0.0, 1.0), "scaled": False}  # as its pipeline's pictures
        return Schedule(process, "epsilon", settings, {"score": True})
    if name in EDM_CLASSES:
        process = VE(float(config["sigma_min"]), float(config["sigma_max"]))
        kind = config["prediction_type"]
        if kind not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"{path}: prediction_type {kind!r} is unknown; known: epsilon, v_prediction"
            )
        settings = {"data_std": float(config["sigma_data"]), "scaled": True}
        clock = {"scale": 0.25, "log": True}
        # both are v_prediction of the scaled state, but for the sign (Karras et al. 2022, table 1)
        return Schedule(process, "v_prediction", settings, clock, negated=kind == "epsilon")
    steps = float(config.get("num_train_timesteps", 1000))
    if name in FLOW_CLASSES or config.get("prediction_type") == "flow_prediction":
        if config.get("invert_sigmas"):
            raise ModelError(
                f"{path}: {name} with invert_sigmas counts time from noise to image: unknown here"
            )
        return Schedule(Flow(), "velocity", {"scaled": False}, {"scale": steps})
    if config.get("timestep_type") == "continuous":
        low, high = config.get("sigma_min"), config.get("sigma_max")
        if config.get("prediction_type") != "v_prediction" or low is None or high is None:
            raise ModelError(
                f"{path}: {name} with timestep_type continuous is known with v_prediction,"
                " sigma_min and sigma_max alone"
            )
        process = VE(float(low), float(high))
        return Schedule(process, "v_prediction", {"scaled": True}, {"scale": 0.25, "log": True})
    try:
        levels = VP.from_diffusers(config)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    return Schedule(levels, config.get("prediction_type", "epsilon"))


def _defaults(name: str | None) -> dict[str, Any]:
    """What the scheduler's class takes where its configuration says nothing."""
    import diffusers

    made = getattr(diffusers, name or "", None)
    if made is None:
        return {}
    parameters = inspect.signature(made.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
