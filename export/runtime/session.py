"""A network's bundle on ONNX Runtime or OpenVINO, as a :class:`solvers.denoiser.Denoiser`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.bundle import Bundle, read_bundle
from export.runtime.auto import choose_device
from export.runtime.openvino import OpenVinoGraph
from export.runtime.providers import (
    PROVIDERS,
    Placement,
    check_found,
    check_state,
    count_kernels,
    integer_convs,
    open_session,
    runtime_of,
    second_input,
    wanted_providers,
)
from export.runtime.restorer import Restorer
from export.runtime.shallow import SplitGraph
from solvers.denoiser import Denoiser

__all__ = ["OnnxNetwork", "OpenVinoNetwork", "Restorer", "Session"]


class Session(Denoiser):
    """``Session(folder)(x, t) -> Prediction``: restorations run on it as on any denoiser, from
    several threads at once too.

    Args:
        folder: a bundle of a network's graph; it is verified first
            (:func:`export.bundle.read_bundle`).
        device: ``cpu``; ``openvino``: the CPU by OpenVINO instead of ONNX Runtime (``pip install
            'restobox[openvino]'``), ``openvino-bf16``: the same with float graphs in bfloat16 too;
            ``cuda`` (TensorRT for int8 bundles, CUDA otherwise and for what TensorRT doesn't take);
            or ``auto``, the fastest of them here (:mod:`export.runtime.auto`).
        threads: CPU threads; None leaves the choice to the runtime.
        require: ``cpu``, ``cuda``, ``tensorrt`` or ``openvino``: the provider that must have been
            set up.
        cache: folder for TensorRT's engines; None: a folder of the user's cache that nobody else
            can write.

    Attributes:
        runs_on: the device, found where ``auto`` was asked for.

    Raises:
        ValueError: unknown device or provider, a damaged bundle, a restorer's bundle, or a CPU
            bundle on a GPU.
        RuntimeError: the provider that the device or ``require`` stands for could not be set up.
        ImportError: device ``openvino`` without that package.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        threads: int | None = None,
        require: str | None = None,
        cache=None,
    ):
        self.folder, self.bundle = Path(folder), read_bundle(folder)
        if self.bundle.graph == "restorer":
            raise ValueError(
                f"{folder} holds a whole restoration; run it with export.runtime.session.Restorer"
            )
        if device == "auto":
            opened = partial(_one_call, self.folder, self.bundle, threads)
            device = choose_device(self.bundle, opened, threads, cache)
        self.runs_on = device
        network = open_network(self.folder, self.bundle, device, threads, require, cache)
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
            unrolled_steps=s.unrolled_steps,
            shown=s.shown,
            scaled=s.scaled,
            padding=s.padding,
            least=s.least,
        )

    @property
    def image_channels(self) -> int:
        return self.bundle.channels // self.fold**2 - self.condition_channels

    def placement(self, height: int | None = None, width: int | None = None) -> list[Placement]:
        """Which operators ran where, counted in one profiled call of the network (default: a small
        input).

        OpenVINO tells it of the compiled network, without a call.
        """
        side = 8 * self.multiple
        return self.network.placement(height or side, width or side)

    def integer_convs(self) -> int:
        """Number of convolutions that really run on integers (CPU kernels)."""
        return integer_convs(self.placement(), self.network.model)


