"""Two priors as one: tissue and haze are separated by any correction and any solver. Stevens et al.
2024 (arXiv 2307.11204).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from restoration.operators.linear import LinearOperator
from solvers.denoiser import Network
from solvers.prediction import Prediction
from solvers.processes.level_matching import LevelMatched
from solvers.solver import DenoiserLike, device_of


class JointDenoiser:
    """A denoiser of stacked images ``[x, h]``, ``(B, 2C, H, W)``, that are independent before
    anything is measured.

    Its estimate is the exact Tweedie mean of the product prior: each half is asked for its own
    state, at its own level where the two networks were trained under different processes.
    Corrections then see one denoiser and one operator, :class:`Superposition`, and are what the
    papers derive for ``p(x, h | y)``. With the corrections of ``restoration.posterior``:

    ==============  =============================================================================
    guidance        correction
    ==============  =============================================================================
    projection      ``ddnm+``, ``ddrm`` (spectral), ``repaint`` (measurement noised to the level)
    DPS             ``dps``
    PiGDM           ``pigdm``
    no gradients    ``diffpir`` and those of the first row; they run on 8-bit ONNX networks
    second moments  ``mmps``
    ==============  =============================================================================

    The released code of the paper's companion (arXiv 2302.05290) differs from these; see
    :mod:`restoration.ultrasound.released`.

    Args:
        tissue, haze: unconditional denoisers of C channels; time is the tissue's.

    Raises:
        ValueError: a denoiser that takes a condition, or a process that holds the degraded image.
    """

    def __init__(self, tissue: DenoiserLike, haze: DenoiserLike):
        for name, d in (("tissue", tissue), ("haze", haze)):
            if getattr(d, "condition_channels", 0) or d.process.holds_image:
                raise ValueError(f"the {name} prior must be unconditional")
        self.tissue, self.haze = tissue, haze
        self.process = tissue.process
        self._parts = (
            tissue,
            haze if haze.process == self.process else LevelMatched(haze, self.process, None),
        )

    @property
    def device(self) -> torch.device:
        return device_of(self.tissue)

    @property
    def network(self) -> Network:
        """A network that is no ``nn.Module``, if one of the two is; corrections ask whether they
        can differentiate.
        """
        networks = [
            n
            for n in (getattr(d, "network", None) for d in (self.tissue, self.haze))
            if n is not None
        ]
        return next(
            (n for n in networks if not isinstance(n, nn.Module)), networks[0] if networks else None
        )

    def __call__(self, state: Tensor, t: float) -> Prediction:
        answers = [
            ask(part, t) for ask, part in zip(self._parts, state.chunk(2, dim=1), strict=True)
        ]
        return stacked(answers)


def stacked(answers: list[Prediction]) -> Prediction:
    """The predictions of the parts as one of the stack."""
    return Prediction(torch.cat([p.x0 for p in answers], 1), torch.cat([p.eps for p in answers], 1))


class Superposition(LinearOperator):
    """``A [x, h] = w_x x + w_h h`` of stacked images ``(B, 2C, H, W)``; the result has C channels.

    ``A A^T = w_x^2 + w_h^2`` times the identity, so everything is in closed form, the singular
    value decomposition too.

    Args:
        tissue, haze: the weights ``w_x`` and ``w_h``, not both 0. The companion paper's blend is
            ``1 - alpha`` and ``alpha``.

    Raises:
        ValueError: both weights are 0, or one is not finite.
    """

    def __init__(self, tissue: float = 1.0, haze: float = 1.0):
        self.weights = (float(tissue), float(haze))
        self.power = self.weights[0] ** 2 + self.weights[1] ** 2
        if not 0 < self.power < float("inf"):
            raise ValueError(f"the weights must be finite and not both 0; got {self.weights}")

    def A(self, x: Tensor) -> Tensor:
        tissue, haze = x.chunk(2, dim=1)
        return self.weights[0] * tissue + self.weights[1] * haze

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([w * y for w in self.weights], dim=1)

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y) / self.power

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        return z + self.A_adjoint(y - self.A(z)) * (gamma / (1 + gamma * self.power))

    def spectral_filter(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``V f(S) V^T x``: per pixel one measured direction, along the weights, and one that is
        not.
        """
        along = self.A_dagger(self.A(x))
        value = torch.full_like(along[:1, :1, :1, :1], self.power**0.5)
        return f(value) * along + f(torch.zeros_like(value)) * (x - along)
