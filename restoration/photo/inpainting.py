"""Inpainting: fill missing pixels of a photo, with an uncertainty map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from restoration.operators.linear import Inpainting
from restoration.operators.measurement import Measurement
from restoration.photo.latent import latent_inpainting
from restoration.photo.lift import thin_plate
from restoration.photo.linear import denoised
from restoration.photo.noise import Cleaner, cleaned, cleans, warned
from restoration.photo.start import PRIOR_STD
from restoration.posterior import correction_by_name
from restoration.task import Restored, Run, Watch, check_noise, check_settings, sample, summary
from restoration.wrappers.planes import planewise
from restoration.wrappers.symmetry import Symmetric
from restoration.wrappers.tiling import in_tiles, set_tile
from restoration.wrappers.windows import Window, all_near, are_smaller, by_windows
from solvers.denoiser import Denoiser
from solvers.grid import Grid, lay
from solvers.methods.ddim import DDIM
from solvers.methods.red_diff import REDDiff
from solvers.solver import DenoiserLike, Solver

REACH = 16  # pictures are filled by windows where every missing pixel has a known one so near


@dataclass(frozen=True)
class InpaintingTask:
    """Fill missing pixels with any denoiser, solver and correction.

    A conditional denoiser (``condition_channels = C + 1``) is shown the lifted image and the mask;
    an unconditional one is steered by the correction alone. One step of a noiseless picture of more
    than 4 megapixels, whose gaps are thin, is done window by window, where something is missing.

    Args:
        denoiser: PyTorch, fake-quantized or ONNX, of 3-channel images or of single planes.
        solver: any solver of this toolbox.
        num_inference_steps: solver steps, from 1 to the number of levels of the process.
        grid: ``trailing``, ``leading``, ``linspace``, ``log-snr`` or ``karras``.
        correction: a name in ``restoration.posterior.CORRECTIONS``, or None for the default: DDNM
            for noiseless pixels, DiffPIR for noisy ones.
        correction_options: settings of a named correction, as in
            :class:`restoration.photo.linear.LinearTask`.
        tile: side of the tiles for larger pictures, in pixels, rounded down to what the network
            takes; 0: what suits it (:func:`restoration.wrappers.tiling.tile_for`).
        overlap: pixels shared by neighbouring tiles; at most an eighth of a tile.
        symmetries: flips and turns that every network call is averaged over (1, 2, 4, 8); each is a
            call more.

        cleaner: what denoises a picture, for a network that is shown a lifted one and would take
            noise for detail: without a correction by name noisy pictures are filled as noiseless
            and denoised afterwards. None: the network is held to the noisy data.

    Raises:
        ValueError: an unknown grid or correction, a number of symmetries other than these.
    """

    denoiser: Denoiser
    solver: Solver = field(default_factory=DDIM)
    num_inference_steps: int = 5
    grid: str = "trailing"
    correction: str | None = None
    tile: int = 0
    overlap: int = 64
    symmetries: int = 1
    correction_options: Mapping[str, Any] = field(default_factory=dict)
    cleaner: Cleaner | None = None

    def __post_init__(self) -> None:
        set_tile(self)
        check_settings(self)

    def __call__(
        self,
        image: Tensor,
        mask: Tensor,
        *,
        sigma: float = 0.0,
        num_samples: int = 1,
        seed: int = 0,
        callback: Watch | None = None,
    ) -> Restored:
        """Restore one image.

        Args:
            image: ``(C, H, W)`` in [0, 1], C = 1 (the network sees three equal channels) or 3;
                missing pixels may hold anything.
            mask: ``(H, W)``; 1 = known, 0 = missing.
            sigma: standard deviation of the noise on the known pixels, in units of [0, 1].
            num_samples: posterior samples; their mean and standard deviation are returned too.
            seed: sample k uses ``seed + k``.
            callback: called after each network call with the sample's number and the step; window
                by window after each of them, with a :class:`restoration.task.Part`.

        Raises:
            ValueError: shapes that don't fit, values that are not finite, a mask that knows
                nothing, or an impossible step count.
        """
        image, mask = (v.to(self.denoiser.device) for v in check_inpainting(image, mask))
        check_noise(sigma)
        if num_samples == 1 and sigma == 0 and self._is_local(mask):
            return self._by_windows(image, mask, seed, callback)
        image = known_of(image, mask)
        if self.cleaner is None or not cleans(self, sigma):
            run = self.prepare(image[None], mask[None, None], sigma)
            found = sample(run, num_samples=num_samples, seed=seed, callback=callback)
            return warned(found, self, sigma)
        run = self.prepare(image[None], mask[None, None])
        unjudged = replace(run, evidence=None)
        found = sample(unjudged, num_samples=num_samples, seed=seed, callback=callback)
        stack, mean, std = summary([denoised(self.cleaner(x), x, sigma) for x in found.samples])
        found = replace(found, samples=stack, mean=mean, std=std)
        measured = Measurement(Inpainting(mask[None, None]), (image * mask)[None], sigma)
        return cleaned(found, run, measured, calls=num_samples)

    def _is_local(self, mask: Tensor) -> bool:
        """Whether a picture is large and its pixels depend on those nearby alone: one step, thin
        gaps, windows smaller than the limit.
        """
        return (
            are_smaller(mask.shape, self.tile)
            and self.num_inference_steps == 1
            and type(self.solver) is DDIM
            and self.denoiser.autoencoder is None
            and all_near(mask, REACH)
        )

    def _by_windows(
        self, image: Tensor, mask: Tensor, seed: int, callback: Watch | None
    ) -> Restored:
        """The windows that miss something; what is known stays to the bit."""
        overlap = min(self.overlap, self.tile // 8)

        def fill(window: Window) -> Restored | None:
            known = mask[window]
            return None if known.all() else self(image[:, *window], known, seed=seed)

        found = by_windows(fill, image, self.tile, overlap, callback=callback)
        for result, given in zip(found.mean, image.cpu(), strict=True):
            torch.where(mask.cpu() > 0, given, result, out=result)
        return found

    def nodes(self) -> Grid:
        """The times of a run."""
        return lay(self.grid, self.denoiser.process, self.num_inference_steps)

    def correction_for(self, sigma: float) -> str:
        """Name of the correction that a run with this noise uses."""
        return self.correction or ("diffpir" if sigma > 0 else "ddnm")

    def prepare(self, image: Tensor, known: Tensor, sigma: float = 0.0) -> Run:
        """The run on these pictures. Tensor operations only: it can be traced.

        Args:
            image: ``(B, C, H, W)`` in [0, 1], C = 1 or 3; unknown pixels hold finite values.
            known: ``(B, 1, H, W)``; 1 = known, 0 = missing.
            sigma: as in a call.
        """
        d = self.denoiser
        if d.autoencoder is not None:
            return latent_inpainting(self, image, known, sigma)
        grey = image.shape[1] == 1
        plain = d.image_channels == 1  # a network of single planes restores them one by one
        x = image if plain else image.expand(-1, 3, -1, -1)
        if plain and not grey:
            d = planewise(d)
        check_noise(sigma)
        evidence = Measurement(Inpainting(known), image * known, sigma)
        measurement = Measurement(evidence.operator, x * known, sigma).in_range(
            *d.value_range, like=x
        )
        if d.condition_channels:
            if d.condition_channels != x.shape[1] + 1:
                raise ValueError(
                    f"the network's condition has {d.condition_channels} channels; inpainting shows"
                    f" it {x.shape[1] + 1}"
                )
            d = d.conditioned(torch.cat([thin_plate(measurement.y, known), known], dim=1))
        d = in_tiles(d, x.shape, self.tile, self.overlap)
        asked: DenoiserLike = Symmetric(d, self.symmetries) if self.symmetries > 1 else d
        solver = self.solver
        if isinstance(solver, REDDiff):
            if self.correction is not None:
                raise ValueError(
                    "red-diff holds a run to the data by itself: leave out the correction"
                )
            solver = solver.on(measurement, thin_plate(measurement.y, known))
        else:
            asked = correction_by_name(
                self.correction_for(sigma),
                asked,
                measurement,
                steps=self.num_inference_steps,
                solver=solver,
                prior_std=PRIOR_STD,
                options=self.correction_options,
            )

        def finish(x0: Tensor) -> Tensor:
            unit = d.to_unit(x0)
            unit = unit.mean(1, keepdim=True) if grey else unit
            # what was measured without noise is returned to the bit
            unit = torch.where(known > 0, image, unit) if sigma == 0 else unit
            return unit.clamp(0, 1)

        shape = (int(x.shape[1]), int(x.shape[-2]), int(x.shape[-1]))
        return Run(
            asked, solver, self.nodes(), shape, finish, calls=self.symmetries, evidence=evidence
        )


def check_inpainting(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``image (1 or 3, H, W)`` and ``mask (H, W)`` in float32; missing pixels may hold anything.

    Raises:
        ValueError: shapes that don't fit, values that are not finite or leave [0, 1], or a mask
            that knows nothing.
    """
    image, mask = image.float(), mask.float()
    if image.ndim != 3 or image.shape[0] not in (1, 3) or min(image.shape[1:]) < 1:
        raise ValueError(f"image must be (1 or 3, H, W); got {tuple(image.shape)}")
    if mask.shape != image.shape[1:]:
        raise ValueError(
            f"mask is {tuple(mask.shape)} but the image is {tuple(image.shape[1:])} pixels (H, W)"
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask must hold only 0 (missing) and 1 (known)")
    if not mask.any():
        raise ValueError("the mask marks every pixel as missing; nothing is known to start from")
    for channel in image:  # one after the other: pictures may be large
        low, high = torch.aminmax(known_of(channel, mask))
        if not torch.isfinite(high - low):
            raise ValueError("known pixels hold NaN or infinite values")
        if low < 0 or high > 1:
            raise ValueError(
                f"pixels must lie in [0, 1]; got {float(low):.3g} to {float(high):.3g}"
            )
    return image, mask


def known_of(image: Tensor, mask: Tensor) -> Tensor:
    """The image with zeros where the mask has them."""
    return torch.where(mask > 0, image, torch.zeros((), dtype=image.dtype, device=image.device))
