"""What JPEG took from a picture, as the picture itself tells."""

from __future__ import annotations

import numpy as np
from torch import Tensor

BLOCK, SHIFT = 8, 4
SIDE = 1024  # of the middle of a large picture, which is looked at
STEPS = range(60, 1, -1)  # of the rounding that is looked for, of 255
# of coefficients of one frequency: how large, in steps, they must be to tell, and how many
TELLING, ENOUGH = 0.6, 20
# how near to multiples (1: on them, 0: anywhere) they are, of what the rounding of pixels leaves of
# it, whose variance is that, and how much nearer than by chance
NEAR, PIXELS, CHANCE = 0.8, 0.3, 3.0
OTHERS = 0.05  # share of them that are other multiples
JUMP = 4.0  # of 255: what larger ones between blocks are, edges, counts no more
# of frequencies that tell: how many there must be, and how many of them rounded
FREQUENCIES, ROUNDED = 6, 0.3
LUMA = (0.299, 0.587, 0.114)


def jpeg_error(picture: np.ndarray | Tensor) -> float:
    """Root mean square of the error that JPEG left in the brightness of a picture ``(C, H, W)`` in
    [0, 1]; 0 where nothing tells of JPEG, or it was too gentle to matter.

    JPEG rounds the cosine coefficients of 8 x 8 blocks to multiples of a step for each frequency,
    and near them they stay: a frequency's step is the largest whose multiples its coefficients
    keep to (Fan and de Queiroz, IEEE Trans. Image Processing 2003). Rounding blocks that lie half
    a block further in the same way errs about as much as the first rounding did: 0.9 to 1.3 times
    on blurred photographs.

    Raises:
        ValueError: not a picture of 1 or 3 channels.
    """
    values = np.asarray(picture.cpu() if isinstance(picture, Tensor) else picture, dtype=np.float32)
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ValueError(f"a picture is (1 or 3, H, W); got shape {values.shape}")
    if min(values.shape[1:]) < 3 * BLOCK:
        return 0.0
    middle = [slice((n - min(n, SIDE)) // 2, (n + min(n, SIDE)) // 2) for n in values.shape[1:]]
    values = values[:, *middle]
    plane = values[0] if len(values) == 1 else np.tensordot(np.asarray(LUMA, np.float32), values, 1)
    plane = 255 * plane - 128
    rows, columns = (-s.start % BLOCK for s in middle)  # of whole pictures; cut ones begin anywhere
    for row, column in ((rows, columns), (_phase(plane.T), _phase(plane))):
        coefficients = _coefficients(plane[row:, column:])
        found = [_step(of_one) for of_one in coefficients.reshape(-1, BLOCK**2).T]
        steps, sure = (np.array(v) for v in zip(*found, strict=True))
        told = np.isfinite(steps).sum()
        if told >= FREQUENCIES and sure.sum() > ROUNDED * told:
            moved = _coefficients(plane[row + SHIFT :, column + SHIFT :]).reshape(-1, BLOCK**2)
            step = np.where(np.isfinite(steps), steps, 1)
            again = np.where(np.isfinite(steps), np.round(moved / step) * step, 0)
            return float(np.sqrt(np.mean((again - moved) ** 2))) / 255
    return 0.0


def _phase(plane: np.ndarray) -> int:
    """The column where blocks begin: where neighbours differ more than those around them do."""
    jumps = np.minimum(np.abs(np.diff(plane, axis=1)), JUMP).mean(0)
    excess = np.zeros_like(jumps)
    excess[1:-1] = jumps[1:-1] - (jumps[:-2] + jumps[2:]) / 2
    # jump k lies between pixels k and k + 1
    return (int(np.argmax([excess[k::BLOCK].mean() for k in range(BLOCK)])) + 1) % BLOCK


def _coefficients(plane: np.ndarray) -> np.ndarray:
    """The orthonormal cosine transform of whole blocks, ``(N, 8, 8)``."""
    from scipy.fft import dctn

    rows, columns = (n // BLOCK for n in plane.shape)
    whole = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    found: np.ndarray = dctn(whole, axes=(1, 3), norm="ortho")
    return found.transpose(0, 2, 1, 3).reshape(-1, BLOCK, BLOCK)


def _step(values: np.ndarray) -> tuple[float, bool]:
    """Of the rounding of one frequency's coefficients (1: none that can be seen, infinite: all were
    rounded to zero), and whether they tell it for sure: patterns have one size of them over and
    over.
    """
    sizes = np.sort(np.abs(values))[::-1]
    for step in STEPS:
        count = int(np.searchsorted(-sizes, -TELLING * step))
        if count < max(ENOUGH, len(sizes) // 500):
            continue
        nearness = np.cos(2 * np.pi / step * sizes[:count]).mean()
        left = np.exp(-2 * np.pi**2 * PIXELS / step**2)
        if nearness > max(NEAR * left, CHANCE / count**0.5):
            multiples = np.bincount(np.round(sizes[:count] / step).astype(int))
            return float(step), (multiples > OTHERS * count).sum() > 1
    return (1.0 if (sizes > 2).sum() >= ENOUGH else np.inf), False
