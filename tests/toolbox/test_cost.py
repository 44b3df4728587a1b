"""Processor time and peak memory of a piece of work."""

import json
import subprocess
import sys

import pytest

from toolbox.support import cost
from toolbox.support.cost import Cost

HELD = """
import json
import numpy as np
from toolbox.support.cost import Cost
before = np.ones(30 << 20, np.uint8)
with Cost() as large:
    held = np.ones(80 << 20, np.uint8)
    del held
with Cost() as small:
    held = np.ones(10 << 20, np.uint8)
print(json.dumps([large.mb, small.mb, large.seconds, large.to_dict()]))
"""


@pytest.mark.skipif(not cost.STATUS.is_file(), reason="the system doesn't tell")
def test_the_peak_counts_what_was_held_in_the_work_and_only_that():
    """In a process of its own: in this one, objects of earlier tests are freed at any time."""
    found = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    large, small, seconds, told = json.loads(found.stdout)
    assert abs(large - 80) < 5  # the system counts pages in batches
    assert abs(small - 10) < 5  # an earlier, larger peak is forgotten
    assert told == {"cpu_seconds": round(seconds, 1), "peak_mb": large}


def test_processes_that_ended_count():
    with Cost() as measured:
        subprocess.run([sys.executable, "-c", "sum(k * k for k in range(3_000_000))"], check=True)
    assert measured.seconds > 0.05


def test_systems_that_tell_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "STATUS", tmp_path / "none")
    with Cost() as measured:
        pass
    assert measured.mb is None
    assert measured.seconds >= 0
