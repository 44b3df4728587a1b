"""Processor time and memory of every step from a network's folder to its verified bundles.

    python benchmarks/deployment.py --data PICTURES [large|small] [--side 64] [--steps 5] [--json]

``large`` is DDPM's CIFAR-10 architecture (36 M parameters, random weights), ``small`` one of 0.7 M.
Each step is a call of the command line in a process of its own, one thread; its memory is the
largest that the process held. Times are also given in calls of the float network on one picture of
that side, measured in the same run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from runtime_peers import ARCHITECTURES

MODEL, INT8 = ["network"], ["--quantized", "q"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="?", default="small", choices=ARCHITECTURES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = UNet2DModel(sample_size=options.side, **ARCHITECTURES[options.size]).eval()
    call = _seconds_of_a_call(network, options.side)
    data = ["--data", str(options.data.absolute()), "--side", str(options.side)]
    task = ["--task", "denoise", "--sigma", "0.1"]
    size = f"{options.side}x{options.side}"
    whole = ["--restorer", *task, "--steps", str(options.steps), "--size", size]
    steps = {
        "calibrate": ["calibrate", *MODEL, "-o", "c.safetensors", *task, *data, "--count", "1"],
        "quantize": ["quantize", *MODEL, "--calibration", "c.safetensors", "-o", "q"],
        "export, float": ["export", *MODEL, "-o", "f", "--target", "float"],
        "export, 8 bits": ["export", *MODEL, "-o", "b", *INT8],
        "export, whole restorer": ["export", *MODEL, "-o", "r", *INT8, *whole],
        "verify": ["verify", "b", "--model", *MODEL, *INT8, "--calibration", "c.safetensors"],
        "inspect": ["inspect", "b", "--placement"],
    }
    rows = []
    with tempfile.TemporaryDirectory() as place:
        DDPMPipeline(network, DDPMScheduler()).save_pretrained(Path(place) / "network")
        for name, words in steps.items():
            seconds, used = _measured(words, place)
            rows.append(
                {
                    "step": name,
                    "seconds": round(seconds, 1),
                    "calls": round(seconds / call),
                    "gb": round(used / 1e9, 2),
                }
            )
            if not options.json:
                print("{step:24} {seconds:7.1f} s {calls:6} calls {gb:6.2f} GB".format(**rows[-1]))
    if options.json:
        print(json.dumps({"call": call, "steps": rows}, indent=2))


def _measured(words: list[str], place: str) -> tuple[float, int]:
    """Seconds of processor time and bytes of a command; output goes to stderr."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "toolbox", *words]
    process = subprocess.Popen(command, cwd=place, env=environment, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"restobox {' '.join(words)} ended with exit code {code}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


@torch.no_grad()
def _seconds_of_a_call(network: UNet2DModel, side: int) -> float:
    x, t = torch.zeros(1, 3, side, side), torch.zeros(1)
    times = []
    for _ in range(6):
        began = time.process_time()
        network(x, t)
        times.append(time.process_time() - began)
    return sorted(times[1:])[2]


if __name__ == "__main__":
    main()
