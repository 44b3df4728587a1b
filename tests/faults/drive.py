"""``drive.py COUNT SEED [CALL...]``: faults in every command that writes; prints one JSON object of
how many cases there were, by fault, and of those that gave anything but what is promised.

Faults: SIGTERM, SIGINT and SIGKILL at a moment that is drawn, a disk that gets full (a small tmpfs,
where one may be mounted; a limit of files' sizes), a folder that can't be written (a read-only
tmpfs), and two processes that write one output. In half of the cases an earlier output is there.

What is promised: the user's files stay as they are; an output is the old one or the new one, whole;
of ours nothing else is left, but for what the next call goes on with, and hidden files after
SIGKILL; the next call works; one line on stderr says what was wrong.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from commands import WRITING, Call, make_inputs
from inject import COUNT, Ended, Moment, import_all, start, wait

LONG_AGO = 10**18  # ns, when earlier outputs were written
SIGNALS = {"term": signal.SIGTERM, "int": signal.SIGINT, "kill": signal.SIGKILL}
FAULTS = ("term", "int", "kill", "limit", "full", "read-only", "two")
MOUNTED = ("full", "read-only")

Files = dict[str, tuple[int, bytes]]  # time of change and content, by name


def files_of(folder: Path) -> Files:
    return {
        p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.is_symlink()
    }


def print_of(name: str, content: bytes, exact: bool) -> str:
    """Stands for a content; where it holds times and the like, for all of it but the digits; of
    DICOM for the pixels.
    """
    plain = content if exact else re.sub(rb"[0-9.+e-]+", b"", content)
    if name.endswith(".dcm"):
        with contextlib.suppress(Exception):  # half of a file
            plain = pydicom.dcmread(io.BytesIO(content)).PixelData
    return hashlib.sha256(plain).hexdigest()


@dataclass
class Known:
    """What an undisturbed call gives.

    Attributes:
        earlier: the outputs of an earlier call.
        prints: of the new files, by name.
        exact: names of files that are the same in every run.
        sizes: of the new files, in bytes.
        seconds, lines: that it takes.
    """

    earlier: Files
    prints: dict[str, str]
    exact: set[str]
    sizes: list[int]
    seconds: float
    lines: int


@dataclass
class Drive:
    """The cases of all calls in one folder."""

    place: Path
    rng: np.random.Generator
    inputs: Files = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.place / "i").mkdir()
        make_inputs(self.place / "i")
        self.inputs = files_of(self.place / "i")
        self.mounts = can_mount(self.place)

    def words(self, words: str, out: Path) -> list[str]:
        return [w.format(i=self.place / "i", o=out) for w in words.split()]

    def undisturbed(self, words: str, out: Path, moment: Moment | None = None) -> Ended:
        return wait(start(self.words(words, out), moment))

    def fresh(self, call: Call) -> Path:
        """An empty folder for outputs, but for a file of the user's and what is changed in
        place.
        """
        out = self.place / "o"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "mine.txt").write_text("years of work")
        if call.prepare is not None:
            call.prepare(out)
        return out

    def study(self, call: Call) -> Known:
        """Run a call undisturbed: once for an earlier output, and twice for its own."""
        out, runs, earlier = self.place / "o", [], {}
        if call.before is not None:
            done = self.undisturbed(call.words + call.before, self.fresh(call))
            assert done.code == 0, (call.words, done)
            earlier = files_of(out)
        for _ in range(2):
            done = self.undisturbed(call.words, self.fresh(call), COUNT)
            assert done.code == 0, (call.words, done)
            runs.append((files_of(out), done.seconds))
        first, second = runs[0][0], runs[1][0]
        assert first.keys() == second.keys(), (call.words, first.keys() ^ second.keys())
        exact = {name for name in first if first[name][1] == second[name][1]}
        lines = done.lines
        prints = {name: print_of(name, first[name][1], name in exact) for name in first}
        seconds = min(took for _, took in runs)
        sizes = [len(content) for name, (_, content) in first.items() if name != "mine.txt"]
        return Known(earlier, prints, exact, sizes, seconds, lines)

    def case(self, name: str, fault: str) -> list[str]:
        """What a case gave that isn't promised."""
        call = WRITING[name]
        if name not in self.known:
            self.known[name] = self.study(call)
        known, out = self.known[name], self.fresh(call)
        if fault in MOUNTED:
            shutil.rmtree(out)
            out.mkdir()
        with tmpfs(out) if fault in MOUNTED else contextlib.nullcontext():
            if fault in MOUNTED:
                (out / "mine.txt").write_text("years of work")
                if call.prepare is not None:
                    call.prepare(out)
            if call.before is not None and self.rng.random() < 0.5:
                put(known.earlier, out)
            for path in out.rglob("*"):
                if path.is_file():
                    os.utime(path, ns=(LONG_AGO, LONG_AGO))
            before = files_of(out)
            ended = self.disturbed(call, known, out, fault)
            found = self.judged(call, known, before, out, fault, ended)
            if fault == "kill" or self.rng.random() < 0.3:
                found += self.next_call(call, known, out)
        return found

    def disturbed(self, call: Call, known: Known, out: Path, fault: str) -> list[Ended]:
        words = self.words(call.words, out)
        if fault in SIGNALS:
            moment = Moment(SIGNALS[fault], line=int(self.rng.integers(1, known.lines + 1)))
            if self.rng.random() < 0.4:
                seconds = float(self.rng.uniform(0, known.seconds))
                moment = Moment(SIGNALS[fault], seconds=seconds)
            return [wait(start(words, moment), moment)]
        if fault == "two":
            return [wait(child) for child in [start(words), start(words)]]
        if fault == "limit":
            most = int(self.rng.integers(1, max(known.sizes) + 1))
            return [wait(start(words, most=most))]
        there = os.statvfs(out)
        used = (there.f_blocks - there.f_bfree) * there.f_frsize
        room = used + int(self.rng.uniform(0, 1.5) * sum(known.sizes))
        how = f"size={room // 4096 * 4096 + 4096}" if fault == "full" else "ro"
        subprocess.run(["mount", "-o", f"remount,{how}", str(out)], check=True)
        ended = wait(start(words))
        subprocess.run(["mount", "-o", "remount,rw,size=64m", str(out)], check=True)
        return [ended]

    def judged(
        self, call: Call, known: Known, before: Files, out: Path, fault: str, ended: list[Ended]
    ) -> list[str]:
        """Compare with what is promised."""
        found = [] if files_of(self.place / "i") == self.inputs else ["an input changed"]
        after = files_of(out)
        states: dict[str, str] = {}
        for name in {*before, *after, *known.prints}:
            was, now = before.get(name), after.get(name)
            is_new = now is not None and self.is_new(known, name, now[1])
            if now == was:
                states[name] = "same"
            elif name in known.prints and is_new:
                states[name] = "new"
            elif any(fnmatch.fnmatch(name, pattern) for pattern in call.begun):
                states[name] = "begun"
            elif fault == "kill" and (is_hidden(name) or (now is None and moved(was, after))):
                continue
            elif now is None and name not in known.prints and call.before is not None:
                states[name] = "new"  # a file of an earlier output that this one doesn't have
            else:
                found.append(f"{name} is " + ("gone" if now is None else "half" if was else "left"))
        mine = {name: state for name, state in states.items() if name in known.prints}
        mine = {n: s for n, s in mine.items() if before.get(n) is None or n != "mine.txt"}
        kept = {state for name, state in mine.items() if changes(known, before, name)}
        if len(kept) > 1 and not call.alone and fault != "kill":
            found.append(f"old and new together: {mine}")
        complete = kept <= {"new", "begun"}
        for one in ended:
            found += self.said(one, fault, complete, call)
        if fault == "two" and not any(one.code == 0 for one in ended):
            found.append(f"neither of two wrote it: {[one.err for one in ended]}")
        return found

    def is_new(self, known: Known, name: str, content: bytes) -> bool:
        if name not in known.prints:
            return False
        return print_of(name, content, name in known.exact) == known.prints[name]

    def said(self, one: Ended, fault: str, complete: bool, call: Call) -> list[str]:
        lines = one.err.strip().splitlines()
        if one.code == 0 and complete:
            return []
        codes = {"term": (143, -15), "int": (130, -2), "kill": (-9,)}.get(fault, (2, 4))
        found = [] if one.code in codes else [f"exit code {one.code}: {one.err[-200:]!r}"]
        if "Traceback" in one.err or (fault in SIGNALS and len(lines) > 1):
            found.append(f"says {one.err[-300:]!r}")
        if fault not in SIGNALS and one.code == 2 and len(lines) != 1:
            found.append(f"says {one.err[-300:]!r}")
        if fault in ("full", "limit") and "room" not in one.err:
            found.append(f"says {one.err[-300:]!r}")
        if "doesn't know" in one.err:
            found.append(f"says {one.err[-300:]!r}")
        return found

    def next_call(self, call: Call, known: Known, out: Path) -> list[str]:
        """The same call once more."""
        done = self.undisturbed(call.words, out)
        if done.code == 2 and call.again:
            done = self.undisturbed(call.words + call.again, out)
        if done.code != 0:
            return [f"the next call failed: {done.err[-300:]!r}"]
        after = files_of(out)
        wrong = [
            name
            for name in known.prints
            if name not in after
            or not (
                self.is_new(known, name, after[name][1])
                or any(fnmatch.fnmatch(name, pattern) for pattern in call.begun)
            )
        ]
        strange = [n for n in after if n not in known.prints and not is_hidden(n)]
        strange = [n for n in strange if n not in known.earlier]
        found = [f"after the next call {name} is wrong" for name in wrong]
        return found + [f"after the next call {name} is left" for name in strange]


