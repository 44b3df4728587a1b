"""Several workers: the same results to the bit, whatever becomes of a worker."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.commands import restobox
from helpers.data import smooth_picture

from restoration.io.images import Photo, write_image
from solvers.inputs.errors import InputError, RestoboxError
from toolbox.tasks.options import Denoising, Inpainting
from toolbox.tasks.scale.cluster import _records, device_of, record_of
from toolbox.tasks.scale.engine import restore_all
from toolbox.tasks.scale.items import Item
from toolbox.tasks.scale.job import Job
from toolbox.tasks.settings import Many, Output, Prior, Settings


def test_a_clusters_workers_give_the_same_bytes(
    scans, tmp_path, denoise, scheduler, everything, records
):
    (scans / "bad.png").write_text("no picture")
    told = []
    for name, options in (("one", ()), ("two", ("--scheduler", scheduler))):
        found = denoise(scans, "-o", tmp_path / name, *options, "--json")
        assert found.returncode == 4, found.stderr
        assert ("denoise: watch it at http://" in found.stderr) == (name == "two")
        told.append(json.loads(found.stdout))
    assert everything(tmp_path / "one") == everything(tmp_path / "two") != {}
    same = ("done", "failed", "nfe", "means", "failures")
    assert [told[0][key] for key in same] == [told[1][key] for key in same]
    one, two = (records(tmp_path / name) for name in ("one", "two"))
    for key in ("seed", "input_sha256", "settings_sha256", "models", "out_sha256", "nfe"):
        assert {n: r[key] for n, r in one.items()} == {n: r[key] for n, r in two.items()}
    again = denoise(scans, "-o", tmp_path / "one", "--scheduler", scheduler, "--resume", "--json")
    assert json.loads(again.stdout)["kept"] == 3


def test_a_model_that_workers_cant_load_is_said_once(scans, tmp_path, scheduler):
    options = ("--model", tmp_path / "none", "--scheduler", scheduler)
    found = restobox("restore", "denoise", scans, "-o", tmp_path / "out", *options)
    assert found.returncode == 2
    assert "is neither a shipped model" in found.stderr
    assert not (tmp_path / "out").exists()


def test_what_cant_be_is_refused(scans, tmp_path, denoise, monkeypatch):
    out = tmp_path / "out"
    for options, said in (
        (("--scheduler", "tcp://127.0.0.1:1"), "no Dask scheduler answers at tcp://127.0.0.1:1"),
        (("--scheduler", "tcp://x", "--workers", 2), "give one of them"),
        (("--workers", 2, "--gpus-per-worker", 1), "means something with --device cuda"),
        (("--gpus-per-worker", 1), "means something with --workers 2 or more"),
    ):
        monkeypatch.setattr("toolbox.tasks.scale.cluster.REACHED", "1s")
        found = denoise(scans, "-o", out, *options)
        assert found.returncode == 2
        assert said in found.stderr
    monkeypatch.setattr("toolbox.tasks.scale.cluster.find_spec", lambda name: None)
    found = denoise(scans, "-o", out, "--workers", 2)
    assert found.returncode == 2
    assert "pip install 'restobox[scale]'" in found.stderr
    assert not out.exists()


def test_workers_share_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    job = Job("denoise", Output(Path("o")), Denoising(), Prior("", "cuda"), Settings())

    def shown(workers, share):
        many = Many(workers=workers, gpus_per_worker=share)
        return [device_of(k, job, many)["CUDA_VISIBLE_DEVICES"] for k in range(workers)]

    assert shown(2, None) == ["0", "1"]
    assert shown(4, 0.5) == ["0", "0", "1", "1"]
    with pytest.raises(InputError, match=r"3 workers with 1 GPUs each need 3, and .* shows 2"):
        shown(3, 1.0)


def test_an_item_that_kills_its_workers_is_recorded():
    from distributed.scheduler import KilledWorker

    class Future:
        def __init__(self, error):
            self.error = error

        def exception(self):
            return self.error

    item = Item("a.png", Path("/a.png"))
    record = record_of(Future(KilledWorker("a.png", None, 3)), item)
    assert record["status"] == "failed"
    assert "died 3 times" in record["reason"]
    with pytest.raises(RestoboxError, match="run again with --resume"):
        record_of(Future(OSError("closed")), item)


def test_an_item_that_was_lost_with_another_gets_a_turn_of_its_own(monkeypatch):
    """Two items whose worker died with both; one of them was to blame."""
    from distributed.scheduler import KilledWorker

    asked = []

    class Future:
        def __init__(self, key):
            asked.append(key)
            # no hexadecimal digits: the key also holds a random number of them
            bad = "wrong" in key or "alone" not in key
            self.error = KilledWorker(key, None, 3) if bad else None

        def exception(self):
            return self.error

        def result(self):
            return {"status": "done"}

        def release(self):
            pass

    class Client:
        loop = None

        def nthreads(self):
            return {"a": 1}

        def submit(self, call, job, item, key, pure):
            return Future(key)

    class Ended(list):
        add = list.append

    monkeypatch.setattr("distributed.as_completed", lambda loop: Ended())
    items = iter([Item("wrong.png", Path("/wrong.png")), Item("good.png", Path("/good.png"))])
    records = list(_records(Client(), None, items))
    assert [r["status"] for r in records] == ["failed", "done"]
    assert len(asked) == 4


@pytest.mark.long
def test_a_lost_worker_changes_nothing(tmp_path, planes, everything):
    """One of two processes is killed in the middle: its item is done by another."""
    (tmp_path / "in").mkdir()
    for k in range(12):
        noise = 0.1 * np.random.default_rng(k).standard_normal((1, 64, 64))
        write_image(tmp_path / "in" / f"{k}.png", Photo(smooth_picture(64, 64, 1) + noise))
    killed = []

    def kill(tally):
        if tally.done < 2 or killed:
            return
        found = psutil.Process().children(recursive=True)
        found = [p for p in found if "spawn_main" in " ".join(p.cmdline())]
        os.kill(found[0].pid, signal.SIGKILL)
        killed.append(found[0].pid)

    def run(name, many, told):
        settings = Settings(steps=2)
        output = Output(tmp_path / name)
        job = Job("inpaint", output, Inpainting("random:0.5"), Prior(str(planes)), settings)
        return restore_all(job, [tmp_path / "in"], many, told)

    run("one", Many(), lambda tally: None)
    tally = run("two", Many(workers=2), kill)
    assert killed
    assert (tally.done, tally.failed) == (12, 0)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
