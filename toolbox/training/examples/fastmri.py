"""Training examples from measured k-space: a folder of fully sampled fastMRI volumes, undersampled
again and again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restoration.io.containers.arrays import read_array
from restoration.io.mri import HDF5, read_slice, volume_shape
from restoration.mri.espirit import MINIMUM_REGION, espirit, mvue
from restoration.mri.estimate import condition, noise_level
from restoration.mri.sampling import centre_lines, column_mask
from restoration.mri.sense import Sense, to_channels
from restoration.operators.measurement import Measurement
from solvers.files import replace_file
from toolbox.training.examples.scans import SOLVE, KeptScans
from toolbox.training.sections import FastMRI

CALIBRATION = 24  # columns that sensitivities are estimated from: a wider centre tells no more
HOLES = 0.05  # share of zeros inside the sampled region from which a volume counts as undersampled


class MeasuredScans(KeptScans):
    """Undersampled slices of measured volumes: real coils, real noise. Only the slice at hand is
    read.

    The target is the combination of least variance (MVUE) of the full data by the sensitivities
    that the full data give. The network is shown what a user would have: sensitivities from the
    sampled centre alone, and a noise level estimated from the sampled points. Columns at the edges
    that were never measured (zeros in the file) are left out of the masks, as fastMRI does.

    Raises:
        ValueError: a folder without ``.h5`` files, a volume of one coil, an undersampled one, one
            smaller than a patch, or one that is too narrow for a centre fraction.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: FastMRI,
        size: int,
        seed: int,
        exclude: tuple[str, ...] = (),
    ):
        super().__init__(settings.scans, size, seed)
        self.simulation = settings
        self.slices: list[tuple[Path, int]] = []
        for path in sorted(
            p for p in Path(folder).rglob("*") if p.suffix.lower() in HDF5 and p.name not in exclude
        ):
            slices, _, *shape = volume_shape(path)
            if min(shape) < size:
                raise ValueError(
                    f"{path} has slices of {shape[0]} x {shape[1]} points, smaller than patch_size"
                    f" {size}"
                )
            for fraction in settings.center_fractions:
                if (count := centre_lines(shape[1], fraction)[1]) < MINIMUM_REGION:
                    raise ValueError(
                        f"{path}: a centre of {fraction:g} of its {shape[1]} columns is {count};"
                        f" sensitivities need {MINIMUM_REGION}"
                    )
            acquired(torch.from_numpy(read_slice(path, slices // 2)), path)
            self.slices += [(path, k) for k in range(slices)]
        if not self.slices:
            raise ValueError(
                f"{folder} holds no volumes: fully sampled multi-coil fastMRI files (.h5 with"
                " kspace) are accepted"
            )

    def simulate(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Measurement]:
        """Image ``(1, 2, H, W)``, condition ``(1, 7, H, W)`` and measurement, all in units of the
        scan's scale.
        """
        for _ in range(100):
            path, index = self.slices[rng.integers(len(self.slices))]
            drawn = self._undersampled(path, index, rng)
            if drawn is not None:
                return drawn
        raise ValueError("100 slices in a row held no signal: are these volumes empty?")

    def _undersampled(
        self, path: Path, index: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Measurement] | None:
        s = self.simulation
        kspace = torch.from_numpy(read_slice(path, index))
        peak = kspace.abs().max()
        if not peak > 0:
            return None
        kspace = kspace / peak  # files hold values around 1e-5
        full = acquired(kspace, path)
        pair = rng.integers(len(s.accelerations))
        acceleration, fraction = s.accelerations[pair], s.center_fractions[pair]
        seed = int(rng.integers(2**31))
        mask = full * column_mask(
            s.kinds[rng.integers(len(s.kinds))], full.shape[1], acceleration, fraction, seed
        )
        start, count = centre_lines(full.shape[1], fraction)
        maps = self._maps(path, index, kspace, full, None)
        seen = maps
        if count < CALIBRATION:
            centre = torch.zeros_like(full)
            centre[:, start : start + count] = full[:, start : start + count]
            seen = self._maps(path, index, kspace, centre, count)
        image = rephased(mvue(kspace, maps), maps, seen)
        if (image.abs() > 0).float().mean() < 0.01:
            return None
        operator = Sense(mask, seen, tolerance=SOLVE, max_iterations=30)
        y = to_channels((kspace * mask)[None])
        sigma = noise_level(kspace * mask, mask)
        shown, scale = condition(operator, y, sigma)
        return (
            torch.stack([image.real, image.imag])[None] / scale,
            shown,
            Measurement(operator, y / scale, sigma / scale),
        )

    def _maps(
        self, path: Path, index: int, kspace: Tensor, mask: Tensor, columns: int | None
    ) -> Tensor:
        """ESPIRiT's sensitivities from the full data, or from some central columns; kept in
        ``cache`` where the recipe names one.
        """
        if self.simulation.cache is None:
            return espirit(kspace * mask, mask)
        about = path.stat()
        key = f"{path.resolve()}|{about.st_size}|{about.st_mtime_ns}|{index}|{columns}"
        kept = Path(self.simulation.cache) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        if kept.is_file():
            try:
                found = read_array(kept, "maps")
                if found.shape == tuple(kspace.shape) and found.dtype == np.complex64:
                    return torch.from_numpy(found)
            except ValueError:
                pass
            raise ValueError(
                f"{kept} holds no sensitivities of {path}: delete it, and they are estimated anew"
            )
        maps = espirit(kspace * mask, mask)
        kept.parent.mkdir(parents=True, exist_ok=True)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.save(file, maps.numpy())

        replace_file(kept, write)
        return maps


def rephased(image: Tensor, maps: Tensor, others: Tensor) -> Tensor:
    """``(H, W)`` with the phase that makes the same coil images with ``others`` as the image does
    with ``maps``: the phase of a set of sensitivities is free. Zero where either set is.
    """
    turn = (others.conj() * maps).sum(0)
    return image * torch.where(
        turn.abs() > 0, turn / turn.abs().clamp(min=1e-12), torch.zeros_like(turn)
    )


def acquired(kspace: Tensor, path: Path) -> Tensor:
    """``(H, W)``: 1 in the rectangle of points that were measured; fastMRI files are padded with
    zeros at the edges.

    Raises:
        ValueError: zeros inside it: the volume is undersampled; or values that are not finite.
    """
    if not torch.isfinite(kspace).all():
        raise ValueError(f"{path} holds NaN or infinite values")
    sampled = kspace.abs().amax(0) > 0
    if not sampled.any():
        raise ValueError(f"{path} holds only zeros")
    rows, columns = (torch.nonzero(sampled.any(axis))[:, 0] for axis in (1, 0))
    top, bottom, left, right = (
        int(rows[0]),
        int(rows[-1]) + 1,
        int(columns[0]),
        int(columns[-1]) + 1,
    )
    share = float(sampled[top:bottom, left:right].float().mean())
    if share < 1 - HOLES:
        raise ValueError(
            f"{path} is undersampled ({share:.0%} of its points are measured): training needs fully"
            " sampled volumes"
        )
    full = torch.zeros(sampled.shape)
    full[top:bottom, left:right] = 1
    return full
