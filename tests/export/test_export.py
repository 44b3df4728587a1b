import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from helpers.quantized import measurement, one_thread, recording, tiny_denoiser  # noqa: F401
from onnx import numpy_helper

import export.parity
from export.bundle import FORMAT, MANIFEST, NETWORK, read_bundle, set_parity
from export.exporter import export_bundle, export_model
from export.graphs.kernels import fuse_attention
from export.graphs.network import export_graph
from export.graphs.precision import to_half
from export.graphs.qdq import insert_qdq, weighted_nodes
from export.graphs.shallow import cut
from export.parity import Limits, Timed, drift, verify
from export.runtime import auto, providers
from export.runtime.amx import shift_codes
from export.runtime.providers import Placement, count_kernels, fallen_back
from export.runtime.session import OnnxNetwork, Session
from quant.calibration.trajectory import record
from quant.layer import QuantLayer
from quant.quantize import quantize
from quant.recipe import QuantRecipe
from quant.temporal.features import SplitUNet, cached
from solvers.denoiser import Denoiser
from solvers.grid import trailing
from solvers.inputs.errors import InputError, ModelError
from solvers.interop.description import describe
from solvers.loop import solve
from solvers.methods.ddim import DDIM
from solvers.methods.rddm import RDDM
from solvers.methods.resfusion import Resfusion
from solvers.processes.continuous import VE
from solvers.processes.process import VP, Process, StepIndexed
from toolbox.api import load

CPU = ["CPUExecutionProvider"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, denoiser, quantized):
    """One bundle per target; the float one is a timestep graph."""
    root = tmp_path_factory.mktemp("bundles")
    export_bundle(denoiser, root / "float")
    for target in ("cpu", "tensorrt"):
        export_bundle(denoiser, root / target, target=target, quantized=quantized, seed=0)
    return root


def node_counts(path):
    model = onnx.load(path)
    return model, [n.op_type for n in model.graph.node]


def test_float_session_is_the_denoiser(bundles, denoiser):
    session = Session(bundles / "float", threads=1, require="cpu")
    assert isinstance(session, Denoiser)
    assert session.process == denoiser.process
    assert session.settings == denoiser.settings
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
    x = torch.randn(3, 3, 24, 24)
    torch.testing.assert_close(session(x, 40.0).eps, denoiser(x, 40.0).eps, atol=2e-5, rtol=0)


def test_inputs_that_a_graph_cannot_take_are_refused_in_our_words(bundles):
    session = Session(bundles / "cpu", threads=1)
    t, unit = torch.tensor([session.network.timesteps[0]]), session.multiple
    good = torch.zeros(1, session.bundle.channels, 8 * unit, 8 * unit)
    assert session.network(good, t).shape[-2:] == good.shape[-2:]
    wrong = [good[:, 1:], good[:0], good[0], good[..., :0]]
    if unit > 1:
        wrong.append(good[..., 1:])
    for x in wrong:
        with pytest.raises(InputError, match=re.escape(f"got {tuple(x.shape)}")):
            session.network(x, t.expand(len(x)))


def test_step_session_restores_on_its_grid_only(bundles, denoiser):
    session = Session(bundles / "tensorrt", threads=1)
    _, grid = recording(denoiser, count=1)
    x = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        solve(DDIM(), d.conditioned(measurement(0)), x, grid).x0 for d in (session, denoiser)
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02
    with pytest.raises(ValueError, match=r"timestep 50 .* holds 99, 74, 49, 24: .*grid"):
        session(x, 50.0)


@pytest.mark.parametrize("target", ["float", "cpu", "tensorrt"])
def test_graphs_cut_for_the_cache_of_features(bundles, denoiser, quantized, target):
    session = Session(bundles / target, threads=1)
    parts = session.network.split()
    x = torch.randn(2, 28, 12, 16, generator=torch.Generator().manual_seed(0))
    t, later = (torch.full((2,), float(t)) for t in quantized.timesteps[:2])
    out, features = parts.full(x, t)
    # the same operators on the same numbers
    assert torch.equal(out, session.network(x, t))
    assert torch.equal(parts.shallow(x, t, features), out)
    reused, whole = parts.shallow(x, later, features), session.network(x, later)
    assert float((reused - whole).norm() / whole.norm()) > 1e-3
    if target == "float":
        theirs = SplitUNet(denoiser.network)
        with torch.no_grad():
            expected = theirs.shallow(x, later, theirs.full(x, t)[1])
        torch.testing.assert_close(reused, expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_quantized_network_is_split_with_its_codes(quantized):
    x, t = torch.randn(2, 28, 12, 16), torch.full((2,), float(quantized.timesteps[1]))
    whole, features = SplitUNet(quantized).full(x, t)
    assert torch.equal(whole, quantized(x, t))
    assert torch.equal(SplitUNet(quantized).shallow(x, t, features), whole)
    assert not torch.equal(whole, quantized.float_network(x, t).sample)


def test_a_cached_run_of_a_bundle_is_that_of_the_network(bundles, denoiser, tmp_path):
    _, grid = recording(denoiser, count=1)
    x = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))

    def end(d):
        return solve(DDIM(), d.conditioned(measurement(0)), x, grid).x0

    ours, theirs = (end(cached(d, 2)) for d in (Session(bundles / "float", threads=1), denoiser))
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
    assert not torch.allclose(theirs, end(denoiser), atol=1e-3)
    assert load(bundles / "float", cache=2, threads=1).network.full_steps == 2


