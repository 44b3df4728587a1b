"""The sections of a training recipe, each with the values that it takes."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from restoration.paired.task import HAZE, MASKED, PLAIN
from solvers.methods.rddm import RDDM
from solvers.methods.resfusion import Resfusion
from solvers.processes.process import VP, Process

T = TypeVar("T")


class Section(BaseModel):
    """Of a TOML file; keys that it doesn't know are refused."""

    model_config = ConfigDict(extra="forbid")


RESFUSION_TARGETS = ("resnoise", "sample", "residual")
RDDM_TARGETS = ("residual_noise", "sample_noise", "residual", "epsilon", "sample")


class Network(Section):
    """The U-Net."""

    block_out_channels: list[int] = Field(min_length=1)
    layers_per_block: int = Field(2, ge=1)
    norm_num_groups: int = Field(8, ge=1)
    fold: int = Field(1, ge=1, le=8)
    attention: bool = False  # one layer of it, in the middle of the network
    # four times the first width where it is not given
    time_embedding_dim: int | None = Field(None, ge=1)


class Schedule(Section):
    """The process that a network is trained under, and what it predicts.

    ``vp``: diffusers' words, for ``v_prediction``. ``resfusion``: the released schedule of
    ``num_train_timesteps`` (12 leave five levels), ``linear`` or cosine, for ``resnoise``,
    ``sample`` or ``residual``. ``rddm``: the released schedule, ``sum_scale`` being the square of
    its largest noise, for ``residual_noise`` and ``sample_noise`` (one network of two outputs),
    ``residual``, ``sample`` or ``epsilon``.
    """

    kind: Literal["vp", "resfusion", "rddm"] = "vp"
    sum_scale: float = Field(1.0, gt=0)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    num_train_timesteps: int = Field(1000, ge=2)
    rescale_betas_zero_snr: bool = True
    prediction_type: Literal[
        "v_prediction",
        "epsilon",
        "sample",
        "residual",
        "resnoise",
        "residual_noise",
        "sample_noise",
    ] = "v_prediction"
    timestep_spacing: str = "trailing"
    noise_scale: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _check_kind(self):
        known = {
            "vp": ("v_prediction", "epsilon", "sample"),
            "resfusion": RESFUSION_TARGETS,
            "rddm": RDDM_TARGETS,
        }[self.kind]
        if self.prediction_type not in known:
            raise ValueError(
                f"prediction_type {self.prediction_type!r} is no target of process {self.kind!r};"
                f" known: {', '.join(known)}"
            )
        if self.kind == "resfusion" and self.beta_schedule == "scaled_linear":
            raise ValueError(
                "beta_schedule 'scaled_linear' is not one of Resfusion's; known: linear,"
                " squaredcos_cap_v2"
            )
        return self

    def process(self) -> Process:
        match self.kind:
            case "resfusion":
                schedule = "linear" if self.beta_schedule == "linear" else "cosine"
                return Resfusion.scheduled(schedule, self.num_train_timesteps)
            case "rddm":
                return RDDM.scheduled(self.num_train_timesteps, self.sum_scale)
        return VP.from_diffusers(self.scheduler_config())

    def scheduler_config(self) -> dict:
        """In diffusers' words. ``noise_scale`` multiplies every noise-to-signal ratio (a shift of
        log-SNR, Hoogeboom et al. 2023): a schedule made for data of unit size then suits data of
        that standard deviation.
        """
        config = self.model_dump(exclude={"noise_scale", "kind", "sum_scale"})
        if self.noise_scale == 1:
            return config
        abar = VP.from_diffusers(config).alphas_cumprod
        abar = abar / (abar + self.noise_scale**2 * (1 - abar))
        betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
        return {
            **config,
            "beta_schedule": "linear",
            "trained_betas": betas.tolist(),
            "rescale_betas_zero_snr": False,
        }


