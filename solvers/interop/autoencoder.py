"""The autoencoder of a latent network: pictures to latents and back."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers.files import replace_file
from solvers.inputs.errors import ModelError, reading
from solvers.inputs.strict_json import read_object
from solvers.interop.folders import CONFIG, WEIGHTS, check_network, said_of, weights_in


@dataclass(frozen=True)
class Autoencoder:
    """Pictures ``(B, C, H, W)`` in [-1, 1] to latents ``(B, c, H/f, W/f)`` and back.

    Attributes:
        folder: that it was read from.
        encoder, decoder: ``network(x, t)`` between folded pictures ``(B, C f^2, h, w)`` and latents
            ``(B, c, h, w)`` (:mod:`solvers.interop.networks.autoencoder`), PyTorch's or exported.
        fold: f, pixels of a latent's side.
        channels: c.
    """

    folder: Path
    encoder: Any
    decoder: Any
    fold: int
    channels: int

    def around(self, encoder: Any, decoder: Any) -> Self:
        """A copy that asks these networks."""
        return replace(self, encoder=encoder, decoder=decoder)

    def fitting(self, channels: int | None, name: str) -> Self:
        """Itself, where a network of so many channels works on its latents.

        Raises:
            ModelError: another number.
        """
        if channels != self.channels:
            raise ModelError(
                f"{self.folder} makes latents of {self.channels} channels, and {name} works on"
                f" {channels}: they don't belong together"
            )
        return self

    def to(self, device: str | torch.device) -> Self:
        """Its networks are moved."""
        self.encoder.to(device), self.decoder.to(device)
        return self

    def encode(self, pictures: Tensor) -> Tensor:
        """The means of the pictures' latents; sides are multiples of :attr:`fold`."""
        folded = F.pixel_unshuffle(pictures, self.fold)
        latents: Tensor = self.encoder(folded, folded.new_zeros(folded.shape[0]))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures of latents."""
        folded = self.decoder(latents, latents.new_zeros(latents.shape[0]))
        return F.pixel_shuffle(folded, self.fold)

    def write(self, folder: Path) -> None:
        """Its files into another folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for source in (self.folder / name for name in (CONFIG, *WEIGHTS)):
            if source.is_file():
                replace_file(folder / source.name, partial(shutil.copyfile, source))


def read_autoencoder(folder: Path) -> Autoencoder:
    """That of a ``vae/`` folder, in single precision.

    Raises:
        ModelError: another than diffusers' ``AutoencoderKL``, or damaged.
    """
    from diffusers import AutoencoderKL

    from solvers.interop.networks.autoencoder import LatentDecoder, LatentEncoder

    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} is no folder of an autoencoder: it needs {CONFIG}")
    if (weights := weights_in(folder)) is None:
        raise ModelError(f"{folder} is no folder of an autoencoder: it needs {WEIGHTS[0]}")
    config = read_object(folder / CONFIG, ModelError)
    if (kind := config.get("_class_name")) != "AutoencoderKL":
        raise ModelError(f"{folder} holds a {kind}; of autoencoders AutoencoderKL is read")
    if config.get("latents_mean") or config.get("latents_std"):
        raise ModelError(
            f"{folder}: latents with a mean and standard deviation for each channel are not read"
        )
    sides = config.get("in_channels", 3), config.get("out_channels", 3)
    if sides != (3, 3):
        raise ModelError(
            f"{folder} takes {sides[0]} channels and gives {sides[1]}; autoencoders of pictures, 3"
            " and 3, are read"
        )
    check_network(kind, AutoencoderKL.from_config, config, weights)
    with reading(folder, "an AutoencoderKL", ModelError):
        read: Any = AutoencoderKL.from_pretrained
        vae, report = read(
            folder,
            torch_dtype=torch.float32,
            output_loading_info=True,
            low_cpu_mem_usage=False,
            **said_of(weights),
        )
        if missing := sorted(report["missing_keys"]):
            raise ModelError(f"{folder} lacks {len(missing)} tensors, such as {missing[0]}")
        encoder, decoder = LatentEncoder(vae), LatentDecoder(vae)
    for part in (encoder, decoder):
        part.eval().requires_grad_(False)
        for name, value in part.named_parameters():
            if not torch.isfinite(value).all():
                raise ModelError(f"{weights}: {name} holds NaN or infinite values")
    return Autoencoder(folder, encoder, decoder, decoder.fold, decoder.config.in_channels)
