"""Training examples for ultrasound: clean B-mode pictures for the tissue prior, what haze adds to
them for the haze prior, and pairs of both for a network that is shown the hazy one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restoration.io.images import read_image
from restoration.io.pictures.folders import find_pictures, random_window
from restoration.ultrasound.phantom import simulate_tissue
from restoration.ultrasound.simulation import simulate_haze
from solvers.denoiser import Denoiser


class UltrasoundExamples:
    """Patches of simulated and real pictures; each picture is made once from its number and kept as
    bytes.

    Raises:
        ValueError: real pictures are asked for and the folder holds none of at least a patch's
            size.
    """

    channels, condition_channels = 1, 0

    def __init__(self, recipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, self.echoes, self.size = recipe, recipe.echoes, recipe.patch_size
        found = [] if self.echoes.real == 0 else map(read_grey, find_pictures(folder, exclude))
        self.real = [image for image in found if min(image.shape) >= self.size]
        if self.echoes.real > 0 and not self.real:
            raise ValueError(
                f"{folder} holds no picture of at least {self.size} x {self.size} pixels (JPEG,"
                " PNG, WebP, TIFF)"
            )
        self.kept: dict[int, np.ndarray] = {}

    def picture(self, number: int) -> np.ndarray:
        """Picture ``number``: ``(H, W)`` in [0, 1] for tissue, in [-1, 1] for haze; of pairs ``(2,
        H, W)``, clean and hazy.
        """
        if number not in self.kept:
            self.kept[number] = np.rint(
                127 * self._make(np.random.default_rng([self.recipe.seed, 3, number]))
            ).astype(np.int8)
        return self.kept[number].astype(np.float32) / 127

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """``(count, 1, size, size)`` in [0, 1] (haze: [-1, 1]), of pairs the clean ones and the
        hazy ones; mirrored half of the time, never turned: beams run down.
        """
        out = []
        for _ in range(count):
            picture = self.picture(int(rng.integers(self.echoes.pictures)))
            for _ in range(4):  # rather not the black outside
                patch = picture[(..., *random_window(picture.shape, self.size, rng))]
                if (np.abs(patch) > 0.02).mean() > 0.25:
                    break
            out.append(patch[..., ::-1] if rng.random() < 0.5 else patch)
        drawn = torch.from_numpy(np.stack(out).reshape(count, -1, self.size, self.size))
        return drawn.split(1, dim=1)

    def times(self, count: int, rng: np.random.Generator) -> Tensor | None:
        """Levels spread evenly in the logarithm of the noise; None of pairs, whose runs start at
        the noisiest.
        """
        if self.echoes.kind == "dehazed":
            return None
        return self.recipe.noise.times(self.recipe.process.process(), count, rng)

    @staticmethod
    def show(denoiser: Denoiser, clean: Tensor, hazy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image in the network's range, what the network is shown, and 1 where something is to be
        found out (everywhere).
        """
        return denoiser.from_unit(clean), denoiser.from_unit(hazy), torch.ones_like(clean)

    def _make(self, rng: np.random.Generator) -> np.ndarray:
        e = self.echoes
        if rng.random() < e.real:
            clean = rescaled(
                self.real[rng.integers(len(self.real))], float(rng.uniform(*e.scales)), self.size
            )
            clean = np.clip(clean, 0, 1) ** rng.uniform(0.85, 1.2)
        else:
            height, width = (
                max(self.size, int(rng.integers(e.sides[0], e.sides[1] + 1))) for _ in range(2)
            )
            clean = simulate_tissue(height, width, int(rng.integers(2**31)))
        if e.kind == "tissue":
            return clean
        strength = float(np.exp(rng.uniform(*np.log(e.strengths))))
        hazy = simulate_haze(clean, strength, int(rng.integers(2**31)))
        return np.stack([clean, hazy]) if e.kind == "dehazed" else hazy - clean


def read_grey(path: Path) -> np.ndarray:
    """``(H, W)`` in [0, 1]; colours are averaged."""
    return read_image(path).pixels.mean(0)


def rescaled(image: np.ndarray, scale: float, least: int) -> np.ndarray:
    """The picture at another scale, no side below ``least``."""
    height, width = (max(least, round(n * scale)) for n in image.shape)
    return np.asarray(
        Image.fromarray(image.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    )
