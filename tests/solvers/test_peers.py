"""DPS, PiGDM and DDRM against recorded runs of published code, with its noise replayed."""

import json

import pytest
import torch
from helpers.data import golden
from helpers.mixtures import Guided, replay

from restoration.operators.linear import Inpainting
from restoration.operators.measurement import Measurement
from restoration.operators.separable import BlockMean
from restoration.posterior import DDRM, DPS, PiGDM
from solvers import DDIM, VP, explicit


class Case:
    def __init__(self, arrays, name):
        self.arrays, self.name = arrays, name
        self.options = json.loads(str(arrays[f"{name}/opts"]))
        self.denoiser = Guided(arrays, "gmm", VP(arrays["alphas_cumprod"]))
        self.grid = explicit(self["timesteps"].tolist())
        self.states = self["x_traj"]
        if self.options["deg"].startswith("in"):
            self.operator = Inpainting(torch.from_numpy(arrays["mask"]))
        else:
            self.operator = BlockMean(
                tuple(self.states.shape[-2:]), int(self.options["deg"].removeprefix("sr"))
            )
        shape = self.operator.A(self.states[0]).shape
        # quoted for [0, 1]
        self.measurement = Measurement(
            self.operator, self["y"].reshape(shape), 2 * self.options["sigma_y"]
        )

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[f"{self.name}/{key}"])

    def check(self, solver, correction, start, draws):
        end, queries = replay(solver, correction, start, self.grid, iter(draws))
        gaps = [
            (query.x - x).abs().max()
            for (query, _), x in zip(queries, self.states[:-1], strict=True)
        ]
        assert max(*gaps, (end - self["final"]).abs().max()) <= 1e-7, self.name
        return torch.stack([answer.x0 for _, answer in queries])


@pytest.fixture(scope="module")
def cases():
    arrays = golden("peers")
    return [Case(arrays, key.removesuffix("/opts")) for key in arrays if key.endswith("/opts")]


def chosen(cases, prefix):
    found = [case for case in cases if case.name.startswith(prefix)]
    assert found
    return found


def test_dps(cases):
    """Their weight multiplies the gradient of the squared norm over the norm: half of zeta."""
    for case in chosen(cases, "dps"):
        correction = DPS(
            case.denoiser, case.measurement, scale=2 * case.options["grad_term_weight"]
        )
        case.check(DDIM(eta=case.options["eta"]), correction, case.states[0], case["noise"])


def test_pigdm(cases):
    """Recorded in the noiseless form whatever noise the data had; inpainting with the extra that
    pastes known pixels.
    """
    for case in chosen(cases, "pgdm"):
        correction = PiGDM(
            case.denoiser,
            Measurement(case.operator, case.measurement.y),
            scale=case.options["grad_term_weight"],
            keep_noise=case.options["awd"],
            paste=case.options["deg"].startswith("in"),
        )
        case.check(DDIM(eta=case.options["eta"]), correction, case.states[0], case["noise"])


def test_ddrm(cases):
    for case in chosen(cases, "ddrm"):
        op, t = case.operator, case.grid.times[0]
        correction = DDRM(
            case.denoiser,
            case.measurement,
            eta=case.options["eta"],
            eta_b=case.options["eta_b"],
            strict=True,
        )
        # recorded apart: noise for unmeasured directions, and for measured ones after and before
        # the data become the noisier part
        measured = torch.where(
            case["after_active"].reshape(-1, 1, 1, 1, 1),
            case["noise_after_pix"],
            case["noise_before_pix"],
        )
        draws = [
            full + op.A_dagger(op.A(own - full))
            for full, own in zip(case["noise_full_pix"], measured, strict=True)
        ]
        start = correction.start(case["init_noise_pix"], t) / case.denoiser.process.b(t)
        assert (start - case.states[0]).abs().max() <= 1e-7
        case.check(DDIM(), correction, case.states[0], draws)
