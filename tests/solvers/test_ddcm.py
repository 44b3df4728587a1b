"""DDCM: the authors' runs, its invariants, masks, sampling."""

import json

import pytest
import torch
from helpers.data import golden
from helpers.mixtures import Guided, noise, replay, small_mixture

from solvers import (
    DDCM,
    VP,
    Branches,
    GaussianMixture,
    consistency,
    edit,
    explicit,
    generators,
    leading,
    solve,
    trailing,
)

PROCESS = VP.linear()


class Case:
    def __init__(self, arrays, name):
        self.arrays, self.name = arrays, name
        self.options = json.loads(str(arrays[f"{name}/opts"]))
        self.process = VP(arrays["alphas_cumprod"])
        self.grid = explicit(self["timesteps"].tolist())

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[f"{self.name}/{key}"])

    def __contains__(self, key):
        return f"{self.name}/{key}" in self.arrays

    def branch(self, label, guidance):
        return Guided(self.arrays, "gmm", self.process, label, guidance)

    def branches(self):
        o = self.options
        names = (
            ["source", "target"] if o["layout_label"] is None else ["source", "target", "layout"]
        )
        # the layout branch is guided like the source
        weights = {
            name: o["target_guidance"] if name == "target" else o["source_guidance"]
            for name in names
        }
        return Branches(*(self.branch(o[f"{name}_label"], weights[name]) for name in names))

    def start(self):
        if self.options["init"] == "noise":
            return self["init_noise"]
        return self.process.add_noise(self["x0"], self["init_noise"], self.grid.times[0])

    def replay(self):
        solver = DDCM(
            self["x0"], eta=self.options["eta"], layout=self.options["layout_label"] is not None
        )
        return replay(solver, self.branches(), self.start(), self.grid, iter(self["noise"]))


@pytest.fixture(scope="module")
def cases():
    arrays = golden("ddcm")
    names = [key.removesuffix("/opts") for key in arrays if key.endswith("/opts")]
    return [Case(arrays, name) for name in names if f"{name}/edited" in arrays]


def test_equals_the_authors_runs(cases):
    assert cases
    for case in cases:
        edited, queries = case.replay()
        assert (edited - case["edited"]).abs().max() <= 1e-10, case.name
        names = "stm" if case.options["layout_label"] is not None else "st"
        for k, (query, answer) in enumerate(queries):
            for name, x, e in zip(
                names, query.x.chunk(len(names)), answer.eps.chunk(len(names)), strict=True
            ):
                assert (x - case[f"x{name}"][k]).abs().max() <= 1e-10, (case.name, name, k)
                if f"e_{name}" in case:
                    assert (e - case[f"e_{name}"][k]).abs().max() <= 1e-10, (case.name, name, k)


def test_every_image_on_the_way_equals_the_authors(cases):
    """The edited image after each step, as a data step sees it."""
    for case in cases:
        images = []
        solver = DDCM(
            case["x0"],
            eta=case.options["eta"],
            layout=case.options["layout_label"] is not None,
            data_step=lambda image, t, kept=images: kept.append(image) or image,
        )
        replay(solver, case.branches(), case.start(), case.grid, iter(case["noise"]))
        assert len(images) == len(case["timesteps"])
        if "pred_x0" in case:
            assert (torch.stack(images) - case["pred_x0"]).abs().max() <= 1e-10, case.name
        assert (images[-1] - case["edited"]).abs().max() <= 1e-10, case.name


def test_an_unconditional_network_edits_towards_its_own_images():
    """No text, no class: the source is explained by itself, the target by a prior of another
    domain, at full strength and less.
    """
    haze, clear = small_mixture(0), small_mixture(0)
    clear = GaussianMixture(clear.weights, clear.means + 0.4, clear.stds)
    x0 = haze.sample(16, torch.Generator().manual_seed(0))
    for eta in (0.0, 0.5, 1.0):
        edited = edit(
            x0,
            haze.denoiser(PROCESS),
            clear.denoiser(PROCESS),
            consistency(PROCESS, 12),
            eta=eta,
            generator=generators(0, 16),
        )
        moved = (edited - x0).mean()
        assert 0.2 < moved < 0.6, eta


