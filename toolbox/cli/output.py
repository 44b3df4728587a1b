"""What commands print: progress on stderr, tables, JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

WIDE = 160  # letters


class ProgressBar:
    """A rich progress bar on stderr; silent where stderr is no terminal."""

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total

    def __enter__(self) -> ProgressBar:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.total)
        return self

    def update(self, done: int, title: str | None = None) -> None:
        self.bar.update(self.task, completed=done, description=title or self.title)

    def update_of(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


class CountLine:
    """One line on stderr that tells how far a run of many items is: on a terminal it is written
    over, elsewhere there is a new one each minute. The address of Dask's dashboard comes first.
    """

    EVERY = 0.2, 60.0  # seconds

    def __init__(self, title: str):
        self.title, self.live = title, sys.stderr.isatty()
        self.last = time.monotonic() if not self.live else 0.0
        self.width, self.told = 0, False

    def __call__(self, tally: Any) -> None:
        ended, now = tally.done + tally.failed, time.monotonic()
        if tally.dashboard and not self.told:
            print(f"{self.title}: watch it at {tally.dashboard}", file=sys.stderr, flush=True)
            self.told = True
        if now - self.last < self.EVERY[not self.live] and not (self.live and ended == tally.total):
            return
        self.last = now
        rate = ended / max(tally.seconds, 1e-9)
        left = f"{_time((tally.total - ended) / rate)} left" if ended else "beginning"
        text = f"{self.title}: {ended} of {tally.total}, {rate:.3g} items/s, {left}"
        text += f", {tally.failed} failed" if tally.failed else ""
        begin, end = ("\r", "") if self.live else ("", "\n")
        self.width = max(self.width, len(text)) if self.live else 0
        print(begin + text.ljust(self.width), end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the line."""
        if self.width:
            print(file=sys.stderr)
            self.width = 0


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{rest} s"


def cost_line(figures: dict[str, Any]) -> str:
    """The ``cost`` of a command's figures (:class:`toolbox.support.cost.Cost`) in words."""
    cost = figures["cost"]
    memory = (
        ""
        if cost["peak_mb"] is None
        else f", at most {cost['peak_mb']:.0f} MB beyond libraries and model"
    )
    return f"{cost['cpu_seconds']:.0f} s of processor time{memory}"


def print_json(content: Any) -> None:
    """One JSON object on stdout."""
    from solvers.inputs.strict_json import finite

    print(json.dumps(finite(content), indent=2, allow_nan=False))


def print_table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for k, name in enumerate(header):
        table.add_column(name, justify="left" if k == 0 or len(header) < 4 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no edge to cut names at
        console.width = max(console.width, WIDE)
    console.print(table)
