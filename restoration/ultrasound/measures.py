"""Measures of dehazed frames: contrast of two regions and agreement of their grey values (gCNR,
CNR, contrast, Kolmogorov-Smirnov); structure of the clean frame that is kept, and structure that
nothing shows.

gCNR compares two regions that are known to be tissue and blood. It does not see a patch of haze
that is left over with a hard edge, like a mass in a cavity, nor an organ that is hollowed out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from solvers.inputs.errors import InputError
from solvers.inputs.strict_json import read_object

GRAIN = 4.0  # pixels, standard deviation: beyond speckle
TISSUE, BLOOD = 0.2, 0.08  # of smoothed grey values: at least, at most
LOST, LEFT = 0.5, 0.12  # of the clean frame's grey value; above it


def gcnr(x: np.ndarray, y: np.ndarray, bins: int = 256) -> float:
    """Generalised contrast-to-noise ratio (Rodriguez-Molares et al. 2020): ``1 - sum min(f, g)``,
    histograms over common bins.

    0: no threshold tells the regions apart; 1: one does without error. Does not change under
    monotonic grey curves but for the binning.

    Args:
        x, y: grey values of the two regions, any shapes.

    Raises:
        ValueError: an empty region, values that are not finite, or no bins.
    """
    x, y = _regions(x, y)
    if bins < 1:
        raise ValueError(f"at least one bin is needed; got {bins}")
    edges = np.histogram_bin_edges(np.concatenate([x, y]), bins)
    f, g = (np.histogram(v, edges)[0] / v.size for v in (x, y))
    return float(1 - np.minimum(f, g).sum())


def cnr(x: np.ndarray, y: np.ndarray) -> float:
    """``|mean x - mean y| / sqrt(var x + var y)``; infinite for different constants, 0 for equal
    ones.
    """
    x, y = _regions(x, y)
    gap, spread = abs(x.mean() - y.mean()), math.sqrt(x.var() + y.var())
    return float(gap / spread) if spread > 0 else (math.inf if gap > 0 else 0.0)


def contrast(x: np.ndarray, y: np.ndarray) -> float:
    """``20 log10(mean x / mean y)`` in dB, of amplitudes (not of log-compressed grey values).

    Raises:
        ValueError: a mean that is not positive.
    """
    x, y = _regions(x, y)
    if x.mean() <= 0 or y.mean() <= 0:
        raise ValueError("contrast needs regions of positive mean amplitude")
    return float(20 * np.log10(x.mean() / y.mean()))


def ks(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov statistic in [0, 1] and its p-value.

    Between a region before and after a restoration: low in tissue (kept as it was), high where haze
    was removed.
    """
    from scipy.stats import ks_2samp

    result = ks_2samp(*_regions(x, y))
    return float(result.statistic), float(result.pvalue)


