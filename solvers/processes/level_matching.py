"""A network that was trained under one process, asked under another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solvers.prediction import Prediction
from solvers.processes.process import Process
from solvers.solver import DenoiserLike


@dataclass(frozen=True)
class LevelMatched:
    """A denoiser of one process answering for another, at the level with the same log-SNR
    (docs/design.md, "One process").

    With ``z = (x - c y)/sqrt(a^2 + b^2)`` the estimate E[x0 | z, y] depends on t only through a/b.
    The state shown to the denoiser holds its own process's share of ``y``. Levels beyond the native
    process (a network that was never shown pure noise, asked about it) are answered at its nearest
    end; the noise estimate is then the one that explains the state that was asked about.

    Args:
        denoiser: ``denoiser(x, t) -> Prediction`` with an attribute ``process``.
        process: the process of the questions.
        y: the degraded image, where one of the two processes holds it.
    """

    denoiser: DenoiserLike
    process: Process
    y: Tensor | None = None

    def __call__(self, x: Tensor, t: float) -> Prediction:
        p, native = self.process, self.denoiser.process
        x = p.unshifted(x, t, self.y)
        level = p.log_snr(t)
        s = native.time_at(level)
        scale = ((native.a(s) ** 2 + native.b(s) ** 2) / (p.a(t) ** 2 + p.b(t) ** 2)) ** 0.5
        z, c = x * scale, native.c(s)
        if c != 0:
            if self.y is None:
                raise ValueError(
                    "the denoiser's own process holds the degraded image: pass it as y"
                )
            z = z + c * self.y
        answer = self.denoiser(z, s)
        if s == native.end and (level < native.log_snr(s) or p.a(t) < 0):
            return Prediction.from_x0(answer.x0, x, p.a(t), p.b(t))
        return answer
