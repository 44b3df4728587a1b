"""Denoisers of deepinv in restobox, and restobox's in deepinv. Neither way needs deepinv here: a
denoiser there is a module that is called with pictures and a noise level.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from restobox.models import Model, load_model
from solvers.denoiser import Denoiser
from solvers.processes.process import VP, Process


def to_deepinv(model: Model, device: str = "cpu") -> nn.Module:
    """A model as deepinv's algorithms call theirs: ``module(x, sigma)`` with pictures ``x (B, C, H,
    W)`` in [0, 1] plus noise of standard deviation ``sigma``, a number or one per picture.

    It takes gradients, where the model does. A network that is shown a measurement is shown none.

    Raises:
        ValueError: as :func:`restobox.load`; a whole restoration, which is no denoiser.
    """
    denoiser = load_model(model, device)
    if not isinstance(denoiser, Denoiser):
        raise ValueError(
            f"{model} is a whole restoration; deepinv's algorithms need a denoiser such as `photo`"
        )
    if denoiser.autoencoder is not None:
        raise ValueError(
            f"{model} denoises an autoencoder's latents; deepinv's algorithms need a denoiser of"
            " pictures"
        )
    return _ToDeepinv(denoiser)


class _ToDeepinv(nn.Module):
    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser
        if isinstance(denoiser.network, nn.Module):
            self.network = denoiser.network  # its parameters are this module's

    def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
        levels = torch.as_tensor(sigma, dtype=torch.float64).flatten().cpu().expand(len(x))
        if len(set(levels.tolist())) > 1:
            parts = zip(torch.split(x, 1), levels.tolist(), strict=True)
            return torch.cat([self(part, level) for part, level in parts])
        return self._at(x, float(levels[0]))

    def _at(self, x: Tensor, sigma: float) -> Tensor:
        d = self.denoiser
        low, high = d.value_range
        if sigma <= 0:
            return x
        # a state of the process is the noisy picture times a
        t = d.process.time_at(-2 * math.log(sigma * (high - low)))
        if d.process.kappa(t) == 0:
            return x
        return d.to_unit(d(d.process.a(t) * d.from_unit(x), t).x0).to(x.dtype)


def from_deepinv(module: nn.Module, channels: int = 3, process: Process | None = None) -> Denoiser:
    """A denoiser of deepinv's, ``module(x, sigma)`` with pictures in [0, 1], for any solver, task
    and correction here.

    Args:
        module: pictures ``(B, channels, H, W)`` and noise levels ``(B,)`` to denoised pictures.
        channels: of the pictures, 1 or 3.
        process: whose levels runs visit; DDPM's linear one by default. Its noisiest level should
            not be far above what the module was trained for.
    """
    process = VP.linear() if process is None else process
    return Denoiser(_FromDeepinv(module, process, channels), process, "sample", scaled=True)


class _FromDeepinv(nn.Module):
    """``network(z, t)``: the state scaled to unit size, in [-1, 1] where it is clean."""

    def __init__(self, module: nn.Module, process: Process, channels: int):
        super().__init__()
        self.module, self.process, self.outputs = module, process, channels

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        time = float(t.flatten()[0])
        a, b = self.process.a(time), self.process.b(time)
        a = max(a, 1e-3 * b)  # the most noise that a picture can be shown with
        x = z * math.hypot(a, b) / a
        sigma = torch.full((len(z),), b / a / 2, dtype=z.dtype, device=z.device)
        return 2 * self.module((x + 1) / 2, sigma) - 1
