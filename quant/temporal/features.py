"""The cache of deep features: at some steps of a run the whole U-Net is computed, at the others
only its outermost block, on the deep features of the last whole pass.

The deep features of a U-Net change slowly from step to step; what is new lies in the state itself,
which enters by the outermost skip connection. So a shallow pass computes the first convolution, the
last residual block, whose inputs are the stored features and that convolution's result, and the
last convolution: a few per cent of the work.

Reference: Ma et al. 2024, DeepCache (arXiv 2312.00858), section 3, with the innermost of its
branches; Li et al. 2023, Faster Diffusion (arXiv 2312.09608), for steps that aren't evenly spaced.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from solvers.denoiser import Denoiser, Network

LAST_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")
# every k-th step is a whole pass, or the numbers of those that are
FullSteps = int | Sequence[int]


class Deep(Protocol):
    """A network in two parts. ``features`` is what its kind of network keeps them in."""

    def full(self, x: Tensor, t: Tensor) -> tuple[Tensor, Any]:
        """The network's output for ``x (B, C, h, w)`` and ``t (B,)``, and the deep features."""

    def shallow(self, x: Tensor, t: Tensor, features: Any) -> Tensor:
        """The output with deep features of another call of the same shape."""


class SplitUNet(nn.Module):
    """A diffusers ``UNet2DModel``, also a quantized one, in two parts: deep features are what the
    last residual block reads beside the outermost skip connection, ``(B, C_1, h, w)``.

    Raises:
        ValueError: the network has no such skip connection, or computes more around its blocks.
    """

    network: Any
    unet: Any

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        tell(self, network)
        # a quantized network holds the U-Net, which may ask for rows of a table
        self.row = getattr(network, "rows", None)
        self.unet = network.network if self.row is not None else network
        _check_splits(self.unet)

    def full(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        unet, (first, time) = self.unet, self._begin(x, t)
        h: Tensor = first
        states: tuple[Tensor, ...] = (first,)
        for block in unet.down_blocks:
            h, more = block(h, time)
            states += more
        if unet.mid_block is not None:
            h = unet.mid_block(h, time)
        *inner, last = unet.up_blocks
        for block in inner:
            count = len(block.resnets)
            h, states = block(h, states[-count:], time), states[:-count]
        for k in range(len(last.resnets) - 1):
            h = _layer(last, k, h, states[-1 - k], time)
        return self._end(h, first, time), h

    def shallow(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        first, time = self._begin(x, t)
        return self._end(features, first, time)

    def _begin(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The first convolution, and the embedding of time."""
        unet = self.unet
        x = 2 * x - 1 if unet.config.center_input_sample else x
        t = t if self.row is None else self.row(t)
        time = unet.time_embedding(unet.time_proj(t.expand(x.shape[0])).to(unet.dtype))
        return unet.conv_in(x), time

    def _end(self, h: Tensor, first: Tensor, time: Tensor) -> Tensor:
        """The last residual block and the last convolution."""
        unet, last = self.unet, self.unet.up_blocks[-1]
        h = _layer(last, len(last.resnets) - 1, h, first, time)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))


def _layer(block: Any, k: int, h: Tensor, skip: Tensor, time: Tensor) -> Tensor:
    """The k-th residual block of the last level, and its attention if it has one."""
    h = block.resnets[k](torch.cat([h, skip], dim=1), time)
    attentions = getattr(block, "attentions", None)
    return h if attentions is None else attentions[k](h)


def tell(wrapper: nn.Module, network: Any) -> None:
    """What ``network`` tells of itself, ``wrapper`` tells too."""
    # diffusers' networks tell their channels in the config alone
    for name in ("timesteps", "config" if hasattr(network, "config") else "out_channels"):
        if hasattr(network, name):
            setattr(wrapper, name, getattr(network, name))


def _check_splits(unet: Network) -> None:
    what = type(unet).__name__
    blocks = getattr(unet, "up_blocks", None)
    why = None
    if not hasattr(unet, "conv_in") or not blocks or what not in ("UNet2DModel", "GuidedUNet"):
        why = f"{what} is not one"
    elif type(blocks[-1]).__name__ not in LAST_BLOCKS:
        why = f"this one ends in a {type(blocks[-1]).__name__}"
    elif unet.class_embedding is not None:
        why = "this one is asked for a class"
    elif unet.config.time_embedding_type == "fourier" or getattr(unet, "adapted", None):
        why = "this one's times or outputs are scaled around its blocks"
    if why is not None:
        raise ValueError(
            f"the cache of features is for diffusers' UNet2DModel with plain last blocks; {why}:"
            " leave out the cache"
        )


class CachedNetwork(nn.Module):
    """``network(x, t)`` that reuses deep features within a run. ``solvers.solve`` calls
    :meth:`begin` for each run; a call outside of one is refused.

    A step may consist of several calls, on tiles say, if it has as many in every step: each has
    features of its own.

    Args:
        network: in two parts.
        full_steps: as for :func:`cached`.
        watch: called with the number of the step, that of the call in it, and the features of every
            whole pass.
    """

    network: Any

    def __init__(
        self,
        network: Deep,
        full_steps: FullSteps,
        watch: Callable[[int, int, Any], None] | None = None,
    ):
        super().__init__()
        self.network, self.full_steps, self.watch = network, full_steps, watch
        tell(self, network)
        self._times: tuple[float, ...] = ()
        self._step, self._call = 0, -1
        self._features: list[Any] = []  # of the calls of a step

    def begin(self, times: Sequence[float]) -> Self:
        """A copy for a run that asks once at each of ``times`` but the last.

        Raises:
            ValueError: a run too short for the full steps.
        """
        steps, full = len(times) - 1, self.full_steps
        if steps < 2:
            raise ValueError(
                "a run of one step has no features to reuse: take more steps, or leave out the"
                " cache"
            )
        if not isinstance(full, int) and full[-1] >= steps:
            raise ValueError(
                f"the cache names step {full[-1]} but the run has {steps}, numbered from 0: name"
                " steps of it"
            )
        run = copy.copy(self)
        run._times, run._step, run._call, run._features = tuple(times), 0, -1, []
        return run

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not self._times:
            raise ValueError(
                "the cache of features needs a solver's run, which this method doesn't tell the"
                " network: leave out the cache"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "a correction that differentiates the network takes no cache of features: choose"
                " ddnm, ddrm or diffpir, or leave out the cache"
            )
        call, stored = self._count(float(t.reshape(-1)[0])), self._features
        if self._is_full() or call >= len(stored):
            out, features = self.network.full(x, t)
            stored[call : call + 1] = [features]
            if self.watch is not None:
                self.watch(self._step, call, features)
            return out
        return self.network.shallow(x, t, stored[call])

    def _is_full(self) -> bool:
        if isinstance(self.full_steps, int):
            return self._step % self.full_steps == 0
        return self._step in self.full_steps

    def _count(self, t: float) -> int:
        """The number of this call in its step, which becomes :attr:`_step`."""
        step = min(range(len(self._times)), key=lambda k: abs(self._times[k] - t))
        known = math.isclose(self._times[step], t, rel_tol=1e-6, abs_tol=1e-9)
        again = step == self._step
        self._call = self._call + 1 if again else 0
        # the first step shows how many calls a step has
        if not known or step < self._step or (step > 0 and self._call >= len(self._features)):
            raise ValueError(
                "the cache of features is for solvers with one network call a step, such as ddim;"
                " this one asks several times, or between its steps: choose another, or leave out"
                " the cache"
            )
        self._step = step
        return self._call


def cached(denoiser: Denoiser, full_steps: FullSteps) -> Denoiser:
    """A copy of ``denoiser`` whose network computes its deep features at some steps of each run.

    Args:
        denoiser: of a U-Net of diffusers, simulated at 8 bits or not, or an exported graph of one.
        full_steps: k for every k-th step, beginning with the first, or the numbers of the steps
            that compute them, ascending from 0.

    Raises:
        ValueError: a network that can't be split, or other full steps.
    """
    if isinstance(full_steps, int):
        fits = full_steps >= 2
    else:
        full_steps = tuple(full_steps)
        fits = full_steps[:1] == (0,) and list(full_steps) == sorted(set(full_steps))
    if not fits:
        raise ValueError(
            "the cache is a whole number from 2 (every second step is computed in full), or the"
            f" numbers of those steps, ascending from 0; got {full_steps}"
        )
    return denoiser.around(CachedNetwork(split(denoiser.network), full_steps))


def split(network: Network) -> Deep:
    """A network in two parts: by its own ``split()``, or diffusers' U-Net.

    Raises:
        ValueError: a network that can't be split.
    """
    own = getattr(network, "split", None)
    parts: Deep = own() if callable(own) else SplitUNet(network)
    return parts