def test_grids_are_the_authors(cases):
    for case in cases:
        o = case.options
        grid = consistency(case.process, o["num_inference_steps"], o["original_inference_steps"])
        kept = int(o["num_inference_steps"] * o["strength"]) if o["init"] != "noise" else len(grid)
        assert grid.times[-kept - 1 :] == case.grid.times, case.name


def test_the_edit_is_a_sum_of_prediction_differences(cases):
    found = [case for case in cases if case.options["eta"] == 1]
    assert found
    for case in found:
        edited, queries = case.replay()
        total = case["x0"]
        for query, answer in queries:
            e_source, e_target = answer.eps.chunk(
                3 if case.options["layout_label"] is not None else 2
            )[:2]
            total = total - case.process.kappa(query.t) * (e_target - e_source)
        torch.testing.assert_close(edited, total, rtol=0, atol=1e-9)


def test_equal_branches_return_the_image_to_the_bit():
    d = small_mixture().denoiser(PROCESS)
    # any image, also one the network does not expect
    x0 = small_mixture(3).sample(3, torch.Generator().manual_seed(0)).float()
    for eta in (0.0, 0.5, 1.0):
        assert torch.equal(
            edit(x0, d, d, consistency(PROCESS, 12), eta=eta, generator=generators(0, 3)), x0
        )


