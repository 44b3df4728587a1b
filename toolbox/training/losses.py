"""What networks are trained for: a loss per kind of process, and the gain over the lift that a
run's log tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from solvers.denoiser import Denoiser
from solvers.prediction import HEADS
from toolbox.training.sections import Loss

# mean squared error that good denoisers leave of photos in [-1, 1] at noise kappa, over kappa^1.2
LEFT = 0.03
SQUARED = Loss()


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Tensor,
    missing: Tensor,
    t: Tensor,
    noise: Tensor,
    loss: Loss,
) -> Tensor:
    """Squared error of the network's output at times ``t (B,)``, mostly on missing pixels, relative
    to what the lift allows.

    ``x0 (B, C, H, W)`` in the network's range, ``condition`` with the lift in its first C channels,
    ``missing (B, 1, H, W)`` 1 where pixels are not known, ``noise`` like ``x0``. With ``u = (x0 -
    lift)/s`` of mean square p on a sample's missing pixels, the best linear estimate from the state
    alone has the error ``p/(a'^2 p + b'^2)`` in ``v = a' eps - b' u``. Each sample's error is
    divided by that: easy and hard pictures, small and large holes, and all noise levels then count
    alike, as they do in PSNR.

    A ``sample`` network gives u itself, of which the best linear estimate has the error ``p/(1 + p
    SNR)``. Near the clean level that vanishes, and only ``min(p SNR, min_snr)`` is counted (Hang et
    al. 2023): the state has the image there, the network need not.
    """
    a, b = (f(t.cpu()).to(x0).view(-1, 1, 1, 1) for f in (denoiser.process.a, denoiser.process.b))
    _, a, b = denoiser.unit_levels(a, b)
    u = (x0 - condition[:, : x0.shape[1]]) / denoiser.data_std
    z = a * u + b * noise
    output = denoiser.conditioned(condition).output(a * z, t).float()
    focus = loss.known_weight + (1 - loss.known_weight) * missing
    focus = focus / focus.mean((1, 2, 3), keepdim=True)
    missing = missing.expand_as(u)
    power = (
        (missing * u**2).sum((1, 2, 3), keepdim=True)
        / missing.sum((1, 2, 3), keepdim=True).clamp(min=1)
    ).clamp(min=loss.floor)
    if denoiser.prediction_type == "sample":
        snr = power * a**2 / b.clamp(min=1e-6) ** 2
        return ((1 + snr.clamp(max=loss.min_snr)) / power * focus * (output - u) ** 2).mean()
    return ((a**2 * power + b**2) / power * focus * (output - (a * noise - b * u)) ** 2).mean()


def residual_loss(
    denoiser: Denoiser, x0: Tensor, condition: Tensor, t: Tensor, noise: Tensor, loss: Loss
) -> Tensor:
    """Error of a network of a process that holds the degraded image ``y``, the first channels of
    ``condition``.

    States and targets are those of ``Resfusion.training_pair`` and ``RDDM.training_pair``. Squared
    for Resfusion, absolute and summed over the two heads for RDDM, as released.
    """
    target_type, channels = denoiser.prediction_type, x0.shape[1]
    process: Any = denoiser.process  # Resfusion or RDDM
    state, target = process.training_pair(x0, condition[:, :channels], noise, t.cpu(), target_type)
    error = denoiser.conditioned(condition).output(state, t).float() - target
    return HEADS.get(target_type, 1) * (error.square() if loss.norm == "l2" else error.abs()).mean()


def plain_loss(
    denoiser: Denoiser, image: Tensor, t: Tensor, noise: Tensor, loss: Loss = SQUARED
) -> Tensor:
    """Squared error of the output of an unconditional denoiser: relative to the noise where there
    is little of it, to the image else.

    With ``min_snr`` the error of the image weighs ``min(SNR, min_snr)`` (Hang et al. 2023):
    ``min(SNR, min_snr)/(SNR + 1)`` in v. With the norm ``log`` it is the logarithm of each
    picture's squared error, and a floor of a tenth of what good denoisers leave: what PSNR is a
    mean of, but for pictures of next to nothing.
    """
    kappa, min_snr = denoiser.process.kappa, loss.min_snr
    u = denoiser.from_unit(image) / denoiser.data_std
    a, b = (f(t.cpu()).to(u).view(-1, 1, 1, 1) for f in (denoiser.process.a, denoiser.process.b))
    _, a, b = denoiser.unit_levels(a, b)
    output = denoiser.output(a * u + b * noise, t).float()
    # of unit levels: b^2 = 1/(SNR + 1)
    error = output - (a * noise - b * u)
    if loss.norm == "log":  # x0 = a' z - b' v
        power = (denoiser.data_std * b * error).square().mean((1, 2, 3))
        floor = LEFT * torch.tensor([kappa(float(s)) for s in t]).to(power) ** 1.2
        return torch.log(power + floor / 10).mean()
    weight = 1 if min_snr is None else torch.minimum(a**2, min_snr * b**2)
    return (weight * error**2).mean()


def cut_off(image: Tensor, noise: Tensor, kappa: Tensor) -> Tensor:
    """Noise ``(B, C, H, W)`` less what leaves [-1, 1] of an image in that range to which ``kappa``
    (B,) times the noise is added.
    """
    level = kappa.view(-1, 1, 1, 1)
    return ((image + level * noise).clamp(-1, 1) - image) / level


@torch.no_grad()
def gain(denoiser: Denoiser, examples, *drawn: Tensor) -> float:
    """How much better one network call from the noisiest level is than the lift, in dB: the mean
    over a batch.
    """
    x0, condition, _ = examples.show(denoiser, *drawn)
    end, noise = (
        denoiser.process.end,
        torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0),
    )
    state = denoiser.process.add_noise(x0, noise, end, condition[:, : x0.shape[1]])
    estimate = denoiser.conditioned(condition)(state, end).x0

    def error(x):
        return (x - x0).square().mean((1, 2, 3)).clamp(min=1e-12)

    return float(10 * torch.log10(error(condition[:, : x0.shape[1]]) / error(estimate)).mean())


def immiscible_noise(images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The same noises in another order, so that every picture of a batch gets a near one (Li et al.
    2024, "Immiscible diffusion"): the linear assignment of least total squared distance to
    the images.

    ``|x_i - e_j|^2`` differs from ``-2 <x_i, e_j>`` by what no reordering changes, so units and
    offset of the images do not matter: only which noise points the image's way. As the noises are
    permuted, as a whole they stay what was drawn. That is not so for the released variant that
    draws k noises for each image and keeps the nearest: near noises are short ones (mean square
    0.95 at 3072 dimensions and k = 64), and sampling then starts from longer ones than were trained
    on. The released code takes the distance, not its square, of both tensors scaled by 0.1, in half
    precision.

    Args:
        images, noise: ``(B, ...)`` of one shape.

    Raises:
        ValueError: shapes that differ.
    """
    if images.shape != noise.shape:
        raise ValueError(
            f"images and noise must be of one shape; got {images.shape} and {noise.shape}"
        )
    flat = [v.reshape(len(v), -1).astype(np.float64) for v in (images, noise)]
    return noise[linear_sum_assignment(-flat[0] @ flat[1].T)[1]]
