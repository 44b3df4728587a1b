"""Which network a recipe trains, and on which examples."""

from __future__ import annotations

from typing import Any

import torch

from solvers.denoiser import Denoiser
from solvers.prediction import HEADS
from toolbox.training.examples.colour import ColourExamples
from toolbox.training.examples.enlarged import EnlargedExamples
from toolbox.training.examples.grey import GreyExamples
from toolbox.training.examples.hyperspectral import LatentExamples
from toolbox.training.examples.mri import MRIExamples
from toolbox.training.examples.paired import HazeExamples, MadeExamples, PairExamples
from toolbox.training.examples.photo import PhotoExamples
from toolbox.training.examples.ultrasound import UltrasoundExamples
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import SHOWN

EXAMPLES: dict[str, Any] = {
    "inpaint": PhotoExamples,
    "superresolve": EnlargedExamples,
    "mri": MRIExamples,
    "denoise": GreyExamples,
    "denoise-colour": ColourExamples,
    "dehaze": HazeExamples,
    "paired": PairExamples,
    "hsi": LatentExamples,
    "ultrasound": UltrasoundExamples,
}


def examples_of(recipe: TrainingRecipe) -> Any:
    """The class of a recipe's examples."""
    made = recipe.pairs is not None and recipe.pairs.made is not None
    return MadeExamples if made else EXAMPLES[recipe.task]


def build(recipe: TrainingRecipe) -> Denoiser:
    """The untrained denoiser of a recipe."""
    from diffusers import UNet2DModel

    net, fold2, schedule = recipe.network, recipe.network.fold**2, recipe.process
    channels, condition_channels = EXAMPLES[recipe.task].channels, shown_channels(recipe)
    depth = len(net.block_out_channels)
    torch.manual_seed(recipe.seed)
    network = UNet2DModel(
        in_channels=(channels + condition_channels) * fold2,
        out_channels=channels * HEADS.get(schedule.prediction_type, 1) * fold2,
        block_out_channels=tuple(net.block_out_channels),
        layers_per_block=net.layers_per_block,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        norm_num_groups=net.norm_num_groups,
        add_attention=net.attention,
        time_embedding_dim=net.time_embedding_dim,
    )
    native = schedule.kind == "vp"  # the others diffuse the residual by themselves
    return Denoiser(
        network,
        schedule.process(),
        schedule.prediction_type,
        value_range=recipe.value_range,
        fold=net.fold,
        multiple=2 ** (depth - 1),
        condition_channels=condition_channels,
        residual=native
        and condition_channels > 0
        and recipe.task != "hsi",  # whose condition holds no lift
        data_std=recipe.loss.data_std if native else 1.0,
        unrolled_steps=None if recipe.unrolled is None else recipe.unrolled.steps,
        shown=shown_kind(recipe),
    )


def shown_kind(recipe: TrainingRecipe) -> str:
    """What a recipe's network is shown, a word of :data:`restoration.task.SHOWN`."""
    if recipe.pairs is not None:
        return SHOWN[recipe.pairs.shown][1]
    if shown_channels(recipe) and recipe.echoes is not None:
        return "degraded"
    kinds = {
        "inpaint": "lift+known",
        "superresolve": "lift+known",
        "mri": "mri",
        "dehaze": "haze",
        "hsi": "joint",
    }
    return kinds.get(recipe.task, "none")


def shown_channels(recipe: TrainingRecipe) -> int:
    """Channels of the condition that a recipe's network is shown."""
    if recipe.pairs is not None:
        return SHOWN[recipe.pairs.shown][0]
    if recipe.echoes is not None:
        return int(recipe.echoes.kind == "dehazed")
    return int(EXAMPLES[recipe.task].condition_channels)
