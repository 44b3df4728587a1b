"""Linear measurement operators with deepinv's words: ``A``, ``A_adjoint``, ``A_dagger``,
``prox_l2``.

Any object with these four methods is accepted wherever an operator is; deriving from
:class:`LinearOperator` gives the last two by conjugate gradients. Operators that know their
singular values also have ``spectral_filter``; separable ones are in
``restoration.operators.separable``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Operator(Protocol):
    """The contract: a measurement of images ``(B, C, H, W)`` in deepinv's words."""

    def A(self, x: Tensor, /) -> Tensor: ...

    def A_adjoint(self, y: Tensor, /) -> Tensor: ...

    def A_dagger(self, y: Tensor, /) -> Tensor: ...

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, /) -> Tensor: ...


METHODS = ("A", "A_adjoint", "A_dagger", "prox_l2")


class LinearOperator:
    """A linear map of images ``(B, C, H, W)``; subclasses give ``A`` and ``A_adjoint``."""

    def A(self, x: Tensor) -> Tensor:
        """The measurement without noise."""
        raise TypeError(f"{type(self).__name__} must define A")

    def A_adjoint(self, y: Tensor) -> Tensor:
        """``A^H y``: ``<A x, y> = <x, A^H y>`` for all x, y."""
        raise TypeError(f"{type(self).__name__} must define A_adjoint")

    def A_dagger(self, y: Tensor) -> Tensor:
        """The minimum-norm least-squares image ``A^+ y``."""
        return conjugate_gradient(lambda x: self.A_adjoint(self.A(x)), self.A_adjoint(y))

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        """``argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2`` with ``gamma > 0``."""
        return conjugate_gradient(
            lambda x: x + gamma * self.A_adjoint(self.A(x)), z + gamma * self.A_adjoint(y), start=z
        )


