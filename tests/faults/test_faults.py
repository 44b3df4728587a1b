"""Faults in commands that write: outputs are old or new, whole, and nothing else is left.

``RESTOBOX_FAULTS=28 pytest -n 0 -m slow tests/faults`` tries as many for each of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.data import ROOT

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from commands import READING, WRITING, commands  # noqa: E402

SOME = ("restore inpaint", "restore denoise folder", "restore hsi", "calibrate select", "train")


def wrong(count: int, calls: tuple[str, ...]) -> list:
    """What cases gave that isn't promised."""
    done = subprocess.run(
        [sys.executable, str(HERE / "drive.py"), str(count), "0", *calls],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(found["cases"].values()) == count * len(calls)
    print(found["cases"])
    return found["wrong"]


def test_no_command_is_missing():
    """Every command is called by a case, or is said to write nothing: then no option says that it
    does.
    """
    found = dict(commands())
    assert {"demo", "restore mri", "bench mri"} <= {*found}
    for name, command in found.items():
        reads = name in READING
        writes = any(call == name or call.startswith(f"{name} ") for call in WRITING)
        assert reads != writes, f"{name} must have a case in WRITING, or be in READING"
        if reads:
            said = [p.name for p in command.params if "write" in (p.help or "").lower()]
            assert not said, f"{name} is in READING, but writes: {said}"


@pytest.mark.long
def test_faults_in_some_commands():
    assert wrong(7, SOME) == []


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif("RESTOBOX_FAULTS" not in os.environ, reason="RESTOBOX_FAULTS says how many")
@pytest.mark.parametrize("call", WRITING)
def test_faults_in_every_command(call):
    assert wrong(int(os.environ["RESTOBOX_FAULTS"]), (call,)) == []
