"""Grids descend, have the length asked for, and end clean."""

import math

import numpy as np
import pytest
from helpers.covering import covering
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import (
    CLEAN,
    GRIDS,
    VP,
    Grid,
    explicit,
    karras,
    leading,
    linspace,
    log_snr,
    pndm_nodes,
    trailing,
)

PROCESSES = {
    "linear": VP.linear(),
    "cosine": VP.cosine(),
    "zero-snr": VP.linear(zero_terminal_snr=True),
    "short": VP.linear(7, 0.01, 0.5),
}


@pytest.mark.parametrize("build", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@settings(max_examples=20)
@given(data=st.data())
def test_grids(process, build, data):
    check(process, build, data.draw(st.integers(1, min(60, len(process)))))


@pytest.mark.parametrize("build", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("n", covering([333, 999, 1000], [1000]))
def test_long_grids(build, n):
    check(PROCESSES["linear"], build, n)


def check(process, build, n):
    T = len(process)
    grid = build(process, n)
    assert all(t > s for t, s in grid.pairs())
    assert grid.times[0] <= T - 1
    assert grid.times[-1] == CLEAN
    assert grid.times[-2] >= 0
    assert len(grid) == (math.ceil(T / (T // n)) if build is pndm_nodes else n)
    assert grid.times == Grid(grid.times).times
    if build not in (leading, pndm_nodes):
        assert grid.times[0] == T - 1  # the noisiest level


def test_known_grids():
    process = VP.linear()
    assert trailing(process, 4).times == (999, 749, 499, 249, CLEAN)
    assert leading(process, 4).times == (750, 500, 250, 0, CLEAN)
    assert leading(process, 3).times == (666, 333, 0, CLEAN)
    assert pndm_nodes(process, 3).times == (999, 666, 333, 0, CLEAN)
    assert linspace(process, 4).times == (999, 666, 333, 0, CLEAN)
    assert explicit([5, 2.5]).times == (5, 2.5, CLEAN)
    assert explicit([5, 2.5], end=0).times == (5, 2.5, 0)


def test_spacing_of_level_grids():
    process = PROCESSES["linear"]
    levels = [process.log_snr(t) for t in log_snr(process, 9).times[:-1]]
    assert np.diff(levels) == pytest.approx(
        (process.log_snr(0) - process.log_snr(999)) / 8, rel=1e-6
    )
    roots = [process.kappa(t) ** (1 / 7) for t in karras(process, 9).times[:-1]]
    assert np.diff(roots) == pytest.approx((roots[-1] - roots[0]) / 8, rel=1e-6)


@pytest.mark.parametrize("build", [log_snr, karras])
def test_zero_terminal_snr_spreads_the_rest(build):
    """No step is spent between the level without signal and its neighbour, which the network can't
    tell apart.
    """
    grid = build(PROCESSES["zero-snr"], 10)
    assert all(math.isfinite(t) for t in grid.times)
    assert grid.times[0] - grid.times[1] > 50
    assert build(PROCESSES["zero-snr"], 2).times == (999, 0, CLEAN)


def test_start_at():
    grid = trailing(VP.linear(), 4)
    assert grid.start_at(499).times == (499, 249, CLEAN)
    assert grid.start_at(600.5).times == (600.5, 499, 249, CLEAN)
    assert grid.start_at(0.25).times == (0.25, CLEAN)
    with pytest.raises(ValueError, match="at least two"):
        grid.start_at(CLEAN)


@pytest.mark.parametrize(
    "times", [(), (5,), (5, 5), (5, 7), (5, math.nan), (5, -1, -2), (math.inf, 3)]
)
def test_bad_grids(times):
    with pytest.raises(ValueError, match="grid"):
        Grid(times)


@pytest.mark.parametrize("n", [0, -3, 1001, 2.5, "10", True, None])
@pytest.mark.parametrize("build", GRIDS.values(), ids=GRIDS)
def test_bad_counts(build, n):
    with pytest.raises(ValueError, match="from 1 to 1000"):
        build(VP.linear(), n)
