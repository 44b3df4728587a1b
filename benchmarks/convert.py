"""Memory and seconds of converting a checkpoint as large as guided-diffusion's 256 x 256 network.

    python benchmarks/convert.py [--half] [--folder FOLDER] [--json]

The file, 553 M parameters with random weights under the released names (2.2 GB in single
precision, deleted afterwards), is made in FOLDER and converted by ``restobox convert`` in a process
of its own. Memory is the most that the process held resident, mapped pages of files too, above that
of a process which converted a file of a few MB: the libraries' own.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers.guided import Kind, state_of

RELEASED = Kind(width=256, mult=(1, 1, 2, 2, 4, 4), blocks=2, attended=(3, 4, 5))
SMALL = Kind(width=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", action="store_true", help="weights in float16")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, kind in (("small", SMALL), ("released", RELEASED)):
            file = Path(folder) / f"{name}.pt"
            # a process inherits the peak of the one that starts it, so this one stays small
            with ProcessPoolExecutor(1, get_context("spawn")) as other:
                parameters = other.submit(write, file, kind, options.half).result()
            seconds, peak = converted(file, file.with_suffix(""))
            size = file.stat().st_size
            found[name] = {"parameters": parameters, "file": size, "seconds": seconds, "peak": peak}
    large, own = found["released"], found["small"]["peak"]
    share = (large["peak"] - own) / large["file"]
    if options.json:
        print(json.dumps(found | {"libraries": own, "share": share}))
        return
    print(f"{large['parameters'] / 1e6:.0f} M parameters, file {large['file'] / 1e9:.2f} GB")
    print(f"{large['seconds']:.1f} s; peak {large['peak'] / 1e9:.2f} GB, libraries {own / 1e9:.2f}")
    print(f"above the libraries: {share:.2f} times the file")


def write(file: Path, kind: Kind, half: bool) -> int:
    """The checkpoint's file; how many parameters it holds."""
    state = state_of(kind)
    torch.save({k: v.half() if half else v for k, v in state.items()}, file)
    return sum(v.numel() for v in state.values())


def converted(file: Path, out: Path) -> tuple[float, int]:
    """Seconds of ``restobox convert``, and the most bytes that it held."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "toolbox", "convert", str(file), "-o", str(out)]
    process = os.posix_spawn(sys.executable, words, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"restobox convert failed on {file}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
