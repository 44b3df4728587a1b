"""`restobox bench solvers`: the published table again, and what is claimed of our solvers, measured
next to diffusers'.
"""

import json
import re

import numpy as np
import pytest
import torch
from helpers.data import golden
from helpers.mixtures import median_rmse

from solvers import (
    CLEAN,
    DDIM,
    PNDM,
    VE,
    VP,
    DiffusersSolver,
    EVODiff,
    GaussianMixture,
    Grid,
    explicit,
    karras,
    log_snr,
    solve,
)
from toolbox.bench.peers import installed
from toolbox.bench.solvers import DEFAULT_SOLVERS, EXTRA, _named, bench_solvers, mixture, tables
from toolbox.cli import main


def multistep(name, order=2):
    return DiffusersSolver(f"{name}MultistepScheduler", {"solver_order": order})


# the stored table's names; those that ran the authors' or diffusers' classes stand for the same
# rule here
ON_SIGMAS = {
    "DDIM": DDIM(),
    "DPM++2M": multistep("DPMSolver"),
    "DPM++3M": multistep("DPMSolver", 3),
    "UniPC-2 bh2": multistep("UniPC"),
    "UniPC-3 bh2": multistep("UniPC", 3),
    "DEIS-2 (+denoise)": multistep("DEIS"),
    "DEIS-3 (+denoise)": multistep("DEIS", 3),
    "EVODiff (authors)": EVODiff("paper"),
    "convergent variant (sec 2.9)": EVODiff(),
}


def stored(part):
    arrays = golden("solvers_bench")
    prior = GaussianMixture(
        *(torch.from_numpy(arrays[f"{part}_{key}"]) for key in ("weights", "means", "stds"))
    )
    return arrays, prior, torch.from_numpy(arrays[f"{part}_x_T"]), json.loads(str(arrays["json"]))


@pytest.mark.parametrize(
    ("table", "lay"),
    [("B-logSNR", log_snr), pytest.param("B-rho7", karras, marks=pytest.mark.long)],
)
def test_the_published_table_on_sigma_grids(table, lay):
    """Median and root mean square errors of every stored case up to 20 calls, to 2 % or
    single-precision sigmas' floor.
    """
    arrays, prior, x, figures = stored("B")
    exact = torch.from_numpy(arrays["B_exact_80_to_0"])
    walked = 0
    for method, row in figures[table].items():
        for n, (_, median) in (
            (int(n), values) for n, values in row.items() if method in ON_SIGMAS and int(n) <= 20
        ):
            found = median_rmse(
                solve(ON_SIGMAS[method], prior.denoiser(VE()), x, lay(VE(), n)).x0, exact
            )
            assert found == pytest.approx(median, rel=0.02, abs=3e-5), (method, n)
            walked += 1
    assert walked >= 9