class Loss(Section):
    """What is minimised."""

    data_std: float = Field(0.12, gt=0)
    floor: float = Field(0.05, gt=0)
    known_weight: float = Field(0.1, ge=0, le=1)
    terminal_share: float = Field(0.3, ge=0, le=1)
    # residual processes: squared (Resfusion's choice) or absolute error (RDDM's); denoisers also
    # the logarithm of each picture's squared error
    norm: Literal["l2", "l1", "log"] = "l2"
    # unconditional networks: each picture of a batch gets a near noise
    # (:func:`toolbox.training.losses.immiscible_noise`)
    immiscible: bool = False
    # errors of the image weigh at most this SNR (Hang et al. 2023): `sample`, and denoising
    min_snr: float | None = Field(None, gt=0)


class Condition(Section):
    """What is known of a picture."""

    drop: float = Field(0.15, ge=0, le=1)
    kinds: list[Literal["random", "strokes", "text", "box", "blocks"]] = Field(min_length=1)
    factors: list[Literal[2, 3, 4]] = Field([2, 3, 4], min_length=1)  # sides of `blocks` in pixels


class Reduction(Section):
    """How large pictures became small ones: kernels that are drawn alike, and shares of the
    pictures that are softened before, and noisy or JPEG after.
    """

    factor: Literal[2, 3, 4] = 4
    kernels: list[Literal["block", "bicubic", "lanczos"]] = Field(min_length=1)
    softened: float = Field(0.0, ge=0, le=1)
    blur: float = Field(1.5, gt=0)  # largest, in pixels of the large picture
    noisy: float = Field(0.0, ge=0, le=1)
    sigma: float = Field(4.0, gt=0)  # largest, of 255
    jpeg: float = Field(0.0, ge=0, le=1)
    quality: int = Field(40, ge=1, le=95)  # lowest; 95 is the highest


class Optimizer(Section):
    """AdamW with a warm-up, a cosine to zero and an average of the weights."""

    learning_rate: float = Field(5e-4, gt=0)
    warmup: int = Field(300, ge=0)
    ema: float = Field(0.999, ge=0, lt=1)


class Noise(Section):
    """What a denoiser is trained on: noise levels ``kappa = b/a`` in the network's range, and a
    share of piecewise constant patches.
    """

    lowest: float = Field(0.01, gt=0)
    highest: float = Field(3.0, gt=0)
    cells: float = Field(0.25, ge=0, le=1)
    # share of colour patches whose noise is cut off at black and white
    clipped: float = Field(0.0, ge=0, le=1)

    def times(self, process: Process, count: int, rng: np.random.Generator) -> torch.Tensor:
        """``(count,)`` times whose levels spread evenly in the logarithm of the noise."""
        low, high = np.log([self.lowest, self.highest])
        log_kappa = rng.uniform(low, high, size=count)
        return torch.tensor([process.time_at(-2 * k) for k in log_kappa], dtype=torch.float32)


class Unrolled(Section):
    """Train through the whole sampler as well (:mod:`toolbox.training.unrolled`): ``steps`` of DDIM
    from zero noise, data consistency at each.
    """

    steps: int = Field(3, ge=1, le=16)


class Simulation(Section):
    """Ranges of the simulated scans."""

    scans: int = Field(1500, ge=1)
    sides: tuple[int, int] = (128, 256)
    accelerations: tuple[float, float] = (2.0, 8.0)
    sigmas: tuple[float, float] = (0.001, 0.08)
    texture: float = Field(0.06, ge=0)
    map_error: float = Field(0.03, ge=0)
    # share of objects that are photographs of the data folder, cut along smooth outlines: one brain
    # holds few shapes
    photographs: float = Field(0.0, ge=0, le=1)
    kinds: list[Literal["random", "equispaced", "equispaced-fraction", "poisson"]] = Field(
        min_length=1
    )


