"""Paired degradations (haze, rain drops, shadows, low light): from the degraded picture to the
clean one in a few steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.paired.dark_channel import DarkChannelEstimate, DarkChannelPrior, box_mean
from restoration.paired.lifts import LIFTS, underexposed
from restoration.task import Restored, Run, Watch, sample
from restoration.wrappers.tiling import in_tiles, set_tile
from solvers.denoiser import Denoiser
from solvers.grid import GRIDS, check_steps, lay
from solvers.methods.rddm import RDDM, RDDMSampler
from solvers.methods.resfusion import Resfusion, ResfusionSampler
from solvers.processes.process import Process
from solvers.solver import DenoiserLike, Solver

# condition channels: the degraded picture; and a mask; what haze_condition gives
PLAIN, MASKED, HAZE = (3, 4, 7)
# Noise where a run of a matched network starts, in the network's range: one answer is right, and
# noise would leave blotches where it is unsure.
LITTLE = 0.01
VIEW = 128  # short side at which haze is judged: the whole scene, whatever the picture's size
# The dark channel is taken at twice that side: details hold the dark pixels that it looks for.
FINER = 2
# all of the haze would leave dark, coloured skies to be mended
SOFT = DarkChannelPrior(omega=0.8)
# what stands in for the network where haze is denser than it can tell
FLOOR = DarkChannelPrior()
# its share in thin haze and in dense, and by the mean transmission what is dense and over how much
# haze thins. Never all: what samples disagree about must show. Chosen on made haze and RESIDE's
# indoor haze: docs/dehazing.md
LEAST, MOST, DENSE, THINNING = 0.35, 0.75, 0.3, 0.15
# and by the colour of the prior's picture, of the answer's: from where on it is not believed, and
# over how much it is believed less
TINTED, TINTING = 1.2, 0.3
# mean transmission from where on the prior is believed alone: it finds next to no haze, which a
# network takes bright things for; and airlight at which there can be none, to which there can
CLEAR, CLEARING = 0.98, 0.08
NIGHT, DUSK = 0.1, 0.2


def haze_condition(hazy: Tensor, prior: DarkChannelPrior = SOFT) -> Tensor:
    """What dehazing networks are shown, ``(B, 7, H, W)`` in [0, 1], of hazy pictures ``(B, 3, H,
    W)`` in [0, 1]: the picture dehazed by the dark channel prior (the lift that the network
    corrects), the hazy one, and the prior's transmission.
    """
    found = prior(hazy)
    return torch.cat([found.image, hazy, found.transmission], dim=1)


def prior_share(found: DarkChannelEstimate, answer: Tensor) -> Tensor:
    """How much of the result the dark channel prior's picture makes up, ``(B, 1, 1, 1)`` in [0, 1];
    a haze network's answer ``(B, 3, H, W)`` in [0, 1] the rest.

    The denser the haze, the less is left of the scene for a network to know it by, while the prior
    inverts the physics at any density; how dense it is its transmission tells. It also multiplies
    whatever tint the airlight has beyond the estimated one: the more coloured its picture is than
    the answer, the less it is believed. Where it finds no haze it is believed alone.
    """
    density = found.transmission.mean((1, 2, 3), keepdim=True)
    share = MOST - (MOST - LEAST) * ((density - DENSE) / THINNING).clamp(0, 1)
    tinted = _colour(found.image) / _colour(answer).clamp(min=1e-3)
    share = share * ((TINTED - tinted) / TINTING).clamp(0, 1)
    return torch.maximum(share, ((density - CLEAR) / CLEARING + 1).clamp(0, 1))


def hazy_share(found: DarkChannelEstimate) -> Tensor:
    """How much of what dehazing does is done, ``(B, 1, 1, 1)`` in [0, 1]: nothing in pictures as
    dark as haze, which scatters light, never is.
    """
    light = found.airlight.mean((1, 2, 3), keepdim=True)
    return ((light - NIGHT) / (DUSK - NIGHT)).clamp(0, 1)


def _colour(image: Tensor) -> Tensor:
    """Mean difference of the channels, ``(B, 1, 1, 1)``."""
    return (image.amax(1, keepdim=True) - image.amin(1, keepdim=True)).mean((1, 2, 3), keepdim=True)


def reduced_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size with ``side`` as its shorter one, in the same proportion; small sizes as they
    are.
    """
    height, width = size
    if min(size) <= side:
        return height, width
    return max(1, round(height * side / min(size))), max(1, round(width * side / min(size)))


def reduced(image: Tensor, side: int) -> Tensor:
    """Pictures ``(B, C, H, W)`` made smaller so that the short side is ``side`` pixels (without
    aliasing); small ones as they are.
    """
    size = reduced_size((image.shape[-2], image.shape[-1]), side)
    if size == tuple(image.shape[-2:]):
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True).clamp(0, 1)


