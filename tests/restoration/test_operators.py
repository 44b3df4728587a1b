"""One test over all operators: adjoint, pseudo-inverse, proximal map; any size, any number of
channels, both precisions.
"""

import pytest
import torch

from restoration.mri.sense import Sense, SingleCoil
from restoration.operators.counting import Counting
from restoration.operators.linear import (
    Denoising,
    Inpainting,
    LinearFunction,
    LinearOperator,
    NonlinearOperator,
    conjugate_gradient,
    spectral_filter,
)
from restoration.operators.measurement import Measurement
from restoration.operators.separable import (
    PADDINGS,
    Bicubic,
    BlockMean,
    Blur,
    SceneBlur,
    Separable,
    UnknownReduction,
    gaussian_kernel,
)
from restoration.posterior import CORRECTIONS
from solvers import DDIM, VP, Denoiser, solve, trailing
from solvers.inputs.errors import ResourceError


class RowMix(LinearOperator):
    """A rank-deficient dense operator without closed forms, to prove the defaults: mixes pixels of
    each row.
    """

    def __init__(self, width: int):
        g = torch.Generator().manual_seed(3)
        self.matrix = (
            torch.randn(max(1, width - 2), width, generator=g, dtype=torch.float64) / width**0.5
        )

    def A(self, x):
        return x @ self.matrix.to(x).T

    def A_adjoint(self, y):
        return y @ self.matrix.to(y)


