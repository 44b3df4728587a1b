"""A training recipe: TOML in, checked values out."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from restoration.paired.simulation import Haze
from solvers.inputs.errors import InputError, reading
from toolbox.training.sections import (
    Condition,
    Echoes,
    FastMRI,
    Loss,
    Network,
    Noise,
    Optimizer,
    Pairs,
    Reduction,
    Scenes,
    Schedule,
    Section,
    Simulation,
    Unrolled,
)

FORMER = {
    "inpainting": "inpaint",
    "denoising": "denoise",
    "dehazing": "dehaze",
    "hyperspectral": "hsi",
}


class TrainingRecipe(Section):
    """A training recipe; unknown or missing keys are refused with their names."""

    name: str
    task: Literal[
        "inpaint",
        "superresolve",
        "mri",
        "denoise",
        "denoise-colour",
        "dehaze",
        "paired",
        "hsi",
        "ultrasound",
    ]
    seed: int = 0
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    patch_size: int = Field(ge=8)
    network: Network
    process: Schedule = Schedule()
    loss: Loss = Loss()
    condition: Condition | None = None  # inpaint: which masks
    reduction: Reduction | None = None  # superresolve: what small pictures
    simulation: Simulation | None = None  # mri: which scans are made of images
    fastmri: FastMRI | None = None  # mri: how measured k-space is undersampled, instead
    haze: Haze | None = None  # dehaze: what haze
    pairs: Pairs | None = None  # paired: where the pairs lie
    scenes: Scenes | None = None  # hsi: which scenes, and what of them
    echoes: Echoes | None = None  # ultrasound: which pictures
    noise: Noise = Noise()  # denoise and ultrasound: which levels
    unrolled: Unrolled | None = None  # inpaint and mri
    optimizer: Optimizer = Optimizer()

    @field_validator("task", mode="before")
    @classmethod
    def _renamed(cls, task: object) -> object:
        """Recipes of version 0.1 name four tasks by other words."""
        return FORMER.get(task, task) if isinstance(task, str) else task

    @model_validator(mode="after")
    def _check_task(self):
        needed = {
            "inpaint": "condition",
            "superresolve": "reduction",
            "mri": "simulation",
            "dehaze": "haze",
            "paired": "pairs",
            "hsi": "scenes",
            "ultrasound": "echoes",
        }
        if self.fastmri is not None and self.task == "mri" and self.simulation is None:
            del needed["mri"]
        elif self.fastmri is not None:
            raise ValueError("section [fastmri] is for task 'mri', in place of [simulation]")
        for task, section in needed.items():
            if (self.task == task) != (getattr(self, section) is not None):
                raise ValueError(f"section [{section}] belongs to task {task!r}, and only to it")
        if self.process.kind != "vp" and self.task not in ("dehaze", "paired"):
            raise ValueError(
                f"process {self.process.kind!r} starts from a degraded picture; tasks dehaze and"
                " paired have one"
            )
        if self.loss.immiscible and self.task not in ("denoise", "ultrasound"):
            raise ValueError(
                "loss.immiscible is for tasks denoise and ultrasound: samplers of conditional"
                " networks draw noise that knows nothing of the picture"
            )
        if self.loss.norm == "log" and self.loss.min_snr is not None:
            raise ValueError("loss.norm 'log' weighs pictures by itself; leave out loss.min_snr")
        sample = self.process.kind == "vp" and self.process.prediction_type == "sample"
        if sample and self.loss.min_snr is None:
            raise ValueError(
                "prediction_type 'sample' of process 'vp' needs loss.min_snr, such as 5: its errors"
                " weigh without bound else"
            )
        if self.loss.min_snr is not None and not sample and self.task != "denoise":
            raise ValueError("loss.min_snr is for prediction_type 'sample' and for task 'denoise'")
        if self.condition is not None and "blocks" in self.condition.kinds and self.patch_size % 12:
            raise ValueError(
                "condition.kinds 'blocks' has blocks of 2, 3 and 4 pixels: patch_size must be a"
                f" multiple of 12; got {self.patch_size}"
            )
        if self.reduction is not None and self.patch_size % self.reduction.factor:
            raise ValueError(
                f"patch_size must be a multiple of reduction.factor, {self.reduction.factor}; got"
                f" {self.patch_size}"
            )
        if self.unrolled is not None and (
            self.task not in ("inpaint", "mri") or self.process.kind != "vp"
        ):
            raise ValueError("section [unrolled] is for tasks inpaint and mri under process 'vp'")
        if self.loss.norm == "log" and self.task not in ("denoise", "denoise-colour"):
            raise ValueError("loss.norm 'log' is for tasks denoise and denoise-colour")
        if self.noise.clipped and self.task != "denoise-colour":
            raise ValueError("noise.clipped is for task denoise-colour")
        if not self.noise.lowest < self.noise.highest:
            raise ValueError("noise.lowest must be below noise.highest")
        return self

    @property
    def value_range(self) -> tuple[float, float]:
        """Where the network wants what is [0, 1] in the examples."""
        return (-1.0, 1.0) if self.echoes is None else self.echoes.value_range

    @classmethod
    def read(cls, path: str | Path) -> TrainingRecipe:
        """Read a TOML recipe.

        Raises:
            InputError: not TOML, or it does not fit this model; the message names each wrong key.
        """
        path = Path(path)
        with reading(path, "a TOML recipe"):
            try:
                return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
            except ValidationError as error:
                wrong = "; ".join(
                    f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]
                )
                raise InputError(f"recipe {path}: {wrong}") from error
