"""Training of the shipped networks from a recipe file: ``restobox train RECIPE --data FOLDER -o OUT``."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from solvers.denoiser import Denoiser
from solvers.description import describe
from solvers.prediction import HEADS
from toolbox.api import load
from toolbox.examples import EXAMPLES
from toolbox.hsi_training import LatentExamples, latent_loss
from toolbox.immiscible import immiscible_noise
from toolbox.paired_training import SHOWN
from toolbox.recipe import Loss, Recipe
from toolbox.unrolled import Measured, unroll, unrolled_loss

# -- the loss -----------------------------------------------------------------------------------------------------


def denoising_loss(denoiser: Denoiser, x0: Tensor, condition: Tensor, missing: Tensor, t: Tensor, noise: Tensor, loss: Loss) -> Tensor:
    """Squared error of the network's output at times ``t (B,)``, mostly on missing pixels, relative to what the lift allows.

    ``x0 (B, C, H, W)`` in the network's range, ``condition`` with the lift in its first C channels, ``missing (B, 1, H, W)`` 1 where
    pixels are not known, ``noise`` like ``x0``. With ``u = (x0 - lift)/s`` of mean square p on a sample's missing pixels, the best linear
    estimate from the state alone has the error ``p/(a'^2 p + b'^2)`` in ``v = a' eps - b' u``. Each sample's error is divided by that:
    easy and hard pictures, small and large holes, and all noise levels then count alike, as they do in PSNR.

    A ``sample`` network gives u itself, of which the best linear estimate has the error ``p/(1 + p SNR)``. Near the clean level that
    vanishes, and only ``min(p SNR, min_snr)`` is counted (Hang et al. 2023): the state has the image there, the network need not.
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
    if denoiser.prediction_type == "sample":
        snr = power * a**2 / b.clamp(min=1e-6) ** 2
        return ((1 + snr.clamp(max=loss.min_snr)) / power * focus * (output - u) ** 2).mean()
    return ((a**2 * power + b**2) / power * focus * (output - (a * noise - b * u)) ** 2).mean()


def residual_loss(denoiser: Denoiser, x0: Tensor, condition: Tensor, t: Tensor, noise: Tensor, loss: Loss) -> Tensor:
    """Error of a network of a process that holds the degraded image ``y``, the first channels of ``condition``.

    States and targets are those of ``Resfusion.training_pair`` and ``RDDM.training_pair``. Squared for Resfusion, absolute and summed over
    the two heads for RDDM, as released.
    """
    target_type, channels = denoiser.prediction_type, x0.shape[1]
    state, target = denoiser.process.training_pair(x0, condition[:, :channels], noise, t.cpu(), target_type)
    error = denoiser.conditioned(condition).output(state, t).float() - target
    return HEADS.get(target_type, 1) * (error.square() if loss.norm == "l2" else error.abs()).mean()


def plain_loss(denoiser: Denoiser, image: Tensor, t: Tensor, noise: Tensor, min_snr: float | None = None) -> Tensor:
    """Squared error of the output of an unconditional denoiser: relative to the noise where there is little of it, to the image else.

    With ``min_snr`` the error of the image weighs ``min(SNR, min_snr)`` (Hang et al. 2023): ``min(SNR, min_snr)/(SNR + 1)`` in v.
    """
    u = denoiser.from_unit(image) / denoiser.data_std
    a, b = (f(t.cpu()).to(u).view(-1, 1, 1, 1) for f in (denoiser.process.a, denoiser.process.b))
    _, a, b = denoiser.unit_levels(a, b)
    output = denoiser.output(a * u + b * noise, t).float()
    weight = 1 if min_snr is None else torch.minimum(a**2, min_snr * b**2)  # of unit levels: b^2 = 1/(SNR + 1)
    return (weight * (output - (a * noise - b * u)) ** 2).mean()


def build(recipe: Recipe) -> Denoiser:
    """The untrained denoiser of a recipe."""
    from diffusers import UNet2DModel

    net, fold2, schedule = recipe.network, recipe.network.fold**2, recipe.process
    channels, condition_channels = EXAMPLES[recipe.task].channels, shown_channels(recipe)
    depth = len(net.block_out_channels)
    torch.manual_seed(recipe.seed)
    network = UNet2DModel(
        in_channels=(channels + condition_channels) * fold2,
        out_channels=channels * HEADS.get(schedule.prediction_type, 1) * fold2,
        block_out_channels=tuple(net.block_out_channels),
        layers_per_block=net.layers_per_block,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        norm_num_groups=net.norm_num_groups,
        add_attention=net.attention,
    )
    native = schedule.kind == "vp"  # the others diffuse the residual by themselves
    return Denoiser(
        network,
        schedule.process(),
        schedule.prediction_type,
        value_range=recipe.value_range,
        fold=net.fold,
        multiple=2 ** (depth - 1),
        condition_channels=condition_channels,
        residual=native and condition_channels > 0 and recipe.task != "hyperspectral",  # whose condition holds no lift
        data_std=recipe.loss.data_std if native else 1.0,
        unrolled_steps=None if recipe.unrolled is None else recipe.unrolled.steps,
    )


