"""What the engine for many items costs and holds: ``python benchmarks/scale.py FOLDER``.

Makes small noisy pictures in FOLDER and denoises them: one process against two workers (the same
bytes?), the engine's own seconds per item, a worker killed in the middle, damaged files, a run that
is gone on with, and the memory over many items. Prints one JSON object.
"""

import argparse
import json
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import psutil

from restoration.io.images import Photo, write_image
from toolbox.tasks.options import Denoising
from toolbox.tasks.scale.engine import restore_all
from toolbox.tasks.scale.job import Job
from toolbox.tasks.scale.manifest import NAME
from toolbox.tasks.settings import Many, Output, Prior, Settings


def make(folder: Path, count: int, side: int) -> Path:
    """``count`` noisy pictures of ``side`` x ``side`` pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:side, :side] / side
    clean = np.stack([0.5 + 0.3 * np.sin(6 * x + c) * np.cos(5 * y) for c in range(3)])
    for k in range(count):
        noise = 0.1 * np.random.default_rng(k).standard_normal(clean.shape)
        pixels = (clean + noise).clip(0, 1).astype(np.float32)
        write_image(folder / f"{k:05d}.png", Photo(pixels))
    return folder


def run(source: Path, out: Path, many: Many, model: str, told=lambda tally: None) -> dict:
    settings = Settings()
    job = Job("denoise", Output(out), Denoising("0.1"), Prior(model), settings)
    began, cpu = time.perf_counter(), used()
    tally = restore_all(job, [source], many, told)
    lines = (out / NAME).read_text().splitlines()[1:]
    done = [r for r in map(json.loads, lines) if r["status"] == "done"][2:]
    return {
        "done": tally.done,
        "failed": tally.failed,
        "kept": tally.kept,
        "wall_s": round(time.perf_counter() - began, 2),
        "cpu_s": round(used() - cpu, 2),
        "item_ms": round(1e3 * float(np.mean([r["seconds"] for r in done] or [0])), 1),
        "restoring_ms": round(1e3 * float(np.mean([r["restoring"] for r in done] or [0])), 1),
    }


def used() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def same(one: Path, two: Path) -> bool:
    names = sorted(p.name for p in one.glob("*.png"))
    other = sorted(p.name for p in two.glob("*.png"))
    return names == other and all((one / n).read_bytes() == (two / n).read_bytes() for n in names)


def kill_one(at: int):
    """Kills a worker once ``at`` items are done."""
    killed: list[int] = []

    def told(tally):
        if tally.done >= at and not killed:
            found = psutil.Process().children(recursive=True)
            found = [p for p in found if "spawn_main" in " ".join(p.cmdline())]
            killed.append(found[0].pid)
            os.kill(found[0].pid, signal.SIGKILL)

    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--model", default="colour")
    parser.add_argument("--only", nargs="*", default=["workers", "killed", "memory"])
    parser.add_argument("--long", type=int, default=2000, help="Items that memory is watched over.")
    given = parser.parse_args()
    place, found = given.folder, {}
    if "workers" in given.only or "killed" in given.only:
        source = make(place / "in", given.items, given.side)
        found["one"] = run(source, place / "one", Many(), given.model)
    if "workers" in given.only:
        found["two"] = run(source, place / "two", Many(workers=2), given.model)
        found["same_bytes"] = same(place / "one", place / "two")
    if "killed" in given.only:
        bad = [source / f"bad{k}.png" for k in range(5)]
        for k, path in enumerate(bad):
            path.write_bytes((source / "00000.png").read_bytes()[: 100 * k])
        many, told = Many(workers=2), kill_one(given.items // 2)
        found["killed"] = run(source, place / "killed", many, given.model, told)
        for path in bad:
            path.unlink()
        found["killed_same_bytes"] = same(place / "one", place / "killed")
        many = Many(resume=True)
        found["gone_on_with"] = run(source, place / "killed", many, given.model)
    if "memory" in given.only:
        source, sizes = make(place / "many", given.long, 32), {}

        def watch(tally):
            if tally.done in (given.long // 20, given.long // 2, given.long):
                sizes[tally.done] = round(psutil.Process().memory_info().rss / 1e6, 1)

        found["memory"] = run(source, place / "many-out", Many(), given.model, watch)
        found["memory"]["rss_mb"] = sizes
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
