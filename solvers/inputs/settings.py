"""What a network expects of its input and means by its output, beside process and prediction
type.
"""

from __future__ import annotations

import math
from typing import Any, TypedDict

from solvers.inputs.padding import PADDINGS
from solvers.processes.process import Process


class Settings(TypedDict, total=False):
    """The options of :class:`solvers.Denoiser`, and the content of ``denoiser.json``.

    Keys:
        value_range: lowest and highest value of the images the network was trained on; (-1, 1).
        fold: space-to-depth factor: the network sees ``fold^2`` times the channels at ``1/fold`` of
            the size; 1.
        multiple: height and width of the network's input must be multiples of this (1); states are
            edge-padded to fit.
        condition_channels: channels appended to the state (0: unconditional). Without a condition
            they are zeros.
        residual: the condition's first C channels are an image estimate (the lift) and the network
            predicts the diffusion of ``x0 - lift``; its image estimate is added to the lift
            (docs/design.md, "Lift, then diffuse"). Instead of the state it sees ``a' z`` below, the
            best linear estimate of the residual: at few steps a state is mostly noise, of which
            this leaves as much as is of use.
        data_std: standard deviation s of what is diffused (1). The network works on ``u = x0/s``,
            with the state ``z = x/sqrt(s^2 a^2 + b^2) = a' u + b' eps`` (``x - a lift`` for a
            residual), so that input and target have about unit size at every level (Karras et al.
            2022, table 1, for ``v_prediction``).
        unrolled_steps: number of trailing steps that the network was trained through as a whole,
            from zero noise, with a task's data consistency at each; None: it was not.
        shown: what the condition holds, in a word of :mod:`restoration.task`; None: unsaid, and
            then inferred from the channels.
        scaled: whether the network is shown the state divided by its standard deviation, as above,
            or (False) the state itself. None: the state itself where that is what such networks are
            functions of, ``D(x, sigma)`` and ``eps(x, sigma)`` on :class:`VE` with ``data_std`` 1,
            velocities on :class:`Flow`; divided everywhere else.
        padding: how states are continued to a ``multiple`` to the right and below: ``replicate``,
            ``reflect`` or ``zeros``, as the published code does it.
        least: height and width of the network's input that smaller ones are continued to (1).
    """

    value_range: tuple[float, float]
    fold: int
    multiple: int
    condition_channels: int
    residual: bool
    data_std: float
    unrolled_steps: int | None
    shown: str | None
    scaled: bool | None
    padding: str
    least: int


DEFAULTS = Settings(
    value_range=(-1.0, 1.0),
    fold=1,
    multiple=1,
    condition_channels=0,
    residual=False,
    data_std=1.0,
    unrolled_steps=None,
    shown=None,
    scaled=None,
    padding="replicate",
    least=1,
)


def completed(settings: Settings, process: Process, prediction_type: str) -> Settings:
    """All settings: those given, else the defaults; ``scaled`` decided.

    Raises:
        TypeError: a setting that there isn't.
        ValueError: settings that contradict each other, the process or the prediction type.
    """
    unknown = settings.keys() - DEFAULTS.keys()
    if unknown:
        raise TypeError(
            f"a denoiser has no {', '.join(sorted(unknown))}; its settings are"
            f" {', '.join(DEFAULTS)}"
        )
    if prediction_type not in process.prediction_types:
        raise ValueError(
            f"prediction_type {prediction_type!r} is unknown; known:"
            f" {', '.join(process.prediction_types)}"
        )
    s = DEFAULTS | settings
    low, high = s["value_range"]
    residual, data_std, scaled = s["residual"], s["data_std"], s["scaled"]
    if residual and process.holds_image:
        raise ValueError(
            "residual=True is for processes without the degraded image; this one diffuses the"
            " residual itself"
        )
    if not low < high:
        raise ValueError(f"value_range must be (low, high) with low < high; got {(low, high)}")
    if not 0 < data_std < math.inf:
        raise ValueError(f"data_std must be positive; got {data_std}")
    if min(s["fold"], s["multiple"], s["least"]) < 1:
        raise ValueError(
            f"fold, multiple and least must be at least 1; got {s['fold']}, {s['multiple']} and"
            f" {s['least']}"
        )
    if s["padding"] not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}; got {s['padding']!r}")
    if s["unrolled_steps"] is not None and s["unrolled_steps"] < 1:
        raise ValueError(f"unrolled_steps must be at least 1, or None; got {s['unrolled_steps']}")
    if scaled is None:
        raw = process.raw_types if data_std == 1 and not residual else ()
        scaled = prediction_type not in raw
    if not scaled and (residual or data_std != 1):
        raise ValueError(
            "a network that is shown the state itself (scaled=False) takes neither"
            f" residual=True nor a data_std; got residual={residual} and data_std={data_std}"
        )
    if scaled and prediction_type == "velocity":
        raise ValueError("a velocity network is shown the state itself: leave out scaled=True")
    s["value_range"], s["data_std"] = (float(low), float(high)), float(data_std)
    s["scaled"] = bool(scaled)
    return s


def stated(denoiser: Any) -> dict[str, Any]:
    """The settings of a :class:`solvers.Denoiser` as ``denoiser.json`` holds them: the common ones,
    and those that differ from what a description that is silent means.
    """
    found = {
        "value_range": list(denoiser.value_range),
        "fold": denoiser.fold,
        "condition_channels": denoiser.condition_channels,
        "residual": denoiser.residual,
        "data_std": denoiser.data_std,
    }
    said: dict[str, Any] = {"unrolled_steps": denoiser.unrolled_steps, "shown": denoiser.shown}
    if denoiser.process.raw_types or not denoiser.scaled:
        said["scaled"] = denoiser.scaled
    if denoiser.padding != DEFAULTS["padding"]:
        said["padding"] = denoiser.padding
    if denoiser.least > 1:
        said["least"] = denoiser.least
    return found | {name: value for name, value in said.items() if value is not None}
