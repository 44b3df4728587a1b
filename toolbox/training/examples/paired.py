"""Pairs to train restoration networks on: made-up haze on clear pictures, or a folder of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from restoration.io.images import read_image
from restoration.paired.haze import AIRLIGHT, BETA, Scattering, follow_edges, procedural_depth
from restoration.paired.task import HAZE, MASKED, PLAIN, haze_condition
from solvers.denoiser import Denoiser

if TYPE_CHECKING:
    from toolbox.training.recipe import TrainingRecipe

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


class Haze(BaseModel):
    """How haze is made: section ``[haze]`` of a recipe."""

    model_config = ConfigDict(extra="forbid")

    beta: tuple[float, float] = BETA
    airlight: tuple[float, float] = AIRLIGHT
    tint: float = Field(0.05, ge=0, le=1)
    # share of samples whose haze is made in linear light
    linear_light: float = Field(0.0, ge=0, le=1)
    # share of things in front that are filled from other pictures or painted plain
    paste: float = Field(0.5, ge=0, le=1)
    # share of samples whose surfaces are painted plain, as walls indoors are
    rooms: float = Field(0.3, ge=0, le=1)
    # share of clear pictures stretched to black and white, as cameras expose them
    levels: float = Field(0.8, ge=0, le=1)
    # how far exposure, gamma and saturation of the clear pictures vary
    jitter: float = Field(0.4, ge=0, le=1)
    drop: float = Field(0.0, ge=0, le=1)  # share of samples that are shown nothing

    @model_validator(mode="after")
    def _check_ranges(self):
        if not 0 <= self.beta[0] <= self.beta[1]:
            raise ValueError("beta must be [low, high] with 0 <= low <= high")
        if not 0 <= self.airlight[0] <= self.airlight[1] <= 1:
            raise ValueError("airlight must be [low, high] in [0, 1]")
        return self


class Pairs(BaseModel):
    """Where pairs lie: section ``[pairs]`` of a recipe.

    ``shown``: what the network is shown: the degraded picture, that and a mask, or what
    :func:`restoration.paired.task.haze_condition` makes of it.
    """

    model_config = ConfigDict(extra="forbid")

    degraded: str = "degraded"
    clean: str = "clean"
    mask: str = "mask"
    shown: Literal["degraded", "mask", "haze"] = "degraded"
    scales: list[float] = Field([1.0], min_length=1)
    drop: float = Field(0.0, ge=0, le=1)  # share of samples that are shown nothing


SHOWN = {"degraded": PLAIN, "mask": MASKED, "haze": HAZE}  # condition channels


def vary(image: Tensor, amount: float, rng: np.random.Generator) -> Tensor:
    """A clear picture ``(3, H, W)`` at another exposure, gamma, white balance and saturation; what
    is too bright saturates.
    """
    gamma, gain = (
        np.exp(rng.uniform(-amount, amount)),
        np.exp(rng.uniform(-1.2 * amount, 0.6 * amount)),
    )
    colour = np.exp(rng.uniform(-0.3, 0.3, 3) * amount)
    image = image**gamma
    grey = image.mean(0, keepdim=True)
    image = grey + (1 + rng.uniform(-1.5, 0.5) * amount) * (image - grey)
    return (image * torch.from_numpy(gain * colour).to(image)[:, None, None]).clamp(0, 1)


def plain(texture: Tensor, rng: np.random.Generator) -> Tensor:
    """A surface of one colour, often white, with a trace of a picture ``(3, H, W)``: near and
    bright, yet without haze.
    """
    level = rng.uniform(0.05, 0.95) if rng.random() < 0.85 else 1.0
    colour = torch.from_numpy(level * (1 - 0.3 * rng.random() * rng.random(3))).float()[
        :, None, None
    ]
    trace = rng.uniform(0.02, 0.3)
    return colour * (1 - trace + trace * texture)


def make_hazy(
    clear: Tensor, others: Tensor, settings: Haze, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """One pair ``(3, H, W)``, clear and hazy, from a picture and others to fill things in front
    with, all in [0, 1].
    """
    clear = vary(clear, settings.jitter, rng)
    depth, labels = procedural_depth(*clear.shape[1:], rng)
    if rng.random() < settings.rooms:
        for k in range(labels.min(), 0):
            clear = torch.where(torch.from_numpy(labels == k), plain(clear, rng), clear)
    for k in range(1, labels.max() + 1):
        inside = torch.from_numpy(labels == k)
        if rng.random() < settings.paste and inside.any():
            filling = vary(others[rng.integers(len(others))], settings.jitter, rng)
            filling = plain(filling, rng) if rng.random() < 0.4 else filling
            clear = torch.where(inside, filling, clear)
    if rng.random() < settings.levels:
        low, high = np.quantile(clear.numpy(), (rng.uniform(0.01, 0.08), rng.uniform(0.94, 0.995)))
        clear = ((clear - float(low)) / max(float(high - low), 0.1)).clamp(0, 1)
    if rng.random() < 0.5:
        depth = follow_edges(depth, clear, int(rng.integers(3, 17)))
    scattering = Scattering.draw(
        rng, settings.beta, settings.airlight, settings.tint * rng.random()
    )
    if rng.random() < settings.linear_light:
        scattering = Scattering(scattering.beta, scattering.airlight, linear_light=True)
    return clear, scattering(clear, depth)


def find_pairs(
    folder: str | Path, degraded: str = "degraded", clean: str = "clean", mask: str | None = None
) -> list[tuple[Path, ...]]:
    """``(degraded, clean)`` or ``(degraded, clean, mask)`` files of the folder's subfolders,
    ordered by name.

    Files belong together that have the same name up to the suffix; one clean picture may serve
    several degraded ones whose names go on after an underscore (``1400_4.jpg`` and ``1400.jpg``, as
    in RESIDE).

    Raises:
        FileNotFoundError: no such subfolder.
        ValueError: nothing in it, or a degraded picture without its clean one or mask.
    """
    root = Path(folder)
    for name in (degraded, clean) if mask is None else (degraded, clean, mask):
        if not (root / name).is_dir():
            raise FileNotFoundError(
                f"{root} holds no folder {name!r}; pairs lie in {degraded}/ and {clean}/ (and masks"
                f" in {mask or 'mask'}/)"
            )
    names = [
        {p.stem: p for p in sorted((root / n).iterdir()) if p.suffix.lower() in SUFFIXES}
        for n in (clean, mask)
        if n is not None
    ]
    found = []
    for path in sorted(p for p in (root / degraded).iterdir() if p.suffix.lower() in SUFFIXES):
        partners = [known.get(path.stem) or known.get(path.stem.split("_")[0]) for known in names]
        if None in partners:
            missing = (clean, mask)[partners.index(None)]
            raise ValueError(
                f"{path} has no partner in {root / missing}: it needs a file of the same name there"
            )
        found.append((path, *partners))
    if not found:
        raise ValueError(f"{root / degraded} holds no picture ({', '.join(SUFFIXES)})")
    return found


def read_pair(degraded: Path, clean: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures ``(C, H, W)`` in [0, 1].

    Raises:
        ValueError: sizes, or colour and grey, that differ.
    """
    a, b = read_image(degraded).pixels, read_image(clean).pixels
    if a.shape[1:] != b.shape[1:]:
        sizes = " and ".join(f"{v.shape[2]} x {v.shape[1]}" for v in (a, b))
        raise ValueError(
            f"{degraded} and {clean} differ in size ({sizes}); a pair shows the same pixels"
        )
    if a.shape[0] != b.shape[0]:
        kinds = " and ".join("grey" if v.shape[0] == 1 else "colour" for v in (a, b))
        raise ValueError(f"{degraded} and {clean} are {kinds}; a pair is either")
    return a, b


