"""Parameters of which the default run takes some, and the long run the others."""

from collections.abc import Callable, Collection, Iterable

import pytest

# one of each way to step: first order, noisy, multi-step, Runge-Kutta starts, two-sided, residual,
# coded, and a scheduler of diffusers
KINDS = ("ddim", "ddpm", "pndm", "f-pndm", "evodiff", "resfusion", "ddcm", "unipc")


def covering(values: Iterable, kept: Collection = KINDS) -> list:
    return [v if v in kept else _long(v) for v in values]


def crossed(names: Iterable, others: Iterable, kept: Collection = KINDS) -> list:
    """All pairs; the default run takes each name with the first of the others, and ``kept`` with
    all.
    """
    others = list(others)
    return [
        (name, other) if other == others[0] or name in kept else _long(name, other)
        for name in names
        for other in others
    ]


def _long(*values):
    return pytest.param(*values, marks=pytest.mark.long)


class Lazily(dict):
    """What ``make(name)`` returns, made when it is first asked for."""

    def __init__(self, make: Callable):
        self.make = make

    def __missing__(self, name):
        self[name] = self.make(name)
        return self[name]
