"""DnCNN (Zhang et al. 2017, arXiv 1608.03981) on the pictures and the noise of `restobox bench
linear --grey`.

    python benchmarks/dncnn.py PICTURES --weights dncnn_gray_sigma25.pth --sigma 25
    restobox bench linear PICTURES --grey --case denoise:25 --model plain --model grey

The weights are a file of KAIR's: convolutions of 3 x 3 with ReLU between them, batch normalisation
folded in, which tell the noise.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from restoration.metrics import psnr, ssim
from toolbox.bench.options import Extent
from toolbox.bench.pictures import linear_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--weights", type=Path, required=True, help="state dict (.pth), read as tensors only"
    )
    parser.add_argument("--sigma", type=float, default=25, help="noise, of 255")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    state = torch.load(options.weights, map_location="cpu", weights_only=True)
    names = sorted(
        (key for key in state if key.endswith(".weight")), key=lambda key: int(key.split(".")[1])
    )
    layers = [(state[name], state[name.replace("weight", "bias")]) for name in names]
    extent = Extent(limit=options.limit, seed=options.seed)
    (case,) = linear_cases(options.data, [f"denoise:{options.sigma:g}"], True, extent)
    figures = []
    for trial in case.trials():
        restored = denoise(layers, trial.inputs["image"][None])[0].clamp(0, 1).numpy()
        truth = trial.known.numpy()
        figures.append((psnr(restored, truth), ssim(restored, truth)))
    print(
        "{} pictures, sigma {:g}: DnCNN {:.2f} dB, SSIM {:.4f}".format(
            len(figures), options.sigma, *np.mean(figures, 0)
        )
    )


@torch.no_grad()
def denoise(layers: list[tuple[Tensor, Tensor]], y: Tensor) -> Tensor:
    """``y (B, 1, H, W)`` in [0, 1] minus the noise that the network tells."""
    x = y
    for k, (weight, bias) in enumerate(layers):
        x = conv2d(x, weight, bias, padding=1)
        x = x.relu() if k < len(layers) - 1 else x
    return y - x


if __name__ == "__main__":
    main()
