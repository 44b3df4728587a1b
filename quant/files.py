"""A quantized network on disk: ``quantized.safetensors`` (scales, integer codes) and
``recipe.json`` (recipe, provenance).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from quant.calibration.trajectory import network_hash
from quant.layer import ZERO, QuantLayer
from quant.network import QuantizedNetwork, quantizable_layers, quantizes_time, rebuild, structured
from quant.recipe import QuantRecipe
from quant.temporal.table import temporal_block
from solvers.files import check_free, replace_folder
from solvers.inputs.errors import ModelError, reading
from solvers.inputs.strict_json import read_object

FORMAT = 1
TENSORS, RECIPE = "quantized.safetensors", "recipe.json"
KIND = "quantized network"


def save_quantized(quantized: QuantizedNetwork, folder: str | Path) -> None:
    """Write the folder under a temporary name, then rename it; an existing folder of this kind is
    replaced.

    Raises:
        OSError: ``folder`` exists and is no folder written by this function, or holds something
            else too.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, layer in quantized.layers().items():
        parts = {
            "codes": layer.codes,
            "weight_scale": layer.weight_scale,
            "input_scale": np.array([layer.input_scale], np.float32),
            "input_zero": np.array([layer.input_zero], np.uint8),
            "symmetric_scale": np.array([layer.symmetric_scale], np.float32),
            "output_scale": layer.output_scale,
            "output_zero": layer.output_zero,
        }
        parts |= {} if layer.bias is None else {"bias": layer.bias}
        tensors |= {f"{name}/{part}": np.ascontiguousarray(v) for part, v in parts.items()}
    for place, factor in quantized.factors.items():
        tensors[f"equalize/{place}"] = np.ascontiguousarray(factor.cpu().numpy())
    if quantized.ranges is not None:
        tensors["amax.inputs"] = np.ascontiguousarray(quantized.ranges.amax)
    if quantized.table is not None:
        tensors["temporal"] = np.ascontiguousarray(quantized.table.features.cpu().numpy())
    content = {
        "format": FORMAT,
        "recipe": quantized.recipe.to_dict(),
        "layers": list(quantized.names),
        "timesteps": list(quantized.timesteps),
        "calibration": quantized.calibration_hash,
        "model": quantized.model_hash,
    }

    def write(place: Path) -> None:
        save_file(tensors, place / TENSORS)
        (place / RECIPE).write_text(json.dumps(content, indent=2), encoding="utf-8")

    replace_folder(folder, write, KIND, _ours)


def check_quantized_free(folder: str | Path) -> None:
    """Raise before any work is done if a quantized network can't become ``folder``."""
    check_free(Path(folder), KIND, _ours)


def _ours(folder: Path) -> list[str] | None:
    """The files of a folder that :func:`save_quantized` wrote; None if it didn't. A recipe that
    lies there alone is a user's.
    """
    try:
        content = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        ours = {"format", "recipe", "layers", "calibration", "model"} <= set(content) and (
            folder / TENSORS
        ).is_file()
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return [TENSORS, RECIPE] if ours else None


def load_quantized(folder: str | Path, network: nn.Module) -> QuantizedNetwork:
    """Rebuild the quantized network on top of the float ``network`` that it was made from.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        ValueError: damaged, of another format version, or made from another network.
    """
    folder = Path(folder)
    for name in (TENSORS, RECIPE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist; make it with `restobox quantize`"
            )
    with reading(folder, "a quantized network", ModelError):
        content = read_object(folder / RECIPE, ModelError)
        if content["format"] != FORMAT:
            raise ModelError(
                f"{folder} has the format {content['format']!r}; this version reads {FORMAT}:"
                " quantize again"
            )
        tensors = load_file(folder / TENSORS)
        recipe = QuantRecipe.from_dict(content["recipe"])
        names, timesteps = (
            [str(n) for n in content["layers"]],
            [float(t) for t in content["timesteps"]],
        )
        layers = {name: _layer(tensors, name) for name in names}
        calibration, model = str(content["calibration"]), str(content["model"])
    if model != network_hash(network):
        raise ModelError(
            f"{folder} was made from another model ({model[:12]}...); load it with that one, or"
            " quantize again"
        )
    with reading(folder, "a quantized network", ModelError):
        structure = structured(network, recipe)
        fitting = quantizable_layers(structure, recipe.skip)
    if names != fitting:
        raise ModelError(
            f"{folder} is damaged: its layers are not those its recipe quantizes; quantize again"
        )
    for name, layer in layers.items():
        if layer.codes.shape != tuple(structure.get_submodule(name).weight.shape):
            raise ModelError(
                f"{folder} is damaged: {name} has codes of shape {layer.codes.shape}; quantize"
                " again"
            )
    factors = {
        key.removeprefix("equalize/"): torch.from_numpy(t)
        for key, t in tensors.items()
        if key.startswith("equalize/")
    }
    features = None
    if quantizes_time(recipe):
        features = torch.from_numpy(tensors.get("temporal", np.zeros((0, 0), np.float32)))
        widths = sum(layer.out_features for layer in temporal_block(network).projections.values())
        if tuple(features.shape) != (len(timesteps), widths) or not torch.isfinite(features).all():
            raise ModelError(
                f"{folder} is damaged: its temporal features have shape {tuple(features.shape)};"
                " quantize again"
            )
    return rebuild(network, recipe, layers, timesteps, calibration, factors, features)


def _layer(tensors: dict[str, np.ndarray], name: str) -> QuantLayer:
    codes = tensors[f"{name}/codes"]
    kinds = {"input": (1,), "symmetric": (1,), "output": codes.shape[:1], "weight": codes.shape[:1]}
    # folders of the first version have symmetric grids alone
    first = f"{name}/symmetric_scale" not in tensors
    if first:
        tensors[f"{name}/symmetric_scale"] = tensors[f"{name}/input_scale"]
    scales = {kind: tensors[f"{name}/{kind}_scale"] for kind in kinds}
    zeros = {
        kind: np.full(kinds[kind], ZERO, np.uint8) if first else tensors[f"{name}/{kind}_zero"]
        for kind in ("input", "output")
    }
    shapes = [(v.shape, kinds[kind]) for part in (scales, zeros) for kind, v in part.items()]
    bytes_ = all(zero.dtype == np.uint8 for zero in zeros.values())
    if codes.dtype != np.int8 or not bytes_ or any(found != wanted for found, wanted in shapes):
        raise ModelError(f"layer {name} has arrays of the wrong type or shape")
    if not all(np.isfinite(s).all() and (s > 0).all() for s in scales.values()):
        raise ModelError(f"layer {name} has scales that are not positive numbers")
    return QuantLayer(
        float(scales["input"][0]),
        int(zeros["input"][0]),
        float(scales["symmetric"][0]),
        scales["output"],
        zeros["output"],
        scales["weight"],
        codes,
        tensors.get(f"{name}/bias"),
    )
