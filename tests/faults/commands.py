"""Every command of the command line: a small call of each that writes, and those that write
nothing. ``{i}`` stands for the folder of inputs, ``{o}`` for that of outputs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from helpers.data import ROOT, TINY_RECIPE, smooth_picture
from helpers.house import furnish

FORMER = ROOT / "tests" / "former"


@dataclass(frozen=True)
class Call:
    """A call that writes.

    Attributes:
        words: what is typed after ``restobox``.
        before: words that are added for the earlier output that is to be replaced; None: nothing
            may be there.
        alone: whether each file of the output stands for itself: items of a run, checkpoints.
        begun: patterns of what an interrupted call leaves, for the next to go on with.
        again: words of that next call, where it is another.
        prepare: puts what is changed in place into the folder of outputs.
    """

    words: str
    before: str | None = ""
    alone: bool = False
    begun: tuple[str, ...] = ()
    again: str = ""
    prepare: Callable[[Path], object] | None = None


def one(task: str, words: str, model: str = "", **options: object) -> Call:
    """A measurement restored; samples of the earlier output are others."""
    named = "" if task == "ultrasound" else f" --model {{i}}/{model or task}"
    return Call(f"restore {task} {words}{named} --steps 2", " --seed 7", **options)


def many(task: str, words: str, **options: object) -> Call:
    """A folder of them."""
    begun = ("out/restobox-manifest.jsonl",)
    found = one(task, f"{words} -o {{o}}/out --resume", **options)
    return Call(found.words, found.before, True, begun)


NET = "--model {i}/inpaint --quantized {i}/quantized"
DRAWS = "--std --write-samples -n 2"


def put(name: str) -> Callable[[Path], object]:
    """What puts a former model or bundle into the folder of outputs."""
    return lambda place: shutil.copytree(FORMER / name, place / name)


WRITING = {
    "demo": Call("demo -o {o}/out --model {i}/inpaint --steps 1 -n 2", " --seed 7"),
    "train": Call(
        "train {i}/tiny.toml --data {i}/training -o {o}/out",
        None,
        True,
        ("out/train.csv", "out/tensorboard/*", "out/checkpoint/*"),
        " --resume",
    ),
    "convert": Call("convert {i}/inpaint -o {o}/out"),
    "calibrate": Call(
        "calibrate {i}/inpaint --data {i}/pictures -o {o}/c.safetensors --steps 2 --count 3"
        " --side 32",
        " --seed 7",
        begun=(".c.safetensors.parts/*",),
    ),
    "calibrate select": Call(
        "calibrate {i}/inpaint --data {i}/pictures -o {o}/c.safetensors --steps 2 --count 3"
        " --side 32 --select ptq4dm --samples 2",
        " --seed 7",
        begun=(".c.safetensors.pool", "..c.safetensors.pool.parts/*"),
    ),
    "quantize": Call("quantize {i}/inpaint --calibration {i}/c.safetensors -o {o}/out"),
    "quantize state": Call(
        "quantize {i}/inpaint --calibration {i}/c.safetensors -o {o}/out --preset best-w4a8"
        " --state {o}/state",
        None,
        True,
        ("state/*",),
    ),
    "report": Call(
        "report {i}/quantized -o {o}/out --model {i}/inpaint --calibration {i}/c.safetensors"
        " --data {i}/pictures --count 1 --side 32 --steps 1"
    ),
    "export": Call("export {i}/inpaint --quantized {i}/quantized -o {o}/out"),
    "export restorer": Call(
        "export {i}/denoise -o {o}/out --target float --restorer --task denoise --size 32x32"
        " --sigma 0.1 --steps 1"
    ),
    "verify": Call(
        f"verify {{o}}/bundle {NET} --calibration {{i}}/c.safetensors --report {{o}}/out --error 9",
        alone=True,
        prepare=put("bundle"),
    ),
    "bench coverage": Call(
        "bench coverage inpaint {i}/pictures {i}/others --model {o}/model --steps 1 --samples 2"
        " --side 32 --write",
        alone=True,
        prepare=put("model"),
    ),
    "restore inpaint": one(
        "inpaint",
        f"{{i}}/frame.png --mask random:0.5 -o {{o}}/a.png {DRAWS} --sheet {{o}}/look.png",
    ),
    "restore inpaint folder": many("inpaint", "{i}/pictures --mask random:0.5"),
    "restore denoise": one("denoise", "{i}/frame.png --sigma 0.1 -o {o}/a.tif"),
    "restore denoise folder": many("denoise", "{i}/pictures --sigma 0.1 --sheet {o}/look.png"),
    "restore denoise clip": many("denoise", "{i}/pictures --sigma 0.1 --clip"),
    "restore denoise scene": one("denoise", "{i}/scene.nii --sigma 0.1 -o {o}/a.nii --tile 32"),
    "restore denoise zarr": one("denoise", "{i}/scene.zarr --sigma 0.1 -o {o}/a.zarr --tile 32"),
    "restore superresolve": one("superresolve", "{i}/frame.png --factor 2 -o {o}/a.webp"),
    "restore superresolve folder": many("superresolve", "{i}/pictures --factor 2"),
    "restore deblur": one("deblur", "{i}/frame.png --blur 1 -o {o}/a.jpg"),
    "restore deblur folder": many("deblur", "{i}/pictures --blur 1"),
    "restore dehaze": one("dehaze", "{i}/pictures/0.png --view 32 -o {o}/a.png"),
    "restore dehaze folder": many("dehaze", "{i}/pictures --view 32"),
    "restore paired": one("paired", f"{{i}}/pictures/0.png -o {{o}}/a.dcm {DRAWS}"),
    "restore paired folder": many("paired", "{i}/pictures"),
    "restore mri": one("mri", f"{{i}}/volume.npz --mask random -o {{o}}/a.nii.gz {DRAWS}"),
    "restore mri h5": one("mri", "{i}/volume.npz --mask random -o {o}/a.h5 -n 2 --std"),
    "restore mri dicom": one("mri", "{i}/volume.npz --mask random -o {o}/a/"),
    "restore mri folder": many("mri", "{i}/volumes --mask random -n 2 --std"),
    "restore hsi": one("hsi", "{i}/cube.npz -o {o}/a.hdr --quicklook {o}/look.png"),
    **{
        f"restore hsi {suffix}": one("hsi", f"{{i}}/cube.npz -o {{o}}/a.{suffix}")
        for suffix in ("h5", "mat", "npz", "tif")
    },
    "restore hsi folder": many("hsi", "{i}/cubes --quicklook {o}/looks"),
    "restore ultrasound": one(
        "ultrasound", "{i}/clip.h5 -o {o}/a --haze-out {o}/haze --tissue {i}/grey --haze {i}/grey"
    ),
    "restore ultrasound h5": one(
        "ultrasound", "{i}/clip.h5 -o {o}/a.h5 --tissue {i}/grey --haze {i}/grey"
    ),
    "restore ultrasound folder": many(
        "ultrasound", "{i}/clips --haze-out {o}/haze --tissue {i}/grey --haze {i}/grey"
    ),
}
MEASURED = (
    "pictures",
    "linear",
    "dehaze",
    "paired",
    "solvers",
    "mri",
    "hsi",
    "ultrasound",
    "runtime",
)
READING = ("models", "doctor", "inspect", *(f"bench {name}" for name in MEASURED))


def commands() -> Iterator[tuple[str, Any]]:
    """All commands as they are typed, with typer's objects."""
    import typer

    from toolbox.cli import app

    def below(command: Any, before: str = "") -> Iterator[tuple[str, Any]]:
        for name, inner in command.commands.items():
            whole = f"{before} {name}".strip()
            yield from below(inner, whole) if hasattr(inner, "commands") else [(whole, inner)]

    return below(typer.main.get_command(app))


