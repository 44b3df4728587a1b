"""Pairs to train restoration networks on: made-up haze on clear pictures, or a folder of pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.io.images import read_image
from restoration.io.pictures.folders import find_pairs, random_window, read_pair
from restoration.paired.degradations import MADE
from restoration.paired.lifts import LIFTS
from restoration.paired.simulation import make_hazy
from restoration.paired.task import FINER, HAZE, MASKED, PLAIN, haze_condition, reduced
from solvers.denoiser import Denoiser
from toolbox.training.patches import Patches
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.sections import SHOWN, needed

WIDER = 2  # sides of what a lift is taken from, in patches


class PairExamples:
    """Random patches of a folder of pairs, with flips and quarter turns; the same for both pictures
    and the mask.

    Raises:
        FileNotFoundError, ValueError: see :func:`find_pairs` and :func:`read_pair`; a mask of
            another size; no pair as large as a patch.
    """

    channels, condition_channels = 3, PLAIN

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, self.settings = recipe, needed(recipe.pairs)
        settings = self.settings
        self.size = recipe.patch_size * (FINER if settings.shown == "haze" else 1)
        channels, word = SHOWN[settings.shown]
        self.stacks: list[np.ndarray] = []  # degraded, clean and mask on channels
        for paths in find_pairs(
            folder, settings.degraded, settings.clean, settings.mask if channels == MASKED else None
        ):
            if paths[0].name in exclude:
                continue
            parts = [np.broadcast_to(v, (3, *v.shape[1:])) for v in read_pair(*paths[:2])]
            if len(paths) == 3:
                mask = read_image(paths[2]).pixels
                if mask.shape[1:] != parts[0].shape[1:]:
                    raise ValueError(f"mask {paths[2]} has another size than {paths[0]}")
                parts.append((mask.mean(0, keepdims=True) >= 0.5).astype(np.float32))
            stack = torch.from_numpy(np.concatenate(parts))[None]
            if word in LIFTS:
                stack[:, :3] = LIFTS[word](stack[:, :3], stack[:, 6:])
            for scale in settings.scales:
                size = [round(scale * n) for n in stack.shape[-2:]]
                if min(size) >= self.size:
                    scaled = (
                        stack
                        if scale == 1
                        else F.interpolate(stack, size, mode="bilinear", antialias=True)
                    )
                    self.stacks.append((scaled[0] * 255).round().to(torch.uint8).numpy())
        if not self.stacks:
            raise ValueError(f"{folder} holds no pair of at least {self.size} x {self.size} pixels")

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clean pictures in [0, 1]; degraded ones, with their mask as a fourth channel where there
        is one, and of twice the size for haze networks; 0 where nothing is shown.
        """
        size, out = self.size, []
        for index in rng.integers(len(self.stacks), size=count):
            stack = self.stacks[index]
            part = stack[(slice(None), *random_window(stack.shape, size, rng))]
            patch = np.rot90(part, int(rng.integers(4)), axes=(1, 2))
            out.append(np.ascontiguousarray(patch if rng.random() < 0.5 else patch[..., ::-1]))
        drawn = torch.from_numpy(np.stack(out)).float() / 255
        clean, degraded, mask = drawn[:, 3:6], drawn[:, :3], (drawn[:, 6:] >= 0.5).float()
        clean = reduced(clean, self.recipe.patch_size)
        return clean, torch.cat([degraded, mask], dim=1), kept(count, self.settings.drop, rng)

    @staticmethod
    def show(
        denoiser: Denoiser, clean: Tensor, shown: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image in the network's range, what the network is shown, and 1 where something is to be
        found out (everywhere).
        """
        condition = shown
        if denoiser.condition_channels == HAZE:  # drawn finer than the network's pictures
            condition = reduced(haze_condition(shown), clean.shape[-1])
        return (
            denoiser.from_unit(clean),
            keep * denoiser.from_unit(condition),
            torch.ones_like(clean[:, :1]),
        )


class MadeExamples:
    """Clean pictures and what light, shadows or drops make of them; upright, in their own
    colours. What is lifted is lifted by more of the picture than a patch, as whole pictures are.
    """

    channels, condition_channels = 3, PLAIN
    show = staticmethod(PairExamples.show)

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.settings, self.size = needed(recipe.pairs), recipe.patch_size
        self.degrade = MADE[str(self.settings.made)]
        channels, word = SHOWN[self.settings.shown]
        self.masked, self.lift = channels == MASKED, LIFTS.get(word)
        size = self.size if self.lift is None else WIDER * self.size
        scales = tuple(self.settings.scales)
        self.patches = Patches(folder, size, exclude, swap=False, turn=False, scales=scales)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`PairExamples.draw`; degraded pictures have 8 bits, as files do."""
        clean = self.patches.draw(count, rng)
        made = [self.degrade(picture, rng) for picture in clean]
        degraded, mask = (torch.stack(part) for part in zip(*made, strict=True))
        degraded = (degraded * 255).round() / 255
        lifted = degraded if self.lift is None else self.lift(degraded, mask)
        shown = torch.cat([lifted, mask], dim=1) if self.masked else lifted
        if clean.shape[-1] > self.size:
            rows, columns = random_window(clean.shape, self.size, rng)
            clean, shown = clean[..., rows, columns], shown[..., rows, columns]
        return clean, shown, kept(count, self.settings.drop, rng)


def kept(count: int, drop: float, rng: np.random.Generator) -> Tensor:
    """``(count, 1, 1, 1)``: 0 for a random share ``drop`` of samples, else 1."""
    return torch.from_numpy((rng.random(count) >= drop).astype(np.float32))[:, None, None, None]


class HazeExamples:
    """Clear pictures and the same ones in made-up haze."""

    channels, condition_channels = 3, HAZE
    show = staticmethod(PairExamples.show)
    # of a patch: nearly whole pictures, as haze is told from the look of a scene
    SIDES = (1.0, 1.2, 1.45, 1.8)

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        size = FINER * recipe.patch_size
        sides = tuple(round(share * size) for share in self.SIDES)
        self.haze, self.size = needed(recipe.haze), recipe.patch_size
        # upright and in their own colours: the sky is above, and haze is told by colours
        self.patches = Patches(folder, size, exclude, sides, swap=False, turn=False)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clear pictures in [0, 1], hazy ones of twice the size, and 0 where the condition is
        dropped.
        """
        drawn = self.patches.draw(2 * count, rng)
        pairs = [make_hazy(picture, drawn[count:], self.haze, rng) for picture in drawn[:count]]
        clear, hazy = (torch.stack(part) for part in zip(*pairs, strict=True))
        hazy = (hazy * 255).round() / 255
        return reduced(clear, self.size), hazy, kept(count, self.haze.drop, rng)
