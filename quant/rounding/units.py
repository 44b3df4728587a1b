"""The parts of a network that are rounded together, and what calibration samples show each of
them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quant.calibration.trajectory import CalibrationSet

BLOCKS = (
    *("ResnetBlock2D", "ResnetBlockCondNorm2D", "Attention", "BasicTransformerBlock"),
    *("ResidualBlock", "LinearAttention", "FullAttention", "PlainBlock"),
)
Others = tuple[list[Any], dict[str, Any]]  # positional and keyword arguments after the input
Call = tuple[list[Any], dict[str, Any]]
# bytes of cached unit inputs; fewer samples are used where a unit's are larger
MEMORY = 256 * 2**20


def find_units(
    network: nn.Module, names: list[str], x: Tensor, t: Tensor, *, blocks: bool = True
) -> list[tuple[str, list[str]]]:
    """``(unit, its quantized layers)``, both in the order in which one call of the network reaches
    them.

    Args:
        network: the float network.
        names: quantized layers.
        x, t: one calibration input.
        blocks: False: every layer is a unit of its own.

    Raises:
        ValueError: a layer is not reached by the call.
    """
    order: list[str] = []
    handles = [
        network.get_submodule(n).register_forward_pre_hook(lambda *_, n=n: order.append(n))
        for n in names
    ]
    try:
        with torch.no_grad():
            network(x, t)
    finally:
        for handle in handles:
            handle.remove()
    order = list(dict.fromkeys(order))
    if missed := [n for n in names if n not in order]:
        raise ValueError(
            f"a call of the network never reaches {', '.join(missed)}; add them to skip"
        )
    known = [n for n, m in network.named_modules() if blocks and type(m).__name__ in BLOCKS]
    known = [n for n in known if not any(n.startswith(f"{other}.") for other in known)]
    units: dict[str, list[str]] = {}
    for name in order:
        units.setdefault(next((u for u in known if name.startswith(f"{u}.")), name), []).append(
            name
        )
    return list(units.items())


class UnitInputs:
    """A unit's inputs in the float and in the partly quantized network, one entry per sample, as
    many as fit into ``MEMORY`` (but one).

    Attributes:
        bytes: that are held.
    """

    def __init__(
        self,
        network: nn.Module,
        quantized: nn.Module,
        name: str,
        samples: list[tuple[Tensor, Tensor]],
    ):
        self.float: list[Tensor] = []
        self.quantized: list[Tensor] = []
        # what a unit is told besides in both networks, which differs where time is quantized
        self.others: list[tuple[Others, Others]] = []
        self.bytes = 0
        for x, t in _chunks(samples):
            (a, *rest), keywords = _inputs_of(network, name, x, t)
            (b, *rest_q), keywords_q = _inputs_of(quantized, name, x, t)
            for k in range(len(a)):  # guided networks ask their layers twice for each sample
                told = _rows(rest, keywords, k, len(a))
                told_q = _rows(rest_q, keywords_q, k, len(a))
                if _equal(told, told_q):  # kept once
                    told_q = told
                row = a[k : k + 1].clone(), b[k : k + 1].clone()
                size = sum(
                    v.numel() * v.element_size()
                    for v in (*row, *_values(told), *(() if told_q is told else _values(told_q)))
                    if isinstance(v, Tensor)
                )
                if self.float and self.bytes + size > MEMORY:
                    break
                self.float.append(row[0])
                self.quantized.append(row[1])
                self.others.append((told, told_q))
                self.bytes += size
            else:
                continue
            break
        groups: dict[tuple, list[int]] = {}
        for k, a in enumerate(self.float):
            groups.setdefault(tuple(a.shape[1:]), []).append(k)
        self.groups = list(groups.values())

    def batch(self, indices: list[int]) -> tuple[Call, Call]:
        """What the unit is called with in the float and in the quantized network: positional and
        keyword arguments.
        """
        calls = []
        for side, inputs in enumerate((self.float, self.quantized)):
            rest, keywords = self.others[indices[0]][side]
            told = [self.others[k][side] for k in indices]
            calls.append(
                (
                    [
                        torch.cat([inputs[k] for k in indices]),
                        *(_stack([row[0][j] for row in told]) for j in range(len(rest))),
                    ],
                    {key: _stack([row[1][key] for row in told]) for key in keywords},
                )
            )
        return calls[0], calls[1]

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """``count`` samples of one size (all of them where there are fewer), without repetition."""
        weights = torch.tensor([float(len(g)) for g in self.groups])
        group = self.groups[int(torch.multinomial(weights, 1, generator=generator))]
        return [group[k] for k in torch.randperm(len(group), generator=generator)[:count].tolist()]


def _chunks(samples: list[tuple[Tensor, Tensor]], size: int = 8):
    """Neighbouring samples of one size, stacked."""
    start = 0
    for k in range(1, len(samples) + 1):
        if k == len(samples) or k - start == size or samples[k][0].shape != samples[start][0].shape:
            xs, ts = zip(*samples[start:k], strict=True)
            yield torch.cat(xs), torch.cat(ts)
            start = k


def _stack(values: list[Any]) -> Any:
    first = values[0]
    return torch.cat(values) if isinstance(first, Tensor) and first.ndim else first


def _rows(rest: list[Any], keywords: dict[str, Any], k: int, count: int) -> Others:
    return (
        [_row(v, k, count) for v in rest],
        {key: _row(v, k, count) for key, v in keywords.items()},
    )


def _values(others: Others) -> list[Any]:
    return [*others[0], *others[1].values()]


def _equal(a: Others, b: Others) -> bool:
    pairs = zip(_values(a), _values(b), strict=True)
    return all(torch.equal(u, v) if isinstance(u, Tensor) else u is v for u, v in pairs)


def _row(value, k: int, count: int):
    return (
        value[k : k + 1].clone()
        if isinstance(value, Tensor) and value.ndim and len(value) == count
        else value
    )


class _Reached(Exception):
    pass


@torch.no_grad()
def _inputs_of(network: nn.Module, name: str, x: Tensor, t: Tensor):
    seen = []

    def stop(_, args, kwargs):
        seen.append(
            ([a.detach().clone() if isinstance(a, Tensor) else a for a in args], dict(kwargs))
        )
        raise _Reached

    handle = network.get_submodule(name).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        network(x, t)
    except _Reached:
        pass
    finally:
        handle.remove()
    args, kwargs = seen[0]
    if not args:  # called by keywords alone: the first tensor is the input
        key = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
        args = [kwargs.pop(key)]
    return args, kwargs


def spread_samples(
    calibration: CalibrationSet, count: int, crop: int | None, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """``(x (1, C, h, w), t (1,))``: at most ``count`` samples, as evenly over the timesteps as they
    come, cropped at random places.

    A crop starts at a multiple of 8 where it can, so that the network's strides see whole cells.
    """
    generator = torch.Generator().manual_seed(seed)
    queues: dict[float, list[int]] = {}
    for k in torch.randperm(len(calibration), generator=generator).tolist():
        queues.setdefault(calibration.timesteps[k], []).append(k)
    order = sorted(queues, reverse=True)
    turns = max(len(q) for q in queues.values())
    chosen = [queues[t][turn] for turn in range(turns) for t in order if turn < len(queues[t])]
    if count < len(order):  # fewer samples than timesteps: every n-th timestep
        chosen = [chosen[int(k * len(order) / count)] for k in range(count)]
    samples = []
    for k in chosen[:count]:
        x = calibration.samples[k]
        for axis in (-2, -1):
            room = x.shape[axis] - (crop or x.shape[axis])
            if crop is not None and room > 0:
                start = 8 * int(torch.randint(room // 8 + 1, (1,), generator=generator))
                x = x.narrow(axis, start, crop)
        samples.append(
            (x[None].contiguous(), torch.tensor([calibration.timesteps[k]], dtype=torch.float32))
        )
    return samples


def stacked(samples: list[tuple[Tensor, Tensor]], size: int) -> list[tuple[Tensor, Tensor]]:
    """Samples of equal shape in batches of at most ``size``."""
    groups: dict[tuple, list] = {}
    for x, t in samples:
        groups.setdefault(tuple(x.shape), []).append((x, t))
    batches = []
    for members in groups.values():
        for k in range(0, len(members), size):
            xs, ts = zip(*members[k : k + size], strict=True)
            batches.append((torch.cat(xs), torch.cat(ts)))
    return batches
