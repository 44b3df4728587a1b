"""The house itself: imports go down and never in a circle, rooms are small, packages are typed, the
front door opens at once.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.data import ROOT

FLOORS = {"solvers": 1, "restoration": 2, "quant": 3, "export": 4, "toolbox": 5, "restobox": 6}
FILES = [p for floor in FLOORS for p in sorted((ROOT / floor).rglob("*.py"))]
ROOMS = sorted({p.parent for p in FILES})
MOST, MOST_AT_THE_DOOR = 14, 12


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """Modules of the house, and others, that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: absolute imports only"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in MODULES else node.module


IMPORTS = {module: set(imported(path)) - {module} for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    mine = FLOORS[module.split(".")[0]]
    for other in IMPORTS[module]:
        floor = FLOORS.get(other.split(".")[0], 0)
        assert floor <= mine, f"{module} imports {other} from a floor above"


def test_no_circle_of_imports():
    """Leaves are taken away until nothing is left; what can't be taken away is a circle."""
    left = {module: {m for m in others if m in MODULES} for module, others in IMPORTS.items()}
    while True:
        leaves = {module for module, others in left.items() if not others}
        if not leaves:
            break
        left = {m: others - leaves for m, others in left.items() if m not in leaves}
    assert not left, f"these import each other in a circle: {', '.join(sorted(left))}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_are_small(room):
    """A reader takes in about a dozen entries at a glance; and a room is for more than one file."""
    entries = sorted(p.name for p in room.iterdir() if p.name != "__pycache__")
    most = MOST_AT_THE_DOOR if room == ROOT / "toolbox" else MOST
    assert len(entries) <= most, f"{room} has {len(entries)} entries: {', '.join(entries)}"
    assert len([name for name in entries if name != "__init__.py"]) > 1, f"{room} holds one file"


def test_functions_take_few_parameters():
    """At most eight; a scheduler's are the keys of diffusers' own scheduler files."""
    found = set()
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                names = {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)}
                if len(names - {"self", "cls"}) > 8:
                    found.add((module, node.name))
    assert found == {("solvers.interop.scheduler", "__init__")}


@pytest.mark.parametrize("floor", FLOORS)
def test_packages_are_typed(floor):
    assert (ROOT / floor / "py.typed").is_file()


@pytest.mark.parametrize("floor", FLOORS)
def test_importing_a_floor_pulls_in_nothing_heavy(floor):
    code = f"import {floor}, sys, json; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {"diffusers", "brevitas", "onnx", "onnxruntime", "skimage", "lpips", "accelerate"}
    assert not set(json.loads(out.stdout)) & heavy


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
