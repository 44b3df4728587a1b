"""Operators that act on rows and columns apart: super-resolution and separable blur, with their
exact singular values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.operators.linear import LinearOperator
from solvers.inputs.memory import check_bytes

PADDINGS = ("zero", "circular", "reflect")


class _Product(LinearOperator):
    """``A X = R X C^T`` without the singular values."""

    def __init__(self, rows: Tensor, columns: Tensor):
        self.rows, self.columns = rows, columns

    def A(self, x: Tensor) -> Tensor:
        return _both(self.rows, x, self.columns)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return _both(self.rows.T, y, self.columns.T)


class Separable(_Product):
    """``A X = R X C^T`` on every channel. Only the two 1-D factors and their SVDs are kept, in
    float64; any size and channel count.

    With ``R = U_r S_r V_r^T`` and the same for C, the singular values are the products ``s_i s_j``.
    Those below ``rcond`` times the largest are zero for ``A_dagger`` and :meth:`spectral_filter`:
    inverting them would only amplify rounding and noise.

    Args:
        rows: R, ``(M, H)``: acts on the height.
        columns: C, ``(N, W)``: acts on the width.
        rcond: relative cut-off of singular values, in [0, 1).

    Raises:
        ValueError: factors that are not matrices or not finite, ``rcond`` outside [0, 1).
    """

    def __init__(self, rows: Tensor, columns: Tensor, rcond: float = 1e-6):
        super().__init__(*(torch.as_tensor(v).double() for v in (rows, columns)))
        for name, factor in (("rows", self.rows), ("columns", self.columns)):
            if factor.ndim != 2 or not torch.isfinite(factor).all():
                raise ValueError(f"{name} must be a finite matrix; got shape {tuple(factor.shape)}")
        if not 0 <= rcond < 1:
            raise ValueError(f"rcond must lie in [0, 1); got {rcond}")
        u_rows, s_rows, self.v_rows = _full_svd(self.rows)
        u_columns, s_columns, self.v_columns = _full_svd(self.columns)
        self.values = s_rows[:, None] * s_columns  # (H, W), zeros where nothing is measured
        self.all_values = self.values
        self.values = torch.where(self.values > rcond * self.values.max(), self.values, 0.0)
        self.u_rows, self.u_columns = u_rows, u_columns

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` of the images."""
        return self.rows.shape[1], self.columns.shape[1]

    def A(self, x: Tensor) -> Tensor:
        _check_size(x, self.size)
        return super().A(x)

    def A_dagger(self, y: Tensor) -> Tensor:
        coefficients = _both(self.u_rows.T, y, self.u_columns.T)
        return self.synthesis(self.inverse.to(y) * coefficients)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        # by what z misses of the data: however large gamma is, nothing is added that A doesn't see
        s = self.all_values  # nothing is inverted, so nothing is cut off
        misfit = _both(self.u_rows.T, y - self.A(z), self.u_columns.T)
        return z + self.synthesis((gamma * s / (1 + gamma * s**2)).to(misfit) * misfit)

    def spectral_filter(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``V f(S) V^T x``; ``f`` sees the ``(H, W)`` singular values."""
        return self.synthesis(f(self.values.to(x)) * _both(self.v_rows.T, x, self.v_columns.T))

    def synthesis(self, coefficients: Tensor) -> Tensor:
        return _both(self.v_rows, coefficients, self.v_columns)

    @property
    def inverse(self) -> Tensor:
        return torch.where(self.values > 0, 1 / self.values, 0.0)


class BlockMean(Separable):
    """Super-resolution from means of ``factor x factor`` blocks; blocks at the lower and right edge
    may be smaller.

    Args:
        size: ``(H, W)`` of the full images.
        factor: side of a block, >= 1.

    Raises:
        ValueError: a factor below 1 or larger than the image.
    """

    def __init__(self, size: Sequence[int], factor: int = 4):
        _check_factor(size, factor)
        _check_sides(size)
        super().__init__(_block_means(size[0], factor), _block_means(size[1], factor))
        self.factor = factor


class Bicubic(Separable):
    """Super-resolution from an antialiased bicubic reduction (``a = -1/2``, kernel widened by the
    factor), as image libraries do it.

    Args:
        size: ``(H, W)`` of the full images; reduced images have ``ceil(H/factor)`` by
            ``ceil(W/factor)`` pixels.
        factor: reduction, >= 1.

    Raises:
        ValueError: a factor below 1 or larger than the image.
    """

    def __init__(self, size: Sequence[int], factor: int = 4):
        _check_factor(size, factor)
        _check_sides(size)
        super().__init__(_bicubic(size[0], factor), _bicubic(size[1], factor))
        self.factor = factor


class UnknownReduction(LinearOperator):
    """Super-resolution where nobody knows how the large picture became the small one: some kernel,
    some softness, perhaps JPEG. Means of blocks stand in for it.

    Attributes:
        exact: False: results are not held to the stand-in where a network is shown the small
            picture (:class:`restoration.photo.linear.LinearTask`).

    Args:
        size: ``(H, W)`` of the full images, multiples of the factor.
        factor: reduction, >= 1.

    Raises:
        ValueError: a factor below 1 or larger than the image, or a size that is no multiple of it.
    """

    exact = False

    def __init__(self, size: Sequence[int], factor: int = 4):
        _check_factor(size, factor)
        if size[0] % factor or size[1] % factor:
            raise ValueError(f"the size must be a multiple of {factor}; got {tuple(size)}")
        self.size, self.factor = (int(size[0]), int(size[1])), factor

    def A(self, x: Tensor) -> Tensor:
        _check_size(x, self.size)
        return F.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.A_dagger(y) / self.factor**2

    def A_dagger(self, y: Tensor) -> Tensor:
        height, width = y.shape[-2:]
        if (height * self.factor, width * self.factor) != self.size:
            raise ValueError(
                f"this operator makes {self.size} pixels (H, W) {self.factor} times smaller; got"
                f" a picture of {(height, width)}"
            )
        return F.interpolate(y, scale_factor=self.factor, mode="nearest")

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        # A A^T = I / factor^2
        misfit = y - self.A(z)
        return z + gamma / (1 + gamma / self.factor**2) * self.A_adjoint(misfit)

    def spectral_filter(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``V f(S) V^T x``: means of blocks have the singular value ``1/factor``, the rest 0."""
        means = self.A_dagger(self.A(x))
        return f(x.new_full((), 1 / self.factor)) * means + f(x.new_zeros(())) * (x - means)


class Blur(Separable):
    """Blur with the same 1-D kernel along both axes.

    Args:
        size: ``(H, W)`` of the images; the result has the same size.
        kernel: odd number of taps, not scaled; :func:`gaussian_kernel` makes one.
        padding: what lies beyond the edge: ``zero``, ``circular`` or ``reflect`` (about the edge
            pixel).
        rcond: see :class:`Separable`. Blurs have very small singular values.

    Raises:
        ValueError: an even number of taps, an unknown padding, or a kernel too long for its
            padding.
    """

    def __init__(
        self,
        size: Sequence[int],
        kernel: Sequence[float] | Tensor,
        padding: str = "reflect",
        rcond: float = 1e-6,
    ):
        taps = _odd(kernel)
        if padding not in PADDINGS:
            raise ValueError(f"padding {padding!r} is unknown; known: {', '.join(PADDINGS)}")
        if padding != "zero" and len(taps) // 2 >= min(size):
            raise ValueError(
                f"a kernel of {len(taps)} taps is too long for an image of {tuple(size)} pixels"
                f" with {padding} padding"
            )
        _check_sides(size)
        rows, columns = (_convolution(length, taps, padding) for length in size)
        super().__init__(rows, columns, rcond)


class SceneBlur(Separable):
    """Blur of a scene that goes on beyond the picture, as cameras see it: of ``(H + 2 m, W + 2 m)``
    to ``(H, W)``. Nothing is assumed of what lies beyond the edges, so it also holds for pictures
    that were blurred with any of :data:`PADDINGS`.

    Attributes:
        margin: m, the kernel's reach rounded up to a multiple of 8, which networks like.

    Args:
        frame: ``(H, W)`` of the pictures.
        kernel: as :class:`Blur`'s.
        rcond: as :class:`Blur`'s.

    Raises:
        ValueError: an even number of taps, or more of them than the picture has rows or columns.
    """

    STEP = 8

    def __init__(self, frame: Sequence[int], kernel: Sequence[float] | Tensor, rcond: float = 1e-6):
        taps = _odd(kernel)
        self.frame = (int(frame[0]), int(frame[1]))
        if len(taps) > min(self.frame):
            raise ValueError(
                f"a blur that spreads over {len(taps)} pixels is too wide for a picture of"
                f" {tuple(frame)} pixels (H, W)"
            )
        self.margin = math.ceil((len(taps) // 2) / self.STEP) * self.STEP
        sides = [n + 2 * self.margin for n in self.frame]
        _check_sides(sides)
        inner = slice(self.margin, -self.margin or None)
        rows, columns = (_convolution(n, taps, "zero")[inner] for n in sides)
        super().__init__(rows, columns, rcond)

    def cut(self, scene: Tensor) -> Tensor:
        """The picture's part ``(..., H, W)`` of a scene."""
        height, width = self.frame
        return scene[..., self.margin : self.margin + height, self.margin : self.margin + width]

    def mirrored(self, picture: Tensor) -> Tensor:
        """A scene ``(..., H + 2 m, W + 2 m)``: the picture, mirrored about its edge pixels (as
        often as a margin beyond the kernel's reach needs it).
        """
        for axis, n in ((-2, self.frame[0]), (-1, self.frame[1])):
            k = torch.arange(-self.margin, n + self.margin) % max(1, 2 * (n - 1))
            where = torch.minimum(k, 2 * (n - 1) - k).to(picture.device)
            picture = picture.index_select(axis, where)
        return picture

    def inside(self, y: Tensor) -> tuple[Tensor, LinearOperator] | None:
        """What of a measurement ``(..., H, W)`` no pixel beyond the picture has a part in, and the
        operator that measures it of the picture; None: there is no such pixel.
        """
        m, (height, width) = self.margin, self.frame
        if min(self.frame) <= 2 * m:
            return None
        inner = slice(m, -m or None)
        rows = self.rows[inner, m : m + height]
        columns = self.columns[inner, m : m + width]
        return y[..., inner, inner], _Product(rows, columns)


def gaussian_kernel(std: float, radius: int | None = None) -> Tensor:
    """Sampled Gaussian of ``2 radius + 1`` taps with sum 1; ``radius`` is three standard deviations
    by default.

    Raises:
        ValueError: a standard deviation that is not positive, or of more than 10,000 pixels.
    """
    if not 0 < std <= 10_000:
        raise ValueError(f"std must be positive and at most 10000 pixels; got {std:g}")
    radius = max(1, math.ceil(3 * std)) if radius is None else radius
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / std) ** 2)
    return taps / taps.sum()


def _odd(kernel: Sequence[float] | Tensor) -> Tensor:
    taps = torch.as_tensor(kernel, dtype=torch.float64)
    if taps.ndim != 1 or len(taps) % 2 == 0:
        raise ValueError(f"kernel must have an odd number of taps; got shape {tuple(taps.shape)}")
    return taps


def _check_size(x: Tensor, size: tuple[int, int]) -> None:
    if tuple(x.shape[-2:]) != size:
        raise ValueError(
            f"this operator takes images of {size} pixels (H, W); got {tuple(x.shape[-2:])}"
        )


def _both(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    return left.to(x) @ x @ right.to(x).T


def _full_svd(factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``U (M, n)``, ``s (n,)``, ``V (n, n)`` for a factor ``(M, n)``; padded with zeros where M <
    n, so that V is a whole basis.
    """
    m, n = factor.shape
    u, s, vt = torch.linalg.svd(factor, full_matrices=True)
    k = min(m, n)
    return F.pad(u[:, :k], (0, n - k)), F.pad(s, (0, n - k)), vt.T


def _check_sides(size: Sequence[int]) -> None:
    """A factor and its decomposition are some matrices of the side squared: a picture of one line
    can ask for more than there is.
    """
    side = max(size)
    check_bytes(f"an operator on pictures of {side} pixels a side", 6 * 8 * side**2)


def _check_factor(size: Sequence[int], factor: int) -> None:
    if not 1 <= factor <= min(size):
        raise ValueError(
            f"factor must lie between 1 and the image's smaller side; got {factor} for"
            f" {tuple(size)} pixels"
        )


def _block_means(length: int, factor: int) -> Tensor:
    owner = torch.arange(length) // factor
    member = (owner[None] == torch.arange(int(owner[-1]) + 1)[:, None]).double()
    return member / member.sum(1, keepdim=True)


def _bicubic(length: int, factor: int) -> Tensor:
    """Each output pixel's kernel, centred on its block and cut at the image's edge, with sum 1."""
    centers = (torch.arange(-(-length // factor), dtype=torch.float64) + 0.5) * factor
    distance = (
        (torch.arange(length, dtype=torch.float64) + 0.5)[None] - centers[:, None]
    ).abs() / factor
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weight / weight.sum(1, keepdim=True)


def _convolution(length: int, taps: Tensor, padding: str) -> Tensor:
    radius = len(taps) // 2
    matrix = torch.zeros(length, length, dtype=torch.float64)
    for offset, tap in zip(range(-radius, radius + 1), taps, strict=True):
        to = torch.arange(length)
        source = to + offset
        if padding == "circular":
            source = source % length
        elif padding == "reflect":
            source = source.abs()
            source = torch.where(source >= length, 2 * (length - 1) - source, source)
        inside = (source >= 0) & (source < length)
        matrix.index_put_((to[inside], source[inside]), tap, accumulate=True)
    return matrix
