"""Masks of what people want gone, found by classical means: scratches, dust, printed text.

These are detectors of small things that stand out from their surroundings, no networks: they miss
faint and wide ones, and take for defects what looks like them (wires, stars, lettering in the
scene). Look at what was found before the result is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from solvers.inputs.errors import InputError

PREFIX = "auto:"
LARGEST = 1_000_000  # pixels
INKS = 12  # colours that text is looked for in
EVEN = 0.035  # deviation of the colours of ink
MOST = 300  # pieces of one colour that may still be letters
AROUND = np.ones((3, 3), bool)
CONTRAST = 0.2  # of white, that a defect has at least
WIDEST = 6  # pixels from the middle of scratches, or of a crossing, to their edge


def found_defects(pixels: np.ndarray, kind: str) -> np.ndarray:
    """Bool ``(H, W)``: where a picture ``(C, H, W)`` in [0, 1] shows them. Pictures of more than
    :data:`LARGEST` pixels are searched at a coarser scale.

    Raises:
        InputError: an unknown kind, or nothing of it in the picture.
    """
    if kind not in KINDS:
        raise InputError(
            f"--mask {PREFIX}{kind} is unknown; known: {', '.join(PREFIX + name for name in KINDS)}"
        )
    factor = math.ceil(math.sqrt(pixels[0].size / LARGEST))
    height, width = pixels.shape[1:]
    full = np.pad(pixels, ((0, 0), (0, -height % factor), (0, -width % factor)), mode="edge")
    rows, columns = (n // factor for n in full.shape[1:])
    small = full.reshape(len(full), rows, factor, columns, factor).mean((2, 4))
    found = KINDS[kind](small).repeat(factor, 0).repeat(factor, 1)[:height, :width]
    if not found.any():
        raise InputError(
            f"--mask {PREFIX}{kind} finds no {kind} in the picture: faint or wide ones are missed;"
            " paint a mask"
        )
    return found


def scratches(pixels: np.ndarray) -> np.ndarray:
    """Straight lines a few pixels wide, lighter or darker than both their sides: detail that holds
    on along a segment of some direction, and stands out from such detail around.
    """
    from scipy.ndimage import grey_opening, maximum_filter, uniform_filter

    found = np.zeros(pixels.shape[1:], bool)
    # shorter ones are strokes of the scene: of a face, of letters
    length = min(max(15, min(found.shape) // 8), 80)
    for detail in _details(pixels, 3):
        broad = maximum_filter(detail, 3)  # drawn lines step aside now and then
        along = np.max([grey_opening(broad, footprint=f) for f in _segments(length)], 0)
        around = uniform_filter(along, 6 * length)
        along = np.where(detail > CONTRAST / 2, along, 0)
        found |= _above(along, np.maximum(3.5 * around, CONTRAST), detail)
    return _thin(_grown(found, 1))


def dust(pixels: np.ndarray) -> np.ndarray:
    """Compact specks, much lighter or darker than what is around, where that is calm."""
    from scipy.ndimage import uniform_filter
    from skimage.measure import label, regionprops

    found = np.zeros(pixels.shape[1:], bool)
    largest = max(40, min(found.shape) ** 2 // 1000)
    for detail in _details(pixels, 4):
        calm = uniform_filter(detail, 25)
        labels = label(_above(detail, np.maximum(5 * calm, CONTRAST), detail), connectivity=2)
        for region in regionprops(labels):
            long = region.axis_major_length > 3 * max(region.axis_minor_length, 1)
            if 2 <= region.area <= largest and not long and region.solidity > 0.7:
                found[region.coords[:, 0], region.coords[:, 1]] = True
    return _grown(found, 1)


def text(pixels: np.ndarray) -> np.ndarray:
    """Letters laid over a picture (dates, captions, marks of agencies): pieces of one colour, at
    least four of like height side by side.
    """
    from scipy.sparse.csgraph import connected_components
    from skimage.measure import label, regionprops

    found = np.zeros(pixels.shape[1:], bool)
    height = len(found)
    for colour in _inks(pixels):
        ink = np.abs(pixels - colour[:, None, None]).max(0) < 0.1
        letters = [
            region
            for region in regionprops(label(ink, connectivity=2))
            if 6 <= region.bbox[2] - region.bbox[0] <= height / 4
            and region.area >= 8
            and _even(pixels, region.coords)
            and region.bbox[3] - region.bbox[1] <= 2 * (region.bbox[2] - region.bbox[0])
        ]
        if not 4 <= len(letters) <= MOST:
            continue
        beside = [[_in_line(one.bbox, other.bbox) for other in letters] for one in letters]
        words = connected_components(np.array(beside))[1]
        for word in np.unique(words):
            one = [letter for letter, w in zip(letters, words, strict=True) if w == word]
            tall = np.median([r.bbox[2] - r.bbox[0] for r in one])
            line = max(r.bbox[2] for r in one) - min(r.bbox[0] for r in one)
            if len(one) < 4 or line > 1.8 * tall:  # texture goes on above and below
                continue
            for letter in one:
                found[letter.coords[:, 0], letter.coords[:, 1]] = True
    return _grown(found, 2)


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scratches": scratches,
    "dust": dust,
    "text": text,
}


def _even(pixels: np.ndarray, coords: np.ndarray) -> bool:
    """Whether a piece has one colour, as ink has."""
    return bool(pixels[:, coords[:, 0], coords[:, 1]].std(1).max() < EVEN)


Box = tuple[int, int, int, int]


def _in_line(one: Box, other: Box) -> bool:
    """Whether two letters stand on one line, near each other and of like height."""
    tall = one[2] - one[0], other[2] - other[0]
    apart = max(one[1], other[1]) - min(one[3], other[3])
    return bool(
        max(tall) <= 1.6 * min(tall)
        and min(abs(one[0] - other[0]), abs(one[2] - other[2])) <= 0.25 * max(tall)
        and apart <= 2 * max(tall)
    )


def _inks(pixels: np.ndarray) -> list[np.ndarray]:
    """The colours that most of the strong detail has."""
    strong = np.max(_details(pixels, max(4, min(pixels.shape[1:]) // 50)), 0) > 0.3
    colours = pixels[:, strong]
    if colours.shape[1] < 20:
        return []
    bins = np.unique(np.rint(colours * 7), axis=1, return_inverse=True, return_counts=True)
    _, place, counts = bins
    order = np.argsort(counts)[::-1][:INKS]
    return [np.median(colours[:, np.ravel(place) == k], axis=1) for k in order if counts[k] >= 20]


def _segments(length: int) -> list[np.ndarray]:
    """Footprints of straight segments in 24 directions."""
    from skimage.draw import line

    found, half = [], length // 2
    for angle in np.arange(24) * np.pi / 24:
        y, x = round(half * np.sin(angle)), round(half * np.cos(angle))
        footprint = np.zeros((2 * half + 1, 2 * half + 1), bool)
        footprint[line(half - y, half - x, half + y, half + x)] = True
        found.append(footprint)
    return found


def _details(pixels: np.ndarray, radius: int) -> list[np.ndarray]:
    """What is lighter, and what is darker, than an opening and a closing by a disc leave: the
    strongest channel, ``(H, W)``.
    """
    from scipy.ndimage import grey_closing, grey_opening
    from skimage.morphology import disk

    around = disk(radius)
    light = [x - grey_opening(x, footprint=around) for x in pixels]
    dark = [grey_closing(x, footprint=around) - x for x in pixels]
    return [np.max(light, 0), np.max(dark, 0)]


def _above(strength: np.ndarray, limit: np.ndarray, detail: np.ndarray) -> np.ndarray:
    """Where it exceeds the limit, and the detail of half that which is connected to it."""
    from scipy.ndimage import binary_dilation

    sure = strength > limit
    found: np.ndarray = sure | (binary_dilation(sure, AROUND, 2) & (detail > limit / 2))
    return found


def _thin(found: np.ndarray) -> np.ndarray:
    """Without what is wide: fur and grass are lines beside lines."""
    from scipy.ndimage import distance_transform_edt

    wide = distance_transform_edt(found) > WIDEST
    if not wide.any():
        return found
    thin: np.ndarray = found & (distance_transform_edt(~wide) > WIDEST + 1)
    return thin


def _grown(found: np.ndarray, pixels: int) -> np.ndarray:
    """With the soft edges around."""
    from scipy.ndimage import binary_dilation

    grown: np.ndarray = binary_dilation(found, AROUND, pixels) if found.any() else found
    return grown
