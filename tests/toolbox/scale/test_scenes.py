"""Scenes by parts: the numbers of the run in memory, no seams, every kind of file."""

import json

import numpy as np
import pytest
import tifffile
import torch
from helpers.commands import restobox
from helpers.covering import covering
from helpers.data import smooth_picture

from restoration.io.images import Photo, read_image, write_image
from restoration.io.scenes import is_scene, open_scene
from restoration.operators.linear import Denoising
from restoration.photo.linear import LinearTask
from restoration.wrappers.sweep import noise_at
from solvers.denoiser import Denoiser
from solvers.inputs.errors import InputError, ResourceError
from toolbox.api import load

SIZE = (100, 139)  # of several tiles and parts, and no multiple of either
OTHERS = ("a.hdr", "a.nii", "a.zarr", "ome.zarr")


@pytest.fixture
def scenes(monkeypatch):
    """Small pictures count as scenes, and are restored in small parts."""
    monkeypatch.setattr("restoration.io.scenes.files.MAX_PIXELS", 1000)
    monkeypatch.setattr("toolbox.tasks.scale.scenes.PART", 48)
    monkeypatch.setattr("restoration.io.scenes.scene.STRIP", 1000)


def noisy(channels, seed=0):
    noise = 0.1 * np.random.default_rng(seed).standard_normal((channels, *SIZE))
    return (smooth_picture(*SIZE, channels) + noise).clip(0, 1).astype(np.float32)


def run(model, path, out, *options):
    numbers = ("--sigma", "0.1", "--tile", "64", *options)
    found = restobox("restore", "denoise", path, "-o", out, "--model", model, "--json", *numbers)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.long), 3])
def test_parts_give_the_numbers_of_memory(scenes, planes, tmp_path, steps):
    """Three channels by a network of planes, whose norms look at whole tiles; floats, so that no
    rounding hides a seam.
    """
    pixels = noisy(3)
    tifffile.imwrite(tmp_path / "in.tif", pixels.transpose(1, 2, 0), photometric="rgb")
    figures = run(planes, tmp_path / "in.tif", tmp_path / "out.tif", "--steps", steps)
    assert figures["steps"] == figures["nfe"] == steps
    assert figures["tiles"] == 6 * steps
    task = LinearTask(Denoiser.from_pretrained(planes), num_inference_steps=steps, tile=64)
    wanted = task(torch.from_numpy(pixels), Denoising(), sigma=0.1).mean.numpy()
    found = tifffile.imread(tmp_path / "out.tif").transpose(2, 0, 1)
    assert np.abs(found - wanted).max() < 1e-5
    assert np.abs(wanted - pixels).max() > 0.05
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.long
def test_the_shipped_network_gives_the_numbers_of_memory(scenes, tmp_path):
    """Which folds its input and needs sides of 16."""
    pixels = noisy(1)
    tifffile.imwrite(tmp_path / "in.tif", pixels[0])
    run("grey", tmp_path / "in.tif", tmp_path / "out.tif")
    task = LinearTask(load("grey"), num_inference_steps=1, tile=64)
    wanted = task(torch.from_numpy(pixels), Denoising(), sigma=0.1).mean.numpy()
    assert np.abs(tifffile.imread(tmp_path / "out.tif") - wanted[0]).max() < 1e-5


def test_what_is_drawn_depends_on_the_place_alone():
    whole = noise_at((7, 1), slice(0, 150), slice(0, 200), 2, side=64)
    part = noise_at((7, 1), slice(30, 131), slice(64, 200), 2, side=64)
    assert (part == whole[:, 30:131, 64:200]).all()
    assert (noise_at((8, 1), slice(0, 64), slice(0, 64), 2, side=64) != whole[:, :64, :64]).all()
    assert abs(whole.std() - 1) < 0.02
    assert abs(np.corrcoef(whole[:, :64, :64].ravel(), whole[:, 64:128, :64].ravel())[0, 1]) < 0.04


