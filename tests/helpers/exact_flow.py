"""The probability-flow ODE of a Gaussian mixture, solved to rounding: what every deterministic
solver must approach.
"""

import torch

from solvers import GaussianMixture, Process


def exact_flow(
    mixture: GaussianMixture, process: Process, x: torch.Tensor, t: float, s: float
) -> torch.Tensor:
    return mixture.flow(process, x, t, s)