def test_drift_is_the_difference_at_the_end_of_runs(bundles, denoiser, monkeypatch):
    monkeypatch.setattr(export.parity, "DRIFTS", (1, 5))
    session = Session(bundles / "float", threads=1)
    network = session.network

    def shifted(x, t):
        return network(x, t) + 0.01

    found = drift(denoiser, session.around(shifted))
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for steps in (1, 5):
        grid = trailing(denoiser.process, steps)
        ends = [solve(DDIM(), d, x, grid).x0 for d in (denoiser.around(shifted), denoiser)]
        expected = float((ends[0] - ends[1]).norm() / ends[1].norm())
        assert found[steps] == pytest.approx(expected, rel=1e-2)
        assert expected > 1e-3


def test_running_a_bundle_imports_no_exporter(bundles):
    """They cost half a second each time a command starts."""
    code = (
        "import sys, torch\n"
        "from export.runtime.session import Restorer, Session\n"
        f"session = Session({str(bundles / 'cpu')!r}, threads=1)\n"
        "session(torch.zeros(1, 3, 24, 24), session.network.timesteps[0])\n"
        "print(sorted({'onnx_ir', 'sympy', 'onnxscript', 'brevitas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_fastest_device_is_found_once(bundles, monkeypatch, tmp_path):
    bundle, opened = read_bundle(bundles / "cpu"), []
    monkeypatch.setattr(auto, "SECONDS", 0.03)
    monkeypatch.setattr(auto, "possible", lambda bundle: ["cpu", "openvino", "broken"])

    def try_out(device):
        opened.append(device)
        if device == "broken":
            raise ImportError("its library is missing")
        return lambda: time.sleep({"cpu": 0.005, "openvino": 0.001}[device])

    for _ in range(2):
        assert auto.choose_device(bundle, try_out, cache=tmp_path) == "openvino"
    assert opened == ["cpu", "openvino", "broken"]
    # other threads, another graph and a damaged file: tried again
    auto.choose_device(bundle, try_out, threads=2, cache=tmp_path)
    auto.choose_device(read_bundle(bundles / "float"), try_out, cache=tmp_path)
    (tmp_path / auto.FILE).write_text("{")
    auto.choose_device(bundle, try_out, cache=tmp_path)
    assert len(opened) == 12
    (tmp_path / "file").write_text("")
    auto.choose_device(bundle, try_out, cache=tmp_path / "file" / "none")  # can't be kept
    monkeypatch.setattr(auto, "possible", lambda bundle: ["broken", "broken"])
    with pytest.raises(RuntimeError, match="broken: its library is missing"):
        auto.choose_device(bundle, try_out, cache=tmp_path)


def test_a_session_finds_its_device(bundles, denoiser, monkeypatch, tmp_path):
    monkeypatch.setattr(auto, "SECONDS", 0.01)
    session = Session(bundles / "float", device="auto", threads=1, cache=tmp_path)
    assert session.runs_on in auto.possible(session.bundle)
    assert json.loads((tmp_path / auto.FILE).read_text()) or session.runs_on == "cuda"
    x, shown = torch.randn(1, 3, 24, 24), measurement(1, 24)
    ours, theirs = (d.conditioned(shown)(x, 50.0).x0 for d in (session, denoiser))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05  # bfloat16 at the worst


def test_sessions_do_not_spin(bundles):
    options = Session(bundles / "float").network.session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_graph_without_deep_features_is_not_cut(tmp_path):
    layer = ir.node("Relu", [ir.Value(name="x")])
    layer.outputs[0].name = "output"
    graph = ir.Graph(list(layer.inputs), layer.outputs, nodes=[layer], opset_imports={"": 18})
    content = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    with pytest.raises(ValueError, match="this graph has none: leave out the cache"):
        cut(content)


@pytest.mark.parametrize(
    ("target", "zero", "kind"),
    [("cpu", None, onnx.TensorProto.UINT8), ("tensorrt", 0, onnx.TensorProto.INT8)],
)
def test_quantized_graph_structure(bundles, quantized, target, zero, kind):
    model, ops = node_counts(bundles / target / NETWORK)
    onnx.checker.check_model(model, full_check=True)
    tensors = {t.name: t for t in model.graph.initializer}
    dequantizers = {n.input[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    weights = {n.input[1]: n for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")}
    consumers = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node.op_type)
    users = {name: node for node in model.graph.node for name in node.input}
    makers = {name: node for node in model.graph.node for name in node.output}
    planned = quantized.layers()
    convs = sum(layer.codes.ndim == 4 for layer in planned.values())
    assert model.opset_import[0].version == (18 if target == "cpu" else 19)
    assert "Clip" not in ops
    assert "Gemm" not in ops  # the time layers are a table
    quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert len(quantizers) == (2 * convs if target == "cpu" else len(planned))
    for node in quantizers:
        assert node.input[0] not in tensors  # no weight is quantized at run time
        point = onnx.numpy_helper.to_array(tensors[node.input[2]])
        layer = users[users[node.output[0]].output[0]].name  # after the DQ
        if layer in planned:
            inner = planned[layer].input_zero
        else:  # an output: its channels share a grid, or are in codes
            made = planned[makers[node.input[0]].name]
            own = set(made.output_zero) if len(set(made.output_scale)) == 1 else {128}
            (inner,) = own
        assert point == (inner if zero is None else zero)
        assert tensors[node.input[2]].data_type == kind
    for name, layer in planned.items():
        codes = tensors[f"{name}.weight_codes"]
        assert codes.data_type == onnx.TensorProto.INT8
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(codes), layer.codes)
        dequantizer = dequantizers[codes.name]
        assert weights[dequantizer.output[0]].name == name
        assert len(dequantizer.input) == 2  # zero point 0
        assert {a.name: a.i for a in dequantizer.attribute}["axis"] == 0
        assert f"{name}.weight" not in tensors
    if target == "tensorrt":
        assert all(
            "QuantizeLinear" not in consumers.get(n.output[0], ())
            for n in model.graph.node
            if n.op_type == "Conv"
        )
        assert not any(
            t.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.UINT8)
            for t in model.graph.initializer
        )


@pytest.mark.parametrize("target", ["float", "cpu", "tensorrt"])
def test_graphs_hold_nothing_that_no_runtime_needs(bundles, quantized, target):
    model, _ = node_counts(bundles / target / NETWORK)
    graph = model.graph
    assert not graph.value_info
    assert not any(
        entry.metadata_props for entry in (graph, *graph.node, *graph.input, *graph.output)
    )
    # ONNX Runtime up to 1.21 refuses graphs whose fused nodes are called the same
    named = {n.name for n in graph.node}
    assert len(named) == len(graph.node)
    assert "" not in named
    assert set(quantized.names) <= named
    made = [value for n in graph.node for value in n.output if value]
    names = [*made, *(t.name for t in graph.initializer), *(v.name for v in graph.input)]
    assert len(set(names)) == len(names)
    weights = sum(len(t.raw_data) for t in graph.initializer)
    assert model.ByteSize() - weights < 80 * (len(graph.node) + len(graph.initializer))
    suffix = ".weight" if target == "float" else ".weight_codes"
    assert {f"{name}{suffix}" for name in quantized.names} <= {t.name for t in graph.initializer}


def test_every_planned_conv_runs_on_integers_and_errors_agree(
    bundles, denoiser, quantized, calibration
):
    seen = []
    parity = verify(
        denoiser,
        bundles / "cpu",
        quantized,
        calibration,
        restore=lambda d: seen.append(type(d)) or 30.0,
        timed=Timed((12, 12), 1),
    )
    assert parity.fused == parity.planned == len(quantized.names)
    assert parity.agreement <= 0.10
    assert parity.passed, parity.failures
    assert parity.size_ratio < 0.7
    assert max(parity.onnx) < 0.06
    assert list(parity.drift) == [1]  # of longer grids it holds not all times
    assert seen == [Denoiser, Session]
    content = parity.to_dict()
    assert json.loads(json.dumps(content))["speedup"] == pytest.approx(parity.float_ms / parity.ms)
    set_parity(bundles / "cpu", content)
    assert read_bundle(bundles / "cpu").parity["fused"] == parity.fused


@pytest.mark.long
def test_quantized_temporal_features_are_in_the_graph(tmp_path, denoiser, calibration):
    made = quantize(denoiser.network, calibration, QuantRecipe(weight_bits=4, temporal="fsc"))
    export_bundle(denoiser, tmp_path / "b", target="cpu", quantized=made)
    session = Session(tmp_path / "b", threads=1)
    for x, t in calibration.batches():
        exact = made.float_network(x, t).sample
        simulated, real = (
            (out - exact).norm() for out in (made.simulating("cpu")(x, t), session.network(x, t))
        )
        assert float(real) == pytest.approx(float(simulated), rel=0.1)
    names = {
        i.name: numpy_helper.to_array(i)
        for i in onnx.load(tmp_path / "b" / "network.onnx").graph.initializer
    }
    held = next(v for v in names.values() if v.shape == tuple(made.table.features.shape))
    np.testing.assert_array_equal(held, made.table.features.numpy())


def test_parity_limits_name_what_failed(bundles, denoiser, quantized, calibration):
    limits = Limits(agreement=0.1, error=1e-6, speedup=1e6, quality_drop=0.05)
    answers = iter((30.0, 29.0))
    parity = verify(
        denoiser,
        bundles / "tensorrt",
        quantized,
        calibration,
        restore=lambda d: next(answers),
        limits=limits,
        timed=Timed((12, 12), 1),
    )
    assert parity.fused is None
    assert [
        key in " ".join(parity.failures)
        for key in ("relative error", "speed", "1.000 dB", "differ")
    ] == [True, True, True, False]
    assert 0 < parity.difference < 1.4
    with pytest.raises(ValueError, match="holds no codes; omit --quantized"):
        verify(denoiser, bundles / "float", quantized, calibration)
    with pytest.raises(ValueError, match="cpu: give --quantized"):
        verify(denoiser, bundles / "cpu", None, calibration)
    with pytest.raises(ValueError, match="not exported from this network"):
        verify(tiny_denoiser(seed=1), bundles / "float", None, calibration)


def test_float_bundles_are_verified_too(bundles, denoiser, calibration, monkeypatch):
    monkeypatch.setattr(export.parity, "DRIFTS", (1, 5, 500))  # of 100 levels
    parity = verify(denoiser, bundles / "float", None, calibration, timed=Timed((12, 12), 1))
    assert list(parity.drift) == [1, 5]
    assert max(parity.drift.values()) < 1e-4
    assert parity.passed
    assert parity.error < 1e-5
    assert parity.agreement is parity.difference is None
    timed = Timed((12, 12), 1)
    for strict in (Limits(plain=(1e-9, 1e-9)), Limits(error=1e-9)):
        parity = verify(denoiser, bundles / "float", None, calibration, limits=strict, timed=timed)
        assert "relative error" in " ".join(parity.failures)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_grids_with_a_zero_point_compute_what_they_say(biased, shared):
    """One convolution: uint8 with zero point 128 and int8 with zero point 0 are one grid, bit for
    bit; with other zero points, the inputs' and each output channel's grid as they are defined.
    Where channels share a grid, the bias of the graph is the layer's.
    """
    rng = np.random.default_rng(0)
    weight, bias = (
        rng.standard_normal((8, 4, 3, 3)).astype(np.float32),
        rng.standard_normal(8).astype(np.float32),
    )
    scale = np.abs(weight).max((1, 2, 3)) / 127
    codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    x = rng.standard_normal((1, 4, 9, 9)).astype(np.float32)
    steps, zeros = np.full(8, 0.1, np.float32), np.arange(100, 180, 10).astype(np.uint8)
    if shared:
        zeros[:] = 100
    models = {}
    for target, zero in (("tensorrt", 128), ("openvino", 128), ("openvino", 40), ("cpu", 40)):
        conv = onnx.helper.make_node(
            "Conv", ["x", "c.weight", "c.bias"], ["mid"], name="c", pads=[1, 1, 1, 1]
        )
        tail = onnx.helper.make_node("Identity", ["mid"], ["output"])
        info = [
            onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
            for n in ("x", "output")
        ]
        tensors = [
            onnx.numpy_helper.from_array(weight, "c.weight"),
            onnx.numpy_helper.from_array(bias, "c.bias"),
        ]
        if not biased:
            del conv.input[2], tensors[1]
        graph = onnx.helper.make_graph([conv, tail], "one", info[:1], info[1:], tensors)
        model = ir.from_proto(
            onnx.helper.make_model(
                graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
            )
        )
        kept = bias if biased else None
        layer = QuantLayer(0.02, zero, 0.02, steps, zeros, scale, codes, kept)
        models[target, zero] = ir.to_proto(insert_qdq(model, {"c": layer}, target))
    found = {key: _run_unoptimised(model, x) for key, model in models.items()}
    np.testing.assert_array_equal(found["openvino", 128], found["tensorrt", 128])
    grid = torch.from_numpy(((x / 0.02).round() + 40).clip(0, 255) - 40) * 0.02
    weights = torch.from_numpy(codes * scale[:, None, None, None])
    wanted = torch.nn.functional.conv2d(
        grid, weights, torch.from_numpy(bias) if biased else None, padding=1
    ).numpy()
    np.testing.assert_allclose(found["openvino", 40], wanted, atol=1e-4)
    # the whole CPU placement: the same, then on each channel's output grid
    low, high = (0.1 * (end - zeros.astype(float))[:, None, None] for end in (0, 255))
    cut = wanted.clip(low, high)
    assert 0 < np.mean(cut != wanted) < 0.5
    np.testing.assert_allclose(found["cpu", 40], cut, atol=0.0501)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in models["cpu", 40].graph.initializer}
    decoded = tensors["c.bias_codes"] * tensors["c.bias_scale"]
    assert np.allclose(decoded, bias * biased, atol=1e-3) == shared
    assert tensors["c.output_zero"].ndim == (0 if shared else 1)


