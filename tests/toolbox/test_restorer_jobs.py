"""Whole restorations of every task in one graph: each computes what the host's loop computes."""

import copy
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from helpers.networks import shallow_unet, tiny_unet
from helpers.quantized import one_thread, tiny_denoiser  # noqa: F401
from safetensors.torch import save_file

from export.exporter import export_restorer_bundle
from export.graphs.restorer import export_restorer, run_job
from export.jobs.hyperspectral import EigenImageJob
from export.jobs.mri import MRIJob
from export.jobs.paired import PairedJob
from export.jobs.photo import LinearJob
from export.runtime.providers import open_session
from export.runtime.session import Restorer
from quant.calibration.trajectory import record
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from restoration.hyperspectral.task import HyperspectralTask
from restoration.io.images import Photo, write_image
from restoration.metrics import psnr
from restoration.mri.consistency import agree
from restoration.mri.real_sense import RealSense, coil_pairs
from restoration.mri.sense import Sense, SingleCoil, cartesian, to_channels
from restoration.mri.simulation import ring_maps
from restoration.mri.task import MRITask
from restoration.operators.linear import Denoising
from restoration.operators.measurement import Measurement
from restoration.operators.quantiles import ordered, quantile
from restoration.operators.separable import Bicubic, Blur, gaussian_kernel
from restoration.paired.task import PairedTask
from restoration.photo.linear import LinearTask
from solvers.denoiser import Denoiser
from solvers.methods.ddim import DDIM
from solvers.methods.evodiff import EVODiff
from solvers.methods.resfusion import Resfusion, ResfusionSampler
from solvers.processes.process import VP
from solvers.solver import randn
from toolbox.api import load
from toolbox.deploy.export import make_job
from toolbox.deploy.options import Whole
from toolbox.tasks.paired import Paired
from toolbox.tasks.settings import Settings

CPU = ["CPUExecutionProvider"]
SIZE = (24, 32)

pytestmark = pytest.mark.usefixtures("one_thread")


def denoiser_of(channels: int, condition: int = 0, **options) -> Denoiser:
    process = VP.cosine(100, zero_terminal_snr=True)
    return Denoiser(
        shallow_unet(channels + condition, channels),
        process,
        "v_prediction",
        multiple=2,
        condition_channels=condition,
        **options,
    )


def run_graph(job, seed: int, **inputs) -> tuple[np.ndarray, object]:
    """The graph's answer with the noise that a host run with this seed draws."""
    model, module = export_restorer(job)
    session = open_session(ir.to_proto(model).SerializeToString(), CPU, threads=1)
    generator = torch.Generator().manual_seed(seed)
    noise = [randn((1, *job.state), generator) for _ in range(module.draws)]
    feed = {name: value.numpy() for name, value in inputs.items()} | (
        {"noise": torch.stack(noise).numpy()} if noise else {}
    )
    return session.run(["restored"], feed)[0], module