def carry(
    image: Tensor, small: Tensor, restored: Tensor, radius: int = 2, eps: float = 5e-6
) -> Tensor:
    """Apply to a picture ``(B, C, H, W)`` what a restoration did to its reduced copy: ``small`` to
    ``restored``, both ``(B, C, h, w)``.

    In every window of the small pictures the restored one is taken as a linear function of the
    other, channel by channel; its slopes and offsets are enlarged (the fast guided filter, He & Sun
    2015). For haze that is exact where depth is constant: ``J = I/t + A (1 - 1/t)``.
    """
    mean_s, mean_r = box_mean(small, radius), box_mean(restored, radius)
    slope = (box_mean(small * restored, radius) - mean_s * mean_r) / (
        box_mean(small * small, radius) - mean_s**2 + eps
    )
    fields = box_mean(torch.cat([slope, mean_r - slope * mean_s], dim=1), radius)
    slope, offset = F.interpolate(
        fields, image.shape[-2:], mode="bilinear", align_corners=False
    ).chunk(2, dim=1)
    return slope * image + offset


def default_process(denoiser: DenoiserLike, solver: Solver, num_inference_steps: int) -> Process:
    """What a run follows from the degraded picture: the network's own process if that holds the
    picture, else, by level matching and with little noise, Resfusion's for its own sampler (its
    schedule with at least that many levels; five as released) and RDDM's for any other.
    """
    if denoiser.process.holds_image:
        return denoiser.process
    if not isinstance(solver, ResfusionSampler):
        return RDDM.scheduled(sum_scale=LITTLE**2)
    check_steps(num_inference_steps)
    steps = 12
    while len(process := Resfusion.scheduled("linear", steps, LITTLE)) < num_inference_steps:
        steps += 1
    return process


