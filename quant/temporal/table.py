"""The temporal-feature table: each residual block's time embedding, stored once per timestep of the
grid.

Everything a diffusion U-Net computes from ``t`` alone, ``e_i(t) = W_i SiLU(MLP(sinusoid(t))) +
c_i`` for every residual block ``i``, has finitely many inputs: the timesteps the solver visits.
Stored in float the table is exact, deletes all time layers from the graph and leaves nothing
temporal to quantize ("cache-based maintenance", Huang et al. 2025, Temporal Feature Matters).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from solvers.denoiser import Network
from solvers.inputs.errors import UncalibratedError
from solvers.interop.networks.clock import scale_by_row, scale_of

# of networks that embed no time: their layer that passes on the noise's level, which is shown to
# them as a plane of the image
LEVEL = "noise_level"
MOST_LISTED = 12  # times that a message lists


class TemporalTable(nn.Module):
    """Rows ``[e_1(t) | e_2(t) | ...]`` for a list of timesteps.

    Args:
        timesteps: strictly descending or ascending values, none twice.
        features: ``(len(timesteps), sum of widths)`` float32.
        slices: module name of each projection -> ``(start, stop)`` columns.
    """

    features: Tensor

    def __init__(
        self, timesteps: Sequence[float], features: Tensor, slices: dict[str, tuple[int, int]]
    ):
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
    """Position of ``t`` in ``timesteps`` (to 1e-3: half a float32 ulp of any real grid is far below
    that).

    Raises:
        UncalibratedError: there is none; the message lists what there is.
    """
    if holds(timesteps, [t]):
        return min(range(len(timesteps)), key=lambda k: abs(timesteps[k] - t))
    known = ", ".join(f"{s:g}" for s in timesteps)
    if len(timesteps) > MOST_LISTED:
        known = f"{len(timesteps)} times from {min(timesteps):g} to {max(timesteps):g}"
    raise UncalibratedError(
        f"timestep {t:g} is not in the temporal table, which holds {known}: run the solver on that"
        " grid, or calibrate for the grid you want"
    )


def holds(timesteps: Sequence[float], times: Sequence[float]) -> bool:
    """Whether :func:`row_of` finds each of ``times`` in ``timesteps``."""
    return all(any(abs(own - t) <= 1e-3 for own in timesteps) for t in times)


class _Slice(nn.Module):
    """Stands where ``time_emb_proj`` stood: picks this block's columns from the row."""

    def __init__(self, start: int, stop: int):
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, rows: Tensor) -> Tensor:
        return rows[:, self.start : self.stop]


