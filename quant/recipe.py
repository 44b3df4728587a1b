"""What to quantize and how, as one small value with a JSON form."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from solvers.inputs.errors import InputError
from solvers.inputs.strict_json import parse_object

RANGES = ("percentile", "max", "mean", "min", "mse", "p2.4")
ROUNDING = ("nearest", "gptq", "adaround", "fbr")
SELECTION = ("uniform", "ptq4dm", "eda-dm")
TEMPORAL = ("table", "cache", "tiar", "fsc", "float")
OUTPUTS = ("int8", "float")
EQUALIZE = ("channels", "auto")
FLOAT_LAYERS = ("conv_in", "conv_out", "*conv_shortcut")
# patterns that need not match: not every network has such layers
OPTIONAL_LAYERS = (*FLOAT_LAYERS, "*downsamplers*")


@dataclass(frozen=True)
class Reconstruction:
    """How learned rounding (``adaround``, ``fbr``) and GPTQ use the calibration set; see
    :mod:`quant.rounding.reconstruction`.

    Args:
        iterations: Adam steps per unit (the papers take 5000 to 20 000; a few hundred reach most of
            it).
        batch_size: samples per step.
        samples: calibration samples used, spread over the timesteps.
        crop: side of the network input they are cropped to (the network sees a smaller picture);
            None: whole samples.
        lr_weight: Adam's rate for the rounding logits, annealed to 0 by a cosine.
        lr_step: the same for the activation step sizes; 0 leaves them as calibrated.
        lambda_round: weight of the rounding regulariser; 0 as in EDA-DM's release, which trains
            soft and then hardens at 0.
        layer_weight: weight of the inner layers' terms, EDA-DM's xi.
        drop: QDrop's probability: of a float element in the unit's input, and of a float element at
            every activation quantizer.
        seed: of batches and drops.
    """

    iterations: int = 300
    batch_size: int = 16
    samples: int = 64
    crop: int | None = 32
    lr_weight: float = 1e-2
    lr_step: float = 0.0
    lambda_round: float = 0.01
    layer_weight: float = 0.8
    drop: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("iterations", 1, 10**6),
            ("batch_size", 1, 4096),
            ("samples", 1, 10**6),
            ("crop", 1, 2**16),
            ("seed", 0, 2**62),
        ):
            value = getattr(self, name)
            if name == "crop" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InputError(
                    f"reconstruction.{name} must be a whole number in [{low}, {high}]; got"
                    f" {value!r}"
                )
        for name, most in (
            ("lr_weight", 10),
            ("lr_step", 10),
            ("lambda_round", 1e6),
            ("layer_weight", 1e6),
            ("drop", 1),
        ):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= most
            ):
                raise InputError(f"reconstruction.{name} must lie in [0, {most:g}]; got {value!r}")


@dataclass(frozen=True)
class QuantRecipe:
    """8-bit activations and 8- or 4-bit weights for a U-Net's convolutions and linear layers.

    The temporal path (``time_embedding``, ``time_emb_proj``) is not quantized: it depends on t
    alone.

    Args:
        weight_bits: 8 or 4, symmetric, per output channel, codes in ``[-(2^(b-1)-1), 2^(b-1)-1]``.
            4-bit codes are stored in int8: no runtime multiplies 4-bit weights with 8-bit
            activations in a convolution, so they buy file size, not speed.
        act_bits: 8: per tensor, at the layers' inputs; with a zero point, but symmetric on
            TensorRT.
        range: how a range is read from the tables of amax and |x| per layer and timestep
            (:meth:`quant.ranges.measure.Ranges.interval`): ``percentile``, ``max``, ``mean`` or
            ``min`` over the timesteps' maxima, that of least |error|^2.4 (``p2.4``, PTQ4DM and
            EDA-DM), or 1.15 times that of least squared error, each timestep's relative to its own
            power (``mse``).
        percentile: in (50, 100], for ``range="percentile"``.
        skip: names of layers kept in float; ``*`` matches any characters. By default the first and
            last convolution and the 1x1 convolutions around residual blocks: they hold most of the
            8-bit error (a shortcut sees the un-normalised residual stream, whose outliers set the
            scale) and little of the work.
        float_macs: share of the multiplications, in [0, 1), that may stay in float as well:
            :func:`quant.quantize.quantize` chooses the layers by their effect on the output and
            puts their names into ``skip``.
        temporal: exported graphs hold a ``table`` of the calibrated timesteps' embeddings, exact,
            or the ``float`` layers. ``cache``, ``tiar`` and ``fsc`` fill the table as TFMQ's
            quantized features would be: stored in 8 bits, or computed with jointly rounded weights,
            or with nearest rounding and activation scales per timestep
            (:mod:`quant.temporal.tfmq`).
        rounding: ``nearest``, ``gptq``, ``adaround`` (layer by layer) or ``fbr`` (EDA-DM's blocks).
        split_shortcut: quantize the two halves of a skip concatenation separately (Q-Diffusion): a
            convolution each, then a sum.
        equalize: SmoothQuant's alpha in [0, 1]: move the spread between input channels into the
            weights; None: don't; ``channels``: as much of it as each layer's expected error asks
            for (:mod:`quant.ranges.channels`); ``auto``: that, unless None errs less (8 bits: by a
            fifth) on a part of the calibration inputs that the ranges then don't see.
        selection: how the calibration samples are chosen when they are recorded.
        outputs: what convolutions give on ONNX Runtime's CPU kernels: ``int8`` is the fastest,
            ``float`` rounds nothing there. Other targets don't look at it.
        reconstruction: settings of gptq, adaround and fbr.

    Raises:
        ValueError: a value that isn't listed here.
    """

    weight_bits: int = 8
    act_bits: int = 8
    range: str = "mse"
    percentile: float = 99.99
    skip: tuple[str, ...] = FLOAT_LAYERS
    float_macs: float = 0.0
    temporal: str = "table"
    rounding: str = "nearest"
    split_shortcut: bool = False
    equalize: float | str | None = None
    selection: str = "uniform"
    outputs: str = "int8"
    reconstruction: Reconstruction = field(default_factory=Reconstruction)

    def __post_init__(self) -> None:
        if self.weight_bits not in (4, 8) or isinstance(self.weight_bits, bool):
            raise InputError(f"weight_bits must be 8 or 4; got {self.weight_bits!r}")
        if self.act_bits != 8:
            raise InputError(
                "act_bits must be 8 (the runtimes' integer kernels take no other); got"
                f" {self.act_bits!r}"
            )
        for name, known in (
            ("range", RANGES),
            ("temporal", TEMPORAL),
            ("rounding", ROUNDING),
            ("selection", SELECTION),
            ("outputs", OUTPUTS),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} {getattr(self, name)!r} is unknown; known: {', '.join(known)}"
                )
        if (
            isinstance(self.percentile, bool)
            or not isinstance(self.percentile, (int, float))
            or not 50 < self.percentile <= 100
        ):
            raise InputError(f"percentile must lie in (50, 100]; got {self.percentile!r}")
        if (
            isinstance(self.float_macs, bool)
            or not isinstance(self.float_macs, (int, float))
            or not 0 <= self.float_macs < 1
        ):
            raise InputError(
                f"float_macs is a share of the multiplications in [0, 1); got {self.float_macs!r}"
            )
        if isinstance(self.skip, str) or not all(isinstance(name, str) for name in self.skip):
            raise InputError(f"skip must be a list of layer names; got {self.skip!r}")
        if not isinstance(self.split_shortcut, bool):
            raise InputError(f"split_shortcut must be true or false; got {self.split_shortcut!r}")
        alpha = self.equalize
        if alpha not in (None, *EQUALIZE) and (
            isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1
        ):
            raise InputError(
                f"equalize must be an alpha in [0, 1], channels, auto or null; got {alpha!r}"
            )
        if not isinstance(self.reconstruction, Reconstruction):
            raise InputError(
                f"reconstruction must be a Reconstruction; got {type(self.reconstruction).__name__}"
            )
        object.__setattr__(self, "skip", tuple(self.skip))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"skip": list(self.skip)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def preset(cls, name: str) -> QuantRecipe:
        """A named recipe; raises ValueError, listing the names, for an unknown one."""
        if name not in PRESETS:
            raise InputError(f"preset {name!r} is unknown; known: {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_dict(cls, content: Any) -> QuantRecipe:
        """Missing keys take their defaults, so recipes written by older versions stay readable.

        Raises:
            ValueError: ``content`` is no mapping, names an unknown key or holds a value that isn't
                accepted.
        """
        _check_keys(cls, content, "a quantization recipe")
        if "skip" in content and not isinstance(content["skip"], (list, tuple)):
            raise InputError(f"skip must be a list of layer names; got {content['skip']!r}")
        if "reconstruction" in content and not isinstance(
            content["reconstruction"], Reconstruction
        ):
            _check_keys(Reconstruction, content["reconstruction"], "reconstruction")
            content = content | {"reconstruction": Reconstruction(**content["reconstruction"])}
        return cls(**content)

    @classmethod
    def from_json(cls, text: str) -> QuantRecipe:
        return cls.from_dict(parse_object(text, "the quantization recipe"))


def _check_keys(kind: type, content: Any, what: str) -> None:
    known = [f.name for f in fields(kind)]
    if not isinstance(content, dict):
        raise InputError(
            f"{what} is a JSON object with keys {', '.join(known)}; got {type(content).__name__}"
        )
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise InputError(
            f"{what} has no key {', '.join(map(str, unknown))}; known: {', '.join(known)}"
        )


# The papers' methods on this library's deployable grid (symmetric, activations at the layers'
# inputs, constant scales). Iterations are hundreds, not the papers' thousands: see
# docs/quantization-studies.md for what that costs.
_EDADM = QuantRecipe(
    range="p2.4",
    skip=("conv_in", "conv_out"),
    rounding="fbr",
    split_shortcut=True,
    selection="eda-dm",
)
# W8A8, the best of what runs at full speed and takes less than a minute for 4 M parameters
DEFAULT = QuantRecipe(equalize="auto")
PRESETS = {
    "ptq4dm-w8a8": QuantRecipe(range="p2.4", skip=(), selection="ptq4dm"),
    "eda-dm-w8a8": replace(_EDADM, reconstruction=Reconstruction(lr_weight=5e-2, lr_step=1e-3)),
    "eda-dm-w4a8": replace(
        _EDADM, weight_bits=4, reconstruction=Reconstruction(lr_weight=5e-1, lr_step=5e-4)
    ),
    "tfmq-w8a8": QuantRecipe(
        range="p2.4",
        skip=OPTIONAL_LAYERS,
        rounding="fbr",
        temporal="tiar",
        reconstruction=Reconstruction(lr_weight=1e-2, layer_weight=0.0, drop=0.0),
    ),
    "best-w8a8": replace(DEFAULT, outputs="float", rounding="gptq"),
    # equalisation spreads the weights, which 4 bits hardly hold: kept only where that errs less
    "best-w4a8": QuantRecipe(4, range="p2.4", rounding="gptq", equalize="auto"),
}