@dataclass(frozen=True)
class PairedTask:
    """Clean pictures from degraded ones with a conditional denoiser; the run starts at the degraded
    picture (docs/design.md, "One process" and "Lift, then diffuse").

    The network's condition tells what it is shown: 3 channels the degraded picture; 4 that and a
    mask (1 where it is degraded, such as a shadow); 7 what :func:`haze_condition` makes of a hazy
    picture. Its first three channels are the process's ``y``, from which restoration starts.

    Networks trained under Resfusion's or RDDM's process run on their own levels. A
    variance-preserving one answers any of these processes at the level with the same log-SNR, under
    any solver. A haze network's answer is blended with the dark channel prior's
    (:func:`prior_share`).

    Args:
        denoiser: PyTorch, fake-quantized or ONNX, of 3-channel pictures.
        solver: :class:`~solvers.RDDMSampler`, :class:`~solvers.ResfusionSampler`, or any other.
        num_inference_steps: solver steps.
        process: what the run follows; by default :func:`default_process`.
        grid: a name in ``solvers.grid.GRIDS``; ``trailing`` visits RDDM's released times, and all
            levels where the steps are as many.
        view: short side, in pixels, of the reduced picture that the run works on; what it does
            there is carried to the whole one (:func:`carry`). Right for haze, which varies slowly,
            and the same work for every size. None: 128 for haze networks, which were trained on
            such views, and no reduction for others.
        tile: side of the tiles for larger pictures, in pixels, rounded down to what the network
            takes; 0: what suits it (:func:`restoration.wrappers.tiling.tile_for`).
        overlap: pixels shared by neighbouring tiles; at most an eighth of a tile.

    Raises:
        ValueError: an unknown grid, tiles that are too small, or a denoiser that is shown something
            else.
    """

    denoiser: Denoiser
    solver: Solver = field(default_factory=RDDMSampler)
    num_inference_steps: int = 5
    process: Process | None = None
    grid: str = "trailing"
    view: int | None = None
    tile: int = 0
    overlap: int = 64

    def __post_init__(self) -> None:
        set_tile(self)
        if self.grid not in GRIDS:
            raise ValueError(f"grid {self.grid!r} is unknown; known: {', '.join(GRIDS)}")
        if self.view is not None and self.view < 16:
            raise ValueError(f"view must be at least 16 pixels; got {self.view}")
        if self.tile < 16 or self.overlap < 0:
            raise ValueError(
                f"tile must be at least 16 pixels and overlap at least 0; got {self.tile} and"
                f" {self.overlap}"
            )
        if self.denoiser.condition_channels not in (PLAIN, MASKED, HAZE):
            raise ValueError(
                f"the network's condition has {self.denoiser.condition_channels} channels; paired"
                f" restoration shows it {PLAIN} (the degraded picture), {MASKED} (and a mask) or"
                f" {HAZE} (haze: see the recipes paired and haze)"
            )

    def __call__(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        *,
        num_samples: int = 1,
        seed: int = 0,
        callback: Watch | None = None,
    ) -> Restored:
        """Restore one picture.

        Args:
            image: ``(C, H, W)`` in [0, 1], C = 1 (the network sees three equal channels) or 3.
            mask: ``(H, W)`` of 0 and 1, 1 where the picture is degraded; for networks that are
                shown one, and only for them.
            num_samples: samples; their mean and standard deviation are returned too.
            seed: sample k uses ``seed + k``.
            callback: called after each network call with the sample's number and the step.

        Raises:
            ValueError: shapes that don't fit, values out of range or not finite, a mask too many or
                too few, an impossible step count.
        """
        image, mask = check_pair_input(
            image, mask, masked=self.denoiser.condition_channels == MASKED
        )
        device = self.denoiser.device
        run = self.prepare(
            image.to(device)[None], None if mask is None else mask.to(device)[None, None]
        )
        return sample(run, num_samples=num_samples, seed=seed, callback=callback)

    def prepare(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        reduce: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Run:
        """The run on these pictures. Tensor operations only: it can be traced.

        Args:
            image: pictures ``(B, C, H, W)`` in [0, 1], C = 1 or 3.
            mask: ``(B, 1, H, W)`` of 0 and 1, for networks that are shown one.
            reduce: in place of :func:`reduced`.
        """
        d, reduce = self.denoiser, reduce or reduced
        process = self.process or default_process(d, self.solver, self.num_inference_steps)
        grid = lay(self.grid, process, self.num_inference_steps)
        side, haze = self.side or min(image.shape[-2:]), d.condition_channels == HAZE
        fine = reduce(image, FINER * side) if haze else image
        small = reduce(fine, side)
        if mask is not None:
            mask = (reduce(mask, side) >= 0.5).to(mask)
        coloured = fine.expand(-1, 3, -1, -1) if haze else small.expand(-1, 3, -1, -1)
        if d.shown in LIFTS:
            coloured = LIFTS[d.shown](coloured, mask)
        shown = coloured if mask is None else torch.cat([coloured, mask], dim=1)
        condition = d.from_unit(reduce(haze_condition(coloured), side) if haze else shown)
        d = d.conditioned(condition)
        d = in_tiles(d, small.shape, self.tile, self.overlap)

        found = FLOOR(coloured) if haze else None

        def whole(view: Tensor, restored: Tensor) -> Tensor:
            restored = restored.mean(1, keepdim=True) if image.shape[1] == 1 else restored
            return restored if view is image else carry(image, view, restored)

        def finish(x0: Tensor) -> Tensor:
            unit = d.to_unit(x0).clamp(0, 1)
            answer = whole(small, unit)
            if found is not None:
                answer = answer.lerp(whole(fine, found.image), prior_share(found, unit))
                answer = image.lerp(answer, hazy_share(found))
            if d.shown == "brightened":
                answer = image.lerp(answer, underexposed(small))
            return answer.clamp(0, 1)

        y = condition[:, :3] if process.holds_image else None
        shape = (3, int(small.shape[-2]), int(small.shape[-1]))
        return Run(d, self.solver, grid, shape, finish, process=process, y=y)

    @property
    def side(self) -> int | None:
        """Short side of the reduced picture that a run works on; None: it works on the whole
        one.
        """
        return self.view or (VIEW if self.denoiser.condition_channels == HAZE else None)


def check_pair_input(
    image: Tensor, mask: Tensor | None, masked: bool
) -> tuple[Tensor, Tensor | None]:
    """``image (1 or 3, H, W)`` and ``mask (H, W)``, both float32.

    Raises:
        ValueError: see :class:`PairedTask`.
    """
    image = image.float()
    if image.ndim != 3 or image.shape[0] not in (1, 3) or min(image.shape[1:]) < 1:
        raise ValueError(f"image must be (1 or 3, H, W); got {tuple(image.shape)}")
    if not torch.isfinite(image).all():
        raise ValueError("the image holds NaN or infinite values")
    if image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"pixels must lie in [0, 1]; got {float(image.min()):.3g} to {float(image.max()):.3g}"
        )
    if masked != (mask is not None):
        raise ValueError(
            "this network is shown a mask of what is degraded: give one"
            if masked
            else "this network is not shown any mask"
        )
    if mask is not None:
        mask = mask.float()
        if mask.shape != image.shape[1:]:
            raise ValueError(
                f"mask is {tuple(mask.shape)} but the image is {tuple(image.shape[1:])} pixels"
                " (H, W)"
            )
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("mask must hold only 0 (as it should be) and 1 (degraded)")
    return image, mask
