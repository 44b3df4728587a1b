"""One test over all operators: adjoint, pseudo-inverse, proximal map; any size, any number of channels, both precisions."""

import pytest
import torch

from restoration.measurement import Measurement
from restoration.operators import Denoising, Inpainting, LinearOperator, conjugate_gradient


class RowMix(LinearOperator):
    """A rank-deficient dense operator without closed forms, to prove the defaults: mixes pixels of each row."""

    def __init__(self, width: int):
        g = torch.Generator().manual_seed(3)
        self.matrix = torch.randn(max(1, width - 2), width, generator=g, dtype=torch.float64) / width**0.5

    def A(self, x):
        return x @ self.matrix.to(x).T

    def A_adjoint(self, y):
        return y @ self.matrix.to(y)


def operators(height, width):
    mask = (torch.rand(height, width, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    mask[0, 0] = 1
    return {"inpainting": Inpainting(mask), "denoising": Denoising(), "defaults": RowMix(width)}


CASES = [(name, shape) for name in operators(4, 4) for shape in [(2, 3, 8, 6), (1, 1, 7, 5), (1, 31, 5, 9)]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_operator_contract(name, shape, dtype, tolerance):
    g = torch.Generator().manual_seed(0)
    op = operators(*shape[-2:])[name]
    x = torch.randn(shape, generator=g, dtype=dtype)
    y = op.A(x)
    v = torch.randn(y.shape, generator=g, dtype=dtype)
    gap = ((y * v).sum() - (x * op.A_adjoint(v)).sum()).abs()
    assert gap <= tolerance * y.norm() * v.norm()
    # A A+ A = A, and A+ of a measurement is the shortest image that explains it
    back = op.A_dagger(y)
    assert (op.A(back) - y).norm() <= 50 * tolerance * y.norm()
    assert back.norm() <= (1 + 50 * tolerance) * x.norm()
    # the proximal point makes the gradient zero
    for gamma in (0.1, 3.0, 100.0):
        z = torch.randn(shape, generator=g, dtype=dtype)
        p = op.prox_l2(z, v, gamma)
        gradient = gamma * op.A_adjoint(op.A(p) - v) + p - z
        assert gradient.norm() <= 50 * tolerance * (z + gamma * op.A_adjoint(v)).norm()


def test_conjugate_gradient_treats_samples_alone():
    g = torch.Generator().manual_seed(0)
    m = torch.randn(6, 6, generator=g, dtype=torch.float64)
    m = m @ m.T + torch.eye(6, dtype=torch.float64)
    b = torch.randn(3, 6, generator=g, dtype=torch.float64)
    b[1] = 0
    x = conjugate_gradient(lambda u: u @ m, b)
    torch.testing.assert_close(x, torch.linalg.solve(m, b.T).T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(x[2:], conjugate_gradient(lambda u: u @ m, b[2:]), rtol=1e-10, atol=1e-12)


def test_measurement_changes_range_in_one_place():
    g = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 6, 5, generator=g)
    for op in operators(6, 5).values():
        m = Measurement(op, op.A(image), 0.05).in_range(-1.0, 1.0, like=image)
        assert m.sigma == pytest.approx(0.1)
        assert m.residual(2 * image - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Measurement(object(), torch.zeros(1)), TypeError, "A_dagger"),
        (lambda: Measurement(Denoising(), torch.tensor([float("nan")])), ValueError, "NaN"),
        (lambda: Measurement(Denoising(), torch.zeros(0)), ValueError, "empty"),
        (lambda: Measurement(Denoising(), torch.zeros(1), -1), ValueError, "sigma"),
        (lambda: Inpainting(torch.full((4, 4), 0.5)), ValueError, "0 .missing. and 1"),
        (lambda: Inpainting(torch.ones(4)), ValueError, "dimensions"),
    ],
)
def test_bad_measurements(make, error, says):
    with pytest.raises(error, match=says):
        make()