def read_regions(path: str | Path, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Masks ``(H, W)`` by name from JSON ``{"tissue": [[top, left, bottom, right], ...], "blood":
    ...}``, boxes in pixels, ends exclusive.

    Raises:
        ValueError: no such JSON, or a box that is empty or leaves the picture.
    """
    content = read_object(path)
    if not content:
        raise InputError(
            f'regions {path} must be an object such as {{"tissue": [[top, left, bottom, right]],'
            ' "blood": ...}'
        )
    return {name: boxes_mask(boxes, shape, f"{path}, {name}") for name, boxes in content.items()}


def boxes_mask(boxes: object, shape: tuple[int, int], name: str = "region") -> np.ndarray:
    """``(H, W)``: True inside any box ``[top, left, bottom, right]`` (one box, or a list of them).

    Raises:
        ValueError: not boxes of four whole numbers, or one that is empty or leaves the picture.
    """
    boxes = (
        [boxes]
        if isinstance(boxes, (list, tuple)) and boxes and not isinstance(boxes[0], (list, tuple))
        else boxes
    )
    mask = np.zeros(shape, bool)
    if not isinstance(boxes, (list, tuple)) or not boxes:
        raise InputError(f"{name}: boxes [top, left, bottom, right] are needed; got {boxes!r}")
    for box in boxes:
        if (
            not isinstance(box, (list, tuple))
            or len(box) != 4
            or not all(isinstance(v, int) and not isinstance(v, bool) for v in box)
        ):
            raise InputError(
                f"{name}: a box is [top, left, bottom, right] in whole pixels; got {box!r}"
            )
        top, left, bottom, right = box
        if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
            raise InputError(
                f"{name}: box {box} is empty or leaves the picture of {shape[0]} x {shape[1]}"
                " pixels (H, W)"
            )
        mask[top:bottom, left:right] = True
    return mask


def anatomical_regions(image: np.ndarray, border: float = 0.12) -> dict[str, np.ndarray]:
    """``tissue`` and ``blood`` of a clean B-mode picture ``(H, W)`` in [0, 1], by its smoothed
    brightness inside its sector.

    Blood: the darkest quarter of the sector's inner part, as far as it is darker than 0.08; tissue:
    the brightest quarter, as far as it is brighter than 0.3. The smoothing is over 4 pixels.
    Without a sector the whole picture counts.

    Raises:
        ValueError: a region has fewer than 200 pixels: give boxes.
    """
    from scipy import ndimage

    from restoration.ultrasound.bmode import find_sector

    image = np.asarray(image, np.float64)
    sector = find_sector(image)
    inside = np.ones(image.shape, bool) if sector is None else sector.inside()
    inner = ndimage.binary_erosion(inside, iterations=max(1, round(border * min(image.shape) / 2)))
    smooth = ndimage.gaussian_filter(image, 4)
    low, high = np.quantile(smooth[inner], (0.25, 0.75)) if inner.any() else (0, 1)
    regions = {
        "tissue": inner & (smooth >= max(high, 0.3)),
        "blood": inner & (smooth <= min(low, 0.08)),
    }
    for name, mask in regions.items():
        if mask.sum() < 200:
            raise InputError(
                f"the picture shows too little {name} to measure ({int(mask.sum())} pixels): give"
                " boxes"
            )
    return regions


def _regions(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(v, np.float64).ravel() for v in (x, y))
    if x.size == 0 or y.size == 0:
        raise InputError("a region is empty")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a region holds NaN or infinite values")
    return x, y


@dataclass(frozen=True)
class Structure:
    """Of a frame, compared with the clean one; all are shares from 0 to 1.

    Attributes:
        edges_kept: of the clean frame's edges, as far as the result has them in their direction.
        edges_invented: edges of the result beyond those that the clean or the hazy frame has there,
            as a share of the clean frame's.
        tissue_lost: of the tissue, what has less than half of its grey value.
        blood_filled: of the cavities, what is brighter than they are by more than 0.12.
    """

    edges_kept: float
    edges_invented: float
    tissue_lost: float
    blood_filled: float


def structure(image: np.ndarray, clean: np.ndarray, hazy: np.ndarray) -> Structure:
    """What a dehazed ``image (H, W)`` in [0, 1] keeps and invents.

    All three are smoothed beyond the grain of speckle first; what lies outside the sector does not
    count.

    Raises:
        ValueError: a clean frame without an edge.
    """
    from scipy import ndimage

    from restoration.ultrasound.bmode import find_sector

    seen = find_sector(clean)
    inside = np.ones(clean.shape, bool) if seen is None else seen.inside()
    inner = ndimage.binary_erosion(inside, iterations=round(2 * GRAIN))
    smooth = [
        ndimage.gaussian_filter(np.asarray(v, np.float64), GRAIN) for v in (image, clean, hazy)
    ]
    found, true, given = (np.array(np.gradient(v))[:, inner] for v in smooth)
    steep = np.linalg.norm(true, axis=0)
    if not steep.sum() > 0:
        raise ValueError("the clean frame shows no edge to compare with")
    along = (found * true).sum(0) / np.maximum(steep, 1e-12)
    known = np.maximum(steep, np.linalg.norm(given, axis=0))
    tissue, blood = inner & (smooth[1] >= TISSUE), inner & (smooth[1] <= BLOOD)
    return Structure(
        float(np.clip(along, 0, steep).sum() / steep.sum()),
        float(np.maximum(np.linalg.norm(found, axis=0) - known, 0).sum() / steep.sum()),
        _share(smooth[0] < LOST * smooth[1], tissue),
        _share(smooth[0] > smooth[1] + LEFT, blood),
    )


def _share(what: np.ndarray, where: np.ndarray) -> float:
    return float(what[where].mean()) if where.any() else 0.0
