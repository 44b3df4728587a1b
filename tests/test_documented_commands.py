"""Every command and every import that the README, the docs and the model cards show exists."""

import ast
import functools
import importlib
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import typer
from helpers.data import ROOT

from toolbox.cli import app

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "toolbox" / "zoo").glob("*/README.md")),
]


def commands(page: Path) -> list[str]:
    """Lines of code blocks, and literals, that begin with ``restobox``."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4}(?:pip install \. && )?(restobox .+)$", text, re.MULTILINE)
    literals = [" ".join(found.split()) for found in re.findall(r"`(restobox [^`]+)`", text)]
    # a literal with | or ... is a way of speaking
    return lines + [found for found in literals if not re.search(r"\||\.\.\.|…|CASE", found)]


@functools.cache
def command_line():
    return typer.main.get_command(app)


def fault_of(line: str) -> str:
    """What the command line says against it, without running anything; empty if nothing."""
    words = shlex.split(line.partition(" #")[0].partition(" > ")[0])[1:]
    command, context = command_line(), None
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands and "pictures" in command.commands:
            words.insert(0, "pictures")  # `bench FOLDER` is `bench pictures FOLDER`
        context = typer.Context(command, info_name="restobox", parent=context)
        command = command.commands[words.pop(0)]
    required = {p.name for p in command.params if p.required}
    for parameter in command.params:  # a literal may leave out what doesn't matter there
        parameter.required = False
    try:
        command.make_context("restobox", list(words), parent=context)
        return ""
    except Exception as error:  # help ends at once, and is no fault
        name = type(error).__name__
        return "" if name in ("Exit", "NoArgsIsHelpError") else f"{name}: {error}"
    finally:
        for parameter in command.params:
            parameter.required = parameter.name in required


CASES = [(page, line) for page in PAGES for line in dict.fromkeys(commands(page))]


@pytest.mark.parametrize(
    ("page", "line"), CASES, ids=[f"{page.name}-{k}" for k, (page, _) in enumerate(CASES)]
)
def test_commands_parse(page, line):
    assert fault_of(line) == "", f"{page.relative_to(ROOT)}: {line}"


@pytest.mark.parametrize(
    "line", ["restobox restore inpaint a.png --blur 3", "restobox bench solvers --steps many"]
)
def test_wrong_commands_are_found(line):
    assert fault_of(line)


def test_there_are_commands():
    assert len(CASES) > 60


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_exist(page):
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module} has no {name.name}"
            elif isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
    names = r"`((?:solvers|restoration|quant|export|toolbox|restobox)(?:\.\w+)+)(?:\([^`]*\))?`"
    for dotted in re.findall(names, text):
        parts = dotted.split(".")
        for k in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:k]))
            except ModuleNotFoundError:
                continue
            for part in parts[k:]:
                assert hasattr(found, part), f"{page.name}: {dotted} does not exist"
                found = getattr(found, part)
            break
