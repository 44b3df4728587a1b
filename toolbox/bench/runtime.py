"""What a network's call costs on each runtime and precision, measured turn by turn in one run."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from export.bundle import NETWORK, read_bundle
from export.exporter import export_bundle, input_channels
from export.runtime.auto import has_bfloat16
from export.runtime.session import Session, open_network
from solvers.denoiser import Denoiser
from solvers.inputs.errors import first_line
from toolbox.api import load
from toolbox.bench.options import Timing
from toolbox.deploy.export import parse_size
from toolbox.support.cost import Cost

# of what is not quantized: the names of candidates, and what the verdict calls their numbers
FLOAT = {
    "ONNX fp32": "float32",
    "ONNX fp16": "float16",
    "OpenVINO fp32": "float32",
    "OpenVINO bf16": "bfloat16",
}


@dataclass(frozen=True)
class Candidate:
    """A network by a runtime: ``call(x, t)``."""

    name: str
    device: str
    bytes: int | None
    call: Callable


def run_bench_runtime(
    model: str,
    bundles: Sequence[Path],
    timing: Timing = Timing(),
    *,
    memory: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Time PyTorch, float ONNX (32 and 16 bits) and the given bundles, interleaved.

    On the CPU, where OpenVINO is installed, it runs the 32-bit graph and the bundles too.

    On one CPU thread a call's processor time is taken, which a busy machine doesn't lengthen;
    otherwise the wall clock.

    Args:
        model: float model that the bundles were made from.
        bundles: bundles of network graphs.
        timing: of the network's input (after folding); ``torch.compile`` takes minutes.
        memory: also measure each ONNX candidate's peak memory, in a process of its own.

    Returns:
        ``rows`` (name, device, threads, median and quartile milliseconds, ratio to ONNX fp32, MB,
            peak MB), a ``verdict`` in words, and
        in ``skipped`` why ``torch.compile`` has no row (no C++ compiler, say).

    Raises:
        ValueError: a restorer's bundle, another model's bundle, or numbers out of range.
    """
    size, batch, threads = parse_size(timing.size), timing.batch, timing.threads or [1]
    repeats, device, compiled = timing.repeats, timing.device, timing.compiled
    if min(*size, batch, repeats, *threads) < 1:
        raise ValueError("size, batch, repeats and threads must be at least 1")
    denoiser = load(model, device=device)
    if not isinstance(denoiser.network, torch.nn.Module):
        raise ValueError(
            f"model {model!r} is an exported bundle; give the PyTorch model that it was made from"
        )
    side = denoiser.multiple
    if size[0] % side or size[1] % side:
        raise ValueError(
            f"the network's input must be a multiple of {side} on each side; got {size[0]} x"
            f" {size[1]}"
        )
    from quant.calibration.trajectory import network_hash

    ours, read = network_hash(denoiser.network), [read_bundle(folder) for folder in bundles]
    for folder, bundle in zip(bundles, read, strict=True):
        if bundle.model != ours:
            raise ValueError(f"{folder} was made from another model than {model}")
    t = next((bundle.timesteps[0] for bundle in read if bundle.timesteps), denoiser.process.end)
    x = torch.randn(
        batch, input_channels(denoiser), *size, generator=torch.Generator().manual_seed(0)
    ).to(denoiser.device)
    rows, before = [], torch.get_num_threads()
    fast, reason = (
        _compiled(denoiser.network, x, torch.full((batch,), float(t), device=x.device))
        if compiled
        else (None, "")
    )
    with tempfile.TemporaryDirectory() as place:
        places = {"ONNX fp32": Path(place) / "fp32", "ONNX fp16": Path(place) / "fp16"}
        for name, target in (("ONNX fp32", "float"), ("ONNX fp16", "cuda")):
            export_bundle(denoiser, places[name], target=target, timesteps=[t])
        places |= {
            f"{folder.name} ({bundle.target})": folder
            for folder, bundle in zip(bundles, read, strict=True)
        }
        graphs = {name: (folder, device) for name, folder in places.items()}
        if device == "cpu" and find_spec("openvino") is not None:
            graphs |= {"OpenVINO fp32": (places["ONNX fp32"], "openvino")}
            if has_bfloat16():
                graphs |= {"OpenVINO bf16": (places["ONNX fp32"], "openvino-bf16")}
            graphs |= {
                f"{name}, OpenVINO": (folder, "openvino")
                for name, folder in places.items()
                if name not in FLOAT
            }
        try:
            for count in threads:
                torch.set_num_threads(count)
                candidates = _candidates(denoiser, graphs, count, fast)
                times = _interleaved(
                    candidates,
                    x,
                    torch.full((batch,), float(t)),
                    repeats,
                    device == "cpu" and count == 1,
                    progress,
                )
                rows += [_row(c, count, times[c.name], times["ONNX fp32"]) for c in candidates]
        finally:
            torch.set_num_threads(before)
        if memory and device == "cpu":
            peaks = {
                name: _peak(*place, tuple(x.shape), float(t)) for name, place in graphs.items()
            }
            rows = [row | {"peak_mb": peaks.get(row["name"])} for row in rows]
    found = {
        "model": model,
        "input": list(x.shape),
        "repeats": repeats,
        "rows": rows,
        "verdict": verdict(rows),
    }
    return found | ({"skipped": {"PyTorch compiled": reason}} if reason else {})