@pytest.mark.long
def test_a_stochastic_run_has_no_seams(scenes, planes, tmp_path, monkeypatch):
    """The same draws whatever the parts are."""
    tifffile.imwrite(tmp_path / "in.tif", noisy(1)[0])
    options = ("--steps", 3, "--solver", "ddpm", "--seed", 5)
    run(planes, tmp_path / "in.tif", tmp_path / "a.tif", *options)
    monkeypatch.setattr("toolbox.tasks.scale.scenes.PART", 96)
    run(planes, tmp_path / "in.tif", tmp_path / "b.tif", *options)
    one, two = (tifffile.imread(tmp_path / name) for name in ("a.tif", "b.tif"))
    assert np.abs(one - two).max() < 1e-6


def make_envi(path, values):
    stored = values.transpose(1, 0, 2)  # lines, bands, samples
    path.with_suffix(".raw").write_bytes(stored.astype("<u2").tobytes())
    path.write_text(
        f"ENVI\nsamples = {values.shape[2]}\nlines = {values.shape[1]}\nbands = {len(values)}\n"
        "header offset = 0\ndata type = 12\ninterleave = bil\nbyte order = 0\n"
        "data ignore value = 0\nmap info = {UTM, 1, 1, 5, 6, 30, 30}\n"
    )


def make_zarr(path, values, ome=False):
    import zarr

    if not ome:
        zarr.create_array(str(path), data=values, chunks=(1, 40, 40))
        return
    group = zarr.open_group(str(path), mode="w")
    group.create_array("0", data=values, chunks=(1, 40, 40))
    axes = [{"name": n, "type": "space"} for n in "zyx"]
    image = {"version": "0.5", "axes": axes, "datasets": [{"path": "0"}, {"path": "1"}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def make_nifti(path, values):
    import nibabel

    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0).astype(np.int16), affine), path)


@pytest.mark.parametrize(
    "name",
    [
        "tiled.tif",
        *(
            pytest.param(n, marks=pytest.mark.long)
            for n in ("a.hdr", "a.nii", "a.zarr", "ome.zarr")
        ),
    ],
)
def test_every_kind_of_file(scenes, planes, tmp_path, name):
    """Each plane comes out as the same plane in memory, in the file's units and with its head."""
    values = np.stack([np.rint(1000 * noisy(1, seed)[0]) + 5 for seed in (1, 2)]).astype(np.uint16)
    values[0, 3, 4] = 5
    values[1, 3, 4] = 1005
    path, out = tmp_path / "in" / name, tmp_path / "out" / name
    path.parent.mkdir()
    out.parent.mkdir()
    low, high = 5, 1005
    if name == "a.hdr":
        values[0, 7, 8] = 0  # holds nothing
        make_envi(path, values)
    elif name.endswith(".zarr"):
        make_zarr(path, values, ome=name.startswith("ome"))
    elif name == "a.nii":
        make_nifti(path, values)
    else:
        low, high = 0, 65535
        values = values * 60
        tiles = {"tile": (64, 64), "bigtiff": True, "compression": "zlib"}
        tifffile.imwrite(path, values, photometric="minisblack", **tiles)
    assert is_scene(path)
    figures = run(planes, path, out)
    assert (figures["black"], figures["white"], figures["planes"]) == (low, high, 2)
    found = open_scene(out)
    task = LinearTask(Denoiser.from_pretrained(planes), num_inference_steps=1, tile=64)
    for layer in range(2):
        given = (values[layer].astype(np.float64) - low) / (high - low)
        given = np.where(values[layer] == 0, 0, given).astype(np.float32) if low else given
        y = torch.from_numpy(given.astype(np.float32))[None]
        wanted = task(y, Denoising(), sigma=0.1).mean.numpy()[0] * (high - low) + low
        result = found.stored((layer,), slice(0, SIZE[0]), slice(0, SIZE[1]))[0]
        kept = (values[layer] == 0) & (name == "a.hdr")
        assert np.abs(np.where(kept, 0, result - np.rint(wanted))).max() <= 1
        assert (result[kept] == 0).all()
    assert found.array.dtype == open_scene(path).array.dtype
    if name == "a.hdr":
        assert out.read_text() == path.read_text()
    if name == "a.nii":
        assert out.read_bytes()[:352] == path.read_bytes()[:352]


