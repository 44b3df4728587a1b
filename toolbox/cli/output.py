"""What commands print: progress on stderr, tables, JSON."""

from __future__ import annotations

import json
import math
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
    print(json.dumps(_finite(content), indent=2, allow_nan=False))


def _finite(content: Any) -> Any:
    """JSON has no infinity (the PSNR of equal pictures): null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


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
