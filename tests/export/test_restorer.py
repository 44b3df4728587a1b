"""The whole restoration in one graph: it computes what the host's loop computes."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.networks import shallow_unet
from helpers.quantized import one_thread, tiny_denoiser  # noqa: F401

from export.bundle import MANIFEST, RESTORER, RUNNER, RUNNER_SOURCE, read_bundle
from export.exporter import export_bundle, export_restorer_bundle
from export.graphs.restorer import RestorerNetwork, export_restorer
from export.graphs.tensorrt import faults
from export.jobs.photo import InpaintingJob
from export.runtime.providers import open_session, tensorrt_options
from export.runtime.restorer import mirrored
from export.runtime.session import Restorer, Session
from quant.calibration.trajectory import record
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from quant.temporal.features import cached
from restoration.metrics import psnr
from restoration.photo.inpainting import InpaintingTask
from solvers.methods.ddim import DDIM
from solvers.methods.eabm import EABM
from solvers.methods.evodiff import EVODiff
from solvers.methods.pndm import PNDM

SIZE = (24, 32)
CPU = ["CPUExecutionProvider"]

pytestmark = pytest.mark.usefixtures("one_thread")


def photo(height, width, seed=0, channels=3):
    g = torch.Generator().manual_seed(seed)
    image = torch.nn.functional.interpolate(
        torch.rand(1, channels, 5, 5, generator=g), size=(height, width), mode="bilinear"
    )[0]
    return image, (torch.rand(height, width, generator=g) > 0.5).float()


@pytest.fixture(scope="module")
def task():
    denoiser = tiny_denoiser()
    denoiser.network = shallow_unet(28, 12, width=32)  # each step is traced
    return InpaintingTask(denoiser, DDIM(), 2)


@pytest.fixture(scope="module")
def quantized(task):
    with record(task.denoiser, seed=0, solver="ddim", task="inpaint") as recorder:
        for k in range(3):
            task(*photo(*SIZE, seed=k), seed=k)
    return quantize(task.denoiser.network, recorder.result(), QuantRecipe())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, task, quantized):
    root = tmp_path_factory.mktemp("restorers")
    job = InpaintingJob(task, SIZE)
    export_restorer_bundle(job, root / "float")
    export_restorer_bundle(job, root / "cpu", target="cpu", quantized=quantized)
    export_restorer_bundle(job, root / "tensorrt", target="tensorrt", quantized=quantized)
    return root


def test_graph_is_the_host_loop(bundles, task):
    restorer = Restorer(bundles / "float", threads=1)
    image, mask = photo(*SIZE)
    ours, host = (
        restorer(image, mask, num_samples=2, seed=5),
        task(image, mask, num_samples=2, seed=5),
    )
    torch.testing.assert_close(ours.samples, host.samples, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.std, host.std, atol=1e-4, rtol=0)
    assert ours.nfe == host.nfe == 4
    assert (bundles / "float" / RUNNER).read_bytes() == RUNNER_SOURCE.read_bytes()
    assert torch.equal(ours.mean[:, mask > 0], image[:, mask > 0])


def test_graph_takes_batches(bundles):
    restorer = Restorer(bundles / "float", threads=1)
    (a, ka), (b, kb) = photo(*SIZE, seed=1), photo(*SIZE, seed=2)
    noise = torch.randn(1, 2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    both = restorer.run_tile(torch.stack([a, b]), torch.stack([ka, kb])[:, None], noise)
    for k, (image, mask) in enumerate(((a, ka), (b, kb))):
        torch.testing.assert_close(
            both[k],
            restorer.run_tile(image[None], mask[None, None], noise[:, k : k + 1])[0],
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize(
    ("changes", "sigma"),
    [
        pytest.param({"solver": DDIM(eta=1.0)}, 0.0, marks=pytest.mark.slow),
        pytest.param({"solver": PNDM()}, 0.0, marks=pytest.mark.slow),
        pytest.param(
            {"solver": EVODiff(), "grid": "log-snr", "num_inference_steps": 4},
            0.0,
            marks=pytest.mark.long,
        ),
        pytest.param({"solver": EABM(), "num_inference_steps": 4}, 0.0, marks=pytest.mark.long),
        pytest.param({"correction": "diffpir"}, 0.1, marks=pytest.mark.long),
        pytest.param({"correction": "repaint"}, 0.0, marks=pytest.mark.slow),
    ],
)
def test_solvers_and_corrections_trace(task, changes, sigma):
    other = replace(task, **changes)
    model, module = export_restorer(InpaintingJob(other, SIZE, sigma), estimates=True)
    proto = ir.to_proto(model)
    assert not any("DOUBLE" in fault for fault in faults(proto))
    session = open_session(proto.SerializeToString(), CPU, threads=1)
    image, mask = photo(*SIZE)
    generator = torch.Generator().manual_seed(7)
    noise = torch.stack(
        [torch.randn(1, 3, *SIZE, generator=generator) for _ in range(module.draws)]
    )
    feed = {"image": image[None].numpy(), "mask": mask[None, None].numpy(), "noise": noise.numpy()}
    restored, estimates = session.run(None, feed)
    host = other(image, mask, sigma=sigma, seed=7)
    np.testing.assert_allclose(restored[0], host.mean.numpy(), atol=1e-4)
    assert estimates.shape == (host.nfe, 1, 3, *SIZE)
    assert len(module.timesteps) <= module.calls == host.nfe


@pytest.mark.long
def test_features_are_kept_within_a_graph(task, quantized, tmp_path):
    job = InpaintingJob(task, SIZE)
    bundle = export_restorer_bundle(job, tmp_path / "b", target="cpu", quantized=quantized, cache=2)
    restorer = Restorer(tmp_path / "b", threads=1)
    assert (bundle.run.cache, bundle.run.calls) == (2, 2)
    assert restorer.integer_convs() == bundle.planned
    whole = len([n for n, layer in quantized.layers().items() if layer.codes.ndim == 4])
    assert whole < bundle.planned < 2 * whole
    simulated = task.denoiser.around(quantized.simulating("cpu"))
    kept, plain = (
        replace(task, denoiser=d)(*photo(*SIZE), seed=5).mean.numpy()
        for d in (cached(simulated, 2), simulated)
    )
    ours = restorer(*photo(*SIZE), seed=5).mean.numpy()
    assert psnr(ours, kept) > psnr(ours, plain) + 10


def test_runs_that_take_no_cache_are_refused_before_they_are_traced(task):
    several = InpaintingJob(replace(task, solver=PNDM("s-pndm"), num_inference_steps=4), SIZE)
    with pytest.raises(ValueError, match=r"^the cache of features is for solvers with one"):
        RestorerNetwork(several, cache=2)
    assert RestorerNetwork(InpaintingJob(task, SIZE), cache=2).calls == 2


@pytest.mark.long
def test_integer_restorer_matches_the_integer_loop(bundles, task, quantized, tmp_path):
    """The same scales through the whole-run graph and through the host's loop around the network's
    graph.
    """
    export_bundle(task.denoiser, tmp_path / "network", target="cpu", quantized=quantized)
    host = replace(task, denoiser=Session(tmp_path / "network", threads=1))
    restorer = Restorer(bundles / "cpu", threads=1)
    assert restorer.integer_convs() == restorer.bundle.planned == 2 * len(quantized.names)
    for seed in (0, 1):
        image, mask = photo(*SIZE, seed=seed)
        assert (
            psnr(
                restorer(image, mask, seed=seed).mean.numpy(),
                host(image, mask, seed=seed).mean.numpy(),
            )
            > 50
        )


@pytest.mark.long
def test_weights_are_stored_once(bundles, task):
    one_step = InpaintingJob(replace(task, num_inference_steps=1), SIZE)
    export_restorer_bundle(one_step, bundles / "one-step")
    one, two = ((bundles / name / RESTORER).stat().st_size for name in ("one-step", "float"))
    weights = 4 * sum(p.numel() for p in task.denoiser.network.parameters())
    assert two - one < 0.5 * weights
    tensors = onnx.load(bundles / "cpu" / RESTORER).graph.initializer
    assert sum(t.name.endswith("conv1.weight_codes") for t in tensors) == sum(
        "conv1" in n for n in first_convs(task)
    )


def first_convs(task):
    return [n for n, _ in task.denoiser.network.named_modules() if n.endswith("conv1")]


@pytest.mark.parametrize(
    ("height", "width", "channels"), [(24, 32, 1), (37, 61, 3), (17, 9, 3), (60, 20, 1)]
)
def test_any_picture_goes_through_in_tiles(bundles, height, width, channels):
    image, mask = photo(height, width, channels=channels)
    done = []
    result = Restorer(bundles / "float", threads=1)(
        image, mask, overlap=8, callback=lambda k, step: done.append((k, step))
    )
    assert result.mean.shape == image.shape
    assert torch.isfinite(result.mean).all()
    assert torch.equal(result.mean[:, mask > 0], image[:, mask > 0])
    assert set(done) == {(0, None)}
    assert len(done) == result.nfe // 2


def test_tensorrt_restorer_keeps_its_contract(bundles):
    """Symmetric int8, half-precision network, everything around it in single precision, no Clip
    between weights and their DQ.
    """
    model = onnx.load(bundles / "tensorrt" / RESTORER)
    onnx.checker.check_model(model, full_check=True)
    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if node.input[0] in tensors:  # weights
                assert tensors[node.input[0]].data_type == onnx.TensorProto.INT8
                assert len(node.input) == 2  # zero point 0
            else:
                zero = tensors[node.input[2]]
                assert zero.data_type == onnx.TensorProto.INT8
                assert not onnx.numpy_helper.to_array(zero).any()
            assert tensors[node.input[1]].data_type in (
                onnx.TensorProto.FLOAT16,
                onnx.TensorProto.FLOAT,
            )
    producers = {out: n.op_type for n in model.graph.node for out in n.output}
    quantized = [
        n
        for n in model.graph.node
        if n.op_type == "Conv" and producers.get(n.input[1]) == "DequantizeLinear"
    ]
    assert len(quantized) == read_bundle(bundles / "tensorrt").planned
    assert all(producers[n.input[0]] == "DequantizeLinear" for n in quantized)
    inferred = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    }
    assert {inferred[n.output[0]] for n in quantized} == {onnx.TensorProto.FLOAT16}
    assert {
        inferred[n.output[0]] for n in model.graph.node if n.op_type == "InstanceNormalization"
    } == {onnx.TensorProto.FLOAT}
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {
        onnx.TensorProto.FLOAT
    }


@pytest.mark.long
def test_half_precision_is_close(task, tmp_path):
    export_restorer_bundle(InpaintingJob(task, SIZE), tmp_path / "cuda", target="cuda")
    image, mask = photo(*SIZE)
    half, full = Restorer(tmp_path / "cuda", threads=1)(image, mask), task(image, mask)
    assert psnr(half.mean.numpy(), full.mean.numpy()) > 55
    assert not torch.equal(half.mean, full.mean)
    float_size = 4 * sum(p.numel() for p in task.denoiser.network.parameters())
    weights = [
        t
        for t in onnx.load(tmp_path / "cuda" / RESTORER).graph.initializer
        if t.name.endswith(".weight.half")
    ]
    assert 0 < sum(len(t.raw_data) for t in weights) <= float_size / 2


def test_engine_options_name_the_graph_and_its_shapes(bundles, tmp_path):
    bundle = read_bundle(bundles / "tensorrt")
    options = tensorrt_options(bundle, tmp_path)
    assert options["trt_profile_min_shapes"] == "image:1x3x24x32,mask:1x1x24x32,noise:1x1x3x24x32"
    assert options["trt_profile_max_shapes"] == "image:4x3x24x32,mask:4x1x24x32,noise:1x4x3x24x32"
    folder = Path(options["trt_engine_cache_path"])
    assert folder.parent == tmp_path
    assert os.stat(folder).st_mode & 0o077 == 0
    assert tensorrt_options(read_bundle(bundles / "cpu"), tmp_path)["trt_engine_cache_path"] != str(
        folder
    )


def test_wrong_use_is_refused_in_words(bundles, task, quantized, tmp_path):
    with pytest.raises(ValueError, match="differentiates the network"):
        export_restorer(InpaintingJob(replace(task, correction="dps"), SIZE))
    with pytest.raises(ValueError, match="multiples of 4"):
        export_restorer(InpaintingJob(task, (24, 30)))
    with pytest.raises(ValueError, match="not in the temporal table"):
        export_restorer_bundle(
            InpaintingJob(replace(task, num_inference_steps=5), SIZE),
            tmp_path / "x",
            target="cpu",
            quantized=quantized,
        )
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match=r"export\.runtime\.session\.Restorer"):
        Session(bundles / "float")
    export_bundle(task.denoiser, tmp_path / "network")
    with pytest.raises(ValueError, match=r"export\.runtime\.session\.Session"):
        Restorer(tmp_path / "network")
    with pytest.raises(ValueError, match="CPU kernels"):
        Restorer(bundles / "cpu", device="cuda")
    restorer = Restorer(bundles / "float", threads=1)
    image, mask = photo(*SIZE)
    for bad in ((image[:2], mask), (image, mask[:3]), (image + 1, mask), (image, mask * 0)):
        with pytest.raises(ValueError, match=r"image|mask|pixels"):
            restorer(*bad)
    with pytest.raises(ValueError, match="half a tile"):
        restorer(image, mask, overlap=12)
    manifest = bundles / "float" / MANIFEST
    content = json.loads(manifest.read_text())
    content["run"]["draws"] = -1
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / RESTORER).write_bytes((bundles / "float" / RESTORER).read_bytes())
    (broken / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="draws"):
        read_bundle(broken)


@pytest.mark.parametrize(("length", "least"), [(1, 4), (3, 3), (3, 11), (8, 5)])
def test_small_pictures_are_continued_by_their_mirror_images(length, least):
    line = np.arange(length)
    expected = np.pad(line, (0, max(0, least - length)), "symmetric")
    np.testing.assert_array_equal(line[mirrored(length, least).numpy()], expected)
