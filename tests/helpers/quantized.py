"""A small conditional U-Net and recordings of it, shared by the quantization and export tests."""

import pytest
import torch
from diffusers import UNet2DModel

from quant.calibration.trajectory import CalibrationSet, record
from solvers.denoiser import Denoiser
from solvers.grid import Grid, trailing
from solvers.loop import solve
from solvers.methods.ddim import DDIM
from solvers.processes.process import VP


@pytest.fixture(scope="module")
def one_thread():
    """One thread: the networks are far too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_denoiser(seed: int = 0, attention: bool = False) -> Denoiser:
    torch.manual_seed(seed)
    last = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
    network = UNet2DModel(
        in_channels=28,
        out_channels=12,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", last[0]),
        up_block_types=(last[1], "UpBlock2D"),
        add_attention=attention,
    )
    process = VP.cosine(100, zero_terminal_snr=True)
    options = {"fold": 2, "multiple": 2, "condition_channels": 4, "residual": True}
    return Denoiser(network.eval().requires_grad_(False), process, "v_prediction", **options)


def measurement(seed: int, side: int = 24) -> torch.Tensor:
    """A smooth image and a mask: the condition ``(1, 4, side, side)``."""
    g = torch.Generator().manual_seed(seed)
    image = torch.nn.functional.interpolate(
        torch.randn(1, 3, 4, 4, generator=g), size=(side, side), mode="bicubic"
    ).clamp(-1, 1)
    return torch.cat([image, (torch.rand(1, 1, side, side, generator=g) > 0.5).float()], dim=1)


def recording(
    denoiser: Denoiser, steps: int = 4, seed: int = 0, count: int = 3, **options
) -> tuple[CalibrationSet, Grid]:
    grid = trailing(denoiser.process, steps)
    with record(denoiser, seed=seed, solver="ddim", task="inpaint", **options) as recorder:
        for k in range(count):
            x = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(k))
            solve(DDIM(), denoiser.conditioned(measurement(k)), x, grid)
    return recorder.result(), grid
