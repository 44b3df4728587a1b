"""A bundle: one folder with an ONNX graph and everything needed to ask it a question.

``bundle.json`` holds the process as :mod:`solvers.interop.description` writes it, the denoiser's
settings, the table's timesteps and the provenance; every other file is listed there with its size
and SHA-256. There is no pickle. The one program, ``run.py`` (:mod:`export.edge`), is for devices
without this package, which never runs it. A bundle is data from somewhere else, so all of it is
checked on reading: names, links, sizes, hashes, versions, and that the graph refers to no other
file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from export.records import MOST_BYTES, Level, Part, RunRecord, RunTable
from solvers.files import check_free, replace_file, replace_folder
from solvers.inputs.errors import ModelError, reading
from solvers.inputs.strict_json import read_object
from solvers.interop.description import from_description
from solvers.processes.process import Process

FORMAT, READABLE = 3, (1, 2, 3)
MANIFEST, NETWORK, RESTORER, CARD = "bundle.json", "network.onnx", "restorer.onnx", "README.md"
RUNNER, RUNNER_SOURCE = "run.py", Path(__file__).parent / "edge" / "restobox_edge.py"
# a U-Net of ten levels halves its input nine times
MOST_MULTIPLE = 512


class File(Part):
    """A file of the folder."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=1, le=MOST_BYTES)


class Settings(Part):
    """What :class:`solvers.denoiser.Denoiser` takes beside network and process."""

    prediction_type: Literal[
        "epsilon",
        "sample",
        "v_prediction",
        "velocity",
        "residual",
        "resnoise",
        "residual_noise",
        "sample_noise",
    ]
    value_range: tuple[float, float]
    fold: int = Field(ge=1, le=64)
    multiple: int = Field(ge=1, le=MOST_MULTIPLE)
    condition_channels: int = Field(ge=0, le=4096)
    residual: bool
    data_std: float = Field(1.0, gt=0)
    unrolled_steps: int | None = Field(None, ge=1, le=1000)
    shown: str | None = Field(None, max_length=40)
    scaled: bool | None = None
    padding: Literal["replicate", "reflect", "zeros"] = "replicate"
    least: int = Field(1, ge=1, le=MOST_MULTIPLE)


class Bundle(Part):
    """The content of ``bundle.json``.

    Attributes:
        target: the kernels the graph is laid out for; ``cuda``: the network in float16.
        graph: ``timestep``: inputs ``x, t``; ``step``: inputs ``x, index`` into ``timesteps``;
            ``restorer``: the whole of ``run``.
        run: of a restorer graph.
        planned: number of convolutions that shall run on integers.
        recipe, calibration, model, seed, versions, parity: provenance.
        runs, levels: what a network's bundle can be run for without this package
            (:mod:`export.tables`).
    """

    format: int
    target: Literal["float", "cuda", "cpu", "openvino", "tensorrt"]
    graph: Literal["timestep", "step", "restorer"]
    timesteps: list[float] = Field(max_length=10_000)
    channels: int = Field(ge=1, le=65_536)
    settings: Settings
    process: dict[str, Any]
    opset: int = Field(ge=18, le=100)
    planned: int = Field(ge=0)
    recipe: dict[str, Any] | None = None
    calibration: str | None = None
    model: str
    seed: int | None = None
    versions: dict[str, str]
    parity: dict[str, Any] | None = None
    run: RunRecord | None = None
    runs: list[RunTable] = Field(default_factory=list, max_length=20)
    levels: list[Level] = Field(default_factory=list, max_length=10_000)
    files: dict[str, File] = Field(max_length=100)

    @property
    def model_file(self) -> str:
        """Name of the ONNX file."""
        return RESTORER if self.graph == "restorer" else NETWORK

    @field_validator("process", mode="before")
    @classmethod
    def _described(cls, process: Any) -> Any:
        """Format 1 wrote ``{"kind": "VP", "tables": [...]}``."""
        if not isinstance(process, dict) or "tables" not in process:
            return process
        names: dict[object, tuple[str, ...]] = {
            "VP": ("vp", "alphas_cumprod"),
            "StepIndexed": ("step-indexed", "alphas_cumprod"),
        }
        kind, *fields = names.get(process.get("kind"), ("tables", "a_table", "b_table", "c_table"))
        return {"kind": kind} | dict(zip(fields, process["tables"], strict=True))

    def make_process(self) -> Process:
        """The process of the denoiser; the same tables to the bit.

        Raises:
            ValueError: the description makes none.
        """
        return from_description(self.process)

    @model_validator(mode="after")
    def _consistent(self):
        if (self.graph == "timestep") == bool(self.timesteps):
            raise ValueError(
                "a step or restorer graph lists its timesteps, a timestep graph lists none"
            )
        if (self.graph == "restorer") != (self.run is not None):
            raise ValueError("a restorer graph, and no other, says what it runs")
        if self.model_file not in self.files:
            raise ValueError(f"files must list {self.model_file}")
        for name in self.files:
            if (
                name in (MANIFEST, "", ".", "..")
                or Path(name).name != name
                or "\\" in name
                or ":" in name
                or "\0" in name
            ):
                raise ValueError(f"file name {name!r} leaves the folder")
        return self