@pytest.mark.parametrize("step", [0.02, 2e-5])
def test_channels_that_are_almost_zero_are_decoded_in_half_precision(step):
    """Of weights, and activations: float16 holds steps from 2^-14 on."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 4, 3, 3)).astype(np.float32)
    weight[2] *= 1e-3
    weight[5] *= 1e-9
    scale = np.abs(weight).max((1, 2, 3)) / 127
    codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    conv = onnx.helper.make_node("Conv", ["x", "c.weight"], ["output"], name="c", pads=[1] * 4)
    conv.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['network']")
    info = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, c, 9, 9])
        for n, c in (("x", 4), ("output", 8))
    ]
    tensors = [onnx.numpy_helper.from_array(weight, "c.weight")]
    graph = onnx.helper.make_graph([conv], "one", info[:1], info[1:], tensors)
    opset = [onnx.helper.make_opsetid("", 18)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10))
    layer = QuantLayer(
        step, 128, step, np.ones(8, np.float32), np.full(8, 128, np.uint8), scale, codes
    )
    made = ir.to_proto(to_half(insert_qdq(model, {"c": layer}, "tensorrt")))
    makers = {name: node for node in made.graph.node for name in node.output}
    (conv,) = (node for node in made.graph.node if node.op_type == "Conv")
    assert [makers[name].op_type for name in conv.input] == ["DequantizeLinear"] * 2
    step = max(step, 2.0**-14)
    x = rng.integers(-128, 128, (1, 4, 9, 9)).astype(np.float32) * np.float32(step)
    exact = torch.from_numpy(codes * scale[:, None, None, None])
    wanted = torch.nn.functional.conv2d(torch.from_numpy(x), exact, padding=1).numpy()
    found = _run_unoptimised(made, x)
    np.testing.assert_allclose(found, wanted, atol=step)
    np.testing.assert_allclose(found[:, [2, 5]], wanted[:, [2, 5]], atol=step / 20)
    assert np.abs(wanted[:, 2]).max() > step / 2


def _run_unoptimised(model, x):
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _run(model.SerializeToString(), {"x": x}, graph_optimization_level=level)


def _run(data, feed, **settings):
    options = onnxruntime.SessionOptions()
    for name, value in {"intra_op_num_threads": 1, **settings}.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(data, options, providers=CPU).run(None, feed)[0]


@pytest.mark.long
def test_attention_layers_are_found_and_quantized():
    denoiser = tiny_denoiser(attention=True)
    calibration, _ = recording(denoiser)
    quantized = quantize(denoiser.network, calibration, QuantRecipe())
    assert any("to_q" in name for name in quantized.names)
    model = export_model(denoiser, target="cpu", quantized=quantized, timesteps=quantized.timesteps)
    network = OnnxNetwork(model.SerializeToString(), None, CPU, 1, timesteps=quantized.timesteps)
    simulated = quantized.simulating("cpu")
    for x, t in calibration.batches():
        reference = denoiser.network(x, t).sample
        errors = [
            float((n(x, t) - reference).norm() / reference.norm()) for n in (simulated, network)
        ]
        assert errors[1] == pytest.approx(errors[0], rel=0.1)


def test_the_last_convolution_may_be_quantized_too(denoiser, calibration):
    """A recipe without exceptions: the graph's output is in its own units, not in codes."""
    quantized = quantize(denoiser.network, calibration, QuantRecipe(skip=()))
    assert "conv_out" in quantized.names
    model = export_model(denoiser, target="cpu", quantized=quantized, timesteps=quantized.timesteps)
    assert [value.name for value in model.graph.output] == ["output"]
    network = OnnxNetwork(model.SerializeToString(), None, CPU, 1, timesteps=quantized.timesteps)
    simulated = quantized.simulating("cpu")
    x, t = next(iter(calibration.batches()))
    reference = denoiser.network(x, t).sample
    errors = [float((n(x, t) - reference).norm() / reference.norm()) for n in (simulated, network)]
    assert errors[1] == pytest.approx(errors[0], rel=0.1)


