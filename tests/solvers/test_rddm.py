"""RDDM against the authors' runs and its own equations."""

import json

import numpy as np
import pytest
import torch
from helpers.data import golden
from helpers.driver import cases, drive
from helpers.mixtures import noise, small_mixture

from solvers import (
    CLEAN,
    DDIM,
    RDDM,
    VP,
    Denoiser,
    Prediction,
    RDDMSampler,
    Resfusion,
    ResfusionSampler,
    ResidualPrediction,
    explicit,
    leading,
    rddm_nodes,
    solve,
    trailing,
)
from solvers.methods.rddm import METHODS, weights

TYPE = {
    "pred_res_noise": "residual_noise",
    "pred_res": "residual",
    "pred_noise": "epsilon",
    "pred_x0_noise": "sample_noise",
}
METHOD = {
    "pred_res_noise": "res_noise",
    "pred_res": "res",
    "pred_noise": "noise",
    "pred_x0_noise": "res_noise",
}


def residual_head(x, c, a):
    return 0.45 * c - 0.30 * torch.tanh(x) + 0.12 * torch.cos(2 * x + a) + 0.10 * a * x.roll(1, 3)


def noise_head(x, c, b):
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return 0.55 * torch.sin(1.1 * x - 0.4 * c) + 0.25 * b * x - 0.15 * x.roll(-1, 2) + 0.05 * mean


def stand_in(x, c, a, b, objective):
    """The golden file's closed-form network."""
    res, eps = residual_head(x, c, a), noise_head(x, c, b)
    outputs = {
        "pred_res_noise": (res, eps),
        "pred_res": (res,),
        "pred_noise": (eps,),
        "pred_x0_noise": (c - res, eps),
    }
    return torch.cat(outputs[objective], dim=1)


def close(a, b):
    """The golden file's tolerance."""
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def published():
    return golden("rddm")


def process_of(options):
    if options["code"] == "C":
        return RDDM.from_vp(VP.linear())
    return RDDM.scheduled(
        options["T"],
        options["sum_scale"],
        release={"A": "restoration", "B": "later"}[options["code"]],
    )


def denoiser_of(case, options, process):
    """The stand-in network on this process; codes B and C tell its heads their own coordinates in
    place of the time.
    """
    y = (
        torch.from_numpy(case["degraded01"]) * 2 - 1
        if options["condition"]
        else torch.zeros(case["degraded01"].shape)
    )
    times = []

    def network(x, t):
        t = float(t[0])
        a, b = (t / 1000, t / 1000) if options["code"] == "A" else (process.c(t), process.b(t))
        times.append((1000 * a, 1000 * b))
        return stand_in(x, y, a, b, options["objective"])

    return Denoiser(network, process, TYPE[options["objective"]]).with_degraded(y), y, times


@pytest.mark.parametrize("family", ["restore", "ancestral", "generate", "later", "pathindep"])
def test_sampler_equals_the_authors_runs(published, family):
    for number, case in cases(published, family).items():
        options = json.loads(str(case["options"]))
        process = process_of(options)
        denoiser, y, times = denoiser_of(case, options, process)
        draws = torch.from_numpy(case["noise"])
        method = options.get("test_res_or_noise", METHOD[options["objective"]])
        solver = RDDMSampler(
            method,
            eta=float(case["sampling_eta"]) if family == "generate" else 0.0,
            clip=1.0,
            ancestral=family == "ancestral",
            separate=family == "pathindep",
        )
        x = process.start(y, draws[0]) if options["condition"] else draws[0]
        image, states, _ = drive(
            solver, denoiser, x, rddm_nodes(process, options["S"]), y, draws[1:]
        )
        told = np.array(times).T
        assert np.allclose(told[0], case["model_time_res"], rtol=1e-5)
        assert np.allclose(told[1], case["model_time_noise"], rtol=1e-5)
        after = [*states[1:], image]
        if len(case["steps01"]) > len(after):
            after = [states[0], *after]
        for k, (ours, theirs) in enumerate(zip(after, case["steps01"], strict=True)):
            gap = ((ours + 1) / 2 - torch.from_numpy(theirs)).abs().max()
            assert close((ours + 1) / 2, theirs), (family, number, k, gap)