@pytest.mark.long
def test_the_published_table_on_whole_timesteps():
    """diffusers' own timesteps: `linspace` for the multi-step classes, `leading` and `trailing` for
    DDIM and PLMS where N divides T.
    """
    arrays, prior, x, figures = stored("A")
    process, exact = VP(arrays["A_alphas_cumprod"]), torch.from_numpy(arrays["A_exact_999_to_0"])
    methods = {
        "DPM++2M": (multistep("DPMSolver"), CLEAN),
        "DPM++3M": (multistep("DPMSolver", 3), CLEAN),
        "UniPC-2 bh2": (multistep("UniPC"), CLEAN),
        "UniPC-3 bh2": (multistep("UniPC", 3), CLEAN),
        "DEIS-2": (multistep("DEIS"), 0),
        "DEIS-3": (multistep("DEIS", 3), 0),
        "DDIM leading": (DDIM(), CLEAN),
        "DDIM trailing": (DDIM(), CLEAN),
        "PLMS trailing, alpha_to_one": (PNDM("plms"), CLEAN),
    }
    walked = 0
    for method, (solver, end) in methods.items():
        for key, values in figures["A"].get(method, {}).items():
            n = int(key) - method.startswith("PLMS")
            if n > 50 or (" " in method and "bh2" not in method and 1000 % n):
                continue
            times = np.linspace(0, 999, n + 1).round()[:0:-1]
            if "leading" in method:
                times = np.arange(n)[::-1] * (1000 // n)
            elif "trailing" in method:
                times = np.arange(1000, 0, -(1000 // n)) - 1
            result = solve(solver, prior.denoiser(process), x, explicit(times, end))
            assert result.nfe == int(key)
            assert median_rmse(result.x0, exact) == pytest.approx(values[3], rel=0.02), (method, n)
            walked += 1
    assert walked >= 9


@pytest.fixture(scope="module")
def figures():
    names = ("ddim", "s-pndm", "pndm", "evodiff", "unipc", "diffusers-ddim")
    return bench_solvers(solvers=names, grids=("log-snr",), process="edm", count=48)


def test_claimed_orders(figures):
    order = {row["solver"]: row["order"] for row in figures["solvers"]}
    assert order["ddim"] >= 0.9
    assert order["s-pndm"] >= 1.9
    assert order["pndm"] >= 2.7
    assert order["evodiff"] >= 2.5


def test_evodiff_is_not_above_unipc(figures):
    """From 8 to 50 calls on log-SNR grids of EDM's process, in one run; diffusers' DDIM is ours to
    single precision.
    """
    error = {(row["solver"], row["nfe"]): row["median"] for row in figures["errors"]}
    for n in sorted({n for _, n in error}):
        assert error["evodiff", n] <= error["unipc", n], n
        assert error["ddim", n] == pytest.approx(error["diffusers-ddim", n], rel=1e-3)
    assert {n for _, n in error} == {8, 10, 12, 15, 20, 25, 30, 50}


def test_published_mixture_evodiff_against_unipc_run_here():
    arrays, prior, x, _ = stored("B")
    exact = torch.from_numpy(arrays["B_exact_80_to_0"])
    for n in (8, 10, 12, 15, 20, 25, 30, 50):
        ours, theirs = (
            median_rmse(solve(s, prior.denoiser(VE()), x, log_snr(VE(), n)).x0, exact)
            for s in (EVODiff(), multistep("UniPC"))
        )
        assert ours <= theirs, n


def test_variable_weights_at_100_calls_on_the_published_mixture():
    """Table of the method's options: at most 1.1e-4 between its own start and end level, on the
    authors' nodes.
    """
    _, prior, x, _ = stored("A")
    process, x = VP.linear(), x[:64]
    # abar[t + 1] of 990, 980, ... 0, then abar[0]
    grid = Grid([float(t) for t in range(990 + 1, 0, -10)] + [0.0])
    result = solve(PNDM(), prior.denoiser(process), x, grid)
    assert result.nfe == 100
    assert median_rmse(result.x0, prior.flow(process, x, grid.times[0], 0.0)) <= 1.1e-4


@pytest.mark.long
def test_as_many_steps_as_the_calls_allow():
    run = bench_solvers(
        solvers=("f-pndm", "heun", "plms"), nfe=(3, 10, 12), grids=("log-snr",), count=2
    )
    rows = {(r["solver"], r["nfe"]): (r["steps"], r["calls"]) for r in run["errors"]}
    assert rows["f-pndm", 3] == (1, 1)
    assert rows["f-pndm", 10] == (3, 9)
    assert rows["f-pndm", 12] == (3, 9)
    assert rows["heun", 10] == (5, 9)
    assert rows["plms", 10] == (9, 10)


def test_command(capsys, monkeypatch):
    argv = [
        "restobox",
        "bench",
        "solvers",
        "--solver",
        "ddim",
        "--solver",
        "unipc",
        "--nfe",
        "4",
        "--nfe",
        "8",
        "--count",
        "3",
    ]
    monkeypatch.setattr("sys.argv", [*argv, "--json"])
    assert main() == 0
    out = json.loads(capsys.readouterr().out)
    assert {(r["grid"], r["solver"], r["nfe"]) for r in out["errors"]} == {
        (g, s, n) for g in ("log-snr", "trailing") for s in ("ddim", "unipc") for n in (4, 8)
    }
    assert [(r["solver"], r["origin"]) for r in out["solvers"]] == [
        ("ddim", "restobox"),
        ("unipc", "diffusers"),
    ]
    assert out["solvers"][0]["cost"] == 1
    title, header, rows = tables(out)[0]
    assert "log-snr" in title
    assert header == ("network calls:", "4", "8", "order", "cost")
    assert rows[1][0] == "unipc (diffusers)"
    monkeypatch.setattr("sys.argv", argv)
    assert main() == 0
    assert re.search(r"ddim.*e-0", capsys.readouterr().out)


def test_a_folder_is_still_measured_on_pictures(capsys, monkeypatch, tmp_path):
    for arguments in (
        [str(tmp_path)],
        ["--limit", "1", str(tmp_path)],
        ["pictures", str(tmp_path)],
    ):
        monkeypatch.setattr("sys.argv", ["restobox", "bench", *arguments])
        assert main() == 2
        assert "holds no picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solvers": ("ddpm",)}, "draws noise in every step"),
        ({"solvers": ("euler",)}, "known: auto"),
        ({"grids": ("even",)}, "known: trailing"),
        ({"process": "vp"}, "known: ddpm, edm"),
        ({"nfe": (0,)}, "at least 1"),
    ],
)
def test_errors(options, said):
    with pytest.raises(ValueError, match=said):
        bench_solvers(**options)


@pytest.mark.long
def test_every_default_name_is_a_solver():
    """All that are compared by default come near the same image on a fine grid."""
    prior, process = mixture(0), VP.linear()
    x = torch.randn((4, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = prior.flow(process, x, 999.0, CLEAN)
    for name in (*DEFAULT_SOLVERS, *EXTRA):
        assert (
            median_rmse(
                solve(_named(name), prior.denoiser(process), x, log_snr(process, 60)).x0, exact
            )
            < 0.05
        ), name


def test_peers_stand_beside_ours_where_they_are_installed():
    options = {"solvers": ["auto"], "nfe": [8], "grids": ["log-snr"], "count": 8, "peers": True}
    found = installed()
    if not found:
        with pytest.raises(ValueError, match="pip install"):
            bench_solvers(**options)
        pytest.skip("neither azula nor k-diffusion is installed")
    figures = bench_solvers(**options)
    errors = {row["solver"]: row["median"] for row in figures["errors"]}
    assert set(errors) == {"auto", *found}
    assert errors["auto"] <= 1.05 * min(errors.values()), errors
    assert len(tables(figures)[0][2]) == len(errors)