@pytest.mark.long
def test_attention_becomes_one_operator_on_cpus_only():
    denoiser = tiny_denoiser(attention=True)
    quantized = quantize(denoiser.network, recording(denoiser, steps=2)[0], QuantRecipe())
    layers = sum(name.endswith("to_q") for name, _ in denoiser.network.named_modules())
    assert layers > 0
    models = {
        "cpu": export_model(denoiser, target="cpu", quantized=quantized),
        "tensorrt": export_model(denoiser, target="tensorrt", quantized=quantized),
        "float": export_model(denoiser),
    }
    counts = {
        target: Counter(n.op_type for n in model.graph.node) for target, model in models.items()
    }
    assert (counts["cpu"]["MultiHeadAttention"], counts["cpu"]["Softmax"]) == (layers, 0)
    assert all(
        (counts[t]["MultiHeadAttention"], counts[t]["Softmax"]) == (0, layers)
        for t in ("tensorrt", "float")
    )
    assert {e.domain for e in models["tensorrt"].opset_import} == {""}
    plain = ir.from_proto(onnx.shape_inference.infer_shapes(models["float"], data_prop=True))
    assert fuse_attention(plain) == layers
    x, t = (
        np.random.default_rng(0).standard_normal((2, 28, 12, 16), np.float32),
        np.float32([3, 50]),
    )
    outputs = [
        _run(m.SerializeToString(), {"x": x, "t": t}) for m in (ir.to_proto(plain), models["float"])
    ]
    np.testing.assert_allclose(*outputs, atol=2e-5)


