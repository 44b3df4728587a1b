"""A restorer's bundle on ONNX Runtime or OpenVINO, as a call on measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.bundle import read_bundle
from export.runtime.auto import choose_device
from export.runtime.openvino import OpenVinoGraph
from export.runtime.providers import (
    Placement,
    check_found,
    count_kernels,
    integer_convs,
    open_session,
    runtime_of,
    wanted_providers,
)
from restoration.photo.inpainting import check_inpainting, known_of
from restoration.task import ALIKE, Restored, Watch, check_samples
from restoration.wrappers.tiling import tile_starts, tile_weight
from solvers.solver import randn


def mirrored(length: int, least: int) -> Tensor:
    """Positions along an axis of ``length`` that is continued to ``least`` by its mirror images."""
    k = torch.arange(max(length, least)) % (2 * length)
    return torch.minimum(k, 2 * length - 1 - k)


def _window(top: int, left: int, size: Sequence[int]) -> tuple[Any, slice, slice]:
    return (..., slice(top, top + size[0]), slice(left, left + size[1]))


class Restorer:
    """``Restorer(folder)(image, mask) -> Restored``: a whole restoration per call of the runtime,
    in tiles where the image is larger.

    Other tasks than inpainting go through :meth:`restore`.

    Args:
        folder, device, threads, require, cache: as for :class:`Session`, with a restorer's bundle.

    Attributes:
        device: where it runs, found where ``auto`` was asked for.

    Raises:
        ValueError, RuntimeError, ImportError: as for :class:`Session`.
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
        if self.bundle.graph != "restorer" or self.bundle.run is None:
            raise ValueError(
                f"{folder} holds a network only; run it with export.runtime.session.Session"
            )
        self.run, self.model = self.bundle.run, self.folder / self.bundle.model_file
        self.threads = threads
        if device == "auto":
            device = choose_device(self.bundle, self._one_call, threads, cache)
        self.device = self.runs_on = device
        self.requested = wanted_providers(folder, self.bundle, device, require, threads, cache)
        if runtime_of(device) == "openvino":
            precision = "bf16" if device.endswith("-bf16") else None
            self.session = OpenVinoGraph(self.model, self.bundle.target, threads, precision)
        else:
            self.session = open_session(
                self.model, self.requested, threads=threads, integer=self.bundle.target == "cpu"
            )
        self.providers: list[str] = self.session.get_providers()
        check_found(self.providers, self.requested, require or runtime_of(device))

    def __call__(
        self,
        image: Tensor,
        mask: Tensor,
        *,
        num_samples: int = 1,
        seed: int = 0,
        overlap: int | None = None,
        callback: Watch | None = None,
    ) -> Restored:
        """Restore one image; sample k uses ``seed + k``, with the same noise as
        :class:`restoration.photo.inpainting.InpaintingTask`.

        Args:
            image: ``(C, H, W)`` in [0, 1], C = 1 or 3; missing pixels may hold anything.
            mask: ``(H, W)``; 1 = known, 0 = missing.
            overlap: pixels shared by neighbouring tiles, less than half a side of the graph's size;
                None: an eighth of the shorter side.
            callback: called after each tile with the sample's number and None.

        Raises:
            ValueError: shapes or values that don't fit.
        """
        if self.run.task != "inpaint":
            raise ValueError(
                f"this bundle's task is {self.run.task}, not inpaint: call restore({{...}}) with"
                f" {', '.join(self.run.inputs)}"
            )
        image, mask = check_inpainting(image, mask)
        image = known_of(image, mask)
        check_samples(num_samples)
        if num_samples > 1 and not self.run.draws:
            raise ValueError(ALIKE)
        tile = (self.run.height, self.run.width)
        overlap = min(tile) // 8 if overlap is None else overlap
        if not 0 <= 2 * overlap < min(tile):
            raise ValueError(
                f"overlap must be less than half a tile of {tile[1]} x {tile[0]}; got {overlap}"
            )
        began, (height, width) = time.perf_counter(), mask.shape
        grey = image.shape[0] == 1
        # beside a small image lie its mirror images, known pixels and all: measured on pictures of
        # 64 x 64, 2 dB more than beside unknown pixels
        rows, columns = mirrored(height, tile[0])[:, None], mirrored(width, tile[1])
        x, known = image.expand(3, -1, -1)[:, rows, columns], mask[None][:, rows, columns]
        size = x.shape[1:]
        # of latents the noise is as much smaller as they are
        channels, rows_of_tile, _ = self.run.state or (3, *tile)
        fold = tile[0] // rows_of_tile
        canvas = (1, channels, *(n // fold for n in size))
        spots = [
            (top, left)
            for top in tile_starts(size[0], tile[0], overlap)
            for left in tile_starts(size[1], tile[1], overlap)
        ]
        samples = []
        for k in range(num_samples):
            generator = torch.Generator().manual_seed(seed + k)
            noise = torch.stack([randn(canvas, generator) for _ in range(self.run.draws)])
            total, weights = torch.zeros(3, *size), torch.zeros(size)
            for top, left in spots:
                window = _window(top, left, tile)
                cut = noise[_window(top // fold, left // fold, [n // fold for n in tile])]
                out = self.run_tile(x[window][None], known[window][None], cut)
                weight = tile_weight(top, tile[0], size[0], overlap)[:, None] * tile_weight(
                    left, tile[1], size[1], overlap
                )
                total[window] += weight * out[0]
                weights[window] += weight
                if callback is not None:
                    callback(k, None)
            whole = (total / weights)[:, :height, :width]
            whole = whole.mean(0, keepdim=True) if grey else whole
            samples.append(torch.where(mask > 0, image, whole) if self.run.sigma == 0 else whole)
        stack = torch.stack(samples)
        std = stack.std(0) if num_samples > 1 else torch.zeros_like(stack[0])
        nfe = num_samples * len(spots) * self.run.calls
        return Restored(
            stack, stack.double().mean(0).float(), std, nfe, time.perf_counter() - began
        )

    def restore(
        self,
        inputs: Mapping[str, Tensor],
        *,
        num_samples: int = 1,
        seed: int = 0,
        callback: Watch | None = None,
    ) -> Restored:
        """One measurement of any task, of exactly the graph's size; sample k draws from ``seed +
        k`` what the host's loop draws.

        Args:
            inputs: the tensors that ``bundle.run.inputs`` names, of the shapes that it gives,
                without the batch.

        Returns:
            Samples, mean and standard deviation of the graph's output: pictures in [0, 1], MRI's
                real and imaginary part in the units
            of the data, eigen-images in theirs.

        Raises:
            ValueError: other names or shapes, or values that are not finite.
        """
        if set(inputs) != set(self.run.inputs):
            raise ValueError(
                f"this graph takes {', '.join(self.run.inputs)}; got"
                f" {', '.join(inputs) or 'nothing'}"
            )
        for name, shape in self.run.inputs.items():
            if list(inputs[name].shape) != shape or not torch.isfinite(inputs[name]).all():
                raise ValueError(
                    f"{name} must be {tuple(shape)} and finite; got {tuple(inputs[name].shape)}"
                )
        check_samples(num_samples)
        if num_samples > 1 and not self.run.draws:
            raise ValueError(ALIKE)
        began, samples = time.perf_counter(), []
        feed = {name: inputs[name][None].float().contiguous().numpy() for name in self.run.inputs}
        for k in range(num_samples):
            if self.run.draws and self.run.state is not None:
                generator = torch.Generator().manual_seed(seed + k)
                noise = [randn((1, *self.run.state), generator) for _ in range(self.run.draws)]
                feed["noise"] = torch.stack(noise).numpy()
            samples.append(self._run(feed)[0])
            if callback is not None:
                callback(k, None)
        stack = torch.stack(samples)
        std = stack.std(0) if num_samples > 1 else torch.zeros_like(stack[0])
        mean = stack.double().mean(0).float()
        return Restored(stack, mean, std, num_samples * self.run.calls, time.perf_counter() - began)

    def run_tile(self, image: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """The graph itself: ``image (B, 3, h, w)``, ``mask (B, 1, h, w)`` and ``noise (draws, B, 3,
        h, w)`` of its size to an image.
        """
        feed = {
            n: v.contiguous().numpy()
            for n, v in (("image", image), ("mask", mask), ("noise", noise))
        }
        return self._run(feed)

    def _run(self, feed: dict[str, np.ndarray]) -> Tensor:
        restored = torch.from_numpy(self.session.run(["restored"], feed)[0])
        if not torch.isfinite(restored).all():
            raise ValueError(
                f"{self.folder} answered with NaN or infinite values; its weights are damaged, or"
                " overflow in half precision: export it again"
            )
        return restored

    def _one_call(self, device: str) -> Callable[[], Tensor]:
        """A call on an empty measurement, to be timed."""
        other = Restorer(self.folder, device, self.threads)
        shapes = {name: (1, *shape) for name, shape in self.run.inputs.items()}
        if self.run.draws:
            shapes["noise"] = (self.run.draws, 1, *(self.run.state or ()))
        feed = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        return lambda: other._run(feed)

    def placement(self) -> list[Placement]:
        """Which operators ran where, counted in one profiled run; OpenVINO tells it without one."""
        if isinstance(self.session, OpenVinoGraph):
            return self.session.placement(
                {name: np.ones(shape, np.float32) for name, shape in self.session.inputs().items()}
            )
        shapes = {
            i.name: [n if isinstance(n, int) else 1 for n in i.shape]
            for i in self.session.get_inputs()
        }
        feed = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        return count_kernels(
            self.model,
            self.requested,
            feed,
            threads=self.threads,
            integer=self.bundle.target == "cpu",
        )

    def integer_convs(self) -> int:
        """Number of convolutions that really run on integers (CPU kernels)."""
        return integer_convs(self.placement(), self.model)
