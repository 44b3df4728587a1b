"""Quantized temporal features (TFMQ): what to do where the temporal path must not stay in float.

Everything here works on the temporal information block
(:func:`quant.temporal.table.temporal_block`), whose inputs are finitely many: the solver's
timesteps.

* finite-set calibration (FSC): activations get one scale per layer and timestep instead of one per
  layer;
* cache maintenance: the features themselves are quantized, once per (timestep, block), and the
  layers deleted;
* selection: per (timestep, block), whichever of the two disturbs the feature less.

Huang et al. 2024, TFMQ-DM, sec. 4; Huang et al. 2025, Temporal Feature Matters, sec. 4. Joint
rounding of the block's weights (TIAR) is in :mod:`quant.temporal.tiar`. A float table
(:func:`quant.temporal.table.temporal_table`) has no error at all and is what recipes use; these
methods serve targets where its memory counts (4-bit entries), or that must keep the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.temporal.table import TemporalBlock, TemporalTable, sinusoids, slices

METHODS = ("minmax", "mse")
SHRINKS, POWER = 80, 2.4
CHUNK = 1 << 22  # values compared at once


@dataclass(frozen=True)
class FeatureGrid:
    """``x ~ delta (code - zero_point)``, codes in ``[0, 2^bits - 1]``.

    Args:
        delta: step, positive; of a shape that broadcasts with x: ``()`` or ``(rows, 1)``.
        zero_point: whole numbers, like ``delta``. Beyond the codes' range where a one-sided range
            does not hold zero (method ``mse``).
        bits: 2 to 8.
    """

    delta: Tensor
    zero_point: Tensor
    bits: int

    def codes(self, x: Tensor) -> Tensor:
        return ((x / self.delta).round() + self.zero_point).clamp(0, 2**self.bits - 1)

    def values(self, codes: Tensor) -> Tensor:
        return self.delta * (codes - self.zero_point)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid."""
        return self.values(self.codes(x))


