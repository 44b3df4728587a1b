"""Processes: levels, the transfer between them, the time that has a level."""

import math

import numpy as np
import pytest
import torch
from helpers.mixtures import noise, small_mixture
from hypothesis import given
from hypothesis import strategies as st

from solvers import CLEAN, VP, LevelMatched, Process, StepIndexed

ETA = np.linspace(0.04, 0.99, 50)
PROCESSES = {
    "linear": VP.linear(),
    "scaled": VP.scaled_linear(),
    "cosine": VP.cosine(),
    "zero-snr": VP.linear(zero_terminal_snr=True),
    "flow": Process(1 - np.arange(1, 101) / 101, np.arange(1, 101) / 101),
    "shift": Process(1 - ETA, 2 * np.sqrt(ETA), ETA),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_levels_at_table_entries_and_clean(process):
    t = torch.arange(len(process), dtype=torch.float64)
    for f, table in (
        (process.a, process.a_table),
        (process.b, process.b_table),
        (process.c, process.c_table),
    ):
        assert f(t).numpy() == pytest.approx(
            table, rel=1e-13, abs=2e-14
        )  # b near 0 inherits a's rounding: 1e-16/b
        assert f(3) == f(torch.tensor(3.0)).item()
    assert (process.a(CLEAN), process.b(CLEAN), process.c(CLEAN)) == (1, 0, 0)
    assert process.log_snr(CLEAN) == math.inf


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@given(u=st.floats(-0.999, 1))
def test_time_at_inverts_log_snr(process, u):
    t = u if u < 0 else u * (len(process) - 1)
    if process.log_snr(t) == -math.inf:
        assert process.time_at(-math.inf) == len(process) - 1
    else:
        assert process.time_at(process.log_snr(t)) == pytest.approx(t, abs=1e-8)


def test_time_at_keeps_to_the_process():
    process = VP.linear()
    assert process.time_at(math.inf) == CLEAN
    assert process.time_at(-100) == 999
    assert process.time_at(process.log_snr(437)) == 437  # whole times come back whole


@given(t=st.floats(-1, 999), s=st.floats(-1, 999))
def test_log_snr_falls_with_time(t, s):
    process = VP.linear()
    assert (process.log_snr(t) >= process.log_snr(s)) or t > s


def test_vp_is_variance_preserving_between_entries():
    t = torch.linspace(-1, 999, 5001)
    for name in ("linear", "cosine", "zero-snr"):
        a, b = PROCESSES[name].a(t), PROCESSES[name].b(t)
        assert (a**2 + b**2 - 1).abs().max() < 1e-14


def test_step_indexed_levels():
    plain = VP.linear()
    shifted = StepIndexed(plain.alphas_cumprod)
    assert shifted.a(-1) == plain.a_table[0]
    assert shifted.a(812.5) == shifted.a(812) == plain.a_table[813]
    assert shifted.b(812.5) == pytest.approx(plain.b(813), rel=1e-14)
    for t in (-1.0, 0.0, 500.0, 998.0):
        assert shifted.time_at(shifted.log_snr(t)) == t
    assert shifted.time_at(shifted.log_snr(500) + 1e-4) == 500  # the nearest level
    assert shifted.time_at(math.inf) == CLEAN
    with pytest.raises(ValueError, match="t <= 998"):
        shifted.a(999)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_transfer_keeps_image_and_noise(process):
    """If eps is the state's true noise, the move ends on the same image and noise, shift
    included.
    """
    x0, eps, y = noise(2, 1), noise(2, 2), noise(2, 3)
    last = len(process) - 2
    for t, s in ((last, 10), (20, 3.7), (5, CLEAN), (3, 30)):
        moved = process.transfer(process.add_noise(x0, eps, t, y), eps, t, s, y)
        assert (moved - process.add_noise(x0, eps, s, y)).abs().max() < 1e-11


@given(times=st.tuples(*(st.floats(-1, 999) for _ in range(3))))
def test_transfer_is_transitive(times):
    process, x, eps = VP.linear(), noise(1, 1), noise(1, 2)
    t, u, s = times
    direct = process.transfer(x, eps, t, s)
    both = process.transfer(process.transfer(x, eps, t, u), eps, u, s)
    assert (direct - both).abs().max() < 1e-12 * max(1, process.kappa(t), 1 / process.a(t)) * 10


def test_transfer_refuses_pure_noise():
    with pytest.raises(ValueError, match="no signal"):
        VP.linear(zero_terminal_snr=True).transfer(noise(1), noise(1), 999, 900)


@pytest.mark.parametrize(
    "pair", [("linear", "cosine"), ("cosine", "linear"), ("flow", "linear"), ("shift", "linear")]
)
def test_level_matching_is_exact(pair):
    """A denoiser of one process answers for another as if it were made for it."""
    asked, native = (PROCESSES[name] for name in pair)
    mixture, y = small_mixture(), noise(2, 5)
    matched = LevelMatched(mixture.denoiser(native), asked, y)
    for t in (0.0, 3.5, len(asked) / 2, len(asked) * 0.8):
        state = noise(2, 6)
        true = mixture.posterior(state, asked.a(t), asked.b(t))
        told = matched(state + asked.c(t) * y, t)
        assert (true.x0 - told.x0).abs().max() < 1e-10
        assert (true.eps - told.eps).abs().max() < 1e-10


def test_level_matching_needs_y():
    with pytest.raises(ValueError, match="pass it as y"):
        LevelMatched(small_mixture().denoiser(VP.linear()), PROCESSES["shift"])(noise(1), 5.0)


def test_from_diffusers_gives_its_tables():
    from diffusers import DDPMScheduler

    for config in (
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"rescale_betas_zero_snr": True},
        {"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.5]},
    ):
        scheduler = DDPMScheduler(**config)
        ours = VP.from_diffusers(scheduler.config).alphas_cumprod
        # theirs are float32 products; their zero-SNR rescaling is followed by 2^-24 in place of 0
        assert ours == pytest.approx(scheduler.alphas_cumprod.double().numpy(), rel=2e-4, abs=1e-7)
    with pytest.raises(
        ValueError, match="known: linear, scaled_linear, squaredcos_cap_v2, sigmoid"
    ):
        VP.from_diffusers({"beta_schedule": "laplace"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: VP([0.5, 0.6]),
        lambda: VP([1.0, 0.5]),
        lambda: VP([]),
        lambda: VP([0.5, math.nan]),
        lambda: VP.from_betas([0.1, 1.5]),
        lambda: VP.from_betas([0.1, 1.0, 0.2]),
        lambda: Process([0.9, -0.5], [0.1, 0.2]),
        lambda: VP.linear().a(1000),
        lambda: VP.linear().a(-1.5),
        lambda: VP.linear().b(math.nan),
    ],
)
def test_bad_tables_and_times_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_tables_of_different_length():
    with pytest.raises(ValueError, match="differ in length: 2, 1, 2"):
        Process([0.9, 0.5], [0.1])


def test_equality_and_hash():
    assert VP.linear() == VP.linear()
    assert hash(VP.linear()) == hash(VP.linear())
    assert VP.linear() != VP.cosine()
    assert VP.linear() != StepIndexed(VP.linear().alphas_cumprod)
