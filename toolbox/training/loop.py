"""Training of the shipped networks from a recipe file: ``restobox train RECIPE --data FOLDER -o
OUT``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solvers.denoiser import Denoiser
from solvers.files import alone_in, check_folder, check_outputs, replace_file, together
from solvers.inputs.errors import InputError, ModelError, reading
from toolbox.training.examples.hyperspectral import LatentExamples, latent_loss
from toolbox.training.log import Log
from toolbox.training.losses import (
    cut_off,
    denoising_loss,
    gain,
    immiscible_noise,
    plain_loss,
    residual_loss,
)
from toolbox.training.model_folder import load_weights, save_model
from toolbox.training.network import build, examples_of, shown_channels
from toolbox.training.recipe import TrainingRecipe
from toolbox.training.unrolled import Measured, unrolled_gain, unrolled_loss

CHECKPOINT_EVERY = 500  # steps
LOG = "train.csv"
PRECISIONS = ("no", "bf16", "fp16")


def batches(
    recipe: TrainingRecipe, examples, start: int, rank: int, device
) -> Iterator[tuple[Tensor, ...]]:
    """Endless ``(*drawn, t, noise)``, what ``examples.draw`` gives before the times.

    Batch k depends on the seed, the rank and k alone, so a resumed run goes on as if uncut.
    """
    n, step = recipe.batch_size, start
    while True:
        rng = np.random.default_rng([recipe.seed, rank, step])
        drawn = examples.draw(n, rng)
        own = getattr(examples, "times", None)
        t = None if own is None else own(n, rng)
        t = _times(recipe, n, rng) if t is None else t
        noise = rng.standard_normal(drawn[0].shape, dtype=np.float32)
        if recipe.loss.immiscible:
            noise = immiscible_noise(drawn[0].numpy(), noise)
        yield tuple(v.to(device) for v in (*drawn, t, torch.from_numpy(noise)))
        step += 1


def _times(recipe: TrainingRecipe, count: int, rng: np.random.Generator) -> Tensor:
    """Training steps, all alike but the last, which gets ``terminal_share`` more."""
    T = len(recipe.process.process())
    t = torch.from_numpy(rng.integers(0, T, size=count))
    t[torch.from_numpy(rng.random(count) < recipe.loss.terminal_share)] = T - 1
    return t


def measured_batches(
    recipe: TrainingRecipe, examples, denoiser: Denoiser, start: int, rank: int
) -> Iterator[list[tuple[Measured, Tensor, Tensor]]]:
    """Endless batches ``[(example, t, noise)]`` for training through the sampler; drawn as
    :func:`batches` does.
    """
    step = start
    while True:
        rng = np.random.default_rng([recipe.seed, rank, step])
        batch = []
        for example in examples.measured(denoiser, rng):
            noise = torch.from_numpy(rng.standard_normal(example.x0.shape, dtype=np.float32))
            batch.append((example, _times(recipe, len(noise), rng), noise.to(denoiser.device)))
        yield batch
        step += 1


def train(
    recipe: TrainingRecipe,
    data: str | Path,
    out: str | Path,
    *,
    exclude: tuple[str, ...] = (),
    start_from: str | Path | None = None,
    resume: bool = False,
    mixed_precision: str = "no",
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Train a recipe and write the model folder ``out`` (averaged weights, config, schedule,
    ``denoiser.json``).

    ``start_from`` is a shipped model's name or a model folder, of the same architecture, whose
    weights are trained further. Checkpoints go to ``out/checkpoint``; ``resume`` continues from
    there with the same data order. Several GPUs: start it through ``accelerate launch``.

    A run that ends before its first checkpoint leaves nothing.

    Raises:
        ValueError: no usable picture, a model to start from that has other weights, a ``vp`` recipe
            for ``epsilon`` (or ``sample`` without a condition), or nothing to resume.
        FileNotFoundError: no such data folder.
        FileExistsError: ``out`` holds something, and nothing is resumed.
        ImportError: accelerate isn't installed.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError(
            "training needs the package accelerate: pip install 'restobox[train]'"
        ) from error
    if mixed_precision not in PRECISIONS:
        raise InputError(
            f"mixed precision {mixed_precision!r} is unknown; known: {', '.join(PRECISIONS)}"
        )
    known = ("v_prediction", "sample") if shown_channels(recipe) else ("v_prediction",)
    if recipe.process.kind == "vp" and recipe.process.prediction_type not in known:
        raise ValueError(
            f"{recipe.task} under a variance-preserving process is trained for"
            f" {' or '.join(known)}; set process.prediction_type"
        )
    data, out = Path(data), Path(out)
    if not data.is_dir():
        raise FileNotFoundError(f"data folder {data} does not exist")
    if not resume and (
        out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    ):
        raise FileExistsError(
            f"output {out} exists already: give --resume to go on with the run in it, or the name"
            " of a new folder"
        )
    check_folder(out)
    check_outputs([out], [data, start_from])
    examples: Any = examples_of(recipe)(recipe, data, exclude)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    denoiser = build(recipe)
    checkpoint = out / "checkpoint" / "state.pt"
    # a run that was killed before its first checkpoint left its log alone, and begins again
    goes_on = resume and (checkpoint.exists() or not (out / LOG).is_file())
    if start_from is not None and not goes_on:
        load_weights(denoiser.network, start_from)
    network = denoiser.network.to(memory_format=torch.channels_last)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=recipe.optimizer.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=1e-4,
    )
    start = 0
    if goes_on:
        state = _read_checkpoint(checkpoint, recipe)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    network, optimizer = accelerator.prepare(network, optimizer)
    average = {k: v.to(accelerator.device) for k, v in average.items()}
    denoiser = denoiser.around(network)
    log: Log | None = None
    conditional = shown_channels(recipe) > 0 and not isinstance(examples, LatentExamples)
    rng = np.random.default_rng([recipe.seed, 2])
    source: Iterator[Any]
    if recipe.unrolled is not None:
        source = measured_batches(recipe, examples, denoiser, start, accelerator.process_index)
        held = [
            e for _ in range(6) for e in examples.measured(denoiser, rng) if e.correct is not None
        ]
    else:
        source = batches(recipe, examples, start, accelerator.process_index, accelerator.device)
        fixed = tuple(v.to(accelerator.device) for v in examples.draw(2 * recipe.batch_size, rng))

    def measure() -> float:
        if recipe.unrolled is not None:
            return unrolled_gain(denoiser, held, recipe.unrolled.steps)
        return gain(denoiser, examples, *fixed) if conditional else math.nan

    def save(step: int) -> None:
        state = {
            "network": accelerator.unwrap_model(network).state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": step,
            "recipe": recipe.model_dump(mode="json"),
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with together():
            replace_file(checkpoint, partial(torch.save, state))
            save_model(denoiser, average, out)

    network.train()
    with _alone(out, checkpoint, accelerator.is_main_process):
        if accelerator.is_main_process:
            log = Log(out / LOG, start)
        if log is not None and start == recipe.steps:
            save(start)  # a machine that stopped may have left a part of it
        for step in range(start, recipe.steps):
            rate = _learning_rate(recipe, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            total, batch = 0.0, next(source)
            for part in batch if recipe.unrolled is not None else [batch]:
                with accelerator.autocast():
                    loss = _loss(recipe, denoiser, examples, part) / (
                        len(batch) if recipe.unrolled is not None else 1
                    )
                total += float(loss.detach())
                if not math.isfinite(total):
                    kept = f" {out} keeps the last checkpoint;" if checkpoint.is_file() else ""
                    raise ValueError(
                        f"the loss is {total} at step {step + 1}: training diverged.{kept} lower"
                        " optimizer.learning_rate, or train without half precision"
                    )
                accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            _average(
                average,
                accelerator.unwrap_model(network),
                min(recipe.optimizer.ema, (1 + step) / (10 + step)),
            )
            progress(step + 1, total)
            if log is not None:
                with accelerator.autocast():
                    log.add(step + 1, total, float(norm), rate, measure)
                last = step + 1 == recipe.steps
                if last or (step + 1) % CHECKPOINT_EVERY == 0:
                    save(step + 1)
    if log is not None:
        log.close()
    return out


@contextlib.contextmanager
def _alone(out: Path, checkpoint: Path, is_main_process: bool) -> Iterator[None]:
    """One run writes to ``out`` at a time, and of one that ends before its first checkpoint nothing
    stays: the folder is as it was.
    """
    if not is_main_process:
        yield
        return
    was_there = out.exists()
    with alone_in(out):
        try:
            yield
        except BaseException:
            if not checkpoint.is_file():
                board = out / "tensorboard"
                for path in (out / LOG, *board.glob("events.*")):
                    path.unlink(missing_ok=True)
                made = (checkpoint.parent, out / "unet", out / "scheduler", board)
                for folder in (*made, *([] if was_there else [out])):
                    with contextlib.suppress(OSError):  # not there, or somebody's files are in it
                        folder.rmdir()
            raise


def _read_checkpoint(path: Path, recipe: TrainingRecipe) -> dict[str, Any]:
    """The state of a run of this recipe; the number of steps alone may be another."""
    if not path.is_file():
        raise ValueError(f"nothing to resume: {path} does not exist")
    with reading(path, "a checkpoint", ModelError):
        state = torch.load(path, weights_only=True, map_location="cpu")
        before, now = state["recipe"], recipe.model_dump(mode="json")
        other = [k for k in now if k != "steps" and before.get(k) != now[k]]
    if state["step"] > recipe.steps:
        raise ModelError(
            f"{path} is of step {state['step']}, and the recipe ends at {recipe.steps}; give a"
            " recipe of more steps"
        )
    if other:
        raise ModelError(
            f"{path} is of a run with another {', '.join(other)}; resume it with its own recipe, or"
            " train into a new folder"
        )
    return state


def _loss(recipe: TrainingRecipe, denoiser: Denoiser, examples, part) -> Tensor:
    """The loss that the recipe asks for, of what its batches hold."""
    if recipe.unrolled is not None:  # and the network stays a diffusion model
        e, t, noise = part
        diffusion = denoising_loss(denoiser, e.x0, e.condition, e.missing, t, noise, recipe.loss)
        return (
            diffusion
            if e.correct is None
            else diffusion + unrolled_loss(denoiser, e, recipe.unrolled.steps, recipe.loss)
        )
    *drawn, t, noise = part
    if isinstance(examples, LatentExamples):
        clean, measured, variance, std = drawn
        prior = examples.scenes.stage == "prior"
        return latent_loss(denoiser, clean, measured, variance, std, t, noise, prior=prior)
    if shown_channels(recipe) == 0:
        (image,) = drawn
        if count := round(recipe.noise.clipped * len(image)):
            kappa = torch.tensor([denoiser.process.kappa(float(s)) for s in t[:count]]).to(noise)
            cut = cut_off(denoiser.from_unit(image[:count]), noise[:count], kappa)
            noise = torch.cat([cut, noise[count:]])
        return plain_loss(denoiser, image, t, noise, recipe.loss)
    x0, condition, missing = examples.show(denoiser, *drawn)
    if denoiser.process.holds_image:
        return residual_loss(denoiser, x0, condition, t, noise, recipe.loss)
    return denoising_loss(denoiser, x0, condition, missing, t, noise, recipe.loss)


def _learning_rate(recipe: TrainingRecipe, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    opt = recipe.optimizer
    if step < opt.warmup:
        return opt.learning_rate * (step + 1) / opt.warmup
    return (
        opt.learning_rate
        * 0.5
        * (1 + math.cos(math.pi * (step - opt.warmup) / max(1, recipe.steps - opt.warmup)))
    )


@torch.no_grad()
def _average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    for key, value in network.state_dict().items():
        average[key].lerp_(value, 1 - decay)
