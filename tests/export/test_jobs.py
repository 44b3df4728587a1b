"""The run that a graph holds is the run of the host's loop: every task, solver and grid."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from helpers.covering import crossed
from helpers.data import smooth_picture

from export.graphs.restorer import run_job
from export.jobs.paired import PairedJob
from export.jobs.photo import InpaintingJob, LinearJob
from restoration.operators.separable import BlockMean
from restoration.paired.task import HAZE, PairedTask
from restoration.photo.inpainting import InpaintingTask
from restoration.photo.linear import LinearTask
from solvers import GRIDS, SOLVERS, VP, Denoiser, randn, solver_by_name

SIDE, STEPS = 16, 4
IMAGE = torch.from_numpy(smooth_picture(SIDE, SIDE))
MASK = torch.from_numpy((np.random.default_rng(0).random((SIDE, SIDE)) < 0.5).astype(np.float32))


def denoiser(condition: int) -> Denoiser:
    torch.manual_seed(0)
    network = UNet2DModel(
        in_channels=3 + condition,
        out_channels=3,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    )
    network.eval().requires_grad_(False)
    options = {"condition_channels": condition, "residual": True, "data_std": 0.3}
    return Denoiser(network, VP.cosine(100), "v_prediction", **options)


def of_the_graph(job, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    return run_job(job, inputs, lambda shape: randn(tuple(shape), generator))[0]


@pytest.mark.parametrize(("solver", "grid"), crossed(SOLVERS, GRIDS, ("ddim", "evodiff")))
@pytest.mark.parametrize("task", ["dehaze", "inpaint", "superresolve"])
def test_host_and_graph_run_the_same(task, solver, grid):
    run = {"solver": solver_by_name(solver), "num_inference_steps": STEPS, "grid": grid}
    if task == "dehaze":
        made = PairedTask(denoiser(HAZE), **run, view=SIDE)
        job, inputs = PairedJob(made, (SIDE, SIDE)), {"image": IMAGE[None]}
        host = made(IMAGE, seed=3)
    elif task == "inpaint":
        made = InpaintingTask(denoiser(4), **run)
        known = IMAGE * MASK
        inputs = {"image": known[None], "mask": MASK[None, None]}
        job, host = InpaintingJob(made, (SIDE, SIDE)), made(known, MASK, seed=3)
    else:
        made, operator = LinearTask(denoiser(4), **run), BlockMean((SIDE, SIDE), 2)
        y = operator.A(IMAGE[None])
        job, inputs = LinearJob(made, operator, (SIDE, SIDE)), {"image": y}
        host = made(y[0], operator, seed=3)
    torch.testing.assert_close(of_the_graph(job, inputs, 3), host.mean, rtol=0, atol=1e-5)


def test_a_run_that_begins_with_signal_begins_with_the_picture():
    """A leading grid begins with some of the image; the degraded one stands in for it."""
    task = PairedTask(denoiser(HAZE), num_inference_steps=STEPS, grid="leading", view=SIDE)
    run = task.prepare(IMAGE[None])
    process, t = run.process, run.grid.times[0]
    assert process.a(t) > 0.05
    zero = run.first_state(lambda shape: torch.zeros(tuple(shape)))
    expected = (process.a(t) + process.c(t)) * run.y
    torch.testing.assert_close(zero, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("size", "view"), [((70, 91), 16), ((33, 50), 20), ((40, 24), 30)])
def test_views_of_large_pictures_are_those_of_the_host(size, view):
    """Haze is looked for at twice the side that the network works on, where there is as much."""
    image = torch.from_numpy(smooth_picture(*size))
    task = PairedTask(denoiser(HAZE), num_inference_steps=1, view=view)
    found = of_the_graph(PairedJob(task, size), {"image": image[None]}, 3)
    torch.testing.assert_close(found, task(image, seed=3).mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shown", ["brightened", "relit+mask"])
def test_lifts_are_in_the_graph(shown):
    masked = "+mask" in shown
    d = denoiser(3 + masked)
    d.shown = shown
    mask = torch.zeros(SIDE, SIDE)
    mask[4:10, 2:9] = 1
    dark = IMAGE * (1 - 0.7 * mask) if masked else 0.3 * IMAGE
    task, kept = PairedTask(d, num_inference_steps=2), mask if masked else None
    inputs = {"image": dark[None]} | ({"mask": mask[None, None]} if masked else {})
    found = of_the_graph(PairedJob(task, (SIDE, SIDE)), inputs, 3)
    host = task(dark, kept, seed=3).mean
    torch.testing.assert_close(found, host, rtol=0, atol=1e-5)
    plain = PairedTask(denoiser(3 + masked), num_inference_steps=2)(dark, kept, seed=3)
    assert (plain.mean - host).abs().max() > 0.05
