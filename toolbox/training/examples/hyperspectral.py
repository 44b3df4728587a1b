"""Training examples for the joint hyperspectral model: simulated scenes as the subspace encodes
them, clean and measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restoration.hyperspectral.eigen_images import Statistics
from restoration.hyperspectral.joint import (
    CHANNELS,
    CONDITION_CHANNELS,
    WEAKEST,
    groups,
    measured_features,
    pad_channels,
    prior_features,
    shown,
    strengths,
)
from restoration.hyperspectral.noise import add_noise
from restoration.hyperspectral.simulation import SpectralLibrary, bands_of, simulate_cube
from restoration.hyperspectral.subspace import data_mask, fit_subspace, weighted_coefficients
from restoration.io.pictures.folders import random_window
from solvers.denoiser import Denoiser
from solvers.processes.process import VP
from toolbox.training.sections import Scenes, needed


class Latents:
    """Encoded scenes, each made once from its number and kept in memory.

    Args:
        pictures: object with ``draw(count, rng)``: patches ``(count, 3, side, side)`` in [0, 1].
        folder: searched for ``spectral_library.npz``.

    Raises:
        ValueError: no library in the folder.
    """

    def __init__(self, pictures, folder: str | Path, scenes: Scenes, size: int, seed: int):
        found = sorted(Path(folder).rglob("spectral_library.npz"))
        if not found:
            raise ValueError(
                f"{folder} holds no spectral_library.npz, which the simulated scenes are mixed from"
            )
        self.library, self.pictures = SpectralLibrary.read(found[0]), pictures
        self.scenes, self.size, self.seed = scenes, size, seed
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def scene(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """``(r, H, W)`` clean latent, the same as measured, and its noise variance, in units of
        noise; median of what is measured 0.
        """
        if number not in self.kept:
            self.kept[number] = self._encode(np.random.default_rng([self.seed, 1, number]))
        return self.kept[number]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Patches: clean ``(count, 8, size, size)``, measured, variance, and the strengths
        ``(count, 8)`` of their scenes' channels.
        """
        out = [torch.empty(count, CHANNELS, self.size, self.size) for _ in range(3)]
        std = torch.empty(count, CHANNELS)
        for k in range(count):
            clean, measured, variance = self.scene(int(rng.integers(self.scenes.scenes)))
            strength = strengths(measured, variance)
            sets = groups(strength.numpy())
            channels = sets[int(rng.integers(len(sets)))][0]
            rows, columns = random_window(clean.shape, self.size, rng)
            sign = torch.from_numpy(rng.choice([-1.0, 1.0], (len(channels), 1, 1))).float()
            signs = (sign, sign, torch.ones_like(sign))
            turns, flip = int(rng.integers(4)), rng.random() < 0.5
            for target, source, s, empty in zip(
                out, (clean, measured, variance), signs, (0, 0, 1), strict=True
            ):
                patch = s * source[channels, rows, columns]
                patch = torch.rot90(patch, turns, (1, 2))
                target[k] = pad_channels(patch.flip(2) if flip else patch, empty)
            std[k] = pad_channels(strength[channels], WEAKEST)
        return *out, std

    def _encode(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        s = self.scenes
        picture = self.pictures.draw(1, rng)[0].numpy()
        wavelengths = bands_of(s.sensors[rng.integers(len(s.sensors))])
        count = min(int(rng.integers(s.bands[0], s.bands[1] + 1)), len(wavelengths))
        wavelengths = wavelengths[np.sort(rng.choice(len(wavelengths), count, replace=False))]
        clean = simulate_cube(
            self.library, picture, wavelengths, [self.seed, 2, int(rng.integers(2**31))]
        )
        case = s.cases[rng.integers(len(s.cases))]
        sigma = float(np.exp(rng.uniform(*np.log(s.sigmas)))) / 255 if case == "iid" else None
        noisy = add_noise(clean, case, int(rng.integers(2**31)), sigma)
        valid, _ = data_mask(noisy, np.ones(noisy.shape, bool))
        model = fit_subspace(noisy, valid)
        measured, variance, _ = model.project(noisy, valid)
        z = clean / model.sigma[:, None, None] - model.mean[:, None, None]
        truth, _ = weighted_coefficients(
            model.basis, z, np.broadcast_to(model.trusted[:, None, None], z.shape)
        )
        statistics = Statistics.of(measured, variance)
        middle = statistics.images.flatten(1).median(1).values[:, None, None]
        return (
            torch.from_numpy(truth).float() - middle,
            statistics.images - middle,
            statistics.variance,
        )


class LatentExamples:
    """Batches for :func:`latent_loss`."""

    channels, condition_channels = CHANNELS, CONDITION_CHANNELS

    def __init__(self, recipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        from toolbox.training.patches import Patches

        self.scenes = needed(recipe.scenes)
        self.process = VP.from_diffusers(recipe.process.scheduler_config())
        pictures = Patches(folder, self.scenes.side, exclude)
        self.latents = Latents(pictures, folder, self.scenes, recipe.patch_size, recipe.seed)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Clean and measured latents, variance, strengths."""
        return self.latents.draw(count, rng)

    def times(self, count: int, rng: np.random.Generator) -> Tensor:
        """Mostly the time of what was measured, ``b/a = 1``; else spread evenly in the logarithm of
        the noise.
        """
        low, high = np.log(self.scenes.levels)
        log_level = rng.uniform(low, high, count) * (rng.random(count) >= self.scenes.at_measured)
        return torch.tensor([self.process.time_at(-2 * v) for v in log_level], dtype=torch.float32)


def latent_loss(
    denoiser: Denoiser,
    clean: Tensor,
    measured: Tensor,
    variance: Tensor,
    std: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    prior: bool,
) -> Tensor:
    """Squared error of the output ``v`` at times ``t (B,)``, all channels alike: at ``b/a = 1``
    that is the error of the cube.

    Args:
        clean, measured, variance: ``(B, 8, H, W)`` latents and noise variance, in units of noise.
        std: ``(B, 8)`` strengths.
        noise: Gaussian; used by the ``prior``, which is shown no condition. Otherwise the noise is
            what the subspace left of stripes, dead pixels and noise: at ``b/a = 1`` the state is
            what was measured, with whatever traces it bears.
    """
    if prior:
        condition = torch.cat([prior_features(s, *clean.shape[-2:]) for s in std])
    else:
        noise = measured - clean
        condition = torch.cat(
            [measured_features(*m) for m in zip(measured, std, variance, strict=True)]
        )
    a, b = (
        f(t.cpu()).to(clean).view(-1, 1, 1, 1) for f in (denoiser.process.a, denoiser.process.b)
    )
    d = shown(denoiser, condition, std)
    scale, a_unit, b_unit = d.unit_levels(a, b)
    output = d.output((a * clean + b * noise) / scale, t).float()
    target = a_unit * noise - b_unit * clean / d.data_std
    weight = (std > WEAKEST)[..., None, None] / variance.clamp(1, 100)
    return (weight * (output - target) ** 2).sum() / weight.sum().clamp(min=1)
