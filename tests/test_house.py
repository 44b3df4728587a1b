"""The house itself: imports go down, packages are typed, the front door opens at once."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"solvers": 1, "restoration": 2, "quant": 3, "export": 4, "toolbox": 5}
FILES = [p for floor in FLOORS for p in sorted((ROOT / floor).rglob("*.py"))]


def imported(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "absolute imports only"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    mine = FLOORS[path.relative_to(ROOT).parts[0]]
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        assert FLOORS.get(module.split(".")[0], 0) <= mine, (
            f"{path} imports {module} from a floor above"
        )


@pytest.mark.parametrize("floor", FLOORS)
def test_packages_are_typed(floor):
    assert (ROOT / floor / "py.typed").is_file()


@pytest.mark.parametrize("floor", FLOORS)
def test_importing_a_floor_pulls_in_nothing_heavy(floor):
    code = f"import {floor}, sys, json; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(json.loads(out.stdout))
    assert not loaded & {
        "diffusers",
        "brevitas",
        "onnx",
        "onnxruntime",
        "skimage",
        "lpips",
        "accelerate",
    }


def test_help_imports_no_torch():
    """What keeps `--help` under half a second: nothing heavy is imported for it."""
    code = """
import sys
sys.argv = ["restobox", "--help"]
from toolbox.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "numpy", "diffusers", "onnxruntime", "PIL", "pydantic"}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "HEAVY []" in out.stdout
    for command in (
        "demo",
        "restore",
        "train",
        "calibrate",
        "quantize",
        "export",
        "verify",
        "models",
    ):
        assert command in out.stdout
