"""One item restored: what a worker does, whatever process it lives in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from solvers.inputs.errors import FullDiskError, ResourceError
from toolbox.api import keeping_models, load_for, reading_with
from toolbox.support.errors import in_a_line
from toolbox.tasks.scale.digests import digest_of, digest_of_model, stamp_of
from toolbox.tasks.scale.items import Item
from toolbox.tasks.scale.job import Job
from toolbox.tasks.scale.manifest import place_below

# models of this process: each is loaded once
_models: dict[Any, Any] = {}
# figures that the record tells elsewhere, or that every item has alike
_ELSEWHERE = ("seed", "samples", "steps", "nfe", "seconds", "quality")


@lru_cache(1)
def _pools() -> ThreadpoolController:
    """The libraries with threads of their own, found once: a search takes milliseconds."""
    import scipy.linalg  # noqa: F401  which brings a library along

    return ThreadpoolController()


@contextlib.contextmanager
def working() -> Iterator[None]:
    """As a worker computes: one thread, so that results do not depend on the machine's cores; each
    model is loaded once.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _pools().limit(limits=1), keeping_models(_models, threads=1):
            yield
    finally:
        torch.set_num_threads(threads)


def check_models(job: Job) -> None:
    """Load what is named, before any item.

    Raises:
        ValueError, OSError: a model that can't be had, or that is for another task.
    """
    with working(), reading_with(job.checkpoint):
        if job.one.is_picture and job.prior.model:
            job.one.load(job.prior)  # type: ignore[attr-defined]
            return
        named = [job.prior.model, *(getattr(job.options, role) for role in job.one.roles)]
        for name in filter(None, named):
            load_for(job.task, name, **job.prior.place)


def restore_item(job: Job, item: Item) -> dict[str, Any]:
    """Restore an item; the record for the manifest, ``done`` or ``failed``. A failed item leaves
    nothing behind.
    """
    began = time.perf_counter()
    try:
        with working(), reading_with(job.checkpoint):
            record = {"item": item.name, "input": str(item.path)} | _restored(job, item)
    except Exception as error:
        record = item.failed(in_a_line(error))
        record["full_disk"] = isinstance(error, FullDiskError)
    record["seconds"] = round(time.perf_counter() - began, 3)
    record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    return record


def _restored(job: Job, item: Item) -> dict[str, Any]:
    own = job.of(item)
    folder, places = job.output.out, own.outputs()
    stamp = stamp_of(item.path)
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    request = own.request(item.path)
    figures = own.one.restore(request)
    if stamp_of(item.path) != stamp:
        raise ResourceError(f"{item.path} changed while it was restored; run again with --resume")
    named = [request.prior.model, *(getattr(request.options, role) for role in own.one.roles)]
    found: dict[str, Any] = {"status": "done", "input_sha256": digest_of(item.path)}
    found |= {"input_stamp": list(stamp), "settings_sha256": own.digest()}
    found["models"] = {name: digest_of_model(name) for name in named if name}
    found["seed"], found["nfe"] = request.draws.seed, figures["nfe"]
    found["restoring"] = figures["seconds"]
    found["metrics"] = {
        name: value
        for name, value in figures.items()
        if isinstance(value, (int, float)) and name not in _ELSEWHERE
    }
    found |= {name: figures[name] for name in ("warning", "note") if name in figures}
    names = [place_below(place, folder) for place in places]
    found |= {"out": names, "out_bytes": [stamp_of(place)[0] for place in places]}
    found["out_sha256"] = {n: digest_of(p) for n, p in zip(names, places, strict=True)}
    return found
