"""The command ``restobox``. Bodies import what they need, so ``--help`` answers at once."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from typing import Annotated

import typer

from toolbox.cli import bench, info, model, restore
from toolbox.cli.options import Commands
from toolbox.support.errors import Said, in_a_line, quiet_libraries

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
    broken, 4 some of several items failed, 130 Ctrl-C, 143 SIGTERM.

    RESTOBOX_DEBUG=1 shows where an error came from.
    """
    try:
        return _said_quietly()
    except KeyboardInterrupt:
        return 130


def _said_quietly() -> int:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with quiet_libraries():
        said = Said(sys.stdout)
        with contextlib.redirect_stdout(said):
            code = _run()
        return _answered(said, code)


def _run() -> int:
    try:
        return app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if os.environ.get("RESTOBOX_DEBUG"):
            raise
        if text := in_a_line(error):  # empty where typer has just printed its help
            print(f"restobox: {text}", file=sys.stderr)
        return 2


def _answered(said: Said, code: int) -> int:
    """Files that a command wrote are complete by now: that they can't be spoken of is no failure,
    but an answer that can't be given is one.
    """
    said.flush()
    if said.error is None:
        return code
    with contextlib.suppress(OSError, ValueError):  # Python flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), said.fileno())
    wrote = "--json" not in sys.argv and not {"-o", "--out"}.isdisjoint(sys.argv)
    end = "the output is complete" if wrote else "the answer is lost"
    print(f"restobox: stdout can't be written ({said.error.strerror}); {end}", file=sys.stderr)
    return code if wrote else code or 2


def _stop(number: int, frame: object) -> None:
    """Leave as Ctrl-C does: what is half written goes away."""
    raise SystemExit(128 + number)
