"""Training of the shipped networks from a recipe file: ``restobox train RECIPE --data FOLDER -o OUT``."""

from __future__ import annotations

import csv
import json
import math
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from restoration.io.images import read_image
from restoration.lift import push_pull
from restoration.masks import make_mask
from restoration.mri.estimate import CONDITION_CHANNELS
from solvers.denoiser import Denoiser
from solvers.process import VP
from toolbox.mri_training import Scans, Simulation


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Network(_Section):
    block_out_channels: list[int] = Field(min_length=1)
    layers_per_block: int = Field(2, ge=1)
    norm_num_groups: int = Field(8, ge=1)
    fold: int = Field(1, ge=1, le=8)


class Schedule(_Section):
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    num_train_timesteps: int = Field(1000, ge=2)
    rescale_betas_zero_snr: bool = True
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"
    timestep_spacing: str = "trailing"
    noise_scale: float = Field(1.0, gt=0)

    def scheduler_config(self) -> dict:
        """In diffusers' words. ``noise_scale`` multiplies every noise-to-signal ratio (a shift of log-SNR, Hoogeboom et al. 2023): a
        schedule made for data of unit size then suits data of that standard deviation."""
        config = self.model_dump(exclude={"noise_scale"})
        if self.noise_scale == 1:
            return config
        abar = VP.from_diffusers(config).alphas_cumprod
        abar = abar / (abar + self.noise_scale**2 * (1 - abar))
        betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
        return {**config, "beta_schedule": "linear", "trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}


class Loss(_Section):
    data_std: float = Field(0.12, gt=0)
    floor: float = Field(0.05, gt=0)
    known_weight: float = Field(0.1, ge=0, le=1)
    terminal_share: float = Field(0.3, ge=0, le=1)


class Condition(_Section):
    drop: float = Field(0.15, ge=0, le=1)
    kinds: list[Literal["random", "strokes", "text", "box"]] = Field(min_length=1)


class Optimizer(_Section):
    learning_rate: float = Field(5e-4, gt=0)
    warmup: int = Field(300, ge=0)
    ema: float = Field(0.999, ge=0, lt=1)


class Noise(_Section):
    """What a denoiser is trained on: noise levels ``kappa = b/a`` in the network's range, and a share of piecewise constant patches."""

    lowest: float = Field(0.01, gt=0)
    highest: float = Field(3.0, gt=0)
    cells: float = Field(0.25, ge=0, le=1)


class Recipe(_Section):
    """A training recipe; unknown or missing keys are refused with their names."""

    name: str
    task: Literal["inpainting", "mri", "denoising"]
    seed: int = 0
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    patch_size: int = Field(ge=8)
    network: Network
    process: Schedule = Schedule()
    loss: Loss = Loss()
    condition: Condition | None = None  # inpainting: which masks
    simulation: Simulation | None = None  # mri: which scans
    noise: Noise = Noise()  # denoising: which levels
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _check_task(self):
        needed = {"inpainting": "condition", "mri": "simulation"}
        for task, section in needed.items():
            if (self.task == task) != (getattr(self, section) is not None):
                raise ValueError(f"section [{section}] belongs to task {task!r}, and only to it")
        if not self.noise.lowest < self.noise.highest:
            raise ValueError("noise.lowest must be below noise.highest")
        return self

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a TOML recipe.

        Raises:
            ValueError: not TOML, or it does not fit this model; the message names each wrong key.
        """
        try:
            return cls.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a TOML recipe: {error}") from error
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"recipe {path}: {wrong}") from error


# -- data ---------------------------------------------------------------------------------------------------------


class Patches:
    """Random square patches of a folder's pictures at several scales, with flips, turns and channel swaps.

    Args:
        folder: searched recursively for JPEG, PNG and WebP files.
        size: side of a patch in pixels.

    Raises:
        ValueError: no picture of at least ``size`` pixels in the folder.
    """

    SCALES = (0.7, 0.5, 0.35, 0.25)  # large photos are soft at full size

    def __init__(self, folder: str | Path, size: int, exclude: tuple[str, ...] = ()):
        self.size = size
        self.images: list[np.ndarray] = []
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix.lower() not in {".jpg", ".jpeg", ".png", ".webp"} or path.name in exclude:
                continue
            pixels = np.broadcast_to((photo := read_image(path).pixels), (3, *photo.shape[1:]))
            image = Image.fromarray(np.rint(255 * pixels.transpose(1, 2, 0)).astype(np.uint8))
            for scale in self.SCALES:
                width, height = (round(s * scale) for s in image.size)
                if min(width, height) >= size:
                    self.images.append(np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)))
        if not self.images:
            raise ValueError(f"{folder} holds no picture of at least {size} x {size} pixels (JPEG, PNG, WebP)")

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """``(count, 3, size, size)`` in [0, 1]."""
        out = np.empty((count, self.size, self.size, 3), np.uint8)
        for k, index in enumerate(rng.integers(len(self.images), size=count)):
            image = self.images[index]
            top = rng.integers(0, image.shape[0] - self.size + 1)
            left = rng.integers(0, image.shape[1] - self.size + 1)
            patch = np.rot90(image[top : top + self.size, left : left + self.size], rng.integers(4))
            out[k] = (patch if rng.random() < 0.5 else patch[:, ::-1])[..., rng.permutation(3)]
        return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def draw_masks(count: int, size: int, kinds: list[str], drop: float, rng: np.random.Generator) -> Tensor:
    """``(count, 1, size, size)``; a share ``drop`` has nothing known."""
    masks = np.zeros((count, 1, size, size), np.float32)
    for k in range(count):
        if rng.random() >= drop:
            kind = kinds[rng.integers(len(kinds))]
            missing = rng.uniform(0.3, 0.97) if kind == "random" else rng.uniform(0.05, 0.4)
            masks[k, 0] = make_mask(kind, size, size, missing, rng)
    return torch.from_numpy(masks)


class PhotoExamples:
    """Photo patches with missing pixels."""

    channels, condition_channels = 3, 4

    def __init__(self, recipe: Recipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, self.patches = recipe, Patches(folder, recipe.patch_size, exclude)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and masks."""
        c = self.recipe.condition
        return self.patches.draw(count, rng), draw_masks(count, self.recipe.patch_size, c.kinds, c.drop, rng)

    @staticmethod
    def show(denoiser: Denoiser, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image in the network's range, what the network is shown, and 1 where something is to be found out."""
        x0 = denoiser.from_unit(image)
        return x0, torch.cat([push_pull(x0 * mask, mask), mask], dim=1), 1 - mask


class MRIExamples:
    """Patches of simulated multi-coil scans."""

    channels, condition_channels = 2, CONDITION_CHANNELS

    def __init__(self, recipe: Recipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.scans = Scans(folder, recipe.simulation, recipe.patch_size, recipe.seed, exclude)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Complex images in two channels, in units of the scan's scale, and what the network is shown."""
        return self.scans.draw(count, rng)

    @staticmethod
    def show(denoiser: Denoiser, image: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return image, shown, torch.ones_like(image[:, :1])


class GreyExamples:
    """Single planes with noise: an unconditional denoiser."""

    channels, condition_channels = 1, 0

    def __init__(self, recipe: Recipe, folder: str | Path, exclude: tuple[str, ...] = ()):
        self.recipe, self.patches = recipe, Patches(folder, recipe.patch_size, exclude)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Images in [0, 1]."""
        return (grey_patches(self.patches, count, self.recipe.noise.cells, rng),)

    def times(self, count: int, rng: np.random.Generator) -> Tensor:
        """Levels spread evenly in the logarithm of the noise."""
        process = VP.from_diffusers(self.recipe.process.scheduler_config())
        log_kappa = rng.uniform(*np.log([self.recipe.noise.lowest, self.recipe.noise.highest]), size=count)
        return torch.tensor([process.time_at(-2 * k) for k in log_kappa], dtype=torch.float32)


def grey_patches(patches: Patches, count: int, cells: float, rng: np.random.Generator) -> Tensor:
    """``(count, 1, size, size)`` in [0, 1] for a denoiser of single planes: random mixtures of a picture's colours, also negative ones (as
    principal components are), and for a share ``cells`` of the patches flat cells around random points (as fields are from above)."""
    weight = rng.normal(size=(count, 3, 1, 1)).astype(np.float32)
    weight /= np.abs(weight).sum(1, keepdims=True)
    out = 0.5 + (torch.from_numpy(weight) * (patches.draw(count, rng) - 0.5)).sum(1, keepdim=True)
    grid = np.stack(np.meshgrid(np.arange(patches.size), np.arange(patches.size), indexing="ij"))
    for k in np.flatnonzero(rng.random(count) < cells):
        points = rng.uniform(0, patches.size, (rng.integers(4, 40), 2, 1, 1))
        stretch = rng.uniform(0.3, 1.0, (2, 1, 1))
        nearest = (np.abs(grid - points) * stretch).sum(1).argmin(0)
        shift = float(out[k].mean()) - 0.5
        # the picture stays as a faint texture
        out[k] = 0.15 * (out[k] - 0.5 - shift) + torch.from_numpy(rng.uniform(0, 1, len(points)).astype(np.float32)[nearest])
    return out.clamp(0, 1)


EXAMPLES = {"inpainting": PhotoExamples, "mri": MRIExamples, "denoising": GreyExamples}


# -- the loss -----------------------------------------------------------------------------------------------------


def denoising_loss(denoiser: Denoiser, x0: Tensor, condition: Tensor, missing: Tensor, t: Tensor, noise: Tensor, loss: Loss) -> Tensor:
    """Squared error of the network's output at times ``t (B,)``, mostly on missing pixels, relative to what the lift allows.

    ``x0 (B, C, H, W)`` in the network's range, ``condition`` with the lift in its first C channels, ``missing (B, 1, H, W)`` 1 where
    pixels are not known, ``noise`` like ``x0``. With ``u = (x0 - lift)/s`` of mean square p on a sample's missing pixels, the best linear
    estimate from the state alone has the error ``p/(a'^2 p + b'^2)`` in ``v = a' eps - b' u``. Each sample's error is divided by that:
    easy and hard pictures, small and large holes, and all noise levels then count alike, as they do in PSNR.
    """
    a, b = (f(t.cpu()).to(x0).view(-1, 1, 1, 1) for f in (denoiser.process.a, denoiser.process.b))
    _, a, b = denoiser.unit_levels(a, b)
    u = (x0 - condition[:, : x0.shape[1]]) / denoiser.data_std
    z = a * u + b * noise
    output = denoiser.conditioned(condition).output(a * z, t).float()
    focus = loss.known_weight + (1 - loss.known_weight) * missing
    focus = focus / focus.mean((1, 2, 3), keepdim=True)
    missing = missing.expand_as(u)
    power = ((missing * u**2).sum((1, 2, 3), keepdim=True) / missing.sum((1, 2, 3), keepdim=True).clamp(min=1)).clamp(min=loss.floor)
    return ((a**2 * power + b**2) / power * focus * (output - (a * noise - b * u)) ** 2).mean()


def plain_loss(denoiser: Denoiser, image: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the output of an unconditional denoiser: relative to the noise where there is little of it, to the image else."""
    u = denoiser.from_unit(image) / denoiser.data_std
    a, b = (f(t.cpu()).to(u).view(-1, 1, 1, 1) for f in (denoiser.process.a, denoiser.process.b))
    _, a, b = denoiser.unit_levels(a, b)
    output = denoiser.output(a * u + b * noise, t).float()
    return ((output - (a * noise - b * u)) ** 2).mean()


def build(recipe: Recipe) -> Denoiser:
    """The untrained denoiser of a recipe."""
    from diffusers import UNet2DModel

    net, fold2, examples = recipe.network, recipe.network.fold**2, EXAMPLES[recipe.task]
    depth = len(net.block_out_channels)
    torch.manual_seed(recipe.seed)
    network = UNet2DModel(
        in_channels=(examples.channels + examples.condition_channels) * fold2,
        out_channels=examples.channels * fold2,
        block_out_channels=tuple(net.block_out_channels),
        layers_per_block=net.layers_per_block,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        norm_num_groups=net.norm_num_groups,
        add_attention=False,
    )
    return Denoiser(
        network,
        VP.from_diffusers(recipe.process.scheduler_config()),
        recipe.process.prediction_type,
        fold=net.fold,
        multiple=2 ** (depth - 1),
        condition_channels=examples.condition_channels,
        residual=examples.condition_channels > 0,
        data_std=recipe.loss.data_std,
    )


def batches(recipe: Recipe, examples, start: int, rank: int, device) -> Iterator[tuple[Tensor, ...]]:
    """Endless ``(image, shown, t, noise)``, without ``shown`` for a denoiser.

    Batch k depends on the seed, the rank and k alone, so a resumed run goes on as if uncut.
    """
    T, n = recipe.process.num_train_timesteps, recipe.batch_size
    step = start
    while True:
        rng = np.random.default_rng([recipe.seed, rank, step])
        drawn = examples.draw(n, rng)
        if isinstance(examples, GreyExamples):
            t = examples.times(n, rng)
        else:
            t = torch.from_numpy(rng.integers(0, T, size=n))
            t[torch.from_numpy(rng.random(n) < recipe.loss.terminal_share)] = T - 1
        noise = torch.from_numpy(rng.standard_normal(drawn[0].shape, dtype=np.float32))
        yield tuple(v.to(device) for v in (*drawn, t, noise))
        step += 1


@torch.no_grad()
def gain(denoiser: Denoiser, examples, image: Tensor, shown: Tensor) -> float:
    """How much better one network call from pure noise is than the lift, in dB: the mean over a batch."""
    x0, condition, _ = examples.show(denoiser, image, shown)
    end, noise = denoiser.process.end, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
    state = denoiser.process.b(end) * noise + denoiser.process.a(end) * x0
    estimate = denoiser.conditioned(condition)(state, end).x0

    def error(x):
        return (x - x0).square().mean((1, 2, 3)).clamp(min=1e-12)

    return float(10 * torch.log10(error(condition[:, : x0.shape[1]]) / error(estimate)).mean())


# -- the loop -----------------------------------------------------------------------------------------------------


def train(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    *,
    exclude: tuple[str, ...] = (),
    resume: bool = False,
    mixed_precision: str = "no",
    checkpoint_every: int = 500,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Train a recipe and write the model folder ``out`` (averaged weights, config, schedule, ``denoiser.json``).

    Checkpoints go to ``out/checkpoint``; ``resume`` continues from there with the same data order. Several GPUs: start it through
    ``accelerate launch``.

    Raises:
        ValueError: no usable picture, a recipe with a prediction type other than ``v_prediction``, or nothing to resume.
        FileNotFoundError: no such data folder.
    """
    from accelerate import Accelerator

    if recipe.process.prediction_type != "v_prediction":
        raise ValueError("training is written for v_prediction; set process.prediction_type to it")
    data, out = Path(data), Path(out)
    if not data.is_dir():
        raise FileNotFoundError(f"data folder {data} does not exist")
    examples = EXAMPLES[recipe.task](recipe, data, exclude)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    denoiser = build(recipe)
    network = denoiser.network.to(memory_format=torch.channels_last)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.optimizer.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = out / "checkpoint" / "state.pt"
    start = 0
    if resume:
        if not checkpoint.is_file():
            raise ValueError(f"nothing to resume: {checkpoint} does not exist")
        try:
            state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        except Exception as error:
            raise ValueError(f"checkpoint {checkpoint} is damaged ({type(error).__name__}); train without --resume") from error
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    network, optimizer = accelerator.prepare(network, optimizer)
    average = {k: v.to(accelerator.device) for k, v in average.items()}
    denoiser.network = network
    log = _Log(out / "train.csv", start) if accelerator.is_main_process else None
    source = batches(recipe, examples, start, accelerator.process_index, accelerator.device)
    fixed = tuple(v.to(accelerator.device) for v in examples.draw(2 * recipe.batch_size, np.random.default_rng([recipe.seed, 2])))
    conditional = examples.condition_channels > 0
    network.train()
    for step in range(start, recipe.steps):
        rate = _learning_rate(recipe, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with accelerator.autocast():
            *drawn, t, noise = next(source)
            if conditional:
                loss = denoising_loss(denoiser, *examples.show(denoiser, *drawn), t, noise, recipe.loss)
            else:
                loss = plain_loss(denoiser, *drawn, t, noise)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _average(average, accelerator.unwrap_model(network), min(recipe.optimizer.ema, (1 + step) / (10 + step)))
        progress(step + 1, float(loss.detach()))
        if log is not None:
            with accelerator.autocast():
                log.add(
                    step + 1, float(loss.detach()), float(norm), rate, lambda: gain(denoiser, examples, *fixed) if conditional else math.nan
                )
            last = step + 1 == recipe.steps
            if last or (step + 1) % checkpoint_every == 0:
                state = {
                    "network": accelerator.unwrap_model(network).state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "step": step + 1,
                }
                _replace(checkpoint, lambda path, s=state: torch.save(s, path))
                save_model(denoiser, recipe, average, out)
    return out


def save_model(denoiser: Denoiser, recipe: Recipe, weights: dict[str, Tensor], out: Path, dtype=torch.float32) -> None:
    """Write a model folder that :meth:`Denoiser.from_pretrained` loads."""
    from safetensors.torch import save_file

    network = denoiser.network.module if isinstance(denoiser.network, nn.parallel.DistributedDataParallel) else denoiser.network
    (out / "unet").mkdir(parents=True, exist_ok=True)
    (out / "scheduler").mkdir(exist_ok=True)
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in weights.items()}
    _replace(out / "unet" / "diffusion_pytorch_model.safetensors", lambda path: save_file(weights, path, {"format": "pt"}))
    _write_json(out / "unet" / "config.json", {"_class_name": "UNet2DModel", **network.config})
    _write_json(out / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **recipe.process.scheduler_config()})
    _write_json(out / "denoiser.json", denoiser.settings)


def _learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    opt = recipe.optimizer
    if step < opt.warmup:
        return opt.learning_rate * (step + 1) / opt.warmup
    return opt.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - opt.warmup) / max(1, recipe.steps - opt.warmup)))


@torch.no_grad()
def _average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    for key, value in network.state_dict().items():
        average[key].lerp_(value, 1 - decay)


class _Log:
    """A CSV of the running means, one row per 50 steps."""

    def __init__(self, path: Path, start: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows, self.began = path, [], time.monotonic()
        if start == 0 or not path.exists():
            path.write_text("step,loss,gradient_norm,learning_rate,gain_db,seconds\n")

    def add(self, step: int, loss: float, norm: float, rate: float, gain: Callable[[], float]) -> None:
        self.rows.append((loss, norm))
        if step % 50 == 0:
            mean = np.mean(self.rows, axis=0)
            with self.path.open("a", newline="") as file:
                row = [f"{mean[0]:.5f}", f"{mean[1]:.4f}", f"{rate:.2e}", f"{gain():.3f}", f"{time.monotonic() - self.began:.1f}"]
                csv.writer(file).writerow([step, *row])
            self.rows.clear()


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors makes its files private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, content: dict) -> None:
    content = {k: v for k, v in content.items() if not k.startswith("_") or k == "_class_name"}
    _replace(path, lambda p: p.write_text(json.dumps(content, indent=2, default=list) + "\n"))