def test_schedules_are_the_authors(published):
    for case in cases(published, "coef").values():
        options = json.loads(str(case["options"]))
        release = {"A": "restoration", "B": "later"}[options["code"]]
        ours = options["sum_scale"] * weights(
            options["T"], options["schedule"], options["ratio"], release=release
        )
        assert np.allclose(ours, case["values"], rtol=1e-5, atol=1e-9)
    for family in ("restore", "later", "pathindep"):
        for case in cases(published, family).values():
            process = process_of(json.loads(str(case["options"])))
            assert np.allclose(process.c_table, case["buf/alphas_cumsum"], atol=2e-6)
            assert np.allclose(process.b_table, case["buf/betas_cumsum"], atol=2e-6)


def test_every_table_of_the_authors_follows_from_two(published):
    """Whatever their code stores per level, from ``A`` and ``B`` alone (index 0 of the posterior's
    is overwritten there).
    """
    for family in ("restore", "ancestral", "generate", "later", "pathindep"):
        for number, case in cases(published, family).items():
            process = process_of(json.loads(str(case["options"])))
            A, B2 = process.c_table, process.b_table**2
            before = [np.concatenate([[0], v[:-1]]) for v in (A, B2)]
            alphas, betas2 = A - before[0], B2 - before[1]
            if (
                json.loads(str(case["options"]))["code"] == "C"
            ):  # their conversion leaves the first increments out
                alphas[0] = betas2[0] = 0
            share = np.divide(before[1], B2, out=np.zeros_like(B2), where=B2 > 0)
            new = 1 - share
            want = {
                "alphas": alphas,
                "alphas_cumsum": A,
                "one_minus_alphas_cumsum": 1 - A,
                "betas2": betas2,
                "betas2_cumsum": B2,
                "betas_cumsum": np.sqrt(B2),
                "posterior_mean_coef1": share,
                "posterior_mean_coef2": new * before[0] - share * (A - before[0]),
                "posterior_mean_coef3": new,
                "posterior_variance": new * before[1],
            }
            # their differences of sums near 1 are rounded to single precision
            assert np.allclose(case["buf/betas"].astype(np.float64) ** 2, betas2, atol=2e-6)
            assert np.allclose(
                np.exp(case["buf/posterior_log_variance_clipped"])[2:],
                (new * before[1])[2:],
                rtol=1e-3,
                atol=2e-6,
            )
            for name, ours in want.items():
                theirs = np.array(case[f"buf/{name}"], np.float64)
                skip = 2 if "posterior" in name else 0
                close = np.isclose(ours, theirs, rtol=1e-3, atol=2e-6)
                if name == "one_minus_alphas_cumsum":
                    close[-1] = theirs[-1] == np.float32(1e-6)
                assert close[skip:].all(), (
                    family,
                    number,
                    name,
                    np.flatnonzero(~close),
                    ours[~close][:3],
                    theirs[~close][:3],
                )


def test_normal_weights_are_a_normal_density():
    for steps in (10, 1001):
        share = weights(steps, "normal")
        density = (
            torch.distributions.Normal(0.0, 1.0)
            .log_prob(torch.linspace(-3, 3, steps, dtype=torch.float64))
            .exp()
        )
        assert np.allclose(share, (density / density.sum()).numpy(), rtol=1e-12)
    process = RDDM.scheduled(
        100, 0.5, residual=("normal", 1.0), noise=("normal", 1.0), release="later"
    )
    assert process.a(process.end) == 0
    assert process.b(process.end) == pytest.approx(0.5**0.5, rel=1e-12)
    assert process.c(50.0) == pytest.approx(process.b(50.0) ** 2 / 0.5, rel=1e-12)


def test_ddim_conversion_equals_the_authors_runs(published):
    for number, case in cases(published, "convert").items():
        options = json.loads(str(case["options"]))
        process = RDDM.from_vp(VP.linear(options["T"]))
        assert np.allclose(process.b_table, case["betas_cumsum"], atol=2e-6)
        if not options["adjust_alpha"]:
            assert np.allclose(process.c_table, case["alphas_cumsum"], atol=2e-6)
        changed = (
            RDDM(np.minimum(case["alphas_cumsum"].astype(np.float64), 1), process.b_table)
            if options["adjust_alpha"]
            else None
        )
        if changed is not None:
            ours = np.cumsum(
                weights(options["T"], options["schedule"], options["ratio"], release="later")
            )
            assert np.allclose(ours, case["alphas_cumsum"], atol=1e-6)
        start = torch.from_numpy(case["steps"][0])
        eps = Denoiser(lambda x, t: noise_head(x, 0.0, float(t[0]) / 1000), process)
        solver = RDDMSampler(
            "noise", options["eta"], options["clip"], schedule=changed, image_at_end=False
        )
        draws = torch.from_numpy(case["noise"]) if "noise" in case else None
        y = torch.zeros_like(start)
        image, states, times = drive(
            solver, eps.with_degraded(y), start, explicit(case["timesteps"]), y, draws
        )
        assert times == list(case["timesteps"])
        for k, (ours, theirs) in enumerate(zip([*states, image], case["steps"], strict=True)):
            assert close(ours, theirs), (number, k, (ours - torch.from_numpy(theirs)).abs().max())