def operators(channels, height, width):
    mask = (torch.rand(height, width, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    mask[0, 0] = 1
    size, g = (height, width), torch.Generator().manual_seed(2)
    found = {
        "inpainting": Inpainting(mask),
        "denoising": Denoising(),
        "defaults": RowMix(width),
        "block-mean": BlockMean(size, 4),
        "bicubic": Bicubic(size, 2),
        "separable": Separable(
            torch.randn(height + 2, height, generator=g), torch.randn(width - 1, width, generator=g)
        ),
        "function": LinearFunction(lambda x: x.diff(dim=-1).flatten(1), (channels, height, width)),
    }
    for padding in PADDINGS:
        found[f"blur-{padding}"] = Blur(size, gaussian_kernel(0.6, 1), padding)
    found["counting"] = Counting(0.1)
    found["blur-scene"] = SceneBlur(size, gaussian_kernel(0.6, 1))
    if height % 2 == width % 2 == 0:
        found["unknown-reduction"] = UnknownReduction(size, 2)
    if channels == 2:  # real and imaginary part
        maps = torch.complex(*torch.randn(2, 3, height, width, generator=g, dtype=torch.float64))
        found["sense"] = Sense(mask, maps)
        found["sense-columns"] = Sense(mask[0], maps)
        found["single-coil"] = SingleCoil(mask)
    return found


SHAPES = [(2, 3, 8, 6), (1, 1, 7, 5), (1, 31, 5, 9), (2, 2, 7, 6), (1, 2, 9, 5)]
CASES = [(name, shape) for shape in SHAPES for name in operators(*shape[1:])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_operator_contract(name, shape, dtype, tolerance):
    g = torch.Generator().manual_seed(0)
    op = operators(*shape[1:])[name]
    if isinstance(op, SceneBlur):  # its images are larger than what it makes of them
        shape = (*shape[:2], *op.size)
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
    torch.testing.assert_close(
        x[2:], conjugate_gradient(lambda u: u @ m, b[2:]), rtol=1e-10, atol=1e-12
    )


def test_measurement_changes_range_in_one_place():
    g = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 6, 5, generator=g)
    for op in operators(3, 6, 5).values():
        x = op.mirrored(image) if isinstance(op, SceneBlur) else image
        m = Measurement(op, op.A(x), 0.05).in_range(-1.0, 1.0, like=x)
        assert m.sigma == pytest.approx(0.1)
        assert m.residual(2 * x - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Measurement(object(), torch.zeros(1)), TypeError, "A_dagger"),
        (lambda: Measurement(Denoising(), torch.tensor([float("nan")])), ValueError, "NaN"),
        (lambda: Measurement(Denoising(), torch.zeros(0)), ValueError, "empty"),
        (lambda: Measurement(Denoising(), torch.zeros(1), -1), ValueError, "sigma"),
        (lambda: Inpainting(torch.full((4, 4), 0.5)), ValueError, "0 .missing. and 1"),
        (lambda: Inpainting(torch.ones(4)), ValueError, "dimensions"),
        (lambda: BlockMean((4, 4), 5), ValueError, "factor"),
        (lambda: Bicubic((4, 4), 0), ValueError, "factor"),
        (lambda: UnknownReduction((4, 6), 4), ValueError, "multiple of 4"),
        (lambda: UnknownReduction((8, 8)).A(torch.zeros(1, 1, 4, 8)), ValueError, "8, 8"),
        (lambda: UnknownReduction((8, 8)).A_dagger(torch.zeros(1, 1, 3, 2)), ValueError, "3, 2"),
        (lambda: Blur((4, 4), [1, 1]), ValueError, "odd"),
        (lambda: Blur((4, 4), [1.0], "same"), ValueError, "zero, circular, reflect"),
        (lambda: Blur((4, 4), torch.ones(9)), ValueError, "too long"),
        (lambda: SceneBlur((9, 4), torch.ones(5)), ValueError, "too wide for a picture"),
        (lambda: SceneBlur((9, 4), torch.ones(2)), ValueError, "odd"),
        (lambda: gaussian_kernel(0), ValueError, "std"),
        (lambda: Separable(torch.ones(3), torch.eye(2)), ValueError, "matrix"),
        (lambda: Separable(torch.eye(2), torch.eye(2), rcond=1), ValueError, "rcond"),
        (lambda: BlockMean((8, 8)).A(torch.zeros(1, 1, 4, 8)), ValueError, "8, 8"),
        (lambda: LinearFunction(lambda x: x + 1, (1, 2, 2)), ValueError, "not linear"),
        (
            lambda: spectral_filter(RowMix(4), torch.zeros(1, 1, 4, 4), torch.ones_like),
            TypeError,
            "singular value",
        ),
        (
            lambda: NonlinearOperator(torch.sin, torch.asin).A_adjoint(torch.zeros(1)),
            TypeError,
            "no adjoint",
        ),
        (
            lambda: NonlinearOperator(torch.sin, torch.asin).prox_l2(None, None, 1.0),
            TypeError,
            "proximal",
        ),
    ],
)
def test_bad_measurements(make, error, says):
    with pytest.raises(error, match=says):
        make()


SPECTRAL = [
    (name, shape)
    for name, shape in CASES
    if name not in ("defaults", "function", "sense", "sense-columns")
]


@pytest.mark.parametrize(("name", "shape"), SPECTRAL)
def test_spectral_filters_are_functions_of_the_normal_operator(name, shape):
    g = torch.Generator().manual_seed(0)
    op = operators(*shape[1:])[name]
    shape = (*shape[:2], *op.size) if isinstance(op, SceneBlur) else shape
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(spectral_filter(op, x, torch.ones_like), x)
    torch.testing.assert_close(
        spectral_filter(op, x, torch.square), op.A_adjoint(op.A(x)), rtol=1e-9, atol=1e-9
    )
    null = spectral_filter(op, x, lambda s: (s == 0).to(s.dtype))
    torch.testing.assert_close(x - null, op.A_dagger(op.A(x)), rtol=1e-9, atol=1e-9)


