"""Stable Diffusion's folders: prompts, guidance, pictures restored in latents, and the line from
calibration to a verified bundle for U-Net and decoder.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import restobox
from helpers.covering import crossed
from helpers.data import smooth_picture
from helpers.deploy import calibrate
from helpers.latent import STABLE_DIFFUSION, autoencoder, conditional_unet, text_parts, write_latent
from helpers.networks import tiny_unet
from helpers.quantized import one_thread  # noqa: F401
from safetensors.torch import load_file, save_file
from torch.nn.functional import pixel_unshuffle

from export.edge import restobox_edge as edge
from export.graphs.restorer import RestorerNetwork
from export.jobs.photo import InpaintingJob
from quant.calibration.trajectory import network_hash
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from restoration.io.images import Photo, read_image, write_image
from restoration.photo.inpainting import InpaintingTask
from restoration.posterior import CORRECTIONS
from solvers import DDIM, SOLVERS, VP, Denoiser, as_scheduler, solver_by_name
from solvers.interop.autoencoder import Autoencoder
from solvers.interop.text import STORED
from toolbox.api import load, reading_with
from toolbox.deploy.convert import run_convert
from toolbox.deploy.export import run_export, run_export_restorer
from toolbox.deploy.options import Checks, Graph, Origin, Trials, Whole
from toolbox.deploy.quantize import run_quantize
from toolbox.deploy.verify import run_verify, run_verify_restorer
from toolbox.tasks.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE, STEPS = 32, 2
GUIDED = {"prompt": "red cat", "negative_prompt": "dog", "guidance": 3.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A network of latents, and one that is shown a mask and the latents of what it leaves."""
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("latent")
    for channels in (4, 9):
        write_latent(place / str(channels), channels)
    (place / "pictures").mkdir()
    for k in range(2):
        picture = Photo(smooth_picture(40, 36) * (1 - 0.2 * k))
        write_image(place / "pictures" / f"{k}.png", picture)
    return place


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """diffusers' pipeline of the inpainting network, whose latents are the means here as there."""
    pytest.importorskip("transformers")
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline

    made = StableDiffusionInpaintPipeline(
        **text_parts(tmp_path_factory.mktemp("words")),
        unet=conditional_unet(9),
        vae=autoencoder(),
        scheduler=as_scheduler(DDIM(), DDIMScheduler(**STABLE_DIFFUSION).config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with torch.no_grad():
        made.vae.quant_conv.weight[4:] = 0
        made.vae.quant_conv.bias[4:] = -40
    made.set_progress_bar_config(disable=True)
    return made


def test_a_run_is_that_of_the_published_pipeline(folders, pipeline):
    """Prompt and guidance, mask and masked latents, and the autoencoder at both ends."""
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    missing = torch.zeros(1, 1, SIDE, SIDE)
    missing[..., 8:20, 4:18] = 1
    d = load(folders / "9", **GUIDED)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        GUIDED["prompt"],
        negative_prompt=GUIDED["negative_prompt"],
        image=image,
        mask_image=missing,
        height=SIDE,
        width=SIDE,
        strength=1.0,
        num_inference_steps=4,
        guidance_scale=GUIDED["guidance"],
        latents=noise * d.process.b(999),
        output_type="pt",
    ).images[0]
    found = InpaintingTask(d, DDIM(), 4)(image[0], 1 - missing[0, 0], seed=0).mean
    hole = missing[0, 0] > 0
    assert (found - theirs)[:, hole].abs().max() < 1e-5
    assert torch.equal(found[:, ~hole], image[0][:, ~hole])


def test_prompts_and_guidance_are_a_part_of_the_network(folders, pipeline):
    x, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    prompted, free = pipeline.encode_prompt("red cat", "cpu", 1, True, negative_prompt="dog")
    unet = conditional_unet(4)
    asked = [unet(x, t, encoder_hidden_states=s.expand(2, -1, -1)).sample for s in (prompted, free)]
    guided, only, without = (
        Denoiser.from_pretrained(folders / "4", **options).network(x, t)
        for options in (
            GUIDED,
            {"prompt": "red cat", "guidance": 1.0},
            {"guidance": 0.0, "negative_prompt": "dog"},
        )
    )
    torch.testing.assert_close(guided, asked[1] + 3 * (asked[0] - asked[1]))
    torch.testing.assert_close(only.sample, asked[0])
    torch.testing.assert_close(without.sample, asked[1])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "say it, --prompt .* or --guidance 0"),
        ({"negative_prompt": "dog"}, "say it, --prompt"),
        ({"prompt": "cat", "guidance": 0.0}, "--prompt has no effect with --guidance 0"),
        ({"prompt": "cat", "negative_prompt": "a", "guidance": 1.0}, "--negative-prompt has no"),
        ({"prompt": "cat", "guidance": -1.0}, "from 0 to 100; got -1"),
        ({"prompt": "a " * 40}, "has 40 tokens; the text encoder takes 14"),
        ({"prompt": "cat", "num_heads": 2}, "leave out --num-heads"),
        ({"prompt": "cat", "class_label": 2}, "without classes; leave out --class"),
        ({"prompt": "cat", "vae": "nowhere"}, "nowhere is no folder of an autoencoder"),
        ({"prompt": "cat", "decoder": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_loaded(folders, options, says):
    with pytest.raises((ValueError, OSError), match=says):
        load(folders / "4", **options)


def test_folders_that_do_not_fit_are_refused(folders, tmp_path):
    write_latent(tmp_path / "m", text=False)
    with pytest.raises(ValueError, match="holds no text encoder"):
        load(tmp_path / "m", prompt="cat")
    save_file({"encoder_hidden_states": torch.zeros(1, 3, 16)}, tmp_path / "m" / STORED)
    assert load(tmp_path / "m").image_channels == 4
    config = tmp_path / "m" / "vae" / "config.json"
    config.write_text(config.read_text().replace("AutoencoderKL", "VQModel"))
    with pytest.raises(ValueError, match="holds a VQModel; of autoencoders AutoencoderKL is read"):
        load(tmp_path / "m")
    with pytest.raises(ValueError, match="is an autoencoder: leave out --prompt"):
        load(folders / "4" / "vae", prompt="cat")


def test_latents_of_another_autoencoder_are_not_taken_for_pictures(tmp_path):
    """Latent diffusion's faces: three channels, as many as pictures have."""
    from diffusers import VQModel

    tiny_unet().save_pretrained(tmp_path / "unet")
    VQModel(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vqvae")
    with pytest.raises(ValueError, match=r"latents of a VQModel \(vqvae/\)"):
        load(tmp_path)


def test_a_folder_in_half_precision_is_read(folders, tmp_path):
    """As it lies on hubs, as a variant."""
    place = write_latent(tmp_path / "m", 9)
    names = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    for part, stem in (names | {"text_encoder": "model"}).items():
        file = place / part / f"{stem}.safetensors"
        tensors = {k: v.half() for k, v in load_file(file).items()}
        save_file(tensors, file.with_name(f"{stem}.fp16.safetensors"), {"format": "pt"})
        file.unlink()
    x, t = torch.randn(1, 9, 16, 16), torch.tensor([500.0])
    half, whole = (load(p, **GUIDED).network(x, t) for p in (place, folders / "9"))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=1e-2, rtol=1e-2)
    with reading_with(GUIDED):
        run_convert(str(place), tmp_path / "c")
    torch.testing.assert_close(load(tmp_path / "c").network(x, t), half)
    assert load(tmp_path / "c").autoencoder is not None


def test_a_network_without_a_mask_is_held_to_the_known_latents(folders):
    """Where all is known but a block, the latents around it stay those of the picture."""
    d = load(folders / "4", guidance=0.0)
    image = torch.rand(3, 21, 30, generator=torch.Generator().manual_seed(0))
    known = torch.ones(21, 30)
    known[8:12, 6:10] = 0
    task, seen = InpaintingTask(d, DDIM(), STEPS), []
    found = task(image, known, callback=lambda _, step: seen.append(step.prediction.x0))
    latents = d.autoencoder.encode(
        2 * torch.nn.functional.pad(image[None], (0, 0, 0, 1), mode="replicate") - 1
    )
    far = torch.ones(11, 15, dtype=torch.bool)
    far[2:8, 1:7] = False
    lifted = (seen[-1] - latents).abs()
    assert lifted[..., far].max() < 0.2 * lifted[..., ~far].max()
    assert found.mean.shape == image.shape
    assert torch.equal(found.mean[:, known > 0], image[:, known > 0])
    grey = task(image[:1], known).mean
    assert grey.shape == (1, 21, 30)


class Two(torch.nn.Module):
    """A small network that depends on all it is shown: of pictures in blocks of 2 x 2 pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.config = SimpleNamespace(in_channels=12, get=lambda *_: None)
        self.layer = torch.nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x, t):
        return 0.5 * torch.tanh(self.layer(x) * (1 + t.reshape(-1, 1, 1, 1) / 1000))


def latent_and_pictures():
    """One network twice: of the latents of an autoencoder that folds pictures and loses nothing,
    and of the pictures themselves.
    """
    network, process = Two().eval(), VP.linear()
    latent = Denoiser(network, process, "v_prediction")
    halves = (lambda x, t: x, lambda z, t: z)
    latent.autoencoder = Autoencoder(Path("none"), *halves, fold=2, channels=12)
    return latent, Denoiser(network, process, "v_prediction", fold=2)


def answer_or_refusal(d, solver, correction, noise):
    """The hole of one picture; the noise of latents is that of pictures, folded."""
    image, known = torch.from_numpy(smooth_picture(12, 16))[None], torch.ones(1, 1, 12, 16)
    known[..., 4:8, 6:12] = 0
    drawn = iter(noise)

    def draw(shape):
        picture = next(drawn)
        return picture if shape[1] == 3 else pixel_unshuffle(picture, 2)

    try:
        steps = 50 if correction == "dps" else 4
        task = InpaintingTask(d, solver_by_name(solver), steps, correction=correction)
        run = task.prepare(image * known, known)
        with torch.no_grad():
            return run.finish(run.solve(run.first_state(draw), draw).x0)
    except (ValueError, TypeError) as error:
        return str(error)


@pytest.mark.parametrize(
    ("solver", "correction"), crossed([*SOLVERS], [None, *CORRECTIONS], ("ddim", "ddpm", "pndm"))
)
def test_solvers_and_corrections_do_in_latents_what_they_do_in_pictures(solver, correction):
    """Where nothing is lost between the two: the same filling, or the same refusal."""
    noise = torch.randn(60, 1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    latent, pictures = (
        answer_or_refusal(d, solver, correction, noise) for d in latent_and_pictures()
    )
    if isinstance(pictures, str):
        assert latent == pictures
        assert re.search("take |needs|for noisy data|use ", pictures)
    else:
        torch.testing.assert_close(latent, pictures, atol=1e-4, rtol=0)


@pytest.mark.long
def test_a_benchmark_takes_as_many_steps_as_a_run(folders):
    words = ("--model", folders / "4", "--guidance", "0", "-m", "random:0.02", "--limit", "1")
    done = restobox("bench", "pictures", folders / "pictures", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["calls"] == 30


def test_large_pictures_go_through_in_tiles(folders):
    """U-Net and autoencoder see no more than a tile."""
    d = load(folders / "9", guidance=0.0)
    largest = []
    for part in (d.network, d.autoencoder.encoder, d.autoencoder.decoder):
        part.register_forward_pre_hook(lambda _, x: largest.append(max(x[0].shape[-2:])))
    image = torch.rand(3, 40, 72, generator=torch.Generator().manual_seed(0))
    known = torch.ones(40, 72)
    known[4:9, 4:60] = 0
    found = InpaintingTask(d, DDIM(), STEPS, tile=32)(image, known)
    assert max(largest) == 16
    assert torch.isfinite(found.mean).all()


@pytest.mark.parametrize(
    ("options", "settings", "says"),
    [({"sigma": 0.1}, {}, "without noise"), ({}, {"symmetries": 2}, "latents don't turn")],
)
def test_runs_that_can_not_be_are_refused(folders, options, settings, says):
    d = load(folders / "9", guidance=0.0)
    image, known = torch.full((3, 16, 16), 0.5), torch.eye(16)
    with pytest.raises(ValueError, match=says):
        InpaintingTask(d, DDIM(), STEPS, **settings)(image, known, **options)
    with pytest.raises(ValueError, match="no block of 2 x 2 pixels is known"):
        InpaintingTask(load(folders / "4", guidance=0.0), DDIM(), STEPS)(image, known)


def test_the_command_restores_and_a_converted_folder_says_all_by_itself(folders, tmp_path):
    picture, out = folders / "pictures" / "0.png", tmp_path / "o.png"
    words = ("restore", "inpaint", picture, "-m", "random:0.02", "-o", out, "--steps", "2")
    said = ("--prompt", "red cat", "--guidance", "3")
    done = restobox(*words, "--model", folders / "9", *said)
    assert done.returncode == 0, done.stderr
    with reading_with(GUIDED | {"negative_prompt": ""}):
        run_convert(str(folders / "9"), tmp_path / "m")
    given, kept = load(folders / "9", **GUIDED | {"negative_prompt": ""}), load(tmp_path / "m")
    assert network_hash(given.network) == network_hash(kept.network)
    by_default = restobox(*words[:-2], "--model", folders / "9", *said, "--json")
    assert json.loads(by_default.stdout)["steps"] == 30
    assert restobox(*words, "--model", folders / "9", *said).returncode == 0
    first = read_image(out).pixels
    assert restobox(*words, "--model", tmp_path / "m").returncode == 0
    assert abs(read_image(out).pixels - first).max() < 1e-6
    stored = load_file(tmp_path / "m" / STORED)
    save_file({n: v for n, v in stored.items() if n != "guidance"}, tmp_path / "m" / STORED)
    with pytest.raises(ValueError, match="go together"):
        load(tmp_path / "m")
    other = restobox("restore", "denoise", picture, "-o", out, "--model", folders / "9", *said)
    assert other.returncode == 2
    assert re.search(
        "latents: where pixels are missing .* inpaint fills them, but noise", other.stderr
    )


@pytest.mark.long
@pytest.mark.parametrize("preset", ["best-w4a8", "best-w8a8", "eda-dm-w8a8"])
def test_guided_networks_are_quantized(folders, tmp_path, preset):
    """By methods that look at features and at whole blocks too; both prompts are in each call."""
    d = load(folders / "4", **GUIDED)
    with reading_with(GUIDED):
        calibrate(folders / "4", None, tmp_path / "c", task="generate", steps=[2], count=4, side=16)
    from quant.calibration.trajectory import CalibrationSet

    found = CalibrationSet.load(tmp_path / "c", d.network)
    assert {tuple(s.shape) for s in found.samples} == {(4, 16, 16)}
    recipe = QuantRecipe.preset(preset)
    x, t = next(found.batches())
    quantized = quantize(d.network, found, recipe)(x, t)
    exact = d.network(x, t)
    assert 0 < (quantized - exact).norm() < 0.5 * exact.norm()


@pytest.mark.long
@pytest.mark.parametrize("channels", [9, pytest.param(4, marks=pytest.mark.slow)])
def test_unet_and_decoder_go_through_the_whole_line(folders, tmp_path, channels):
    """Calibrated on the latent runs, quantized, exported with the table of time, verified; then
    both bundles restore.
    """
    model, data = str(folders / str(channels)), folders / "pictures"
    parts = {"u": (model, "inpaint", GUIDED), "v": (f"{model}/vae", "decode", {})}
    for name, (part, task, options) in parts.items():
        calibration, codes, bundle = (tmp_path / f"{name}{kind}" for kind in "cqb")
        with reading_with(options):
            runs = {"steps": [STEPS] if name == "u" else None, "count": 2, "side": SIDE}
            calibrate(part, data, calibration, task=task, **runs)
            run_quantize(part, calibration, codes)
            run_export(part, bundle, Graph(codes, "cpu"))
            figures = run_verify(
                bundle,
                Origin(part, codes, calibration),
                Trials(data, 1, SIDE),
                Settings(steps=STEPS),
                Checks(psnr_drop=1.0),
            )
        assert not figures["failures"]
        assert figures["fused"] == figures["planned"] > 0
        assert load(bundle).bundle.timesteps == ([999.0, 499.0] if name == "u" else [0.0])
    words = ["restore", "inpaint", data / "0.png", "-m", "random:0.02", "-o", tmp_path / "o.png"]
    words += ["--steps", str(STEPS), "--model", tmp_path / "ub"]
    lacking = restobox(*words)
    assert lacking.returncode == 2
    assert "needs its autoencoder's folder, --vae" in lacking.stderr
    done = restobox(*words, "--vae", f"{model}/vae", "--decoder", tmp_path / "vb")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("channels", "said"), [(9, "none"), (4, "ddnm")])
def test_what_a_graph_is_traced_from_is_the_hosts_run(folders, channels, said):
    d = load(folders / str(channels), guidance=0.0)
    task = InpaintingTask(d, DDIM(), STEPS)
    image, known = torch.from_numpy(smooth_picture(SIDE, SIDE)), torch.ones(SIDE, SIDE)
    known[8:20, 4:18] = 0
    job = InpaintingJob(task, (SIDE, SIDE))
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = RestorerNetwork(job)(image[None] * known, known[None, None], noise[None])
    assert (job.correction, job.state) == (said, (4, 16, 16))
    torch.testing.assert_close(found[0], task(image, known, seed=0).mean, atol=1e-6, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize(("channels", "correction"), [(9, None), (4, "ddrm"), (9, "ddrm")])
def test_a_whole_restoration_is_one_graph(folders, tmp_path, channels, correction):
    """Encoder, guided steps and decoder: as the host's, also on larger and smaller pictures, and
    without restobox.
    """
    model, run = str(folders / str(channels)), Settings("ddim", STEPS, "trailing", correction)
    with reading_with(GUIDED):
        whole = Whole("inpaint", size=f"{SIDE}x{SIDE}")
        run_export_restorer(model, tmp_path / "w", Graph(target="float"), whole, run)
        trials = Trials(folders / "pictures", 2)
        found = run_verify_restorer(tmp_path / "w", Origin(model), trials)
    assert not found["failures"]
    assert min(row["psnr_between"] for row in found["images"]) > 90
    graph, device = load(tmp_path / "w"), edge.Restorer(tmp_path / "w")
    assert graph.run.state == (4, 16, 16)
    assert graph.run.correction == (correction or "none")
    for height, width in ((20, 27), (50, 37)):
        image = torch.from_numpy(smooth_picture(height, width))
        known = torch.ones(height, width)
        known[4:9, 3:11] = 0
        canvas = (1, 4, max(height, SIDE) // 2, max(width, SIDE) // 2)
        draws = torch.Generator().manual_seed(3)
        noise = torch.cat([torch.randn(canvas, generator=draws) for _ in range(graph.run.draws)])
        host = graph(image, known, seed=3).mean
        alone = device.picture(image.numpy(), known.numpy(), noise=noise.numpy())
        assert abs(host.numpy() - alone).max() < 1e-5
        assert torch.equal(host[:, known > 0], image[:, known > 0])


def test_what_a_graph_of_latents_can_not_hold_is_refused(folders, tmp_path):
    said = {
        (True, "32x32"): "estimates of a network of latents",
        (False, "36x30"): "multiples of 8",
    }
    for (estimates, size), says in said.items():
        with reading_with(GUIDED), pytest.raises(ValueError, match=says):
            run_export_restorer(
                str(folders / "9"),
                tmp_path / "w",
                Graph(target="float"),
                Whole("inpaint", size=size, estimates=estimates),
                Settings(steps=STEPS),
            )
        assert not (tmp_path / "w").exists()
