"""Every solver with every correction on every operator, on the shipped network in PyTorch and as an
int8 ONNX bundle.

The network was trained to inpaint; elsewhere it is shown the operator's own estimate of the image
(the lift) as known pixels, which it mostly returns, and the corrections bring in the data. Five
trailing steps: their times, and the half steps of Runge-Kutta warm-ups between them (those of ten
steps), are rows of the bundle's table.
"""

import functools
import itertools

import pytest
import torch

from restoration.io.images import read_image
from restoration.operators.linear import Denoising, Inpainting
from restoration.operators.measurement import Measurement
from restoration.operators.separable import BlockMean, Blur, gaussian_kernel
from restoration.photo.lift import push_pull
from restoration.posterior import CORRECTIONS
from restoration.task import Run, sample
from solvers import GRIDS, SOLVERS, solver_by_name, trailing
from toolbox import load
from toolbox.api import ZOO

SIDE, STEPS = 32, 5
MASK = (torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) > 0.5).float()
SMOOTHING = Blur((SIDE, SIDE), gaussian_kernel(1.2, 4))
OPERATORS = {
    "inpainting": (Inpainting(MASK), 0.02, lambda op, y: push_pull(y, MASK[None, None])),
    "x4": (BlockMean((SIDE, SIDE), 4), 0.02, lambda op, y: SMOOTHING.A(op.A_dagger(y))),
    "blur": (
        Blur((SIDE, SIDE), gaussian_kernel(1.5, 5)),
        0.02,
        lambda op, y: op.prox_l2(y, y, 30.0),
    ),
    "denoising": (Denoising(), 0.2, lambda op, y: SMOOTHING.A(y)),
}
BACKENDS = ("photo", "photo-int8")
NOISELESS = ("ddnm", "repaint")  # these copy the data with their noise
# at five steps states are far noisier than estimates are wrong; this network's Jacobian is too far
# from symmetric for more iterations
OPTIONS = {"dps": {"scale": 0.3}, "diffpir": {"prior_std": 0.1}, "mmps": {"iterations": 1}}


@functools.cache
def model(backend):
    return load(backend, **({"threads": 1} if "int8" in backend else {}))


@functools.cache
def picture():
    pixels = torch.from_numpy(read_image(ZOO / "demo" / "chelsea.png").pixels)
    return pixels[None, :, 116 : 116 + SIDE, 166 : 166 + SIDE]


def measured(operator, correction):
    op, sigma, _ = OPERATORS[operator]
    if correction in NOISELESS and operator != "denoising":
        sigma = 0.0
    y = op.A(picture())
    return Measurement(
        op, y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(3)), sigma
    )


def restore(solver, correction, operator, backend, steps=STEPS, grid="trailing"):
    m, denoiser = measured(operator, correction), model(backend)
    own = m.in_range(*denoiser.value_range, like=picture())
    known = MASK if operator == "inpainting" else torch.ones(SIDE, SIDE)
    shown = denoiser.conditioned(
        torch.cat([OPERATORS[operator][2](m.operator, own.y), known[None, None]], dim=1)
    )
    corrected = CORRECTIONS[correction](shown, own, **OPTIONS.get(correction, {}))
    levels = GRIDS[grid](denoiser.process, steps)
    finish = lambda x: denoiser.to_unit(x).clamp(0, 1)  # noqa: E731
    return sample(Run(corrected, solver_by_name(solver), levels, (3, SIDE, SIDE), finish)).mean


def psnr(image):
    return -10 * torch.log10((image - picture()[0]).square().mean()).item()


def refusal(solver, correction, operator, backend):
    """Why a combination can't work, as the error's sentence says it; None if it must work."""
    made = CORRECTIONS[correction]
    if correction == "ddnm" and operator == "denoising":
        return "DDNM is for noiseless data"
    if made.needs_gradient and backend == "photo-int8":
        return "needs the gradient of the network, which OnnxNetwork can't give"
    if made.draws_noise and getattr(solver_by_name(solver), "keeps_history", False):
        return "puts fresh noise into its answers, which .* would combine over several steps"
    return None


ALL = list(itertools.product(SOLVERS, CORRECTIONS, OPERATORS, BACKENDS))
WORKING = [combination for combination in ALL if refusal(*combination) is None]


def covering():
    """Each solver and each correction on each operator and backend at least once; those with
    gradients, which take long, no more.
    """
    for operator, backend in itertools.product(OPERATORS, BACKENDS):
        fits = {
            s: [c for c in CORRECTIONS if refusal(s, c, operator, backend) is None] for s in SOLVERS
        }
        uses = dict.fromkeys(CORRECTIONS, 0)
        for solver in sorted(
            fits, key=lambda s: -len(fits[s])
        ):  # those that fit with most take what fits with few
            cost = {
                c: (uses[c] > 0, CORRECTIONS[c].needs_gradient and uses[c] > 0, uses[c])
                for c in fits[solver]
            }
            correction = min(
                fits[solver], key=lambda c: (*cost[c], sum(c in others for others in fits.values()))
            )
            uses[correction] += 1
            yield solver, correction, operator, backend


def check(solver, correction, operator, backend):
    image, m = restore(solver, correction, operator, backend), measured(operator, correction)
    assert image.shape == picture()[0].shape
    assert torch.isfinite(image).all()
    adjoint = psnr(m.operator.A_adjoint(m.y)[0])
    if correction == "repaint" and operator == "denoising":  # it copies all pixels, noise and all
        assert psnr(image) >= adjoint
    else:
        assert psnr(image) > adjoint, f"{psnr(image):.2f} dB, adjoint {adjoint:.2f} dB"


@pytest.mark.parametrize(
    ("operator", "backend"),
    [
        pytest.param(o, b, marks=() if (o, b) == ("inpainting", "photo") else pytest.mark.long)
        for o in OPERATORS
        for b in BACKENDS
    ],
)
def test_every_solver_and_every_correction(operator, backend):
    chosen = [c for c in covering() if c[2:] == (operator, backend)]
    assert {c[0] for c in chosen} == set(SOLVERS)
    assert {c[1] for c in chosen} == {c for _, c, *rest in WORKING if rest == [operator, backend]}
    for combination in chosen:
        check(*combination)


@pytest.mark.slow
@pytest.mark.parametrize("combination", WORKING, ids="-".join)
def test_every_combination(combination):
    check(*combination)


def test_what_can_not_work_says_so_in_one_sentence():
    """All of them, and nothing else is refused."""
    refused = [combination for combination in ALL if refusal(*combination)]
    assert len(refused) + len(WORKING) == len(ALL)
    for combination in refused:
        with pytest.raises((TypeError, ValueError), match=refusal(*combination)) as caught:
            restore(*combination)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("solver", "steps", "grid"),
    [("ddim", 7, "trailing"), ("ddim", 5, "log-snr"), ("f-pndm", 8, "trailing")],
)
def test_times_off_the_bundles_table_are_named(solver, steps, grid):
    with pytest.raises(ValueError, match="is not in the temporal table, which holds"):
        restore(solver, "ddnm", "inpainting", "photo-int8", steps, grid)
    assert torch.isfinite(restore(solver, "ddnm", "inpainting", "photo", steps, grid)).all()


def test_bundle_and_network_agree():
    for solver in ("ddim", "pndm", "unipc"):
        images = [restore(solver, "ddnm", "inpainting", backend) for backend in BACKENDS]
        assert abs(psnr(images[0]) - psnr(images[1])) < 0.3
    assert trailing(model("photo").process, STEPS).times[:-1] == (999, 799, 599, 399, 199)
