"""EDA-DM's calibration set: timesteps get samples by how dense and how diverse their features are
(TDAC).

With ``f_k`` the features of solver step k (k = 0 the noisiest), the input of the U-Net's middle
attention:

    density    d_k = #{j != k: mean (f_k - f_j)^2 <= r}
    diversity  v_k = sum_{j != k} sum_{samples, pixels} 1 - cos(f_k, f_j)
    weight     w = minmax(d) + lambda minmax(v),   n_k ~ N w_k / sum w

where the cosine is taken along the channels.

Liu et al. 2024, Enhanced Distribution Alignment for Post-Training Quantization of Diffusion Models,
sec. 4.1. Both sums need inner products of features only: ``|f_j - f_k|^2 = |f_j|^2 + |f_k|^2 - 2
<f_j, f_k>``. They are added up sample by sample, so that memory holds the features of one sample at
all steps, not of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.calibration.selection import check_budgets
from quant.calibration.trajectory import CalibrationSet


@dataclass(frozen=True)
class Distances:
    """Pairwise distances of the steps' features: ``mse (T, T)`` and ``cosine (T, T)`` (sums of ``1
    - cos``), float64, zero diagonals.
    """

    mse: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class EDADM:
    """Temporal distribution-aware calibration.

    Args:
        weight: lambda, of the diversity (released scripts: 1.2 CIFAR and ImageNet, 1.0 bedrooms and
            churches, 5.0 COCO).
        quantile: the density radius r as this quantile of the pairwise distances.
        radius: r in units of the features squared, in place of the quantile. The released values
            (3.0; 0.3 for bedrooms, churches, COCO) belong to those networks.
        batch: samples per timestep whose features are compared.

    Raises:
        ValueError: a value out of range.
    """

    weight: float = 1.2
    quantile: float = 0.5
    radius: float | None = None
    batch: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be a finite number >= 0; got {self.weight}")
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1); got {self.quantile}")
        if self.radius is not None and not 0 < self.radius < float("inf"):
            raise ValueError(f"radius must be positive; got {self.radius}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1; got {self.batch}")

    # -- the method, on features -------------------------------------------------------------------

    def density(self, distances: Distances) -> Tensor:
        """``(T,)`` int64: the number of other steps within the radius."""
        mse, steps = distances.mse, len(distances.mse)
        others = mse[~torch.eye(steps, dtype=torch.bool)]
        if self.radius is None and not len(others):
            return torch.zeros(steps, dtype=torch.int64)
        radius = torch.quantile(others, self.quantile) if self.radius is None else self.radius
        return (mse <= radius).sum(1) - (mse.diagonal() <= radius).long()

    def weights(self, distances: Distances) -> Tensor:
        """``w (T,)``, float64. All ones where density and diversity tell no step from another."""
        w = _minmax(self.density(distances).double()) + self.weight * _minmax(
            distances.cosine.sum(1)
        )
        return w if w.sum() > 0 else torch.ones_like(w)

    def step_budgets(self, distances: Distances, count: int) -> Tensor:
        """``n_k (T,)`` int64, sum ``count``: rounded shares, a surplus to the largest, a deficit
        from the cleanest steps up.
        """
        return share(self.weights(distances), count)

    # -- on recorded data --------------------------------------------------------------------------

    def budgets(self, pool: CalibrationSet, network: nn.Module, count: int) -> dict[float, int]:
        """How many of ``count`` samples each timestep of the pool gets.

        Raises:
            ValueError: a timestep with fewer than ``batch`` samples, or samples of different sizes.
        """
        counts = self.step_budgets(measure_distances(features(network, pool, self.batch)), count)
        return dict(zip(pool.grid, counts.tolist(), strict=True))

    def select(
        self, pool: CalibrationSet, network: nn.Module, count: int, seed: int = 0
    ) -> CalibrationSet:
        """Choose ``count`` samples: timesteps in shuffled order, sample j from row ``j mod n`` of
        its timestep's n.

        Where a row was taken before, the next free one is used (the released code takes it twice).

        Raises:
            ValueError: a timestep's share is larger than what was recorded of it, or features that
                can't be compared.
        """
        pool.check(network)
        budgets = self.budgets(pool, network, count)
        check_budgets(pool, budgets)
        rows, chosen = pool.positions(), []
        free = {t: list(range(len(positions))) for t, positions in rows.items()}
        for j, k in enumerate(
            shuffled(
                torch.tensor(list(budgets.values())), torch.Generator().manual_seed(seed)
            ).tolist()
        ):
            t = pool.grid[k]
            wanted = j % len(rows[t])
            row = min(free[t], key=lambda r: (r - wanted) % len(rows[t]))
            free[t].remove(row)
            chosen.append(rows[t][row])
        radius = f"quantile={self.quantile:g}" if self.radius is None else f"radius={self.radius:g}"
        return pool.subset(
            chosen,
            f"eda-dm(weight={self.weight:g}, {radius}, batch={self.batch}, n={count}, seed={seed})",
        )


def share(weights: Tensor, count: int) -> Tensor:
    """Whole numbers ``(T,)`` in proportion to ``weights``, with the sum ``count``."""
    counts = (weights / weights.sum() * count).round().long()
    largest = torch.sort(counts, descending=True, stable=True).indices
    for surplus in range(count - int(counts.sum())):
        counts[largest[surplus % len(counts)]] += 1
    k = len(counts) - 1
    while counts.sum() > count:  # several rounds if need be; the released code walks once
        counts[k] -= int(counts[k] > 0)
        k = (k - 1) % len(counts)
    return counts


def shuffled(budgets: Tensor, generator: torch.Generator) -> Tensor:
    """Step k ``budgets[k]`` times, in random order, ``(sum budgets,)``."""
    order = torch.arange(len(budgets)).repeat_interleave(budgets)
    return order[torch.randperm(len(order), generator=generator)]


def measure_distances(rows: Iterable[Tensor]) -> Distances:
    """Distances of the steps from ``(T, C, H, W)`` features of one sample after the other (C, H, W
    may differ between samples).

    Raises:
        ValueError: no features, or values that are not finite.
    """
    products = cosine = None
    size = 0
    for row in rows:
        if not torch.isfinite(row).all():
            raise ValueError("the features hold NaN or infinite values")
        row = row.double()
        unit = row / row.norm(dim=1, keepdim=True).clamp(min=1e-6)
        gram, similar = (v.flatten(1) @ v.flatten(1).T for v in (row, unit))
        far = row[0].numel() / row.shape[1] - similar
        products = gram if products is None else products + gram
        cosine = far if cosine is None else cosine + far
        size += row[0].numel()
    if products is None or cosine is None:
        raise ValueError("no features to compare")
    squares = products.diagonal()
    mse = ((squares[:, None] + squares[None] - 2 * products) / size).clamp(min=0)
    return Distances(mse.fill_diagonal_(0), cosine.fill_diagonal_(0))


@torch.no_grad()
def features(network: nn.Module, pool: CalibrationSet, batch: int) -> Iterator[Tensor]:
    """For each of the first ``batch`` samples of all timesteps: the middle features ``(T, C, h,
    w)``, noisiest first.

    They are the input of the middle attention, or of the middle block's second residual block where
    the network has no attention there: the same place. ``collect`` records the same restorations at
    each timestep, so that samples correspond.

    Raises:
        ValueError: a network without a middle block, fewer samples than ``batch``, or samples of
            different sizes.
    """
    place = middle(network)
    device = next(network.parameters()).device
    positions = pool.positions()
    few = {t: len(p) for t, p in positions.items() if len(p) < batch}
    if few:
        t, there = min(few.items(), key=lambda item: item[1])
        raise ValueError(
            f"comparing features needs {batch} samples of each timestep, but {there} were recorded"
            f" of {t:g}; record more"
        )
    seen: list[Tensor] = []
    handle = place.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for b in range(batch):
            row = []
            for t in pool.grid:
                x = pool.samples[positions[t][b]]
                seen.clear()
                network(x[None].to(device), torch.full((1,), t, device=device))
                row.append(seen[0][0].float().cpu())
            if len({r.shape for r in row}) > 1:
                raise ValueError(
                    "the recorded samples have different sizes, so that their features can't be"
                    " compared; record with a crop"
                )
            yield torch.stack(row)
    finally:
        handle.remove()


def middle(network: nn.Module) -> nn.Module:
    """The module of a diffusers U-Net whose input stands for the image: the middle attention, else
    what follows its place.

    Raises:
        ValueError: the network has no middle block.
    """
    block = getattr(network, "mid_block", None)
    if not isinstance(block, nn.Module):
        raise ValueError(
            f"{type(network).__name__} has no mid_block to take features from; EDA-DM is made for"
            " diffusers' U-Nets"
        )
    attentions = [m for m in getattr(block, "attentions", None) or [] if isinstance(m, nn.Module)]
    resnets = list(getattr(block, "resnets", None) or [])
    return attentions[0] if attentions else resnets[1] if len(resnets) > 1 else block


def _minmax(values: Tensor) -> Tensor:
    """To [0, 1]; zeros where all are equal (undefined in the released code)."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else torch.zeros_like(values)
