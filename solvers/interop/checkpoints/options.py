"""What is not in a checkpoint's weights, and must be said or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from solvers.inputs.errors import ModelError

# what may be said of a checkpoint: name, type, help
OPTIONS: dict[str, tuple[type, str]] = {
    "num_head_channels": (int, "Of guided-diffusion's attention: channels of a head."),
    "num_heads": (int, "Of guided- and improved-diffusion's attention, in place of those."),
    "use_new_attention_order": (bool, "guided-diffusion's later order of query, key and value."),
    "schedule": (str, "Noise schedule that it was trained under: linear or cosine."),
    "train_steps": (int, "Diffusion steps that it was trained with."),
    "sum_scale": (float, "Of RDDM: the noise's variance at the end."),
    "objective": (str, "What an RDDM or Resfusion network estimates, in the authors' words."),
    "groups": (int, "Of RDDM's and Resfusion's norms."),
    "class_label": (int, "The class that a class-conditional network is asked for."),
    "prompt": (str, "What the picture shows, for latent networks with text."),
    "negative_prompt": (str, "What it doesn't show, for guidance."),
    "guidance": (float, "How far the answer goes from that to the prompt."),
    "vae": (str, "Folder of a latent network's autoencoder, where it is not in the model's."),
    "decoder": (str, "Bundle of its exported decoder."),
}
Value = TypeVar("Value")


class Said:
    """Options that were given, those that were assumed in the place of others, and none left over.

    Args:
        path: of the checkpoint, which errors name.
        given: by name; None counts as not given.

    Raises:
        ModelError: an unknown name.
    """

    def __init__(self, path: Path, given: Mapping[str, Any]):
        self.path = path
        self.given = {name: value for name, value in given.items() if value is not None}
        self.assumed: dict[str, Any] = {}
        self._used: set[str] = set()
        for name, value in self.given.items():
            kind = OPTIONS[name][0] if name in OPTIONS else None
            if kind is None:
                raise ModelError(
                    f"{path}: option {name!r} is unknown for checkpoints; known:"
                    f" {', '.join(OPTIONS)}"
                )
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (isinstance(value, kind) or (kind is float and number)) or (
                kind is int and isinstance(value, bool)
            ):
                raise ModelError(
                    f"{path}: {name} must be a value of {kind.__name__}; got {value!r}"
                )

    def has(self, name: str) -> bool:
        """Whether it was given."""
        return name in self.given

    def get(self, name: str, default: Value) -> Value:
        """What was given, or the default, which is then told."""
        self._used.add(name)
        if name in self.given:
            value: Value = self.given[name]
            return value
        self.assumed[name] = default
        return default

    def one_of(self, name: str, default: str, known: tuple[str, ...]) -> str:
        """As :meth:`get`, of these words.

        Raises:
            ModelError: another one.
        """
        if (value := self.get(name, default)) not in known:
            raise ModelError(
                f"{self.path}: {flag(name)} {value!r} is unknown; known: {', '.join(known)}"
            )
        return value

    def count(self, name: str, default: int, most: int = 100_000) -> int:
        """As :meth:`get`, a number of things.

        Raises:
            ModelError: below 1, or above ``most``.
        """
        if not 1 <= (value := self.get(name, default)) <= most:
            raise ModelError(f"{self.path}: {flag(name)} must be from 1 to {most}; got {value}")
        return value

    def check_all_used(self, what: str) -> None:
        """Refuse options that this network has no use for.

        Raises:
            ModelError: there are some.
        """
        if left := [flag(name) for name in self.given if name not in self._used]:
            has = "has" if len(left) == 1 else "have"
            raise ModelError(
                f"{self.path}: {', '.join(left)} {has} no effect on {what}; leave it out"
            )


def flag(name: str) -> str:
    """An option as the command line calls it."""
    return "--class" if name == "class_label" else f"--{name.replace('_', '-')}"
