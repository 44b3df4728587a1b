"""What all commands share: option types, progress, tables, JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Option(
        help="A shipped model (see `restobox models`), a diffusers folder or an exported bundle."
    ),
]
Solver = Annotated[str, typer.Option(help="ddim, pndm, plms, ...; an unknown name lists all.")]
Steps = Annotated[int, typer.Option(help="Solver steps.")]
Seed = Annotated[int, typer.Option(help="Sample k uses seed + k.", min=0, max=2**62)]
Samples = Annotated[
    int, typer.Option("--samples", "-n", help="Posterior samples; the result is their mean.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Grid = Annotated[str, typer.Option(help="Time grid: trailing, leading, linspace, log-snr, karras.")]
Std = Annotated[
    bool,
    typer.Option(
        "--std", help="Also write OUT-std.png, where the samples disagree (needs -n 2 or more)."
    ),
]
Reference = Annotated[
    Path | None, typer.Option(help="The true picture: prints PSNR, SSIM and LPIPS against it.")
]
Tile = Annotated[int, typer.Option(help="Side of the tiles for larger pictures, in pixels.")]
Symmetries = Annotated[
    int,
    typer.Option(
        help="Flips and turns averaged over: 1, 2, 4, 8; each costs its own network call."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or for bundles openvino.")]
Picture = Annotated[
    Path,
    typer.Argument(
        help="PNG, JPEG, WebP, TIFF ...; 8 or 16 bits, grey or colour, with or without alpha."
    ),
]
PictureOut = Annotated[
    Path, typer.Option("--out", "-o", help="The restored picture (PNG, TIFF, JPEG, WebP).")
]

DEFAULT_MODEL = "photo-int8"


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
    print(json.dumps(_finite(content), indent=2, allow_nan=False))


def _finite(content: Any) -> Any:
    """JSON has no infinity (the PSNR of equal pictures): null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def print_table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for k, name in enumerate(header):
        table.add_column(name, justify="left" if k == 0 or len(header) < 4 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
