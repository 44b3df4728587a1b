"""Pictures restored in the latents of an autoencoder: Stable Diffusion's networks. Rombach et al.
2022 (arXiv 2112.10752).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.operators.linear import Inpainting
from restoration.operators.measurement import Measurement
from restoration.photo.lift import thin_plate
from restoration.posterior import correction_by_name
from restoration.task import PictureTask, Run
from restoration.wrappers.tiling import TiledNetwork, tiled
from solvers.denoiser import Denoiser
from solvers.grid import Grid
from solvers.interop.autoencoder import Autoencoder
from solvers.methods.red_diff import REDDiff
from solvers.solver import DenoiserLike, Solver

SPREAD = 1.0  # standard deviation of latents, about
STEPS = 30  # of a run, where nobody says: a mean of latents is no picture's


class LatentTask(PictureTask, Protocol):
    """The settings of a picture task that a run in latents follows."""

    @property
    def denoiser(self) -> Denoiser: ...

    @property
    def solver(self) -> Solver: ...

    @property
    def num_inference_steps(self) -> int: ...

    def nodes(self) -> Grid: ...


def latent_inpainting(task: LatentTask, image: Tensor, known: Tensor, sigma: float) -> Run:
    """The run on pictures ``(B, 1 or 3, H, W)`` in [0, 1] where ``known (B, 1, H, W)`` is 1.

    A latent is known where all pixels of its block are. A network that is shown the mask and the
    latents of the picture without what is missing (grey there) is conditioned on them; another is
    held to the known latents by the correction, those of the lifted picture. Known pixels come back
    as they were.

    Raises:
        ValueError: noise, symmetries, or no known latent to hold a run to.
    """
    if sigma > 0:
        raise ValueError(
            "a network of latents restores pictures without noise: leave out sigma, or denoise the"
            " picture first"
        )
    if task.symmetries > 1:
        raise ValueError("latents don't turn with their pictures: leave out symmetries")
    d, (height, width) = task.denoiser, image.shape[-2:]
    autoencoder = _tiled_halves(d.autoencoder, image, task.tile, task.overlap)
    x, mask = (_padded(v, autoencoder.fold) for v in (image.expand(-1, 3, -1, -1), known))
    cells = 1 - F.max_pool2d(1 - mask, autoencoder.fold)
    solver, shown = task.solver, d.condition_channels > 0
    held = not shown or task.correction is not None or isinstance(solver, REDDiff)
    if held and not torch.compiler.is_exporting() and not cells.any():
        side = autoencoder.fold
        raise ValueError(
            f"no block of {side} x {side} pixels is known as a whole, so that there are no latents"
            " to hold a run to: take a network of pictures"
        )
    latents = autoencoder.encode(2 * thin_plate(x * mask, mask) - 1) if held else cells
    d = _tiled(d, cells, task)
    if shown:
        masked = autoencoder.encode((2 * x - 1) * mask)
        d = d.conditioned(torch.cat([1 - cells, masked], dim=1))
    measurement = Measurement(Inpainting(cells), latents * cells, 0.0)
    asked: DenoiserLike = d
    if isinstance(solver, REDDiff):
        if task.correction is not None:
            raise ValueError("red-diff holds a run to the data by itself: leave out the correction")
        solver = solver.on(measurement, latents)
    elif held:
        asked = correction_by_name(
            task.correction or "ddnm",
            d,
            measurement,
            steps=task.num_inference_steps,
            solver=solver,
            prior_std=SPREAD,
            options=task.correction_options,
        )

    def finish(z: Tensor) -> Tensor:
        unit = (autoencoder.decode(z)[..., :height, :width] + 1) / 2
        unit = unit.mean(1, keepdim=True) if image.shape[1] == 1 else unit
        return torch.where(known > 0, image, unit).clamp(0, 1)

    shape = (autoencoder.channels, int(cells.shape[-2]), int(cells.shape[-1]))
    evidence = Measurement(Inpainting(known), image * known, sigma)
    return Run(asked, solver, task.nodes(), shape, finish, evidence=evidence)


def _padded(x: Tensor, unit: int) -> Tensor:
    """With the last rows and columns repeated up to multiples of ``unit``."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % unit, 0, -height % unit), mode="replicate")


def _tiled(d: Denoiser, latents: Tensor, task: LatentTask) -> Denoiser:
    """Asked in tiles where the latents are larger than one."""
    tile = max(task.tile // d.autoencoder.fold // d.multiple, 1) * d.multiple
    if max(latents.shape[-2:]) <= tile:
        return d
    return tiled(d, tile, min(task.overlap // d.autoencoder.fold, tile // 8))


def _tiled_halves(autoencoder: Autoencoder, image: Tensor, tile: int, overlap: int) -> Autoencoder:
    """An autoencoder that works in tiles, where pictures are larger than one."""
    side, shared = (max(n // autoencoder.fold, 1) for n in (tile, min(overlap, tile // 4)))
    if max(image.shape[-2:]) <= tile or 2 * shared >= side:
        return autoencoder
    return autoencoder.around(
        *(TiledNetwork(half, side, shared) for half in (autoencoder.encoder, autoencoder.decoder))
    )
