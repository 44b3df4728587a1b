"""Masks as people make them: painted white or black, in a colour over the photo, as a layer, with
soft edges.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from PIL import ImageColor

from solvers.inputs.errors import InputError

UNDECIDED = 0.25  # share of pixels that are neither black nor white, from which a mask is a photo
# the least share of an overlay that a ring of pixels shows where there are traces, and how many
# times its own uncertainty that is: below 0.02 in photographs where masks are exact, 0.05 to 0.3
# where edges were soft or in JPEG
TRACES, CERTAIN = 0.04, 5.0
MOST_TRACES, LEAST_RING = 2, 100  # rings; pixels that tell
VIVID = 0.5  # difference of a colour's channels, from which it is none of a grey mask
PLAIN = 0.98  # share of pixels of a background that is one
CHANGED = 0.15  # difference of pixels that were painted over
NEAR = 0.35  # distance of colours in [0, 1]^3 that still are the one that was painted
EXACT = 0.01  # and of those that are it
EDGE = 3  # pixels over which the edge of what was painted may be soft
LOSSY = (".jpg", ".jpeg", ".webp", ".heic", ".heif", ".avif")  # files that hold no colour exactly


def missing_of(
    path: str | Path, pixels: np.ndarray, alpha: np.ndarray | None, colour: str | None = None
) -> np.ndarray:
    """Which pixels ``(H, W)`` a mask file marks: those of ``colour``. Without one: of a layer, one
    colour beside nothing, the smaller part, be it what is painted or what is left open; of a
    picture with holes, the holes; of colours on plain black or white the colours; else the white
    pixels. Soft edges count from their middle.

    Raises:
        InputError: an unknown colour, one that isn't found, a photograph, or colours on black and
            white.
    """
    if colour is not None:
        return _painted(path, pixels, colour)
    pixels = _truth(pixels)
    shown = np.ones(pixels.shape[1:], bool)
    if alpha is not None and alpha.min() < 0.5 <= alpha.max():
        shown = alpha >= 0.5
        if float(pixels[:, shown].std(1).max()) < 0.1:  # one colour beside nothing
            return shown if 2 * np.count_nonzero(shown) <= shown.size else ~shown
    grey = pixels.mean(0)
    between = float(((grey > 0.15) & (grey < 0.85))[shown].mean())
    if between > UNDECIDED and not shown.all():
        return ~shown
    spread = pixels.max(0) - pixels.min(0)
    if float(spread.max()) > VIVID:
        painted = spread > spread.max() / 2
        rest = grey[~painted]
        if rest.size and max((rest < 0.15).mean(), (rest > 0.85).mean()) > PLAIN:
            return painted
        if between <= UNDECIDED and painted.mean() > 1 - PLAIN:
            raise InputError(
                f"mask {path} holds colours beside black and white; paint the missing pixels white"
                " on black, or name the colour that they are painted in (--mask-colour red)"
            )
    if between > UNDECIDED:
        raise InputError(
            f"mask {path} looks like a photograph: {between:.0%} of its pixels are neither black"
            " nor white; paint the missing pixels white on black, or name the colour that they are"
            " painted in (--mask-colour red)"
        )
    return grey >= 0.5


def _truth(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1]; those of files whose only numbers are 0 and 1, as programs write truth
    values, as black and white.
    """
    top = float(pixels.max())
    one = any(abs(top * white - 1) < 1e-3 for white in (255, 65535))
    return pixels / top if one and ((pixels == 0) | (pixels == top)).all() else pixels


