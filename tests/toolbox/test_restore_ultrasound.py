"""`restobox restore ultrasound`, `bench ultrasound` and the training of its priors: files in, files
out.
"""

import json
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from restoration.io.ultrasound import read_clip
from restoration.io.video import Frame, Video, open_video, write_video
from restoration.metrics import psnr
from restoration.ultrasound.measures import anatomical_regions, gcnr, structure
from restoration.ultrasound.phantom import simulate_tissue
from restoration.ultrasound.power_split import power_split
from restoration.ultrasound.shown import ShownFrameTask
from restoration.ultrasound.simulation import simulate_haze
from restoration.ultrasound.task import UltrasoundTask
from solvers.denoiser import Denoiser
from toolbox.api import load
from toolbox.cli import main
from toolbox.training.examples.ultrasound import UltrasoundExamples
from toolbox.training.loop import batches, train
from toolbox.training.recipe import TrainingRecipe

RECIPE = """
name = "tiny"
task = "ultrasound"
steps = 3
batch_size = 2
patch_size = 32
[network]
block_out_channels = [8, 16]
layers_per_block = 1
norm_num_groups = 4
fold = 2
[echoes]
kind = "KIND"
pictures = 3
real = REAL
sides = [48, 64]
[optimizer]
warmup = 1
"""


