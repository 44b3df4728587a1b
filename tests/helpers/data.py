"""Golden arrays, pictures, a recipe."""

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(os.environ.get("RESTOBOX_GOLDEN", ROOT / "tests" / "golden"))

TINY_RECIPE = """
name = "tiny"
task = "inpaint"
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
