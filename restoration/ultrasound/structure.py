"""Whether a dehazed frame shows what is there: structure of the clean frame that is kept, and
structure that nothing shows.

gCNR compares two regions that are known to be tissue and blood; it does not see a patch of haze
that is left over with a hard edge, like a mass in a cavity, nor an organ that is hollowed out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from restoration.ultrasound.bmode import find_sector

GRAIN = 4.0  # pixels, standard deviation: beyond speckle
TISSUE, BLOOD = 0.2, 0.08  # of smoothed grey values: at least, at most
LOST, LEFT = 0.5, 0.12  # of the clean frame's grey value; above it


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
