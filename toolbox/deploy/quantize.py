"""Scales and codes from a calibration: what ``restobox quantize`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from quant.calibration.trajectory import CalibrationSet
from quant.files import check_quantized_free, save_quantized
from quant.quantize import quantize
from quant.recipe import DEFAULT, QuantRecipe
from solvers.files import check_outputs
from solvers.inputs.strict_json import read_object
from toolbox.api import float_model
from toolbox.deploy.options import Quantizing
from toolbox.support.cost import Cost

FLAGS = {"iterations": "--iterations", "lambda_round": "--lambda"}


def run_quantize(
    model: str,
    calibration: Path,
    out: Path,
    how: Quantizing = Quantizing(),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Quantize a model on a calibration file and write the folder of scales and codes.

    Raises:
        ValueError: a calibration of another model or solver, both a recipe file and a preset, one
            that isn't accepted, a share outside [0, 1), or options of learned rounding where
            nothing is learned.
    """
    recipe, preset, state = how.recipe, how.preset, how.state
    check_quantized_free(out)
    check_outputs([out], [model, calibration, recipe, state])
    if recipe is not None and preset is not None:
        raise ValueError("give a recipe file or a preset, not both")
    settings = DEFAULT if preset is None else QuantRecipe.preset(preset)
    if recipe is not None:
        settings = QuantRecipe.from_dict(read_object(recipe))
    if how.float_macs is not None:
        settings = replace(settings, float_macs=how.float_macs)
    settings = _learning(settings, how)
    denoiser = float_model(model)
    with Cost() as cost:
        calibrated = CalibrationSet.load(calibration, denoiser.network)
        calibrated.check(denoiser.network, how.solver)
        quantized = quantize(denoiser.network, calibrated, settings, state=state, progress=progress)
        save_quantized(quantized, out)
    chosen = calibrated.provenance
    figures = {
        "out": str(out),
        "layers": len(quantized.names),
        "recipe": quantized.recipe.to_dict(),
        "timesteps": list(quantized.timesteps),
    }
    return figures | {
        "solver": chosen.solver,
        "selection": chosen.selection,
        "cost": cost.to_dict(),
    }


def _learning(recipe: QuantRecipe, how: Quantizing) -> QuantRecipe:
    """The recipe with the call's own settings of learned rounding."""
    given: dict[str, Any] = {"iterations": how.iterations, "lambda_round": how.lambda_round}
    own = {name: value for name, value in given.items() if value is not None}
    if own and recipe.rounding not in ("adaround", "fbr"):
        flags = " and ".join(FLAGS[name] for name in own)
        raise ValueError(
            f"{flags}: the recipe's rounding is {recipe.rounding}, which learns nothing; take a"
            " preset of EDA-DM or TFMQ, or a recipe with adaround or fbr"
        )
    return replace(recipe, reconstruction=replace(recipe.reconstruction, **own))
