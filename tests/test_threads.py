"""Threads that share a model, a task or an output get what one thread gets."""

import copy
import importlib.util
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from helpers.commands import restobox
from helpers.pipeline import Pipeline
from helpers.quantized import one_thread, tiny_denoiser  # noqa: F401

from export.exporter import export_restorer_bundle
from export.graphs.network import trace
from export.jobs.photo import InpaintingJob
from export.runtime.session import Restorer
from restoration.io.images import Photo, read_image, write_image
from restoration.photo.inpainting import InpaintingTask
from solvers import DDIM, VP, generators
from solvers.denoiser import Denoiser
from solvers.editing.text_editing import PromptEdit, edit_prompt
from toolbox.api import computing_with, load

THREADS = 4
MIXED = ((48, 40), (33, 48), (24, 64), (40, 40))
pytestmark = pytest.mark.usefixtures("one_thread")
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)


def check(one, rounds, count=THREADS):
    """``one(k)`` must give in ``count`` threads at once, again and again, what it gave alone;
    all start a round together.
    """
    alone = [one(k) for k in range(count)]
    start = Barrier(count)

    def together(k):
        start.wait(60)
        return one(k)

    with ThreadPoolExecutor(count) as pool:
        for _ in range(rounds):
            found = list(pool.map(together, range(count)))
            wrong = [
                k
                for k, (a, b) in enumerate(zip(alone, found, strict=True))
                if not torch.equal(a, b)
            ]
            assert not wrong, f"threads {wrong} got other pictures than alone"


def picture(k, size):
    g = torch.Generator().manual_seed(k)
    return torch.rand(3, *size, generator=g), (torch.rand(size, generator=g) > 0.5).float()


def restored(run, sizes, **options):
    return lambda k: run(*picture(k, sizes[k]), seed=k, **options).mean


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser()


@pytest.mark.parametrize("sizes", [MIXED[:1] * THREADS, MIXED], ids=["one size", "mixed sizes"])
def test_a_session_is_shared(sizes):
    check(restored(InpaintingTask(load("photo-int8", threads=1), DDIM(), 2), sizes), rounds=8)


@needs_openvino
def test_an_openvino_session_is_shared():
    task = InpaintingTask(load("photo-int8", device="openvino", threads=1), DDIM(), 1)
    check(restored(task, MIXED[:1] * THREADS), rounds=6)


@needs_openvino
@pytest.mark.long
def test_openvino_with_more_sizes_than_it_keeps(monkeypatch):
    monkeypatch.setattr("export.runtime.openvino.KEPT", 1)
    task = InpaintingTask(load("photo-x4-int8", device="openvino", threads=1), DDIM(), 1)
    check(restored(task, MIXED), rounds=1, count=2)
    assert len(task.denoiser.network.graph._compiled) == 1


def test_one_session_in_tiles_and_turned():
    task = InpaintingTask(
        load("photo-x4-int8", threads=1), DDIM(), 2, tile=32, overlap=4, symmetries=2
    )
    check(restored(task, MIXED), rounds=2)


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    options = {
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "layers_per_block": 1,
    }
    network = (
        UNet2DModel(
            in_channels=3, out_channels=3, norm_num_groups=4, add_attention=False, **options
        )
        .eval()
        .requires_grad_(False)
    )
    folder = tmp_path_factory.mktemp("restorer") / "r"
    export_restorer_bundle(
        InpaintingJob(
            InpaintingTask(Denoiser(network, VP.cosine(100), "v_prediction"), DDIM(), 1), (24, 32)
        ),
        folder,
    )
    return folder


@pytest.mark.parametrize("device", ["cpu", pytest.param("openvino", marks=needs_openvino)])
def test_a_restorer_is_shared(restorer, device):
    check(restored(Restorer(restorer, device=device, threads=1), MIXED), rounds=3)


@pytest.mark.parametrize("correction", ["ddnm", "pigdm"])  # the second differentiates the network
def test_a_pytorch_model_is_shared(correction):
    task = InpaintingTask(load("photo-x4"), DDIM(), 2, correction=correction, symmetries=2)
    check(restored(task, MIXED), rounds=2)


def test_a_fake_quantized_network_is_shared(denoiser, quantized):
    shown = copy.copy(denoiser)
    shown.network = quantized.simulating("cpu")
    check(restored(InpaintingTask(shown, DDIM(), 2), MIXED), rounds=2)


def test_edits_share_a_pipeline():
    pipeline = Pipeline()
    own = pipeline.unet.attn_processors

    def one(k):
        image = torch.rand(
            1, 3, 32, 32, generator=torch.Generator().manual_seed(k), dtype=torch.float64
        )
        target = ("a blue cat", "a red dog")[k % 2]
        return edit_prompt(
            pipeline, image, "a red cat", target, PromptEdit(2), generator=generators(k, 1)
        )

    check(one, rounds=1)
    assert pipeline.unet.attn_processors == own


def test_graphs_are_traced_in_threads(capsys):
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda _: trace(
                    torch.nn.Conv2d(3, 3, 3), (torch.zeros(1, 3, 8, 8),), None, "a convolution"
                ),
                range(2),
            )
        )
    assert warnings.filters == before
    print("still here")
    assert capsys.readouterr().out == "still here\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pictures_are_written_in_threads(tmp_path, suffix):
    """Eight threads write files of their own and, over and over, one of all; each is whole
    afterwards, and nothing else is left.
    """
    photos = [Photo(np.full((3, 40, 50), k / 8, np.float32)) for k in range(8)]
    levels = {round(k / 8 * 255) for k in range(8)}

    def one(k):
        for _ in range(10):
            write_image(tmp_path / f"{k}{suffix}", photos[k])
            write_image(tmp_path / f"all{suffix}", photos[k])
            found = read_image(tmp_path / f"all{suffix}").pixels * 255
            assert found.min() == found.max()
            assert round(float(found.max())) in levels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"all{suffix}", *(f"{k}{suffix}" for k in range(8))]
    )
    for k in range(8):
        assert round(float(read_image(tmp_path / f"{k}{suffix}").pixels.mean()) * 255) == round(
            k / 8 * 255
        )


def test_reading_leaves_the_warning_filters_alone(tmp_path):
    write_image(tmp_path / "a.png", Photo(np.zeros((3, 8, 8), np.float32)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_image(tmp_path / "a.png"), range(400)))
    assert warnings.filters == before


def test_a_command_computes_with_the_threads_that_it_is_told():
    before = torch.get_num_threads()
    with computing_with(before + 1):
        assert torch.get_num_threads() == before + 1
        options = load("grey-int8").network.session.get_session_options()
        assert options.intra_op_num_threads == before + 1
        own = load("grey-int8", threads=1).network.session.get_session_options()
        assert own.intra_op_num_threads == 1
    assert torch.get_num_threads() == before


def test_threads_of_many_measurements_are_refused(pictures, tmp_path):
    given = ("restore", "denoise", pictures, "-o", tmp_path / "out", "--sigma", 0.1)
    done = restobox(*given, "--threads", 2)
    assert (done.returncode, (tmp_path / "out").exists()) == (2, False)
    assert "--threads has no effect on many measurements" in done.stderr
