"""Calibration data on disk: what is recorded, interruptions, the same bytes for the same seed."""

import json
from dataclasses import fields

import pytest
import torch
from helpers.quantized import measurement, one_thread, tiny_denoiser  # noqa: F401

import quant.calibration.shards
from quant.calibration.collect import collect
from quant.calibration.trajectory import CalibrationSet, Provenance, network_hash
from solvers.grid import trailing
from solvers.loop import solve
from solvers.methods.ddim import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser()


def restorer(denoiser, stop_at=None, calls=None):
    """Restoration k: measurement k, noise k; dies within number ``stop_at``, after some of its
    network calls.
    """
    grid = trailing(denoiser.process, 4)

    def callback(k, step):
        if calls is not None:
            calls.append((k, step.query.t))
        if k == stop_at and step.index == 1:
            raise Interrupted

    def restore(k):
        x = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(k))
        solve(
            DDIM(),
            denoiser.conditioned(measurement(k)),
            x,
            grid,
            callback=lambda step: callback(k, step),
        )

    return restore


def run(denoiser, out, stop_at=None, calls=None, count=6, **options):
    told = {"seed": 5, "solver": "ddim", "steps": 4, "data": ("aa", "bb")}
    names = {f.name for f in fields(Provenance)}
    told |= {name: options.pop(name) for name in list(options) if name in names}
    provenance = Provenance(network_hash(denoiser.network), **told)
    options = {"per_timestep": 3, "crop": 8} | options
    restore = restorer(denoiser, stop_at, calls)
    return collect(denoiser, restore, count, out, provenance, **options)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_samples_are_network_inputs_of_the_same_restorations_at_every_timestep(denoiser, tmp_path):
    seen = []
    hook = denoiser.network.register_forward_pre_hook(
        lambda _, inputs: seen.append((float(inputs[1][0]), inputs[0][0].clone()))
    )
    try:
        found = run(denoiser, tmp_path / "c", count=5, crop=None)
    finally:
        hook.remove()
    grid = trailing(denoiser.process, 4).times[:-1]
    assert found.grid == grid
    chosen = {}
    for sample, t in zip(found.samples, found.timesteps, strict=True):
        matches = [
            k // 4 for k, (time, x) in enumerate(seen) if time == t and torch.equal(x, sample)
        ]
        assert len(matches) == 1
        chosen.setdefault(t, []).append(matches[0])
    assert len({tuple(items) for items in chosen.values()}) == 1
    assert len(set(chosen[grid[0]])) == 3