@pytest.mark.parametrize(
    "change", ["mask", *(pytest.param(c, marks=pytest.mark.long) for c in ("scale", "axis"))]
)
def test_other_attentions_are_left_alone(change):
    """A mask, a scaled value or a softmax over another axis is no plain attention."""

    class Attention(torch.nn.Module):
        def forward(self, x, t):
            q = x.flatten(2).transpose(1, 2)
            q = q.view(q.shape[0], -1, 2, 4).transpose(1, 2)
            scores = q @ q.transpose(-1, -2)
            scores = scores + t.view(-1, 1, 1, 1) if change == "mask" else scores
            out = scores.softmax(-2 if change == "axis" else -1) @ (
                2 * q if change == "scale" else q
            )
            return out.transpose(1, 2).reshape(out.shape[0], -1, 8).transpose(1, 2).reshape(
                x.shape
            ) + 0 * t.view(-1, 1, 1, 1)

    assert fuse_attention(export_graph(Attention(), 8)) == 0


def test_shifted_codes_compute_the_same():
    """Codes and zero points one less, on a convolution large enough: the same numbers to the bit,
    by the other kernel.
    """
    rng = np.random.default_rng(0)
    weight, bias = (
        rng.standard_normal((64, 64, 3, 3)).astype(np.float32),
        rng.standard_normal(64).astype(np.float32),
    )
    scale = np.abs(weight).max((1, 2, 3)) / 127
    codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    conv = onnx.helper.make_node(
        "Conv", ["x", "c.weight", "c.bias"], ["mid"], name="c", pads=[1, 1, 1, 1]
    )
    info = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("x", "output")
    ]
    tensors = [
        onnx.numpy_helper.from_array(weight, "c.weight"),
        onnx.numpy_helper.from_array(bias, "c.bias"),
    ]
    graph = onnx.helper.make_graph(
        [conv, onnx.helper.make_node("Identity", ["mid"], ["output"])],
        "one",
        info[:1],
        info[1:],
        tensors,
    )
    model = ir.from_proto(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
        )
    )
    outputs = np.full(64, 0.5, np.float32), np.full(64, 128, np.uint8)
    layer = QuantLayer(0.02, 128, 0.02, *outputs, scale, codes, bias)
    plain = ir.to_proto(insert_qdq(model, {"c": layer}, "cpu")).SerializeToString()
    shifted = shift_codes(plain)
    held = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load_from_string(shifted).graph.initializer
    }
    np.testing.assert_array_equal(held["c.weight_codes"], codes - 1)
    assert (held["c.weight_codes_zero"] == -1).all()
    x = rng.standard_normal((1, 64, 16, 16)).astype(np.float32)
    outputs = []
    for data in (plain, shifted):
        feed = {"x": x}
        outputs.append(_run(data, feed))
        assert {p.op: p.count for p in count_kernels(data, CPU, feed)}["QLinearConv"] == 1
    np.testing.assert_array_equal(*outputs)
    assert shift_codes(shifted) == shifted