def test_training_equals_the_authors(published):
    for number, case in cases(published, "train").items():
        options = json.loads(str(case["options"]))
        clean, degraded = (torch.from_numpy(case[k]) * 2 - 1 for k in ("clean01", "degraded01"))
        process, t = process_of(options), torch.from_numpy(case["t"])
        kind = TYPE[options["objective"]]
        x, target = process.training_pair(clean, degraded, torch.from_numpy(case["noise"]), t, kind)
        assert close(x, case["x_t"]), number
        level = t.float().reshape(-1, 1, 1, 1) / 1000
        heads = stand_in(x, degraded, level, level, options["objective"]).chunk(
            2 if kind.endswith("_noise") else 1, dim=1
        )
        gap = [h - part for h, part in zip(heads, target.chunk(len(heads), dim=1), strict=True)]
        loss = sum(g.abs().mean() if options["loss"] == "l1" else g.square().mean() for g in gap)
        assert close(loss, case["loss"]), number


# -- definition ------------------------------------------------------------------------------------

PROCESSES = {
    "released": RDDM.scheduled(),
    "little-noise": RDDM.scheduled(50, 0.01),
    "later": RDDM.scheduled(100, residual=("decreased", 2.0), release="later"),
    "ddim": RDDM.from_vp(VP.linear()),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_states_lie_between_image_and_degraded_image(process):
    x0, y, eps = noise(1, 1), noise(1, 2), noise(1, 3)
    for t in (0.0, 0.3, process.end / 2, process.end):
        A, B = process.c(t), process.b(t)
        assert process.a(t) + A == 1
        assert (
            process.add_noise(x0, eps, t, y) - (x0 + A * (y - x0) + B * eps)
        ).abs().max() < 1e-14
    assert (process.a(CLEAN), process.b(CLEAN), process.c(CLEAN)) == (1, 0, 0)
    assert (process.start(y, eps) - (y + process.b(process.end) * eps)).abs().max() < 1e-14


def test_sum_scale_is_the_last_variance():
    for scale in (0.01, 1.0, 4.0):
        process = RDDM.scheduled(200, scale)
        assert process.b(process.end) ** 2 == pytest.approx(scale, rel=1e-12)
        assert process.a(process.end) == 0


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_every_output_form_recovers_image_and_noise(process):
    x0, y, eps = noise(2, 1), noise(2, 2), noise(2, 3)
    for t in (0.0, 0.3, process.end / 2, process.end - 1, process.end):
        a, b = process.a(t), process.b(t)
        x = process.add_noise(x0, eps, t, y)
        outputs = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": (a * eps - b * x0) / (a * a + b * b) ** 0.5 if b else None,
            "residual": y - x0,
            "residual_noise": torch.cat([y - x0, eps], dim=1),
            "sample_noise": torch.cat([x0, eps], dim=1),
        }
        assert set(outputs) == set(process.prediction_types)
        for kind, output in outputs.items():
            if output is None or b == 0:
                continue
            p = process.predict(output, x, t, kind, y)
            assert (p.eps - eps).abs().max() < 1e-9, (t, kind)
            if kind == "epsilon" and a == 0:
                assert torch.equal(p.x0, y)
            else:
                assert (p.x0 - x0).abs().max() < 1e-9, (t, kind)
            if kind == "residual_noise":
                assert torch.equal(p.residual, y - x0)
            if kind in ("residual_noise", "sample_noise"):
                assert torch.equal(p.noise, eps)


