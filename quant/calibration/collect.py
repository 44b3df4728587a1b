"""Record calibration data into a file while measurements are restored: bounded memory, resumable,
the same bytes for the same seed.

Restoration ``k`` is a function of ``k`` alone, and so is everything drawn for it. Each network
input gets a random number and the ``per_timestep`` smallest of each timestep are kept: an equally
likely subset, as a reservoir would give (Vitter 1985), that doesn't depend on the order or on
interruptions. The number belongs to the restoration, not to the call: all timesteps keep the inputs
of the same restorations, at the same crop, so that features of different timesteps can be compared
sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from quant.calibration.shards import Collection, Draws, Store
from quant.calibration.trajectory import CalibrationSet, Provenance, check_recordable, network_hash
from solvers.files import alone_in

Told = Callable[[int], object]  # how many are done


def collect(
    denoiser,
    restore: Callable[[int], object],
    count: int,
    out: str | Path,
    provenance: Provenance | None = None,
    *,
    per_timestep: int = 8,
    crop: int | None = None,
    progress: Told = lambda done: None,
) -> CalibrationSet:
    """Call ``restore(0) ... restore(count - 1)`` and keep what ``denoiser.network`` is shown, by
    timestep value, in the file ``out``.

    Work in progress lies in the folder ``.NAME.parts`` beside ``out``; repeating an interrupted
    call goes on where it stopped and writes the same bytes as an uninterrupted one. ``out`` appears
    complete or not at all.

    Args:
        denoiser: a :class:`solvers.denoiser.Denoiser` around an ``nn.Module``.
        restore: restores measurement k with the deployed solver, grid and correction; must do the
            same whenever it is called with k.
        count: number of restorations.
        provenance: of what is recorded; its seed is that of the choice and the crops. An
            interrupted run only goes on if all of it agrees. None: of this network, seed 0.
        per_timestep: most inputs kept per timestep.
        crop: keep a random square of this side of each input (a multiple of the network's
            ``multiple``); None keeps all of it.
        progress: called with the number of restorations done.

    Returns:
        The set, its samples mapped from ``out`` (read when they are used).

    Raises:
        ValueError: a network, count or crop that can't be, an input with NaN or infinity, or an
            interrupted run with other settings.
    """
    check_recordable(denoiser, per_timestep, crop)
    provenance = provenance or Provenance(network_hash(denoiser.network), 0, "", 0)
    what = Collection(Path(out), count, provenance, per_timestep, crop)
    return collected(
        what, lambda todo, told: record_all(what, denoiser, restore, todo, told), progress
    )


def collected(
    what: Collection,
    record: Callable[[list[int], Told], object],
    progress: Told = lambda done: None,
) -> CalibrationSet:
    """The set of what ``record`` records, in whichever order and number of processes: it is to run
    :func:`record_all` on all numbers that it is given, and may say how many of them are done.

    Raises:
        ValueError: as :func:`collect`.
    """
    store = Store(what)
    with alone_in(store.folder):
        try:
            todo = store.open()
            done = what.count - len(todo)
            progress(done)
            record(todo, lambda count: progress(done + count))
            if left := store.open():
                raise ValueError(
                    f"{len(left)} restorations are not recorded; repeat the call to go on with them"
                )
        except BaseException:
            store.abandon()
            raise
        if not store.kept:
            store.remove()
            raise ValueError("the calibration set is empty: no restoration called the network")
        names = sorted(store.kept, key=lambda name: (-name.t, name.item, name.occurrence))
        CalibrationSet(
            (store.read(name) for name in names), [name.t for name in names], what.provenance
        ).save(what.out)
        store.remove()
    return CalibrationSet.load(what.out)


def record_all(
    what: Collection,
    denoiser,
    restore: Callable[[int], object],
    todo: Sequence[int],
    told: Told = lambda done: None,
) -> None:
    """Call ``restore(k)`` for every number in ``todo`` that is not recorded, and write what the
    network is shown to ``what.folder``.

    Args:
        told: called with how many of them are done.

    Raises:
        ValueError: the folder is of another job, or an input with NaN or infinity.
    """
    store = Store(what)
    store.check_job()
    for done, k in enumerate(todo, 1):
        if not store.has(k):
            draws = Draws(what.provenance.seed, k, what.crop)
            handle = denoiser.network.register_forward_pre_hook(
                lambda _, inputs, draws=draws: store.offer(draws, inputs[0], inputs[1]),
                prepend=True,  # as it is called, before hooks of its own
            )
            try:
                restore(k)
            finally:
                handle.remove()
            store.close_item(k)
        told(done)
