"""What all corrections share."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from restoration.operators.measurement import Measurement
from solvers.denoiser import Network
from solvers.prediction import Prediction
from solvers.processes.process import CLEAN, Process
from solvers.solver import DenoiserLike, Noise, bound, device_of, randn


class Correction:
    """A denoiser that wraps a denoiser: it replaces the image estimate by one that agrees with the
    measurement.

    Most subclasses define ``correct(x0, t)``. The noise estimate then follows the new image, so
    that ``x = a x0 + b eps`` still holds and every solver can use the result. Those that move the
    state, or choose its noise, define ``__call__`` and say so.

    Args:
        denoiser: anything with ``process`` that answers ``(x, t)`` with a ``Prediction``.
        measurement: in the denoiser's value range.
    """

    # : whether the network must be differentiable; False: works with an exported int8 model
    needs_gradient = False
    # : whether its noise estimate holds fresh noise; ``solve`` refuses multi-step solvers then
    draws_noise = False

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement):
        self.denoiser = denoiser
        self.measurement = measurement
        self.times: tuple[float, ...] | None = None
        self.noise: Noise = lambda like: randn(like.shape, device=like.device, dtype=like.dtype)

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def bind(self, times: Sequence[float], noise: Noise) -> Self:
        """A copy that knows the run it serves: its node times (of this process) and its noise
        source. ``solve`` calls it.
        """
        other = copy.copy(self)
        other.times, other.noise = tuple(times), noise
        other.denoiser = bound(self.denoiser, times, noise)
        return other

    def next_time(self, t: float) -> float:
        """The node that follows ``t``; one training step down where no run is bound."""
        if self.times is None:
            return max(t - 1, CLEAN)
        return max((s for s in self.times if s < t), default=CLEAN)

    @property
    def device(self) -> torch.device:
        return device_of(self.denoiser)

    def __call__(self, x: Tensor, t: float) -> Prediction:
        p = self.denoiser(x, t)
        return self.with_image(p, self.correct(p.x0, t), t)

    def with_image(self, p: Prediction, x0: Tensor, t: float) -> Prediction:
        """``p`` with the image ``x0`` and the noise that explains the same state with it."""
        # x = a x0 + b eps fixes the new noise; written as a change so that a shift c y of the
        # process stays where it is
        a, b = self.process.a(t), self.process.b(t)
        eps = p.eps + (a / b) * (p.x0 - x0) if b > 0 else p.eps
        return Prediction(x0, eps, spread=p.spread)

    def closest(self, x0: Tensor, variance: float) -> Tensor:
        """The image that agrees best with the data and with an estimate ``x0`` whose errors have
        this ``variance > 0``: the proximal point, or the projection on ``A x = y`` of noiseless
        data and of an estimate that may be off by anything.
        """
        m = self.measurement
        if m.sigma == 0 or variance == math.inf:
            return x0 + m.operator.A_dagger(m.residual(x0))
        return m.operator.prox_l2(x0, m.y, variance / m.sigma**2)

    def ends_after(self, t: float) -> bool:
        """Whether the step from ``t`` is a run's last, to the clean level."""
        return self.times is not None and self.process.b(self.next_time(t)) == 0

    def correct(self, x0: Tensor, t: float) -> Tensor:
        """The corrected image estimate ``(B, C, H, W)`` at time ``t``."""
        raise TypeError(f"{type(self).__name__} must define correct")


class GradientCorrection(Correction):
    """A correction that differentiates the image estimate with respect to the state, one backward
    pass through the network or more.

    Raises:
        TypeError: the network is not an ``nn.Module`` (an ONNX session, say), or its answer carries
            no gradient.
    """

    needs_gradient = True

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement):
        super().__init__(denoiser, measurement)
        network = _innermost(denoiser)
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(
                f"{type(self).__name__} needs the gradient of the network, which"
                f" {type(network).__name__} can't give: use a PyTorch network, or a correction"
                " without gradients such as DDNM, DDRM or DiffPIR"
            )

    def ask(self, x: Tensor, t: float) -> tuple[Tensor, Prediction]:
        """The state as a leaf of the graph and the denoiser's answer to it; call it where gradients
        are on.
        """
        x = x.detach().requires_grad_()
        p = self.denoiser(x, t)
        # one of the two is the network's own answer, unless it predicts v: then both also hold the
        # state
        if not (p.x0.requires_grad and p.eps.requires_grad):
            raise TypeError(
                f"{type(self).__name__} needs the gradient of the network, but the denoiser's"
                " answer carries none"
            )
        return x, p

    @staticmethod
    def pull_back(x: Tensor, x0: Tensor, v: Tensor, keep: bool = False) -> Tensor:
        """``J^T v`` with ``J = d x0 / d x``; ``keep`` allows another one."""
        return torch.autograd.grad(x0, x, v.detach(), retain_graph=keep)[0]


def unit_variance(kappa: float) -> float:
    """``kappa^2/(1 + kappa^2)``: how far the estimate from a state of noise ``kappa = b/a`` may be
    off, for images of unit variance (Song et al. 2023).
    """
    return kappa**2 / (1 + kappa**2) if kappa < float("inf") else 1.0


def _innermost(denoiser: Any) -> Network:
    """The network at the core of nested denoisers; None for one without a network (a closed-form
    prior).
    """
    while hasattr(denoiser, "denoiser"):
        denoiser = denoiser.denoiser
    network: Network = getattr(denoiser, "network", None)
    while hasattr(network, "network"):  # a tiled network is a module around any network
        network = network.network
    return network