def recipe(folder, kind="tissue", real=0):
    path = folder / f"{kind}.toml"
    path.write_text(RECIPE.replace("KIND", kind).replace("REAL", str(real)))
    return TrainingRecipe.read(path)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A folder with three frames of 96 x 112."""
    folder = tmp_path_factory.mktemp("frames")
    for k in range(3):
        Image.fromarray((255 * simulate_tissue(96, 112, 3)).round().astype(np.uint8)).save(
            folder / f"{k}.png"
        )
    return folder


@pytest.fixture(scope="module")
def priors(tmp_path_factory, frames):
    """Folders of a tiny tissue and a tiny haze prior."""
    folder = tmp_path_factory.mktemp("priors")
    return [train(recipe(folder, kind), frames, folder / kind) for kind in ("tissue", "haze")]


@pytest.fixture
def cli(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["restobox", *map(str, arguments)])
        code = main()
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


# -- training --------------------------------------------------------------------------------------


def test_priors_load_with_their_ranges(priors):
    tissue, haze = (Denoiser.from_pretrained(p) for p in priors)
    assert tissue.value_range == (-0.5, 1.5)
    assert haze.value_range == (0.0, 2.0)
    assert tissue.condition_channels == haze.condition_channels == 0


def test_examples_are_drawn_from_their_number_alone(tmp_path, frames):
    r = recipe(tmp_path, "haze", 0.5)
    one, other = (UltrasoundExamples(r, frames) for _ in range(2))
    np.testing.assert_array_equal(one.picture(2), other.picture(2))
    (a,), (b,) = (e.draw(4, np.random.default_rng(0)) for e in (one, other))
    assert torch.equal(a, b)
    assert a.shape == (4, 1, 32, 32)
    assert a.min() >= -1
    assert a.max() <= 1
    assert (a > 0.05).any(), "haze adds"


def test_tissue_examples_are_clean_pictures(tmp_path, frames):
    (patches,) = UltrasoundExamples(recipe(tmp_path, "tissue", 1), frames).draw(
        6, np.random.default_rng(0)
    )
    assert patches.min() >= 0
    assert patches.max() <= 1


def test_levels_spread_over_the_recipe(tmp_path, frames):
    r = recipe(tmp_path)
    examples = UltrasoundExamples(r, frames)
    _, t, _ = next(batches(r.model_copy(update={"batch_size": 500}), examples, 0, 0, "cpu"))
    from solvers.processes.process import VP

    process = VP.from_diffusers(r.process.scheduler_config())
    kappa = np.log([process.kappa(float(v)) for v in t])
    low, high = np.log([r.noise.lowest, r.noise.highest])
    assert low - 1e-3 <= kappa.min()
    assert kappa.max() <= high + 1e-3
    assert np.histogram(kappa, 5, (low, high))[0].min() > 60


def test_real_pictures_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        UltrasoundExamples(recipe(tmp_path, "tissue", 0.5), tmp_path)


def test_recipe_needs_its_section(tmp_path):
    (tmp_path / "a.toml").write_text(
        RECIPE.replace("ultrasound", "denoise").replace("KIND", "tissue").replace("REAL", "0")
    )
    with pytest.raises(ValueError, match=r"\[echoes\] belongs to task 'ultrasound'"):
        TrainingRecipe.read(tmp_path / "a.toml")


# -- restore ---------------------------------------------------------------------------------------


def models(priors):
    return "--tissue", priors[0], "--haze", priors[1], "--steps", 2


def test_clip_in_clip_out(cli, priors, frames, tmp_path):
    code, out, err = cli(
        "restore",
        "ultrasound",
        frames,
        "-o",
        tmp_path / "out",
        *models(priors),
        "--warm-start",
        0.5,
        "--json",
    )
    assert code == 0, err
    figures = json.loads(out)
    assert (figures["frames"], figures["size"], figures["files"]) == (3, [112, 96], 3)
    assert figures["nfe"] == 2 + 1 + 1
    back = read_clip(tmp_path / "out")
    assert (len(back), back.size) == (3, (96, 112))


def test_a_video_is_its_frames(cli, priors, tmp_path):
    """The same results as of the frames as pictures, at the video's times; what repeats is restored
    once.
    """
    codes = [(255 * simulate_tissue(64, 80, seed)).round().astype(np.uint8) for seed in (1, 2, 2)]
    (tmp_path / "in").mkdir()
    for k, frame in enumerate(codes):
        Image.fromarray(frame).save(tmp_path / "in" / f"{k}.png")
    times = [0, 2, 3]
    pictures = [
        Frame(np.broadcast_to(c, (3, *c.shape)), at) for c, at in zip(codes, times, strict=True)
    ]
    like = Video(Fraction(25), Fraction(1, 25), 3, True, iter(()))
    write_video(tmp_path / "a.mkv", like, iter(pictures))
    found = []
    for given, out in (("in", "out"), ("a.mkv", "b.mkv")):
        call = ("restore", "ultrasound", tmp_path / given, "-o", tmp_path / out, *models(priors))
        code, told, err = cli(*call, "--json")
        assert code == 0, err
        found.append(json.loads(told))
    assert [f["nfe"] for f in found] == [4, 4]
    assert found[0]["flicker"] == found[1]["flicker"] > 0
    assert found[1]["flicker_input"] == pytest.approx(
        np.abs(codes[1] / 255 - codes[0] / 255).mean() / 2, abs=1e-4
    )
    with open_video(tmp_path / "b.mkv") as video:
        frames = list(video.frames)
        assert [frame.time * video.unit * 25 for frame in frames] == times
    for frame, expected in zip(frames, read_clip(tmp_path / "out"), strict=True):
        np.testing.assert_array_equal(frame.codes, np.rint(255 * np.stack([expected] * 3)))
    clip = read_clip(tmp_path / "a.mkv")  # in any order
    for k in (2, 0, 1, 0):
        np.testing.assert_array_equal(np.rint(255 * clip.frame(k)), codes[k])
    code, _, err = cli(
        "restore", "ultrasound", tmp_path / "in", "-o", tmp_path / "c.mp4", *models(priors)
    )
    assert code == 2
    assert "frames without times" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv", "in", "out"]


def test_one_picture_with_figures(cli, priors, frames, tmp_path):
    regions = tmp_path / "regions.json"
    regions.write_text('{"tissue": [[10, 40, 40, 70]], "blood": [[50, 40, 90, 70]]}')
    figures = (
        "--regions",
        regions,
        "--reference",
        frames / "0.png",
        "--haze-out",
        tmp_path / "haze.png",
    )
    code, out, err = cli(
        "restore",
        "ultrasound",
        frames / "0.png",
        "-o",
        tmp_path / "a.png",
        *models(priors),
        "-n",
        2,
        *figures,
        "--json",
    )
    assert code == 0, err
    content = json.loads(out)
    assert {"psnr", "ssim", "gcnr_before", "gcnr_after", "ks_tissue"} <= set(content)
    assert content["nfe"] == 4
    assert read_clip(tmp_path / "haze.png").size == (96, 112)


def test_streamed_equals_alone(cli, priors, frames, tmp_path):
    for name, extra in (("a.h5", ()), ("b.h5", ("--stream",))):
        assert (
            cli("restore", "ultrasound", frames, "-o", tmp_path / name, *models(priors), *extra)[0]
            == 0
        )
    a, b = (np.stack(list(read_clip(tmp_path / name))) for name in ("a.h5", "b.h5"))
    assert np.abs(a - b).max() <= 1.01 / 255


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("-o", "OUT/a.png"), "do not go into one picture"),
        (("-o", "OUT/x", "--stream", "--warm-start", 0.5), "choose one"),
        (("-o", "OUT/x", "--stream", "-n", 2), "one sample per frame"),
        (("-o", "OUT/x", "--haze-strength", -1), "strength must be"),
        (("-o", "OUT/x", "--correction", "magic"), "unknown"),
        (("-o", "OUT/x", "--regions", "OUT/regions.json"), "tissue and blood"),
        (("-o", "OUT/x", "--reference", "OUT/other.png"), "reference"),
    ],
)
def test_bad_options(cli, priors, frames, tmp_path, extra, message):
    (tmp_path / "regions.json").write_text('{"heart": [0, 0, 4, 4]}')
    Image.new("L", (64, 64)).save(tmp_path / "other.png")
    extra = [str(v).replace("OUT", str(tmp_path)) for v in extra]
    code, _, err = cli("restore", "ultrasound", frames, *models(priors), *extra)
    assert code == 2
    assert message in err
    assert not (tmp_path / "x").exists()


def test_colour_frame(cli, priors, tmp_path):
    Image.new("RGB", (64, 64), (200, 20, 20)).save(tmp_path / "a.png")
    code, _, err = cli(
        "restore", "ultrasound", tmp_path / "a.png", "-o", tmp_path / "b.png", *models(priors)
    )
    assert code == 2
    assert "in colour" in err
    assert (
        cli(
            "restore",
            "ultrasound",
            tmp_path / "a.png",
            "-o",
            tmp_path / "b.png",
            *models(priors),
            "--grey",
        )[0]
        == 0
    )


# -- bench -----------------------------------------------------------------------------------------


def test_bench(cli, priors, frames):
    ours = f"{priors[0]}+{priors[1]}"
    options = (
        "--method",
        "hazy",
        "--method",
        "nlm",
        "--method",
        "clahe",
        "--method",
        ours,
        "--strength",
        1,
        "--strength",
        0.5,
    )
    code, out, err = cli(
        "bench", "ultrasound", frames, *options, "--steps", 2, "--limit", 2, "--json"
    )
    assert code == 0, err
    figures = json.loads(out)
    assert figures["frames"] == 2
    rows = {(r["strength"], r["method"]): r for r in figures["rows"]}
    assert len(rows) == 8
    assert rows[0.5, "hazy"]["gcnr"] > rows[1.0, "hazy"]["gcnr"], "more haze, less contrast"
    assert rows[1.0, "hazy"]["ks_blood"] == 0
    assert all(0 <= r["gcnr"] <= 1 and r["psnr"] > 0 for r in rows.values())


def test_bench_says_what_it_can_not_do(cli, frames, tmp_path):
    code, _, err = cli("bench", "ultrasound", frames, "--method", "magic")
    assert code == 2
    assert "unknown" in err
    Image.new("L", (64, 64), 128).save(tmp_path / "flat.png")
    code, _, err = cli("bench", "ultrasound", tmp_path, "--method", "hazy")
    assert code == 2
    assert "enough tissue and blood" in err


@pytest.mark.long
def test_eight_bit_prior(cli, priors, frames, tmp_path):
    """The road to an 8-bit bundle: calibrated on dehazing, exported, and run beside a float prior
    without gradients.
    """
    files = tmp_path / "c.safetensors", tmp_path / "q", tmp_path / "int8"
    calibrate = (
        "calibrate",
        priors[1],
        "-o",
        files[0],
        "--data",
        frames,
        "--task",
        "ultrasound",
        "--steps",
        2,
        "--count",
        2,
    )
    for command in (
        (*calibrate, "--partner", f"tissue:{priors[0]}"),
        ("quantize", priors[1], "--calibration", files[0], "-o", files[1]),
        ("export", priors[1], "--quantized", files[1], "-o", files[2]),
    ):
        code, _, err = cli(*command)
        assert code == 0, err
    images = []
    for name, chosen in (("float", models(priors)), ("int8", models((priors[0], files[2])))):
        assert (
            cli("restore", "ultrasound", frames / "0.png", "-o", tmp_path / f"{name}.png", *chosen)[
                0
            ]
            == 0
        )
        images.append(read_clip(tmp_path / f"{name}.png").frame(0))
    assert 0 < np.abs(images[0] - images[1]).mean() < 0.02
    code, _, err = cli(
        "restore",
        "ultrasound",
        frames / "0.png",
        "-o",
        tmp_path / "x.png",
        *models((priors[0], files[2])),
        "--correction",
        "pigdm",
    )
    assert code == 2
    assert "needs the gradient" in err
    code, _, err = cli(*calibrate)
    assert code == 2
    assert "--partner" in err


# -- the shipped priors ----------------------------------------------------------------------------


def test_shipped_priors_bring_contrast_back():
    """On a picture that they were not trained on: more contrast than the hazy frame, nearer to the
    clean one than the split.

    Most of it is tissue: a view for a lower strength.
    """
    clean = simulate_tissue(192, 224, 6)
    hazy = simulate_haze(clean, 2.0, 1)
    regions = anatomical_regions(clean)
    task = UltrasoundTask(load("ultrasound-tissue"), load("ultrasound-haze"), strength=0.8)
    image = task(torch.from_numpy(hazy)).image.numpy()

    def contrast(picture):
        return gcnr(picture[regions["tissue"]], picture[regions["blood"]])

    assert contrast(image) > contrast(hazy)
    assert psnr(image[None], clean[None]) > psnr(power_split(hazy, 0.8)[None], clean[None])


# -- a network that is shown the frame -------------------------------------------------------------


@pytest.fixture(scope="module")
def shown_network(tmp_path_factory):
    """A folder of one, trained for three steps."""
    folder = tmp_path_factory.mktemp("shown")
    path = folder / "dehazed.toml"
    text = RECIPE.replace("KIND", "dehazed").replace("REAL", "0")
    path.write_text(f'{text}[process]\nprediction_type = "sample"\n[loss]\nmin_snr = 3.0\n')
    return train(TrainingRecipe.read(path), folder, folder / "network")


def test_pairs_are_of_one_frame(tmp_path):
    examples = UltrasoundExamples(recipe(tmp_path, "dehazed"), tmp_path)
    clean, hazy = examples.draw(4, np.random.default_rng(0))
    assert clean.shape == hazy.shape == (4, 1, 32, 32)
    assert float(hazy.mean()) > float(clean.mean())
    picture = examples.picture(0)
    assert picture.shape[0] == 2
    bright = picture[0] > 0.7  # haze hardly changes what is bright
    assert np.abs(picture[1] - picture[0])[bright].mean() < 0.1
    assert examples.times(4, np.random.default_rng(0)) is None


def test_shown_networks_are_used_alone(cli, frames, shown_network, tmp_path):
    words = ("restore", "ultrasound", frames, "--tissue", shown_network)
    code, out, err = cli(*words, "-o", tmp_path / "one", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["nfe"] == 1  # the three frames are equal
    assert "haze" not in told
    for wrong, says in (
        (("--haze", "ultrasound-haze"), "needs no haze prior (--haze)"),
        (("--sigma", "0.1"), "needs no --sigma"),
        (("--correction", "dps"), "needs no --correction"),
        (("--warm-start", "0.3"), "leave them out"),
    ):
        code, _, err = cli(*words, "-o", tmp_path / "two", *wrong)
        assert code == 2
        assert says in err
        assert err.count("\n") == 1
        assert not (tmp_path / "two").exists()
    code, out, err = cli("bench", "ultrasound", frames, "--model", shown_network, "--limit", 1)
    assert code == 0, err
    code, _, err = cli("bench", "ultrasound", frames, "--model", "ultrasound-haze")
    assert code == 2
    assert "give both as TISSUE+HAZE" in err


def test_shown_networks_are_calibrated_without_a_partner(cli, frames, shown_network, tmp_path):
    words = ("calibrate", shown_network, "--data", frames, "--task", "ultrasound", "--side", "32")
    out = tmp_path / "c.safetensors"
    code, _, err = cli(*words, "-o", out, "--steps", 1, "--count", 2)
    assert code == 0, err
    code, _, err = cli(*words, "-o", tmp_path / "d.safetensors", "--partner", "haze:x")
    assert code == 2
    assert "leave out --partner" in err


def test_the_shipped_network_keeps_structure():
    """On pictures that it was not trained on: more contrast than the split of powers, less that is
    invented, no organ hollowed.
    """
    task = ShownFrameTask(load("ultrasound"))
    for seed in (6, 9):
        clean = simulate_tissue(192, 224, seed)
        hazy = simulate_haze(clean, 1.0, seed)
        regions = anatomical_regions(clean)
        image, split = task(torch.from_numpy(hazy)).image.numpy(), power_split(hazy)

        def contrast(picture, regions=regions):
            return gcnr(picture[regions["tissue"]], picture[regions["blood"]])

        assert contrast(image) > contrast(hazy)
        assert contrast(image) > contrast(split)
        ours, theirs = (structure(v, clean, hazy) for v in (image, split))
        assert ours.edges_invented < theirs.edges_invented / 2
        assert ours.tissue_lost < 0.01
        assert ours.edges_kept > theirs.edges_kept
