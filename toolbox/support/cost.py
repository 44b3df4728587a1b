"""What a piece of work costs: processor time and memory."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost:
    """``with Cost() as cost: ...`` measures this process. Not nested: an inner one makes the system
    forget the outer peak.

    Attributes:
        seconds: processor time of all threads, and of processes that it started and that have
            ended.
        mb: most resident memory during the work above what there was before it, in MB (2^20 bytes);
            None where the system doesn't tell (it does on Linux). If the system won't forget an
            earlier peak, it counts too: never too little.
    """

    seconds: float
    mb: float | None = None

    def __enter__(self) -> Cost:
        self.began = _processor()
        if STATUS.is_file():
            with contextlib.suppress(OSError):
                RESET.write_text("5")
            self.before = _kilobytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = _processor() - self.began
        if STATUS.is_file():
            self.mb = round(max(0, _kilobytes("VmHWM") - self.before) / 1024, 1)

    def to_dict(self) -> dict[str, float | None]:
        return {"cpu_seconds": round(self.seconds, 1), "peak_mb": self.mb}


def _processor() -> float:
    """Seconds of this process and of ended children."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _kilobytes(key: str) -> int:
    return int(
        next(line for line in STATUS.read_text().splitlines() if line.startswith(key)).split()[1]
    )
