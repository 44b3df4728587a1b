"""Where a run on a measured picture begins, if not at pure noise: at the noisy picture itself, or
at the regularized inverse of the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from restoration.operators.measurement import Measurement
from restoration.operators.separable import SceneBlur
from solvers.denoiser import Denoiser
from solvers.grid import Grid, check_steps
from solvers.inputs.errors import UncalibratedError
from solvers.processes.process import CLEAN, Process

# how far a network's guess from noise alone may be off, in the denoiser's range: bounds the trust
# in noisy data
PRIOR_STD = 0.4
# how much of its contrast a picture may be shown with, to be as noisy as a time that the network
# knows. Measured with `grey` on noise of 0.02 to 0.2: within 1 dB of the right time, but for 2 dB
# at 1.5 and the most noise; at 2 up to 7 dB are lost and at 6 the result is worse than the picture
CONTRASTS = (1 / 4, 1.5)


def entered(
    denoiser: Denoiser, m: Measurement, steps: int, known: Sequence[float]
) -> tuple[Tensor, Grid, float]:
    """The noisy picture as a state of the process, the times from there, and the contrast that
    the picture is shown with.

    Where the network knows a few times only it is entered at the nearest of them, with the
    contrast that suits it.

    Args:
        m: pictures ``(B, C, H, W)`` in the denoiser's range, and their noise in it.
        steps: of the solver, from there on.
        known: the times that the network can be asked at; empty: all.

    Raises:
        ValueError: no noise, or noise that is far from every known time.
    """
    if m.sigma == 0:
        raise ValueError("denoising needs the noise level: give sigma > 0")
    process, contrast = denoiser.process, 1.0
    t = process.time_at(-2 * math.log(m.sigma))
    if known:
        t = nearest(process, known, -2 * math.log(m.sigma))
        contrast = process.kappa(t) / m.sigma
        least, most = CONTRASTS
        if not least <= contrast <= most:
            width = denoiser.value_range[1] - denoiser.value_range[0]
            levels = [process.kappa(s) / width for s in known]
            raise UncalibratedError(
                f"the network can be asked at {len(known)} times only, which are for noise of"
                f" sigma {min(levels) / most:.3g} to {max(levels) / least:.3g}, and the picture"
                f" has {m.sigma / width:.3g}: take the PyTorch model, or calibrate and export"
                " one for this noise"
            )
    middle = sum(denoiser.value_range) / 2
    start = process.a(t) * (middle + contrast * (m.y - middle))
    return start, grid_from(process, t, steps, known), contrast


def regularized(m: Measurement) -> Tensor:
    """``argmin |A x - y|^2 / sigma^2 + |x - A^H y|^2 / s^2`` with s = PRIOR_STD / 2,
    ``(B, C, H, W)``; of a scene the picture, mirrored, stands for A^H y; the pseudo-inverse of
    noiseless data.
    """
    if m.sigma == 0:
        return m.operator.A_dagger(m.y)
    guess = (
        m.operator.mirrored(m.y) if isinstance(m.operator, SceneBlur) else m.operator.A_adjoint(m.y)
    )
    return m.operator.prox_l2(guess, m.y, (PRIOR_STD / 2 / m.sigma) ** 2)


def deblurring_level(blur: float, sigma: float) -> float:
    """The noise level ``b/a`` (range [-1, 1]) at which deblurring starts from the regularized
    inverse. What the blur took away has to drown in it, or the network takes the inverse's
    smoothness for the picture's own; the more was kept, the less noise keeps it. Within 0.1 dB of
    the best of six levels for blurs of 0.7 to 4 and noise of 0.005 to 0.05 (docs/training.md).

    Args:
        blur: standard deviation of the Gaussian, in pixels.
        sigma: noise of the data, in units of [0, 1].
    """
    return min(max(0.45 * blur**2, 6 * sigma), 2.0)


def grid_from(process: Process, t: float, steps: int, known: Sequence[float] = ()) -> Grid:
    """``steps`` times from ``t`` down, evenly spread in log-SNR, and the clean end; the nearest of
    the ``known`` ones, if there are any.

    Raises:
        ValueError: a number of steps that can't be, or not as many known times.
    """
    steps = check_steps(steps)
    top = max(process.log_snr(process.first), process.log_snr(t))
    levels = [process.log_snr(t) + (top - process.log_snr(t)) * k / steps for k in range(steps)]
    times = sorted({t, *(process.time_at(level) for level in levels[1:])}, reverse=True)
    if known:
        times = sorted({nearest(process, known, level) for level in levels}, reverse=True)
        if len(times) < steps:
            raise UncalibratedError(
                f"{steps} steps from t = {t:g} down ask the network at times that it doesn't hold:"
                f" nearest to them are only {', '.join(f'{s:g}' for s in times)}; take at most"
                f" {len(times)} of them, or calibrate at more times"
            )
    return Grid((*(s for s in times if s > CLEAN), CLEAN))


def nearest(process: Process, known: Sequence[float], level: float) -> float:
    """The known time whose log-SNR is nearest to a level."""
    return min(known, key=lambda s: abs(process.log_snr(s) - level))
