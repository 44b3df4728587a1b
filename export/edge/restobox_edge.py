"""Restore pictures and scans with a restobox bundle: onnxruntime, NumPy and Pillow, nothing else.

    python run.py photo.png -o restored.png --mask mask.png      (in the mask, white = missing)
    python run.py noisy.png -o clean.png --sigma 0.1             (of pixels from 0 to 1)
    python run.py scan.npz -o image.npz --provider cuda

Every bundle holds this file as ``run.py``; ``pip install ./export/edge`` installs the same as
``restobox-edge``. Python 3.10 or later.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the runtime is imported
import onnxruntime

READABLE = (1, 2, 3)
MOST_PIXELS = 2**28
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "openvino": ["OpenVINOExecutionProvider", "CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
PACKAGES = {"openvino": "onnxruntime-openvino", "cuda": "onnxruntime-gpu"}
PACKAGES["tensorrt"] = "onnxruntime-gpu tensorrt"
# operators with weights, which hold nearly all of the work
WEIGHTED = ("Conv", "MatMul", "Gemm", "Attention")
# tasks whose measurement is a picture file; and those that work on parts of it as on the whole
PICTURES = ("inpaint", "denoise", "superresolve", "deblur", "paired", "dehaze")
LOCAL = ("inpaint", "denoise")
# a network's own: how far a picture's contrast may be changed to be as noisy as a level it knows,
# and the tiles of its calls, in pixels
CONTRASTS = (1 / 4, 1.5)
TILE, OVERLAP = 512, 64
# how pictures are continued to a network's multiple, in NumPy's words
PADDINGS: dict[str, Any] = {"replicate": "edge", "reflect": "reflect", "zeros": "constant"}


class Refused(Exception):
    """What was given can't be used; the message says why and what to do."""


# -- the bundle ------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of ``bundle.json``, once every file that it lists is as it says."""
    manifest = folder / "bundle.json"
    if not manifest.is_file():
        raise Refused(f"{folder} is no bundle: it has no bundle.json; give --bundle FOLDER")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        found, files = content["format"], dict(content["files"])
        graph, _ = graph_file(content), content["target"]
        hashes = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{manifest} is damaged ({error}); copy the bundle again") from None
    if found not in READABLE:
        raise Refused(f"{manifest} has format {found!r}; this runner reads {READABLE}")
    if graph not in files:
        raise Refused(f"{manifest} is damaged (it doesn't list {graph}); copy the bundle again")
    for name, sha256 in hashes.items():
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise Refused(f"{path} is missing or no plain file; copy the bundle again")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
        if digest.hexdigest() != sha256:
            raise Refused(f"{path} was changed: its SHA-256 is not the one in bundle.json")
    return content


