"""Bundles on an NVIDIA GPU: engines by TensorRT 10 or 11, their error, their speed.

    pip install tensorrt                     (10.x or 11.x; run once with each)
    python benchmarks/tensorrt.py int8=BUNDLE fp16=BUNDLE ... --size 256x256 -o table.md

Give bundles of one model in both precisions: targets ``tensorrt`` (8 bits) and ``cuda`` (half).
Of each an engine is built, run on one input, compared with ONNX Runtime's CPU on the same graph,
and timed on the device, turn by turn with the others. The row of the fastest says whether 8 bits
pay there. Needs a GPU; it has not been run where this was written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from export.bundle import Bundle, read_bundle
from export.graphs.tensorrt import faults
from export.runtime.providers import PROVIDERS, open_session

# this file has the package's name, and its folder comes first where it is run as a script
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

COLUMNS = ("bundle", "target", "build s", "engine MB", "ms", "x slowest", "error")


class Engine:
    """A graph as TensorRT runs it; tensors stay on the device."""

    def __init__(self, path: Path, feed: dict[str, np.ndarray]):
        import tensorrt as trt

        logger = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(logger)
        # from 11 on every network is strongly typed, and the flag may be gone
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(path.read_bytes()):
            said = [str(parser.get_error(k)) for k in range(parser.num_errors)]
            raise SystemExit(f"{path}: TensorRT {trt.__version__} refuses it: {said[0]}")
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        for name, value in feed.items():
            profile.set_shape(name, value.shape, value.shape, value.shape)
        config.add_optimization_profile(profile)
        began = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise SystemExit(f"{path}: TensorRT {trt.__version__} builds no engine of it")
        self.seconds, self.bytes = time.perf_counter() - began, plan.nbytes
        self.engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context()
        self.held = {name: torch.from_numpy(value).cuda() for name, value in feed.items()}
        for name, value in self.held.items():
            self.context.set_input_shape(name, tuple(value.shape))
        for k in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(k)
            if name not in self.held:
                shape = tuple(self.context.get_tensor_shape(name))
                self.held[name] = torch.empty(shape, device="cuda")
                self.output = name
            self.context.set_tensor_address(name, self.held[name].data_ptr())

    def __call__(self) -> float:
        """One run; milliseconds on the device."""
        stream = torch.cuda.current_stream()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.context.execute_async_v3(stream.cuda_stream)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def input_of(bundle: Bundle, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """One input of a bundle's graph, the same for every bundle of a model."""
    rng = np.random.default_rng(0)
    if (run := bundle.run) is not None:
        feed = {name: rng.random((1, *s), np.float32) for name, s in run.inputs.items()}
        if "mask" in feed:
            feed["mask"] = np.round(feed["mask"])
        if run.draws and run.state is not None:
            feed["noise"] = rng.standard_normal((run.draws, 1, *run.state), np.float32)
        return feed
    x = rng.standard_normal((1, bundle.channels, *size), np.float32)
    times = bundle.timesteps
    second = np.array([len(times) // 2] if times else [500.0], np.int64 if times else np.float32)
    return {"x": x, "index" if times else "t": second}


def measured(folders: dict[str, Path], size: tuple[int, int], repeats: int) -> list[tuple]:
    """A row for each bundle."""
    engines, errors, bundles = {}, {}, {}
    for name, folder in folders.items():
        bundle = bundles[name] = read_bundle(folder)
        path = folder / bundle.model_file
        import onnx

        if bundle.target == "tensorrt" and (wrong := faults(onnx.load(path))):
            print(f"{folder}: {wrong[0]}", file=sys.stderr)
        feed = input_of(bundle, size)
        engines[name] = engine = Engine(path, feed)
        engine()
        wanted = open_session(path, [PROVIDERS["cpu"]]).run(None, feed)[0]
        found = engine.held[engine.output].float().cpu().numpy()
        errors[name] = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(repeats + 10):
        for name, engine in engines.items():
            milliseconds = engine()
            if turn >= 10:  # clocks and caches settle
                taken[name].append(milliseconds)
    ms = {name: statistics.median(values) for name, values in taken.items()}
    slowest = max(ms.values())
    return [
        (
            name,
            bundles[name].target,
            f"{engine.seconds:.0f}",
            f"{engine.bytes / 1e6:.1f}",
            f"{ms[name]:.3f}",
            f"{slowest / ms[name]:.2f}",
            f"{errors[name]:.1e}",
        )
        for name, engine in engines.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", help="NAME=FOLDER, of one model")
    parser.add_argument("--size", default="256x256", help="of a network's input, WIDTHxHEIGHT")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("-o", "--out", type=Path, help="Markdown table")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is found: this measures NVIDIA's")
    try:
        import tensorrt
    except ImportError:
        raise SystemExit("pip install tensorrt (10.x or 11.x)") from None
    width, height = map(int, arguments.size.split("x"))
    folders = dict(text.split("=", 1) for text in arguments.bundles)
    places = {name: Path(folder) for name, folder in folders.items()}
    rows = measured(places, (height, width), arguments.repeats)
    head = (
        f"TensorRT {tensorrt.__version__}, {torch.cuda.get_device_name()}, input {arguments.size}"
    )
    lines = [head, "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
