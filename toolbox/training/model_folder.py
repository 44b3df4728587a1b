"""Model folders of a training: the weights it begins with, and what it writes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from solvers.denoiser import Denoiser
from solvers.files import replace_file
from solvers.interop.description import describe
from solvers.interop.pretrained import write_json
from toolbox.api import load
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.widening import doubled, is_doubled


def load_weights(network: nn.Module, model: str | Path) -> None:
    """Those of a shipped model or a model folder, into ``network``; of a denoiser of single planes
    half as wide, twice (:mod:`toolbox.training.widening`).

    Raises:
        ValueError: an exported bundle, or a network of another shape.
    """
    found = load(model).network
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"{model} is an exported bundle; training goes on from a model folder or a shipped"
            " float model"
        )
    try:
        wider = is_doubled(network, found)
        network.load_state_dict(doubled(network, found) if wider else found.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{model} can't be trained further with this recipe: its network has other weights"
            f" ({error})"
        ) from error


def save_model(
    denoiser: Denoiser, recipe: TrainingRecipe, weights: dict[str, Tensor], out: Path
) -> None:
    """Write a model folder that :meth:`Denoiser.from_pretrained` loads."""
    from safetensors.torch import save_file

    network = (
        denoiser.network.module
        if isinstance(denoiser.network, nn.parallel.DistributedDataParallel)
        else denoiser.network
    )
    (out / "unet").mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in weights.items()}
    replace_file(
        out / "unet" / "diffusion_pytorch_model.safetensors",
        lambda path: save_file(weights, path, {"format": "pt"}),
    )
    config = {k: v for k, v in network.config.items() if not k.startswith("_")}
    write_json(out / "unet" / "config.json", {"_class_name": "UNet2DModel", **config})
    if recipe.process.kind == "vp":
        write_json(
            out / "scheduler" / "scheduler_config.json",
            {"_class_name": "DDIMScheduler", **recipe.process.scheduler_config()},
        )
        write_json(out / "denoiser.json", denoiser.settings)
    else:  # diffusers has no words for these
        native = {
            "prediction_type": denoiser.prediction_type,
            "process": describe(denoiser.process),
        }
        write_json(out / "denoiser.json", denoiser.settings | native)
