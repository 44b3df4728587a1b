"""Runtimes and providers: which are asked for, which came up, and what ran where."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.bundle import Bundle
from export.runtime.amx import has_amx, shift_codes
from export.runtime.content import read_graph
from quant.temporal.table import row_of
from solvers.inputs.errors import FullDiskError, InputError, ModelError, reading

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": (
        "OpenVINO"
    ),  # a runtime of its own (export.runtime.openvino), not a provider of ONNX Runtime
}
# "-bf16": what holds no codes in bfloat16, whatever the graph was exported for
DEVICES = ("cpu", "cuda", "openvino", "openvino-bf16")
INTEGER_CONVS = ("QLinearConv", "ConvInteger")
WEIGHTED = {
    *INTEGER_CONVS,
    "Conv",
    "FusedConv",
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "MatMulIntegerToFloat",
    "MultiHeadAttention",
}


@dataclass(frozen=True)
class Placement:
    """How many nodes of one operator ran on one provider, and a type.

    ONNX Runtime: the type of the result (``float``, ``uint8``, ...). OpenVINO: the type computed in
    (``f32``, ``bf16``, ``u8``, ``i8``).
    """

    op: str
    provider: str
    count: int
    dtype: str


def open_session(
    model: str | Path | bytes,
    providers: list,
    *,
    threads: int | None = None,
    integer: bool = False,
    profile: str | None = None,
):
    """An ``onnxruntime.InferenceSession``; providers that this build of ONNX Runtime doesn't have
    are left out.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # where it was imported before export/__init__.py
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong with a graph is said once, by the error
    # the layout pass of the next level adds more transposes than it saves around integer
    # convolutions
    if integer:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # threads that wait for work by spinning cost a busy machine twice the processor time
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if any(_name(p) == PROVIDERS["cuda"] for p in providers):
        onnxruntime.preload_dlls()  # finds the CUDA libraries that torch installed
    known = onnxruntime.get_available_providers()
    wanted = [p for p in providers if _name(p) in known]
    with reading("the graph" if isinstance(model, bytes) else model, "a graph to run", ModelError):
        graph = shift_codes(model) if integer and has_amx() else model
        graph = graph if isinstance(graph, bytes) else str(graph)
        return onnxruntime.InferenceSession(graph, options, providers=wanted)


def count_kernels(
    model, providers: list, feed: dict[str, np.ndarray], **options
) -> list[Placement]:
    """Operators by provider and type in one profiled run; warns where weighted ones fell back to
    the CPU.

    Raises:
        FullDiskError: the folder for temporary files has no room for the profile.
    """
    with tempfile.TemporaryDirectory() as place:
        session = open_session(model, providers, profile=str(Path(place) / "run"), **options)
        session.run(None, feed)
        try:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except ValueError:
            raise FullDiskError(
                "the folder for temporary files has no room for ONNX Runtime's profile, which tells"
                f" what runs where ({Path(place).parent}): free some, or name another (TMPDIR)"
            ) from None
    nodes = [
        e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    ]
    counts = Counter((n["op_name"], n["provider"], _dtype(n)) for n in nodes)
    rows = [
        Placement(op, provider, count, dtype)
        for (op, provider, dtype), count in counts.most_common()
    ]
    fell = fallen_back(rows, _name(providers[0]))
    if fell:
        warnings.warn(
            f"{fell} ran on {PROVIDERS['cpu']}, not on {_name(providers[0])}: each costs copies to"
            " and fro",
            stacklevel=2,
        )
    return rows


def integer_convs(rows: list[Placement], model: str | Path | bytes) -> int:
    """Number of convolutions that run on integers; ``model``: the graph that was run."""
    from export.graphs.columns import PRODUCT, products  # imports the exporter, half a second

    proto = read_graph(model)
    multiplied = sum(row.count for row in rows if row.op == PRODUCT)
    return min(multiplied, products(proto)) + sum(
        row.count
        for row in rows
        if row.op in INTEGER_CONVS or (row.op == "Convolution" and row.dtype in ("u8", "i8"))
    )


def check_state(x: torch.Tensor, channels: int, multiple: int) -> None:
    """Refuse what a network's graph can't be shown, in place of a runtime's own words.

    Raises:
        InputError: ``x`` isn't ``(B, channels, h, w)`` with a sample at least and sides that are
            multiples of ``multiple``.
    """
    if (
        x.ndim != 4
        or x.shape[1] != channels
        or 0 in x.shape
        or any(v % multiple for v in x.shape[2:])
    ):
        sides = f", h and w multiples of {multiple}" if multiple > 1 else ""
        raise InputError(
            f"the bundle's network takes (B, {channels}, h, w), B at least 1{sides}; got"
            f" {tuple(x.shape)}"
        )


def second_input(timesteps: Sequence[float], t: torch.Tensor) -> dict[str, np.ndarray]:
    """A network graph's second input for the times ``t (B,)``: themselves, or the numbers of their
    rows in ``timesteps``.
    """
    if not timesteps:
        return {"t": t.detach().to("cpu", torch.float32).contiguous().numpy()}
    return {"index": np.array([row_of(timesteps, value) for value in t.tolist()], np.int64)}


