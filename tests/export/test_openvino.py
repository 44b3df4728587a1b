"""OpenVINO as the runtime: the same answers as the network, integers where they were planned, clear
words where it is missing.
"""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from helpers.quantized import measurement, one_thread, recording, tiny_denoiser  # noqa: F401

from export.bundle import NETWORK, read_bundle
from export.exporter import export_bundle, export_restorer_bundle
from export.jobs.photo import InpaintingJob
from export.parity import Timed, verify
from export.runtime import auto
from export.runtime.openvino import KEPT, OpenVinoGraph
from export.runtime.outputs import keep_outputs
from export.runtime.providers import Placement, integer_convs
from export.runtime.session import OnnxNetwork, Restorer, Session
from quant.sensitivity import mean_error
from restoration.metrics import psnr
from restoration.photo.inpainting import InpaintingTask
from solvers.denoiser import Denoiser
from solvers.loop import solve
from solvers.methods.ddim import DDIM
from toolbox.api import load
from toolbox.cli import main

SIZE = (24, 32)
pytestmark = pytest.mark.usefixtures("one_thread")
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.long)],
    ids=["convolutions", "attention"],
)
def denoiser(request):
    return tiny_denoiser(attention=request.param)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, denoiser, quantized):
    """One bundle per target; the float network is a timestep graph."""
    root = tmp_path_factory.mktemp("bundles")
    export_bundle(denoiser, root / "float")
    for target in ("cpu", "tensorrt"):
        export_bundle(denoiser, root / target, target=target, quantized=quantized, seed=0)
    return root


@pytest.fixture(scope="module")
def restorer(tmp_path_factory, denoiser, quantized):
    folder = tmp_path_factory.mktemp("restorer") / "r"
    task = InpaintingTask(denoiser, DDIM(), 1)
    export_restorer_bundle(InpaintingJob(task, SIZE), folder, target="cpu", quantized=quantized)
    return folder


MISSING = r"^device openvino needs the package openvino: pip install 'restobox\[openvino\]'$"


@pytest.mark.long
def test_without_the_package_restorers_say_what_to_install(restorer, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=MISSING):
        Restorer(restorer, device="openvino")


def test_without_the_package_the_error_says_what_to_install(bundles, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=MISSING):
        Session(bundles / "cpu", device="openvino")
    monkeypatch.setattr(
        sys,
        "argv",
        ["restobox", "inspect", str(bundles / "cpu"), "--placement", "--device", "openvino"],
    )
    assert main() == 2
    assert (
        capsys.readouterr().err
        == "restobox: device openvino needs the package openvino: pip install"
        " 'restobox[openvino]'\n"
    )
    monkeypatch.setattr(sys, "argv", ["restobox", "doctor", "--require", "openvino"])
    assert main() == 3


def test_integers_are_counted_for_both_runtimes():
    rows = [
        Placement("Convolution", "OpenVINO", 5, "u8"),
        Placement("Convolution", "OpenVINO", 3, "i8"),
    ]
    rows += [
        Placement("Convolution", "OpenVINO", 2, "f32"),
        Placement("Convolution", "OpenVINO", 2, "bf16"),
    ]
    rows += [
        Placement("Reorder", "OpenVINO", 9, "u8"),
        Placement("QLinearConv", "CPUExecutionProvider", 4, "uint8"),
    ]
    graph = onnx.helper.make_model(onnx.helper.make_graph([], "none", [], []))
    assert integer_convs(rows, graph.SerializeToString()) == 12


def test_outputs_of_cpu_graphs_are_kept_in_float(bundles, denoiser, quantized, calibration):
    """What OpenVINO is given answers as the simulation that rounds inputs and weights alone."""
    kept = onnx.load_from_string(keep_outputs(bundles / "cpu" / NETWORK))
    onnx.checker.check_model(kept)
    convolved = {node.output[0] for node in kept.graph.node if node.op_type == "Conv"}
    coders = [node for node in kept.graph.node if node.op_type == "QuantizeLinear"]
    assert len(coders) == len(quantized.names)  # of inputs alone
    assert not convolved & {node.input[0] for node in coders}
    bundle = read_bundle(bundles / "cpu")
    network = OnnxNetwork(
        kept.SerializeToString(), None, ["CPUExecutionProvider"], 1, timesteps=bundle.timesteps
    )
    exact, rounded = (
        mean_error(quantized.simulating(target), denoiser.network, calibration)
        for target in ("openvino", "cpu")
    )
    assert exact < 0.85 * rounded
    assert mean_error(network, denoiser.network, calibration) == pytest.approx(exact, rel=0.05)


