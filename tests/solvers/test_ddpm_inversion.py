"""Edit-friendly inversion: the authors' runs, exact reconstruction, editing."""

import json

import pytest
import torch
from helpers.data import golden
from helpers.mixtures import Guided, noise, small_mixture

from solvers import (
    CLEAN,
    VP,
    DDPMInversion,
    Prediction,
    Problem,
    explicit,
    invert,
    leading,
    regenerate,
    solve,
    trailing,
)
from solvers.editing.ddpm_inversion import inverting, transition


class Case:
    def __init__(self, arrays, name):
        self.arrays, self.name = arrays, name
        self.options = json.loads(str(arrays[f"{name}/opts"]))
        self.process = VP(arrays["alphas_cumprod"])
        # their chain ends at abar[0], not at the clean image
        self.grid = explicit(
            self["timesteps"].tolist(), end=CLEAN if self.options["set_alpha_to_one"] else 0
        )

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[f"{self.name}/{key}"])

    def denoiser(self, prompt, guidance):
        label = int(prompt.removeprefix("c")) if prompt else 0
        return Guided(self.arrays, "gmm", self.process, label, guidance if label else 1)

    @property
    def source(self):
        return self.denoiser(self.options["source"], self.options["cfg_source"])

    def invert(self, compat):
        draws, source = iter(self["noise"]), self.source

        class Recorded(Problem):
            def noise(self, like):
                return next(draws)[None]

        run = inverting(Recorded(self.process), self.grid, self["x0"], self.options["eta"], compat)
        try:
            query = next(run)
            while True:
                query = run.send(source(query.x, query.t))
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def cases():
    arrays = golden("ddpm_inversion")
    return [Case(arrays, key.removesuffix("/opts")) for key in arrays if key.endswith("/opts")]


def test_equals_the_authors_runs(cases):
    assert cases
    for case in cases:
        found = case.invert(compat=True)
        assert (found.noises[:, 0].flip(0) - case["zs"]).abs().max() <= 1e-10, case.name
        assert (found.states[:, 0].flip(0) - case["wts"]).abs().max() <= 1e-10, case.name
        for skip in case.options["skips"]:
            assert (
                regenerate(found, case.source, skip) - case[f"recon_skip{skip}"]
            ).abs().max() <= 1e-10, (case.name, skip)
            for prompt, guidance in case.options["edits"]:
                edited = regenerate(found, case.denoiser(prompt, guidance), skip)
                want = case[f"edit_{prompt}_cfg{guidance}_skip{skip}"]
                assert (edited - want).abs().max() <= 1e-10, (case.name, prompt, skip)


def test_variances_are_the_authors(cases):
    for case in cases:
        eta, x = case.options["eta"], case["x0"]
        for k, (t, s) in enumerate(case.grid.pairs()):
            _, std = transition(case.process, Prediction(x, x), t, s, eta, True, None)
            assert std**2 == pytest.approx(eta**2 * case["variance"][k].item(), rel=1e-9), (
                case.name,
                t,
            )


def test_the_true_last_noise_reconstructs_exactly(cases):
    for case in cases:
        found = case.invert(compat=False)
        for skip in case.options["skips"]:
            assert (regenerate(found, case.source, skip) - case["x0"]).abs().max() <= 1e-10, (
                case.name
            )
        skip = case.options["skips"][0]
        assert (
            case[f"recon_skip{skip}"] - case["x0"]
        ).abs().max() > 1e-4  # what setting it to zero costs


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("make", [leading, trailing])
def test_reconstructs_any_shape_on_any_grid(eta, make):
    mixture = small_mixture(shape=(2, 3, 5))
    denoiser = mixture.denoiser(VP.linear())
    x0 = mixture.sample(3, torch.Generator().manual_seed(0))
    found = invert(
        denoiser,
        x0,
        make(denoiser.process, 30),
        eta=eta,
        generator=torch.Generator().manual_seed(1),
    )
    for skip in (0, 7, 29):
        assert (regenerate(found, denoiser, skip) - x0).abs().max() <= 1e-10
    single = invert(
        denoiser,
        x0.float(),
        make(denoiser.process, 30),
        eta=eta,
        generator=torch.Generator().manual_seed(1),
    )
    assert single.noises.dtype == torch.float32
    assert (regenerate(single, denoiser) - x0).abs().max() <= 1e-5


def test_noises_carry_structure_and_edits_keep_it():
    """Noise maps are wider than ancestral ones; another prior moves the image, less so the more
    steps are skipped.
    """
    process = VP.linear()
    source, target = small_mixture(0), small_mixture(5)
    x0 = source.sample(8, torch.Generator().manual_seed(0))
    found = invert(
        source.denoiser(process),
        x0,
        leading(process, 40),
        generator=torch.Generator().manual_seed(1),
    )
    assert found.noises[:-1].std() > 1.2
    gaps = [
        (regenerate(found, target.denoiser(process), skip) - x0).abs().mean().item()
        for skip in (0, 20, 39)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.05
    fresh = solve(DDPMInversion(found), target.denoiser(process), noise(8), found.grid).x0
    assert (regenerate(found, target.denoiser(process), 20) - x0).abs().mean() < (
        fresh - x0
    ).abs().mean()


def test_refusals():
    process, mixture = VP.linear(), small_mixture()
    denoiser, x0 = mixture.denoiser(process), mixture.sample(1, torch.Generator().manual_seed(0))
    found = invert(denoiser, x0, leading(process, 10))
    with pytest.raises(ValueError, match="no step from"):
        solve(DDPMInversion(found), denoiser, x0, leading(process, 20))
    with pytest.raises(ValueError, match="skip"):
        regenerate(found, denoiser, 10)
    with pytest.raises(ValueError, match="eta"):
        invert(denoiser, x0, leading(process, 10), eta=2)
    zero = VP.linear(zero_terminal_snr=True)
    below = invert(mixture.denoiser(zero), x0, trailing(zero, 10))
    assert below.grid.times == trailing(zero, 10).times[1:]
    assert (regenerate(below, mixture.denoiser(zero)) - x0).abs().max() < 1e-10
    with pytest.raises(ValueError, match="take more steps"):
        invert(mixture.denoiser(zero), x0, trailing(zero, 1))