def fallen_back(rows: list[Placement], wanted: str) -> str:
    """The operators with weights that ran on the CPU though another provider was wanted, in words;
    empty for none.
    """
    if wanted == PROVIDERS["cpu"]:
        return ""
    return ", ".join(
        f"{row.count} {row.op}"
        for row in rows
        if row.provider == PROVIDERS["cpu"] and row.op in WEIGHTED
    )


def _dtype(node: dict) -> str:
    types = [name for entry in node.get("output_type_shape") or () for name in entry]
    return types[0] if types else "unknown"


def wanted_providers(
    folder, bundle: Bundle, device: str, require: str | None, threads: int | None, cache
) -> list:
    """Providers to ask for, most special first.

    Raises:
        ValueError: an unknown or impossible combination.
    """
    if device not in DEVICES:
        raise ValueError(f"device {device!r} is unknown; known: {', '.join(DEVICES)}, auto")
    if require is not None and require not in PROVIDERS:
        raise ValueError(f"require {require!r} is unknown; known: {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1; got {threads}")
    if device == "cuda" and bundle.target in ("cpu", "openvino"):
        raise ValueError(
            f"{folder} was exported for CPU kernels (uint8); export it with target tensorrt to run"
            " it on a GPU"
        )
    if device != "cuda":
        return [PROVIDERS[runtime_of(device)]]
    gpu = [PROVIDERS["cuda"], PROVIDERS["cpu"]]
    return (
        [(PROVIDERS["tensorrt"], tensorrt_options(bundle, cache)), *gpu]
        if bundle.target == "tensorrt"
        else gpu
    )


def runtime_of(device: str) -> str:
    """The key of :data:`PROVIDERS` that a device stands for."""
    return device.partition("-")[0]


def check_found(found: list[str], wanted: list, needed: str) -> None:
    """Say what could not be set up.

    Raises:
        RuntimeError: ``needed`` (a key of :data:`PROVIDERS`) is not among the providers found.
    """
    if PROVIDERS[needed] not in found:
        if "openvino" in (needed, *(k for k, v in PROVIDERS.items() if v in found)):
            raise RuntimeError(
                f"{PROVIDERS[needed]} is required but {', '.join(found)} was asked for; choose the"
                " device that has it"
            )
        raise RuntimeError(
            f"{PROVIDERS[needed]} could not be set up (running: {', '.join(found)}); install the"
            " matching onnxruntime build and its CUDA/TensorRT libraries (`restobox doctor` tells"
            " which), or ask for another device"
        )
    missing = [_name(p) for p in wanted if _name(p) not in found]
    if missing:
        warnings.warn(
            f"{', '.join(missing)} could not be set up; running on {', '.join(found)}", stacklevel=3
        )


def tensorrt_options(
    bundle: Bundle, cache: str | Path | None = None, largest: tuple[int, int, int] = (4, 512, 512)
) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider: cached engines and timings, and shape profiles
    from the bundle.

    An engine holds for one graph, GPU and runtime: the folder is named after the graph's SHA-256,
    the GPU and ONNX Runtime's version. Engines are programs, so it belongs to its owner alone.

    Args:
        cache: parent folder; None: ``$XDG_CACHE_HOME/restobox`` or ``~/.cache/restobox``.
        largest: batch, height and width (of a network's input) that engines are built for.
    """
    import onnxruntime

    digest = bundle.files[bundle.model_file].sha256
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    key = hashlib.sha256(f"{digest} {gpu} {onnxruntime.__version__}".encode()).hexdigest()[:24]
    folder = user_cache(cache) / f"engine-{key}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
    }
    options["trt_timing_cache_path"] = str(folder)
    if (r := bundle.run) is not None:
        sides = (("min", 1), ("opt", 1), ("max", largest[0]))
        shapes = {}
        for k, b in sides:
            names = [
                f"{name}:{'x'.join(map(str, (b, *shape)))}" for name, shape in r.inputs.items()
            ]
            names += (
                [f"noise:{'x'.join(map(str, (r.draws, b, *(r.state or ()))))}"] if r.draws else []
            )
            shapes[k] = ",".join(names)
    else:
        m, c = bundle.settings.multiple, bundle.channels
        batch, height, width = largest[0], *(-(-n // m) * m for n in largest[1:])
        second = "t" if bundle.graph == "timestep" else "index"
        sizes = {
            "min": (1, 2 * m, 2 * m),
            "opt": (1, height // 2 // m * m or m, width // 2 // m * m or m),
            "max": (batch, height, width),
        }
        shapes = {k: f"x:{b}x{c}x{h}x{w},{second}:{b}" for k, (b, h, w) in sizes.items()}
    return options | {f"trt_profile_{k}_shapes": v for k, v in shapes.items()}


def user_cache(folder: str | Path | None = None) -> Path:
    """``folder``, or restobox's own of the user's cache."""
    if folder is not None:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restobox"


def _name(provider) -> str:
    return provider if isinstance(provider, str) else provider[0]