def test_super_resolution_equals_pytorchs_reductions():
    x = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for factor in (2, 4):
        torch.testing.assert_close(
            BlockMean((12, 20), factor).A(x), torch.nn.functional.avg_pool2d(x, factor)
        )
        reduced = torch.nn.functional.interpolate(
            x, scale_factor=1 / factor, mode="bicubic", antialias=True
        )
        torch.testing.assert_close(Bicubic((12, 20), factor).A(x), reduced, rtol=1e-6, atol=1e-6)
        size = (2 * factor, 3 * factor)  # known in full: the operator that has no other stand-in
        part = x[..., : size[0], : size[1]]
        torch.testing.assert_close(
            UnknownReduction(size, factor).A(part), BlockMean(size, factor).A(part)
        )
    odd = torch.nn.functional.avg_pool2d(
        x[..., :11, :18], 4, ceil_mode=True, count_include_pad=False
    )
    torch.testing.assert_close(BlockMean((11, 18), 4).A(x[..., :11, :18]), odd)


@pytest.mark.parametrize("padding", PADDINGS)
def test_blur_equals_a_convolution(padding):
    x = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    taps = torch.tensor([0.1, 0.5, 0.2, 0.15, 0.05], dtype=torch.float64)  # not symmetric
    padded = torch.nn.functional.pad(
        x, (2, 2, 2, 2), mode={"zero": "constant"}.get(padding, padding)
    )
    kernel = (taps[:, None] * taps).expand(3, 1, 5, 5)
    torch.testing.assert_close(
        Blur((9, 12), taps, padding).A(x), torch.nn.functional.conv2d(padded, kernel, groups=3)
    )


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_scene_blur_holds_whatever_lies_beyond_the_picture(padding):
    """A picture that was blurred with any padding is a scene of the padded one."""
    taps = torch.tensor([0.1, 0.5, 0.2, 0.15, 0.05], dtype=torch.float64)
    size = (20, 31)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    op = SceneBlur(size, taps)
    mode = {"zero": "constant"}.get(padding, padding)
    scene = torch.nn.functional.pad(x, (op.margin,) * 4, mode=mode)
    y = Blur(size, taps, padding).A(x)
    torch.testing.assert_close(op.A(scene), y)
    torch.testing.assert_close(op.cut(scene), x)
    data, inside = op.inside(y)  # what hangs on nothing beyond
    torch.testing.assert_close(inside.A(x), data)
    if padding == "reflect":
        torch.testing.assert_close(op.mirrored(x), scene)


def test_a_scene_wider_than_its_picture_is_mirrored_again_and_again():
    op = SceneBlur((3, 4), [0.2, 0.6, 0.2])
    assert op.margin == 8
    assert op.inside(torch.zeros(1, 1, 3, 4)) is None
    column = op.mirrored(torch.arange(3.0)[:, None].expand(3, 4))[:, 0]
    assert column.tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]


def test_nonlinear_operators_give_their_own_gradient():
    op = NonlinearOperator(lambda x: (2 * x).clamp(-1, 1), lambda y: y / 2)
    x, v = torch.tensor([[0.2, 0.9, -0.1]]), torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(op.A_vjp(x, v), torch.tensor([[2.0, 0.0, 6.0]]))
    torch.testing.assert_close(op.A_dagger(v), v / 2)
    with pytest.raises(TypeError, match="value range"):
        Measurement(op, v).in_range(-1.0, 1.0, like=x)


class Decomposed:
    """The words of deepinv's decomposable physics: singular values in ``mask``, ``V`` and
    ``V_adjoint``.
    """

    def __init__(self):
        self.mask = torch.tensor([[1.0, 0.5], [0.0, 2.0]])

    def V(self, x):
        return x.flip(-1)

    V_adjoint = V


def test_spectral_filter_understands_decomposable_physics():
    x = torch.randn(1, 2, 2, 2)
    torch.testing.assert_close(
        spectral_filter(Decomposed(), x, torch.square), (Decomposed().mask ** 2).flip(-1) * x
    )


