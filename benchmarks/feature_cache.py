"""What the cache of deep features gains and loses: speed, PSNR and the spread of samples.

    python benchmarks/feature_cache.py photo --data TEST --steps 10 --steps 20

Pictures with 80 % of their pixels missing are restored by DDIM, each way with the same seeds. Times
are processor time of one thread. ``measured``: as many full steps as the line above has, chosen by
the change of features on two other pictures.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch

from quant.temporal.change import measured_steps
from quant.temporal.features import cached
from restoration.metrics import psnr
from toolbox.api import load
from toolbox.tasks import task_by_name
from toolbox.tasks.options import Inpainting
from toolbox.tasks.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", action="append", type=int, required=True)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, asked = task_by_name("inpaint"), Inpainting("random:0.8")
    denoiser = load(options.model, threads=1)
    source = task.source(options.data, denoiser, options.side, 0)
    trials = [task.trial(source, k, asked) for k in range(options.count + 2)]
    print("| steps | full steps | gain | PSNR of a sample | of the mean | spread |")
    print("|---|---|---|---|---|---|")
    for steps in options.steps:
        settings = Settings(steps=steps)
        ways = [None, 2, 3]
        for cache in (2, 3):
            runs = partial(_runs, task, asked, settings, trials[-2:])
            ways.append(measured_steps(denoiser, runs, len(range(0, steps, cache))))
        base = None
        for cache in ways:
            d = denoiser if cache is None else cached(denoiser, cache)
            seconds, figures = _measure(
                task.restorer(d, asked, settings), trials[:-2], options.samples
            )
            base = base or seconds
            print(f"| {steps} | {cache} | {base / seconds:.2f} | {figures} |", flush=True)


def _runs(task, asked, settings, trials, denoiser) -> None:
    for trial in trials:
        task.restorer(denoiser, asked, settings)(trial.inputs)


def _measure(restore, trials, samples: int) -> tuple[float, str]:
    """Processor time, and mean PSNR of a sample and of their mean in dB, and their spread."""
    found, began = [], time.process_time()
    results = [restore(trial.inputs, num_samples=samples) for trial in trials]
    seconds = time.process_time() - began
    for trial, result in zip(trials, results, strict=True):
        truth = trial.known.numpy()
        each = np.mean([psnr(sample.numpy(), truth) for sample in result.samples])
        found.append((each, psnr(result.mean.numpy(), truth), float(result.std.mean())))
    each, mean, spread = np.mean(found, axis=0)
    return seconds, f"{each:.2f} | {mean:.2f} | {spread:.4f}"


if __name__ == "__main__":
    main()
