"""Every output form describes the same image and noise."""

import pytest
import torch
from helpers.mixtures import noise
from hypothesis import given
from hypothesis import strategies as st

from solvers import PREDICTION_TYPES, Prediction

levels = st.tuples(st.floats(1e-3, 2), st.floats(1e-3, 2))


def output_of(prediction_type, x0, eps, a, b):
    if prediction_type == "v_prediction":
        return (a * eps - b * x0) / (a * a + b * b) ** 0.5
    return {"epsilon": eps, "sample": x0}[prediction_type]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@given(level=levels)
def test_round_trip(prediction_type, level):
    (a, b), x0, eps = level, noise(2, 1), noise(2, 2)
    p = Prediction.from_output(
        output_of(prediction_type, x0, eps, a, b), a * x0 + b * eps, a, b, prediction_type
    )
    assert (p.x0 - x0).abs().max() < 1e-12 * (1 + b / a)
    assert (p.eps - eps).abs().max() < 1e-12 * (1 + a / b)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@given(level=levels)
def test_identity_holds_for_any_output(prediction_type, level):
    """``x = a x0 + b eps`` whatever the network says."""
    (a, b), x, output = level, noise(2, 3), noise(2, 4)
    p = Prediction.from_output(output, x, a, b, prediction_type)
    assert (a * p.x0 + b * p.eps - x).abs().max() < 1e-13


def test_ends_of_the_process():
    x = noise(1)
    for prediction_type in ("sample", "v_prediction"):
        start = Prediction.from_output(torch.zeros_like(x), x, 0.0, 1.0, prediction_type)
        assert torch.equal(start.eps, x)  # at zero SNR the state is the noise
    clean = Prediction.from_x0(x, x, 1.0, 0.0)
    assert torch.equal(clean.eps, torch.zeros_like(x))


def test_errors():
    x = noise(1)
    with pytest.raises(ValueError, match="zero SNR"):
        Prediction.from_output(x, x, 0.0, 1.0, "epsilon")
    with pytest.raises(ValueError, match="known: epsilon, sample, v_prediction"):
        Prediction.from_output(x, x, 1.0, 1.0, "flow")
