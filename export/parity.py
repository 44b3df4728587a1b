"""Does the exported graph do what was planned, as exactly as simulated, and faster?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.exporter import HALF, INTEGER, export_model
from export.runtime.outputs import rounded_as
from export.runtime.providers import PROVIDERS
from export.runtime.session import OnnxNetwork, Session
from quant.calibration.trajectory import CalibrationSet, network_hash
from quant.network import QuantizedNetwork
from quant.temporal.table import holds
from solvers.denoiser import Denoiser, output_of, timesteps_of
from solvers.grid import trailing
from solvers.loop import solve
from solvers.methods.ddim import DDIM

# solver steps after which the drift of a run is measured
DRIFTS = (1, 5, 10, 20, 50)


@dataclass(frozen=True)
class Limits:
    """What passes. None switches a check off.

    Attributes:
        agreement: of the simulated and the exported network's errors, at the worst timestep.
        error: of a call, mean over the timesteps.
        plain: the same of graphs without codes, ``(float32, float16)``.
        speedup: least, over the float graph.
        quality_drop: in dB.
    """

    agreement: float | None = 0.10
    error: float | None = None
    plain: tuple[float, float] = (1e-4, 2e-2)
    speedup: float | None = None
    quality_drop: float | None = None


@dataclass(frozen=True)
class Timed:
    """Height and width of the network's input in the timing, and how often each graph is called."""

    size: tuple[int, int] = (64, 96)
    repeats: int = 5


@dataclass(frozen=True)
class Parity:
    """Figures of one verification.

    Attributes:
        device: what ran the bundle, ``cpu`` (ONNX Runtime) or ``openvino``.
        planned, fused: convolutions meant to run, and really running, on integers (fused is None
            where the runtime has no such kernels).
        timesteps: noisiest first; the next two have one entry each.
        simulated, onnx: relative error ``|y - y_float| / |y_float|`` of the simulated and of the
            exported network; of graphs without codes nothing is simulated, and it is 0.
        error: mean of ``onnx``.
        agreement: largest ``|onnx/simulated - 1|`` over the timesteps; None without codes.
        difference: largest ``|y_onnx - y_simulated| / |y_simulated - y_float|``; None without
            codes. Inputs that lie near the middle of two codes go either way, so it is seldom
            small; a graph that errs as much as the simulation, but elsewhere, has about 1.4.
        drift: ``|x - x_float| / |x_float|`` at the end of runs of so many DDIM steps from the same
            noise, without condition; of those in :data:`DRIFTS` whose times the bundle answers at.
        size_ratio: bytes of the graph over those of the float graph.
        float_ms, ms: one call, one CPU thread, best of an interleaved run; float is always ONNX
            Runtime's.
        quality: the caller's figure of merit (dB) for the float denoiser and for the session; None
            without ``restore``.
        failures: what exceeded its limit, in words.
    """

    device: str
    planned: int
    fused: int | None
    timesteps: tuple[float, ...]
    simulated: tuple[float, ...]
    onnx: tuple[float, ...]
    error: float
    agreement: float | None
    difference: float | None
    drift: dict[int, float]
    size_ratio: float
    float_ms: float
    ms: float
    quality: tuple[float, float] | None
    failures: tuple[str, ...]

    @property
    def speedup(self) -> float:
        return self.float_ms / self.ms

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict:
        return asdict(self) | {"speedup": self.speedup, "passed": self.passed}


