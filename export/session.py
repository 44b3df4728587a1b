"""A bundle on ONNX Runtime: a network's graph as a :class:`solvers.denoiser.Denoiser`, a restorer's graph as a call on pictures."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.bundle import Bundle, read_bundle
from export.kernels import has_amx, shift_codes
from quant.temporal import row_of
from restoration.inpainting import check_inpainting
from restoration.task import Restored
from restoration.tiling import tile_starts, tile_weight
from solvers.denoiser import Denoiser
from solvers.solver import randn

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
        folder: a bundle of a network's graph; it is verified first (:func:`export.bundle.read_bundle`).
        device: ``cpu``, or ``cuda`` (TensorRT for int8 bundles, CUDA otherwise and for what TensorRT doesn't take).
        threads: CPU threads; None leaves the choice to ONNX Runtime.
        require: ``cpu``, ``cuda`` or ``tensorrt``: the provider that must have been set up.
        cache: folder for TensorRT's engines; None: a folder of the user's cache that nobody else can write.

    Raises:
        ValueError: unknown device or provider, a damaged bundle, a restorer's bundle, or a CPU bundle on a GPU.
        RuntimeError: the provider that the device or ``require`` stands for could not be set up.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", threads: int | None = None, require: str | None = None, cache=None):
        self.folder, self.bundle = Path(folder), read_bundle(folder)
        if self.bundle.graph == "restorer":
            raise ValueError(f"{folder} holds a whole restoration; run it with export.session.Restorer")
        wanted = _wanted(folder, self.bundle, device, require, threads, cache)
        network = OnnxNetwork(self.folder / self.bundle.model_file, self.bundle, wanted, threads)
        _check_found(network.providers, wanted, require or device)
        s = self.bundle.settings
        super().__init__(
            network,
            self.bundle.make_process(),
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
    """``network(x (B, C, h, w), t (B,)) -> (B, C_out, h, w)`` by an ONNX Runtime session.

    Tensors are bound where they lie: on a GPU nothing is copied to the host, and one binding with its output serves all calls of a size.
    """

    def __init__(self, path: str | Path | bytes, bundle: Bundle | None, providers: list, threads: int | None, timesteps=()):
        self.timesteps = tuple(bundle.timesteps) if bundle is not None else tuple(timesteps)
        self.integer = bundle is not None and bundle.target == "cpu"
        self.model, self.requested, self.threads = path, providers, threads
        self.session = open_session(path, providers, threads=threads, integer=self.integer)
        self.providers: list[str] = self.session.get_providers()
        self.cuda = self.providers[0] != PROVIDERS["cpu"]
        self.outputs = self.session.get_outputs()[0].shape[1]
        self._bound: tuple[Tensor, object] | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        place = torch.device("cuda" if self.cuda else "cpu")
        feed = x.detach().to(place, torch.float32).contiguous()
        out, binding = self._binding((feed.shape[0], self.outputs, *feed.shape[2:]), place)
        binding.bind_input("x", place.type, 0, np.float32, tuple(feed.shape), feed.data_ptr())
        for name, value in self._second(t).items():
            binding.bind_cpu_input(name, value)
        if self.cuda:
            torch.cuda.current_stream().synchronize()  # the session has a stream of its own
        self.session.run_with_iobinding(binding)
        return out.to(x.device, copy=True)

    def _binding(self, shape: tuple[int, ...], place: torch.device):
        if self._bound is None or tuple(self._bound[0].shape) != shape:
            out, binding = torch.empty(shape, device=place), self.session.io_binding()
            binding.bind_output("output", place.type, 0, np.float32, shape, out.data_ptr())
            self._bound = (out, binding)
        return self._bound

    def _second(self, t: Tensor) -> dict[str, np.ndarray]:
        if not self.timesteps:
            return {"t": t.detach().to("cpu", torch.float32).contiguous().numpy()}
        return {"index": np.array([row_of(self.timesteps, value) for value in t.tolist()], np.int64)}

    def placement(self, height: int, width: int) -> list[Placement]:
        channels = self.session.get_inputs()[0].shape[1]
        t = torch.tensor([self.timesteps[0] if self.timesteps else 0.0])
        feed = {"x": np.zeros((1, channels, height, width), np.float32)} | self._second(t)
        return count_kernels(self.model, self.requested, feed, threads=self.threads, integer=self.integer)


class Restorer:
    """``Restorer(folder)(image, mask) -> Restored``: a whole restoration per call of ONNX Runtime, in tiles where the image is larger.

    Args:
        folder, device, threads, require, cache: as for :class:`Session`, with a restorer's bundle.

    Raises:
        ValueError, RuntimeError: as for :class:`Session`.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", threads: int | None = None, require: str | None = None, cache=None):
        self.folder, self.bundle = Path(folder), read_bundle(folder)
        if self.bundle.graph != "restorer":
            raise ValueError(f"{folder} holds a network only; run it with export.session.Session")
        self.run = self.bundle.run
        self.model, self.threads = self.folder / self.bundle.model_file, threads
        self.requested = _wanted(folder, self.bundle, device, require, threads, cache)
        self.session = open_session(self.model, self.requested, threads=threads, integer=self.bundle.target == "cpu")
        self.providers: list[str] = self.session.get_providers()
        _check_found(self.providers, self.requested, require or device)

    def __call__(
        self,
        image: Tensor,
        mask: Tensor,
        *,
        num_samples: int = 1,
        seed: int = 0,
        overlap: int | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> Restored:
        """Restore one image; sample k uses ``seed + k``, with the same noise as :class:`restoration.inpainting.InpaintingTask`.

        Args:
            image: ``(C, H, W)`` in [0, 1], C = 1 or 3; missing pixels may hold anything.
            mask: ``(H, W)``; 1 = known, 0 = missing.
            overlap: pixels shared by neighbouring tiles, less than half a side of the graph's size; None: an eighth of the shorter side.
            callback: called with the number of tiles done and their total.

        Raises:
            ValueError: shapes or values that don't fit.
        """
        image, mask = check_inpainting(image, mask)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1; got {num_samples}")
        tile = (self.run.height, self.run.width)
        overlap = min(tile) // 8 if overlap is None else overlap
        if not 0 <= 2 * overlap < min(tile):
            raise ValueError(f"overlap must be less than half a tile of {tile[1]} x {tile[0]}; got {overlap}")
        began, (height, width) = time.perf_counter(), mask.shape
        grey = image.shape[0] == 1
        missing = (0, max(0, tile[1] - width), 0, max(0, tile[0] - height))  # a small image lies in a corner of unknown pixels
        x, known = F.pad(image.expand(3, -1, -1), missing), F.pad(mask[None], missing)
        size = x.shape[1:]
        spots = [(top, left) for top in tile_starts(size[0], tile[0], overlap) for left in tile_starts(size[1], tile[1], overlap)]
        samples = []
        for k in range(num_samples):
            generator = torch.Generator().manual_seed(seed + k)
            noise = torch.stack([randn((1, 3, *size), generator) for _ in range(self.run.draws)])
            total, weights = torch.zeros(3, *size), torch.zeros(size)
            for done, (top, left) in enumerate(spots, 1):
                window = (..., slice(top, top + tile[0]), slice(left, left + tile[1]))
                out = self.run_tile(x[window][None], known[window][None], noise[window])
                weight = tile_weight(top, tile[0], size[0], overlap)[:, None] * tile_weight(left, tile[1], size[1], overlap)
                total[window] += weight * out[0]
                weights[window] += weight
                if callback is not None:
                    callback(k * len(spots) + done, num_samples * len(spots))
            whole = (total / weights)[:, :height, :width]
            whole = whole.mean(0, keepdim=True) if grey else whole
            samples.append(torch.where(mask > 0, image, whole) if self.run.sigma == 0 else whole)
        stack = torch.stack(samples)
        std = stack.std(0) if num_samples > 1 else torch.zeros_like(stack[0])
        nfe = num_samples * len(spots) * self.run.calls
        return Restored(stack, stack.double().mean(0).float(), std, nfe, time.perf_counter() - began)

    def run_tile(self, image: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """The graph itself: ``image (B, 3, h, w)``, ``mask (B, 1, h, w)`` and ``noise (draws, B, 3, h, w)`` of its size to an image."""
        feed = {n: v.contiguous().numpy() for n, v in (("image", image), ("mask", mask), ("noise", noise))}
        return torch.from_numpy(self.session.run(["restored"], feed)[0])

    def placement(self) -> list[Placement]:
        """Which operators ran where, counted in one profiled run."""
        shapes = {i.name: [n if isinstance(n, int) else 1 for n in i.shape] for i in self.session.get_inputs()}
        feed = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        return count_kernels(self.model, self.requested, feed, threads=self.threads, integer=self.bundle.target == "cpu")

    def integer_convs(self) -> int:
        """Number of convolutions that ONNX Runtime really runs on integers (CPU kernels)."""
        return sum(p.count for p in self.placement() if p.op in INTEGER_CONVS)


def open_session(
    model: str | Path | bytes, providers: list, *, threads: int | None = None, integer: bool = False, profile: str | None = None
):
    """An ``onnxruntime.InferenceSession``; providers that this build of ONNX Runtime doesn't have are left out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if integer:  # the layout pass of the next level adds more transposes than it saves around integer convolutions
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        model = shift_codes(model) if has_amx() else model
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if any(_name(p) == PROVIDERS["cuda"] for p in providers):
        onnxruntime.preload_dlls()  # finds the CUDA libraries that torch installed
    known = onnxruntime.get_available_providers()
    wanted = [p for p in providers if _name(p) in known]
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=wanted)


def count_kernels(model, providers: list, feed: dict[str, np.ndarray], **options) -> list[Placement]:
    """Operators by provider in one profiled run."""
    with tempfile.TemporaryDirectory() as place:
        session = open_session(model, providers, profile=str(Path(place) / "run"), **options)
        session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    counts = Counter((n["op_name"], n["provider"]) for n in nodes)
    return [Placement(op, provider, count) for (op, provider), count in counts.most_common()]


def _wanted(folder, bundle: Bundle, device: str, require: str | None, threads: int | None, cache) -> list:
    """Providers to ask for, most special first.

    Raises:
        ValueError: an unknown or impossible combination.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is unknown; known: cpu, cuda")
    if require is not None and require not in PROVIDERS:
        raise ValueError(f"require {require!r} is unknown; known: {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1; got {threads}")
    if device == "cuda" and bundle.target == "cpu":
        raise ValueError(f"{folder} was exported for CPU kernels (uint8); export it with target tensorrt to run it on a GPU")
    if device == "cpu":
        return [PROVIDERS["cpu"]]
    gpu = [PROVIDERS["cuda"], PROVIDERS["cpu"]]
    return [(PROVIDERS["tensorrt"], tensorrt_options(bundle, cache)), *gpu] if bundle.target == "tensorrt" else gpu


def _check_found(found: list[str], wanted: list, needed: str) -> None:
    """Say what could not be set up.

    Raises:
        RuntimeError: ``needed`` (``cpu``, ``cuda``, ``tensorrt``) is not among the providers found.
    """
    if PROVIDERS[needed] not in found:
        raise RuntimeError(
            f"{PROVIDERS[needed]} could not be set up (running: {', '.join(found)}); install the matching onnxruntime build and its "
            "CUDA/TensorRT libraries (`restobox doctor` tells which), or ask for another device"
        )
    missing = [_name(p) for p in wanted if _name(p) not in found]
    if missing:
        warnings.warn(f"{', '.join(missing)} could not be set up; running on {', '.join(found)}", stacklevel=3)


def tensorrt_options(bundle: Bundle, cache: str | Path | None = None, largest: tuple[int, int, int] = (4, 512, 512)) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider: cached engines and timings, and shape profiles from the bundle.

    An engine holds for one graph, GPU and runtime: the folder is named after the graph's SHA-256, the GPU and ONNX Runtime's version.
    Engines are programs, so it belongs to its owner alone.

    Args:
        cache: parent folder; None: ``$XDG_CACHE_HOME/restobox`` or ``~/.cache/restobox``.
        largest: batch, height and width (of a network's input) that engines are built for.
    """
    import onnxruntime

    digest = bundle.files[bundle.model_file].sha256
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    key = hashlib.sha256(f"{digest} {gpu} {onnxruntime.__version__}".encode()).hexdigest()[:24]
    base = Path(cache) if cache is not None else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restobox"
    folder = base / f"engine-{key}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder), "trt_timing_cache_enable": "1"}
    options["trt_timing_cache_path"] = str(folder)
    if bundle.graph == "restorer":
        r = bundle.run
        sides = (("min", 1), ("opt", 1), ("max", largest[0]))
        shapes = {
            k: f"image:{b}x3x{r.height}x{r.width},mask:{b}x1x{r.height}x{r.width},noise:{r.draws}x{b}x3x{r.height}x{r.width}"
            for k, b in sides
        }
    else:
        m, c = bundle.settings.multiple, bundle.channels
        batch, height, width = largest[0], *(-(-n // m) * m for n in largest[1:])
        second = "t" if bundle.graph == "timestep" else "index"
        sizes = {"min": (1, 2 * m, 2 * m), "opt": (1, height // 2 // m * m or m, width // 2 // m * m or m), "max": (batch, height, width)}
        shapes = {k: f"x:{b}x{c}x{h}x{w},{second}:{b}" for k, (b, h, w) in sizes.items()}
    return options | {f"trt_profile_{k}_shapes": v for k, v in shapes.items()}


def _name(provider) -> str:
    return provider if isinstance(provider, str) else provider[0]