def smooth(channels: int, size, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(
        torch.rand(1, channels, 5, 5, generator=g), size=size, mode="bilinear"
    )


# -- linear operators ------------------------------------------------------------------------------


@pytest.mark.long  # plain runs of every task: test_contract.py
@pytest.mark.parametrize(
    ("name", "operator", "sigma", "correction", "solver"),
    [
        ("superresolve", Bicubic(SIZE, 2), 0.05, "diffpir", EVODiff()),
        # mild: the pseudo-inverse of a strong blur amplifies single precision's rounding beyond
        # 1e-4 on both sides
        ("deblur", Blur(SIZE, gaussian_kernel(0.6).tolist()), 0.02, "ddrm", DDIM(eta=1.0)),
    ],
)
def test_linear_operators_trace(name, operator, sigma, correction, solver):
    task = LinearTask(denoiser_of(3), solver, 3, correction=correction)
    job = LinearJob(task, operator, SIZE, sigma, name, {"operator": type(operator).__name__})
    y = operator.A(smooth(3, SIZE))
    ours, module = run_graph(job, 3, image=y)
    host = task(y[0], operator, sigma=sigma, seed=3)
    np.testing.assert_allclose(ours[0], host.mean.numpy(), atol=1e-4)
    assert module.calls == host.nfe
    assert ("noise" in module.names) == (name != "denoise")


@pytest.mark.long
def test_networks_of_single_planes_restore_colours_in_a_graph():
    """Their upsampling bounds the batch, which holds three planes of each picture."""
    d = Denoiser(tiny_unet(1, 1), VP.cosine(100), "v_prediction", multiple=2)
    task, y = LinearTask(d, num_inference_steps=1), smooth(3, SIZE)
    ours, _ = run_graph(LinearJob(task, Denoising(), SIZE, 0.1), 0, image=y)
    wanted = task(y[0], Denoising(), sigma=0.1).mean.numpy()
    np.testing.assert_allclose(ours[0], wanted, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("condition", ["class", "text"])
def test_conditional_networks_restore_in_a_graph(condition, tmp_path):
    torch.manual_seed(0)
    sizes = {"sample_size": 16, "block_out_channels": (8, 16), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    if condition == "class":
        DDPMPipeline(
            UNet2DModel(num_class_embeds=5, add_attention=False, **sizes, **blocks), DDPMScheduler()
        ).save_pretrained(tmp_path)
        d, other = (load(str(tmp_path), class_label=k) for k in (3, 1))
    else:
        blocks = {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        blocks |= {"cross_attention_dim": 8, "attention_head_dim": 4}
        network = UNet2DConditionModel(in_channels=3, out_channels=3, **sizes, **blocks)
        network.save_pretrained(tmp_path)
        d, other = (_prompted(tmp_path, k) for k in (3, 1))
    y = smooth(3, SIZE)
    job = LinearJob(LinearTask(d, DDIM(), 2), Denoising(), SIZE, 0.1)
    ours, _ = run_graph(job, 0, image=y)
    wanted, another = (
        LinearTask(it, DDIM(), 2)(y[0], Denoising(), sigma=0.1).mean.numpy() for it in (d, other)
    )
    np.testing.assert_allclose(ours[0], wanted, atol=1e-4)
    assert np.abs(another - wanted).max() > 1e-3  # the condition counts


def _prompted(folder, seed):
    states = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed))
    save_file({"encoder_hidden_states": states}, folder / "encoder_hidden_states.safetensors")
    return load(str(folder))


# -- pairs -----------------------------------------------------------------------------------------


PROCESS = Resfusion.scheduled("linear", 12)


@pytest.mark.long
@pytest.mark.parametrize(("native", "solver"), [(True, ResfusionSampler()), (False, EVODiff())])
def test_paired_runs_trace_natively_and_by_level_matching(native, solver):
    base = (
        Denoiser(shallow_unet(6, 3), PROCESS, "resnoise", multiple=2, condition_channels=3)
        if native
        else denoiser_of(3, 3)
    )
    y = smooth(3, SIZE)
    task = PairedTask(base, solver, 3, PROCESS)
    job = PairedJob(task, SIZE)
    ours, _ = run_graph(job, 5, image=y)
    assert job.name == "paired"
    np.testing.assert_allclose(ours, task(y[0], seed=5).samples.numpy(), atol=1e-4)


@pytest.mark.long
def test_paired_graphs_take_masks():
    mask = (smooth(1, SIZE, 3) > 0.5).float()
    task = PairedTask(denoiser_of(3, 4), num_inference_steps=2)
    ours, module = run_graph(PairedJob(task, SIZE), 2, image=smooth(3, SIZE), mask=mask)
    assert module.names[:2] == ("image", "mask")
    np.testing.assert_allclose(
        ours, task(smooth(3, SIZE)[0], mask[0, 0], seed=2).samples.numpy(), atol=1e-4
    )
    assert (task(smooth(3, SIZE)[0], 1 - mask[0, 0], seed=2).samples - ours).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("size", "state"), [((40, 56), (3, 16, 22))])
def test_dehazing_graphs_reduce_and_carry_back(size, state):
    """The prior, the reduced view, the run and the way back to the whole picture: what the host
    does.
    """
    task = PairedTask(denoiser_of(3, 7, residual=True), DDIM(), 2, view=16)
    job = PairedJob(task, size)
    image = torch.cat([smooth(3, size, 1), smooth(3, size, 2)])
    ours, module = run_graph(job, 2, image=image[:1])
    assert (job.name, job.state, module.names[0]) == ("dehaze", state, "image")
    host = task(image[0], seed=2)
    np.testing.assert_allclose(ours[0], host.mean.numpy(), atol=1e-4)
    assert module.calls == host.nfe
    # pictures of a batch don't see each other
    pair = run_job(
        job,
        {"image": image},
        lambda shape: randn((1, *state), torch.Generator().manual_seed(2)).expand(shape),
    )
    alone = run_job(
        job,
        {"image": image[1:]},
        lambda shape: randn((1, *state), torch.Generator().manual_seed(2)),
    )
    torch.testing.assert_close(pair[1:], alone, atol=1e-4, rtol=0)


# -- MRI -------------------------------------------------------------------------------------------


def scan(coils: int, size=(32, 36), sigma: float = 0.01, seed: int = 0):
    """k-space of a smooth complex image, its maps and mask."""
    maps = (
        ring_maps(coils, size, np.random.default_rng(seed)).to(torch.complex64)
        if coils > 1
        else None
    )
    mask = (
        (torch.rand(size[1], generator=torch.Generator().manual_seed(seed)) > 0.4)
        .float()
        .expand(size)
        .clone()
    )
    mask[:, size[1] // 2 - 4 : size[1] // 2 + 4] = 1
    operator = SingleCoil(mask) if maps is None else Sense(mask, maps)
    image = smooth(2, size, seed) - 0.3
    y = operator.A(image)
    y = y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 1)) * mask
    return torch.complex(*y[0].chunk(2)), mask, maps


