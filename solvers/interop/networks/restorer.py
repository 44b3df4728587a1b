"""Restoration networks of spandrel's architectures: a degraded picture in, a restored one out."""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


def spandrel_model(tensors: dict[str, Tensor]) -> Any:
    """spandrel's description of the network with these tensors, recognised by it.

    Raises:
        ImportError: spandrel is not installed.
        KeyError: spandrel doesn't know it.
    """
    try:
        from spandrel import ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise ImportError(
            "networks of spandrel's architectures (SwinIR, NAFNet, SCUNet ...) need spandrel: pip"
            " install 'restobox[spandrel]'"
        ) from error
    try:
        return ModelLoader(device="cpu").load_from_state_dict(tensors)
    except UnsupportedModelError as error:
        raise KeyError("a network that spandrel doesn't know") from error


def window_reverse(windows: Tensor, window_size: int, H: int, W: int) -> Tensor:
    """Swin's windows ``(B H W/s^2, s, s, C)`` put together again, ``(B, H, W, C)``. The published
    function counts the pictures by a division of floats, which torch.export takes for a constant.
    """
    channels = windows.shape[-1]
    size = (H // window_size, W // window_size, window_size, window_size)
    parts = windows.view(-1, *size, channels).permute(0, 1, 3, 2, 4, 5)
    return parts.contiguous().view(-1, H, W, channels)


def _made_traceable(model: nn.Module) -> None:
    """Let torch.export follow a Swin network (Liu et al. 2021) at any size; its answers stay."""
    module: Any = sys.modules[type(model).__module__]
    own = getattr(module, "window_reverse", None)
    if own is None or list(inspect.signature(own).parameters) != [
        "windows",
        "window_size",
        "H",
        "W",
    ]:
        return
    module.window_reverse = window_reverse
    for part in model.modules():
        if hasattr(part, "calculate_mask"):  # which it does for all sizes but that of its training
            setattr(part, "input_resolution", (-1, -1))  # noqa: B010


def _padded_to(model: Any, architecture: str) -> int:
    """What a network continues its pictures to multiples of by itself, which no graph can hold."""
    if architecture == "SCUNet":
        return 64
    if hasattr(model, "padder_size"):
        return int(model.padder_size)
    windows = getattr(model, "window_size", None)
    return windows if hasattr(model, "check_image_size") and isinstance(windows, int) else 1


class SpandrelRestorer(nn.Module):
    """``network(x, t) -> (B, C, H, W)`` of the state and the degraded picture on ``2C`` channels,
    in [0, 1]: the restored picture, whatever the state and the time.

    Args:
        tensors: as the architecture's authors name them.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        found = spandrel_model(dict(tensors))
        self.noise_level = nn.Identity()
        self.model, self.call = found.model, found._call_fn
        _made_traceable(self.model)
        self.architecture, self.scale = str(found.architecture.name), int(found.scale)
        need = found.size_requirements
        unit = max(1, int(need.multiple_of))
        own = _padded_to(self.model, self.architecture)
        unit = math.lcm(unit, own)
        # as the network does it by itself, or spandrel for it
        self.padding = "zeros" if hasattr(self.model, "padder_size") else "reflect"
        self.multiple, self.least = unit, unit * max(1, -(-int(need.minimum) // unit))
        channels = int(found.input_channels)
        self.config = SimpleNamespace(
            in_channels=2 * channels, out_channels=int(found.output_channels), get=lambda *_: None
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.call(self.model, x[:, self.config.in_channels // 2 :])

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """``config.json`` and the weights by the authors' names."""
        import json

        from safetensors.torch import save_file

        folder = Path(folder)
        state = {k: v.detach().clone().contiguous() for k, v in self.model.state_dict().items()}
        save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        content = {"_class_name": type(self).__name__, "architecture": self.architecture}
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, weights: Path) -> SpandrelRestorer:
        """From what :meth:`save_pretrained` wrote."""
        from safetensors.torch import load_file

        return cls({k: v.to(torch.float32) for k, v in load_file(weights).items()})