def shown_channels(recipe: Recipe) -> int:
    """Channels of the condition that a recipe's network is shown."""
    return SHOWN[recipe.pairs.shown] if recipe.pairs is not None else EXAMPLES[recipe.task].condition_channels


def batches(recipe: Recipe, examples, start: int, rank: int, device) -> Iterator[tuple[Tensor, ...]]:
    """Endless ``(*drawn, t, noise)``, what ``examples.draw`` gives before the times.

    Batch k depends on the seed, the rank and k alone, so a resumed run goes on as if uncut.
    """
    n, step = recipe.batch_size, start
    while True:
        rng = np.random.default_rng([recipe.seed, rank, step])
        drawn = examples.draw(n, rng)
        t = examples.times(n, rng) if callable(getattr(examples, "times", None)) else _times(recipe, n, rng)
        noise = rng.standard_normal(drawn[0].shape, dtype=np.float32)
        if recipe.loss.immiscible:
            noise = immiscible_noise(drawn[0].numpy(), noise)
        yield tuple(v.to(device) for v in (*drawn, t, torch.from_numpy(noise)))
        step += 1


def _times(recipe: Recipe, count: int, rng: np.random.Generator) -> Tensor:
    """Training steps, all alike but the last, which gets ``terminal_share`` more."""
    T = len(recipe.process.process())
    t = torch.from_numpy(rng.integers(0, T, size=count))
    t[torch.from_numpy(rng.random(count) < recipe.loss.terminal_share)] = T - 1
    return t


def measured_batches(
    recipe: Recipe, examples, denoiser: Denoiser, start: int, rank: int
) -> Iterator[list[tuple[Measured, Tensor, Tensor]]]:
    """Endless batches ``[(example, t, noise)]`` for training through the sampler; drawn as :func:`batches` does."""
    step = start
    while True:
        rng = np.random.default_rng([recipe.seed, rank, step])
        batch = []
        for example in examples.measured(denoiser, rng):
            noise = torch.from_numpy(rng.standard_normal(example.x0.shape, dtype=np.float32))
            batch.append((example, _times(recipe, len(noise), rng), noise.to(denoiser.device)))
        yield batch
        step += 1


@torch.no_grad()
def unrolled_gain(denoiser: Denoiser, batch: list[Measured], steps: int) -> float:
    """How much better the end of a run is than the lift, in dB: the mean over the batch."""
    gains = []
    for e in batch:
        end = unroll(e.correct(denoiser.conditioned(e.condition)), tuple(e.x0.shape), steps)
        errors = [(x - e.x0).square().mean((1, 2, 3)).clamp(min=1e-12) for x in (e.condition[:, : e.x0.shape[1]], end)]
        gains.append(10 * torch.log10(errors[0] / errors[1]))
    return float(torch.cat(gains).mean())


