"""What to quantize and how, as one small value with a JSON form."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

RANGES = ("percentile", "max", "mse")
TEMPORAL = ("table", "float")
FLOAT_LAYERS = ("conv_in", "conv_out", "*conv_shortcut")


@dataclass(frozen=True)
class QuantRecipe:
    """8-bit activations and 8- or 4-bit weights for a U-Net's convolutions and linear layers.

    The temporal path (``time_embedding``, ``time_emb_proj``) always stays in float: it depends on t alone.

    Args:
        weight_bits: 8 or 4, symmetric, per output channel, codes in ``[-(2^(b-1)-1), 2^(b-1)-1]``. 4-bit codes are stored in int8.
        act_bits: 8: symmetric, per tensor, at the layers' inputs.
        range: how a range is read from the calibration histogram: ``percentile`` of |x|, ``max``, or least squared error (``mse``).
        percentile: in (50, 100], for ``range="percentile"``.
        skip: names of layers kept in float; ``*`` matches any characters. By default the first and last convolution and the
            1x1 convolutions around residual blocks: they hold most of the 8-bit error (a shortcut sees the un-normalised
            residual stream, whose outliers set the scale) and little of the work.
        temporal: exported graphs hold a ``table`` of the calibrated timesteps' embeddings, or the ``float`` layers.

    Raises:
        ValueError: a value that isn't listed here.
    """

    weight_bits: int = 8
    act_bits: int = 8
    range: str = "percentile"
    percentile: float = 99.99
    skip: tuple[str, ...] = FLOAT_LAYERS
    temporal: str = "table"

    def __post_init__(self):
        if self.weight_bits not in (4, 8):
            raise ValueError(f"weight_bits must be 8 or 4; got {self.weight_bits!r}")
        if self.act_bits != 8:
            raise ValueError(f"act_bits must be 8 (the runtimes' integer kernels take no other); got {self.act_bits!r}")
        if self.range not in RANGES:
            raise ValueError(f"range {self.range!r} is unknown; known: {', '.join(RANGES)}")
        if self.temporal not in TEMPORAL:
            raise ValueError(f"temporal {self.temporal!r} is unknown; known: {', '.join(TEMPORAL)}")
        if isinstance(self.percentile, bool) or not isinstance(self.percentile, (int, float)) or not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must lie in (50, 100]; got {self.percentile!r}")
        if isinstance(self.skip, str) or not all(isinstance(name, str) for name in self.skip):
            raise ValueError(f"skip must be a list of layer names; got {self.skip!r}")
        object.__setattr__(self, "skip", tuple(self.skip))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"skip": list(self.skip)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, content: Any) -> QuantRecipe:
        """Raises ValueError where ``content`` is no mapping, names an unknown key or holds a value that isn't accepted."""
        known = [f.name for f in fields(cls)]
        if not isinstance(content, dict):
            raise ValueError(f"a quantization recipe is a JSON object with keys {', '.join(known)}; got {type(content).__name__}")
        unknown = sorted(set(content) - set(known))
        if unknown:
            raise ValueError(f"a quantization recipe has no key {', '.join(unknown)}; known: {', '.join(known)}")
        if "skip" in content and not isinstance(content["skip"], (list, tuple)):
            raise ValueError(f"skip must be a list of layer names; got {content['skip']!r}")
        return cls(**content)

    @classmethod
    def from_json(cls, text: str) -> QuantRecipe:
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"the quantization recipe is not JSON: {error}") from error