@torch.no_grad()
def verify(
    denoiser: Denoiser,
    folder: str | Path,
    quantized: QuantizedNetwork | None,
    calibration: CalibrationSet,
    *,
    device: str = "cpu",
    restore: Callable[[Denoiser], float] | None = None,
    limits: Limits | None = None,
    timed: Timed | None = None,
) -> Parity:
    """Compare a bundle with the float and the simulated network on recorded trajectory inputs, on
    the CPU.

    Args:
        denoiser: the float denoiser that the bundle was exported from.
        folder: the bundle.
        quantized: the network whose scales it holds; None for float and float16 bundles.
        calibration: inputs to compare on.
        device: what runs the bundle, ``cpu`` (ONNX Runtime) or ``openvino``.
        restore: restores the caller's images with a denoiser and returns a figure of merit in dB (a
            mean PSNR, say); it is called with the float denoiser, then with the bundle's session.
        limits: by default only that the graph does what was simulated and that every planned
            convolution runs on integers; without codes, that it is the float network.
        timed: what is timed; calls of the graphs are interleaved.

    Raises:
        ValueError: the bundle is damaged or was made from another model or calibration, or another
            device is asked for.
        ImportError: device ``openvino`` without that package.
    """
    limits, timed = limits or Limits(), timed or Timed()
    if device not in ("cpu", "openvino"):
        raise ValueError(f"bundles are verified on the devices cpu and openvino; got {device!r}")
    session = Session(folder, device=device, threads=1)
    bundle = session.bundle
    if (bundle.target in INTEGER) != (quantized is not None):
        raise ValueError(
            f"{folder} was exported for the target {bundle.target}: "
            + ("give --quantized" if quantized is None else "it holds no codes; omit --quantized")
        )
    if quantized is None:
        same = bundle.model == network_hash(denoiser.network)
    else:
        hashes = quantized.model_hash, quantized.calibration_hash
        same = (bundle.model, bundle.calibration) == hashes
    if not same:
        raise ValueError(f"{folder} was not exported from this network; export it again")
    calibration.check(denoiser.network)
    target = rounded_as(bundle.target, device)
    simulated = denoiser.network if quantized is None else quantized.simulating(target)
    sums: dict[float, np.ndarray] = {}
    for x, t in calibration.batches():
        reference, planned, found = (
            output_of(network(x, t)) for network in (denoiser.network, simulated, session.network)
        )
        pairs = ((planned, reference), (found, reference), (found, planned))
        squares = [float((a - b).square().sum()) for a, b in pairs]
        sums[float(t[0])] = sums.get(float(t[0]), 0) + np.array(
            [*squares, float(reference.square().sum())]
        )
    times = tuple(sorted(sums, reverse=True))
    ratios = np.array([np.sqrt(sums[t][:3] / sums[t][3]) for t in times])
    apart = np.abs(ratios[:, 1] - ratios[:, 0]) / np.maximum(ratios[:, 0], 1e-12)
    elsewhere = ratios[:, 2] / np.maximum(ratios[:, 0], 1e-12)
    plain = export_model(denoiser, timesteps=bundle.timesteps).SerializeToString()
    exact = OnnxNetwork(plain, None, [PROVIDERS["cpu"]], 1, timesteps=bundle.timesteps)
    float_ms, ms = _interleaved(
        [exact, session.network], bundle.channels, timed.size, times[0], timed.repeats
    )
    counted = bundle.target == "cpu" or (device == "openvino" and bundle.target in INTEGER)
    figures: dict[str, Any] = {
        "device": device,
        "planned": bundle.planned,
        "fused": session.integer_convs() if counted else None,
        "timesteps": times,
        "simulated": tuple(ratios[:, 0].tolist()),
        "onnx": tuple(ratios[:, 1].tolist()),
        "error": float(ratios[:, 1].mean()),
        "agreement": None if quantized is None else float(apart.max()),
        "difference": None if quantized is None else float(elsewhere.max()),
        "drift": drift(denoiser, session),
        "size_ratio": (Path(folder) / bundle.model_file).stat().st_size / len(plain),
        "float_ms": float_ms,
        "ms": ms,
        "quality": None if restore is None else (float(restore(denoiser)), float(restore(session))),
    }
    most = limits.error
    if quantized is None and most is None:
        most = limits.plain[bundle.target in HALF]
    return Parity(**figures, failures=tuple(_failures(figures, replace(limits, error=most))))


@torch.no_grad()
def drift(denoiser: Denoiser, session: Denoiser) -> dict[int, float]:
    """How far runs on an exported network end from those on its float one, by number of steps; see
    :class:`Parity`. None of a process that holds the degraded image, which a run without
    measurement has not, and of a decoder.
    """
    process, found = denoiser.process, {}
    if process.holds_image or denoiser.shown == "latents":
        return {}
    side = 8 * denoiser.fold * denoiser.multiple
    x = torch.randn(
        1, denoiser.image_channels or 3, side, side, generator=torch.Generator().manual_seed(0)
    )
    held = timesteps_of(session.network)
    for steps in DRIFTS:
        try:
            grid = trailing(process, steps)
        except ValueError:  # more steps than the process has
            continue
        if held and not holds(held, grid.times[:-1]):
            continue
        ends = [
            solve(DDIM(), d, process.b(grid.times[0]) * x, grid).x0 for d in (session, denoiser)
        ]
        found[steps] = float((ends[0] - ends[1]).norm() / ends[1].norm())
    return found


def _failures(f: dict, limits: Limits):
    if f["fused"] is not None and f["fused"] != f["planned"]:
        yield f"{f['fused']} convolutions run on integers; {f['planned']} were planned"
    speedup = f["float_ms"] / f["ms"]
    if None not in (limits.agreement, f["agreement"]) and f["agreement"] > limits.agreement:
        yield (
            f"simulated and exported errors differ by {f['agreement']:.1%}; limit"
            f" {limits.agreement:.1%}"
        )
    if limits.error is not None and not f["error"] <= limits.error:
        yield f"relative error {f['error']:.4f} of a call; limit {limits.error:g}"
    if limits.speedup is not None and speedup < limits.speedup:
        yield f"{speedup:.2f} times the float graph's speed; limit {limits.speedup:g}"
    if (
        limits.quality_drop is not None
        and f["quality"] is not None
        and f["quality"][0] - f["quality"][1] > limits.quality_drop
    ):
        yield (
            f"restored images lose {f['quality'][0] - f['quality'][1]:.3f} dB; limit"
            f" {limits.quality_drop:g} dB"
        )


def _interleaved(
    networks: list[Callable], channels: int, size: tuple[int, int], t: float, repeats: int
) -> list[float]:
    """Milliseconds of CPU time per call (a busy machine doesn't count), the least of ``repeats``,
    turn by turn.
    """
    x = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    best = [float("inf")] * len(networks)
    for turn in range(repeats + 1):
        for k, network in enumerate(networks):
            start = time.process_time()
            network(x, torch.tensor([t]))
            if turn:  # the first call allocates
                best[k] = min(best[k], (time.process_time() - start) * 1e3)
    return best
