"""Simulated hyperspectral scenes whose truth is exact: measured and modelled spectra, mixed in the
pattern of a picture.

The linear mixing model (Keshava and Mustard 2002): the spectrum of a pixel is the sum of its
materials' spectra, weighted by their shares of its area. Pictures give the shares, so that borders
and textures are those of real surfaces; shares are positive and sum to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from restoration.io.containers.arrays import arrays_of
from solvers.inputs.errors import reading

GROUPS = {
    "soil": "pervious/bare",
    "residue": "pervious/npv",
    "vegetation": "pervious/vegetation",
    "built": "impervious",
}
SENSORS = {  # first and last band in nanometres, number of bands
    "finch": (
        900.0,
        1700.0,
        80,
    ),  # short-wave infrared of a CubeSat for crop residue (Vyse et al. 2024)
    "vnir": (400.0, 1000.0, 120),
    "full": (400.0, 2450.0, 206),
}


@dataclass(frozen=True, eq=False)
class SpectralLibrary:
    """Reflectance spectra with labels such as ``pervious/bare/soil/...``.

    Attributes:
        reflectance: ``(spectra, bands)`` in [0, 1] and a little above.
        wavelengths: ``(bands,)`` in nanometres, rising.
        labels: one per spectrum; its beginning tells the group (:data:`GROUPS`).
    """

    reflectance: np.ndarray
    wavelengths: np.ndarray
    labels: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> SpectralLibrary:
        """An ``.npz`` file with ``reflectance``, ``scale`` (its value at reflectance 1),
        ``wavelength_nm`` and ``label``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: arrays that are missing or don't fit each other.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"spectral library {path} does not exist")
        with reading(path, "a spectral library (.npz)"), arrays_of(path) as file:
            reflectance = file.read("reflectance").astype(np.float64) / float(file.read("scale"))
            wavelengths = file.read("wavelength_nm").astype(np.float64)
            labels = tuple(file.read("label").tolist())
        if (
            reflectance.shape != (len(labels), len(wavelengths))
            or (np.diff(wavelengths) <= 0).any()
        ):
            raise ValueError(
                f"{path}: reflectance {reflectance.shape} must be (labels, wavelengths), with"
                " rising wavelengths"
            )
        return cls(reflectance, wavelengths, labels)

    def group(self, name: str) -> np.ndarray:
        """``(spectra, bands)`` of a group.

        Raises:
            ValueError: unknown name, or a group without spectra.
        """
        if name not in GROUPS:
            raise ValueError(f"group {name!r} is unknown; known: {', '.join(GROUPS)}")
        members = [k for k, label in enumerate(self.labels) if label.startswith(GROUPS[name])]
        if not members:
            raise ValueError(f"the library holds no spectra of group {name!r} ({GROUPS[name]}...)")
        return self.reflectance[members]

    def endmembers(
        self, kinds: Sequence[str], wavelengths: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """``(len(kinds), B)``: a spectrum of each named group, interpolated to a sensor's bands.

        Raises:
            ValueError: bands outside the library's range.
        """
        wavelengths = np.asarray(wavelengths, np.float64)
        low, high = self.wavelengths[[0, -1]]
        if wavelengths.min() < low or wavelengths.max() > high:
            raise ValueError(
                f"the library holds {low:g} to {high:g} nm; bands lie from {wavelengths.min():g} to"
                f" {wavelengths.max():g} nm"
            )
        drawn = [(group := self.group(kind))[rng.integers(len(group))] for kind in kinds]
        return np.stack([np.interp(wavelengths, self.wavelengths, s) for s in drawn])


def bands_of(sensor: str) -> np.ndarray:
    """Wavelengths of a simulated sensor, in nanometres.

    Raises:
        ValueError: unknown name.
    """
    if sensor not in SENSORS:
        raise ValueError(f"sensor {sensor!r} is unknown; known: {', '.join(SENSORS)}")
    return np.linspace(*SENSORS[sensor])


def abundances(picture: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``(count, H, W)`` shares, positive, summing to one, in the pattern of a picture ``(3, H,
    W)``.

    Each material likes a colour of the picture: the softmax of the negative squared distance to
    colours that are picked from it. How hard the softmax decides is drawn: from fields with sharp
    borders to mixtures everywhere.
    """
    _, height, width = picture.shape
    soft = gaussian_filter(picture, (0, *[rng.uniform(0, 1.5)] * 2))
    colours = soft.reshape(3, -1)[:, rng.integers(height * width, size=count)]
    distance = ((soft[None] - colours.T[:, :, None, None]) ** 2).sum(1)
    hardness = np.exp(rng.uniform(np.log(2), np.log(40))) / max(float(distance.mean()), 1e-6)
    weight = np.exp(-hardness * (distance - distance.min(0)))
    return weight / weight.sum(0)


def fields(height: int, width: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``(count, H, W)`` shares of parcels of land: cells around random points, their borders mixed
    over about a pixel.
    """
    points = int(rng.integers(max(count, 8), 40))
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    stretch = rng.uniform(0.4, 1.0, (2, 1, 1))
    nearest = (
        ((np.abs(grid - rng.uniform(0, (height, width), (points, 2))[..., None, None])) * stretch)
        .sum(1)
        .argmin(0)
    )
    share = rng.dirichlet(np.full(count, 0.3), points)[nearest].transpose(2, 0, 1)
    share = gaussian_filter(share, (0, *[rng.uniform(0.3, 0.8)] * 2))
    return share / share.sum(0)


def simulate_cube(
    library: SpectralLibrary, picture: np.ndarray, wavelengths: np.ndarray, seed: int | list[int]
) -> np.ndarray:
    """A clean cube ``(B, H, W)``, float32 in [0, 1] with maximum 1, as large as ``picture (3, H,
    W)`` in [0, 1].

    Three to ten materials, always soil, residue and vegetation; shares from the picture, from
    parcels, or parcels with the picture's texture in them. No material is the same everywhere: each
    drifts towards a second spectrum of its group, by up to half. Light follows the picture's
    brightness (slopes and shadows).

    Raises:
        ValueError: a picture of another shape, or bands that the library lacks.
    """
    picture = np.asarray(picture, np.float64)
    if picture.ndim != 3 or picture.shape[0] != 3 or min(picture.shape[1:]) < 8:
        raise ValueError(
            f"picture must be (3, H, W) with at least 8 x 8 pixels; got shape {picture.shape}"
        )
    rng = np.random.default_rng(seed)
    more = rng.choice(list(GROUPS), int(rng.integers(0, 8)), p=(0.35, 0.15, 0.25, 0.25)).tolist()
    kinds = ["soil", "residue", "vegetation", *more]
    spectra, others = (library.endmembers(kinds, wavelengths, rng) for _ in range(2))
    share = abundances(picture, len(spectra), rng)
    if rng.random() < 0.5:
        texture = rng.choice([0.0, 0.1, 0.3])
        share = (1 - texture) * fields(
            picture.shape[1], picture.shape[2], len(spectra), rng
        ) + texture * share
    light = picture.mean(0) / max(float(picture.mean()), 1e-6)
    light = 1 + rng.uniform(0, 0.4) * (np.clip(light, 0, 2) - 1)
    drift = gaussian_filter(rng.standard_normal(share.shape), (0, *[rng.uniform(1, 12)] * 2))
    drift = rng.uniform(0, 0.5) * np.clip(0.5 + 0.3 * drift / drift.std(), 0, 1) * share
    cube = (np.tensordot(spectra.T, share - drift, 1) + np.tensordot(others.T, drift, 1)) * light
    return (cube / cube.max()).clip(0, 1).astype(np.float32)
