"""Companding of signals in [-1, 1] (ITU-T G.711): small echoes get more of the range before a
network sees RF data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MU, A = 255.0, 87.6


def mu_law(x: Tensor, mu: float = MU) -> Tensor:
    """``sign(x) ln(1 + mu |x|)/ln(1 + mu)`` of ``x`` clipped to [-1, 1].

    Raises:
        ValueError: ``mu`` is not positive.
    """
    _check("mu", mu, 0)
    x = x.clamp(-1, 1)
    return x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)


def mu_law_inverse(y: Tensor, mu: float = MU) -> Tensor:
    """``sign(y) ((1 + mu)^|y| - 1)/mu`` of ``y`` clipped to [-1, 1]."""
    _check("mu", mu, 0)
    y = y.clamp(-1, 1)
    return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu


def a_law(x: Tensor, a: float = A) -> Tensor:
    """Linear below ``1/A``, logarithmic above: ``(A |x|, 1 + ln(A |x|))/(1 + ln A)`` with the sign
    of ``x``, clipped to [-1, 1].

    Raises:
        ValueError: ``a`` below 1.
    """
    _check("a", a, 1)
    x = x.clamp(-1, 1)
    size = a * x.abs()
    return x.sign() * torch.where(size < 1, size, 1 + size.clamp(min=1).log()) / (1 + math.log(a))


def a_law_inverse(y: Tensor, a: float = A) -> Tensor:
    """The inverse of :func:`a_law`, of ``y`` clipped to [-1, 1]."""
    _check("a", a, 1)
    y = y.clamp(-1, 1)
    size = y.abs() * (1 + math.log(a))
    return y.sign() * torch.where(size < 1, size, (size - 1).exp()) / a


def _check(name: str, value: float, least: float) -> None:
    if not (least < value < math.inf or value == least > 0):
        raise ValueError(
            f"{name} must be a finite number {'above 0' if least == 0 else '>= 1'}; got {value}"
        )