class Inpainting(LinearOperator):
    """``A x = mask * x``: missing pixels are measured as zeros.

    Args:
        mask: ``(H, W)``, ``(1, H, W)`` or ``(B or 1, 1 or C, H, W)``; 1 = known, 0 = missing.

    Raises:
        ValueError: a mask of another rank, or with values other than 0 and 1.
    """

    def __init__(self, mask: Tensor):
        if not 2 <= mask.ndim <= 4:
            raise ValueError(f"a mask has 2 to 4 dimensions; got shape {tuple(mask.shape)}")
        mask = mask[(None,) * (4 - mask.ndim)].float()
        if not torch.compiler.is_exporting() and not ((mask == 0) | (mask == 1)).all():
            raise ValueError("a mask holds only 0 (missing) and 1 (known)")
        self.mask = mask

    def A(self, x: Tensor) -> Tensor:
        return self.mask.to(x) * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.mask.to(y) * y

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.mask.to(y) * y

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        weight = gamma * self.mask.to(z)
        return (z + weight * y) / (1 + weight)

    def spectral_filter(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``V f(S) V^T x``: the pixels are the singular directions, the mask holds their values."""
        return f(self.mask.to(x)) * x


class Denoising(LinearOperator):
    """``A x = x``: every pixel is measured, only noise is to be removed."""

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y

    def A_dagger(self, y: Tensor) -> Tensor:
        return y

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        return (z + gamma * y) / (1 + gamma)

    def spectral_filter(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``V f(S) V^T x``: every singular value is 1."""
        return f(x.new_ones(())) * x


class LinearFunction(LinearOperator):
    """Any linear callable; its adjoint is taken by automatic differentiation, the rest by conjugate
    gradients.

    Args:
        function: ``(B, C, H, W) -> (B, ...)``, linear, differentiable, and treating each image of a
            batch alone.
        shape: ``(C, H, W)`` of the images.

    Raises:
        ValueError: a function that is not linear on random images (an offset, say).
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, int, int]):
        self.function, self.shape = function, tuple(shape)
        u, v = torch.randn(2, 1, *self.shape, generator=torch.Generator().manual_seed(0))
        together, apart = function(2 * u + v), 2 * function(u) + function(v)
        if not (together - apart).norm() <= 1e-4 * (apart.norm() + function(u).norm()):
            raise ValueError("the function is not linear: f(2 u + v) differs from 2 f(u) + f(v)")

    def A(self, x: Tensor) -> Tensor:
        return self.function(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = y.new_zeros(len(y), *self.shape, requires_grad=True)
            return torch.autograd.grad(
                self.function(x), x, y, create_graph=torch.is_grad_enabled() and y.requires_grad
            )[0]


class NonlinearOperator:
    """Any differentiable callable, for methods that only need ``A`` or its gradient (RED-Diff,
    DPS), in the denoiser's value range.

    Args:
        function: ``(B, C, H, W) -> (B, ...)``, differentiable where it matters (rounding has no
            gradient: give a smooth stand-in).
        start: from the data to an image to begin with, in place of a pseudo-inverse.
    """

    linear = False

    def __init__(self, function: Callable[[Tensor], Tensor], start: Callable[[Tensor], Tensor]):
        self.function, self.start = function, start

    def A(self, x: Tensor) -> Tensor:
        return self.function(x)

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """``J_A(x)^T v``."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.function(x), x, v)[0]

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.start(y)

    def A_adjoint(self, y: Tensor) -> Tensor:
        raise TypeError(
            "a non-linear operator has no adjoint: use a method that takes one, such as REDDiff"
        )

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        raise TypeError(
            "a non-linear operator has no closed proximal map: use a method that needs none, such"
            " as REDDiff"
        )


def spectral_filter(operator: Any, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """``V f(S) V^T x`` for an operator ``U S V^T``: ``f`` maps singular values (0 where nothing is
    measured) to factors.

    Accepts operators with a method ``spectral_filter(x, f)`` and deepinv's decomposable physics
    (``V``, ``V_adjoint``, ``mask``).

    Raises:
        TypeError: the operator knows no singular value decomposition.
    """
    if callable(getattr(operator, "spectral_filter", None)):
        return operator.spectral_filter(x, f)
    if (
        callable(getattr(operator, "V", None))
        and callable(getattr(operator, "V_adjoint", None))
        and hasattr(operator, "mask")
    ):
        coefficients = operator.V_adjoint(x)
        values = torch.as_tensor(operator.mask, device=coefficients.device)
        values = values.abs() if values.is_complex() else values.to(x.dtype)
        return operator.V(f(values.to(x.dtype)) * coefficients)
    raise TypeError(
        f"{type(operator).__name__} knows no singular value decomposition; DDRM and DDNM+ need one"
        " (inpainting, denoising, separable operators have it): use DiffPIR"
    )


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    start: Tensor | None = None,
    max_iterations: int = 200,
    tolerance: float | None = None,
) -> Tensor:
    """Solve ``apply(x) = b`` for a symmetric positive (semi)definite map, one system per sample of
    the batch.

    The gradient with respect to ``b`` is the solution of the same system for the incoming gradient,
    whatever number of iterations either took; ``apply`` and ``start`` count as constants.

    Args:
        apply: linear map on tensors of ``b``'s shape.
        b: right-hand side ``(B, ...)``.
        start: first guess; zeros by default (then the minimum-norm solution of a consistent
            singular system).
        tolerance: relative residual to stop at; ten times the machine epsilon of ``b``'s dtype by
            default.
    """
    tolerance = 10 * torch.finfo(b.dtype).eps if tolerance is None else tolerance
    if torch.is_grad_enabled() and b.requires_grad:
        return _Inverse.apply(b, apply, start, max_iterations, tolerance)
    dims = tuple(range(1, b.ndim))

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).real.sum(dims, keepdim=True)

    x = torch.zeros_like(b) if start is None else start.clone()
    r = b - apply(x) if start is not None else b.clone()
    p, rr = r.clone(), dot(r, r)
    goal = tolerance**2 * dot(b, b)
    for _ in range(max_iterations):
        if bool((rr <= goal).all()):
            break
        q = apply(p)
        curvature = dot(p, q)
        step = torch.where(
            curvature > 0, rr / curvature.clamp(min=math.ulp(0.0)), torch.zeros_like(rr)
        )
        # a finished sample must not divide 0 by 0
        step = torch.where(rr > goal, step, torch.zeros_like(step))
        x = x + step * p
        r = r - step * q
        new = dot(r, r)
        p = r + torch.where(rr > goal, new / rr.clamp(min=math.ulp(0.0)), torch.zeros_like(rr)) * p
        rr = new
    return x


class _Inverse(torch.autograd.Function):
    """``apply^-1 b``, differentiated through the equation that it solves and not through the
    iterations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        b: Tensor,
        apply: Callable[[Tensor], Tensor],
        start: Tensor | None,
        max_iterations: int,
        tolerance: float,
    ) -> Tensor:
        ctx.settings = apply, max_iterations, tolerance
        return conjugate_gradient(apply, b, start, max_iterations, tolerance)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        apply, max_iterations, tolerance = ctx.settings
        return (
            conjugate_gradient(apply, gradient, None, max_iterations, tolerance),
            None,
            None,
            None,
            None,
        )


def check_operator(operator: object) -> None:
    """Raise TypeError naming what is missing unless ``operator`` has the four methods of the
    contract.
    """
    missing = [name for name in METHODS if not callable(getattr(operator, name, None))]
    if missing:
        raise TypeError(
            f"{type(operator).__name__} is no measurement operator: it lacks {', '.join(missing)}"
        )