# of Linux's /proc/cpuinfo: instructions that multiply numbers of 8 bits and add four products
DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


def verdict(rows: Sequence[dict]) -> str:
    """What to take here, int8 or which float numbers, and by how much: 8 bits against the faster of
    the float graphs at the same thread count; where they don't pay, why.
    """
    said = []
    for count in dict.fromkeys(row["threads"] for row in rows):
        here = [row for row in rows if row["threads"] == count]
        plain = min((r for r in here if r["name"] in FLOAT), key=lambda r: r["ms"])
        small = [r for r in here if r["name"] not in FLOAT and not r["name"].startswith("PyTorch")]
        if not small:
            continue
        best = min(small, key=lambda r: r["ms"])
        gain = plain["ms"] / best["ms"]
        words = f"{best['name']} is {gain:.2f} times as fast as {plain['name']}"
        said.append(
            f"{count} thread{'s' * (count > 1)}: "
            + (f"take int8: {words}" if gain >= 1.1 else _stay(plain, words))
        )
    return "; ".join(said) or "no 8-bit bundle was given"


def _stay(plain: dict, words: str) -> str:
    return f"stay with {FLOAT[plain['name']]}: {words}, since {_reason(plain['device'])}"


def _reason(device: str) -> str:
    """Why 8 bits don't pay on a device."""
    if device == "cuda":
        return "ONNX Runtime's CUDA provider has no integer convolution; TensorRT has"
    found = Path("/proc/cpuinfo")
    words = set(found.read_text().split()) if found.is_file() else DOT_PRODUCTS
    if not words & DOT_PRODUCTS:
        return "this processor has no instruction for products of 8 bits"
    return "rounding costs what the products save: layers or pictures are small"


@torch.no_grad()
def _compiled(
    network: torch.nn.Module, x: torch.Tensor, t: torch.Tensor
) -> tuple[Callable | None, str]:
    """The compiled network, called once; or None and why there is none."""
    try:
        made = torch.compile(network)
        made(x, t)
    except Exception as error:  # whatever the compiler's backends raise
        return None, first_line(error)
    return made, ""


def _candidates(
    denoiser: Denoiser, graphs: dict[str, tuple[Path, str]], threads: int, compiled: Callable | None
) -> list[Candidate]:
    network, place = denoiser.network, denoiser.device.type
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    found = [Candidate("PyTorch eager", place, weights, network)]
    if compiled is not None:
        found.append(Candidate("PyTorch compiled", place, weights, compiled))
    for name, (folder, device) in graphs.items():
        session = Session(folder, device=device, threads=threads)
        provider = session.network.providers[0].removesuffix("ExecutionProvider").lower()
        found.append(Candidate(name, provider, (folder / NETWORK).stat().st_size, session.network))
    return found


@torch.no_grad()
def _interleaved(
    candidates, x, t, repeats: int, processor_time: bool, progress
) -> dict[str, list[float]]:
    clock = time.process_time if processor_time else time.perf_counter
    times: dict[str, list[float]] = {c.name: [] for c in candidates}
    for turn in range(repeats + 1):
        for candidate in candidates:
            began = clock()
            candidate.call(x, t.to(x.device))
            if x.is_cuda:
                torch.cuda.synchronize()
            if turn:  # the first call allocates
                times[candidate.name].append((clock() - began) * 1e3)
        progress(turn, repeats)
    return times


def _row(candidate: Candidate, threads: int, times: list[float], reference: list[float]) -> dict:
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    median = statistics.median(times)
    return {
        "name": candidate.name,
        "device": candidate.device,
        "threads": threads,
        "ms": round(median, 3),
        "ms_quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "speedup": round(statistics.median(reference) / median, 3),
        "mb": None if candidate.bytes is None else round(candidate.bytes / 1e6, 2),
    }


def _peak(folder: Path, device: str, shape: tuple[int, ...], t: float) -> float | None:
    """Peak memory in MB that loading and calling a graph adds, in a fresh process; None where the
    system doesn't tell (not Linux).
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (folder, device, shape, t))


def _peak_here(folder: Path, device: str, shape: tuple[int, ...], t: float) -> float | None:
    bundle = read_bundle(folder)
    with Cost() as cost:
        open_network(folder, bundle, device, 1)(torch.zeros(shape), torch.full((shape[0],), t))
    return cost.mb