def test_layers_of_another_network_are_refused(denoiser, quantized):
    model = ir.from_proto(export_model(denoiser))
    assert set(quantized.names) <= set(weighted_nodes(model))
    layers = quantized.layers()
    layers["elsewhere"] = next(iter(layers.values()))
    with pytest.raises(ValueError, match="no Conv/Gemm/MatMul node for elsewhere"):
        insert_qdq(model, layers, "cpu")
    with pytest.raises(ValueError, match="known: cpu, openvino, tensorrt"):
        insert_qdq(model, {}, "gpu")
    with pytest.raises(ValueError, match="quantized"):
        export_model(denoiser, target="cpu")
    with pytest.raises(ValueError, match="another model"):
        export_model(tiny_denoiser(seed=1), target="cpu", quantized=quantized)


@pytest.mark.parametrize(
    "process",
    [
        VP.linear(10),
        StepIndexed.linear(10),
        Resfusion.scheduled("linear", 12),
        RDDM.scheduled(10),
        VE(0.01, 50),
    ],
)
def test_any_process_survives_a_bundle_bit_for_bit(bundles, tmp_path, process):
    bundle = read_bundle(
        _edited(bundles, tmp_path, lambda c, f: c.update(process=describe(process)))
    )
    assert bundle.make_process() == process
    assert type(bundle.make_process()) is type(process)