@pytest.mark.parametrize(
    ("coils", "exact"),
    [
        pytest.param(1, True, marks=pytest.mark.slow),  # as test_contract.py has it
        pytest.param(1, False, marks=pytest.mark.slow),  # a solver of 30 iterations in the graph
        pytest.param(3, False, marks=pytest.mark.slow),
    ],
)
def test_mri_graphs_are_the_host_loop(monkeypatch, coils, exact):
    # the host stops conjugate gradients at 1e-5 of the residual, 1e-4 of the image: here it goes on
    monkeypatch.setattr(
        "restoration.mri.task.cartesian",
        lambda *a, **_: cartesian(*a, tolerance=1e-7, max_iterations=400),
    )
    sigma = 0.0 if exact else 0.03
    kspace, mask, maps = scan(coils, sigma=sigma)
    task = MRITask(denoiser_of(2, 7, residual=True), num_inference_steps=2 if coils == 1 else 1)
    host = task(kspace, mask, maps, sigma=sigma, seed=1)
    inputs = {"kspace": to_channels(kspace[None]), "mask": mask[None, None]}
    inputs |= {} if maps is None else {"maps": to_channels(maps[None])}
    inputs |= {} if exact else {"sigma": torch.full((1, 1, 1, 1), sigma)}
    ours, module = run_graph(
        MRIJob(task, coils, tuple(mask.shape), exact, iterations=30), 1, **inputs
    )
    assert module.names == (*inputs, "noise")
    np.testing.assert_allclose(
        ours[0], torch.stack([host.mean.real, host.mean.imag]).numpy(), atol=1e-4
    )


