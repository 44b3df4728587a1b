"""TIAR: round the weights of the whole temporal information block together, for the features it
yields (TFMQ).

    min over roundings  sum_i mean_t |e_i^q(t) - e_i(t)|^2 + lambda_r sum (1 - |2 h - 1|^b)
    W^q = delta (clamp(floor(W/delta) + h + z, 0, 2^bits - 1) - z)
    h   = clip(1.2 sigmoid(a) - 0.1, 0, 1)

Block reconstruction fits each projection inside its residual block, to what the images there look
like, and confuses the features of different timesteps; here the MLP and all projections are one
unit with its own outputs as the target, and are left alone afterwards. Huang et al. 2024, TFMQ-DM,
sec. 4.2; rounding by AdaRound (Nagel et al. 2020). Released settings: 20 000 iterations, batch 32,
Adam 1e-3, lambda_r 0.01, b 20 to 2 after a fifth of the iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.temporal.table import TemporalBlock, TemporalTable, sinusoids, temporal_block
from quant.temporal.tfmq import (
    QuantizedBlock,
    float_features,
    quantize_block,
    quantize_cache,
    table_of,
    tiar_loss,
    weight_grids,
)

ZETA, GAMMA = 1.1, -0.1  # h reaches 0 and 1, where its gradient ends
WARM_UP, START, END = 0.2, 20.0, 2.0


@dataclass(frozen=True)
class TIAR:
    """Settings of the reconstruction.

    Args:
        iterations: Adam steps.
        lr: of Adam.
        lambda_round: weight of the term that drives h to 0 or 1; 0 leaves it out (roundings are
            then cut at one half).
        batch: timesteps per step, drawn anew each time; all where there are not more.

    Raises:
        ValueError: a value out of range.
    """

    iterations: int = 2000
    lr: float = 1e-2
    lambda_round: float = 0.01
    batch: int = 32

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1:
            raise ValueError(
                f"iterations and batch must be at least 1; got {self.iterations} and {self.batch}"
            )
        if not 0 < self.lr < float("inf") or not 0 <= self.lambda_round < float("inf"):
            raise ValueError(
                f"lr must be positive and lambda_round at least 0; got {self.lr} and"
                f" {self.lambda_round}"
            )

    def reconstruct(
        self,
        block: TemporalBlock,
        sinusoid: Tensor,
        weight_bits: int,
        act_bits: int | None = None,
        *,
        seed: int = 0,
    ):
        """Round the block's weights for its features at ``sinusoid (T, C)``.

        Activations are in float while the weights are rounded, and quantized on the result. Every
        tenth of the iterations the hard rounding is tried; the best one is returned, nearest
        rounding included, so the result is never worse than that.

        Returns:
            ``(quantized, weights)``: the :class:`quant.temporal.tfmq.QuantizedBlock` and the
                quantized weights ``[(C_out, C_in)]`` per layer.
        """
        grids = weight_grids(block, weight_bits)
        scaled = [
            layer.weight.detach() / grid.delta
            for layer, grid in zip(block.layers, grids, strict=True)
        ]
        with torch.no_grad():
            reference = block.features(sinusoid)
        logits = [
            (-torch.log((ZETA - GAMMA) / ((w - w.floor()) - GAMMA) - 1)).requires_grad_()
            for w in scaled
        ]

        def rounded(h: list[Tensor]) -> list[Tensor]:
            codes = [
                (w.floor() + up + g.zero_point).clamp(0, 2**weight_bits - 1)
                for w, up, g in zip(scaled, h, grids, strict=True)
            ]
            return [g.values(c) for g, c in zip(grids, codes, strict=True)]

        def quantized(weights: list[Tensor]) -> QuantizedBlock:
            return quantize_block(
                block, sinusoid, weight_bits, act_bits, weights=weights, grids=grids
            )

        def features(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
            return block.features(x, lambda k, v: F.linear(v, weights[k], block.layers[k].bias))

        best = [
            grid(layer.weight.detach()) for grid, layer in zip(grids, block.layers, strict=True)
        ]
        least = float(tiar_loss(quantized(best).features, reference))
        optimizer = torch.optim.Adam(logits, lr=self.lr)
        generator = torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            for step in range(1, self.iterations + 1):
                chosen: slice | Tensor = slice(None)
                if len(sinusoid) > self.batch:
                    chosen = torch.randperm(len(sinusoid), generator=generator)[: self.batch].to(
                        sinusoid.device
                    )
                h = [soft(a) for a in logits]
                loss = tiar_loss(
                    features(sinusoid[chosen], rounded(h)), [e[chosen] for e in reference]
                )
                if self.lambda_round and step >= WARM_UP * self.iterations:
                    b = temperature(step, self.iterations)
                    loss = loss + self.lambda_round * sum(
                        (1 - (2 * v - 1).abs().pow(b)).sum() for v in h
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % max(1, self.iterations // 10) == 0 or step == self.iterations:
                    with torch.no_grad():
                        weights = rounded([(soft(a) >= 0.5).float() for a in logits])
                    found = float(tiar_loss(quantized(weights).features, reference))
                    if found < least:
                        best, least = weights, found
        return quantized(best), best


def soft(logits: Tensor) -> Tensor:
    """AdaRound's h in [0, 1]."""
    return ((ZETA - GAMMA) * torch.sigmoid(logits) + GAMMA).clamp(0, 1)


def temperature(step: int, iterations: int) -> float:
    """The exponent b: 20 during the warm-up, then linearly down to 2."""
    past = (step - WARM_UP * iterations) / ((1 - WARM_UP) * iterations)
    return END + (START - END) * min(1.0, max(0.0, 1 - past))


def quantized_table(
    unet,
    timesteps: Sequence[float],
    method: str,
    weight_bits: int,
    *,
    act_bits: int = 8,
    seed: int = 0,
) -> TemporalTable:
    """The temporal table of a network whose temporal block is quantized.

    Args:
        method: ``cache`` (exact features stored in ``act_bits``), ``tiar`` (weights rounded
            together) or ``fsc`` (nearest rounding, activation scales per layer and timestep).

    Raises:
        ValueError: the network has no temporal block of its own.
    """
    block = temporal_block(unet)
    if method == "cache":
        features = quantize_cache(float_features(block, timesteps), act_bits).features
    elif method == "tiar":
        features = (
            TIAR()
            .reconstruct(block, sinusoids(block, timesteps), weight_bits, act_bits, seed=seed)[0]
            .features
        )
    else:
        features = quantize_block(
            block, sinusoids(block, timesteps), weight_bits, act_bits, finite_set=True
        ).features
    return table_of(block, timesteps, [e.detach() for e in features])
