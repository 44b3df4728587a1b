"""Shared fixtures: golden arrays, a tiny photo network, pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # test tensors are small: more threads only wait for each other

# a busy machine is no failure
settings.register_profile("default", deadline=None, max_examples=50)
settings.load_profile("default")

GOLDEN = Path(os.environ.get("RESTOBOX_GOLDEN", Path(__file__).parent / "golden"))

TINY_RECIPE = """
name = "tiny"
task = "inpainting"
steps = 4
batch_size = 2
patch_size = 32
[network]
block_out_channels = [8, 16]
layers_per_block = 1
norm_num_groups = 4
fold = 2
[condition]
kinds = ["random", "strokes"]
[optimizer]
warmup = 2
"""


def golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of one golden file; skips where the file is not at hand."""
    path = GOLDEN / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there (set RESTOBOX_GOLDEN)")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def smooth_picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """``(C, H, W)`` float32 in [0, 1]: slopes, waves and one edge."""
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    planes = [0.5 + 0.3 * np.sin(6 * x + 4 * y + c) + 0.15 * (x > 0.6) for c in range(channels)]
    return np.stack(planes).clip(0, 1).astype(np.float32)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder with two small training pictures."""
    from restoration.io.images import Photo, write_image

    folder = tmp_path_factory.mktemp("pictures")
    write_image(folder / "a.png", Photo(smooth_picture(60, 80)))
    write_image(folder / "b.png", Photo(smooth_picture(96, 64)))
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_recipe, pictures) -> Path:
    """The folder of a tiny photo model after four training steps."""
    from toolbox.training.loop import train
    from toolbox.training.recipe import Recipe

    return train(Recipe.read(tiny_recipe), pictures, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def calibration(denoiser):
    """What the module's ``denoiser`` sees while it restores."""
    from quant_helpers import recording

    return recording(denoiser)[0]


@pytest.fixture(scope="module")
def quantized(denoiser, calibration):
    """The module's ``denoiser`` at 8 bits, by the default recipe."""
    from quant.quantize import quantize

    return quantize(denoiser.network, calibration)
