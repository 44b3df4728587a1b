"""Processor time and peak memory of a piece of work."""

import numpy as np
import pytest

from toolbox import cost
from toolbox.cost import Cost


@pytest.mark.skipif(not cost.STATUS.is_file(), reason="the system doesn't tell")
def test_the_peak_counts_what_was_held_in_the_work_and_only_that():
    before = np.ones(30 << 20, np.uint8)
    with Cost() as large:
        held = np.ones(80 << 20, np.uint8)
        del held
    with Cost() as small:
        held = np.ones(10 << 20, np.uint8)
    assert before.all()
    assert held.all()
    assert abs(large.mb - 80) < 5  # the system counts pages in batches
    assert abs(small.mb - 10) < 5  # an earlier, larger peak is forgotten
    assert large.to_dict() == {"cpu_seconds": round(large.seconds, 1), "peak_mb": large.mb}


def test_systems_that_tell_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "STATUS", tmp_path / "none")
    with Cost() as measured:
        pass
    assert measured.mb is None
    assert measured.seconds >= 0
