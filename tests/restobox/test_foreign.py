"""Denoisers and operators that know nothing of restobox, and restobox's denoisers elsewhere."""

import pytest
import torch
from torch import nn

import restobox
from restoration.metrics import psnr
from restoration.operators.linear import Denoising, Inpainting
from restoration.operators.separable import BlockMean
from restoration.photo.linear import LinearTask
from solvers import VP, Denoiser, Prediction

MEAN, STD = 0.4, 0.1


class Exact(nn.Module):
    """``E[x0 | x0 + sigma n]`` of white Gaussian pictures in [0, 1]."""

    def forward(self, x, sigma):
        sigma = torch.as_tensor(sigma).to(x).reshape(-1, 1, 1, 1)
        return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


class ExactDenoiser(Denoiser):
    """The same as one of ours, in [-1, 1]."""

    def __init__(self):
        super().__init__(nn.Identity(), VP.linear())

    def __call__(self, x, t):
        a, b = self.process.a(t), self.process.b(t)
        x0 = self.from_unit(Exact()(self.to_unit(x / a), b / a / 2))
        return Prediction.from_x0(x0, x, a, b)


def picture(seed, size=(2, 3, 8, 8)):
    g = torch.Generator().manual_seed(seed)
    return MEAN + STD * torch.randn(size, generator=g, dtype=torch.float64)


def test_both_ways_the_denoiser_is_the_same():
    x = picture(0) + 0.2 * picture(1)
    there = restobox.to_deepinv(ExactDenoiser())
    for sigma in (0.01, 0.2, torch.tensor([0.05, 1.0])):
        torch.testing.assert_close(there(x, sigma), Exact()(x, sigma), atol=1e-7, rtol=1e-7)
    assert torch.equal(there(x, 0.0), x)
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(there(leaf, 0.1).sum(), leaf)[0]
    torch.testing.assert_close(gradient, torch.full_like(x, STD**2 / (STD**2 + 0.1**2)))
    back, ours = restobox.from_deepinv(Exact()), ExactDenoiser()
    for t in (0.0, 10.5, 300.0, 700.0):
        z = ours.process.add_noise(ours.from_unit(picture(2)), picture(3), t)
        torch.testing.assert_close(back(z, t).x0, ours(z, t).x0, atol=1e-6, rtol=1e-6)


class Foreign:
    """An operator of another library: what it does comes from one of ours, what it says of itself
    is all that is known.
    """

    def __init__(self, operator, **said):
        self.operator = operator
        for name, value in said.items():
            setattr(self, name, value)

    def A(self, x):
        return self.operator.A(x)

    def A_adjoint(self, y):
        return self.operator.A_adjoint(y)

    def A_dagger(self, y):
        return self.operator.A_dagger(y)

    def prox_l2(self, z, y, gamma):
        return self.operator.prox_l2(z, y, gamma)


def test_an_operator_is_known_by_what_it_can_do():
    g = torch.Generator().manual_seed(0)
    image = torch.rand(3, 16, 16, generator=g)
    mask = (torch.rand(1, 1, 16, 16, generator=g) > 0.3).float()
    task = LinearTask(restobox.load("photo"), num_inference_steps=1)
    blocks = BlockMean((16, 16), 4)
    for own, foreign, sigma in (
        (Inpainting(mask), Foreign(Inpainting(mask), mask=mask.expand(1, 3, 16, 16)), 0.0),
        (blocks, Foreign(blocks, factor=4), 0.0),
        (Denoising(), Foreign(Denoising()), 0.1),
    ):
        y = own.A(image[None])[0]
        assert torch.equal(task(y, own, sigma=sigma).mean, task(y, foreign, sigma=sigma).mean)
        mute = Foreign(own)
        if sigma == 0:
            assert not torch.equal(task(y, own).mean, task(y, mute).mean)
    # a mask of something else than pixels is no mask of pixels
    y = blocks.A(image[None])[0]
    other = Foreign(blocks, mask=torch.ones(1, 1, 16, 16))
    assert torch.equal(task(y, other).mean, task(y, Foreign(blocks)).mean)


def test_in_deepinv():
    deepinv = pytest.importorskip("deepinv")
    g = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 32)
    image = (0.25 + 0.25 * ramp[:, None] + 0.25 * ramp)[None, None]
    mask = (torch.rand(1, 32, 32, generator=g) > 0.5).float()
    physics = deepinv.physics.Inpainting((1, 32, 32), mask=mask)
    physics.noise_model = deepinv.physics.GaussianNoise(0.02)
    y, denoiser, fidelity = physics(image), restobox.to_deepinv("grey"), deepinv.optim.L2()
    begun = psnr(y[0].numpy(), image[0].numpy())
    runs = {
        "DiffPIR": deepinv.sampling.DiffPIR(denoiser, fidelity, sigma=0.02, max_iter=20),
        "DPS": deepinv.sampling.DPS(denoiser, num_steps=100),
        "PnP": deepinv.optim.optim_builder(
            iteration="PGD",
            prior=deepinv.optim.PnP(denoiser),
            data_fidelity=fidelity,
            params_algo={"stepsize": 1.0, "g_param": 0.05},
            max_iter=50,
        ),
    }
    for name, run in runs.items():
        found = psnr(run(y, physics).detach()[0].numpy(), image[0].numpy())
        assert found > begun + 5, (name, found, begun)
    task = LinearTask(restobox.load("photo"))
    colours = image[0].expand(3, -1, -1)
    theirs = deepinv.physics.Inpainting((3, 32, 32), mask=mask.expand(3, -1, -1))
    results = [
        task(operator.A(colours[None])[0], operator).mean for operator in (theirs, Inpainting(mask))
    ]
    assert torch.equal(*results)