def test_volumes_of_a_compressed_nifti(planes, tmp_path):
    """Each moment of each plane, with the head as it was: scale, place and units of time."""
    import nibabel

    source, out = tmp_path / "in" / "moments.nii.gz", tmp_path / "a.nii.gz"
    drawn = [np.concatenate([noisy(1, 3 * k + j) for j in (1, 2)]) for k in range(3)]
    values = np.rint(900 * np.stack(drawn)[..., :40, :50])
    stored = values.transpose(3, 2, 1, 0).astype(np.int16)
    image = nibabel.Nifti1Image(stored, np.diag([1, 2, 3, 1]))
    image.header.set_slope_inter(0.5, 20)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.5
    source.parent.mkdir()
    nibabel.save(image, source)
    assert run(planes, source, out)["planes"] == 6
    found = nibabel.load(out)
    assert found.header.binaryblock == nibabel.load(source).header.binaryblock
    assert found.shape == (50, 40, 2, 3)
    numbers, given = (np.asarray(v.dataobj.get_unscaled()) for v in (found, nibabel.load(source)))
    low, high = float(given.min()), float(given.max())
    task = LinearTask(Denoiser.from_pretrained(planes), num_inference_steps=1, tile=64)
    y = torch.from_numpy((given[:, :, 1, 2].T - low) / (high - low)).float()[None]
    wanted = task(y, Denoising(), sigma=0.1).mean.numpy()[0] * (high - low) + low
    assert np.abs(numbers[:, :, 1, 2].T - wanted).max() <= 1
    run(planes, source.parent, f"{tmp_path / 'out'}/")
    assert (tmp_path / "out" / "moments.nii.gz").read_bytes() == out.read_bytes()
    content = source.read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"short\.nii\.gz"):
        open_scene(tmp_path / "short.nii.gz")


@pytest.mark.long
def test_scenes_are_items_of_a_folder(scenes, planes, tmp_path):
    """And go on: a chunk that changes deep in a folder is a change."""
    (tmp_path / "in").mkdir()
    values = np.rint(255 * noisy(1)).astype(np.uint8)
    make_zarr(tmp_path / "in" / "a.zarr", values)
    write_image(tmp_path / "in" / "b.png", Photo(noisy(1)[:, :24, :24]))
    command = ("restore", "denoise", tmp_path / "in", "-o", tmp_path / "out", "--sigma", "0.1")
    command = (*command, "--model", planes, "--json", "--resume")

    def told():
        found = restobox(*command)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    assert told()["done"] == 2
    assert told()["kept"] == 2
    import zarr

    zarr.open_array(str(tmp_path / "in" / "a.zarr"), mode="r+")[0, 0, 0] = 7
    found = told()
    assert (found["done"], found["kept"]) == (1, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-n", "4"), "leave out --samples"),
        (("--symmetries", "8"), "leave out --symmetries"),
        (("--solver", "pndm", "--steps", "3"), "scenes take the solvers ddim and ddpm"),
        (("--reference", "in.tif"), "leave out --reference"),
    ],
)
def test_what_scenes_cant_do_is_refused(scenes, planes, tmp_path, options, said):
    tifffile.imwrite(tmp_path / "in.tif", noisy(1)[0])
    own = ("--model", planes, "--sigma", "0.1", *options)
    found = restobox("restore", "denoise", "in.tif", "-o", "out.tif", *own, cwd=tmp_path)
    assert found.returncode == 2
    assert said in found.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.tif"]


def test_the_values_of_a_header_are_not_written_over(planes, tmp_path):
    make_envi(tmp_path / "a.hdr", np.rint(1000 * noisy(2)))
    (tmp_path / "a.hdr").rename(tmp_path / "a.raw.hdr")
    before = (tmp_path / "a.raw").read_bytes()
    own = ("--model", planes, "--sigma", "0.1")
    found = restobox("restore", "denoise", "a.raw.hdr", "-o", "a.hdr", *own, cwd=tmp_path)
    assert found.returncode == 2
    assert "a.raw is the same as the input" in found.stderr
    assert (tmp_path / "a.raw").read_bytes() == before
    assert not (tmp_path / "a.hdr").exists()