def changed(path: str | Path, pixels: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """Where a copy of the photo ``(C, H, W)`` was painted over: differences that JPEG doesn't make.

    Raises:
        InputError: there are none, or nearly everywhere.
    """
    one, other = (np.broadcast_to(v, (3, *v.shape[1:])) for v in (pixels, photo))
    found: np.ndarray = np.abs(one - other).max(0) > CHANGED
    if not found.any() or found.mean() > 0.9:
        what = "doesn't differ from" if not found.any() else "differs nearly everywhere from"
        raise InputError(
            f"mask {path} {what} the photo; for --mask-colour difference give the same photo with"
            " what is missing painted over"
        )
    return found


def _painted(path: str | Path, pixels: np.ndarray, colour: str) -> np.ndarray:
    try:
        wanted = np.array(ImageColor.getrgb(colour)[:3], np.float32) / 255
    except ValueError as error:
        raise InputError(
            f"colour {colour!r} is unknown; give a name such as red, or #rrggbb"
        ) from error
    far = np.linalg.norm(np.broadcast_to(pixels, (3, *pixels.shape[1:])).T - wanted, axis=-1).T
    found: np.ndarray = far < NEAR
    if not found.any():
        raise InputError(f"mask {path} has no pixel of the colour {colour}; nothing is marked")
    exact = far < EXACT
    told = np.count_nonzero(exact) > 0.1 * np.count_nonzero(found)
    if Path(path).suffix.lower() in LOSSY or not told:
        return found
    return found & grown(exact, EDGE)  # not what else has about that colour (shadows, skies)


def traces(pixels: np.ndarray, missing: np.ndarray) -> int:
    """How many rings around the missing pixels ``(H, W)`` of a picture ``(C, H, W)`` still show
    what was painted over it: none where the mask is exact; where edges were soft, or a JPEG spread
    them, one or two.

    A ring is compared with the next one near it: where it differs from that towards what is marked
    as missing, colour and all, it holds a share of the overlay. The picture's own edges differ in
    all directions, and alike in every ring.
    """
    from scipy.ndimage import distance_transform_edt, uniform_filter

    far = distance_transform_edt(~missing)
    rings = [(far > k) & (far <= k + 1) for k in range(MOST_TRACES + 2)]

    def mean(plane: np.ndarray, of: np.ndarray, side: int) -> np.ndarray:
        count = uniform_filter(of.astype(float), side)
        found: np.ndarray = uniform_filter(plane.astype(float) * of, side) / count.clip(1e-9)
        return found

    def share(ring: np.ndarray, outer: np.ndarray) -> tuple[float, float]:
        """Of the overlay in a ring, and how many times its own uncertainty it is."""
        known = ring & (uniform_filter(outer.astype(float), 5) > 0.1)  # three pixels of 25
        if np.count_nonzero(known) < LEAST_RING:
            return 0.0, 0.0
        means = np.stack([mean(p, outer, 5)[known] for p in pixels])
        overlay = np.stack([mean(p, missing, 7)[known] for p in pixels]) - means
        product = (pixels[:, known] - means) * overlay
        spread = max(float(np.sum(product**2)), 1e-12) ** 0.5
        return float(product.sum() / max(np.sum(overlay**2), 1e-12)), float(product.sum()) / spread

    found = [share(*pair) for pair in itertools.pairwise(rings)]
    count = 0
    while (
        count < MOST_TRACES
        and found[count][0] > max(TRACES, 2 * abs(found[count + 1][0]))
        and found[count][1] > CERTAIN
    ):
        count += 1
    return count


def grown(missing: np.ndarray, pixels: int) -> np.ndarray:
    """The marked pixels and their neighbours within so many pixels."""
    if pixels == 0 or not missing.any():  # distances to nothing are not defined
        return missing
    from scipy.ndimage import distance_transform_edt

    near: np.ndarray = distance_transform_edt(~missing) <= pixels
    return near


def looks_inverse(known: np.ndarray) -> bool:
    """Whether a mask ``(H, W)`` may mean the opposite: less than half is known, and that in shapes
    as people paint them, not in scattered pixels.
    """
    from scipy.ndimage import binary_erosion

    if not 0 < known.mean() < 0.5:
        return False
    inside = binary_erosion(known > 0, np.ones((3, 3), bool))
    return bool(np.count_nonzero(inside) > 0.2 * np.count_nonzero(known))


def feathered(missing: np.ndarray, pixels: int) -> np.ndarray:
    """Float32 ``(H, W)``: how much of the given picture stays, from 0 at missing pixels evenly to 1
    beyond so many pixels around them.
    """
    from scipy.ndimage import distance_transform_edt

    far = distance_transform_edt(~missing) / (pixels + 1)
    return np.minimum(far, 1).astype(np.float32)
