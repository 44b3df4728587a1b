"""Each family of networks, in small, through the whole line: what a user's own checkpoint meets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import checkpoints
from helpers.commands import restobox
from helpers.data import GOLDEN, smooth_picture
from helpers.deploy import calibrate
from helpers.latent import write_latent
from helpers.networks import tiny_unet

from export.runtime.session import Session
from restoration.io.images import Photo, write_image
from solvers import DDIM, explicit, solve
from toolbox.api import load, reading_with
from toolbox.deploy.convert import run_convert
from toolbox.deploy.export import run_export, run_export_restorer
from toolbox.deploy.options import Checks, Graph, Origin, Trials, Whole
from toolbox.deploy.quantize import run_quantize
from toolbox.deploy.verify import run_verify, run_verify_restorer
from toolbox.tasks import task_by_name
from toolbox.tasks.settings import Settings

PLACE = GOLDEN / "checkpoints"
STEPS, SIDE = 2, 32
GUIDED = {"prompt": "red cat", "guidance": 3.0}


@dataclass(frozen=True)
class Family:
    """A file of the golden checkpoints, a network that is made (:mod:`helpers.checkpoints`) or a
    folder of a diffusers scheduler; what its weights don't tell, and the task it is for.
    """

    source: str
    options: dict[str, Any]
    task: str
    scheduler: dict[str, Any] | None = None


GROUPS = {"groups": 4}
CLASS = {"num_heads": 2, "use_new_attention_order": True, "class_label": 3}
FAMILIES = {
    "guided": Family("adm-ffhq-like.pt", {"num_head_channels": 16}, "inpaint"),
    "guided-class": Family("adm-class-neworder.pt", CLASS, "inpaint"),
    "improved": Family("iddpm-cifar-like.pt", {"num_heads": 4}, "inpaint"),
    "drunet-grey": Family("drunet-gray-like.pth", {}, "denoise"),
    "drunet-colour": Family("drunet-color-like.pth", {}, "inpaint"),
    "dncnn": Family("dncnn", {}, "denoise"),
    "ffdnet": Family("ffdnet", {}, "denoise"),
    "rddm-two": Family("rddm-two-unets.pt", GROUPS, "paired"),
    "rddm-shared": Family("rddm-shared-encoder.pt", GROUPS, "paired"),
    "rddm-one": Family("rddm-one-unet.pt", GROUPS, "paired"),
    "resfusion": Family("resfusion-restore.ckpt", GROUPS, "paired"),
    "resfusion-mask": Family("resfusion-restore-mask.ckpt", GROUPS, "paired"),
    "nafnet": Family("nafnet", {}, "paired"),
    "swinir": Family("swinir", {}, "paired"),
    "diffusers": Family("DDPMScheduler", {}, "inpaint", {"prediction_type": "v_prediction"}),
    "score-sde": Family("ScoreSdeVeScheduler", {}, "inpaint", {}),
    "edm": Family("EDMEulerScheduler", {}, "inpaint", {}),
    "flow": Family("FlowMatchEulerDiscreteScheduler", {}, "inpaint", {"shift": 3.0}),
    "stable-diffusion": Family("latent", GUIDED, "inpaint"),
}


@dataclass
class Figures:
    """What the line found.

    Attributes:
        published: largest difference from the published code's answer, over its largest value;
            None: compared in tests of their own.
        restored: network calls of the command's run.
        w8a8: relative error of a call, quantized, on ONNX Runtime.
        onnx: largest difference of a restored picture, float graph and PyTorch.
        failures: of ``verify``, of the quantized network.
        whole: PSNR between whole restorations as one graph and PyTorch's; a sentence where they
            are refused.
    """

    published: float | None
    restored: int
    w8a8: float
    onnx: float
    failures: list[str]
    whole: float | str


def furnish(place: Path) -> Path:
    """Pairs of pictures with masks, in ``place``."""
    for folder in ("degraded", "clean", "mask"):
        (place / folder).mkdir(parents=True)
        for k in range(2):
            picture = smooth_picture(40, 36) * (1 - 0.2 * k)
            if folder == "mask":
                picture = (picture > 0.5).astype(picture.dtype)
            write_image(place / folder / f"{k}.png", Photo(picture))
    return place


def source_of(family: Family, place: Path) -> Path:
    """The checkpoint's file or folder, made in ``place`` where it isn't there."""
    if family.source == "latent":
        return write_latent(place / "source", 9)
    if family.scheduler is not None:
        import diffusers

        tiny_unet().save_pretrained(place / "source" / "unet")
        scheduler = getattr(diffusers, family.source)(**family.scheduler)
        scheduler.save_pretrained(place / "source" / "scheduler")
        return place / "source"
    if family.source in checkpoints.MADE:
        checkpoints.write(family.source, place / "source.pth")
        return place / "source.pth"
    return PLACE / family.source


def through(name: str, data: Path, place: Path) -> Figures:
    """Converted, compared with its code, restored by, calibrated, quantized, exported, verified."""
    family = FAMILIES[name]
    source, model, kind = source_of(family, place), str(place / "model"), family.task
    kept = {k: v for k, v in family.options.items() if k != "class_label"}
    with reading_with(kept):  # a folder keeps all classes
        run_convert(str(source), Path(model))
    label = {k: v for k, v in family.options.items() if k == "class_label"}
    with reading_with(label):
        task, denoiser = task_by_name(kind), load(model)
        continuous = denoiser.process.raw_types and kind == "inpaint"
        solver, pictures = task.settings.solver, data if kind == "paired" else data / "clean"
        grid = "karras" if continuous else "trailing"
        run = Settings(solver, STEPS, grid)
        calls = _restored(data, place, model, family, label, grid)
        calibration, codes, bundle = (place / part for part in ("c.safetensors", "q", "b"))
        runs = {"solver": solver, "steps": [STEPS], "grid": grid, "count": 2, "side": SIDE}
        calibrate(model, pictures, calibration, task=kind, **runs)
        run_quantize(model, calibration, codes)
        run_export(model, bundle, Graph(codes, "cpu"))
        if kind != "denoise":  # which these times are not for
            assert calls == _restored(data, place, str(bundle), family, {}, grid)
        origin, trials = Origin(model, codes, calibration), Trials(pictures, 1, SIDE)
        found = run_verify(bundle, origin, trials, run, Checks(psnr_drop=100.0))
        failures = list(found["failures"])
        if not found["fused"] == found["planned"] > 0:
            failures.append(f"{found['fused']} of {found['planned']} convolutions fused")
        run_export(model, place / "f", Graph(target="float"))
        options = task.simulated(denoiser)
        trial = task.trial(task.source(pictures, denoiser, SIDE, 0), 0, options)
        graph = Session(place / "f")
        graph.autoencoder = denoiser.autoencoder
        host, exported = (
            task.restorer(d, options, run)(trial.inputs, seed=1).mean for d in (denoiser, graph)
        )
        return Figures(
            published_error(name, denoiser),
            calls,
            found["error"],
            float((host - exported).abs().max()),
            failures,
            _whole(model, pictures, place, kind, run),
        )


def _whole(model: str, pictures: Path, place: Path, kind: str, run: Settings) -> float | str:
    sigma, steps = (0.1, 1) if kind == "denoise" else (0.0, STEPS)
    whole = Whole(kind, sigma=sigma, size=f"{SIDE}x{SIDE}")
    run = Settings(run.solver, steps, run.grid)
    try:
        run_export_restorer(model, place / "w", Graph(target="float"), whole, run)
    except ValueError as error:
        return str(error)
    trials, checks = Trials(pictures, 1), Checks(psnr_drop=100.0)
    return float(run_verify_restorer(place / "w", Origin(model), trials, checks)["psnr_between"])


def _restored(
    data: Path, place: Path, model: str, family: Family, label: dict[str, int], grid: str
) -> int:
    """Network calls of the command's run on a picture, with a model or its bundle."""
    kind = family.task
    words = ["restore", kind, data / "degraded" / "0.png", "-o", place / "o.png", "--json"]
    words += ["--model", model, "--steps", "1" if kind == "denoise" else STEPS]
    words += {"inpaint": ["-m", "random:0.05"], "denoise": ["--sigma", "0.1"]}.get(kind, [])
    words += ["-m", data / "mask" / "0.png"] if "mask" in family.source else []
    words += ["--class", label["class_label"]] if label else []
    words += ["--grid", grid] if kind == "inpaint" else []
    if family.source == "latent" and not (Path(model) / "vae").exists():
        words += ["--vae", place / "model" / "vae"]
    done = restobox(*words)
    assert done.returncode == 0, done.stderr
    assert (place / "o.png").stat().st_size > 0
    import json

    return int(json.loads(done.stdout)["nfe"])


