"""``load()``: a model by name, file or folder, in whatever form it is stored."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.temporal.features import FullSteps
    from solvers.denoiser import Denoiser

ZOO = Path(__file__).parent / "zoo"
# what is said of checkpoints in this context (:func:`reading_with`)
_said: ContextVar[Mapping[str, Any] | None] = ContextVar("_said", default=None)
# threads of networks in this context (:func:`computing_with`)
_threads: ContextVar[int | None] = ContextVar("_threads", default=None)
# models that were loaded in this context (:func:`keeping_models`), and threads of their sessions
_kept: ContextVar[tuple[dict[Any, Any], int | None] | None] = ContextVar("_kept", default=None)
HUB = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelInfo:
    """A shipped model: name, place, precision (``fp32`` or ``int8``), a sentence about it, the
    SHA-256 of its weights, and the tasks that it was made for.
    """

    name: str
    folder: Path
    precision: str
    summary: str
    sha256: str
    tasks: tuple[str, ...] = ()


def models() -> list[ModelInfo]:
    """The models that ship with the package."""
    found = []
    for card in sorted(ZOO.glob("*/model.json")):
        content = json.loads(card.read_text(encoding="utf-8"))
        found.append(
            ModelInfo(
                card.parent.name,
                card.parent,
                content["precision"],
                content["summary"],
                content["sha256"],
                tuple(content["tasks"]),
            )
        )
    return found


@contextlib.contextmanager
def reading_with(options: Mapping[str, Any]) -> Iterator[None]:
    """In this block :func:`load` takes these options of checkpoints where its caller gives none:
    those of a command, for whichever of its parts loads the model.
    """
    token = _said.set({name: value for name, value in options.items() if value is not None})
    try:
        yield
    finally:
        _said.reset(token)


def checkpoint_options() -> dict[str, Any]:
    """What :func:`reading_with` says."""
    return dict(_said.get() or {})


@contextlib.contextmanager
def computing_with(threads: int | None = None) -> Iterator[None]:
    """In this block networks compute with so many threads of the processor, PyTorch's and exported
    ones; None: as they are set.
    """
    if threads is None:
        yield
        return
    import torch

    before, token = torch.get_num_threads(), _threads.set(threads)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads.reset(token)


@contextlib.contextmanager
def keeping_models(kept: dict[Any, Any], threads: int | None = None) -> Iterator[None]:
    """In this block :func:`load` loads a model once and gives the same object again.

    Args:
        kept: filled with the models; hand the same one in again to go on with them.
        threads: of exported graphs' sessions where the caller of ``load`` says nothing.
    """
    token = _kept.set((kept, threads))
    try:
        yield
    finally:
        _kept.reset(token)


# Any stands for the Restorer of a bundle that holds a whole restoration: only who loads such a
# bundle has to tell the two apart
def load(
    model: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    cache: FullSteps | None = None,
    **options: Any,
) -> Denoiser | Any:
    """A denoiser by the name of a shipped model, or from a file or folder.

    Args:
        model: a name that :func:`models` lists; a file of weights of a known family (``.pt .pth
            .ckpt .safetensors .bin``, docs/networks.md), which is read without running code; a
            diffusers folder; an exported bundle (with ``bundle.json``); or, with huggingface_hub
            and a connection, ``owner/name`` of the Hugging Face hub.
        device: ``cpu``, ``cuda``, for bundles ``openvino`` and ``openvino-bf16``; ``auto``: the
            fastest of them on this machine (:mod:`export.runtime.auto`).
        threads: threads of an exported graph's session; all cores by default.
        cache: reuse the U-Net's deep features between the steps of a run: k computes them at every
            k-th step, a list at these steps (:func:`quant.temporal.features.cached`).
        options: what a file's weights don't tell: ``num_head_channels``, ``num_heads``,
            ``use_new_attention_order``, ``schedule``, ``train_steps``, ``sum_scale``,
            ``objective``, ``groups``; ``class_label`` of class-conditional networks; of latent
            networks ``prompt``, ``negative_prompt`` and ``guidance``, ``vae``, the folder of an
            autoencoder that is not in the model's, and ``decoder``, a bundle of its decoder. What
            is assumed in their place is said in one line on stderr.

    Returns:
        A ``solvers.Denoiser``: PyTorch for files and model folders, ONNX Runtime or OpenVINO for
            bundles; for a bundle of a whole restoration an ``export.runtime.session.Restorer``.

    Raises:
        ValueError: none of these, a file or folder that holds no model, options that don't fit, a
            PyTorch model for ``openvino``, or a cache for what has no deep features.
    """
    threads = _threads.get() if threads is None else threads
    found = _once(model, device, threads, **options)
    if cache is None:
        return found
    if not hasattr(found, "network"):
        raise ValueError(
            f"{model} is a whole restoration in one graph, whose steps are fixed: leave out the"
            " cache"
        )
    from quant.temporal.features import cached

    return cached(found, cache)


def _once(model: str | Path, device: str, threads: int | None, **options: Any) -> Denoiser | Any:
    """Loaded, or as it was loaded before where models are kept."""
    options = checkpoint_options() | options
    if (keeping := _kept.get()) is None:
        return _load(model, device, threads, options)
    kept, own = keeping
    threads = own if threads is None else threads
    key = (str(model), device, threads, tuple(sorted(options.items())))
    if key not in kept:
        kept[key] = _load(model, device, threads, options)
    return kept[key]


def local(model: str | Path) -> Path:
    """Where a model lies on this machine, if it does: of a shipped one by its name."""
    return next((info.folder for info in models() if info.name == str(model)), Path(model))


def place_of(model: str | Path) -> Path:
    """The file or folder of a model: of a shipped one by its name, of ``owner/name`` what the
    Hugging Face hub gives.

    Raises:
        ValueError: there is none.
    """
    place = local(model)
    if not place.exists() and HUB.fullmatch(str(model)) and not place.parent.exists():
        place = _from_hub(str(model))
    if not place.exists():
        from solvers.interop.checkpoints.container import HOW_TO_WRAP

        raise ValueError(
            f"model {str(model)!r} is neither a shipped model"
            f" ({', '.join(info.name for info in models())}) nor a file or"
            f" folder; a network of your own: {HOW_TO_WRAP}"
        )
    return place


def _load(
    model: str | Path, device: str, threads: int | None, options: dict[str, Any]
) -> Denoiser | Any:
    place = place_of(model)
    if (place / "bundle.json").is_file():
        from export.bundle import read_bundle
        from export.runtime.session import Restorer, Session

        restorer = read_bundle(place).graph == "restorer"
        vae, decoder = (None if restorer else options.pop(n, None) for n in ("vae", "decoder"))
        if options:
            raise ValueError(
                f"{model} is an exported bundle, which says itself what it is: leave out what is"
                f" said of checkpoints ({', '.join(options)})"
            )
        kind: Any = Restorer if restorer else Session
        made = kind(place, device=device, threads=threads)
        if vae is not None:
            from solvers.interop.autoencoder import read_autoencoder

            made.autoencoder = read_autoencoder(Path(vae)).fitting(made.image_channels, str(model))
        return _decoding_by(made, decoder, threads)
    from solvers.denoiser import Denoiser

    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("openvino"):
        raise ValueError(
            f"device {device} runs exported bundles; {str(model)!r} is a PyTorch model: export it"
            " first"
        )
    _check_device(device)
    decoder = options.pop("decoder", None)
    made = Denoiser.from_pretrained(place, device=device, **options)
    return _decoding_by(made, decoder, threads)


def _decoding_by(made: Any, decoder: str | None, threads: int | None) -> Any:
    """A latent network whose pictures the exported decoder in this bundle makes.

    Raises:
        ValueError: a network of pictures, or a bundle of something else.
    """
    if decoder is None:
        return made
    from export.runtime.session import Session

    if made.autoencoder is None:
        raise ValueError("--decoder is for networks of latents: leave it out, or give --vae too")
    session = Session(decoder, threads=threads)
    if session.shown != "latents" or session.bundle.channels != made.autoencoder.channels:
        raise ValueError(
            f"{decoder} is no exported decoder of latents of {made.autoencoder.channels} channels:"
            " calibrate --task decode, quantize and export the model's vae/"
        )
    made.autoencoder = made.autoencoder.around(made.autoencoder.encoder, session.network)
    return made


def _check_device(device: str) -> None:
    """Refuse what is no device of PyTorch's, or is not here, before anything is read.

    Raises:
        ValueError: says so.
    """
    import torch

    from solvers.inputs.errors import first_line

    try:
        torch.empty(0, device=device)
        if torch.device(device).type == "meta":  # computes nothing
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise ValueError(
            f"device {device!r} can't be used here ({first_line(error)}); known: cpu, cuda, auto,"
            " and for exported bundles openvino, openvino-bf16"
        ) from error


def _from_hub(name: str) -> Path:
    """The folder of a repository of the Hugging Face hub, once it is here.

    Raises:
        ValueError: huggingface_hub is not installed, or the repository can't be had.
    """
    from solvers.interop.folders import WEIGHTS
    from solvers.interop.text import STORED

    try:
        from huggingface_hub import snapshot_download

        # a star also stands for folders: of those that hold weights only the network's are read
        weights = WEIGHTS[:2]
        wanted = ["*.json", STORED, *weights, *(f"unet/{name}" for name in weights)]
        wanted += [*(f"vae/{name}" for name in weights), "tokenizer/*"]
        wanted += ["text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"]
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=5))
    except ImportError:
        raise ValueError(
            f"model {name!r} is no file or folder; as a name of the Hugging Face hub it needs"
            " huggingface_hub (pip install huggingface_hub)"
        ) from None
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"model {name!r} is neither a shipped model nor a file or folder, and the Hugging Face"
            f" hub can't be asked for it ({first}); download it and give its folder"
        ) from None


def holds_restoration(model: str | Path) -> bool:
    """Whether this name or folder is a bundle of a whole restoration in one graph."""
    if not (Path(model) / "bundle.json").is_file():
        return False
    from export.bundle import read_bundle

    return read_bundle(model).graph == "restorer"


def load_for(task: str, model: str | Path, **place: Any) -> Denoiser:
    """The network's denoiser of this name or folder, which must have been made for such a task.

    Args:
        place: ``device``, ``threads``, ``cache``, as for :func:`load`.

    Raises:
        ValueError: as :func:`load`; a whole restoration in one graph, or a network that is shown
            something else.
    """
    return check_model(load(model, **place), task, str(model))


def check_model(found: Denoiser, task: str, name: str) -> Denoiser:
    """``found`` itself, if ``task`` can run on it; the error names shipped models that fit."""
    from restoration.task import check_kind

    run = getattr(found, "run", None)
    if run is not None:
        raise ValueError(
            f"{name} is a whole restoration ({run.task}) in one graph, which its own run.py runs"
            f" (python {name}/run.py INPUT -o OUT); {task} takes a network's model or bundle"
        )
    try:
        check_kind(found, task)
    except ValueError as error:
        fitting = [info.name for info in models() if task in info.tasks]
        named = ", ".join(fitting) or "none"
        raise ValueError(f"{name}: {error}; shipped models that fit: {named}") from None
    return found


def float_model(model: str, task: str | None = None) -> Denoiser:
    """The PyTorch denoiser of this name or folder, made for ``task`` if one is named.

    Raises:
        ValueError: none, an exported bundle, or a network of another kind.
    """
    import torch

    denoiser = load(model) if task is None else load_for(task, model)
    if not isinstance(getattr(denoiser, "network", None), torch.nn.Module):
        raise ValueError(
            f"model {model!r} is an exported bundle; give the PyTorch model that it was made from"
        )
    return denoiser