class PairExamples:
    """Random patches of a folder of pairs, with flips and quarter turns; the same for both pictures
    and the mask.

    Raises:
        FileNotFoundError, ValueError: see :func:`find_pairs` and :func:`read_pair`; a mask of
            another size; no pair as large as a patch.
    """

    channels, condition_channels = 3, PLAIN

    def __init__(self, recipe: TrainingRecipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, settings = recipe, recipe.pairs
        self.stacks: list[np.ndarray] = []  # degraded, clean and mask on channels
        for paths in find_pairs(
            folder,
            settings.degraded,
            settings.clean,
            settings.mask if settings.shown == "mask" else None,
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
            for scale in settings.scales:
                size = [round(scale * n) for n in stack.shape[-2:]]
                if min(size) >= recipe.patch_size:
                    reduced = (
                        stack
                        if scale == 1
                        else F.interpolate(stack, size, mode="bilinear", antialias=True)
                    )
                    self.stacks.append((reduced[0] * 255).round().to(torch.uint8).numpy())
        if not self.stacks:
            raise ValueError(
                f"{folder} holds no pair of at least {recipe.patch_size} x {recipe.patch_size}"
                " pixels"
            )

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clean pictures in [0, 1]; degraded ones, with their mask as a fourth channel where there
        is one; 0 where nothing is shown.
        """
        size, out = self.recipe.patch_size, []
        for index in rng.integers(len(self.stacks), size=count):
            stack = self.stacks[index]
            top, left = (int(rng.integers(n - size + 1)) for n in stack.shape[1:])
            patch = np.rot90(
                stack[:, top : top + size, left : left + size], rng.integers(4), axes=(1, 2)
            )
            out.append(np.ascontiguousarray(patch if rng.random() < 0.5 else patch[..., ::-1]))
        drawn = torch.from_numpy(np.stack(out)).float() / 255
        clean, degraded, mask = drawn[:, 3:6], drawn[:, :3], (drawn[:, 6:] >= 0.5).float()
        return clean, torch.cat([degraded, mask], dim=1), kept(count, self.recipe.pairs.drop, rng)

    @staticmethod
    def show(
        denoiser: Denoiser, clean: Tensor, shown: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image in the network's range, what the network is shown, and 1 where something is to be
        found out (everywhere).
        """
        condition = haze_condition(shown) if denoiser.condition_channels == HAZE else shown
        return (
            denoiser.from_unit(clean),
            keep * denoiser.from_unit(condition),
            torch.ones_like(clean[:, :1]),
        )


def kept(count: int, drop: float, rng: np.random.Generator) -> Tensor:
    """``(count, 1, 1, 1)``: 0 for a random share ``drop`` of samples, else 1."""
    return torch.from_numpy((rng.random(count) >= drop).astype(np.float32))[:, None, None, None]
