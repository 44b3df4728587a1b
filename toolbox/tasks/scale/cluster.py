"""Items restored by dask.distributed: workers on this machine, or those of a scheduler.

A worker is a process with one thread, which loads a model once. A worker that is lost is replaced
and the items that it had are given to others, at most :data:`LOSSES` times; and once more at the
end, each by itself, since one of them may have taken the others along.
"""

from __future__ import annotations

import contextlib
import logging
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from solvers.inputs.errors import InputError, RestoboxError, first_line
from toolbox.tasks.scale.items import Item
from toolbox.tasks.scale.job import Job
from toolbox.tasks.scale.worker import check_models, restore_item
from toolbox.tasks.settings import Many

LOSSES = 3  # of workers, before the item itself is taken to be the cause
AHEAD = 2  # items that a worker has at hand, so that it needn't wait for the next
PATIENCE = 60  # seconds for the first worker
REACHED = "10s"  # for the scheduler

# of Dask's defaults one makes the C library give memory back at once, which a network then asks for
# again: half of its time; and what it watches itself with takes a share of a core
SETTINGS = {
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
    "distributed.scheduler.allowed-failures": LOSSES - 1,
    "distributed.worker.profile.enabled": False,
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
    )
    | {"DASK_LOGGING__DISTRIBUTED": "error", "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"},
}

Records = Iterator[dict[str, Any]]


def has_bokeh() -> bool:
    """Whether Dask can show its dashboard."""
    return find_spec("bokeh") is not None


def need_dask() -> None:
    """Raise where Dask is missing.

    Raises:
        InputError: says which extra has it.
    """
    if find_spec("distributed") is None:
        raise InputError(
            "--workers and --scheduler need dask: pip install 'restobox[scale]'; without them one"
            " process does it"
        )


@contextlib.contextmanager
def over_cluster(
    job: Job, many: Many, begin: bool = True
) -> Iterator[tuple[Callable[[Iterator[Item]], Records], str]]:
    """What restores items as they come, on several workers, and gives their records as they end;
    and the address of Dask's dashboard, empty where there is none.

    Args:
        begin: whether there is anything to do: else no worker is started.

    Raises:
        InputError: dask is missing, no such scheduler, no worker, or workers without restobox.
        ValueError, OSError: a model that the workers can't load.
    """
    need_dask()
    if not begin:
        yield lambda items: iter(()), ""
        return
    own = [] if many.scheduler else [device_of(k, job, many) for k in range(many.workers or 1)]
    with client_of(many.scheduler, own) as client:
        _check(client, job)
        shown = many.scheduler is not None or has_bokeh()
        yield lambda items: _records(client, job, items), _dashboard(client) if shown else ""


def _dashboard(client: Any) -> str:
    try:
        return client.dashboard_link or ""
    except KeyError:  # a scheduler without one
        return ""


