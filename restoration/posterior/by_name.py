"""Corrections by the names that commands and tasks know them by, with settings that fit the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from restoration.operators.measurement import Measurement
from restoration.posterior.correction import Correction
from restoration.posterior.ddnm import DDNM, DDNMPlus
from restoration.posterior.ddrm import DDRM
from restoration.posterior.diffpir import DiffPIR
from restoration.posterior.dps import DPS
from restoration.posterior.mmps import MMPS
from restoration.posterior.pigdm import PiGDM
from restoration.posterior.repaint import RePaint
from solvers.methods.ddcm import DDCM
from solvers.solver import DenoiserLike, Solver, combines_noise

CORRECTIONS: dict[str, type[Correction]] = {
    "ddnm": DDNM,
    "ddnm+": DDNMPlus,
    "ddrm": DDRM,
    "diffpir": DiffPIR,
    "dps": DPS,
    "mmps": MMPS,
    "pigdm": PiGDM,
    "repaint": RePaint,
}
# what a user may set, by name
OPTIONS = {
    "ddnm+": ("eta",),
    "ddrm": ("eta", "eta_b"),
    "diffpir": ("lam", "prior_std", "draw"),
    "dps": ("scale",),
    "mmps": ("iterations",),
    "pigdm": ("scale",),
}
DPS_STEPS = 50  # fewer gradient steps do not reach the data
DPS_REACH = 2.0  # how far all of DPS's steps together may move a picture, per root of its data


def correction_by_name(
    name: str,
    denoiser: DenoiserLike,
    measurement: Measurement,
    *,
    steps: int,
    solver: Solver | None = None,
    from_noise: bool = True,
    prior_std: float = math.inf,
    options: Mapping[str, Any] | None = None,
) -> Correction:
    """The correction of this name, set up for a run of so many ``steps``.

    The classes' own defaults are their papers', made for hundreds of steps. Here DiffPIR is told
    how far pictures vary, without which its first step inverts noise; PiGDM ends on the data; and
    DPS's scale follows the number of data and steps, since its steps have a length of their own:
    ``2 sqrt(data of a picture)/steps``.

    Args:
        steps: of the solver.
        solver: of the run, where it is known.
        from_noise: whether the run's states are as noisy as their times.
        prior_std: how far a guess from noise alone may be off, in the denoiser's value range; for
            DiffPIR.
        options: settings that replace these, see :data:`OPTIONS`: ``scale`` of DPS and PiGDM,
            ``lam`` and ``prior_std`` of DiffPIR, ``eta`` ...

    Raises:
        ValueError: an unknown name; an option that the correction does not have; a correction that
            the theory does not carry here: DDNM and RePaint on noisy data, DPS on noiseless ones or
            in few steps; those by the network's gradient (DPS, MMPS, PiGDM) with solvers that
            combine noise estimates, and from states without their noise; those that draw noise
            (DDRM, DDNM+) with DDCM from such states.
    """
    check_correction(name, options)
    if CORRECTIONS[name].needs_gradient and not from_noise:
        raise ValueError(
            f"{name} goes by the network's gradient at states as noisy as their time, and this run"
            " begins at the regularized inverse without noise: begin it from noise (start level 0),"
            " or leave the correction out"
        )
    if CORRECTIONS[name].needs_gradient and solver is not None and combines_noise(solver):
        raise ValueError(
            f"{name} moves the image by the network's gradient, which a solver that goes by the"
            " noise estimates of several steps doesn't follow: take ddim or evodiff, or another"
            " correction"
        )
    if CORRECTIONS[name].draws_noise and isinstance(solver, DDCM) and not from_noise:
        raise ValueError(
            f"{name} draws noise and so does ddcm, which forgets the state in every step: what this"
            " run begins with, the regularized inverse, is lost; take diffpir, or another solver"
        )
    settings = dict(options or {})
    if name == "repaint" and measurement.sigma > 0:
        raise ValueError(
            "repaint copies the data with their noise, so it is for noiseless data; take diffpir or"
            " ddnm+"
        )
    match name:
        case "diffpir":
            settings = {"prior_std": prior_std, **settings}
        case "pigdm":
            settings["finish"] = True
        case "dps":
            if measurement.sigma == 0:
                raise ValueError(
                    "dps approaches the data by gradient steps and never meets them, so it is for"
                    " noisy data; take ddnm for noiseless ones"
                )
            if steps < DPS_STEPS:
                raise ValueError(
                    f"dps approaches the data by small gradient steps and needs at least"
                    f" {DPS_STEPS}; got {steps}: take more steps, or diffpir"
                )
            count = measurement.y[0].numel()
            settings = {"scale": DPS_REACH * math.sqrt(count) / steps, **settings}
    return CORRECTIONS[name](denoiser, measurement, **settings)


def check_correction(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Raises ValueError for an unknown name, or options that the correction does not have."""
    if name not in CORRECTIONS:
        raise ValueError(f"correction {name!r} is unknown; known: {', '.join(CORRECTIONS)}")
    known = OPTIONS.get(name, ())
    for option in options or {}:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"the correction {name} has no option {option!r}; {has}")
