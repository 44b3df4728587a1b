"""Every solver with every correction, model and task: what runs is as good as the task's default,
or says that it isn't, and the rest is refused in one sentence.

    python benchmarks/matrix.py --data KODAK24 --steps 20

Each cell restores the same measurements as its reference: the task's default correction by the same
solver, and for that one ``ddim``. A cell is *worse* where its mean PSNR lies more than 1 dB below
(4 dB where it draws noise and the reference doesn't: a sample of the posterior has up to 3 dB more
error than the mean) and no warning says so. *Sampled* are solvers alone that lie 1 to 4 dB below
``ddim``, for the same reason: few steps of that give a picture between sample and mean. *Unclear*
is every error that isn't a ``ValueError`` of one line.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restoration.metrics import psnr
from restoration.posterior import CORRECTIONS
from solvers.methods import MEASURED, SOLVERS
from toolbox.api import load_for
from toolbox.tasks import task_by_name
from toolbox.tasks.base import Source, Task
from toolbox.tasks.options import Deblurring, Dehazing, Denoising, Enlarging, Inpainting
from toolbox.tasks.settings import Settings

CELLS: list[tuple[str, str, str, Any]] = [
    ("inpaint", "photo", "noiseless", Inpainting("")),
    ("inpaint", "photo", "sigma 0.05", Inpainting("", 0.05)),
    ("inpaint", "grey", "noiseless", Inpainting("")),
    ("superresolve", "photo", "means of 2 x 2", Enlarging(2, "block", "0")),
    ("superresolve", "photo-x4", "unknown kernel", Enlarging(4, "any", "0")),
    ("superresolve", "photo", "bicubic, sigma 0.02", Enlarging(2, "bicubic", "0.02")),
    ("denoise", "colour", "sigma 0.1", Denoising("0.1")),
    ("deblur", "grey", "from the inverse", Deblurring(1.6, "0.01")),
    ("deblur", "colour", "from noise", Deblurring(1.6, "0.01", 0.0)),
    ("dehaze", "haze", "simulated", Dehazing()),
]
STOCHASTIC = {"ddpm", "resfusion", "ddcm"}
ALLOWED, ALLOWED_OF_SAMPLES = 1.0, 4.0


def restored(
    task: Task, denoiser: Any, options: Any, settings: Settings, source: Source, trials: int
) -> str | float:
    """Mean PSNR of so many trials, or what came instead: ``refused``, ``warned``, or an error."""
    found = []
    try:
        restore = task.restorer(denoiser, options, settings)
        for k in range(trials):
            trial = task.trial(source, k, options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = restore(trial.inputs, seed=k)
            if result.warning is not None:
                return "warned"
            found.append(psnr(task.picture(result.mean), task.picture(trial.known)))
    except ValueError as error:
        return "refused" if str(error) and "\n" not in str(error) else f"unclear: {error!r}"
    except Exception as error:
        return f"unclear: {error!r}"[:300]
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--only", default="", help="a task")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = tuple(sorted(options.data.iterdir()))
    counts: Counter[str] = Counter()
    solvers = ["ddim", *(s for s in {**SOLVERS, **MEASURED} if s != "ddim")]
    for name, model, case, measured in CELLS:
        if options.only not in ("", name):
            continue
        task, denoiser = task_by_name(name), load_for(name, model)
        source = Source(files, options.side, 0, denoiser.image_channels or 3)
        began, here = time.perf_counter(), Counter[str]()
        references: dict[str, float] = {}
        for correction in (None, *CORRECTIONS):
            for solver in solvers:
                settings = Settings(solver, options.steps, correction=correction)
                value = restored(task, denoiser, measured, settings, source, options.trials)
                if isinstance(value, str):
                    here[value.partition(":")[0]] += 1
                    if value.startswith("unclear"):
                        print(f"{name} {model} {case} {solver} {correction}: {value}", flush=True)
                    continue
                if correction is None:
                    references[solver] = value
                of_own = correction is not None and solver in references
                reference = references.get(solver if of_own else "ddim", math.nan)
                drawn = not of_own and solver in STOCHASTIC
                drawn |= correction is not None and CORRECTIONS[correction].draws_noise
                worse = value < reference - (ALLOWED_OF_SAMPLES if drawn else ALLOWED)
                sampled = worse and correction is None and value >= reference - ALLOWED_OF_SAMPLES
                here["sampled" if sampled else "worse" if worse else "ran"] += 1
                if worse:
                    print(
                        f"{name} {model} {case} {solver} {correction}: {value:.2f} dB,"
                        f" reference {reference:.2f}",
                        flush=True,
                    )
        counts += here
        seconds = time.perf_counter() - began
        print(f"{name} {model} {case}: {dict(here)}, {seconds:.0f} s", flush=True)
    print(f"{sum(counts.values())} cells: {dict(counts)}")


if __name__ == "__main__":
    main()