@dataclass(frozen=True)
class TemporalBlock:
    """The temporal information block: every layer whose output depends on the timestep alone.

    ``h = mlp_1(act(mlp_0(embed(t))))``, ``e_i = projection_i(out_act(h))``.

    Args:
        embed: ``t (B,)`` to the sinusoid ``(B, C)``.
        mlp: the two linear layers of the time embedding.
        act, out_act: what stands between them, and before each projection.
        projections: per residual block, by module name.
    """

    embed: Callable[[Tensor], Tensor]
    mlp: tuple[nn.Linear, nn.Linear]
    act: Callable[[Tensor], Tensor]
    out_act: Callable[[Tensor], Tensor]
    projections: dict[str, nn.Linear]

    @property
    def layers(self) -> tuple[nn.Linear, ...]:
        """All linear layers, in the order they are computed."""
        return (*self.mlp, *self.projections.values())

    def features(
        self, sinusoid: Tensor, layer: Callable[[int, Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """``[e_i (B, C_i)]``; ``layer(k, x)`` computes the k-th of :attr:`layers` in its own way
        (quantized, say).
        """
        layer = layer or (lambda k, x: self.layers[k](x))
        h = self.out_act(layer(1, self.act(layer(0, sinusoid))))
        return [layer(2 + k, h) for k in range(len(self.projections))]


def temporal_block(unet: Network) -> TemporalBlock:
    """Find the temporal information block of a diffusers ``UNet2DModel`` or
    ``UNet2DConditionModel``.

    Raises:
        ValueError: there is none, or its output depends on more than the timestep; the message says
            on what.
    """
    name, config = type(unet).__name__, getattr(unet, "config", {})
    if not hasattr(unet, "time_embedding") or not hasattr(unet, "time_proj"):
        raise ValueError(
            f"{name} has no time_proj/time_embedding; the temporal table is made for diffusers'"
            " UNet2DModel and UNet2DConditionModel (use temporal='float')"
        )
    if getattr(unet, "class_embedding", None) is not None:
        raise ValueError(
            "the network is class-conditional: its embedding depends on more than the timestep; use"
            " temporal='float'"
        )
    added = config.get("addition_embed_type")
    if added is not None:
        what = {
            "text_time": "pooled text and image sizes",
            "text": "pooled text",
            "image": "image embeddings",
        }.get(added, added)
        raise ValueError(
            f"the network adds {what} to its time embedding (addition_embed_type={added!r}); use"
            " temporal='float'"
        )
    if config.get("time_cond_proj_dim") is not None:
        raise ValueError(
            "the network's time embedding takes a condition (time_cond_proj_dim: a guidance scale);"
            " use temporal='float'"
        )
    mlp = unet.time_embedding
    if getattr(mlp, "post_act", None) is not None or not isinstance(
        getattr(mlp, "linear_2", None), nn.Linear
    ):
        raise ValueError(
            f"{name}'s time embedding is not two linear layers with an activation between; use"
            " temporal='float'"
        )
    normed = [
        n for n, m in unet.named_modules() if type(m).__name__ in ("AdaGroupNorm", "SpatialNorm")
    ]
    if normed:
        raise ValueError(
            f"{name} feeds the time embedding to a norm ({normed[0]}), which a table can't replace;"
            " use temporal='float'"
        )
    found = {
        n: m
        for n, m in unet.named_modules()
        if n.endswith("time_emb_proj") and isinstance(m, nn.Linear)
    }
    if not found:
        raise ValueError(f"{name} has no time_emb_proj layers; use temporal='float'")
    shared = getattr(unet, "time_embed_act", None)
    acts = [_activation(unet, n) for n in found]
    if len({type(act) for act in acts}) > 1 or (shared is not None and acts[0] is not None):
        raise ValueError(
            f"{name}'s residual blocks apply different activations to the time embedding; use"
            " temporal='float'"
        )
    out_act = acts[0] or shared or nn.Identity()
    return TemporalBlock(
        unet.time_proj, (mlp.linear_1, mlp.linear_2), mlp.act or nn.Identity(), out_act, found
    )


def has_table(network: Network) -> bool:
    """Whether :func:`temporal_table` can be made of a network."""
    if hasattr(network, LEVEL):
        return True
    try:
        temporal_block(network)
    except ValueError:
        return False
    return True


@torch.no_grad()
def temporal_table(unet: Network, timesteps: Sequence[float]) -> TemporalTable:
    """Compute ``e_i(t)`` with the network's own float layers.

    Raises:
        ValueError: no timesteps, a timestep given twice, or a network that can't be tabulated.
    """
    timesteps = [float(t) for t in timesteps]
    if not timesteps or len(set(timesteps)) != len(timesteps):
        raise ValueError(
            f"a temporal table needs at least one timestep and none twice; got {timesteps}"
        )
    if hasattr(unet, LEVEL):
        return TemporalTable(timesteps, torch.tensor(timesteps)[:, None], {LEVEL: (0, 1)})
    block = temporal_block(unet)
    # one at a time, as at inference: batched matrix products round differently
    rows = [torch.cat(block.features(sinusoids(block, [t])), dim=1) for t in timesteps]
    return TemporalTable(timesteps, torch.cat(rows).float(), slices(block))


def sinusoids(block: TemporalBlock, timesteps: Sequence[float]) -> Tensor:
    """The block's input for each timestep, ``(len(timesteps), C)``."""
    weight = block.mlp[0].weight
    return block.embed(torch.tensor(list(timesteps), dtype=torch.float32, device=weight.device)).to(
        weight.dtype
    )


def slices(block: TemporalBlock) -> dict[str, tuple[int, int]]:
    """Columns of each projection in a table's rows."""
    found, start = {}, 0
    for name, layer in block.projections.items():
        found[name] = (start, start + layer.out_features)
        start += layer.out_features
    return found


def step_network(unet: Network, table: TemporalTable) -> nn.Module:
    """A copy of ``unet`` that is called with a table index in place of the timestep:
    ``network(input, index (B,))``.

    The weights outside the temporal path are shared with ``unet``.
    """
    shared = {id(p): p for p in [*unet.parameters(), *unet.buffers()]}
    step = copy.deepcopy(unet, memo=shared)
    if hasattr(step, LEVEL):
        setattr(step, LEVEL, table)
        return step
    for name, (start, stop) in table.slices.items():
        block = step.get_submodule(name.rpartition(".")[0])
        block.time_emb_proj = _Slice(start, stop)
        block.skip_time_act = True  # the rows already hold the projected activation
    if (scale := scale_of(unet)) is not None:
        scale_by_row(step, torch.tensor([scale(t) for t in table.timesteps]))
    step.time_proj, step.time_embedding = table, _Pass()
    if getattr(step, "time_embed_act", None) is not None:
        step.time_embed_act = None
    return step


class _Pass(nn.Module):
    """Stands where the time embedding stood: the rows are its result.

    ``UNet2DConditionModel`` hands it a condition too, which is None here.
    """

    def forward(self, rows: Tensor, condition: Tensor | None = None) -> Tensor:
        return rows


def _activation(unet: Network, name: str) -> nn.Module | None:
    """What the residual block of this projection applies to the time embedding before it; None for
    nothing.
    """
    block = unet.get_submodule(name.rpartition(".")[0])
    return None if getattr(block, "skip_time_act", False) else block.nonlinearity