def fit_grid(x: Tensor, bits: int, method: str = "minmax", *, per_row: bool = False) -> FeatureGrid:
    """The asymmetric grid for values ``x``: one, or one per row of ``(rows, n)``.

    ``minmax`` holds all values and zero. ``mse`` shrinks the range [min, max] by 0 to 79 % and
    takes the least mean ``|error|^2.4`` (TFMQ's weight quantizer).

    Raises:
        ValueError: bits outside 2 to 8, an unknown method, or values that are empty or not finite.
    """
    if bits not in range(2, 9):
        raise ValueError(f"bits must be 2 to 8; got {bits!r}")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(METHODS)}")
    if not x.numel() or not torch.isfinite(x).all():
        raise ValueError("there is nothing to fit a grid to: the values are empty, NaN or infinite")
    rows = x.detach().flatten(1) if per_row else x.detach().reshape(1, -1)
    top = 2**bits - 1
    # float64 as the released code's numbers
    low, high = (rows.amin(1, keepdim=True).double(), rows.amax(1, keepdim=True).double())
    if method == "minmax":
        low, high = low.clamp(max=0), high.clamp(min=0)
    shrink = torch.tensor(
        [1.0 - 0.01 * k for k in range(SHRINKS if method == "mse" else 1)], dtype=torch.float64
    )[:, None, None]
    parts = []
    for some, lo, hi in zip(
        *(v.split(max(1, CHUNK // (len(shrink) * rows.shape[1]))) for v in (rows, low, high)),
        strict=True,
    ):
        lo, hi = lo * shrink.to(lo), hi * shrink.to(hi)  # (shrinks, rows, 1)
        delta = ((hi - lo) / top).float().clamp(min=1e-8)
        grid = FeatureGrid(delta, (-lo.float() / delta).round(), bits)
        best = (grid(some) - some).abs().pow(POWER).mean(2, keepdim=True).argmin(0, keepdim=True)
        parts.append(torch.cat([v.gather(0, best)[0] for v in (delta, grid.zero_point)], dim=1))
    delta, zero_point = torch.cat(parts).unbind(1)
    shape = (len(rows), *[1] * (x.ndim - 1)) if per_row else ()
    return FeatureGrid(delta.reshape(shape), zero_point.reshape(shape), bits)


@dataclass(frozen=True)
class QuantizedBlock:
    """A temporal information block computed with quantized weights and activations.

    Attributes:
        features: ``[e_i (T, C_i)]``.
        weights: the grid of each layer's weights, per output channel (TFMQ's ``mse``).
        activations: the grid of each layer's input; ``delta`` is ``(T, 1)`` for FSC. Empty for
            float activations.
    """

    features: list[Tensor]
    weights: list[FeatureGrid]
    activations: list[FeatureGrid]


def weight_grids(block: TemporalBlock, bits: int) -> list[FeatureGrid]:
    """A grid per output channel of each layer."""
    return [fit_grid(layer.weight, bits, "mse", per_row=True) for layer in block.layers]


@torch.no_grad()
def quantize_block(
    block: TemporalBlock,
    sinusoid: Tensor,
    weight_bits: int,
    act_bits: int | None,
    *,
    finite_set: bool = False,
    act_method: str = "mse",
    weights: Sequence[Tensor] | None = None,
    grids: list[FeatureGrid] | None = None,
) -> QuantizedBlock:
    """Quantize the block on the inputs it will ever see, ``sinusoid (T, C)``.

    Args:
        weight_bits, act_bits: 2 to 8; ``act_bits=None`` leaves activations in float.
        act_method: how activation grids are fitted, as in :func:`fit_grid`. (The paper finds
            ``minmax`` sufficient; the released default is ``mse``.)
        finite_set: activation scales per layer *and timestep* (FSC). Runtimes with constant scales
            can't run it; the released code loads another set of scales into the model before each
            step.
        grids: of the weights, where they were fitted before.
        weights: already quantized weights in place of nearest rounding, one per layer (from
            :func:`quant.temporal.tiar.reconstruct`).
    """
    grids = grids or weight_grids(block, weight_bits)
    rounded = (
        [grid(layer.weight) for grid, layer in zip(grids, block.layers, strict=True)]
        if weights is None
        else weights
    )
    fitted: list[list[FeatureGrid]] = [[] for _ in block.layers]

    def compute(k: int, x: Tensor) -> Tensor:
        if act_bits is not None:
            fitted[k].append(fit_grid(x, act_bits, act_method))
            x = fitted[k][-1](x)
        return F.linear(x, rounded[k], block.layers[k].bias)

    # one timestep at a time for FSC, as the network will be called: batched matrix products round
    # differently
    parts = [
        block.features(rows, compute) for rows in (sinusoid.split(1) if finite_set else [sinusoid])
    ]
    features = [torch.cat(rows) for rows in zip(*parts, strict=True)]
    return QuantizedBlock(
        features, grids, [_stacked(g) if finite_set else g[0] for g in fitted if g]
    )


def _stacked(grids: list[FeatureGrid]) -> FeatureGrid:
    delta, zero_point = (
        torch.stack([getattr(g, name) for g in grids])[:, None] for name in ("delta", "zero_point")
    )
    return FeatureGrid(delta, zero_point, grids[0].bits)


def tiar_loss(features: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """``sum_i mean_t sum_c (e_i^q - e_i)^2``: TIAR's reconstruction loss."""
    return torch.stack(
        [(q - e).square().sum(1).mean() for q, e in zip(features, reference, strict=True)]
    ).sum()


@dataclass(frozen=True)
class QuantizedCache:
    """Stored features: integer codes with one grid per (timestep, block).

    Attributes:
        codes: uint8 ``(T, C_i)`` per block.
        grids: per block, ``delta`` and ``zero_point`` ``(T, 1)``.
    """

    codes: list[Tensor]
    grids: list[FeatureGrid]

    @property
    def features(self) -> list[Tensor]:
        return [
            grid.values(codes.float()) for grid, codes in zip(self.grids, self.codes, strict=True)
        ]

    @property
    def bits(self) -> int:
        """Size of the codes and of a float32 scale and a zero point of code size each, in bits."""
        return sum(
            g.bits * codes.numel() + (32 + g.bits) * len(codes)
            for g, codes in zip(self.grids, self.codes, strict=True)
        )


@torch.no_grad()
def quantize_cache(
    features: Sequence[Tensor], bits: int = 8, method: str = "minmax"
) -> QuantizedCache:
    """Quantize float features ``[e_i (T, C_i)]``, each row by itself ("cache-based
    maintenance").
    """
    grids = [fit_grid(e, bits, method, per_row=True) for e in features]
    return QuantizedCache(
        [grid.codes(e).to(torch.uint8) for grid, e in zip(grids, features, strict=True)], grids
    )


@dataclass(frozen=True)
class Selection:
    """Features chosen per (timestep, block): ``from_cache (T, blocks)`` says which, ``features``
    are the chosen ones.
    """

    from_cache: Tensor
    features: list[Tensor]


def select_features(
    reference: Sequence[Tensor], block: Sequence[Tensor], cache: Sequence[Tensor]
) -> Selection:
    """Per (timestep, block) the less disturbed of two quantized features, ``|e_block - e|`` against
    ``|e_cache - e|`` (ties: the cache).

    With 8-bit or float cache entries the cache nearly always wins; the choice matters where they
    are as coarse as the block's output.

    Args:
        reference, block, cache: ``[(T, C_i)]``: float features, those of the quantized block, those
            of the cache.
    """
    wins, chosen = [], []
    for e, b, c in zip(reference, block, cache, strict=True):
        cached = (c - e).norm(dim=1) <= (b - e).norm(dim=1)
        wins.append(cached)
        chosen.append(torch.where(cached[:, None], c, b))
    return Selection(torch.stack(wins, 1), chosen)


def table_of(
    block: TemporalBlock, timesteps: Sequence[float], features: Sequence[Tensor]
) -> TemporalTable:
    """A table with these features in place of the exact ones, for
    :func:`quant.temporal.table.step_network`.

    Raises:
        ValueError: not one row per timestep, or not one feature per projection.
    """
    widths = [layer.out_features for layer in block.projections.values()]
    if [tuple(e.shape) for e in features] != [(len(timesteps), width) for width in widths]:
        raise ValueError(
            f"the table needs {len(widths)} features of {len(timesteps)} rows; got shapes"
            f" {[tuple(e.shape) for e in features]}"
        )
    return TemporalTable(timesteps, torch.cat(list(features), dim=1).float(), slices(block))


@torch.no_grad()
def float_features(block: TemporalBlock, timesteps: Sequence[float]) -> list[Tensor]:
    """The exact features ``[e_i (T, C_i)]``."""
    return block.features(sinusoids(block, timesteps))
