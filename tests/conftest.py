"""Shared fixtures: golden arrays and the closed-form mixture they were made on."""

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


def golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of one golden file; skips where the file is not at hand."""
    path = GOLDEN / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there (set RESTOBOX_GOLDEN)")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
