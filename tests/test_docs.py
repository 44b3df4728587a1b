"""The generated pages, and what every solver's docstring must say."""

import importlib.util
from pathlib import Path

import pytest
from helpers.mixtures import noise, small_mixture

import solvers
from solvers import SOLVERS, VP, solve, trailing

DOCS = Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location("build_docs", DOCS / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def test_committed_pages_are_current():
    for name, text in build.pages().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, (
            f"run python docs/build.py: {name} is not what the docstrings say"
        )
    assert {p.name for p in (DOCS / "solvers").iterdir()} == {
        Path(n).name for n in build.pages() if n.startswith("solvers/")
    }


@pytest.mark.parametrize("name", build.TABLE)
def test_docstrings_have_the_five_parts(name):
    parts = build.parts(build.TABLE[name][0])
    assert {"Idea", "Update rule", "When to use it", "NFE", "Reference"} <= set(parts)


def test_every_solver_has_a_page():
    documented = {cls for cls, *_ in build.TABLE.values()}
    assert {type(make()) for make in SOLVERS.values()} <= documented
    exported = [
        getattr(solvers, name)
        for name in solvers.__all__
        if not name.startswith(("as_", "SolverS"))
    ]
    assert {v for v in exported if isinstance(v, type) and hasattr(v, "run")} - {
        solvers.Solver
    } == documented


@pytest.mark.parametrize("name", SOLVERS)
def test_the_tables_number_of_calls_is_true(name):
    process, extra = (
        VP.linear(),
        {"plms": 1, "s-pndm": 1, "f-pndm": 9, "fon": 9, "diffusers-plms": 1},
    )
    grid = trailing(process, 12)
    assert solve(
        SOLVERS[name](), small_mixture().denoiser(process), noise(1), grid
    ).nfe == 12 + extra.get(name, 0)