@contextlib.contextmanager
def client_of(scheduler: str | None, environments: Sequence[dict[str, str]]) -> Iterator[Any]:
    """Dask's client of a scheduler that has a worker; or, with None, of :func:`processes`.

    Raises:
        InputError: no such scheduler, or no worker.
    """
    if scheduler is None:
        with processes(environments) as client:
            yield client
        return
    from distributed import Client, TimeoutError

    try:
        client = Client(scheduler, timeout=REACHED, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {scheduler} ({first_line(error)}); start one by"
            " `dask scheduler`, and give its address such as tcp://HOST:8786"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise InputError(
                f"no worker came within {PATIENCE} s; start some by `dask worker {scheduler}"
                " --nthreads 1`"
            ) from error
        yield client


@contextlib.contextmanager
def processes(environments: Sequence[dict[str, str]]) -> Iterator[Any]:
    """Dask's client of a worker for each of these environments, on this machine: processes of one
    thread.
    """
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    address = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": address | {"dashboard": has_bokeh()}}
    own = {"nthreads": 1, "memory_limit": 0, "host": "127.0.0.1", "dashboard": False}
    workers = {
        k: {"cls": Nanny, "options": own | {"env": env}} for k, env in enumerate(environments)
    }
    with (
        dask.config.set(SETTINGS),
        SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def device_of(k: int, job: Job, many: Many) -> dict[str, str]:
    """What the k-th worker's environment says of GPUs.

    Raises:
        InputError: more workers than the GPUs can take, or a share of a GPU without ``cuda``.
    """
    share = many.gpus_per_worker
    if not job.prior.device.startswith("cuda"):
        if share is not None:
            raise InputError("--gpus-per-worker means something with --device cuda; leave it out")
        return {}
    import torch

    share, workers, there = share or 1.0, many.workers or 1, torch.cuda.device_count()
    if (needed := math.ceil(workers * share - 1e-9)) > there:
        raise InputError(
            f"{workers} workers with {share:g} GPUs each need {needed}, and this machine shows"
            f" {there}; give fewer workers, or --gpus-per-worker {there / workers:.3g}"
        )
    return {"CUDA_VISIBLE_DEVICES": str(math.floor(k * share + 1e-9))}


def _check(client: Any, job: Job) -> None:
    try:
        client.submit(check_models, job, pure=False).result()
    except (RestoboxError, ValueError, OSError):
        raise
    except Exception as error:
        raise InputError(
            f"the workers can't run restobox ({type(error).__name__}: {first_line(error)}); install"
            " the same version where they run"
        ) from error


def _records(client: Any, job: Job, items: Iterator[Item]) -> Records:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    run, ended = uuid.uuid4().hex, as_completed(loop=client.loop)
    running: dict[Any, Item] = {}

    def begin() -> None:
        """Hand out as much as the workers that are there now can have at hand."""
        room = AHEAD * max(1, sum(client.nthreads().values())) - len(running)
        for _ in range(room):
            if (item := next(items, None)) is None:
                return
            future = client.submit(restore_item, job, item, key=f"{item.name}-{run}", pure=False)
            running[future] = item
            ended.add(future)

    begin()
    suspects = []
    for future in ended:
        item = running.pop(future)
        if isinstance(future.exception(), KilledWorker):
            suspects.append(item)
        else:
            yield record_of(future, item)
        future.release()
        begin()
    for item in suspects:
        future = client.submit(restore_item, job, item, key=f"{item.name}-{run}-alone", pure=False)
        yield record_of(future, item)


def record_of(future: Any, item: Item) -> dict[str, Any]:
    """The record of an item whose task has ended, however it did.

    Raises:
        RestoboxError: the scheduler is lost.
    """
    from distributed.scheduler import KilledWorker

    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, KilledWorker):
        raise RestoboxError(
            f"the workers were lost ({type(error).__name__}: {first_line(error)}); run again with"
            " --resume"
        ) from error
    reason = f"its worker died {LOSSES} times while it was restored: is there enough memory?"
    return item.failed(reason)


def in_shares(
    client: Any,
    call: Callable[..., Any],
    *arguments: Any,
    told: Callable[[], object] = lambda: None,
) -> list[Any]:
    """What ``call(*arguments, k, n)`` gives for each of the client's n workers, k = 0 ... n - 1, at
    once. The call of a worker that is lost is made again by another.

    Args:
        told: called every second.

    Raises:
        RestoboxError: workers were lost too often.
        Exception: what ``call`` raises.
    """
    from distributed import TimeoutError, wait
    from distributed.scheduler import KilledWorker

    places = list(client.nthreads())
    own = {"pure": False, "allow_other_workers": True}
    futures = [
        client.submit(call, *arguments, k, len(places), workers=[place], **own)
        for k, place in enumerate(places)
    ]
    running = set(futures)
    try:
        while running:
            told()
            with contextlib.suppress(TimeoutError), client.as_current():
                ended = wait(running, timeout=1, return_when="FIRST_COMPLETED").done
                running -= ended
                for future in ended:
                    future.result()  # what one can't do, the others needn't
        return [future.result() for future in futures]
    except KilledWorker as error:
        raise RestoboxError(
            f"workers died {LOSSES} times at the same work: is there enough memory? Repeat the call"
        ) from error
    finally:
        client.cancel(list(running))