@pytest.mark.parametrize(
    "kind", ["epsilon", "sample", "residual", "residual_noise", "sample_noise"]
)
def test_answers_explain_the_state_even_if_the_heads_disagree(kind):
    """``x = a x0 + c y + b eps`` for whatever a network says: what every solver relies on."""
    process, y, x = RDDM.scheduled(), noise(2, 2), noise(2, 3)
    denoiser = Denoiser(
        lambda z, t: torch.cat([z.tanh(), 2 * z.cos()], dim=1)[
            :, : 6 if kind.endswith("_noise") else 3
        ],
        process,
        kind,
    )
    for t in (1.0, 200.5, 900.0, 999.0):
        p = denoiser.with_degraded(y)(x, t)
        assert p.x0.shape == x.shape
        assert (process.add_noise(p.x0, p.eps, t, y) - x).abs().max() < 1e-12
    with pytest.raises(ValueError, match="pass it as y"):
        denoiser(x, 5.0)


def test_training_pairs_are_what_networks_are_asked():
    process = RDDM.scheduled(100, 0.5)
    x0, y, eps = noise(3, 1), noise(3, 2), noise(3, 3)
    t = torch.tensor([0, 40, 98])
    for target in ("residual_noise", "sample_noise", "residual", "epsilon", "sample"):
        x, output = process.training_pair(x0, y, eps, t, target)
        for k in range(3):
            p = process.predict(output[k : k + 1], x[k : k + 1], float(t[k]), target, y[k : k + 1])
            assert (p.x0 - x0[k : k + 1]).abs().max() < 1e-10


def test_methods_agree_for_a_consistent_network():
    """With exact estimates of one state R, eps and image are tied, so the three methods are the
    same, and are DDIM.
    """
    process, mixture, y = RDDM.scheduled(), small_mixture(), noise(3, 2)

    class Exact:
        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            return mixture.posterior(process.unshifted(x, t, y), process.a(t), process.b(t))

    x, grid = process.start(y, noise(3, 3)), rddm_nodes(process, 8)
    reference = solve(DDIM(), Exact(), x, grid, y=y).x0
    for method in METHODS:
        solver = RDDMSampler(method)
        if method == "noise":  # at A = 1 the image can't be told from the noise
            part = explicit(grid.times[1:-1])
            z = noise(3, 4)
            assert (
                solve(solver, Exact(), z, part, y=y).x0 - solve(DDIM(), Exact(), z, part, y=y).x0
            ).abs().max() < 1e-9
        else:
            assert (solve(solver, Exact(), x, grid, y=y).x0 - reference).abs().max() < 1e-10
    # ancestral sampling is eta = 1, and Resfusion's
    runs = [
        solve(s, Exact(), x, grid, y=y, generator=torch.Generator().manual_seed(0)).x0
        for s in (RDDMSampler(eta=1.0), RDDMSampler(ancestral=True), ResfusionSampler())
    ]
    assert (runs[0] - runs[1]).abs().max() < 1e-10
    assert (runs[0] - runs[2]).abs().max() < 1e-10


def test_conversion_is_ddim():
    """On a plain process, and on its conversion with y = 0, without limits."""
    process, mixture, x = VP.linear(), small_mixture(), noise(2)
    grid = trailing(process, 10)
    reference = solve(DDIM(), mixture.denoiser(process), x, grid).x0
    converted = RDDM.from_vp(process)
    y = torch.zeros_like(x)
    for method in METHODS:
        for last in (True, False):
            solver = RDDMSampler(method, image_at_end=last)
            assert (
                solve(solver, mixture.denoiser(process), x, grid).x0 - reference
            ).abs().max() < 1e-9
            assert (
                solve(solver, mixture.denoiser(process), x, grid, process=converted, y=y).x0
                - reference
            ).abs().max() < 1e-9


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_fresh_noise_of_a_conversion_is_ddims(eta):
    """With the same draws the run is DDIM's, also at the strides of another schedule; and the
    authors' number.
    """
    process, mixture, x = VP.linear(), small_mixture(), noise(2)
    grid = trailing(process, 10)
    converted, y = RDDM.from_vp(process), torch.zeros_like(x)
    runs = [
        solve(
            solver,
            mixture.denoiser(process),
            x,
            grid,
            process=follow,
            y=held,
            generator=torch.Generator().manual_seed(0),
        ).x0
        for solver, follow, held in (
            (DDIM(eta), process, None),
            (RDDMSampler("noise", eta), process, None),
            (RDDMSampler("noise", eta), converted, y),
            (RDDMSampler("res_noise", eta, schedule=converted), converted, y),
        )
    ]
    for run in runs[1:]:
        assert (run - runs[0]).abs().max() < 1e-9
    assert fresh_noise(RDDMSampler("noise", 0.7), converted, 950, 900) == pytest.approx(
        0.5456, abs=5e-5
    )


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_fresh_noise_on_its_own_schedules_is_the_papers(eta):
    for process in (RDDM.scheduled(), RDDM.scheduled(sum_scale=0.01)):
        variance, before = process.b(600) ** 2, process.b(800) ** 2
        want = (eta * (before - variance) * variance / before) ** 0.5
        assert fresh_noise(RDDMSampler("res", eta), process, 800, 600) == pytest.approx(want)