def test_a_torch_model_is_refused():
    with pytest.raises(ValueError, match=r"runs exported bundles; 'photo' is a PyTorch model"):
        load("photo", device="openvino")


@needs_openvino
def test_float_session_is_the_denoiser(bundles, denoiser):
    session = Session(bundles / "float", device="openvino", threads=1, require="openvino")
    assert isinstance(session, Denoiser)
    for side in (24, 30, 17):  # 17 is padded
        x, condition = (
            torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side)),
            measurement(1, side),
        )
        for t in (99.0, 12.25):
            ours, theirs = (
                session.conditioned(condition)(x, t),
                denoiser.conditioned(condition)(x, t),
            )
            torch.testing.assert_close(ours.x0, theirs.x0, atol=2e-5, rtol=0)
    x = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(session(x, 40.0).eps, denoiser(x, 40.0).eps, atol=2e-5, rtol=0)
    onnx = Session(bundles / "float", threads=1)
    assert (
        (session.network.out_channels, session.network.channels)
        == (onnx.network.out_channels, session.bundle.channels)
        == (12, 28)
    )


@needs_openvino
def test_signals_arrive_after_sessions_are_gone(bundles):
    """Where processors have AMX, a signal ended the process once a second core was gone."""
    code = """
import os, signal, sys
from export.runtime.session import Session
signal.signal(signal.SIGINT, signal.default_int_handler)
first, second = (Session(sys.argv[1], device="openvino", threads=1) for _ in range(2))
del first
del second
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    words = [sys.executable, "-c", code, str(bundles / "float")]
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n")


@needs_openvino
def test_planned_convolutions_run_on_integers_and_errors_agree(
    bundles, denoiser, quantized, calibration
):
    seen = []
    options = {
        "device": "openvino",
        "restore": lambda d: seen.append(d) or 30.0,
        "timed": Timed((12, 12), 1),
    }
    parity = verify(denoiser, bundles / "cpu", quantized, calibration, **options)
    assert seen[1].network.providers == ["OpenVINO"]
    assert seen[1].network.graph.precision == "f32"
    assert parity.device == "openvino"
    assert parity.fused == parity.planned > 0
    assert parity.agreement <= 0.10
    assert parity.passed, parity.failures
    with pytest.raises(ValueError, match="devices cpu and openvino; got 'cuda'"):
        verify(denoiser, bundles / "cpu", quantized, calibration, device="cuda")


@needs_openvino
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_both_runtimes_restore_alike(bundles, denoiser, target):
    """They round some codes differently, which costs less than the codes themselves."""
    _, grid = recording(denoiser, count=1)
    x = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    sessions = [
        Session(bundles / target, device=device, threads=1) for device in ("cpu", "openvino")
    ]
    ort, openvino, plain = (
        solve(DDIM(), d.conditioned(measurement(0)), x, grid).x0 for d in (*sessions, denoiser)
    )
    quantization = float((ort - plain).norm())
    assert 0 < float((openvino - ort).norm()) < 1.5 * quantization
    assert float((openvino - plain).norm()) < 1.25 * quantization
    with pytest.raises(ValueError, match=r"timestep 50 .* holds 99, 74, 49, 24"):
        sessions[1](x, 50.0)


@needs_openvino
def test_bfloat16_is_a_choice_for_cpu_graphs_of_networks(bundles, monkeypatch):
    monkeypatch.setattr(auto, "has_bfloat16", lambda: True)
    bundle = read_bundle(bundles / "cpu")
    assert auto.possible(bundle) == ["cpu", "openvino", "openvino-bf16"]
    assert auto.possible(bundle.model_copy(update={"graph": "restorer"})) == ["cpu", "openvino"]
    session = Session(bundles / "cpu", device="openvino-bf16", threads=1)
    assert session.network.graph.precision == "bf16"


@pytest.mark.long
@needs_openvino
def test_sizes_are_compiled_once_and_the_last_are_kept(bundles):
    network = Session(bundles / "cpu", device="openvino", threads=1).network
    t = torch.tensor([99.0])
    inputs = [
        torch.randn(1, 28, 8 + 2 * k, 8, generator=torch.Generator().manual_seed(k))
        for k in range(KEPT + 2)
    ]
    first = network(inputs[0], t)
    copy = first.clone()
    kept = network.graph._compiled
    (request,) = kept.values()
    other = network(-inputs[0], t)
    assert list(kept.values()) == [request]
    assert torch.equal(first, copy)  # a result is the caller's
    assert not torch.equal(other, first)
    for x in inputs[1:]:
        assert network(x, t).shape == (1, 12, *x.shape[2:])
    assert len(kept) == KEPT
    torch.testing.assert_close(network(inputs[0], t), first, atol=0, rtol=0)


@needs_openvino
@pytest.mark.long
def test_a_restorer_is_the_loop_around_the_network(bundles, restorer):
    g = torch.Generator().manual_seed(3)
    image = torch.nn.functional.interpolate(
        torch.rand(1, 3, 5, 5, generator=g), size=SIZE, mode="bilinear"
    )[0]
    mask = (torch.rand(SIZE, generator=g) > 0.5).float()
    restorer = Restorer(restorer, device="openvino", threads=1)
    assert restorer.providers == ["OpenVINO"]
    assert restorer.integer_convs() == restorer.bundle.planned > 0
    loop = InpaintingTask(Session(bundles / "cpu", device="openvino", threads=1), DDIM(), 1)
    ours, theirs = (run(image, mask, seed=5).mean.numpy() for run in (restorer, loop))
    assert psnr(ours, theirs) > 50
    assert psnr(ours, image.numpy()) < 50


@needs_openvino
def test_what_is_damaged_or_asked_wrongly_is_refused(bundles, tmp_path):
    shutil.copytree(bundles / "cpu", tmp_path / "b")
    data = bytearray((tmp_path / "b" / NETWORK).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "b" / NETWORK).write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        Session(tmp_path / "b", device="openvino")
    with pytest.raises(
        RuntimeError, match="TensorrtExecutionProvider is required but OpenVINO was asked for"
    ):
        Session(bundles / "float", device="openvino", require="tensorrt")
    with pytest.raises(
        RuntimeError, match="OpenVINO is required but CPUExecutionProvider was asked for"
    ):
        Session(bundles / "float", require="openvino")
    with pytest.raises(ValueError, match="at least 1"):
        Session(bundles / "float", device="openvino", threads=0)


@needs_openvino
def test_placement_and_doctor_on_the_command_line(bundles, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "restobox",
            "inspect",
            str(bundles / "tensorrt"),
            "--placement",
            "--device",
            "openvino",
            "--json",
        ],
    )
    assert main() == 0
    rows = json.loads(capsys.readouterr().out)["placement"]
    assert {row["provider"] for row in rows} == {"OpenVINO"}
    planned = read_bundle(bundles / "tensorrt").planned
    integers = ("i8", "u8")  # the plugin's choice: the second without AMX
    assert (
        sum(row["count"] for row in rows if row["op"] == "Convolution" and row["dtype"] in integers)
        == planned
    )
    assert not {"Const", "Input", "Output"} & {row["op"] for row in rows}
    monkeypatch.setattr(sys, "argv", ["restobox", "doctor", "--require", "openvino", "--json"])
    assert main() == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"]["openvino"]
    assert report["packages"]["openvino"]


@needs_openvino
def test_threads_are_set(bundles):
    graph = OpenVinoGraph(bundles / "float" / NETWORK, "float", threads=1)
    feed = {"x": np.zeros((1, 28, 8, 8), np.float32), "t": np.zeros(1, np.float32)}
    assert graph._compile(feed)[0].get_property("INFERENCE_NUM_THREADS") == 1
