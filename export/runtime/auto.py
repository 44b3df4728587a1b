"""Which runtime is the fastest for a bundle on this machine: ``device="auto"``.

What the machine lacks is left out (CUDA, OpenVINO, bfloat16), the rest is tried for two seconds in
all, and the answer is kept per graph, machine and version in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from export.bundle import Bundle
from export.runtime.openvino import multiplies_bfloat16
from export.runtime.providers import user_cache
from solvers.files import replace_file
from solvers.inputs.errors import FullDiskError

SECONDS = 2.0
FILE = "devices.json"
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino")


def choose_device(
    bundle: Bundle,
    try_out: Callable[[str], Callable[[], object]],
    threads: int | None = None,
    cache: str | Path | None = None,
) -> str:
    """The fastest device for a bundle.

    Args:
        bundle: what shall run.
        try_out: from a device to a function that makes one call of the graph there.
        threads: of the processor, as the bundle will run.
        cache: folder of the answers; None: ``$XDG_CACHE_HOME/restobox`` or ``~/.cache/restobox``.

    Raises:
        RuntimeError: no device runs the bundle; the message holds each one's reason.
    """
    candidates = possible(bundle)
    if len(candidates) == 1:
        return candidates[0]
    place = user_cache(cache) / FILE
    key = _key(bundle, candidates, threads)
    known = _read(place)
    if known.get(key) in candidates:
        return known[key]
    calls, reasons = {}, []
    for device in candidates:
        try:
            calls[device] = try_out(device)
            calls[device]()  # the first call warms up
        except Exception as error:  # whatever a runtime raises: the others are tried
            calls.pop(device, None)
            reasons.append(f"{device}: {error}")
    if not calls:
        raise RuntimeError(f"no device runs this bundle; {'; '.join(reasons)}")
    found = _fastest(calls, time.process_time if threads == 1 else time.perf_counter)
    _write(place, known | {key: found})
    return found


def possible(bundle: Bundle) -> list[str]:
    """Devices that this machine and its packages have for a bundle."""
    import torch

    if torch.cuda.is_available() and bundle.target not in ("cpu", "openvino"):
        return ["cuda"]
    found = ["cpu"]
    if find_spec("openvino") is not None:
        found.append("openvino")
        # without codes, whose error is larger, bfloat16 is a choice of its own; CPU graphs, which
        # round no outputs on OpenVINO, err less with it than on ONNX Runtime
        halves = ("float", "cuda") if bundle.graph == "restorer" else ("float", "cuda", "cpu")
        if bundle.target in halves and has_bfloat16():
            found.append("openvino-bf16")
    return found


def has_bfloat16() -> bool:
    """Whether OpenVINO is installed and this processor multiplies bfloat16."""
    return find_spec("openvino") is not None and multiplies_bfloat16()


def _fastest(calls: Mapping[str, Callable[[], object]], clock: Callable[[], float]) -> str:
    """The device with the fastest call of some seconds, in which all take turns.

    A single thread is timed by the processor's clock, which other work doesn't lengthen.
    """
    best, end = dict.fromkeys(calls, float("inf")), time.perf_counter() + SECONDS
    while True:
        for device, call in calls.items():
            began = clock()
            call()
            best[device] = min(best[device], clock() - began)
        if time.perf_counter() > end:
            return min(best, key=lambda device: best[device])


def _key(bundle: Bundle, candidates: list[str], threads: int | None) -> str:
    graph = bundle.files[bundle.model_file].sha256
    versions = []
    for name in _RUNTIMES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    what = (graph, _processor(), os.cpu_count(), threads, *candidates, *versions)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:24]


def _processor() -> str:
    """Its model and what it can (Linux), or what the platform calls it."""
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return f"{platform.machine()} {platform.processor()}"
    lines = information.read_text(errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return " ".join(dict.fromkeys(told))


def _read(place: Path) -> dict[str, str]:
    """What is known; nothing where the file is missing or damaged."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(place: Path, known: dict[str, str]) -> None:
    text = json.dumps(known, indent=1)
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(place, lambda part: part.write_text(text, encoding="utf-8"))
    except (OSError, FullDiskError):
        return  # a cache that can't be written costs the next start two seconds
