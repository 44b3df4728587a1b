"""``drive.py COUNT SEED READER...``: damaged files to readers, each case in a child process with
limits of time and memory; prints one JSON object of what came out.

One child does many cases; when one of them ends it, another child goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from mutations import mutate
from readers import READERS, Files, Reader

SECONDS, BYTES, BUDGET = 20, 3 << 30, 256 << 20  # of a processor; more than the process has; read
MEND_SHARE = 0.6


def digest(found: Any) -> str:
    total = hashlib.sha256()
    for one in found:
        total.update(str(np.shape(one)).encode() + np.ascontiguousarray(one).tobytes())
    return total.hexdigest()


def damaged(reader: Reader, files: Files, seed: list[int]) -> tuple[Files, str]:
    """The files of one case, and what was done to which."""
    rng = np.random.default_rng(seed)
    name = reader.damaged[rng.integers(len(reader.damaged))]
    content, what = mutate(files[name], rng)
    changed = files | {name: content}
    if reader.mend is not None and (len(files) > 1 or rng.random() < MEND_SHARE):
        changed, what = reader.mend(changed), f"{what}, mended"
    return changed, f"{name}: {what}"


def write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def outcome(reader: Reader, folder: Path, whole: str, what: str) -> str:
    """``read``, ``refused``, or what is wrong."""
    from solvers.inputs.errors import RestoboxError

    try:
        found = reader.read(folder)
    except (RestoboxError, FileNotFoundError) as error:
        one_line = str(error) and "\n" not in str(error)
        return "refused" if one_line else f"wrong: says {str(error)[:200]!r}"
    except BaseException as error:
        return f"wrong: {type(error).__name__}: {str(error)[:200]}"
    if what.endswith(": cut") and digest(found) != whole:
        return "wrong: read a part of a file as if it were the whole"
    return "read"


def valid(reader: Reader, folder: Path) -> str:
    """What the undamaged files hold."""
    files = reader.files()
    write(reader.mend(files) if reader.mend is not None else files, folder)
    return digest(reader.read(folder))


def child(name: str, cases: range, seed: int, whole: str, report: int) -> None:
    """Do the cases; tell before and after each."""
    reader = READERS[name]
    files = reader.files()
    with tempfile.TemporaryDirectory() as place:
        write(files, Path(place))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
        for case in cases:
            changed, what = damaged(reader, files, [seed, case, *name.encode()])
            write(changed, Path(place))
            os.write(report, f"{json.dumps([case, what, None])}\n".encode())
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(10 * SECONDS)
            result = outcome(reader, Path(place), whole, what)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(report, f"{json.dumps([case, what, result])}\n".encode())


def drive(name: str, count: int, seed: int) -> dict[str, Any]:
    """All cases of a reader."""
    found: dict[str, Any] = {"read": 0, "refused": 0, "wrong": []}
    with tempfile.TemporaryDirectory() as place:  # imports what the children need
        whole = valid(READERS[name], Path(place))
    first = 0
    while first < count:
        reads, report = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reads)
            code = 1
            try:
                child(name, range(first, count), seed, whole, report)
                code = 0
            finally:
                os._exit(code)
        os.close(report)
        case, what, result = first, "the valid files", None
        with os.fdopen(reads) as lines:
            for text in lines:
                case, what, result = json.loads(text)
                if result in ("read", "refused"):
                    found[result] += 1
                elif result is not None:
                    found["wrong"].append([case, what, result])
        _, status = os.waitpid(process, 0)
        if status and result is None:
            signalled = os.WIFSIGNALED(status)
            ended = signal.Signals(os.WTERMSIG(status)).name if signalled else "an error"
            found["wrong"].append([case, what, f"wrong: ended by {ended}"])
        first = case + 1 if status else count
    return found


def main() -> None:
    count, seed, *names = sys.argv[1:]
    os.environ["RESTOBOX_MAX_BYTES"] = str(BUDGET)
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    import torch

    torch.set_num_threads(1)
    print(json.dumps({name: drive(name, int(count), int(seed)) for name in names}))


if __name__ == "__main__":
    main()
