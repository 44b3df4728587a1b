"""A bundle as a denoiser: ONNX Runtime answers, everything else is :class:`solvers.denoiser.Denoiser`."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.bundle import NETWORK, Bundle, read_bundle
from quant.temporal import row_of
from solvers.denoiser import Denoiser

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
INTEGER_CONVS = ("QLinearConv", "ConvInteger")


@dataclass(frozen=True)
class Placement:
    """How many nodes of one operator ran on one provider."""

    op: str
    provider: str
    count: int


class Session(Denoiser):
    """``Session(folder)(x, t) -> Prediction``: restorations run on it as on any denoiser.

    Args:
        folder: a bundle; it is verified first (:func:`export.bundle.read_bundle`).
        device: ``cpu``, or ``cuda`` (TensorRT for int8 bundles, CUDA otherwise and for what TensorRT doesn't take).
        threads: CPU threads; None leaves the choice to ONNX Runtime.
        require: ``cpu``, ``cuda`` or ``tensorrt``: the provider that must have been set up.

    Raises:
        ValueError: unknown device or provider, a damaged bundle, or a CPU bundle on a GPU.
        RuntimeError: the provider that the device or ``require`` stands for could not be set up.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", threads: int | None = None, require: str | None = None):
        if device not in ("cpu", "cuda"):
            raise ValueError(f"device {device!r} is unknown; known: cpu, cuda")
        if require is not None and require not in PROVIDERS:
            raise ValueError(f"require {require!r} is unknown; known: {', '.join(PROVIDERS)}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1; got {threads}")
        self.bundle: Bundle = read_bundle(folder)
        if device == "cuda" and self.bundle.target == "cpu":
            raise ValueError(f"{folder} was exported for CPU kernels (uint8); export it with target tensorrt to run it on a GPU")
        self.folder = Path(folder)
        network = OnnxNetwork(self.folder / NETWORK, self.bundle, _wanted(device, self.bundle.target), threads)
        needed = require or ("cuda" if device == "cuda" else "cpu")
        if PROVIDERS[needed] not in network.providers:
            raise RuntimeError(
                f"{PROVIDERS[needed]} could not be set up (running: {', '.join(network.providers)}); install the matching onnxruntime "
                "build and its CUDA/TensorRT libraries, or ask for another device"
            )
        missing = [p for p in network.requested if p not in network.providers]
        if missing:
            warnings.warn(f"{', '.join(missing)} could not be set up; running on {', '.join(network.providers)}", stacklevel=2)
        s = self.bundle.settings
        super().__init__(
            network,
            self.bundle.process.process(),
            s.prediction_type,
            value_range=s.value_range,
            fold=s.fold,
            multiple=s.multiple,
            condition_channels=s.condition_channels,
            residual=s.residual,
            data_std=s.data_std,
        )

    def placement(self, height: int | None = None, width: int | None = None) -> list[Placement]:
        """Which operators ran where, counted in one profiled call of the network (default: a small input)."""
        side = 8 * self.multiple
        return self.network.placement(height or side, width or side)

    def integer_convs(self) -> int:
        """Number of convolutions that ONNX Runtime really runs on integers (CPU kernels)."""
        return sum(p.count for p in self.placement() if p.op in INTEGER_CONVS)


class OnnxNetwork:
    """``network(x (B, C, h, w), t (B,)) -> (B, C_out, h, w)`` on the CPU side of an ONNX Runtime session."""

    def __init__(self, path: str | Path | bytes, bundle: Bundle | None, providers: list[str], threads: int | None, timesteps=()):
        self.model = path if isinstance(path, bytes) else str(path)
        self.timesteps = tuple(bundle.timesteps) if bundle is not None else tuple(timesteps)
        self.integer = bundle is not None and bundle.target == "cpu"
        self.requested, self.threads = providers, threads
        self.session = self._open()
        self.providers: list[str] = self.session.get_providers()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        feed = {"x": _array(x, torch.float32)} | self._second(t)
        (out,) = self.session.run(None, feed)
        return torch.from_numpy(out).to(x.device)

    def _second(self, t: Tensor) -> dict[str, np.ndarray]:
        if not self.timesteps:
            return {"t": _array(t, torch.float32)}
        return {"index": np.array([row_of(self.timesteps, value) for value in t.tolist()], np.int64)}

    def placement(self, height: int, width: int) -> list[Placement]:
        with tempfile.TemporaryDirectory() as place:
            session = self._open(profile=str(Path(place) / "run"))
            channels = session.get_inputs()[0].shape[1]
            t = torch.tensor([self.timesteps[0] if self.timesteps else 0.0])
            session.run(None, {"x": np.zeros((1, channels, height, width), np.float32)} | self._second(t))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        nodes = [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
        counts = Counter((n["op_name"], n["provider"]) for n in nodes)
        return [Placement(op, provider, count) for (op, provider), count in counts.most_common()]

    def _open(self, profile: str | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self.integer:  # the layout pass of the next level adds more transposes than it saves around integer convolutions
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        if PROVIDERS["cuda"] in self.requested:
            onnxruntime.preload_dlls()  # finds the CUDA libraries that torch installed
        known = onnxruntime.get_available_providers()
        return onnxruntime.InferenceSession(self.model, options, providers=[p for p in self.requested if p in known])


def _wanted(device: str, target: str) -> list[str]:
    names = ["cpu"] if device == "cpu" else ["tensorrt", "cuda", "cpu"] if target == "tensorrt" else ["cuda", "cpu"]
    return [PROVIDERS[name] for name in names]


def _array(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Shares memory where the tensor is a contiguous CPU tensor of the type."""
    return tensor.detach().to("cpu", dtype).contiguous().numpy()
