"""The command ``restobox``. Bodies import what they need, so ``--help`` answers at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from typing import Annotated

import typer

from toolbox.cli import bench, info, model, restore
from toolbox.cli.options import Commands

app = Commands(
    name="restobox",
    help=(
        "Restore images with diffusion samplers; calibrate, quantize and export the networks that"
        " do it."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(restore.app, name="restore")
app.registered_commands += info.app.registered_commands + model.app.registered_commands
app.add_typer(bench.app, name="bench")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("restobox"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> int:
    """Entry point; returns the exit code: 0 done, 2 bad input (one line on stderr), 3 a limit was
    broken.

    RESTOBOX_DEBUG=1 shows where an error came from.
    """
    # libraries' warnings are for developers; whatever concerns the user is said in the output
    warnings.simplefilter("ignore")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    try:
        return app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if os.environ.get("RESTOBOX_DEBUG"):
            raise
        text = (
            error.format_message()
            if hasattr(error, "format_message")
            else str(error) or type(error).__name__
        )
        if text:  # empty where typer has just printed its help
            print(f"restobox: {' '.join(text.split())}", file=sys.stderr)
        return 2


def _stop(number: int, frame: object) -> None:
    """Leave as Ctrl-C does: what is half written goes away."""
    raise SystemExit(128 + number)