@torch.no_grad()
def published_error(name: str, denoiser: Any) -> float | None:
    """Largest difference from what the published code says to the same input, over its largest
    value; None: compared in ``tests/toolbox/test_latent.py``.
    """
    family, generator = FAMILIES[name], torch.Generator().manual_seed(0)
    network, channels = denoiser.network, denoiser.image_channels
    if family.source == "latent":
        return None
    if family.scheduler is not None:
        return _stepped(family, denoiser)
    if family.source in checkpoints.MADE:
        code = checkpoints.MADE[family.source]()
        x = torch.rand(2, channels, 16, 16, generator=generator)
        if family.source in checkpoints.SPANDREL:
            return _apart(denoiser.conditioned(x)(torch.randn_like(x), 500).x0, code(x))
        told = (torch.full((2,), 0.3),) if "ffdnet" in family.source else ()
        return _apart(denoiser(x, 0.3).x0, code(x, *told))
    case = dict(np.load((PLACE / family.source).with_suffix(".npz")))
    pick = [0]
    if "cfg_num_classes" in case:
        pick = [case["y"].tolist().index(family.options["class_label"])]
    parts = [case["x"]]
    parts += [case["y"]] if "y" in case and case["y"].ndim == 4 else []
    parts += [case["mask"]] if "mask" in case else []
    x = torch.from_numpy(np.concatenate(parts, axis=1))[:, : network.config.in_channels]
    t = torch.from_numpy(case["sigma"] if "sigma" in case else case["t"]).float()
    answers = [case[k] for k in ("out", "out0", "out1") if k in case]
    wanted = torch.from_numpy(np.concatenate(answers, axis=1))
    out = network(x[pick], t[pick])
    return _apart(out if isinstance(out, torch.Tensor) else out.sample, wanted[pick])


def _stepped(family: Family, denoiser: Any) -> float:
    """A deterministic run of ours against the scheduler's formulas, on its own levels."""
    import diffusers

    network = tiny_unet().eval()
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    if family.source == "ScoreSdeVeScheduler":  # whose steps are stochastic: one estimate
        score = network(x, torch.tensor([3.0])).sample
        return _apart(denoiser(x, 3.0).x0, x + 9 * score)
    if family.source == "DDPMScheduler":  # likewise
        config = family.scheduler or {}
        scheduler = diffusers.DDIMScheduler(**config, clip_sample=False)
    else:
        scheduler = getattr(diffusers, family.source)(**(family.scheduler or {}))
    scheduler.set_timesteps(5)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    wanted = x
    for t in scheduler.timesteps:
        scaled = getattr(scheduler, "scale_model_input", lambda x, _: x)(wanted, t)
        wanted = scheduler.step(network(scaled, t).sample, t, wanted).prev_sample
    if hasattr(scheduler, "sigmas"):
        times = [min(s, denoiser.process.end) for s in scheduler.sigmas[:-1].double().tolist()]
    else:
        times = scheduler.timesteps.tolist()
    return _apart(solve(DDIM(), denoiser, x, explicit(times)).x0, wanted)


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())