def fresh_noise(solver, process, t, s):
    """The share of a draw of ones in the step from ``t`` to ``s``, where image and residual are
    zeros.
    """
    zero = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), process).with_degraded(zero)
    _, states, _ = drive(solver, denoiser, zero, explicit([t, s]), zero, torch.ones(9, 1, 1, 2, 2))
    return float(states[1].mean())


def test_separate_passes_remove_one_thing_each():
    process, y = RDDM.scheduled(20), noise(1, 2)
    residual, eps = noise(1, 3), noise(1, 4)

    class Constant:
        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            p = Prediction.from_x0(
                x - residual, process.unshifted(x, t, y), process.a(t), process.b(t)
            )
            return ResidualPrediction(p.x0, p.eps, residual, eps)

    x = noise(1, 5)
    image, states, times = drive(
        RDDMSampler(separate=True), Constant(), x, rddm_nodes(process, 4), y
    )
    assert times == [19, 14, 9, 4] * 2
    assert (states[1] - (x - (process.c(19) - process.c(14)) * residual)).abs().max() < 1e-12
    assert (states[3] - (x - (1 - process.c(4)) * residual)).abs().max() < 1e-12
    middle = states[3] - process.c(4) * residual - process.b(4) * eps
    assert (states[4] - middle).abs().max() < 1e-12
    assert (states[7] - (middle - (process.b(19) - process.b(4)) * eps)).abs().max() < 1e-12
    assert (image - (states[7] - process.c(4) * residual - process.b(4) * eps)).abs().max() < 1e-12


def test_grid_cuts_to_whole_times():
    process = RDDM.scheduled()
    assert rddm_nodes(process, 5).times == (999, 799, 599, 399, 199, CLEAN)
    assert rddm_nodes(process, 3).times == (999, 665, 332, CLEAN)
    for n in range(1, 1001):
        times = rddm_nodes(process, n).times
        assert (len(times), times[0]) == (n + 1, 999)
        assert all(abs(t - (999 - k * 1000 / n)) < 1 + 1e-4 for k, t in enumerate(times))
    for wrong in (0, 1001, 2.5):
        with pytest.raises(ValueError, match="from 1 to"):
            rddm_nodes(process, wrong)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: weights(10, "gaussian"), "increased, decreased, average, normal"),
        (lambda: weights(10, "average", release="newest"), "restoration, later"),
        (lambda: weights(1, "average"), "at least 2"),
        (lambda: RDDM([0.1, 0.9], [0.5, 0.2]), "must increase"),
        (lambda: RDDM([0.1, 1.9], [0.1, 0.2]), "must increase"),
        (lambda: RDDMSampler("both"), "res_noise, res, noise"),
        (lambda: RDDMSampler(eta=-1), r"\[0, 1\]"),
        (lambda: RDDMSampler(clip=-1), "positive"),
        (lambda: RDDMSampler(eta=1, separate=True), "exclude each other"),
        (
            lambda: RDDM.scheduled().training_pair(*(noise(1),) * 3, torch.tensor([0]), "score"),
            "residual_noise, sample_noise",
        ),
    ],
)
def test_errors_name_what_is_accepted(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_walks_processes_of_other_forms():
    """Resfusion's ``a + c`` is below 1."""
    process, y = Resfusion.scheduled("linear", 20), noise(2)

    class Exact:
        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            return small_mixture().posterior(process.unshifted(x, t, y), process.a(t), process.b(t))

    grid = leading(process, len(process)).start_at(process.end - 1)
    for method in METHODS:
        runs = [
            solve(solver, Exact(), noise(2, 3), grid, y=y).x0
            for solver in (RDDMSampler(method), DDIM())
        ]
        assert (runs[0] - runs[1]).abs().max() < 1e-10
