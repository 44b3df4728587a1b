"""Which U-Net for an edge device: PSNR of the 8-bit network against its time on one CPU thread, all
trained for the same processor time.

    python benchmarks/architecture.py --data TRAINING_PICTURES --test TEST_PICTURES

Each architecture starts from random weights and trains the denoising recipe `grey`, at noise around
sigma 25, for so many minutes of one core's processor time, cosine to zero; then 8 bits (preset
best-w8a8), the CPU graph, and one call of it on grey pictures with that noise. Time is the
processor time of one call on 256 x 256 pixels, interleaved over all architectures, median.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.exporter import export_bundle
from export.runtime.session import Session
from quant.calibration.trajectory import CalibrationSet
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from restoration.io.pictures.folders import picture_crops
from restoration.metrics import psnr
from restoration.operators.linear import Denoising
from restoration.photo.linear import LinearTask
from solvers.denoiser import Denoiser
from toolbox.deploy.calibrate import run_calibrate
from toolbox.deploy.options import Recording, Trajectories
from toolbox.training.loop import train
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import Noise

RECIPES = Path(__file__).parents[1] / "toolbox" / "recipes"
VARIANTS = {
    "fold 2, 32-48-48, two blocks (grey)": {},
    "fold 1, 16-32-48-48": {"fold": 1, "block_out_channels": [16, 32, 48, 48]},
    "fold 4, 48-48": {"fold": 4, "block_out_channels": [48, 48]},
    "narrow, 24-32-32": {"block_out_channels": [24, 32, 32]},
    "wide, 48-80-80": {"block_out_channels": [48, 80, 80]},
    "one block": {"layers_per_block": 1},
    "attention in the middle": {"attention": True},
    "one group (layer norm)": {"norm_num_groups": 1},
}
SIGMA = 25 / 255
PROBE = 12  # steps that the time of one is taken from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", action="append", help="names of architectures; default: all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = TrainingRecipe.read(RECIPES / "grey.toml")
    changed: dict[str, Any] = {"noise": Noise(lowest=0.1, highest=0.4, cells=0.0), "seed": 0}
    # of a first run from random weights; the recipe's own are those of its last run
    changed["loss"] = base.loss.model_copy(update={"norm": "l2"})
    changed["optimizer"] = base.optimizer.model_copy(update={"learning_rate": 8e-4})
    base = base.model_copy(update=changed)
    rows, sessions = [], {}
    with tempfile.TemporaryDirectory() as place:
        for name, changes in VARIANTS.items():
            if options.only and name not in options.only:
                continue
            recipe = base.model_copy(update={"network": base.network.model_copy(update=changes)})
            folder = Path(place) / str(len(rows))
            steps = trained(recipe, options.data, folder / "model", options.minutes * 60)
            sessions[name] = quantized(folder, options.data)
            denoiser = Denoiser.from_pretrained(folder / "model")
            parameters = sum(p.numel() for p in denoiser.network.parameters())
            row = {
                "architecture": name,
                "parameters": parameters,
                "steps": steps,
                "psnr": round(quality(denoiser, options.test), 3),
            }
            rows.append(row | {"psnr_int8": round(quality(sessions[name], options.test), 3)})
            print(rows[-1], flush=True) if not options.json else None
        for row, times in zip(rows, interleaved(list(sessions.values())), strict=True):
            row["ms_int8"] = round(1000 * statistics.median(times), 1)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(
        "| architecture | parameters | steps | PSNR dB float | int8 | ms int8"
        " |\n|---|---|---|---|---|---|"
    )
    for r in rows:
        print(
            f"| {r['architecture']} | {r['parameters'] / 1e6:.2f} M | {r['steps']} | {r['psnr']} |"
            f" {r['psnr_int8']} | {r['ms_int8']} |"
        )


def trained(recipe: TrainingRecipe, data: Path, out: Path, seconds: float) -> int:
    """Train for so much processor time; the number of steps comes from a short run first."""
    began = []
    probe = recipe.model_copy(update={"steps": PROBE})
    train(
        probe,
        data,
        out.with_name("probe"),
        mixed_precision="bf16",
        progress=lambda step, loss: began.append(time.process_time()),
    )
    half = PROBE // 2  # the first steps compile
    steps = max(PROBE, round(seconds / ((began[-1] - began[half]) / (PROBE - 1 - half))))
    warm = recipe.optimizer.model_copy(update={"warmup": min(recipe.optimizer.warmup, steps // 10)})
    train(
        recipe.model_copy(update={"steps": steps, "optimizer": warm}),
        data,
        out,
        mixed_precision="bf16",
    )
    return steps


def quantized(folder: Path, data: Path) -> Session:
    """The 8-bit CPU bundle of the trained model."""
    calibration = folder / "c.safetensors"
    run_calibrate(
        str(folder / "model"),
        data,
        calibration,
        Trajectories("denoise", steps=[16], sigma=SIGMA),
        Recording(count=4, side=96, per_timestep=4),
    )
    denoiser = Denoiser.from_pretrained(folder / "model")
    made = quantize(
        denoiser.network,
        CalibrationSet.load(calibration, denoiser.network),
        QuantRecipe.preset("best-w8a8"),
    )
    export_bundle(denoiser, folder / "int8", target="cpu", quantized=made, seed=0, card="# a trial")
    return Session(folder / "int8", threads=1)


def quality(denoiser, test: Path, count: int = 12, side: int = 128) -> float:
    """Mean PSNR of one call on grey crops with noise."""
    task, values = LinearTask(denoiser, num_inference_steps=1), []
    for k, (_, image) in enumerate(picture_crops(test, count, side, 0)):
        clean = torch.from_numpy(image).mean(0, keepdim=True)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(k))
        values.append(
            psnr(task(clean + SIGMA * noise, Denoising(), sigma=SIGMA).mean.numpy(), clean.numpy())
        )
    return float(np.mean(values))


def interleaved(sessions: list[Session], repeats: int = 15) -> list[list[float]]:
    """Processor seconds of one call on 256 x 256 pixels, turn by turn."""
    times = [[] for _ in sessions]
    for turn in range(repeats + 1):
        for session, mine in zip(sessions, times, strict=True):
            x = torch.zeros(1, 1, 256, 256)
            began = time.process_time()
            session(x, session.network.timesteps[0])
            if turn:  # the first warms up
                mine.append(time.process_time() - began)
    return times


if __name__ == "__main__":
    main()