class FastMRI(Section):
    """How full k-space is undersampled: fastMRI's masks, one of its pairs of centre fraction and
    acceleration drawn for each example.
    """

    scans: int = Field(400, ge=1)  # undersampled slices that are held in memory for patches
    kinds: list[Literal["random", "equispaced", "equispaced-fraction"]] = Field(min_length=1)
    accelerations: list[float] = Field([4.0, 8.0], min_length=1)
    center_fractions: list[float] = Field([0.08, 0.04], min_length=1)
    cache: str | None = None  # folder that keeps the estimated sensitivities

    @model_validator(mode="after")
    def _check_pairs(self):
        if len(self.accelerations) != len(self.center_fractions):
            raise ValueError(
                "accelerations and center_fractions are pairs: give as many of one as of the other"
            )
        if min(self.accelerations) < 1 or not all(0 < f < 1 for f in self.center_fractions):
            raise ValueError(
                "accelerations must be at least 1 and center_fractions between 0 and 1"
            )
        return self


class Scenes(Section):
    """Ranges of the simulated scenes, and what the network learns of them.

    ``stage``: ``prior``, clean latents at all noise levels without a condition; ``measured``, what
    noise, stripes and dead pixels leave.
    """

    stage: Literal["prior", "measured"]
    scenes: int = Field(600, ge=1)
    side: int = Field(80, ge=16)
    bands: tuple[int, int] = (40, 120)
    sensors: list[Literal["finch", "vnir", "full"]] = Field(min_length=1)
    sigmas: tuple[float, float] = (5.0, 70.0)  # of 255
    cases: list[Literal["iid", "non-iid", "stripe", "deadline", "impulse", "mixture"]] = Field(
        min_length=1
    )
    levels: tuple[float, float] = (0.05, 30.0)  # b/a in units of the noise
    # share of samples at the level of what was measured
    at_measured: float = Field(0.7, ge=0, le=1)


class Echoes(Section):
    """Which pictures: simulated ones and a share of the folder's, and what is learned of them:
    priors of ``tissue`` and of ``haze``, or ``dehazed``: tissue where a hazy frame is shown.
    """

    kind: Literal["tissue", "haze", "dehazed"]
    pictures: int = Field(400, ge=1)
    real: float = Field(0.35, ge=0, le=1)
    sides: tuple[int, int] = (320, 480)
    scales: tuple[float, float] = (0.6, 1.0)
    strengths: tuple[float, float] = (0.25, 3.0)

    @property
    def value_range(self) -> tuple[float, float]:
        """Both priors are stretched by 2 from [0, 1], so that tissue and haze add in the networks'
        ranges too: tissue to [-0.5, 1.5], where its mean is near 0; haze, which may be negative
        where it extinguishes, to twice its value.
        """
        return {"tissue": (-0.5, 1.5), "haze": (0.0, 2.0), "dehazed": (-1.0, 1.0)}[self.kind]


class Pairs(Section):
    """Where pairs lie, or how they are ``made`` of a folder of clean pictures: section ``[pairs]``
    of a recipe.

    ``shown``: what the network is shown: the degraded picture, that and a mask, what
    :mod:`restoration.paired.lifts` makes of it (of shadows with their mask), or what
    :func:`restoration.paired.task.haze_condition` does.
    """

    degraded: str = "degraded"
    clean: str = "clean"
    mask: str = "mask"
    # of clean pictures (restoration.paired.degradations), in place of the three folders
    made: Literal["low-light", "shadow", "rain"] | None = None
    shown: Literal["degraded", "mask", "brightened", "relit", "haze"] = "degraded"
    scales: list[float] = Field([1.0], min_length=1)
    drop: float = Field(0.0, ge=0, le=1)  # share of samples that are shown nothing


# condition channels of what a network is shown, and the models' word for it
SHOWN = {
    "degraded": (PLAIN, "degraded"),
    "mask": (MASKED, "degraded+mask"),
    "brightened": (PLAIN, "brightened"),
    "relit": (MASKED, "relit+mask"),
    "haze": (HAZE, "haze"),
}


def needed(section: T | None) -> T:
    """A section that a recipe's task has: :class:`TrainingRecipe` sees to that."""
    if section is None:
        raise ValueError("the recipe lacks a section that its task needs")
    return section
