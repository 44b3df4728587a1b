"""The command line, in this process or in one of its own."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

from helpers.data import ROOT


def restobox(*arguments, cwd: Path | str = ".") -> subprocess.CompletedProcess:
    """``restobox arguments`` in this process: exit code, stdout, stderr."""
    from toolbox.cli import main

    command = ["restobox", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main()
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def restobox_process(*arguments, cwd: Path | str = ROOT) -> subprocess.CompletedProcess:
    """The same in a process of its own, which imports everything anew: seconds."""
    return subprocess.run(
        [sys.executable, "-m", "toolbox", *map(str, arguments)],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
