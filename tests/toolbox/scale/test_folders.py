"""Folders, globs and lists of measurements: every item once, nothing lost, nothing of the user's
touched.
"""

import json

import numpy as np
import pytest
from helpers.commands import restobox
from helpers.data import smooth_picture
from helpers.disk import small_disk

from restoration.io.images import Photo, read_image, write_image
from restoration.io.ultrasound import write_clip
from solvers.inputs.errors import InputError
from toolbox.tasks import task_by_name
from toolbox.tasks.options import Inpainting
from toolbox.tasks.scale.items import Item
from toolbox.tasks.scale.job import Job, seed_of
from toolbox.tasks.scale.lists import read_list
from toolbox.tasks.scale.manifest import NAME, Manifest
from toolbox.tasks.scale.plan import result_name
from toolbox.tasks.scale.search import find_items, is_single
from toolbox.tasks.settings import Output, Prior, Settings

NAMES = {"a.png", "b.jpg", "sub/c.png"}


def test_a_folder_is_restored_and_gone_on_with(scans, tmp_path, denoise, everything, records):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    (scans / "bad.png").write_text("no picture")
    sheet = tmp_path / "look.png"
    found = denoise(scans, "-o", out, "--sheet", sheet, "--json")
    assert found.returncode == 4
    told = json.loads(found.stdout)
    assert (told["done"], told["failed"], told["kept"], told["left"]) == (3, 1, 0, 0)
    assert "bad.png" in found.stderr
    assert "1 .txt" in found.stderr
    assert set(everything(out)) == NAMES | {"notes.md"}
    assert (out / "notes.md").read_text() == "mine"
    assert read_image(out / "sub/c.png").bits == 16
    assert read_image(sheet).pixels.shape[2] > 3 * 2 * 192
    done = records(out)
    assert set(done) == NAMES
    assert "can't be read as an image" in records(out, "failed")["bad.png"]["reason"]
    assert {r["nfe"] for r in done.values()} == {1}
    assert done["a.png"]["seed"] == seed_of(0, "a.png") != done["b.jpg"]["seed"]

    # what a call on one file gives
    single = tmp_path / "single.png"
    assert denoise(scans / "sub/c.png", "-o", single).returncode == 0
    assert single.read_bytes() == (out / "sub/c.png").read_bytes()

    # nothing is done twice; what changed or is missing is done
    first = everything(out)
    write_image(scans / "bad.png", Photo(smooth_picture(24, 24)))
    (out / "a.png").unlink()
    (scans / "b.jpg").write_bytes((scans / "b.jpg").read_bytes()[:-2] + b"\xff\xd9\x00")
    again = json.loads(denoise(scans, "-o", out, "--resume", "--json").stdout)
    assert (again["done"], again["failed"], again["kept"]) == (3, 0, 1)
    second = everything(out)
    assert second.pop("bad.png")
    assert second["a.png"] == first["a.png"]
    told = json.loads(denoise(scans, "-o", out, "--resume", "--json").stdout)
    assert (told["done"], told["kept"]) == (0, 4)
    other = json.loads(denoise(scans, "-o", out, "--resume", "--symmetries", 2, "--json").stdout)
    assert (other["done"], other["kept"]) == (4, 0)


def test_nothing_of_the_users_is_replaced(scans, tmp_path, denoise, everything):
    before = everything(scans)
    found = denoise(scans, "-o", scans)
    assert found.returncode == 2
    assert "would take the place of an input" in found.stderr
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_text("mine")
    found = denoise(scans, "-o", out)
    assert found.returncode == 2
    assert "is there already and no earlier run left it" in found.stderr
    assert everything(out) == {"a.png": b"mine"}
    (out / "a.png").unlink()
    assert denoise(scans, "-o", out).returncode == 0
    found = denoise(scans, "-o", out)  # twice
    assert found.returncode == 2
    assert "--resume" in found.stderr
    (out / "a.png").write_text("retouched")
    for extra in ((), ("--symmetries", 2)):
        found = denoise(scans, "-o", out, "--resume", *extra)
        assert found.returncode == 2
        assert "a.png is there already and no earlier run left it like this" in found.stderr
    assert (out / "a.png").read_text() == "retouched"
    assert everything(scans) == before


def test_what_comes_to_the_place_of_a_failed_item_is_the_users(scans, tmp_path, denoise, records):
    out = tmp_path / "out"
    (scans / "bad.png").write_text("no picture")
    assert denoise(scans, "-o", out).returncode == 4
    assert records(out, "failed")["bad.png"]["out_sha256"] == {}
    (out / "bad.png").write_text("mine")
    write_image(scans / "bad.png", Photo(smooth_picture(24, 24)))
    found = denoise(scans, "-o", out, "--resume")
    assert found.returncode == 2
    assert "bad.png is there already and no earlier run left it like this" in found.stderr
    assert (out / "bad.png").read_text() == "mine"
    # an earlier result stays a result, though its item failed since
    (out / "bad.png").unlink()
    before = (scans / "a.png").read_bytes()
    (scans / "a.png").write_text("no picture")
    assert denoise(scans, "-o", out, "--resume").returncode == 4
    (scans / "a.png").write_bytes(before)
    assert denoise(scans, "-o", out, "--resume").returncode == 0


