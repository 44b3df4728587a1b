"""An exported U-Net in two parts, for the cache of features (:mod:`quant.temporal.features`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.graphs.shallow import FEATURES, cut
from export.runtime.providers import second_input


class SplitGraph:
    """Full and shallow passes of one network's graph, each by a graph of its own.

    Features lie in main memory, as arrays in the graph's precision.

    Args:
        model: file or content of the network's graph.
        open_graph: from a graph's content to what has ``run(names, feed)``.
        timesteps: the network's, if it asks for rows of a table.
        out_channels: of the output.

    Raises:
        ValueError: the graph can't be cut.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        open_graph: Callable[[bytes], Any],
        timesteps: Sequence[float],
        out_channels: int,
    ):
        self.timesteps, self.out_channels = tuple(timesteps), out_channels
        self._full, self._shallow = map(open_graph, cut(model))

    def full(self, x: Tensor, t: Tensor) -> tuple[Tensor, np.ndarray]:
        out, features = self._full.run(["output", FEATURES], self._feed(x, t))
        return torch.from_numpy(out).to(x.device), features

    def shallow(self, x: Tensor, t: Tensor, features: np.ndarray) -> Tensor:
        feed = self._feed(x, t) | {FEATURES: features}
        return torch.from_numpy(self._shallow.run(["output"], feed)[0]).to(x.device)

    def _feed(self, x: Tensor, t: Tensor) -> dict[str, np.ndarray]:
        array = x.detach().to("cpu", torch.float32).contiguous().numpy()
        return {"x": array} | second_input(self.timesteps, t)