# noiseless data are met as far as the operator's own A_dagger goes: exactly where it is exact
DEEPINV = {
    "inpainting": (lambda p, mask: p.Inpainting((3, 16, 16), mask=mask), True),
    "denoising": (lambda p, mask: p.Denoising(p.GaussianNoise(0.0)), True),
    "grey": (lambda p, mask: p.Decolorize(), True),
    "blur-fft": (lambda p, mask: p.BlurFFT((3, 16, 16), filter=p.blur.gaussian_blur(0.7)), True),
    "blur": (lambda p, mask: p.Blur(filter=p.blur.gaussian_blur(0.7), padding="circular"), False),
    "downsampling": (
        lambda p, mask: p.Downsampling((3, 16, 16), factor=2, filter="gaussian"),
        False,
    ),
    "random-projections": (lambda p, mask: p.CompressedSensing(m=200, img_size=(3, 16, 16)), False),
}


@pytest.mark.parametrize("name", DEEPINV)
def test_deepinv_physics_work_unchanged(name):
    """Every correction on deepinv's own objects; those that need singular values say so of physics
    that have none.
    """
    deepinv = pytest.importorskip("deepinv")
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = (
        (torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5)
        .float()
        .expand(-1, 3, -1, -1)
    )
    make, decomposable = DEEPINV[name]
    physics, process = make(deepinv.physics, mask), VP.linear()
    denoiser = Denoiser(_Halving(), process)  # any network: what counts is that the data are met
    start = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    for correction, made in CORRECTIONS.items():
        m = Measurement(
            physics, physics.A(x), 0.0 if correction in ("ddnm", "repaint") else 0.05
        ).in_range(-1.0, 1.0, like=x)
        if correction in ("ddrm", "ddnm+") and not decomposable:
            with pytest.raises(TypeError, match="singular value"):
                made(denoiser, m)
            continue
        options = {"scale": 0.1} if correction == "dps" else {}
        out = solve(
            DDIM(),
            made(denoiser, m, **options),
            start,
            trailing(process, 5),
            generator=torch.Generator().manual_seed(3),
        ).x0
        assert torch.isfinite(out).all()
        left = m.residual(out).norm() / m.residual(torch.zeros_like(x)).norm()
        if correction in ("ddnm", "repaint"):
            assert left < (1e-5 if decomposable else 0.2)
        elif correction == "diffpir":
            assert left < 0.5
    if decomposable:
        # V S^2 V^T = A^H A
        torch.testing.assert_close(
            spectral_filter(physics, x, torch.square),
            physics.A_adjoint(physics.A(x)),
            rtol=1e-4,
            atol=1e-5,
        )


class _Halving(torch.nn.Module):
    def forward(self, x, t):
        return 0.5 * x


@pytest.mark.parametrize("name", ["block-mean", "bicubic", "blur-reflect", "inpainting"])
def test_proximal_steps_of_any_weight_are_exact(name):
    """Single precision: at a weight of 1e9 the data are met, and what they don't tell stays."""
    op = operators(3, 8, 8)[name]
    g = torch.Generator().manual_seed(0)
    x, z = torch.rand(2, 1, 3, 8, 8, generator=g)
    y = op.A(x)
    found = op.prox_l2(z, y, 1e9)
    torch.testing.assert_close(op.A(found), y, rtol=0, atol=1e-5)
    double = op.prox_l2(z.double(), y.double(), 1e9)
    torch.testing.assert_close(found.double(), double, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda size: BlockMean(size, 1),
        lambda size: Bicubic(size, 1),
        lambda size: Blur(size, [1.0], "zero"),
    ],
)
def test_factors_within_the_budget(monkeypatch, make):
    """A picture of one line: its pixels are few, the matrices on them are not."""
    monkeypatch.setenv("RESTOBOX_MAX_BYTES", str(10**6))
    assert make((1, 100)).size == (1, 100)
    with pytest.raises(ResourceError, match="pictures of 1000 pixels a side"):
        make((1, 1000))