def write_bundle(folder: str | Path, onnx_model: bytes, card: str, **fields: Any) -> Bundle:
    """Write a bundle under a temporary name and rename it; a bundle that is already there is
    replaced.

    Args:
        folder: the bundle.
        onnx_model: a serialised ONNX model without external data.
        card: the model card, Markdown.
        **fields: the other fields of :class:`Bundle` (``format``, ``files`` and ``versions`` are
            filled in).

    Raises:
        OSError: ``folder`` exists and is no bundle, or holds something else too.
        ValueError: the graph is too large, or the fields don't fit.
    """
    check_bundle_free(folder)
    if len(onnx_model) > MOST_BYTES:
        raise ValueError(
            f"the graph has {len(onnx_model)} bytes; a bundle holds at most {MOST_BYTES}"
        )
    contents = {
        RESTORER if fields["graph"] == "restorer" else NETWORK: onnx_model,
        CARD: card.encode(),
        RUNNER: RUNNER_SOURCE.read_bytes(),
    }
    files = {name: entry_of(data) for name, data in contents.items()}
    bundle = Bundle(format=FORMAT, files=files, versions=_versions(), **fields)

    def write(place: Path) -> None:
        for name, data in contents.items():
            (place / name).write_bytes(data)
        _write_manifest(place / MANIFEST, bundle)

    replace_folder(folder, write, "bundle", _ours)
    return bundle


def check_bundle_free(folder: str | Path) -> None:
    """Raise before any work is done if a bundle can't become ``folder``."""
    check_free(Path(folder), "bundle", _ours)


def _ours(folder: Path) -> list[str] | None:
    """The files that a bundle's manifest names; None if there is no such manifest."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        ours = (
            content["format"] in READABLE
            and {NETWORK, RESTORER} & set(content["files"])
            and "process" in content
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return [MANIFEST, *content["files"]] if ours else None


def set_parity(folder: str | Path, parity: dict[str, Any]) -> None:
    """Put verification figures into an existing bundle's manifest."""
    replace_manifest(folder, read_bundle(folder), parity=parity)


def replace_manifest(folder: str | Path, bundle: Bundle, **changes: Any) -> Bundle:
    """Write the manifest of a bundle that has been read, in this version's format and with these
    fields changed; what it holds now.

    Raises:
        OSError: the place can't be written.
    """
    changed = bundle.model_copy(update={"format": FORMAT} | changes)
    replace_file(Path(folder) / MANIFEST, lambda part: _write_manifest(part, changed))
    return changed


