"""Each family of checkpoints through the whole line, in small: a table.

    python benchmarks/families.py [FAMILY ...] [--json]

Load: the largest difference from the published code's answer, over its largest value. Restore:
calls of the network in the command's run. W8A8: relative error of a call, 8 bits on ONNX Runtime,
of random weights. ONNX: the largest difference of a restored picture between the float graph and
PyTorch. Verify: what broke a limit, of the 8-bit bundle. Whole: PSNR in dB between the restoration
as one graph and PyTorch's. The networks are those of the tests.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers.line import FAMILIES, Figures, furnish, through


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    if not options.json:
        print("| family | load | restore | W8A8 | ONNX | verify | whole |", flush=True)
        print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = furnish(Path(folder) / "data")
        for name in options.families or FAMILIES:
            place = Path(folder) / name
            place.mkdir()
            began = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                figures = through(name, data, place)
            found[name] = dataclasses.asdict(figures) | {"seconds": time.perf_counter() - began}
            if not options.json:
                print(row(name, figures), flush=True)
    if options.json:
        print(json.dumps(found))


def row(name: str, f: Figures) -> str:
    """A line of the table."""
    load = "-" if f.published is None else f"{f.published:.0e}"
    whole = f"{f.whole:.0f}" if isinstance(f.whole, float) else "refused"
    verified = "; ".join(f.failures) or "passes"
    return (
        f"| {name} | {load} | {f.restored} | {f.w8a8:.4f} | {f.onnx:.0e} | {verified} | {whole} |"
    )


if __name__ == "__main__":
    main()
