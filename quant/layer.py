"""One quantized layer: its grids as numbers, and in the brevitas layer that simulates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ZERO, LEVELS, LEAST_STEP = 128, 255, 1e-12  # of 8-bit grids of activations
# Channels share a grid where that no more than doubles the power of rounding errors and takes no
# channel more than two bits.
ALIKE, LEAST_ALIKE = 2.0, 4.0

# of brevitas, which has no types
Layer = Any


@dataclass(frozen=True)
class QuantLayer:
    """One quantized layer: ``x ~ input_scale (q - input_zero)``, ``W_c ~ weight_scale_c codes_c``,
    output ``y_c ~ output_scale_c (q_c - output_zero_c)``, with activations' codes in [0, 255].

    Args:
        input_scale, input_zero: step and zero point of the input activations.
        symmetric_scale: their step on a grid without zero point, codes in [-128, 127], which is
            what TensorRT takes.
        output_scale, output_zero: float32 and uint8 ``(C_out,)``: the layer's output (bias
            included); only targets that quantize outputs use them.
        weight_scale: float32 ``(C_out,)``.
        codes: int8 ``(C_out, ...)``.
        bias: float32 ``(C_out,)`` or None.
    """

    input_scale: float
    input_zero: int
    symmetric_scale: float
    output_scale: np.ndarray
    output_zero: np.ndarray
    weight_scale: np.ndarray
    codes: np.ndarray
    bias: np.ndarray | None = None


@torch.no_grad()
def weight_scales(weight: Tensor, bits: int) -> Tensor:
    """Per output channel ``(C_out,)``: max |W| at 8 bits; at 4, the largest of 80 shrunken maxima
    with least squared error.
    """
    top = 2 ** (bits - 1) - 1
    flat = weight.detach().flatten(1)
    best = flat.abs().amax(1).clamp(min=1e-12) / top
    if bits == 8:
        return best
    full, least = best, torch.full_like(best, torch.inf)
    for shrink in torch.linspace(1.0, 0.2, 80).tolist():
        step = (full * shrink)[:, None]
        error = ((flat / step).round().clamp(-top, top) * step - flat).square().sum(1)
        best, least = torch.where(error < least, full * shrink, best), torch.minimum(error, least)
    return best


@torch.no_grad()
def least_scales(bias: Tensor | None, output_scale: Tensor, input_scale: float) -> Tensor:
    """Steps ``(C_out,)`` of weights that leave a bias room in 32 bits, where it is stored, with a
    shift of up to 128 steps of the output, in steps of ``weight_scale input_scale``: channels whose
    weights are almost zero need larger ones.
    """
    largest = ZERO * output_scale.float()
    if bias is not None:
        largest = largest + bias.detach().abs().float()
    return largest / (2.0**30 * input_scale)


@torch.no_grad()
def set_weight_scales(layer: Layer, scale: Tensor) -> None:
    """Write the fixed steps ``(C_out,)`` of weights into a brevitas layer made here; it stores the
    magnitude of the largest code.
    """
    value = layer.weight_quant.tensor_quant.scaling_impl.value
    top = float(2 ** (int(layer.weight_quant.bit_width()) - 1) - 1)
    value.copy_((scale.to(value) * top).reshape(value.shape))


@torch.no_grad()
def set_grid(quantizer: Any, scale: Tensor | float, zero: Tensor | int) -> None:
    """Write step and zero point into a brevitas quantizer of activations made here; it stores the
    range of all codes, and how far below 0 that begins.
    """
    parts = quantizer.fused_activation_quant_proxy.tensor_quant
    for kept, number in ((parts.scaling_impl.value, LEVELS), (parts.zero_point_impl.value, zero)):
        step, number = (torch.as_tensor(v).to(kept) for v in (scale, number))
        kept.copy_((step * number).reshape(kept.shape))


def grid_of(quantizer: Any) -> tuple[Tensor, Tensor]:
    """Step and zero point of a quantizer of activations."""
    parts = quantizer.fused_activation_quant_proxy.tensor_quant
    step = parts.scaling_impl.value.detach() / LEVELS
    return step, (parts.zero_point_impl.value.detach() / step).round()


def set_layer(layer: Layer, made: QuantLayer) -> None:
    """Write the grids of a layer."""
    set_grid(layer.input_quant, made.input_scale, made.input_zero)
    if has_output_scale(layer):
        grid = torch.from_numpy(made.output_scale), torch.from_numpy(made.output_zero)
        set_grid(layer.output_quant, *grid)
    set_weight_scales(layer, torch.from_numpy(made.weight_scale))


def grid_between(low: Any, high: Any) -> tuple[Any, Any]:
    """Step and zero point of the unsigned grid whose codes go from ``low <= 0`` to ``high >= 0``;
    numbers or arrays.
    """
    step = np.maximum((np.asarray(high) - low) / LEVELS, LEAST_STEP).astype(np.float32)
    return step, np.clip(np.rint(-np.asarray(low) / step), 0, LEVELS).astype(np.uint8)


def output_grids(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps and zero points ``(C_out,)`` of a layer's outputs by the ends ``(C_out, 2)`` of each
    channel: a grid for each channel, or one that all of them share.
    """
    low, high = ends.T
    steps, zeros = grid_between(low, high)
    step, zero = grid_between(low.min(), high.max())
    if step**2 <= ALIKE * np.square(steps).mean() and step <= LEAST_ALIKE * steps.min():
        steps, zeros = np.full_like(steps, step), np.full_like(zeros, zero)
    return steps, zeros


def has_output_scale(layer: Layer) -> bool:
    """Convolutions have steps for their outputs too."""
    return isinstance(layer, nn.Conv2d)


def output_grid(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Steps and zero points ``(C_out,)`` of a layer's outputs; 1 and 128 where it has none."""
    if not has_output_scale(layer):
        count = layer.out_features
        return np.ones(count, np.float32), np.full(count, ZERO, np.uint8)
    step, zero = (v.reshape(-1).cpu().numpy() for v in grid_of(layer.output_quant))
    return step, zero.astype(np.uint8)