def entry_of(data: bytes) -> File:
    """What a manifest says of a file with this content."""
    return File(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _write_manifest(path: Path, bundle: Bundle) -> None:
    path.write_text(bundle.model_dump_json(indent=1), encoding="utf-8")


def read_bundle(folder: str | Path) -> Bundle:
    """Read and verify a bundle: schema, version, names, links, sizes, hashes, no external data.

    Raises:
        FileNotFoundError: no such folder, or it holds no ``bundle.json``.
        ModelError: anything about it that isn't as it should be; the message says what.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(
            f"{folder} is no bundle: it has no {MANIFEST}; make one with `restobox export`"
        )
    if manifest.is_symlink():
        raise ModelError(f"{manifest} is a link; bundles hold plain files only")
    with reading(manifest, "the manifest of a bundle", ModelError):
        content = read_object(manifest, ModelError)
        found = content.get("format")
        if found not in READABLE or isinstance(found, bool):
            known = ", ".join(map(str, READABLE))
            raise ModelError(
                f"{manifest}: format {found!r} is unknown; this version reads {known}: update it,"
                " or export again"
            )
        try:
            bundle = Bundle.model_validate(content)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'bundle'}: {e['msg']}"
                for e in error.errors()[:5]
            )
            raise ModelError(f"{manifest} is damaged: {wrong}; export again") from error
        bundle.make_process()
    for name, entry in bundle.files.items():
        _check_file(folder / name, entry)
    with reading(folder / bundle.model_file, "an ONNX model", ModelError):
        _check_graph(folder / bundle.model_file, bundle)
    return bundle


def _check_file(path: Path, entry: File) -> None:
    if path.is_symlink() or not path.is_file():
        raise ModelError(f"{path} is missing or no plain file; export the bundle again")
    if path.stat().st_size != entry.size:
        raise ModelError(
            f"{path} has {path.stat().st_size} bytes but {MANIFEST} says {entry.size}: the bundle"
            " was changed or cut short"
        )
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            raise ModelError(
                f"{path} doesn't match its SHA-256 in {MANIFEST}: the bundle was changed after it"
                " was made"
            )


def _check_graph(path: Path, bundle: Bundle) -> None:
    import onnx

    model = onnx.load_model(path, load_external_data=False)
    nodes = [node for function in model.functions for node in function.node]
    for tensor in _tensors(model.graph, nodes):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(
                f"{path} keeps {tensor.name!r} in another file; a bundle's graph must be complete"
                " in itself"
            )
        if min(tensor.dims, default=1) < 0 or math.prod(tensor.dims) > MOST_BYTES:
            raise ModelError(
                f"{path} declares {tensor.name!r} with the impossible shape {list(tensor.dims)}"
            )
    if bundle.run is None:
        _check_outputs(path, bundle, model)
    wanted = _inputs(bundle)
    found = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    for name, channels in wanted.items():
        # a length that isn't fixed is 0
        axis = found.get(name, [])[-3:][:1]
        if set(found) != set(wanted) or (channels and axis not in ([channels], [0])):
            raise ModelError(
                f"{path} takes the inputs {found} but {MANIFEST} says {wanted} (with their"
                " channels): export again"
            )


def _check_outputs(path: Path, bundle: Bundle, model: Any) -> None:
    """The channels that a network gives are those of its images, once or (two heads) twice; a
    decoder's are of folded pictures.
    """
    s = bundle.settings
    own = bundle.channels - s.fold**2 * s.condition_channels
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    given = shape[1] if len(shape) == 4 else -1
    fits = given > 0 if s.shown == "latents" else given in (0, own, 2 * own)
    if own < 1 or own % s.fold**2 or not fits:
        raise ModelError(
            f"{path} gives outputs of shape {shape} for inputs of {bundle.channels}, which"
            f" {s.condition_channels} condition channels at fold {s.fold} in {MANIFEST} contradict:"
            " export again"
        )


def _inputs(bundle: Bundle) -> dict[str, int]:
    """The inputs of a bundle's graph, and the channels of those that are images (else 0)."""
    if (run := bundle.run) is None:
        return {"x": bundle.channels, "t" if bundle.graph == "timestep" else "index": 0}
    images = {name: shape[-3] if len(shape) > 2 else 0 for name, shape in run.inputs.items()}
    return images | ({"noise": 0} if run.draws else {})


def _tensors(graph: Any, nodes: list[Any]) -> Iterator[Any]:
    """All tensors that a graph, its inner graphs and these nodes hold."""
    graphs = [graph]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes = [*nodes, *graph.node]
        for node in nodes:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
        nodes = []


def _versions() -> dict[str, str]:
    found = {}
    for name in ("restobox", "torch", "diffusers", "brevitas", "onnx", "onnx-ir", "onnxscript"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