@pytest.mark.parametrize(
    ("kind", "process"),
    [
        ("VP", VP.linear(10)),
        ("StepIndexed", StepIndexed.linear(10)),
        ("Process", Process([0.9, 0.1], [0.1, 0.9], [0.0, 0.5])),
    ],
)
def test_bundles_of_the_first_format_are_read(bundles, tmp_path, kind, process):
    tables = (
        [process.alphas_cumprod]
        if kind != "Process"
        else [process.a_table, process.b_table, process.c_table]
    )
    old = {"format": 1, "process": {"kind": kind, "tables": [t.tolist() for t in tables]}}
    folder = _edited(bundles, tmp_path, lambda c, f: c.update(old))
    assert read_bundle(folder).make_process() == process
    set_parity(folder, {"passed": True})
    assert json.loads((folder / MANIFEST).read_text())["format"] == FORMAT
    assert read_bundle(folder).make_process() == process


def _edited(bundles, tmp_path, change):
    folder = tmp_path / "bundle"
    shutil.copytree(bundles / "float", folder)
    content = json.loads((folder / MANIFEST).read_text())
    change(content, folder)
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, f: c.update(format=99), "format 99"),
        (lambda c, f: c.update(extra=1), "extra"),
        (lambda c, f: c.update(graph="step"), "step graph"),
        (lambda c, f: c["settings"].update(fold=10**9), "fold"),
        (lambda c, f: c["process"].update(alphas_cumprod=[0.5, 0.9]), "decrease"),
        (lambda c, f: c.update(process={"kind": "unknown"}), "a kind, one of"),
        (lambda c, f: c["files"].update({"../escape": c["files"][NETWORK]}), "leaves the folder"),
        (
            lambda c, f: c["files"].update({"/etc/hostname": c["files"][NETWORK]}),
            "leaves the folder",
        ),
        (lambda c, f: c["files"].update({"missing.bin": c["files"][NETWORK]}), "missing"),
        (lambda c, f: c["files"][NETWORK].update(size=2**40), "size"),
        (lambda c, f: (f / NETWORK).write_bytes(b"x" + (f / NETWORK).read_bytes()[1:]), "SHA-256"),
        (lambda c, f: (f / NETWORK).write_bytes((f / NETWORK).read_bytes()[:-9]), "cut short"),
    ],
)
def test_changed_bundles_are_refused(bundles, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Session(_edited(bundles, tmp_path, change))


def test_unreadable_manifests_are_refused(bundles, tmp_path):
    folder = _edited(bundles, tmp_path, lambda c, f: None)
    for text in ("", "{", "[1]", "null", '{"format": 1}', "[" * 100_000):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=MANIFEST):
            read_bundle(folder)
    with pytest.raises(FileNotFoundError, match="restobox export"):
        Session(tmp_path / "none")


