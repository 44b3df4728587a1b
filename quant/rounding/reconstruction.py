"""Learned rounding by reconstruction: AdaRound layer by layer, or EDA-DM's fine-grained block
reconstruction (FBR).

Liu et al. 2024, arXiv 2401.04585, section 3.3. Units are residual blocks and attention
(transformer) blocks, every other quantized layer alone, in the order the network runs them. Each is
trained to give the float unit's output from the input that the already quantized part of the
network produces:

    L = ||y_q - y||^2 + xi sum_{inner layers} ||z_q - z||^2 + lambda sum(1 - |2h - 1|^b)

with ``||.||^2`` summed over channels, averaged over batch and space. Float elements replace
quantized ones at random in the unit's input and at every activation quantizer (QDrop). Trained are
the rounding logits and, if wanted, the activations' step sizes (LSQ gradient). After training the
unit is hardened; the best of the snapshots taken on the way, the starting point among them, is
kept, so a unit never ends worse than nearest rounding on the samples it was trained on.

The release never applies the regulariser (``lambda_round=0`` mimics it); with it off, soft and hard
weights differ at the end.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from quant.recipe import Reconstruction
from quant.rounding.learned import RoundingLoss, initial_logits, rounded, squared_error
from quant.rounding.units import UnitInputs, find_units
from solvers.files import replace_file

SNAPSHOTS = 5


class LearnedLayer(nn.Module):
    """A Conv2d or Linear with soft-rounded weights and a learnable activation step."""

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, weight_step: Tensor, grid: tuple[float, int], bits: int
    ):
        super().__init__()
        self.layer, self.top = layer, 2 ** (bits - 1) - 1
        self.weight_step = weight_step.reshape(-1, *[1] * (layer.weight.ndim - 1))
        self.logits = nn.Parameter(initial_logits(layer.weight.detach(), self.weight_step))
        step, self.zero = grid
        self.step = nn.Parameter(torch.tensor(float(step)))
        self.hard, self.drop = True, 0.0
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = rounded(
            self.layer.weight, self.weight_step, self.logits, -self.top, self.top, hard=self.hard
        )
        quantized = fake_quantize(x, self.step, self.zero)
        if self.drop:
            keep = torch.rand(x.shape, generator=self.generator) < self.drop
            quantized = torch.where(keep, x, quantized)
        if isinstance(self.layer, nn.Linear):
            return F.linear(quantized, weight, self.layer.bias)
        return self.layer._conv_forward(quantized, weight, self.layer.bias)

    @torch.no_grad()
    def codes(self) -> Tensor:
        weight = rounded(
            self.layer.weight, self.weight_step, self.logits, -self.top, self.top, hard=True
        )
        return torch.round(weight / self.weight_step).to(torch.int8)


def fake_quantize(x: Tensor, step: Tensor, zero: int) -> Tensor:
    """8-bit activations with a zero point; straight through the rounding, LSQ's scaled gradient for
    the step (Esser et al. 2020, eq. 3), which scales both ends.
    """
    scale = 1 / (127 * x.numel()) ** 0.5
    step = step.clamp(min=1e-8)
    step = step * scale + (step - step * scale).detach()
    q = (x / step).clamp(-zero, 255 - zero)
    return (q + (q.round() - q).detach()) * step


@dataclass(frozen=True)
class Plan:
    """Iterations, rates and so on; ``bits`` of the weights; EDA-DM's ``blocks``, or single layers
    (AdaRound).
    """

    settings: Reconstruction
    bits: int
    blocks: bool = True


@dataclass(frozen=True)
class Kept:
    """A folder with one file per finished unit, and the ``fingerprint`` of everything that results
    depend on: those of another one are refused.
    """

    folder: Path
    fingerprint: str


def reconstruct(
    network: nn.Module,
    quantized: nn.Module,
    layers: dict[str, tuple[Tensor, tuple[float, int]]],
    write: Callable[[str, Tensor, float], None],
    samples: list[tuple[Tensor, Tensor]],
    plan: Plan,
    *,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, tuple[float, float]]:
    """Learn the rounding of every quantized layer.

    Args:
        network: float, ``network(x (B, C, h, w), t (B,))``.
        quantized: the same modules with quantizers; its layers are updated unit by unit through
            ``write``.
        layers: name -> weight steps ``(C_out,)``, and step and zero point of the input.
        write: ``write(name, codes, input_step)`` puts a result into ``quantized``.
        samples: ``(x (1, C, h, w), t (1,))``.
        kept: finished units of an interrupted run, which goes on where it stopped, to the same
            bytes. None keeps none.
        progress: called with finished units and their total.

    Returns:
        unit -> loss before and after (mean squared error summed over channels, on the training
            samples, hard rounding).

    Raises:
        ValueError: state of another run, or damaged state.
    """
    settings, bits, blocks = plan.settings, plan.bits, plan.blocks
    # AdaRound as published: the layer's own output, nothing dropped, activations as calibrated
    if not blocks:
        settings = replace(settings, layer_weight=0.0, drop=0.0, lr_step=0.0)
    units = find_units(network, list(layers), *samples[0], blocks=blocks)
    losses = {}
    for k, (name, members) in enumerate(units):
        path = None if kept is None else kept.folder / f"unit-{k:04d}.safetensors"
        fingerprint = "" if kept is None else kept.fingerprint
        found = None if path is None else _load(path, fingerprint, name, members)
        if found is None:
            cache = UnitInputs(network, quantized, name, samples)
            unit = network.get_submodule(name)
            twin = quantized.get_submodule(name)
            soft, learned = _learnable(unit, twin, name, members, layers, bits)
            found = _train(unit, name, soft, learned, cache, settings, settings.seed + k)
            if path is not None:
                _save(path, fingerprint, name, *found)
        results, losses[name] = found
        for member, (codes, step) in results.items():
            write(member, codes, step)
        progress(k + 1, len(units))
    return losses


def _train(float_unit, name, unit, learned, cache: UnitInputs, s: Reconstruction, seed: int):
    generator = torch.Generator().manual_seed(seed)
    for layer in learned.values():
        layer.generator = generator
    parameters = [{"params": [m.logits for m in learned.values()], "lr": s.lr_weight}]
    if s.lr_step:
        parameters.append({"params": [m.step for m in learned.values()], "lr": s.lr_step})
    optimizer = torch.optim.Adam(parameters)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.iterations)
    regulariser = RoundingLoss(s.iterations, s.lambda_round)
    for layer in learned.values():
        layer.step.requires_grad_(bool(s.lr_step))
    inner = list(learned)[:-1] if s.layer_weight else []
    start = best = _hard_loss(float_unit, unit, learned, cache, s.batch_size)
    kept = _result(learned)
    for count in range(1, s.iterations + 1):
        (told, words), (told_q, words_q) = cache.batch(cache.draw(s.batch_size, generator))
        if s.drop:
            x, x_q = told[0], told_q[0]
            told_q[0] = torch.where(torch.rand(x.shape, generator=generator) < s.drop, x, x_q)
        with torch.no_grad(), _watch({n: _member(float_unit, name, n) for n in inner}) as targets:
            target = _tensor(float_unit(*told, **words))
        for layer in learned.values():
            layer.hard, layer.drop = False, s.drop
        with torch.enable_grad(), _watch({n: learned[n] for n in inner}) as outputs:
            loss = squared_error(*_channels(_tensor(unit(*told_q, **words_q)), target))
            for n in inner:
                loss = loss + s.layer_weight * squared_error(*_channels(outputs[n], targets[n]))
            loss = loss + regulariser((m.logits for m in learned.values()), count)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        if (
            count == s.iterations
            or (count * SNAPSHOTS) // s.iterations > ((count - 1) * SNAPSHOTS) // s.iterations
        ):
            current = _hard_loss(float_unit, unit, learned, cache, s.batch_size)
            if current < best:
                best, kept = current, _result(learned)
    return kept, (start, best)


def _learnable(float_unit, quantized_unit, name, members, layers, bits):
    unit = copy.deepcopy(float_unit).eval().requires_grad_(False)
    if hasattr(
        unit, "time_emb_proj"
    ):  # it is told what the quantized one is: time, or a table's row
        unit.time_emb_proj = quantized_unit.time_emb_proj
        unit.skip_time_act = quantized_unit.skip_time_act
    learned = {}
    for member in members:
        step, grid = layers[member]
        layer = LearnedLayer(_member(unit, name, member), step, grid, bits)
        learned[member] = layer
        if member == name:
            return layer, learned
        parent, _, leaf = member.removeprefix(f"{name}.").rpartition(".")
        unit.get_submodule(parent)._modules[leaf] = layer
    return unit, learned


@torch.no_grad()
def _hard_loss(float_unit, unit, learned, cache: UnitInputs, size: int) -> float:
    """Mean loss over all cached samples as the quantized network will meet them."""
    for layer in learned.values():
        layer.hard, layer.drop = True, 0.0
    total, count = 0.0, 0
    for group in cache.groups:
        for k in range(0, len(group), size):
            indices = group[k : k + size]
            (told, words), (told_q, words_q) = cache.batch(indices)
            pair = _channels(_tensor(unit(*told_q, **words_q)), _tensor(float_unit(*told, **words)))
            total += float(squared_error(*pair)) * len(indices)
            count += len(indices)
    return total / count


def _result(learned: dict[str, LearnedLayer]) -> dict[str, tuple[Tensor, float]]:
    return {
        name: (layer.codes(), float(layer.step.detach().clamp(min=1e-8)))
        for name, layer in learned.items()
    }


class _watch:
    """Collects the outputs of some modules while the block runs."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.modules = modules
        self.outputs: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        self.handles = [
            m.register_forward_hook(lambda _m, _i, out, n=n: self.outputs.__setitem__(n, out))
            for n, m in self.modules.items()
        ]
        return self.outputs

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def _member(unit: nn.Module, name: str, member: str) -> nn.Module:
    return unit if member == name else unit.get_submodule(member.removeprefix(f"{name}."))


def _tensor(out) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _channels(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tokens ``(B, N, C)`` keep their channels last: put them on axis 1."""
    return tuple(t.movedim(-1, 1) if t.ndim == 3 else t for t in tensors)


# -- state -----------------------------------------------------------------------------------------


def fingerprint_of(*parts) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _save(
    path: Path, fingerprint: str, name: str, results: dict, losses: tuple[float, float]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{member}/codes": codes for member, (codes, _) in results.items()}
    header = {
        "fingerprint": fingerprint,
        "unit": name,
        "steps": {m: step for m, (_, step) in results.items()},
        "losses": losses,
    }
    replace_file(
        path, lambda part: save_file(tensors, part, metadata={"reconstruction": json.dumps(header)})
    )


def _load(path: Path, fingerprint: str, name: str, members: list[str]):
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["reconstruction"])
            if header["fingerprint"] != fingerprint or header["unit"] != name:
                raise ValueError("it belongs to another model, calibration set or recipe")
            results = {
                m: (file.get_tensor(f"{m}/codes"), float(header["steps"][m])) for m in members
            }
        return results, tuple(float(v) for v in header["losses"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} can't be resumed from ({error}); give another state folder, or empty this one"
        ) from error
