"""A network with everything needed to ask it a question: process, prediction type, value range,
fold, condition.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solvers.inputs.errors import ModelError, reading
from solvers.inputs.padding import continued
from solvers.inputs.settings import Settings, completed, stated
from solvers.prediction import HEADS, Prediction
from solvers.processes.continuous import VE
from solvers.processes.process import Process

# a network of any library: a function, an ``nn.Module`` or a session, with attributes of its own
Network = Any
# a number, or a tensor of them
Number = TypeVar("Number", float, Tensor)


class Denoiser:
    """``denoiser(x, t) -> Prediction`` around any network.

    Args:
        network: ``network(input, t)`` with ``input (B, C_in, H/fold, W/fold)`` and ``t (B,)``
            float; returns the output tensor, or an object with ``.sample`` (diffusers). Any
            ``nn.Module`` or callable.
        process: the process the network was trained under.
        prediction_type: one of the process's ``prediction_types``: ``epsilon``, ``sample``,
            ``v_prediction``; ``residual``, ``resnoise`` (Resfusion); ``residual``,
            ``residual_noise``, ``sample_noise`` (RDDM).
        settings: what it expects of its input and means by its output; see
            :class:`solvers.inputs.settings.Settings`.

    A network trained under a process that holds the degraded image ``y`` sees the state with its
    share of ``y``. ``y`` is the condition's first C channels, or what :meth:`with_degraded` was
    given.

    Attributes:
        device: where states must live (the device of the network's first parameter, else CPU).
        autoencoder: of a network of latents, between pictures and what is diffused
            (:class:`solvers.interop.autoencoder.Autoencoder`); None: pictures are diffused.
    """

    def __init__(
        self,
        network: Network,
        process: Process,
        prediction_type: str = "epsilon",
        **settings: Unpack[Settings],
    ):
        chosen = completed(settings, process, prediction_type)
        self.network: Network = network
        self.process = process
        self.prediction_type = prediction_type
        self.value_range = chosen["value_range"]
        self.fold = chosen["fold"]
        self.multiple = chosen["multiple"]
        self.condition_channels = chosen["condition_channels"]
        self.residual = chosen["residual"]
        self.data_std: float | Tensor = chosen["data_std"]
        self.unrolled_steps = chosen["unrolled_steps"]
        self.shown = chosen["shown"]
        self.scaled = chosen["scaled"]
        self.padding, self.least = chosen["padding"], chosen["least"]
        self.condition: Tensor | None = None
        self.degraded: Tensor | None = None
        self.autoencoder: Any = None

    # -- asking ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        if isinstance(self.network, nn.Module):
            return next((p.device for p in self.network.parameters()), torch.device("cpu"))
        return torch.device("cpu")

    @property
    def image_channels(self) -> int | None:
        """Channels of the images, or of what else is diffused; None where the network doesn't
        tell.
        """
        config = getattr(self.network, "config", None)
        if config is not None:
            return int(config.in_channels) // self.fold**2 - self.condition_channels
        out = getattr(self.network, "out_channels", None)
        heads = HEADS.get(self.prediction_type, 1)
        return None if out is None else int(out) // heads // self.fold**2

    def around(self, network: Network) -> Self:
        """A copy that asks another network, ``network(input, t)``, which takes and gives the same
        channels.
        """
        other = copy.copy(self)
        other.network = network
        return other

    def bind(self, times: Sequence[float], noise: Callable[[Tensor], Tensor]) -> Self:
        """A copy for one run over ``times``: a network with ``begin(times)``, which remembers what
        it was asked before, begins anew. ``solve`` calls it.
        """
        network = begun(self.network, times)
        return self if network is self.network else self.around(network)

    def conditioned(self, condition: Tensor) -> Self:
        """A copy that shows ``condition (1 or B, condition_channels, H, W)`` to the network (which
        is shared, not copied).

        Raises:
            ValueError: the network takes no condition, or one with other channels.
        """
        if condition.ndim != 4 or condition.shape[1] != self.condition_channels:
            raise ValueError(
                f"the network takes a condition of {self.condition_channels} channels; got a tensor"
                f" of shape {tuple(condition.shape)}"
            )
        other = copy.copy(self)
        other.condition = condition
        return other

    def with_degraded(self, y: Tensor) -> Self:
        """A copy whose process holds the image ``y (1 or B, C, H, W)``, for networks that are not
        shown it (zeros: generation).
        """
        other = copy.copy(self)
        other.degraded = y
        return other

    def __call__(self, x: Tensor, t: float) -> Prediction:
        if self.process.holds_image:
            return self.process.predict(
                self.output(x, t), x, t, self.prediction_type, self._degraded(x)
            )
        a, b = self.process.a(t), self.process.b(t)
        lift = self.lift(x)
        z = x if lift is None else x - a * lift
        scale, a, b = self.unit_levels(a, b)
        z = z / scale if self.scaled else z
        answer = self.answer(a * z if self.residual else z, t)
        channels = z.shape[1]
        p = Prediction.from_output(answer[:, :channels], z, a, b, self.prediction_type)
        x0 = self.data_std * p.x0
        # a learned variance, of which networks say v in [-1, 1]
        learned = answer.shape[1] == 2 * channels
        spread = (answer[:, channels:] + 1) / 2 if learned else None
        return Prediction(x0 if lift is None else x0 + lift, p.eps, spread=spread)

    def unit_levels(self, a: Number, b: Number) -> tuple[Number, Number, Number]:
        """``sqrt(s^2 a^2 + b^2)`` and the coefficients ``a', b'`` of the state divided by it, from
        ``a, b`` (numbers or tensors); 1 and ``a, b`` where the network is shown the state itself.
        """
        if not self.scaled:
            one: Any = 1.0
            return one, a, b
        scale: Any = (self.data_std**2 * a**2 + b**2) ** 0.5
        return scale, self.data_std * a / scale, b / scale

    def _degraded(self, x: Tensor) -> Tensor | None:
        if self.degraded is not None:
            return self.degraded.to(x)
        if self.condition is not None and self.condition_channels >= x.shape[1]:
            return self.condition[:, : x.shape[1]].to(x)
        return torch.zeros_like(x) if self.condition_channels else None

    def lift(self, x: Tensor) -> Tensor | None:
        """The image estimate that the residual is taken from, or None."""
        if not self.residual or self.condition is None:
            return None
        return self.condition[:, : x.shape[1]].to(x)

    def output(self, z: Tensor, t: float | Tensor) -> Tensor:
        """The network's raw output for ``z (B, C, H, W)`` at time ``t`` (a number, or one per
        sample); two heads give 2C channels, and a learned variance is left out.
        """
        return self.answer(z, t)[:, : z.shape[1] * HEADS.get(self.prediction_type, 1)]

    def answer(self, z: Tensor, t: float | Tensor) -> Tensor:
        """All channels of :meth:`output`'s answer, a learned variance too."""
        height, width = z.shape[-2:]
        out = self.call_network(self.network_input(z).to(self._dtype(z)), t).to(z.dtype)
        if self.fold > 1:
            out = F.pixel_shuffle(out, self.fold)
        return out[..., :height, :width]

    def call_network(self, z: Tensor, t: float | Tensor) -> Tensor:
        """The network itself, on its own (folded, padded) input."""
        out = self.network(
            z, torch.as_tensor(t, dtype=torch.float32, device=z.device).expand(z.shape[0])
        )
        return output_of(out)

    def _dtype(self, z: Tensor) -> torch.dtype:
        # a half-precision network still gets a single-precision state to sample with
        first = (
            next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None
        )
        return z.dtype if first is None or not first.is_floating_point() else first.dtype

    def network_input(self, z: Tensor) -> Tensor:
        """State and condition stacked, padded to fit and folded: what the network is called
        with.
        """
        if self.condition_channels:
            condition = self.condition
            if condition is None:
                condition = z.new_zeros(1, self.condition_channels, *z.shape[-2:])
            if condition.shape[-2:] != z.shape[-2:]:
                raise ValueError(
                    f"state is {tuple(z.shape[-2:])} but its condition is"
                    f" {tuple(condition.shape[-2:])} pixels"
                )
            z = torch.cat([z, condition.to(z).expand(z.shape[0], -1, -1, -1)], dim=1)
        z = continued(z, self.fold * self.multiple, self.least, self.padding)
        return F.pixel_unshuffle(z, self.fold) if self.fold > 1 else z

    # -- value range -------------------------------------------------------------------------------

    def from_unit(self, image: Tensor) -> Tensor:
        """Images in [0, 1] to the network's value range."""
        low, high = self.value_range
        return image * (high - low) + low

    def to_unit(self, image: Tensor) -> Tensor:
        """Images in the network's value range to [0, 1] (not clipped)."""
        low, high = self.value_range
        return (image - low) / (high - low)

    # -- files and functions -----------------------------------------------------------------------

    @classmethod
    def from_sigma(
        cls,
        network: Network,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        *,
        value_range: tuple[float, float] = (-1.0, 1.0),
        multiple: int = 1,
    ) -> Denoiser:
        """A denoiser ``D(x, sigma)`` as EDM, k-diffusion and plug-and-play methods have it: the
        noisy image itself ``(B, C, H, W)`` and the noise's standard deviation ``(B,)`` to the
        denoised image.

        Args:
            network: any module or function.
            sigma_min, sigma_max: least and most noise that runs ask it about, in the units of
                ``value_range``; EDM's by default.
            value_range, multiple: as above.

        Raises:
            ValueError: not ``0 < sigma_min < sigma_max``.
        """
        process = VE(sigma_min, sigma_max)
        return cls(
            network, process, "sample", value_range=value_range, multiple=multiple, scaled=False
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", **options: Any
    ) -> Denoiser:
        """Load a file of weights of a known family (docs/networks.md), a diffusers folder of a
        ``UNet2DModel`` or ``UNet2DConditionModel``, or a pipeline folder with ``unet/`` and
        ``scheduler/``.

        ``denoiser.json`` holds fold, range and condition (defaults if there is none) and may hold
        ``process`` (:func:`solvers.interop.description.from_description`: Resfusion, RDDM, a
        continuous process ...) and ``prediction_type``. Where it does not, they come from
        ``scheduler_config.json`` (DDPM's linear schedule and ``epsilon`` if there is none). A
        ``UNet2DConditionModel`` is shown one prompt (:mod:`solvers.interop.text`), and what lies in
        ``vae/`` becomes the denoiser's ``autoencoder``.

        Args:
            folder: or file.
            device: where the network shall live.
            options: what the weights of a file don't tell, such as ``num_heads``
                (:data:`solvers.interop.checkpoints.options.OPTIONS`), and what the network is asked
                for: ``class_label``, ``prompt``. What was recognised and assumed is told in one
                line on stderr.

        Raises:
            FileNotFoundError: no such file or folder.
            ModelError: it holds no network that is known, its files are damaged, or an option
                doesn't fit.
        """
        from solvers.interop.pretrained import read_model

        with reading(folder, "a denoiser", ModelError):
            parts = read_model(Path(folder), options)
            autoencoder = parts.pop("autoencoder", None)
            made = cls(**parts)
        made.network.to(device)  # what fails here is no fault of the folder
        made.autoencoder = None if autoencoder is None else autoencoder.to(device)
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what :meth:`from_pretrained` loads: ``unet/``, ``denoiser.json`` and, for a VP
        process, ``scheduler/`` for diffusers.

        Raises:
            ValueError: the network is of a class that :meth:`from_pretrained` doesn't know, or the
                process is of a class of your own.
        """
        from solvers.interop.written import write_model

        write_model(
            Path(folder),
            self.network,
            self.process,
            prediction_type=self.prediction_type,
            multiple=self.multiple,
            settings=self.settings,
            autoencoder=self.autoencoder,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the description that diffusers has no place for (the content of
        ``denoiser.json``).
        """
        return stated(self)


def output_of(answer: Any) -> Tensor:
    """The tensor of a network's answer: itself, or its ``sample`` (diffusers)."""
    return answer if isinstance(answer, Tensor) else answer.sample


def begun(network: Network, times: Sequence[float]) -> Network:
    """What its ``begin(times)`` returns, or the network itself where it has no such method:
    ``times`` are a run's nodes, as times of the network's process.
    """
    begin = getattr(network, "begin", None)
    return begin(times) if callable(begin) else network


def timesteps_of(network: Network) -> tuple[float, ...]:
    """The only times that a network answers at; empty where it answers at any."""
    return tuple(getattr(network, "timesteps", ()))
