"""What a network says about a state, in the one form that every solver uses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

# of every process; residual processes know more
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
# outputs stacked on channels, where there are several
HEADS = {"residual_noise": 2, "sample_noise": 2}


@dataclass(frozen=True)
class Prediction:
    """Image and noise estimates, each ``(B, C, H, W)``, with ``x = a x0 + c y + b eps`` at the
    level of their own call.

    ``spread``, of networks with a learned variance: where the logarithm of an ancestral step's
    variance lies between its least (0) and its largest (1) possible value (Nichol & Dhariwal 2021,
    equation 15); None: the network doesn't say.
    """

    x0: Tensor
    eps: Tensor
    spread: Tensor | None = field(default=None, kw_only=True)

    def detached(self) -> Prediction:
        """The same without gradients."""
        spread = None if self.spread is None else self.spread.detach()
        return Prediction(self.x0.detach(), self.eps.detach(), spread=spread)

    @classmethod
    def from_output(
        cls, output: Tensor, x: Tensor, a: float, b: float, prediction_type: str
    ) -> Prediction:
        """Convert a network output at state ``x = a x0 + b eps`` (a shift ``c y`` already taken
        off).

        ``epsilon``: the noise; ``sample``: the image; ``v_prediction``: ``(a eps - b x0)/sqrt(a^2 +
        b^2)`` (Salimans & Ho 2022, appendix D); ``velocity``: ``eps - x0`` (Liu et al. 2022, arXiv
        2209.03003; of :class:`~solvers.processes.continuous.Flow`).

        Raises:
            ValueError: unknown type, or ``epsilon`` at a level without signal (``a = 0``), where it
                says nothing about x0.
        """
        match prediction_type:
            case "epsilon":
                if a == 0:
                    raise ValueError(
                        "an epsilon network can't be used at zero SNR; use v_prediction or sample"
                    )
                return cls((x - b * output) / a, output)
            case "sample":
                return cls.from_x0(output, x, a, b)
            case "v_prediction":
                norm = a * a + b * b
                root = norm**0.5
                return cls((a * x - b * root * output) / norm, (b * x + a * root * output) / norm)
            case "velocity":
                return cls((x - b * output) / (a + b), (x + a * output) / (a + b))
        raise ValueError(
            f"prediction_type {prediction_type!r} is unknown; known: {', '.join(PREDICTION_TYPES)}"
        )

    @classmethod
    def from_x0(cls, x0: Tensor, x: Tensor, a: float, b: float) -> Prediction:
        """The prediction with this image and the noise that explains ``x`` with it (zero at the
        clean level).
        """
        return cls(x0, (x - a * x0) / b if b > 0 else torch.zeros_like(x))


@dataclass(frozen=True)
class ResidualPrediction(Prediction):
    """The prediction of a network that estimates noise and, on its own, the residual ``y - x0`` or
    the image.

    Two estimates say more than one state needs: ``x0`` and ``eps`` together explain it, ``noise``
    and ``residual`` (None: the network gave the image) are what the network said, for RDDM's own
    sampler.
    """

    residual: Tensor | None
    noise: Tensor
