"""``restobox.map``: folders in Python, as the command line restores them."""

import json

import numpy as np
import pytest
from helpers.commands import restobox as command
from helpers.data import smooth_picture

import restobox
from restoration.io.images import Photo, write_image
from toolbox.api import load


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    for k, name in enumerate(("a.png", "b.png")):
        noise = np.random.default_rng(k).normal(0, 0.1, (3, 24, 20))
        write_image(folder / name, Photo((smooth_picture(24, 20) + noise).clip(0, 1)))
    return folder


def results(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.png"))}


def test_map_does_what_the_command_does(small, tmp_path):
    mask = ("--mask", "random:0.5")
    assert command("restore", "inpaint", small, "-o", tmp_path / "one", *mask).returncode == 0
    told = []
    tally = restobox.map(
        "inpaint",
        small,
        tmp_path / "two",
        mask="random:0.5",
        model="photo-int8",
        told=lambda tally: told.append(tally.done),
    )
    assert (tally.done, tally.failed, told) == (2, 0, [0, 1, 2])
    tally = restobox.inpaint().map([small / "a.png"], tmp_path / "three", mask="random:0.5")
    assert tally.done == 1
    one = results(tmp_path / "one")
    assert results(tmp_path / "two") == one
    assert results(tmp_path / "three")["a.png"] == one["a.png"]
    table = small / "list.CSV"
    table.write_text("input,mask\na.png,random:0.5\n")  # the list gives the mask
    restobox.map("inpaint", [table], tmp_path / "four", model="photo-int8")
    assert results(tmp_path / "four") == {"a.png": one["a.png"]}
    again = restobox.inpaint().map(small, tmp_path / "three", mask="random:0.5", resume=True)
    assert (again.done, again.kept) == (1, 1)


@pytest.mark.long
def test_map_takes_numbers_where_the_command_takes_words(small, tmp_path):
    tally = restobox.map("denoise", small / "a.png", tmp_path, sigma=0.1, model="grey")
    assert tally.done == 1
    told = command(
        "restore",
        "denoise",
        f"{small}/a.*",
        "-o",
        tmp_path,
        "--sigma",
        "0.1",
        "--model",
        "grey",
        "--resume",
        "--json",
    )
    assert json.loads(told.stdout)["kept"] == 1


def test_map_refuses_what_it_cant_do(small, tmp_path):
    with pytest.raises(TypeError, match="inpaint needs mask"):
        restobox.map("inpaint", small, tmp_path / "out")
    with pytest.raises(TypeError, match="denoise knows no option 'blur'"):
        restobox.map("denoise", small, tmp_path / "out", blur=1.0)
    with pytest.raises(ValueError, match="'generate' restores no files"):
        restobox.map("generate", small, tmp_path / "out")
    mine = restobox.inpaint(load("photo-int8"))
    with pytest.raises(ValueError, match="map loads the model where it runs"):
        mine.map(small, tmp_path / "out", mask="random:0.5")
    assert not (tmp_path / "out").exists()