def test_a_contact_sheet_leaves_scenes_out(planes, tmp_path):
    (tmp_path / "in").mkdir()
    make_zarr(tmp_path / "in" / "a.zarr", np.rint(255 * noisy(1)[:, :24, :24]).astype(np.uint8))
    write_image(tmp_path / "in" / "b.png", Photo(noisy(1)[:, :24, :24]))
    own = ("--model", planes, "--sigma", "0.1", "--sheet", "look.png", "--json")
    found = restobox("restore", "denoise", "in", "-o", "out", *own, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["done"] == 2
    assert read_image(tmp_path / "look.png").pixels.shape[2] < 3 * 192  # one panel


def test_tiff_scenes_keep_what_their_pixels_mean(tmp_path):
    """How they are turned, their profile and white; inverse greys and palettes are refused."""
    from restoration.io.scenes.tiff import write_tiff

    values = np.random.default_rng(0).integers(0, 4096, (40, 50)).astype(np.uint16)
    tags = [(274, "H", 1, 6, True), (34675, "B", 4, b"icc!", True), (281, "H", 1, 4095, True)]
    tifffile.imwrite(tmp_path / "in.tif", values, photometric="minisblack", extratags=tags)
    scene = open_scene(tmp_path / "in.tif")
    assert scene.high == 4095
    write_tiff(tmp_path / "out.tif", scene, lambda target: target.__setitem__(..., values))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        kept = file.pages.first.tags
        assert (kept[274].value, kept[281].value, bytes(kept[34675].value)) == (6, 4095, b"icc!")
    for photometric in ("miniswhite", "palette"):
        more = {"colormap": np.zeros((3, 256), np.uint16)} if photometric == "palette" else {}
        pixels = values.astype(np.uint8)
        tifffile.imwrite(tmp_path / "x.tif", pixels, photometric=photometric, **more)
        with pytest.raises(InputError, match=rf"pixels of the kind {photometric.upper()}"):
            open_scene(tmp_path / "x.tif")


def test_files_that_are_no_scenes_are_refused(scenes, planes, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "in.tif", noisy(1)[0])
    own = ("--model", planes, "--sigma", "0.1")
    found = restobox("restore", "denoise", tmp_path / "in.tif", "-o", tmp_path / "o.png", *own)
    assert found.returncode == 2
    assert "must end in .tif or .tiff" in found.stderr
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.nii\.gz can't be read as a scene"):
        open_scene(tmp_path / "a.nii.gz")
    tifffile.imwrite(tmp_path / "bad.tif", np.zeros((40, 40), np.int32))
    with pytest.raises(InputError, match="8 and 16 bits without sign"):
        open_scene(tmp_path / "bad.tif")
    monkeypatch.setenv("RESTOBOX_MAX_BYTES", "9000")
    tifffile.imwrite(tmp_path / "strip.tif", noisy(1)[0], compression="zlib", rowsperstrip=100)
    with pytest.raises(ResourceError, match=r"strip\.tif has an array"):
        open_scene(tmp_path / "strip.tif")
    monkeypatch.delenv("RESTOBOX_MAX_BYTES")
    damaged = bytearray((tmp_path / "strip.tif").read_bytes())
    damaged[400:5000] = bytes(4600)
    (tmp_path / "damaged.tif").write_bytes(damaged)
    found = restobox("restore", "denoise", tmp_path / "damaged.tif", "-o", tmp_path / "o.tif", *own)
    assert found.returncode == 2
    assert "damaged.tif can't be read as a scene" in found.stderr
    assert not (tmp_path / "o.tif").exists()
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        for seed in (1, 2):
            file.write(noisy(1, seed)[0], photometric="minisblack")
    with pytest.raises(InputError, match="holds 2 images"):
        open_scene(tmp_path / "two.tif")
    assert not is_scene(tmp_path)
    assert read_image(tmp_path / "in.tif").pixels.shape == (1, *SIZE)


@pytest.mark.parametrize("version", covering([2, 3], [3]))
def test_what_ome_zarr_says_is_kept(scenes, planes, tmp_path, version):
    """Axes, units, scales, channels, and how the array is stored; one resolution is left."""
    import zarr

    values = np.rint(255 * np.stack([noisy(1, 1), noisy(1, 2)])[:, :, :80, :64]).astype(np.uint8)
    names = ["c", "z", "y", "x"]
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in names[1:]]
    axes.insert(0, {"name": "c", "type": "channel"})
    scales = [[1.0, 2.0, 0.5, 0.5], [1.0, 2.0, 1.0, 1.0]]
    levels = [
        {"path": f"level/{k}", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for k, scale in enumerate(scales)
    ]
    whole = [{"type": "translation", "translation": [0.0, 0.0, 7.0, 9.0]}]
    image = {"name": "cells", "axes": axes, "datasets": levels, "type": "mean"}
    image["coordinateTransformations"] = whole
    omero = {"channels": [{"label": "DAPI", "color": "0000FF"}, {"label": "GFP", "active": True}]}
    told = {"multiscales": [image | {"version": "0.4"}], "omero": omero, "lab": "7"}
    if version == 3:
        told = {"ome": {"version": "0.5", "multiscales": [image], "omero": omero}, "lab": "7"}
    source, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    group = zarr.open_group(str(source), mode="w", zarr_format=version)
    stored = {"chunks": (1, 1, 16, 32), "attributes": {"own": [1]}}
    if version == 3:
        stored |= {"shards": (1, 1, 32, 32), "dimension_names": names}
        stored |= {"compressors": zarr.codecs.GzipCodec(level=3)}
    else:
        stored["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    for k, array in enumerate([values, values[..., ::2, ::2]]):
        group.create_array(f"level/{k}", data=array, **stored)
    group.attrs.update(told)
    run(planes, source, out)
    found = zarr.open_group(str(out), mode="r")
    held = found.attrs.asdict()
    (kept,) = held.get("ome", held)["multiscales"]
    assert kept.pop("datasets") == levels[:1]
    expected = told.get("ome", told)["multiscales"][0]
    assert kept == {key: value for key, value in expected.items() if key != "datasets"}
    assert held.get("ome", held)["omero"] == omero
    assert held["lab"] == "7"
    assert sorted(found["level"].array_keys()) == ["0"]
    assert found["level/0"].metadata == group["level/0"].metadata
    assert not np.array_equal(found["level/0"][:], values)


@pytest.mark.parametrize("name", ["a.zarr", "a.hdr", "a.nii"])
def test_other_tasks_say_that_they_take_none(tmp_path, name):
    values = np.rint(1000 * noisy(1)).astype(np.uint16)
    {".zarr": make_zarr, ".hdr": make_envi, ".nii": make_nifti}[name[1:]](tmp_path / name, values)
    before = sorted(tmp_path.iterdir())
    out = tmp_path / f"out{name[1:]}"
    for task in (["superresolve"], ["deblur", "--blur", "1"]):
        found = restobox("restore", *task, tmp_path / name, "-o", out)
        assert found.returncode == 2
        assert f"{name} is a scene, which restore denoise alone takes" in found.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_zarr_of_blank_chunks_is_refused(tmp_path):
    """Some hundred bytes that declare years of work."""
    import zarr

    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(32, 32), chunks=(16, 16), dtype="f4")
    array[...] = 0.5
    for rows, refused in ((32, False), (50_000, False), (10**9, True)):
        told = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text()) | {"shape": [rows, 32]}
        (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(told))
        if not refused:
            assert 0 <= open_scene(tmp_path / "a.zarr").array[0, 0] <= 1
            continue
        with pytest.raises(InputError, match="125000000 chunks, of which 4 are stored"):
            open_scene(tmp_path / "a.zarr")