def _one_call(
    folder: Path, bundle: Bundle, threads: int | None, device: str
) -> Callable[[], Tensor]:
    """A call on a small input, to be timed."""
    network, unit = open_network(folder, bundle, device, threads), bundle.settings.multiple
    x = torch.zeros(1, bundle.channels, *[-(-64 // unit) * unit] * 2)
    t = torch.tensor([bundle.timesteps[0] if bundle.timesteps else 1.0])
    return lambda: network(x, t)


def open_network(
    folder: Path,
    bundle: Bundle,
    device: str,
    threads: int | None,
    require: str | None = None,
    cache=None,
):
    """The network of a bundle that has been read, as for :class:`Session`: ``network(x, t)``."""
    wanted = wanted_providers(folder, bundle, device, require, threads, cache)
    path = folder / bundle.model_file
    network = (
        OpenVinoNetwork(path, bundle, threads, "bf16" if device.endswith("-bf16") else None)
        if runtime_of(device) == "openvino"
        else OnnxNetwork(path, bundle, wanted, threads)
    )
    check_found(network.providers, wanted, require or runtime_of(device))
    return network


class OnnxNetwork:
    """``network(x (B, C, h, w), t (B,)) -> (B, C_out, h, w)`` by an ONNX Runtime session.

    Tensors are bound where they lie: on a GPU nothing is copied to the host. The binding and the
    output belong to one call, so that threads can share the network.
    """

    def __init__(
        self,
        path: str | Path | bytes,
        bundle: Bundle | None,
        providers: list,
        threads: int | None,
        timesteps=(),
    ):
        self.timesteps = tuple(bundle.timesteps) if bundle is not None else tuple(timesteps)
        self.integer = bundle is not None and bundle.target == "cpu"
        self.model, self.requested, self.threads = path, providers, threads
        self.session = open_session(path, providers, threads=threads, integer=self.integer)
        self.providers: list[str] = self.session.get_providers()
        self.cuda = self.providers[0] != PROVIDERS["cpu"]
        self.out_channels = self.session.get_outputs()[0].shape[1]
        self.channels = self.session.get_inputs()[0].shape[1]
        self.multiple = 1 if bundle is None else bundle.settings.multiple

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        check_state(x, self.channels, self.multiple)
        place = torch.device("cuda" if self.cuda else "cpu")
        feed, second = (
            x.detach().to(place, torch.float32).contiguous(),
            second_input(self.timesteps, t),
        )
        out = torch.empty((feed.shape[0], self.out_channels, *feed.shape[2:]), device=place)
        # holds addresses only: feed, second and out live until the call is over
        binding = self.session.io_binding()
        binding.bind_input("x", place.type, 0, np.float32, tuple(feed.shape), feed.data_ptr())
        for name, value in second.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("output", place.type, 0, np.float32, tuple(out.shape), out.data_ptr())
        if self.cuda:
            torch.cuda.current_stream().synchronize()  # the session has a stream of its own
        self.session.run_with_iobinding(binding)
        return out.to(x.device)

    def split(self) -> SplitGraph:
        """Full and shallow passes, for the cache of features.

        Raises:
            ValueError: a graph that can't be cut, or TensorRT, whose engines are of whole graphs.
        """
        if self.providers[0] == PROVIDERS["tensorrt"]:
            raise ValueError("TensorRT takes no cache of features: leave it out")
        opened = partial(
            open_session, providers=self.requested, threads=self.threads, integer=self.integer
        )
        return SplitGraph(self.model, opened, self.timesteps, self.out_channels)

    def placement(self, height: int, width: int) -> list[Placement]:
        t = torch.tensor([self.timesteps[0] if self.timesteps else 0.0])
        feed = {"x": np.zeros((1, self.channels, height, width), np.float32)} | second_input(
            self.timesteps, t
        )
        return count_kernels(
            self.model, self.requested, feed, threads=self.threads, integer=self.integer
        )


class OpenVinoNetwork:
    """The same by OpenVINO, on the CPU; a new size of ``x`` costs a compilation
    (:mod:`export.runtime.openvino`).
    """

    def __init__(
        self, path: str | Path, bundle: Bundle, threads: int | None, precision: str | None = None
    ):
        self.timesteps, self.channels = tuple(bundle.timesteps), bundle.channels
        self.multiple, self.model = bundle.settings.multiple, path
        self.open = partial(
            OpenVinoGraph, target=bundle.target, threads=threads, precision=precision
        )
        self.graph = self.open(path)
        self.providers, self.out_channels = (
            self.graph.get_providers(),
            self.graph.outputs()["output"][1],
        )

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        check_state(x, self.channels, self.multiple)
        feed = {"x": x.detach().to("cpu", torch.float32).contiguous().numpy()} | second_input(
            self.timesteps, t
        )
        return torch.from_numpy(self.graph.run(["output"], feed)[0]).to(x.device)

    def split(self) -> SplitGraph:
        """Full and shallow passes, for the cache of features.

        Raises:
            ValueError: a graph that can't be cut.
        """
        return SplitGraph(self.model, self.open, self.timesteps, self.out_channels)

    def placement(self, height: int, width: int) -> list[Placement]:
        t = torch.tensor([self.timesteps[0] if self.timesteps else 0.0])
        feed = {"x": np.zeros((1, self.channels, height, width), np.float32)} | second_input(
            self.timesteps, t
        )
        return self.graph.placement(feed)
