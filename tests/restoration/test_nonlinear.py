"""Non-linear operators against recorded data, and what RED-diff makes of them."""

import pytest
import torch
from helpers.data import golden
from helpers.mixtures import small_mixture

from restoration.operators.measurement import Measurement
from restoration.operators.nonlinear import HighDynamicRange, PhaseRetrieval, Quantization
from solvers import VP, REDDiff, solve, trailing

PROCESS = VP.linear()


@pytest.fixture(scope="module")
def published():
    arrays = golden("reddiff")
    return {
        key: torch.from_numpy(value)
        for key, value in arrays.items()
        if key.startswith("op_") and value.dtype.kind in "fiu"
    }


def test_quantization_equals_the_published_one(published):
    op = Quantization(int(published["op_quant/n_bits"]))
    assert (op.A(published["op_quant/x"]) - published["op_quant/y"]).abs().max() <= 1e-12
    y = published["op_quant/y"]
    assert torch.equal(op.A(y), y)


def test_phase_retrieval_equals_the_published_one(published):
    op = PhaseRetrieval(int(published["op_phase/pad_used"]))
    y = published["op_phase/y"].double()
    assert (op.A(published["op_phase/x"].double()) - y).abs().max() <= 1e-5
    assert (op.A_dagger(y) - published["op_phase/pinv_y"]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "op", [Quantization(2), HighDynamicRange(), PhaseRetrieval(2)], ids=lambda op: type(op).__name__
)
def test_red_diff_restores_from_them(op):
    """Closer to the truth than the start is, with data that fit."""
    mixture = small_mixture()
    truth = mixture.sample(16, torch.Generator().manual_seed(0)).clamp(-1, 1)
    m = Measurement(op, op.A(truth))
    solver = REDDiff(m)
    x0 = solve(
        solver,
        mixture.denoiser(PROCESS),
        truth,
        trailing(PROCESS, 100),
        generator=torch.Generator().manual_seed(1),
    ).x0
    start = op.A_dagger(m.y)
    assert (x0 - truth).square().mean() < 0.8 * (start - truth).square().mean()
    assert (op.A(x0) - m.y).square().mean() < 0.05


def test_gradients():
    x, v = torch.randn(
        2, 1, 2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).clamp(-0.9, 0.9)
    op = PhaseRetrieval(3)
    residual = torch.randn(
        op.A(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    numeric = ((op.A(x + 1e-6 * v) - op.A(x - 1e-6 * v)) / 2e-6 * residual).sum()
    assert (op.A_vjp(x, residual) * v).sum().item() == pytest.approx(numeric.item(), rel=1e-5)
    assert torch.equal(Quantization(3).A_vjp(x, v), v)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Quantization(0), "1 to 16"),
        (lambda: HighDynamicRange(1), "exceed 1"),
        (lambda: PhaseRetrieval(-1), "negative"),
    ],
)
def test_errors_name_what_is_accepted(make, said):
    with pytest.raises(ValueError, match=said):
        make()
