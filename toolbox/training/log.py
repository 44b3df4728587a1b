"""The log of a training run."""

from __future__ import annotations

import csv
import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LOGGED = {
    "loss": ".5f",
    "gradient_norm": ".4f",
    "learning_rate": ".2e",
    "gain_db": ".3f",
    "seconds": ".1f",
}


class Log:
    """A CSV of the running means, one row per 50 steps; where tensorboard is installed (extra
    ``train``), the same as its events.
    """

    def __init__(self, path: Path, start: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.began = path, time.monotonic()
        self.rows: list[Any] = []
        if start == 0 or not path.exists():
            path.write_text(",".join(("step", *LOGGED)) + "\n")
        self.writer = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(
                path.parent / "tensorboard", purge_step=start + 1 if start else None
            )

    def add(
        self, step: int, loss: float, norm: float, rate: float, gain: Callable[[], float]
    ) -> None:
        self.rows.append((loss, norm))
        if step % 50 == 0:
            mean = np.mean(self.rows, axis=0)
            row = (*mean, rate, gain(), time.monotonic() - self.began)
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow(
                    [
                        step,
                        *(
                            f"{value:{form}}"
                            for value, form in zip(row, LOGGED.values(), strict=True)
                        ),
                    ]
                )
            if self.writer is not None:
                for name, value in zip(LOGGED, row, strict=True):
                    if not math.isnan(value):
                        self.writer.add_scalar(name, value, step)
                self.writer.flush()
            self.rows.clear()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