def test_a_dry_run_writes_nothing(scans, tmp_path, denoise):
    out = tmp_path / "out"
    found = denoise(scans, "-o", out, "--dry-run", "--json", "--suffix", "-clean.tif")
    assert found.returncode == 0
    rows = json.loads(found.stdout)["items"]
    assert [row["out"] for row in rows] == [
        str(out / name) for name in ("a-clean.tif", "b-clean.tif", "sub/c-clean.tif")
    ]
    assert not out.exists()


def test_neither_order_nor_company_matters(scans, tmp_path, planes, everything):
    """An item's mask and samples come from its name and the run's seed."""

    def run(out, *inputs, seed=1):
        options = ("--mask", "random:0.5", "--steps", 2, "-n", 2, "--seed", seed)
        found = restobox(
            "restore", "inpaint", *inputs, "-o", tmp_path / out, *options, "--model", planes
        )
        assert found.returncode == 0, found.stderr
        return everything(tmp_path / out)

    both = run("both", scans / "b.jpg", scans / "a.png")
    assert set(both) == {"a.png", "b.jpg"}
    assert run("one/", f"{scans}/a.*")["a.png"] == both["a.png"]
    assert run("other", scans / "a.png", scans / "sub/c.png", seed=2)["a.png"] != both["a.png"]


def test_what_a_killed_run_left_half_written_goes(scans, tmp_path, denoise, everything):
    out = tmp_path / "out"
    assert denoise(scans, "-o", out).returncode == 0
    whole = everything(out)
    for name in (".a.png.0123456789ab.part", ".a.part", "a.png"):
        (out / name).write_text("half")
    lines = (out / NAME).read_text().splitlines(keepends=True)
    ended = [{"item": "a.png", "status": "done"}.items() <= json.loads(n).items() for n in lines]
    assert sum(ended) == 1
    begun = [line for line, end in zip(lines, ended, strict=True) if not end]
    (out / NAME).write_text("".join(begun))
    assert denoise(scans, "-o", out, "--resume").returncode == 0
    assert everything(out) == whole | {".a.part": b"half"}


def test_lists_give_items_their_own_options(scans, tmp_path, planes, records):
    mask = np.zeros((1, 24, 20), np.float32)
    mask[:, 4:9, 5:9] = 1
    write_image(scans / "m.png", Photo(mask))
    lines = [
        {"input": "a.png", "mask": "m.png", "reference": "a.png", "out": "x/first.png"},
        {"input": "sub/c.png", "mask": "box:0.1", "sigma": 0.05, "seed": 7},
        {"input": "b.jpg"},
    ]
    (scans / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    found = restobox("restore", "inpaint", scans / "list.jsonl", "-o", out, "--model", planes)
    assert found.returncode == 4
    assert "list.jsonl, line 3 gives no mask, and --mask neither" in found.stderr
    done = records(out)
    assert set(done) == {"x/first.png", "sub/c.png"}
    assert done["x/first.png"]["metrics"]["psnr"] > 10
    assert done["x/first.png"]["metrics"]["missing"] == pytest.approx(20 / 480, abs=1e-4)
    assert done["sub/c.png"]["seed"] == 7

    task = task_by_name("denoise")
    (scans / "l.csv").write_text('input,sigma,out\na.png,0.2,\n"sub/c.png",,"c, clean.png"\n')
    first, second = read_list(task, scans / "l.csv")
    assert (first.name, first.own) == ("a.png", {"sigma": "0.2"})
    assert (second.name, second.own) == ("c, clean.png", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("input,size\na.png,3\n", "'size' is no column of inpaint; known: input, out, mask"),
        ("mask\nm.png\n", "the column input must name a file"),
        ("input,sigma\na.png,much\n", "sigma is 'much'"),
        ("input,grow\na.png,1000\n", "must lie between 0 and 100"),
        ("input,out\na.png,../b.png\n", "below the folder of results"),
        ("input,mask\na.png\n", "another number of cells"),
        ("input\n", "is empty"),
    ],
)
def test_lists_are_checked(tmp_path, text, said):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_list(task_by_name("inpaint"), tmp_path / "l.csv")


def test_masks_may_lie_in_a_folder_of_their_own(tmp_path):
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    (tmp_path / "masks" / "sub" / "c.tif").touch()
    job = Job("inpaint", Output(tmp_path), Inpainting(str(tmp_path / "masks")), Prior(), Settings())
    item = Item("sub/c.png", tmp_path / "c.png", tmp_path / "o.png")
    assert job.of(item).options.mask == str(tmp_path / "masks/sub/c.tif")
    with pytest.raises(InputError, match=r"must hold one file sub/d\.\*"):
        job.of(Item("sub/d.png", tmp_path / "d.png", tmp_path / "o.png"))


# -- what counts as one ----------------------------------------------------------------------------


