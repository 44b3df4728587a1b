import json

import pytest
import torch
from helpers.quantized import measurement, one_thread, recording, tiny_denoiser  # noqa: F401
from torch import nn

from quant.calibration.trajectory import CalibrationSet, Provenance, record
from solvers.denoiser import Denoiser
from solvers.processes.process import VP

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser()


def test_samples_are_the_network_inputs_filed_by_timestep_value(denoiser, calibration):
    _, grid = recording(denoiser)
    assert calibration.grid == grid.times[:-1]
    assert calibration.provenance.steps == 4
    first = denoiser.conditioned(measurement(0))
    x = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    a, b = denoiser.process.a(grid.times[0]), denoiser.process.b(grid.times[0])
    scale, unit_a, _ = denoiser.unit_levels(a, b)
    # of a residual: the best linear estimate
    shown = unit_a * (x - a * first.condition[:, :3]) / scale
    torch.testing.assert_close(calibration.samples[0], first.network_input(shown)[0])


def test_repeated_calls_at_one_timestep_do_not_shift_the_labels(denoiser):
    with record(denoiser) as recorder:
        for t in (50.0, 50.0, 7.5, 50.0):
            denoiser(torch.zeros(1, 3, 24, 24), t)
    assert recorder.seen == {50.0: 3, 7.5: 1}
    assert recorder.result().grid == (50.0, 7.5)


def test_memory_is_bounded_and_seeded(denoiser):
    a, _ = recording(denoiser, count=6, per_timestep=2, crop=8)
    b, _ = recording(denoiser, count=6, per_timestep=2, crop=8)
    c, _ = recording(denoiser, count=6, per_timestep=2, crop=8, seed=1)
    assert len(a) == 8
    assert all(s.shape == (28, 8, 8) for s in a.samples)
    assert a.hash == b.hash != c.hash


def test_recording_stops_with_the_block(denoiser):
    with record(denoiser) as recorder:
        denoiser(torch.zeros(1, 3, 24, 24), 50.0)
    denoiser(torch.zeros(1, 3, 24, 24), 40.0)
    assert recorder.result().grid == (50.0,)


def test_file_round_trip(tmp_path, denoiser, calibration):
    path = tmp_path / "set.safetensors"
    calibration.save(path)
    loaded = CalibrationSet.load(path, denoiser.network)
    assert loaded.hash == calibration.hash
    assert loaded.provenance == calibration.provenance
    assert list(tmp_path.iterdir()) == [path]


def test_another_model_is_refused(tmp_path, calibration):
    path = tmp_path / "set.safetensors"
    calibration.save(path)
    with pytest.raises(ValueError, match="another model"):
        CalibrationSet.load(path, tiny_denoiser(seed=1).network)


def test_damage_is_noticed(tmp_path, calibration):
    path = tmp_path / "set.safetensors"
    calibration.save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        CalibrationSet.load(path)
    for junk in (b"", b"junk", bytes(content[:200]), json.dumps({}).encode()):
        path.write_bytes(junk)
        with pytest.raises(ValueError, match="as a calibration set"):
            CalibrationSet.load(path)
    with pytest.raises(FileNotFoundError, match="restobox calibrate"):
        CalibrationSet.load(tmp_path / "none")


def test_impossible_requests_are_refused(denoiser):
    with pytest.raises(ValueError, match="empty"):
        CalibrationSet([], [], Provenance("x"))
    with pytest.raises(ValueError, match="per_timestep"), record(denoiser, per_timestep=0):
        pass
    with pytest.raises(ValueError, match="multiple of 2"), record(denoiser, crop=7):
        pass
    with (
        pytest.raises(ValueError, match=r"nn\.Module"),
        record(Denoiser(lambda x, t: x, VP.linear(10))),
    ):
        pass
    wrapped = Denoiser(type("N", (nn.Module,), {"forward": lambda self, x, t: x})(), VP.linear(10))
    with pytest.raises(ValueError, match="NaN"), record(wrapped):
        wrapped(torch.full((1, 3, 4, 4), torch.nan), 5.0)