def changes(known: Known, before: Files, name: str) -> bool:
    """Whether a call changes this file: what it leaves as it was is neither old nor new."""
    if name not in before:
        return True
    return print_of(name, before[name][1], name in known.exact) != known.prints[name]


def is_hidden(name: str) -> bool:
    return any(p.startswith(".") and p.endswith(".part") for p in name.split("/"))


def moved(was: tuple[int, bytes] | None, after: Files) -> bool:
    """Whether a file of the earlier output lies under a hidden name."""
    return was is not None and any(
        is_hidden(n) and found[1] == was[1] for n, found in after.items()
    )


def put(files: Files, folder: Path) -> None:
    for name, (_, content) in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def can_mount(place: Path) -> bool:
    probe = place / "probe"
    probe.mkdir()
    try:
        with tmpfs(probe):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def tmpfs(place: Path) -> Iterator[None]:
    """A file system in memory at a folder."""
    order = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    subprocess.run(order, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def drive(
    count: int, seed: int, names: list[str], faults: tuple[str, ...] = FAULTS
) -> dict[str, Any]:
    """``count`` cases of each call, their faults in turn."""
    import_all()
    counts, wrong = Counter(), []
    with tempfile.TemporaryDirectory() as place:
        all_of = Drive(Path(place), np.random.default_rng(seed))
        possible = [f for f in faults if f not in MOUNTED or all_of.mounts]
        for name in names:
            for k in range(count):
                fault = possible[k % len(possible)]
                counts[fault] += 1
                if found := all_of.case(name, fault):
                    wrong.append([name, fault, k, found])
                    print(name, fault, k, found, file=sys.stderr, flush=True)
    return {"cases": dict(counts), "wrong": wrong}


def main() -> None:
    count, seed, *names = sys.argv[1:]
    began = time.monotonic()
    found = drive(int(count), int(seed), names or list(WRITING))
    print(json.dumps(found | {"seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