def test_interrupted_runs_resume_to_the_same_bytes(denoiser, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole" / "c.safetensors", tmp_path / "cut" / "c.safetensors"
    run(denoiser, whole)
    for stop_at in (1, 4):
        with pytest.raises(Interrupted):
            run(denoiser, cut, stop_at)
        assert names(cut.parent) == [".c.safetensors.parts"]
        assert not list(cut.parent.rglob("*.part"))
    calls, done = [], []
    run(denoiser, cut, calls=calls, progress=done.append)
    assert {k for k, _ in calls} == {4, 5}
    assert done == [4, 5, 6]
    assert names(cut.parent) == ["c.safetensors"]
    assert cut.read_bytes() == whole.read_bytes()
    # the same where inputs go to disk within a restoration, and the cut one has left some there
    monkeypatch.setattr(quant.calibration.shards, "SPILL", 1)
    spilled = tmp_path / "spilled" / "c.safetensors"
    with pytest.raises(Interrupted):
        run(denoiser, spilled, 2)
    parts = spilled.parent / ".c.safetensors.parts"
    assert any(name.startswith("00000002-") for name in names(parts))
    (parts / "00000007-0000.part").write_bytes(b"half")
    run(denoiser, spilled)
    assert spilled.read_bytes() == whole.read_bytes()


def test_seed_decides_the_choice(denoiser, tmp_path):
    hashes = {run(denoiser, tmp_path / str(k), seed=seed).hash for k, seed in enumerate((5, 5, 6))}
    assert len(hashes) == 2


def test_an_interrupted_run_of_other_settings_is_refused(denoiser, tmp_path):
    out = tmp_path / "c"
    with pytest.raises(Interrupted):
        run(denoiser, out, 2)
    for options, what in (
        ({"seed": 6}, "seed"),
        ({"solver": "pndm"}, "solver"),
        ({"data": ["cc"]}, "data"),
        ({"count": 7}, "count"),
    ):
        with pytest.raises(ValueError, match=f"another {what}:"):
            run(denoiser, out, **options)
    with pytest.raises(ValueError, match="another model:"):
        run(tiny_denoiser(seed=1), out)
    run(denoiser, out)  # the refusals left it alone
    assert len(CalibrationSet.load(out, denoiser.network)) == 12


def test_damaged_parts_are_refused(denoiser, tmp_path):
    out = tmp_path / "c"
    for name, junk in (
        ("job.json", b"{"),
        ("job.json", b"[]"),
        ("00000000-0000.safetensors", b"junk"),
    ):
        with pytest.raises(Interrupted):
            run(denoiser, out, 2)
        parts = tmp_path / ".c.parts"
        kept = (parts / name).read_bytes()
        (parts / name).write_bytes(junk)
        with pytest.raises(ValueError, match=r"is damaged .* delete the folder"):
            run(denoiser, out)
        (parts / name).write_bytes(kept)


def test_failing_at_the_first_restoration_leaves_nothing(denoiser, tmp_path):
    with pytest.raises(Interrupted):
        run(denoiser, tmp_path / "c", 0)
    assert not names(tmp_path)
    with pytest.raises(ValueError, match="NaN"):
        collect(
            denoiser,
            lambda k: denoiser.network(torch.full((1, 28, 8, 8), torch.nan), torch.tensor([5.0])),
            1,
            tmp_path / "c",
        )
    with pytest.raises(ValueError, match="empty"):
        collect(denoiser, lambda k: None, 1, tmp_path / "d")
    with pytest.raises(ValueError, match="count"):
        collect(denoiser, lambda k: None, 0, tmp_path / "e")
    assert not names(tmp_path)


def test_memory_holds_less_than_what_is_recorded(denoiser, tmp_path, monkeypatch):
    """Ten times more passes through than may be held at once."""
    sample = 28 * 24 * 24 * 4
    monkeypatch.setattr(quant.calibration.shards, "SPILL", 8 * sample)
    held = []
    offer = quant.calibration.shards.Store.offer

    def watched(store, *arguments):
        offer(store, *arguments)
        held.append(sum(v.numel() * 4 for _, v in store.fresh.values()))

    monkeypatch.setattr(quant.calibration.shards.Store, "offer", watched)

    def restore(k):
        for j in range(40):
            x = torch.randn(1, 28, 24, 24, generator=torch.Generator().manual_seed(k * 40 + j))
            denoiser.network(x, torch.tensor([float(j)]))

    found = collect(denoiser, restore, 2, tmp_path / "c", per_timestep=2)
    assert len(found) == 80
    assert max(held) <= 9 * sample


def test_another_solver_is_refused(denoiser, tmp_path):
    found = run(denoiser, tmp_path / "c")
    found.check(denoiser.network, "ddim")
    with pytest.raises(ValueError, match="recorded with solver ddim, not pndm"):
        found.check(denoiser.network, "pndm")


def test_provenance_round_trip(denoiser, tmp_path):
    found = run(denoiser, tmp_path / "c", grid="karras", correction="ddrm", task="inpaint")
    loaded = CalibrationSet.load(tmp_path / "c", denoiser.network)
    assert loaded.provenance == found.provenance
    assert (loaded.provenance.grid, loaded.provenance.correction, loaded.provenance.data) == (
        "karras",
        "ddrm",
        ("aa", "bb"),
    )
    chosen = found.subset([3, 0], "by hand")
    chosen.save(tmp_path / "d")
    again = CalibrationSet.load(tmp_path / "d")
    assert again.provenance.selection == "by hand"
    assert again.timesteps == [found.timesteps[3], found.timesteps[0]]
    assert again.hash == chosen.hash != found.hash


def test_sets_written_before_the_newer_fields_are_read(denoiser, tmp_path):
    run(denoiser, tmp_path / "c")
    header_size = int.from_bytes((tmp_path / "c").read_bytes()[:8], "little")
    header = json.loads((tmp_path / "c").read_bytes()[8 : 8 + header_size])
    provenance = json.loads(header["__metadata__"]["calibration"])["provenance"]
    assert set(provenance) == {"model", "seed", "solver", "steps", "task", "data"}
