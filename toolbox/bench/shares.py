"""Measurements that don't depend on one another, shared out among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")
Measure = Callable[[Sequence[Item]], Iterator[Found]]


def shared(
    measure: Measure[Item, Found], items: Sequence[Item], workers: int | None
) -> Iterator[Found]:
    """What ``measure`` finds of each item, in their order.

    Args:
        measure: yields what it finds of each of some items; of each by itself, whichever the others
            are. It and what it finds are pickled for workers.
        workers: processes of one thread, each of which takes every n-th item; None or 1: this one.

    Raises:
        InputError: dask is missing.
    """
    if workers is None or workers == 1:
        yield from measure(items)
        return
    from toolbox.tasks.scale.cluster import in_shares, need_dask, processes

    need_dask()
    with processes([{}] * workers) as client:
        parts = in_shares(client, _in_turn, measure, items)
    for k in range(len(items)):
        yield parts[k % len(parts)][k // len(parts)]


def _in_turn(
    measure: Measure[Item, Found], items: Sequence[Item], turn: int, count: int
) -> list[Found]:
    """What one of ``count`` workers finds: of every ``count``-th item."""
    from toolbox.tasks.scale.worker import working

    with working():
        return list(measure(items[turn::count]))
