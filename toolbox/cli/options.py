"""Options that several commands have."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

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
    int,
    typer.Option(
        "--samples", "-n", help="Posterior samples; the result is their mean.", min=1, max=10_000
    ),
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


def refuse_unused(context: typer.Context, names: Iterable[str], where: str) -> None:
    """Refuse options that this call can't use, instead of dropping them.

    Args:
        context: of the command that runs.
        names: of its parameters.
        where: ends the sentence "... has no effect".

    Raises:
        ValueError: the user gave one of them.
    """
    flags = {p.name: p.opts[0] for p in context.command.params}
    given = [flags[n] for n in names if _given(context, n)]
    if given:
        has = "has" if len(given) == 1 else "have"
        raise ValueError(f"{', '.join(given)} {has} no effect {where}; leave it out")


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


class CheckedCommand(TyperCommand):
    """A command whose numbers are checked in this one place: NaN and infinity are never meant."""

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{parameter.opts[0]} must be a finite number; got {number}")
        return super().invoke(ctx)


class Commands(typer.Typer):
    """An app of such commands."""

    def command(self, *args: Any, **options: Any) -> Any:
        return super().command(*args, **({"cls": CheckedCommand} | options))