def test_shift_between_two_gaussians():
    """``(m_g - m_s)(1 - prod abar s^2/(abar s^2 + 1 - abar))`` whatever the noise."""
    s, m_source, m_target = 0.4, -0.3, 0.5
    grid = consistency(PROCESS, 6)
    left = 1.0
    for t in grid.times[:-1]:
        abar = PROCESS.a(t) ** 2
        left *= abar * s * s / (abar * s * s + 1 - abar)
    source, target = (
        GaussianMixture(
            torch.ones(1),
            torch.full((1, 1, 3, 4), m, dtype=torch.float64),
            torch.tensor([s], dtype=torch.float64),
        ).denoiser(PROCESS)
        for m in (m_source, m_target)
    )
    for seed in (0, 1):
        x0 = noise(2, 7, (1, 3, 4))
        edited = edit(x0, source, target, grid, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(
            edited - x0, torch.full_like(x0, (m_target - m_source) * (1 - left)), rtol=0, atol=1e-12
        )


def test_common_errors_cancel():
    """A fixed error of the network, the same in both branches, leaves the edit as it is."""
    d, other = small_mixture(0).denoiser(PROCESS), small_mixture(1).denoiser(PROCESS)
    x0, bias, grid = (
        small_mixture().sample(2, torch.Generator().manual_seed(0)),
        noise(1, 5),
        consistency(PROCESS, 8),
    )

    class Biased:
        process = PROCESS

        def __init__(self, denoiser):
            self.denoiser = denoiser

        def __call__(self, x, t):
            p = self.denoiser(x, t)
            return type(p)(p.x0, p.eps + bias)

    run = {"generator": generators(0, 2)}
    plain = edit(x0, d, other, grid, **run)
    run = {"generator": generators(0, 2)}
    torch.testing.assert_close(
        edit(x0, Biased(d), Biased(other), grid, **run), plain, rtol=0, atol=1e-10
    )
    assert (plain - x0).abs().mean() > 0.05


def test_masks_keep_the_rest_exactly():
    source, target = small_mixture(0).denoiser(PROCESS), small_mixture(1).denoiser(PROCESS)
    x0 = small_mixture(0).sample(2, torch.Generator().manual_seed(0))
    mask = torch.zeros(4, 4)
    mask[:, 2:] = 1
    edited = edit(
        x0, source, target, consistency(PROCESS, 8), mask=mask, generator=generators(0, 2)
    )
    assert torch.equal(edited[..., :2], x0[..., :2])
    assert (edited[..., 2:] - x0[..., 2:]).abs().mean() > 0.05


def test_later_entries_edit_less():
    source, target = small_mixture(0).denoiser(PROCESS), small_mixture(1).denoiser(PROCESS)
    x0 = small_mixture(0).sample(16, torch.Generator().manual_seed(0))
    grid = consistency(PROCESS, 20)
    moved = []
    for t in (999, 499, 99):
        edited = edit(
            x0, source, target, grid.start_at(t), from_noise=False, generator=generators(0, 16)
        )
        moved.append((edited - x0).abs().mean().item())
    assert moved == sorted(moved, reverse=True)


def test_blend_sees_the_branches_and_changes_the_target():
    source, target = small_mixture(0).denoiser(PROCESS), small_mixture(1).denoiser(PROCESS)
    x0, calls = small_mixture(0).sample(1, torch.Generator().manual_seed(0)), []

    def blend(of_source, of_target, of_layout, s):
        calls.append(s)
        assert torch.equal(of_layout, of_source)
        return of_source

    grid = consistency(PROCESS, 4)
    edited = edit(x0, source, target, grid, blend=blend, generator=generators(0, 1))
    assert calls == list(grid.times[:-2])
    t = grid.times[
        -2
        # the target starts every step where the source is, so only the last step's difference is
        # left
    ]
    _, queries = replay(
        DDCM(x0, blend=blend),
        Branches(source, target),
        noise(1),
        grid,
        iter([noise(1, k) for k in range(4)]),
    )
    e_source, e_target = queries[-1][1].eps.chunk(2)
    again = solve(
        DDCM(x0, blend=blend), Branches(source, target), noise(1), grid, generator=generators(0, 1)
    ).x0
    assert torch.isfinite(again).all()
    assert (edited - x0).abs().max() <= 50 * PROCESS.kappa(t) * max(
        (e_target - e_source).abs().max().item(), 1
    )


@pytest.mark.long
def test_samples_the_mixture():
    """Without an image: the moments of the prior, though a few consistency steps know nothing of
    where a noise should go.
    """
    mixture = small_mixture()
    x = noise(2000)
    x0 = solve(
        DDCM(),
        mixture.denoiser(PROCESS),
        x,
        trailing(PROCESS, 200),
        generator=torch.Generator().manual_seed(0),
    ).x0
    draws = mixture.sample(2000, torch.Generator().manual_seed(1))
    assert (x0.mean(0) - draws.mean(0)).abs().max() < 0.12


def test_data_steps_act_on_every_image():
    mixture = small_mixture()
    known = torch.zeros(3, 4, 4, dtype=torch.bool)
    known[:, ::2] = True
    truth = mixture.sample(4, torch.Generator().manual_seed(0))
    solver = DDCM(data_step=lambda p, t: torch.where(known, truth, p))
    x0 = solve(
        solver,
        mixture.denoiser(PROCESS),
        noise(4),
        leading(PROCESS, 20),
        generator=torch.Generator().manual_seed(0),
    ).x0
    assert torch.equal(x0[:, known], truth[:, known])
    assert (x0 - truth).abs().mean() < (
        solve(DDCM(), mixture.denoiser(PROCESS), noise(4), leading(PROCESS, 20)).x0 - truth
    ).abs().mean()


def test_refusals():
    d, x0, zero = small_mixture().denoiser(PROCESS), noise(2), VP.linear(zero_terminal_snr=True)
    for make, said in (
        (lambda: DDCM(eta=1.5), "eta"),
        (lambda: DDCM(mask=torch.ones(1)), "x0"),
        (lambda: solve(DDCM(x0[:1]), Branches(d, d), x0, leading(PROCESS, 4)), "start state"),
        (lambda: Branches(d, small_mixture().denoiser(zero)), "one process"),
        (lambda: Branches(d, d)(noise(3), 5.0), "divided"),
        (
            lambda: edit(x0, *[small_mixture().denoiser(zero)] * 2, trailing(zero, 4)),
            "without signal",
        ),
        (lambda: consistency(PROCESS, 60), "original"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