def test_a_folder_that_is_one_measurement_stays_one(tmp_path):
    frames = np.zeros((2, 8, 8), np.float32)
    for name in ("day/one", "day/two"):
        write_clip(tmp_path / name, iter(frames), 2)
    ultrasound = task_by_name("ultrasound")
    assert is_single(ultrasound, [tmp_path / "day/one"])
    assert not is_single(ultrasound, [tmp_path / "day"])
    found = find_items(ultrasound, [tmp_path / "day"], tmp_path / "out")
    assert [item.name for item in found.items] == ["one", "two"]
    assert result_name(ultrasound, tmp_path / "day/one", "one", None).as_posix() == "one"
    assert not is_single(task_by_name("denoise"), [tmp_path / "day/one"])
    assert is_single(task_by_name("denoise"), [tmp_path / "missing.png"])
    with pytest.raises(FileNotFoundError, match="missing"):
        find_items(ultrasound, [tmp_path / "missing"], tmp_path / "out")
    with pytest.raises(InputError, match="holds nothing that restobox restore mri takes"):
        find_items(task_by_name("mri"), [tmp_path], tmp_path / "out")


def test_results_are_no_inputs(scans, tmp_path, denoise):
    """A folder of results inside the folder that is restored."""
    assert denoise(scans, "-o", scans / "clean").returncode == 0
    found = json.loads(denoise(scans, "-o", scans / "clean", "--resume", "--json").stdout)
    assert (found["done"], found["kept"]) == (0, 3)


@pytest.mark.parametrize(
    ("task", "name", "suffix", "result"),
    [
        ("denoise", "x/a.JPG", None, "x/a.jpg"),
        ("denoise", "a.bmp", None, "a.png"),
        ("denoise", "a.b.tif", "-clean", "a.b-clean.tif"),
        ("mri", "a.nii.gz", None, "a.nii.gz"),
        ("mri", "a.npz", None, "a.h5"),
        ("ultrasound", "a.mat", None, "a.h5"),
        ("hsi", "a.hdr", ".tif", "a.tif"),
    ],
)
def test_names_and_formats_are_kept(tmp_path, task, name, suffix, result):
    place = result_name(task_by_name(task), tmp_path / name, name, suffix)
    assert place.as_posix() == result


def test_two_results_of_one_name_are_refused(scans, tmp_path, denoise):
    (scans / "a.tif").write_bytes((scans / "a.png").read_bytes())
    found = denoise(scans, "-o", tmp_path / "out", "--suffix", ".png")
    assert found.returncode == 2
    assert "a.png and a.tif would both be written" in found.stderr
    found = denoise(scans / "a.png", scans / "a.png", "-o", tmp_path / "out")
    assert "given twice" in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_single_file_takes_no_options_of_several(scans, tmp_path, denoise):
    found = denoise(scans / "a.png", "-o", tmp_path / "o.png", "--resume")
    assert found.returncode == 2
    assert "--resume has no effect on a single measurement" in found.stderr


# -- the manifest ----------------------------------------------------------------------------------


def test_a_manifest_that_ends_in_half_a_line_goes_on(tmp_path):
    with Manifest.read(tmp_path) as manifest:
        manifest.write({"item": "a", "status": "begun", "out": ["a.png"]})
        with pytest.raises(InputError, match="another run writes its results"):
            Manifest.read(tmp_path).__enter__()
    with (tmp_path / NAME).open("a") as file:
        file.write('{"item": "b", "sta')
    manifest = Manifest.read(tmp_path)
    assert manifest.written == {"a.png": None}
    with manifest:
        manifest.write({"item": "c", "status": "begun", "out": ["c.png"]})
    assert set(Manifest.read(tmp_path).written) == {"a.png", "c.png"}
    (tmp_path / NAME).write_text("mine\n")
    with pytest.raises(InputError, match="is none of a manifest of results"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [{"item": None}, {"out": [0.5]}, {"out": "a.png"}, {"status": "eaten"}, {"status": "done"}],
)
def test_a_manifest_of_other_kinds_of_values_is_refused(tmp_path, damage):
    with Manifest.read(tmp_path) as manifest:
        manifest.write({"item": "a", "status": "begun", "out": ["a.png"]})
        manifest.write({"item": "a", "status": "begun", "out": ["a.png"]} | damage)
    with pytest.raises(InputError, match="line 3, is none of a manifest of results"):
        Manifest.read(tmp_path)


def test_a_full_disk_stops_the_run_and_resume_completes_it(scans, tmp_path, denoise, everything):
    noise = np.random.default_rng(0).random((3, 64, 64)).astype(np.float32)
    write_image(scans / "large.png", Photo(noise, bits=16))
    out = tmp_path / "out"
    with small_disk(9_000):
        found = denoise(scans, "-o", out, "--json")
    assert found.returncode == 4
    told = json.loads(found.stdout)
    assert "no room" in told["stopped"]
    assert (told["done"], told["failed"], told["left"]) == (2, 1, 1)
    assert set(everything(out)) == {"a.png", "b.jpg"}
    told = json.loads(denoise(scans, "-o", out, "--resume", "--json").stdout)
    assert (told["done"], told["kept"], told["failed"]) == (2, 2, 0)
