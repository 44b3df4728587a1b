"""Damaged files to every reader and loader: each is read, or refused by an error of ours.

A case is a file of :mod:`readers` with one to three of the damages of :mod:`mutations`, by its
number and the seed. ``RESTOBOX_FUZZ=20000 pytest -n 0 -m slow tests/fuzz`` tries as many for each
reader; another ``RESTOBOX_FUZZ_SEED`` tries others.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.data import ROOT

HERE = Path(__file__).parent
SEED = os.environ.get("RESTOBOX_FUZZ_SEED", "0")
sys.path.insert(0, str(HERE))
from readers import READERS  # noqa: E402

HEAVY = ("latent", "model", "quantized", "bundle", "restorer", "calibration")
LIGHT = [name for name in READERS if name not in HEAVY]


def wrong(count: int, names: list[str]) -> dict[str, list]:
    """What neither was read nor refused, by reader."""
    done = subprocess.run(
        [sys.executable, str(HERE / "drive.py"), str(count), SEED, *names],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for name, one in found.items():
        assert one["read"] + one["refused"] + len(one["wrong"]) == count, name
        if count >= 200:
            print(
                f"{name}: {one['read']} read, {one['refused']} refused, {len(one['wrong'])} wrong"
            )
    return {name: one["wrong"] for name, one in found.items() if one["wrong"]}


def test_a_few_damaged_files():
    assert wrong(8, ["tiff", "envi", "cube-hdf5", "png-16"]) == {}


@pytest.mark.long
@pytest.mark.parametrize("names", [LIGHT, [*HEAVY]], ids=["files", "models"])
def test_damaged_files(names):
    assert wrong(5, names) == {}


@pytest.mark.slow
@pytest.mark.parametrize("names", [LIGHT, [*HEAVY]], ids=["files", "models"])
def test_hundreds_of_damaged_files(names):
    assert wrong(200, names) == {}


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif("RESTOBOX_FUZZ" not in os.environ, reason="RESTOBOX_FUZZ says how many")
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name):
    assert wrong(int(os.environ["RESTOBOX_FUZZ"]), [name]) == {}
