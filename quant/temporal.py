"""The temporal-feature table: each residual block's time embedding, stored once per timestep of the grid.

Everything a diffusion U-Net computes from ``t`` alone, ``e_i(t) = W_i SiLU(MLP(sinusoid(t))) + c_i`` for every residual block
``i``, has finitely many inputs: the timesteps the solver visits. Stored in float the table is exact, deletes all time layers
from the graph and leaves nothing temporal to quantize ("cache-based maintenance", Huang et al. 2025, Temporal Feature Matters).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TemporalTable(nn.Module):
    """Rows ``[e_1(t) | e_2(t) | ...]`` for a list of timesteps.

    Args:
        timesteps: strictly descending or ascending values, none twice.
        features: ``(len(timesteps), sum of widths)`` float32.
        slices: module name of each projection -> ``(start, stop)`` columns.
    """

    def __init__(self, timesteps: Sequence[float], features: Tensor, slices: dict[str, tuple[int, int]]):
        super().__init__()
        self.timesteps = tuple(float(t) for t in timesteps)
        self.slices = dict(slices)
        self.register_buffer("features", features)

    def forward(self, index: Tensor) -> Tensor:
        """``index (B,)`` to rows ``(B, sum of widths)``."""
        return self.features[index.long()]

    def index(self, t: float) -> int:
        """Row of timestep ``t``.

        Raises:
            ValueError: the table has no row for ``t``.
        """
        return row_of(self.timesteps, t)


def row_of(timesteps: Sequence[float], t: float) -> int:
    """Position of ``t`` in ``timesteps`` (to 1e-3: half a float32 ulp of any real grid is far below that).

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    if timesteps:
        nearest = min(range(len(timesteps)), key=lambda k: abs(timesteps[k] - t))
        if abs(timesteps[nearest] - t) <= 1e-3:
            return nearest
    known = ", ".join(f"{s:g}" for s in timesteps)
    raise ValueError(
        f"timestep {t:g} is not in the temporal table, which holds {known}; "
        "run the solver on that grid, or build the table (or a timestep graph) for the grid you want"
    )


class _Slice(nn.Module):
    """Stands where ``time_emb_proj`` stood: picks this block's columns from the row."""

    def __init__(self, start: int, stop: int):
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, rows: Tensor) -> Tensor:
        return rows[:, self.start : self.stop]


def projections(unet: nn.Module) -> dict[str, nn.Linear]:
    """The per-block time projections of a diffusers ``UNet2DModel``, by module name.

    Raises:
        ValueError: the network's temporal path can't be tabulated; the message says why.
    """
    name = type(unet).__name__
    if not hasattr(unet, "time_embedding") or not hasattr(unet, "time_proj"):
        raise ValueError(
            f"{name} has no time_proj/time_embedding; the temporal table is made for diffusers' UNet2DModel (use temporal='float')"
        )
    if getattr(unet, "class_embedding", None) is not None:
        raise ValueError("the network is class-conditional: its embedding depends on more than the timestep; use temporal='float'")
    found = {n: m for n, m in unet.named_modules() if n.endswith("time_emb_proj") and isinstance(m, nn.Linear)}
    if not found:
        raise ValueError(f"{name} has no time_emb_proj layers; use temporal='float'")
    return found


@torch.no_grad()
def temporal_table(unet: nn.Module, timesteps: Sequence[float]) -> TemporalTable:
    """Compute ``e_i(t)`` with the network's own float layers.

    Raises:
        ValueError: no timesteps, a timestep given twice, or a network that can't be tabulated.
    """
    timesteps = [float(t) for t in timesteps]
    if not timesteps or len(set(timesteps)) != len(timesteps):
        raise ValueError(f"a temporal table needs at least one timestep and none twice; got {timesteps}")
    layers = projections(unet)
    weight = next(iter(layers.values())).weight
    rows = []
    for t in timesteps:  # one at a time, as at inference: batched matrix products round differently
        embedding = unet.time_embedding(unet.time_proj(torch.tensor([t], device=weight.device)).to(weight.dtype))
        rows.append(torch.cat([layer(_activation(unet, name)(embedding)) for name, layer in layers.items()], dim=1))
    slices, start = {}, 0
    for name, layer in layers.items():
        slices[name] = (start, start + layer.out_features)
        start += layer.out_features
    return TemporalTable(timesteps, torch.cat(rows).float(), slices)


def step_network(unet: nn.Module, table: TemporalTable) -> nn.Module:
    """A copy of ``unet`` that is called with a table index in place of the timestep: ``network(input, index (B,))``.

    The weights outside the temporal path are shared with ``unet``.
    """
    shared = {id(p): p for p in [*unet.parameters(), *unet.buffers()]}
    step = copy.deepcopy(unet, memo=shared)
    for name, (start, stop) in table.slices.items():
        block = step.get_submodule(name.rpartition(".")[0])
        block.time_emb_proj = _Slice(start, stop)
        block.skip_time_act = True  # the rows already hold the projected activation
    step.time_proj, step.time_embedding = table, nn.Identity()
    return step


def _activation(unet: nn.Module, name: str) -> nn.Module:
    block = unet.get_submodule(name.rpartition(".")[0])
    return nn.Identity() if getattr(block, "skip_time_act", False) else block.nonlinearity
