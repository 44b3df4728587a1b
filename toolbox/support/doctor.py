"""What ONNX Runtime wants on this machine against what is found, with the line that mends it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import re
import struct
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

PACKAGES = (
    *("torch", "torchvision", "diffusers", "brevitas", "onnx", "onnx-ir", "onnxscript"),
    *("onnxruntime", "onnxruntime-gpu", "tensorrt", "openvino"),
)
LIBRARY = re.compile(
    r"lib(?:nvinfer|nvonnxparser|cudart|cublas|cudnn|cufft|curand|nvrtc)\w*\.so\.\d+"
)
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True)
class Library:
    """A shared library that a provider is linked with: where it was found (None: nowhere), and what
    installs it.
    """

    provider: str
    name: str
    found: str | None
    mend: str


@dataclass(frozen=True)
class Report:
    """Versions of packages, providers of the installed ONNX Runtime, their libraries, and whether
    each device can be used.

    ``usable`` holds ``cpu``, ``cuda``, ``tensorrt`` and ``openvino``; ``advice`` one line for each
    thing that is wrong.
    """

    packages: dict[str, str]
    gpu: str | None
    providers: tuple[str, ...]
    libraries: tuple[Library, ...]
    usable: dict[str, bool]
    advice: tuple[str, ...]

    def to_dict(self) -> dict:
        return asdict(self)


def examine() -> Report:
    """Look at the installed packages, the driver and the libraries; nothing is changed."""
    import onnxruntime

    packages = {name: found for name in PACKAGES if (found := _version(name)) is not None}
    packages |= {
        d.name: d.version
        for d in distributions()
        if d.name and re.fullmatch(r"tensorrt[-_]cu1\d", d.name)
    }
    providers = tuple(onnxruntime.get_available_providers())
    gpu = _gpu()
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # it prints what it misses, which the table says too
            onnxruntime.preload_dlls()
    folder = Path(onnxruntime.__file__).parent / "capi"
    libraries = tuple(
        Library(provider, name, _locate(name), mend(name, libraries_of(folder, "cuda")))
        for provider in PROVIDERS
        if PROVIDERS[provider] in providers
        for name in libraries_of(folder, provider)
    )
    usable = {"cpu": "CPUExecutionProvider" in providers}
    for provider, title in PROVIDERS.items():
        ours = [entry for entry in libraries if entry.provider == provider]
        usable[provider] = (
            title in providers and gpu is not None and all(entry.found for entry in ours)
        )
    usable["tensorrt"] &= usable["cuda"]
    usable["openvino"] = _openvino()
    return Report(
        packages,
        gpu,
        providers,
        libraries,
        usable,
        tuple(_advice(packages, gpu, providers, libraries)),
    )


def libraries_of(folder: Path, provider: str) -> list[str]:
    """Names of the NVIDIA libraries that a provider's shared object is linked with, such as
    ``libnvinfer.so.10`` (Linux).
    """
    path = folder / f"libonnxruntime_providers_{provider}.so"
    return (
        sorted(name for name in needed(path) if LIBRARY.fullmatch(name)) if path.is_file() else []
    )


def needed(path: Path) -> list[str]:
    """The DT_NEEDED entries of a 64-bit little-endian ELF file.

    Raises:
        ValueError: the file is of another kind.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is no 64-bit little-endian ELF file")
        table, size, count = (
            *struct.unpack_from("<Q", data, 0x28),
            *struct.unpack_from("<HH", data, 0x3A),
        )
        # type, offset, length, number of the section with the names
        sections = [struct.unpack_from("<4xI16xQQI", data, table + k * size) for k in range(count)]
        for kind, offset, length, link in sections:
            if kind == 6:  # SHT_DYNAMIC
                names = sections[link][1]
                entries = [
                    struct.unpack_from("<QQ", data, offset + k) for k in range(0, length, 16)
                ]
                spots = [names + value for tag, value in entries if tag == 1]  # DT_NEEDED
                return [data[spot : data.find(b"\0", spot)].decode() for spot in spots]
    return []


def mend(library: str, beside: list[str]) -> str:
    """The pip command that installs a library of this very major version; ``beside`` tells which
    CUDA it has to go with.
    """
    cuda = next((name.rpartition(".")[2] for name in beside if name.startswith("libcudart")), "13")
    major = int(library.rpartition(".")[2])
    if library.startswith(("libnvinfer", "libnvonnxparser")):
        return f'pip install "tensorrt-cu{cuda}>={major},<{major + 1}"'
    return 'pip install "onnxruntime-gpu[cuda,cudnn]"'


def _advice(
    packages: dict[str, str],
    gpu: str | None,
    providers: tuple[str, ...],
    libraries: tuple[Library, ...],
):
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        yield (
            "onnxruntime and onnxruntime-gpu overwrite each other: pip uninstall onnxruntime"
            " onnxruntime-gpu; pip install onnxruntime-gpu"
        )
    if "openvino" not in packages:
        yield (
            "OpenVINO, the faster runtime of 8-bit bundles on x86-64 (--device openvino), is"
            " missing: pip install 'restobox[openvino]'"
        )
    if gpu is None:
        yield (
            "no NVIDIA driver answers: restorations run on the CPU (libcuda.so.1 comes with the"
            " driver, not from pip)"
        )
        return
    if PROVIDERS["cuda"] not in providers:
        yield 'this ONNX Runtime has no GPU providers: pip install "onnxruntime-gpu[cuda,cudnn]"'
    for line in dict.fromkeys(entry.mend for entry in libraries if entry.found is None):
        yield (
            f"{', '.join(e.name for e in libraries if e.found is None and e.mend == line)} not"
            f" found: {line}"
        )
    names = [entry.name for entry in libraries]
    for wanted in (name for name in names if name.startswith("libnvinfer.")):
        major = wanted.rpartition(".")[2]
        for package, found in packages.items():
            if package.startswith("tensorrt") and found.split(".")[0] != major:
                yield (
                    f"{package} {found} is installed but this ONNX Runtime loads {wanted}:"
                    f" {mend(wanted, names)}"
                )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> str | None:
    """Name of the first GPU, asked from the driver itself."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, 256, device)
    ):
        return None
    return name.value.decode()


def _openvino() -> bool:
    """Whether OpenVINO is installed and finds the processor."""
    from export.runtime.openvino import openvino_core

    try:
        return "CPU" in openvino_core().available_devices
    except (ImportError, RuntimeError):
        return False


def _locate(name: str) -> str | None:
    """Where the loader finds a library, or where pip put it; None if it can't be loaded."""
    try:
        ctypes.CDLL(name)
        return "loader path"
    except OSError:
        pass
    import onnxruntime

    for site in {Path(onnxruntime.__file__).parents[1]}:
        for path in (*site.glob(f"nvidia/*/lib/{name}"), *site.glob(f"tensorrt*libs/{name}")):
            try:
                ctypes.CDLL(str(path))
                return str(path)
            except OSError:
                continue
    return None