@torch.no_grad()
def gain(denoiser: Denoiser, examples, *drawn: Tensor) -> float:
    """How much better one network call from the noisiest level is than the lift, in dB: the mean over a batch."""
    x0, condition, _ = examples.show(denoiser, *drawn)
    end, noise = denoiser.process.end, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
    state = denoiser.process.add_noise(x0, noise, end, condition[:, : x0.shape[1]])
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
    start_from: str | Path | None = None,
    resume: bool = False,
    mixed_precision: str = "no",
    checkpoint_every: int = 500,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Train a recipe and write the model folder ``out`` (averaged weights, config, schedule, ``denoiser.json``).

    ``start_from`` is a shipped model's name or a model folder, of the same architecture, whose weights are trained further.
    Checkpoints go to ``out/checkpoint``; ``resume`` continues from there with the same data order. Several GPUs: start it through
    ``accelerate launch``.

    Raises:
        ValueError: no usable picture, a model to start from that has other weights, a ``vp`` recipe for ``epsilon`` (or ``sample``
            without a condition), or nothing to resume.
        FileNotFoundError: no such data folder.
    """
    from accelerate import Accelerator

    known = ("v_prediction", "sample") if EXAMPLES[recipe.task].condition_channels else ("v_prediction",)
    if recipe.process.kind == "vp" and recipe.process.prediction_type not in known:
        raise ValueError(
            f"{recipe.task} under a variance-preserving process is trained for {' or '.join(known)}; set process.prediction_type"
        )
    data, out = Path(data), Path(out)
    if not data.is_dir():
        raise FileNotFoundError(f"data folder {data} does not exist")
    examples = EXAMPLES[recipe.task](recipe, data, exclude)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    denoiser = build(recipe)
    if start_from is not None and not resume:
        _load_weights(denoiser.network, start_from)
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
    conditional = shown_channels(recipe) > 0 and not isinstance(examples, LatentExamples)
    rng = np.random.default_rng([recipe.seed, 2])
    if recipe.unrolled is not None:
        source = measured_batches(recipe, examples, denoiser, start, accelerator.process_index)
        held = [e for _ in range(6) for e in examples.measured(denoiser, rng) if e.correct is not None]
    else:
        source = batches(recipe, examples, start, accelerator.process_index, accelerator.device)
        fixed = tuple(v.to(accelerator.device) for v in examples.draw(2 * recipe.batch_size, rng))

    def measure() -> float:
        if recipe.unrolled is not None:
            return unrolled_gain(denoiser, held, recipe.unrolled.steps)
        return gain(denoiser, examples, *fixed) if conditional else math.nan

    network.train()
    for step in range(start, recipe.steps):
        rate = _learning_rate(recipe, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total, batch = 0.0, next(source)
        for part in batch if recipe.unrolled is not None else [batch]:
            with accelerator.autocast():
                loss = _loss(recipe, denoiser, examples, part) / (len(batch) if recipe.unrolled is not None else 1)
            accelerator.backward(loss)
            total += float(loss.detach())
        norm = accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _average(average, accelerator.unwrap_model(network), min(recipe.optimizer.ema, (1 + step) / (10 + step)))
        progress(step + 1, total)
        if log is not None:
            with accelerator.autocast():
                log.add(step + 1, total, float(norm), rate, measure)
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
    if log is not None:
        log.close()
    return out


def _loss(recipe: Recipe, denoiser: Denoiser, examples, part) -> Tensor:
    """The loss that the recipe asks for, of what its batches hold."""
    if recipe.unrolled is not None:  # and the network stays a diffusion model
        e, t, noise = part
        diffusion = denoising_loss(denoiser, e.x0, e.condition, e.missing, t, noise, recipe.loss)
        return diffusion if e.correct is None else diffusion + unrolled_loss(denoiser, e, recipe.unrolled.steps, recipe.loss)
    *drawn, t, noise = part
    if isinstance(examples, LatentExamples):
        return latent_loss(denoiser, *drawn, t, noise, prior=recipe.scenes.stage == "prior")
    if shown_channels(recipe) == 0:
        return plain_loss(denoiser, *drawn, t, noise, recipe.loss.min_snr)
    if denoiser.process.holds_image:
        x0, condition, _ = examples.show(denoiser, *drawn)
        return residual_loss(denoiser, x0, condition, t, noise, recipe.loss)
    return denoising_loss(denoiser, *examples.show(denoiser, *drawn), t, noise, recipe.loss)


def _load_weights(network: nn.Module, model: str | Path) -> None:
    found = load(model).network
    if not isinstance(found, nn.Module):
        raise ValueError(f"{model} is an exported bundle; training goes on from a model folder or a shipped float model")
    try:
        network.load_state_dict(found.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{model} can't be trained further with this recipe: its network has other weights ({error})") from error


def save_model(denoiser: Denoiser, recipe: Recipe, weights: dict[str, Tensor], out: Path, dtype=torch.float32) -> None:
    """Write a model folder that :meth:`Denoiser.from_pretrained` loads."""
    from safetensors.torch import save_file

    network = denoiser.network.module if isinstance(denoiser.network, nn.parallel.DistributedDataParallel) else denoiser.network
    (out / "unet").mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in weights.items()}
    _replace(out / "unet" / "diffusion_pytorch_model.safetensors", lambda path: save_file(weights, path, {"format": "pt"}))
    _write_json(out / "unet" / "config.json", {"_class_name": "UNet2DModel", **network.config})
    if recipe.process.kind == "vp":
        _write_json(out / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **recipe.process.scheduler_config()})
        _write_json(out / "denoiser.json", denoiser.settings)
    else:  # diffusers has no words for these
        native = {"prediction_type": denoiser.prediction_type, "process": describe(denoiser.process)}
        _write_json(out / "denoiser.json", denoiser.settings | native)


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


LOGGED = {"loss": ".5f", "gradient_norm": ".4f", "learning_rate": ".2e", "gain_db": ".3f", "seconds": ".1f"}


class _Log:
    """A CSV of the running means, one row per 50 steps; where tensorboard is installed (extra ``train``), the same as its events."""

    def __init__(self, path: Path, start: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows, self.began = path, [], time.monotonic()
        if start == 0 or not path.exists():
            path.write_text(",".join(("step", *LOGGED)) + "\n")
        self.writer = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(path.parent / "tensorboard", purge_step=start + 1 if start else None)

    def add(self, step: int, loss: float, norm: float, rate: float, gain: Callable[[], float]) -> None:
        self.rows.append((loss, norm))
        if step % 50 == 0:
            mean = np.mean(self.rows, axis=0)
            row = (*mean, rate, gain(), time.monotonic() - self.began)
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow([step, *(f"{value:{form}}" for value, form in zip(row, LOGGED.values(), strict=True))])
            if self.writer is not None:
                for name, value in zip(LOGGED, row, strict=True):
                    if not math.isnan(value):
                        self.writer.add_scalar(name, value, step)
                self.writer.flush()
            self.rows.clear()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


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
