"""Non-linear measurements of images in [-1, 1], for methods that take them (RED-Diff, DPS):
quantisation, clipping, lost phase.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.operators.linear import NonlinearOperator


class Quantization(NonlinearOperator):
    """Rounding to ``2^bits`` levels from -1 to 1: ``A x = 2 round(n (x + 1)/2)/n - 1`` with ``n =
    2^bits - 1``.

    Rounding has a zero gradient, with which a run would follow the prior alone. The gradient is
    passed straight through instead: ``J_A^T v = v``, so pixels in their cell feel nothing and
    others are drawn to its middle.

    Args:
        bits: 1 to 16.

    Raises:
        ValueError: another number of bits.
    """

    def __init__(self, bits: int):
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
            raise ValueError(f"bits must be a whole number from 1 to 16; got {bits!r}")
        self.bits, steps = bits, 2**bits - 1
        super().__init__(lambda x: ((x + 1) / 2 * steps).round() / steps * 2 - 1, lambda y: y)

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return v


class HighDynamicRange(NonlinearOperator):
    """Over-exposure: ``A x = clip(gain x, -1, 1)``, begun from ``y/gain``.

    Args:
        gain: > 1; 2 in the RED-diff paper.

    Raises:
        ValueError: a gain of 1 or less.
    """

    def __init__(self, gain: float = 2.0):
        if not gain > 1:
            raise ValueError(f"gain must exceed 1; got {gain}")
        self.gain = gain
        super().__init__(lambda x: (gain * x).clamp(-1, 1), lambda y: y / gain)


class PhaseRetrieval(NonlinearOperator):
    """``A x = |F P x|``: magnitudes of the centred orthonormal Fourier transform of the image with
    ``pad`` zeros on every side.

    The start is ``|F^-1 y|`` without the border. (The authors' code pads 64 whatever the image's
    size.)

    Args:
        pad: >= 0; a half of the side makes the data fourfold.

    Raises:
        ValueError: a negative pad.
    """

    def __init__(self, pad: int):
        if pad < 0:
            raise ValueError(f"pad must not be negative; got {pad}")
        self.pad = pad
        super().__init__(self._magnitudes, self._start)

    def _magnitudes(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.pad,) * 4)
        return torch.fft.fftshift(
            torch.fft.fft2(torch.fft.ifftshift(x, (-2, -1)), norm="ortho"), (-2, -1)
        ).abs()

    def _start(self, y: Tensor) -> Tensor:
        x = torch.fft.fftshift(
            torch.fft.ifft2(torch.fft.ifftshift(y, (-2, -1)), norm="ortho"), (-2, -1)
        ).abs()
        return x[..., self.pad : x.shape[-2] - self.pad, self.pad : x.shape[-1] - self.pad]
