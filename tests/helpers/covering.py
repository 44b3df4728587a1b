"""Parameters of which the default run takes some, and the long run the others."""

from collections.abc import Collection, Iterable

import pytest

# one of each way to step: first order, noisy, multi-step, Runge-Kutta starts, two-sided, residual,
# coded, and a scheduler of diffusers
KINDS = ("ddim", "ddpm", "pndm", "f-pndm", "evodiff", "resfusion", "ddcm", "unipc")


def covering(values: Iterable, kept: Collection = KINDS) -> list:
    return [v if v in kept else pytest.param(v, marks=pytest.mark.long) for v in values]