def _set_network(content, folder, data):
    (folder / NETWORK).write_bytes(data)
    content["files"][NETWORK] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_external_data_and_links_are_refused(bundles, tmp_path):
    model = onnx.load(bundles / "float" / NETWORK)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    outside = model.SerializeToString()
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="another file"):
        Session(_edited(bundles, tmp_path / "a", lambda c, f: _set_network(c, f, outside)))
    (tmp_path / "b").mkdir()
    folder = _edited(bundles, tmp_path / "b", lambda c, f: None)
    (folder / NETWORK).rename(tmp_path / "moved.onnx")
    (folder / NETWORK).symlink_to(tmp_path / "moved.onnx")
    with pytest.raises(ValueError, match="no plain file"):
        Session(folder)
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="as an ONNX model"):
        Session(_edited(bundles, tmp_path / "c", lambda c, f: _set_network(c, f, b"\xff" * 40)))


def test_a_bundle_replaces_only_a_bundle(bundles, tmp_path, denoiser):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="no bundle"):
        export_bundle(denoiser, tmp_path / "mine")
    assert not list(tmp_path.glob("*.part"))


def test_sessions_refuse_what_they_cannot_give(bundles):
    for options, message in (
        ({"device": "npu"}, "known: cpu, cuda"),
        ({"require": "x"}, "known: cpu"),
        ({"threads": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Session(bundles / "float", **options)
    with pytest.raises(RuntimeError, match="TensorrtExecutionProvider could not be set up"):
        Session(bundles / "float", require="tensorrt")
    with pytest.raises(ValueError, match="target tensorrt"):
        Session(bundles / "cpu", device="cuda")


def test_placement_counts_operators(bundles, quantized):
    session = Session(bundles / "cpu", threads=1)
    rows = session.placement()
    assert {row.provider for row in rows} == {"CPUExecutionProvider"}
    assert (
        {row.op: row.count for row in rows}["QLinearConv"]
        == len(quantized.names)
        == session.integer_convs()
    )
    assert {row.dtype for row in rows if row.op == "QLinearConv"} == {"uint8"}


def test_falling_back_to_the_cpu_is_said():
    rows = [
        Placement("Conv", "CUDAExecutionProvider", 5, "float16"),
        Placement("Conv", "CPUExecutionProvider", 2, "float"),
    ]
    rows.append(Placement("Shape", "CPUExecutionProvider", 9, "int64"))
    assert fallen_back(rows, "CUDAExecutionProvider") == "2 Conv"
    assert fallen_back(rows[:1] + rows[2:], "CUDAExecutionProvider") == ""
    assert fallen_back(rows, "CPUExecutionProvider") == ""


def test_graphs_without_their_tensors_are_refused_on_any_processor(bundles, monkeypatch):
    """Where codes are shifted for AMX, before ONNX Runtime sees the graph, too."""
    model = onnx.load(bundles / "cpu" / NETWORK)
    for tensor in model.graph.initializer:
        tensor.name += "-lost"
    for amx in (False, True):
        monkeypatch.setattr(providers, "has_amx", lambda amx=amx: amx)
        with pytest.raises(ModelError, match="can't be read as a graph to run"):
            providers.open_session(
                model.SerializeToString(), ["CPUExecutionProvider"], integer=True
            )


class Sums(torch.nn.Module):
    """A convolution that reads the sum of two others, as transformers' have them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.noise_level = torch.nn.Identity()
        self.one, self.two = (torch.nn.Conv2d(3, 8, 3, padding=1) for _ in range(2))
        self.both = torch.nn.Conv2d(8, 3, 3, padding=1)
        self.config = type("Config", (), {"in_channels": 3, "out_channels": 3})()

    def forward(self, x, t):
        return self.both(self.one(x) + self.two(x))


@pytest.mark.long
def test_a_sum_of_convolutions_that_one_reads_at_once_is_decoded_before(tmp_path):
    """Else ONNX Runtime adds codes, whose grids differ by channel, and refuses the graph."""
    d = Denoiser(Sums().eval().requires_grad_(False), VP.linear(), "sample")
    with record(d) as recorder:
        solve(DDIM(), d, torch.randn(2, 3, 16, 16), trailing(d.process, 2))
    found = recorder.result()
    made = quantize(d.network, found, QuantRecipe())
    export_bundle(d, tmp_path / "b", target="cpu", quantized=made)
    parity = verify(d, tmp_path / "b", made, found)
    assert not parity.failures
    assert parity.fused == parity.planned == 3
