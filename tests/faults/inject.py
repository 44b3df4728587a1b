"""One command in a child process, with a fault at a chosen moment.

The child is forked from a process that has imported everything, so that a case takes as long as the
command itself.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

PATIENCE = 120  # seconds
OURS = ("solvers", "restoration", "quant", "export", "toolbox")
OTHERS = ("accelerate", "onnxruntime", "onnxscript", "brevitas", "nibabel", "pydicom", "zarr")
WATCHED = ("solvers/files/replace.py", "solvers/files/swaps.py", "solvers/files/checks.py")
WATCHED += ("quant/calibration/collect.py", "toolbox/tasks/scale/manifest.py")
WATCHED += ("toolbox/training/log.py", "toolbox/cli/main.py")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), what it said, how long it took,
    in seconds and in lines of watched files where they were counted.
    """

    code: int
    out: str
    err: str
    seconds: float
    lines: int


@dataclass(frozen=True)
class Moment:
    """When a signal is sent: after so many seconds, or at the n-th line that a file of
    :data:`WATCHED` runs; line 0: never, but lines are counted.
    """

    signal: signal.Signals = signal.SIGTERM
    seconds: float | None = None
    line: int | None = None


COUNT = Moment(line=0)


def import_all() -> None:
    """What commands import while they run."""
    for name in OURS:
        for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in OTHERS:
        importlib.import_module(name)


def counting(told: Callable[[int], None]) -> Callable[..., Any]:
    """What :func:`sys.settrace` takes, to be told the number of lines that watched files ran."""
    count = 0

    def line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            told(count)
        return line

    return lambda frame, *_: line if frame.f_code.co_filename.endswith(WATCHED) else None


@dataclass(frozen=True)
class Running:
    """A child process, and the ends of the pipes that it writes to."""

    number: int
    out: int
    err: int
    lines: int


def start(words: list[str], moment: Moment | None = None, most: int = 0) -> Running:
    """A process that runs ``restobox words``.

    Args:
        most: of a file's size in bytes, which the system refuses to exceed, as a full disk does;
            0: any.
    """
    pipes = [os.pipe() for _ in range(3)]
    child = os.fork()
    if child:
        for _, end in pipes:
            os.close(end)
        return Running(child, *(begin for begin, _ in pipes))
    code = 1
    try:
        for number in (1, 2):
            os.dup2(pipes[number - 1][1], number)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if most:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        if moment is not None and moment.line is not None:
            sys.settrace(counting(_sender(moment)))
        code = _call(words)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.settrace(None)
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(pipes[2][1], str(_lines[0]).encode())
        os._exit(code)


_lines = [0]


def _sender(moment: Moment) -> Callable[[int], None]:
    def told(count: int) -> None:
        _lines[0] = count
        if count == moment.line:
            os.kill(os.getpid(), moment.signal)

    return told


def _call(words: list[str]) -> int:
    from toolbox.cli import main

    sys.argv = ["restobox", *words]
    return main()


def wait(child: Running, moment: Moment | None = None) -> Ended:
    """The end of a process of :func:`start`; sends it the signal of a moment in seconds."""
    began = time.monotonic()
    sent = moment is None or moment.seconds is None
    while True:
        done, status = os.waitpid(child.number, os.WNOHANG)
        took = time.monotonic() - began
        if done:
            break
        if not sent and took >= moment.seconds:
            os.kill(child.number, moment.signal)
            sent = True
        if took > PATIENCE:
            os.kill(child.number, signal.SIGKILL)
        time.sleep(0.001)
    said = []
    for end in (child.out, child.err, child.lines):
        with open(end, "rb") as pipe:
            said.append(pipe.read().decode(errors="replace"))
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, said[0], said[1], took, int(said[2] or 0))