@contextlib.contextmanager
def understood(folder: Path) -> Iterator[None]:
    """In this block what a manifest lacks, or holds of another kind, is told as damage."""
    try:
        yield
    except (LookupError, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise Refused(
            f"{folder / 'bundle.json'} is damaged ({type(error).__name__}: {error}); copy the"
            " bundle again"
        ) from None


def graph_file(manifest: dict[str, Any]) -> str:
    """Name of the ONNX file."""
    return "restorer.onnx" if manifest["graph"] == "restorer" else "network.onnx"


class Graph:
    """The ONNX graph of a bundle, on one provider.

    Args:
        folder: of the bundle.
        manifest: its content.
        provider: a key of ``PROVIDERS``; what can't be set up is refused, nothing falls back.
        threads: of the CPU; None: as many as it has cores.
        sizes: shape of every input, for TensorRT's engine.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        provider: str,
        threads: int | None,
        sizes: dict[str, tuple[int, ...]],
    ):
        target = manifest["target"]
        if provider in ("cuda", "tensorrt") and target in ("cpu", "openvino"):
            raise Refused(
                f"this bundle was exported for CPUs (target {target}); export it with --target"
                f" tensorrt to run it on a GPU, or take --provider cpu"
            )
        name = graph_file(manifest)
        wanted, known = PROVIDERS[provider], onnxruntime.get_available_providers()
        if wanted[0] not in known:
            raise Refused(
                f"this onnxruntime {onnxruntime.__version__} has no {wanted[0]}, only"
                f" {', '.join(known)}: pip install {PACKAGES.get(provider, 'onnxruntime')}, or take"
                " another --provider"
            )
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is said once, here
        if target == "cpu":  # the next level's layout pass costs more around integer kernels
            options.graph_optimization_level = (
                onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            )
        if threads is not None:
            options.intra_op_num_threads = threads
        self._place = tempfile.TemporaryDirectory()
        options.enable_profiling = True  # of the first call, to tell what ran where
        options.profile_file_prefix = str(Path(self._place.name) / "run")
        chosen: list[Any] = [p for p in wanted if p in known]
        if provider == "tensorrt":
            digest = manifest["files"][name]["sha256"]
            chosen[0] = (wanted[0], _engine_options(digest, sizes))
        if provider in ("cuda", "tensorrt") and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        try:
            self._session = onnxruntime.InferenceSession(str(folder / name), options, chosen)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise Refused(f"{folder / name} can't be run by {wanted[0]}: {first}") from None
        if self._session.get_providers()[0] != wanted[0]:
            raise Refused(
                f"{wanted[0]} could not be set up (its libraries or its device are missing); take"
                " another --provider"
            )
        self.placement = ""
        self._wanted = wanted[0]
        self._outputs = self._session.get_outputs()

    def __call__(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """The first output for these inputs."""
        binding = self._session.io_binding()
        held = {name: np.ascontiguousarray(value) for name, value in feed.items()}
        for name, value in held.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output(self._outputs[0].name)
        self._session.run_with_iobinding(binding)
        out = binding.copy_outputs_to_cpu()[0]
        if not self.placement:
            self.placement = self._read_profile()
        if not np.isfinite(out).all():
            raise Refused(
                "the graph answered with NaN or infinite values: check the input; in half precision"
                " numbers beyond 65504 overflow"
            )
        return out

    def _read_profile(self) -> str:
        """What ran where in the first call, in words."""
        profile = Path(self._session.end_profiling())
        try:
            events = json.loads(profile.read_text(encoding="utf-8"))
        except ValueError:
            return "unknown: the folder for temporary files has no room for the profile"
        finally:
            self._place.cleanup()
        nodes = [
            event["args"]
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        ]
        total = Counter(node.get("provider", self._wanted) for node in nodes)
        heavy = Counter(
            (node.get("provider", self._wanted), node["op_name"])
            for node in nodes
            if any(word in node["op_name"] for word in WEIGHTED)
        )
        told = []
        for provider, count in total.most_common():
            ops = [f"{n} {op}" for (where, op), n in heavy.most_common() if where == provider]
            told.append(f"{provider} {count} operators" + (f" ({', '.join(ops)})" * bool(ops)))
        words = "; ".join(told) or self._wanted
        if self._wanted != PROVIDERS["cpu"][0] and any(p == PROVIDERS["cpu"][0] for p, _ in heavy):
            words += f"; warning: operators with weights fell back from {self._wanted} to the CPU"
        return words


def _engine_options(digest: str, sizes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """TensorRT's: an engine for exactly these sizes, kept with its timings in the user's cache."""
    shapes = ",".join(f"{name}:{'x'.join(map(str, size))}" for name, size in sizes.items())
    key = hashlib.sha256(f"{digest} {shapes} {onnxruntime.__version__}".encode()).hexdigest()[:24]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "restobox" / f"engine-{key}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
    options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder)}
    return options | {f"trt_profile_{side}_shapes": shapes for side in ("min", "opt", "max")}


# -- restoring -------------------------------------------------------------------------------------


class Restorer:
    """``Restorer(folder).restore({name: array})`` for a bundle of a whole restoration.

    Args:
        folder: the bundle.
        provider: ``cpu``, ``cuda``, ``tensorrt`` or ``openvino``.
        threads: of the CPU.
    """

    def __init__(self, folder: str | Path, provider: str = "cpu", threads: int | None = None):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if self.manifest["graph"] != "restorer":
            raise Refused(f"{folder} holds a network alone: export the task with --restorer")
        with understood(self.folder):
            run = self.manifest["run"]
            self.task: str = run["task"]
            self.sigma: float | None = run["sigma"]
            self.size: tuple[int, int] = int(run["height"]), int(run["width"])
            self.draws: int = int(run["draws"])
            self.state = tuple(int(n) for n in run["state"] or (3, *self.size))
            plain = {"image": (3, *self.size), "mask": (1, *self.size)}  # format 1
            inputs = dict(run["inputs"] or plain)
            self.shapes = {name: tuple(int(n) for n in shape) for name, shape in inputs.items()}
            sizes = {name: (1, *shape) for name, shape in self.shapes.items()}
            if self.draws:
                sizes["noise"] = (self.draws, 1, *self.state)
        self.graph = Graph(self.folder, self.manifest, provider, threads, sizes)

    @property
    def placement(self) -> str:
        """What ran where, in words."""
        return self.graph.placement

    def restore(
        self, inputs: dict[str, np.ndarray], noise: np.ndarray | None = None, seed: int = 0
    ) -> np.ndarray:
        """One measurement: arrays as the bundle's ``run.inputs`` names and shapes them, without a
        batch axis.

        Args:
            noise: ``(draws, *state)`` of N(0, 1); drawn from ``seed`` by default.

        Returns:
            Pictures ``(3, H, W)`` in [0, 1]; real and imaginary part ``(2, H, W)`` of MRI;
            eigen-images ``(1, H, W)`` in their own units.
        """
        if set(inputs) != set(self.shapes):
            raise Refused(
                f"this bundle takes {', '.join(self.shapes)}; got {', '.join(inputs) or 'nothing'}"
            )
        feed = {}
        for name, shape in self.shapes.items():
            value = np.asarray(inputs[name], np.float32)
            if value.shape != shape or not np.isfinite(value).all():
                raise Refused(f"{name} must be {shape} and finite; got {value.shape}")
            feed[name] = value[None]
        if self.draws:
            drawn = self.noise(self.state, seed) if noise is None else noise
            if drawn.shape != (self.draws, *self.state):
                raise Refused(
                    f"noise must be {(self.draws, *self.state)}; got {tuple(drawn.shape)}"
                )
            feed["noise"] = drawn[:, None].astype(np.float32)
        return self.graph(feed)[0]

    def noise(self, state: tuple[int, ...], seed: int) -> np.ndarray:
        """``(draws, *state)`` of N(0, 1)."""
        return np.random.default_rng(seed).standard_normal((self.draws, *state), np.float32)

    def picture(
        self,
        image: np.ndarray,
        known: np.ndarray | None = None,
        seed: int = 0,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Restore a picture ``(1 or 3, H, W)`` in [0, 1].

        Args:
            known: ``(H, W)``; inpainting: 1 where a pixel is known; pairs: 1 where it is degraded.
            noise: ``(draws, 3, H, W)``, of at least the graph's size; of latents in theirs.
        """
        if ("mask" in self.shapes) != (known is not None):
            raise Refused(
                "this bundle needs --mask FILE (white = missing)"
                if "mask" in self.shapes
                else "this bundle takes no --mask"
            )
        grey, channels = image.shape[0] == 1, self.shapes["image"][0]
        if channels == 1 and not grey:
            raise Refused("this bundle restores grey pictures; this one is in colours")
        x = np.broadcast_to(image, (channels, *image.shape[1:]))
        inputs = {"image": x} | ({} if known is None else {"mask": known[None]})
        if self.task in LOCAL:
            out = self._in_tiles(inputs, seed, noise)
        elif x.shape != self.shapes["image"]:
            (height, width), (h, w) = self.shapes["image"][1:], image.shape[1:]
            raise Refused(
                f"this bundle takes pictures of {width} x {height} pixels; this one has {w} x {h}:"
                f" cut it, or export one with --restorer --task {self.task} --size and its size"
            )
        else:
            out = self.restore(inputs, noise, seed)
        out = out.mean(0, keepdims=True) if grey else out
        if self.task == "inpaint" and known is not None and self.sigma == 0:
            out = np.where(known > 0, image, out)
        return out.clip(0, 1)

    def _in_tiles(
        self, inputs: dict[str, np.ndarray], seed: int, noise: np.ndarray | None
    ) -> np.ndarray:
        """Tiles of the graph's size, blended where they overlap; smaller pictures lie in a corner
        of mirrored ones, or of repeated ones.
        """
        height, width = inputs["image"].shape[1:]
        missing = max(0, self.size[0] - height), max(0, self.size[1] - width)
        corner = [(0, 0), (0, missing[0]), (0, missing[1])]
        if self.task == "inpaint":
            inputs["image"] = inputs["image"] * inputs["mask"]
            padded = {name: np.pad(value, corner, "symmetric") for name, value in inputs.items()}
        else:
            padded = {name: np.pad(value, corner, "edge") for name, value in inputs.items()}
        size = padded["image"].shape[1:]
        fold = self.size[0] // self.state[1]  # of latents the noise is so many times smaller
        canvas = (self.state[0], *(n // fold for n in size))
        drawn = self.noise(canvas, seed) if noise is None else noise

        def restore(at: Any) -> np.ndarray:
            top, left = (part.start // fold for part in at[-2:])
            cut = drawn[..., top : top + self.state[1], left : left + self.state[2]]
            return self.restore({name: value[at] for name, value in padded.items()}, cut)

        whole = blended(restore, size, self.size, min(self.size) // 8)
        return whole[:, :height, :width]


class Network:
    """``Network(folder).picture(image)`` for a bundle of a network: the calls of the graph, and
    between them sums of pictures with the weights that ``bundle.json`` holds under ``runs`` and
    ``levels``.

    Args:
        folder, provider, threads: as for :class:`Restorer`.
    """

    def __init__(self, folder: str | Path, provider: str = "cpu", threads: int | None = None):
        self.folder, self.provider, self.threads = Path(folder), provider, threads
        self.manifest = read_manifest(self.folder)
        with understood(self.folder):
            settings = self.manifest["settings"]
            self.low, self.high = (float(v) for v in settings["value_range"])
            self.fold, self.multiple = int(settings["fold"]), int(settings["multiple"])
            self.padding = settings.get("padding", "replicate")
            self.least = int(settings.get("least", 1))
            self.conditions = int(settings["condition_channels"])
            self.channels = int(self.manifest["channels"]) // self.fold**2 - self.conditions
            self.runs = list(self.manifest.get("runs", []))
            self.levels = list(self.manifest.get("levels", []))
        if not self.runs and not self.levels:
            raise Refused(
                f"{folder} holds a network without the tables of a run: its kind needs more than"
                " pictures, or it was exported by an earlier version; export the whole restoration"
                " with --restorer"
            )
        self.task = self.runs[0]["task"] if self.runs else "denoise"
        self._graph: tuple[tuple[int, ...], Graph] | None = None

    @property
    def placement(self) -> str:
        """What ran where, in words."""
        return "" if self._graph is None else self._graph[1].placement

    def picture(
        self,
        image: np.ndarray,
        known: np.ndarray | None = None,
        seed: int = 0,
        noise: np.ndarray | None = None,
        sigma: float | None = None,
        steps: int | None = None,
    ) -> np.ndarray:
        """Restore a picture ``(1 or 3, H, W)`` in [0, 1].

        Args:
            known: as for :meth:`Restorer.picture`.
            noise: ``(draws, C, H, W)`` of N(0, 1), with the picture's channels, or the network's 3.
            sigma: noise of the picture in units of [0, 1], which is removed.
            steps: of a run that the bundle holds; None: its first.
        """
        grey = image.shape[0] == 1
        planes = image if self.channels == 1 else np.broadcast_to(image, (3, *image.shape[1:]))
        if sigma is not None:
            if known is not None or steps not in (None, 1):
                raise Refused("noise is removed in one call: leave out --mask and --steps")
            level = self._level(sigma * (self.high - self.low))
            whole = self._by_planes(planes, lambda x, k: self._denoised(x, sigma, level))
        else:
            run = self._run(known is not None, steps)
            shape = (run["draws"], *planes.shape)
            fresh = np.random.default_rng(seed).standard_normal(shape, np.float32)
            drawn = fresh if noise is None else np.broadcast_to(noise, shape)
            whole = self._by_planes(
                planes, lambda x, k: self._followed(run, x, known, drawn[:, k : k + len(x)])
            )
        whole = (whole - self.low) / (self.high - self.low)
        whole = whole.mean(0, keepdims=True) if grey else whole
        if sigma is None and known is not None and self.task == "inpaint":
            whole = np.where(known > 0, image, whole)
        return whole.clip(0, 1)

    def _by_planes(self, planes: np.ndarray, restore: Callable[..., np.ndarray]) -> np.ndarray:
        """``restore(planes, number of the first)``, one by one for a network of single planes."""
        step = self.channels
        return np.concatenate(
            [restore(planes[k : k + step], k) for k in range(0, len(planes), step)]
        )

    def _run(self, masked: bool, steps: int | None) -> dict[str, Any]:
        """The table that is followed."""
        found = [run for run in self.runs if steps in (None, run["steps"])]
        needs = self.task == "inpaint" or self.conditions == 4
        if not self.runs:
            raise Refused("this bundle removes noise: give its --sigma, of pixels from 0 to 1")
        if masked != needs:
            or_noise = ", or --sigma to remove noise" if self.levels else ""
            raise Refused(
                f"this bundle needs --mask FILE (white = missing or degraded){or_noise}"
                if needs
                else "this bundle takes no --mask"
            )
        if not found:
            held = ", ".join(str(run["steps"]) for run in self.runs)
            raise Refused(f"this bundle holds runs of {held} steps; got --steps {steps}")
        return found[0]

    def _level(self, sigma: float) -> dict[str, float]:
        """The level that is nearest to noise ``sigma`` of the network's range."""
        if not self.levels:
            raise Refused("this bundle's network removes no noise: leave out --sigma")
        if not sigma > 0:
            raise Refused("--sigma must be above 0")
        level = min(self.levels, key=lambda held: abs(np.log(held["kappa"] / sigma)))
        least, most = CONTRASTS
        if not least <= level["kappa"] / sigma <= most:
            width, all_ = self.high - self.low, [held["kappa"] for held in self.levels]
            raise Refused(
                f"this bundle is for noise of sigma {min(all_) / most / width:.3g} to"
                f" {max(all_) / least / width:.3g}; got {sigma / width:.3g}"
            )
        return level

    def _denoised(self, planes: np.ndarray, sigma: float, level: dict[str, float]) -> np.ndarray:
        middle = (self.low + self.high) / 2
        contrast = level["kappa"] / (sigma * (self.high - self.low))
        y = planes * (self.high - self.low) + self.low
        x = level["a"] * (middle + contrast * (y - middle))
        # of a learned variance the first channels
        out = self._ask(level["shown"] * x, None, level["t"])[: len(x)]
        x0 = level["state"] * x + level["answer"] * out
        return middle + (x0 - middle) / contrast

    def _followed(
        self, run: dict[str, Any], planes: np.ndarray, known: np.ndarray | None, noise: np.ndarray
    ) -> np.ndarray:
        """The table's run, in the network's range."""
        y, condition = planes * (self.high - self.low) + self.low, None
        if run["task"] == "inpaint" and known is not None:
            y = y * known
            if self.conditions:
                y = thin_plate(y, known)
                condition = np.concatenate([y, known[None]])
        else:
            shown = planes if known is None else np.concatenate([planes, known[None]])
            condition = shown * (self.high - self.low) + self.low
        calls = len(run["times"])
        heads = (len(run["end"][0]) - 1 - run["draws"]) // calls
        parts: list[Any] = [y, *[None] * (calls * heads), *noise]
        for k, t in enumerate(run["times"]):
            z = _mixed([kind[k] for kind in run["asked"]], parts, known)
            out = self._ask(z, condition, t)
            parts[1 + k * heads : 1 + (k + 1) * heads] = np.split(out[: heads * len(z)], heads)
        return _mixed(run["end"], parts, known)

    def _ask(self, z: np.ndarray, condition: np.ndarray | None, t: float) -> np.ndarray:
        """The network's answer to ``z (C, H, W)`` at time ``t``: padded, folded, in tiles."""
        height, width = z.shape[1:]
        x = z if condition is None else np.concatenate([z, condition])
        unit, f = self.fold * self.multiple, self.fold
        more = [max(-n % unit, self.least - n) for n in (height, width)]
        corner = [(0, 0), *((0, n) for n in more)]
        x = np.pad(x, corner, PADDINGS[self.padding]).astype(np.float32)
        c, h, w = x.shape
        x = x.reshape(c, h // f, f, w // f, f).transpose(0, 2, 4, 1, 3).reshape(-1, h // f, w // f)
        tile = max(TILE // unit, 1) * unit // f
        size, second = x.shape[1:], self._second(t)

        def ask(at: Any) -> np.ndarray:
            part = x[at][None]
            return self._opened(part.shape)({"x": part} | second)[0]

        out = blended(ask, size, (tile, tile), min(OVERLAP, TILE // 8) // f)
        out = out.reshape(-1, f, f, *size).transpose(0, 3, 1, 4, 2).reshape(-1, h, w)
        return out[:, :height, :width]

    def _second(self, t: float) -> dict[str, np.ndarray]:
        times = self.manifest["timesteps"]
        if not times:
            return {"t": np.array([t], np.float32)}
        return {"index": np.array([int(np.argmin(np.abs(np.array(times) - t)))], np.int64)}

    def _opened(self, shape: tuple[int, ...]) -> Graph:
        """The graph; a TensorRT engine is for one size, other providers take any."""
        if self._graph is None or (self.provider == "tensorrt" and self._graph[0] != shape):
            second = "index" if self.manifest["timesteps"] else "t"
            sizes = {"x": shape, second: (1,)}
            graph = Graph(self.folder, self.manifest, self.provider, self.threads, sizes)
            self._graph = shape, graph
        return self._graph[1]


def _mixed(rows: list[list[float]], parts: list[Any], known: np.ndarray | None) -> np.ndarray:
    """Weighted sums of pictures, of known pixels by the second row where there is one."""
    sums = []
    for row in rows:
        total = np.zeros(parts[0].shape)  # in double precision: large weights cancel
        for weight, part in zip(row, parts, strict=True):
            if weight:
                total += weight * part
        sums.append(total)
    found = sums[0] if known is None or len(sums) == 1 else np.where(known > 0, sums[1], sums[0])
    return found.astype(np.float32)


def open_bundle(
    folder: str | Path, provider: str = "cpu", threads: int | None = None
) -> Restorer | Network:
    """What a folder holds: a whole restoration or a network with its tables."""
    whole = read_manifest(Path(folder))["graph"] == "restorer"
    return (Restorer if whole else Network)(folder, provider, threads)


# -- the lift of inpainting ------------------------------------------------------------------------


def thin_plate(image: np.ndarray, known: np.ndarray, steps: int = 5) -> np.ndarray:
    """``image (C, H, W)`` with its missing pixels filled, as ``restoration.photo.lift`` does it: a
    pyramid of means, bent towards the smoothest surface.
    """
    mask = np.asarray(known, np.float32)[None]
    x, hole = _fill(image.astype(np.float32) * mask, mask), 1 - mask
    residual = -hole * _laplacian(_laplacian(x))
    direction, power = residual, float((residual * residual).mean())
    for _ in range(steps):
        bent = hole * _laplacian(_laplacian(direction))
        step = power / max(float((direction * bent).mean()), 1e-7)
        x, residual = x + step * direction, residual - step * bent
        before, power = power, float((residual * residual).mean())
        direction = residual + power / max(before, 1e-7) * direction
    return x


def _laplacian(x: np.ndarray) -> np.ndarray:
    p = np.pad(x, [(0, 0), (1, 1), (1, 1)], "edge")
    sides = p[:, :-2, 1:-1] + p[:, 2:, 1:-1] + p[:, 1:-1, :-2] + p[:, 1:-1, 2:]
    return sides - np.float32(4) * x


def _fill(image: np.ndarray, mask: np.ndarray, sweeps: int = 2) -> np.ndarray:
    """Push and pull; ``mask (1, H, W)`` may be fractional, the weight of a coarse pixel."""
    height, width = image.shape[1:]
    if min(height, width) <= 2:
        total = np.maximum(mask.sum((1, 2), keepdims=True), np.float32(1e-6))
        coarse = (image * mask).sum((1, 2), keepdims=True) / total
    else:
        weight = _halved(mask)
        mean = _halved(image * mask) / np.maximum(weight, np.float32(1e-6))
        coarse = _doubled(_fill(mean, np.minimum(4 * weight, 1), sweeps))[:, :height, :width]
    filled = mask * image + (1 - mask) * coarse
    for _ in range(sweeps):
        filled = mask * image + (1 - mask) * (_smooth(filled) if min(height, width) > 1 else filled)
    return filled


def _halved(x: np.ndarray) -> np.ndarray:
    """Means of two by two pixels; a missing last row or column counts as zeros."""
    c, h, w = x.shape
    x = np.pad(x, [(0, 0), (0, h % 2), (0, w % 2)])
    return x.reshape(c, x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean((2, 4))


def _doubled(x: np.ndarray) -> np.ndarray:
    """Bilinear interpolation to twice the size."""
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        p = np.moveaxis(np.pad(x, pad, "edge"), axis, 0)
        low = np.float32(0.75) * p[1:-1] + np.float32(0.25) * p[:-2]
        high = np.float32(0.75) * p[1:-1] + np.float32(0.25) * p[2:]
        both = np.stack([low, high], 1).reshape(-1, *p.shape[1:])
        x = np.moveaxis(both, 0, axis)
    return x


def _smooth(x: np.ndarray) -> np.ndarray:
    """Means of three by three pixels; those beyond the edge repeat it."""
    p = np.pad(x, [(0, 0), (1, 1), (1, 1)], "edge")
    rows = p[:, :-2] + p[:, 1:-1] + p[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / np.float32(9)


# -- tiles -----------------------------------------------------------------------------------------


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of the fewest tiles that cover ``length`` with at least ``overlap`` between two."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def tile_weight(start: int, size: int, length: int, overlap: int) -> np.ndarray:
    """``(size,)``: a ramp over ``overlap`` where a neighbour exists, else 1."""
    ramp = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / max(overlap, 1)
    weight = np.ones(size, np.float32)
    if start > 0:
        weight = np.minimum(weight, ramp)
    if start + size < length:
        weight = np.minimum(weight, ramp[::-1])
    return weight


def blended(
    restore: Callable[[Any], np.ndarray], size: tuple[int, ...], tile: tuple[int, int], overlap: int
) -> np.ndarray:
    """A picture ``(C, *size)`` of tiles, with a ramp where two overlap.

    Args:
        restore: from the index of a tile, ``[..., rows, columns]``, to its ``(C, h, w)``.
        size: height and width of the whole.
        tile: of a tile, which ends where the whole does.
        overlap: of two tiles, at least; in pixels as the others are.
    """
    height, width = min(tile[0], size[0]), min(tile[1], size[1])
    total: Any = None
    weights = np.zeros(size, np.float32)
    for top in tile_starts(size[0], height, overlap):
        for left in tile_starts(size[1], width, overlap):
            at = (..., slice(top, top + height), slice(left, left + width))
            out = restore(at)
            weight = np.outer(
                tile_weight(top, height, size[0], overlap),
                tile_weight(left, width, size[1], overlap),
            )
            total = np.zeros((len(out), *size), np.float32) if total is None else total
            total[at] += weight * out
            weights[at] += weight
    return total / weights


# -- files -----------------------------------------------------------------------------------------


def read_picture(path: Path) -> np.ndarray:
    """``(1 or 3, H, W)`` in [0, 1], turned as its EXIF data say."""
    try:
        with Image.open(path) as file:
            if file.size[0] * file.size[1] > MOST_PIXELS:
                raise Refused(f"{path} has more than {MOST_PIXELS} pixels; cut it")
            file.filename = ""  # a TIFF that Pillow maps into memory is not turned right
            picture = ImageOps.exif_transpose(file)
            mode = picture.mode
            if "A" in mode or "transparency" in picture.info:
                raise Refused(f"{path} has transparency, which a restorer doesn't take: flatten it")
            if mode.startswith("I;16"):
                return np.asarray(picture, np.float32)[None] / 65535
            if mode not in ("1", "L", "P", "RGB", "YCbCr", "CMYK", "LAB", "HSV"):
                raise Refused(f"{path} has pixels of the mode {mode}; save it in 8 or 16 bits")
            pixels = np.asarray(picture.convert("L" if mode in ("1", "L") else "RGB"), np.float32)
    except FileNotFoundError:
        raise Refused(f"{path} doesn't exist") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"{path} is no picture that Pillow reads: {error}") from None
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)) / 255


def write_picture(path: Path, picture: np.ndarray) -> None:
    """``(1 or 3, H, W)`` in [0, 1], in 8 bits; as :func:`write_whole`."""
    codes = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    codes = codes[0] if len(codes) == 1 else codes.transpose(1, 2, 0)
    made, kind = Image.fromarray(np.ascontiguousarray(codes)), _picture_format(path)

    def write(file: Any) -> None:
        encoded = io.BytesIO()  # encoders that write to a file themselves don't see a full disk
        made.save(encoded, format=kind)
        file.write(encoded.getvalue())

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Let ``write`` fill a binary file beside ``path`` and rename it: there is the whole of it or
    what was there before. A link stays, and what it points to is replaced.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    except (OSError, ValueError) as error:  # Pillow's, of sizes that a format can't hold, too
        raise Refused(f"{path} can't be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def _picture_format(path: Path) -> str:
    found = Image.registered_extensions().get(path.suffix.lower())
    if found not in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        raise Refused(f"{path}: results are written as .png, .jpg, .tif, .webp, .bmp or .npz")
    return found


def read_arrays(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file: complex ``(coils, H, W)`` become real ``(2 coils, H, W)``,
    real parts first; a number becomes an array of the input's shape.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise Refused(f"{path} doesn't exist") from None
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{path} is no .npz file of arrays: {error}") from None
    for name, value in found.items():
        if np.iscomplexobj(value):
            found[name] = np.concatenate([value.real, value.imag])
        shape = shapes.get(name, value.shape)
        if value.size == 1 and shape == (1, 1, 1):
            found[name] = value.reshape(shape)
        elif shape == (1, *value.shape):
            found[name] = value[None]
    return found


# -- the command -----------------------------------------------------------------------------------


def _picture_of(restorer: Restorer | Network, arguments: argparse.Namespace) -> np.ndarray:
    """A picture file, restored."""
    if isinstance(restorer, Restorer) and restorer.task not in PICTURES:
        raise Refused(
            f"the task {restorer.task} takes an .npz file with the arrays"
            f" {', '.join(f'{name} {shape}' for name, shape in restorer.shapes.items())}"
        )
    image, known = read_picture(arguments.input), None
    if arguments.mask is not None:
        marked = read_picture(arguments.mask).mean(0) >= 0.5
        if marked.shape != image.shape[1:]:
            raise Refused(
                f"the mask has {marked.shape[1]} x {marked.shape[0]} pixels, the picture"
                f" {image.shape[2]} x {image.shape[1]}"
            )
        known = (~marked if restorer.task == "inpaint" else marked).astype(np.float32)
        if not known.any() and restorer.task == "inpaint":
            raise Refused("the mask is white all over: nothing is known to start from")
    seed, sigma, steps = arguments.seed, arguments.sigma, arguments.steps
    if isinstance(restorer, Network):
        return restorer.picture(image, known, seed, sigma=sigma, steps=steps)
    if sigma is not None or steps is not None:
        raise Refused(
            "noise and steps are fixed in this bundle: leave out --sigma and --steps, or export"
            " another"
        )
    return restorer.picture(image, known, seed)


def _denoises(restorer: Restorer | Network, arguments: argparse.Namespace) -> bool:
    return isinstance(restorer, Network) and arguments.sigma is not None


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command does; the figures that it prints."""
    source, out = arguments.input, arguments.out
    arrays = out.suffix.lower() == ".npz"
    if not arrays:
        _picture_format(out)
    if out.resolve() in {p.resolve() for p in (source, arguments.mask) if p is not None}:
        raise Refused(f"{out} would replace what is restored: give another name")
    if not out.parent.is_dir():
        raise Refused(f"{out.parent} is no folder")
    if out.exists() and not out.is_file():
        raise Refused(f"{out} exists and is no file: give another name")
    began = time.perf_counter()
    restorer = open_bundle(arguments.bundle, arguments.provider, arguments.threads)
    opened = time.perf_counter()
    if not arrays and restorer.task not in (*PICTURES, "mri"):
        raise Refused(f"{out}: results of {restorer.task} are arrays; write .npz")
    if source.suffix.lower() != ".npz":
        restored = _picture_of(restorer, arguments)
    elif isinstance(restorer, Network):
        raise Refused("this bundle holds a network, which is run on pictures; got an .npz file")
    elif arguments.mask is not None or arguments.steps is not None:
        raise Refused("an .npz file holds its mask, and this bundle its steps: leave both out")
    else:
        inputs = read_arrays(source, restorer.shapes)
        if arguments.sigma is not None:
            inputs["sigma"] = np.full((1, 1, 1), arguments.sigma, np.float32)
        restored = restorer.restore(inputs, inputs.pop("noise", None), arguments.seed)
    done = time.perf_counter()
    if arrays:
        write_whole(out, lambda file: np.savez(file, restored=restored))
    elif restorer.task == "mri":
        magnitude = np.hypot(*restored)
        write_picture(out, (magnitude / max(float(magnitude.max()), 1e-30))[None])
    else:
        write_picture(out, restored)
    return {
        "task": "denoise" if _denoises(restorer, arguments) else restorer.task,
        "out": str(out),
        "runs on": restorer.placement,
        "seconds to load": round(opened - began, 3),
        "seconds": round(done - opened, 3),
    }


def main(argv: list[str] | None = None) -> int:
    """The command; 0, or 2 where something is refused."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("input", type=Path, help="a picture, or an .npz file of arrays")
    parser.add_argument("-o", "--out", type=Path, required=True, help="picture or .npz file")
    parser.add_argument("--mask", type=Path, help="picture; white = missing (or degraded)")
    parser.add_argument("--bundle", type=Path, default=here, help="folder [default: this file's]")
    parser.add_argument("--provider", choices=list(PROVIDERS), default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU [default: its cores]")
    parser.add_argument("--sigma", type=float, help="noise of the data; a network removes it")
    parser.add_argument("--steps", type=int, help="of a network's run [default: its first]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        for name, least in (("threads", 1), ("seed", 0)):
            value = getattr(arguments, name)
            if value is not None and value < least:
                raise Refused(f"--{name} must be at least {least}; got {value}")
        for name, value in run(arguments).items():
            print(f"{name}: {value}")
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