@pytest.mark.parametrize(
    ("coils", "exact"), [pytest.param(1, True, marks=pytest.mark.slow), (1, False), (3, False)]
)
def test_unrolled_mri_graphs_are_the_host_loop(monkeypatch, coils, exact):
    monkeypatch.setattr(
        "restoration.mri.task.cartesian",
        lambda *a, **_: cartesian(*a, tolerance=1e-7, max_iterations=400),
    )
    sigma = 0.0 if exact else 0.03
    kspace, mask, maps = scan(coils, sigma=sigma)
    d = denoiser_of(2, 7, residual=True)
    d.unrolled_steps = 2
    host = MRITask(d)(kspace, mask, maps, sigma=sigma)
    inputs = {"kspace": to_channels(kspace[None]), "mask": mask[None, None]}
    inputs |= {} if maps is None else {"maps": to_channels(maps[None])}
    inputs |= {} if exact else {"sigma": torch.full((1, 1, 1, 1), sigma)}
    job = MRIJob(MRITask(d), coils, tuple(mask.shape), exact, iterations=30 if coils == 1 else 200)
    assert (job.correction, job.steps) == ("alternation", 2)
    ours = run_job(job, inputs, lambda shape: pytest.fail("an estimate takes no noise"))
    np.testing.assert_allclose(
        ours[0], torch.stack([host.mean.real, host.mean.imag]).numpy(), atol=1e-4
    )
    if exact:
        graph, module = run_graph(
            MRIJob(
                MRITask(d), coils, tuple(mask.shape), exact, iterations=30 if coils == 1 else 200
            ),
            1,
            **inputs,
        )
        assert module.names == tuple(inputs)
        np.testing.assert_allclose(graph[0], ours[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("coils", [1, 3])
def test_slices_of_a_batch_keep_their_own_scale(coils):
    kspace, mask, maps = scan(coils)
    job = MRIJob(MRITask(denoiser_of(2, 7, residual=True)), coils, tuple(mask.shape), iterations=20)
    inputs = {"kspace": to_channels(kspace[None]), "sigma": torch.full((1, 1, 1, 1), 0.01)}
    pair = {name: torch.cat([value, 4 * value]) for name, value in inputs.items()} | {
        "mask": mask.expand(2, 1, *mask.shape)
    }
    pair |= {} if maps is None else {"maps": to_channels(maps[None]).expand(2, -1, -1, -1)}
    noise = torch.randn(1, *job.state, generator=torch.Generator().manual_seed(0))
    one, four = run_job(job, pair, noise.expand)
    # a power of two: rounding is the same
    torch.testing.assert_close(four, 4 * one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.3, 5.0])
def test_real_sense_is_sense(sigma):
    """All proximal steps from one Krylov space: the host's, which solves one after the other to a
    tolerance.
    """
    kspace, mask, maps = scan(3, sigma=0.2)
    x, y = smooth(2, mask.shape, 7), to_channels(kspace[None])
    complex_, real = Sense(mask, maps), RealSense(mask[None, None], to_channels(maps[None]), 200)
    torch.testing.assert_close(real.A(x), coil_pairs(complex_.A(x)), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        real.A_adjoint(coil_pairs(y)), complex_.A_adjoint(y), atol=1e-5, rtol=0
    )
    gamma = torch.full((1, 1, 1, 1), 3.0)
    torch.testing.assert_close(
        real.prox_l2(x, coil_pairs(y), gamma), complex_.prox_l2(x, y, 3.0), atol=2e-4, rtol=0
    )
    ours = real.agree(x, coil_pairs(y), torch.full((1, 1, 1, 1), sigma))
    torch.testing.assert_close(ours, agree(x, Measurement(complex_, y, sigma)), atol=2e-4, rtol=0)
    assert (ours == x).all() == (
        sigma == 5.0
    )  # an image that explains the data within the noise stays


def test_quantiles_are_torchs():
    g = torch.Generator().manual_seed(0)
    for count in (5, 8, 101):
        values = torch.randn(3, count, generator=g)
        for q in (0.0, 0.3, 0.5, 0.99, 1.0):
            torch.testing.assert_close(quantile(values, q), torch.quantile(values, q, dim=1))
        torch.testing.assert_close(ordered(values, (count - 1) // 2), values.median(1).values)


# -- eigen-images ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("symmetries", [8])
def test_eigen_images_are_the_host_step(symmetries):
    d = denoiser_of(1)
    time = 12.0
    exported = copy.copy(d)
    exported.network = copy.copy(d.network)
    exported.network.__dict__["timesteps"] = (time,)  # what an exported network tells the host
    task = HyperspectralTask(d, symmetries=symmetries, axes=1)
    images = torch.cat([3 + 2 * smooth(1, SIZE, 1), 0.2 * smooth(1, SIZE, 2) - 7])
    level = torch.tensor([0.2, 0.03])
    host, calls = replace(task, denoiser=exported).denoise(
        images[:, 0].numpy(), np.square(level.numpy())[:, None, None] * np.ones((2, *SIZE))
    )
    ours, module = run_graph(
        EigenImageJob(task, time, SIZE), 0, image=images, level=level[:, None, None, None]
    )
    assert module.names == ("image", "level")
    assert module.calls == symmetries == calls // 2
    np.testing.assert_allclose(ours[:, 0], host, atol=1e-4)


# -- calibrated times ------------------------------------------------------------------------------


@pytest.mark.long
def test_denoisers_enter_at_calibrated_times():
    """A denoising run chooses its times by the noise; with scales that were calibrated at some
    times it takes the nearest of those.
    """
    known = (90.0, 50.0, 20.0, 12.0, 7.0, 3.0)
    d = denoiser_of(3)
    y = smooth(3, SIZE) + 0.1 * torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    whole = Whole("denoise", sigma=0.1, size="32x24")
    free = make_job(d, whole, Settings(steps=2))
    job = make_job(d, whole, Settings(steps=2, timesteps=known))
    with pytest.raises(ValueError, match="not in the temporal table"):
        export_restorer(free, timesteps=known)
    ours, module = run_graph(job, 0, image=y)
    entry = d.process.time_at(-2 * np.log(0.2))
    assert module.timesteps[0] == min(
        known, key=lambda t: abs(d.process.log_snr(t) - d.process.log_snr(entry))
    )
    assert module.timesteps[0] > module.timesteps[1]
    assert set(module.timesteps) <= set(known)
    np.testing.assert_allclose(
        ours[0], job.task(y[0], job.operator, sigma=0.1).mean.numpy(), atol=1e-4
    )
    # as `verify` makes it of a bundle
    again = make_job(d, whole, Settings(steps=2, timesteps=module.timesteps))
    torch.testing.assert_close(
        again.task(y[0], job.operator, sigma=0.1).mean, job.task(y[0], job.operator, sigma=0.1).mean
    )
    with pytest.raises(ValueError, match="take at most 1 of them"):
        make_job(d, whole, Settings(steps=4, timesteps=(90.0, 50.0, 12.0))).task(
            y[0], job.operator, sigma=0.1
        )


# -- bundles ---------------------------------------------------------------------------------------


@pytest.mark.slow  # exact data of one coil: test_contract.py
def test_integer_mri_bundle_errs_as_the_simulation_says(tmp_path):
    """The bundle's int8 run is as near to the float run as the host's loop around the simulated
    network.
    """
    kspace, mask, maps = scan(1)
    task = MRITask(denoiser_of(2, 7, residual=True), num_inference_steps=2)
    with record(task.denoiser, seed=0, solver="ddim", task="mri") as recorder:
        for k in range(3):
            task(*scan(1, seed=k), sigma=0.01, seed=k)
    quantized = quantize(task.denoiser.network, recorder.result(), QuantRecipe())
    simulated = copy.copy(task.denoiser)
    simulated.network = quantized.simulating("cpu")
    host = replace(task, denoiser=simulated)(kspace, mask, maps, sigma=0.01, seed=4).magnitude
    export_restorer_bundle(
        MRIJob(task, 1, tuple(mask.shape)), tmp_path / "mri", target="cpu", quantized=quantized
    )
    restorer = Restorer(tmp_path / "mri", threads=1)
    assert restorer.bundle.run.task == "mri"
    assert restorer.integer_convs() == restorer.bundle.planned == 2 * len(quantized.names)
    inputs = {"kspace": to_channels(kspace[None])[0], "mask": mask[None]}
    ours = restorer.restore(inputs | {"sigma": torch.full((1, 1, 1), 0.01)}, seed=4)
    magnitude, peak = ours.mean.square().sum(0).sqrt(), float(host.max())
    unquantized = task(kspace, mask, maps, sigma=0.01, seed=4).magnitude
    images = [v.numpy()[None] / peak for v in (magnitude, host, unquantized)]
    # single roundings fall differently in the two, so images are compared by their error against
    # the float run: within 10 %
    assert psnr(images[0], images[2]) == pytest.approx(
        psnr(images[1], images[2]), abs=20 * np.log10(1.1)
    )
    assert ours.nfe == 2
    with pytest.raises(ValueError, match="kspace, mask, sigma"):
        restorer.restore(inputs)
    with pytest.raises(ValueError, match=r"mask must be \(1, 32, 36\)"):
        restorer.restore(inputs | {"mask": mask, "sigma": torch.zeros(1, 1, 1)})
    with pytest.raises(ValueError, match="inpaint"):
        restorer(torch.zeros(3, 32, 36), mask)


def test_jobs_refuse_what_cannot_be_a_graph():
    with pytest.raises(ValueError, match="differentiates the network"):
        export_restorer(
            LinearJob(LinearTask(denoiser_of(3), correction="dps"), Bicubic(SIZE, 4), SIZE)
        )
    with pytest.raises(ValueError, match="singular system"):
        export_restorer(MRIJob(MRITask(denoiser_of(2, 7)), 2, SIZE, exact=True))
    with pytest.raises(ValueError, match="7 condition channels"):
        export_restorer(MRIJob(MRITask(denoiser_of(2)), 1, SIZE))
    with pytest.raises(ValueError, match="once"):
        export_restorer(
            EigenImageJob(HyperspectralTask(denoiser_of(1), num_inference_steps=2), 12.0, SIZE)
        )


def test_the_command_line_makes_paired_jobs(tmp_path):
    haze, plain, masked = denoiser_of(3, 7), denoiser_of(3, 3), denoiser_of(3, 4)
    assert make_job(haze, Whole("dehaze", size="32x24")).name == "dehaze"
    for d, task, words in ((haze, "paired", "task dehaze"), (plain, "dehaze", "task paired")):
        with pytest.raises(ValueError, match=words):
            make_job(d, Whole(task, size="32x24"))
    with pytest.raises(ValueError, match="knows no --sigma"):
        make_job(plain, Whole("paired", sigma=0.1, size="32x24"))
    with pytest.raises(ValueError, match="knows no --correction"):
        make_job(plain, Whole("paired", size="32x24"), Settings(correction="ddnm"))
    for k, folder in enumerate(("degraded", "clean", "mask")):
        (tmp_path / folder).mkdir()
        write_image(
            tmp_path / folder / "a.png",
            Photo(smooth(1 if folder == "mask" else 3, (30, 40), k)[0].numpy()),
        )
    task = Paired()
    options = task.simulated(plain)
    for d, names in ((plain, ["image"]), (masked, ["image", "mask"])):
        trial = task.trial(task.source(tmp_path, d, SIZE, 0), 0, options)
        assert list(trial.inputs) == names
        assert all(value.shape[1:] == SIZE for value in (*trial.inputs.values(), trial.truth))
    # the same window of both, however it was drawn: their difference is that of the pictures
    shift = smooth(3, (30, 40), 0) - smooth(3, (30, 40), 1)
    found = trial.inputs["image"] - trial.truth
    assert float(found.min()) >= float(shift.min()) - 0.02
    assert float(found.max()) <= float(shift.max()) + 0.02
    small = task.trial(task.source(tmp_path, plain, (64, 64), 0), 0, options)
    assert small.truth.shape[1:] == (30, 40)