def make_inputs(place: Path) -> None:
    """What the calls read."""
    import nibabel
    import zarr

    from restoration.io.images import Photo, write_image
    from restoration.io.ultrasound import write_clip

    furnish(place)
    shutil.copytree(FORMER / "quantized", place / "quantized")
    shutil.copytree(FORMER / "model", place / "inpaint", dirs_exist_ok=True)
    shutil.copytree(place / "denoise", place / "grey")
    shutil.copytree(place / "pictures", place / "others")
    write_image(place / "others" / "0.png", Photo(smooth_picture(40, 48)))
    shutil.copy(FORMER / "calibration.safetensors", place / "c.safetensors")
    (place / "tiny.toml").write_text(TINY_RECIPE)
    (place / "training").mkdir()
    write_image(place / "training" / "0.png", Photo(smooth_picture(80, 96)))
    for folder, source in (("volumes", "volume.npz"), ("cubes", "cube.npz")):
        (place / folder).mkdir()
        for k in range(2):
            shutil.copy(place / source, place / folder / f"{k}.npz")
    (place / "clips").mkdir()
    write_clip(place / "clip.h5", iter(smooth_picture(32, 32, 3)), 3)
    shutil.copy(place / "clip.h5", place / "clips")
    values = smooth_picture(48, 40, 2)
    nibabel.save(nibabel.Nifti1Image(values.transpose(1, 2, 0), np.eye(4)), place / "scene.nii")
    array = zarr.create_array(place / "scene.zarr", shape=(48, 40), chunks=(32, 32), dtype="f4")
    array[...] = values[0]
