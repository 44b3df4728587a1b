"""Convolutions as products of matrices: codes in, floats out, on ONNX Runtime's CPU kernels."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from helpers.quantized import one_thread, recording, tiny_denoiser  # noqa: F401

from export.exporter import export_bundle
from export.graphs.qdq import insert_qdq
from export.runtime.session import Session
from quant.layer import QuantLayer
from quant.quantize import quantize
from quant.recipe import QuantRecipe


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3), {"padding": 1}),
        ((3, 3), {"padding": 1, "stride": 2}),
        ((3, 2), {"padding": (2, 0), "dilation": (2, 1), "stride": (1, 3)}),
        ((1, 1), {}),
        ((1, 1), {"stride": 2}),
        ((5, 5), {"padding": 2, "groups": 2}),  # stays a convolution
    ],
)
def test_products_are_the_convolution_of_the_codes(kernel, options):
    """On inputs that are codes, a zero point that isn't in the middle among them."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 6, kernel, **options)
    codes = torch.randint(-127, 128, conv.weight.shape).numpy().astype(np.int8)
    scale = np.linspace(0.01, 0.02, 6).astype(np.float32)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(codes * scale.reshape(-1, 1, 1, 1)))
    x = (torch.randint(0, 256, (2, 4, 9, 12)) - 30) * 0.05
    values = {"c.weight": conv.weight, "c.bias": conv.bias}
    names = {"strides": conv.stride, "dilations": conv.dilation, "group": conv.groups}
    node = onnx.helper.make_node(
        "Conv", ["x", *values], ["y"], name="c", pads=[*conv.padding] * 2, **names
    )
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
    tensors = [onnx.numpy_helper.from_array(v.detach().numpy(), n) for n, v in values.items()]
    graph = onnx.helper.make_graph([node], "one", ends[:1], ends[1:], tensors)
    opset = onnx.helper.make_opsetid("", 18)
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10))
    grid = np.full(6, 2, np.float32), np.full(6, 128, np.uint8)
    layer = QuantLayer(0.05, 30, 0.05, *grid, scale, codes, conv.bias.detach().numpy())
    proto = ir.to_proto(insert_qdq(model, {"c": layer}, "cpu", outputs=False))
    assert ("Conv" in {n.op_type for n in proto.graph.node}) == (conv.groups == 2)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": x.numpy()})
    expected = conv(x).detach().numpy()
    atol = 1.1 if conv.groups == 2 else 1e-4  # half a step of the output's grid
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("equalize", [pytest.param(None, marks=pytest.mark.long), "channels"])
def test_outputs_in_float_are_what_is_simulated(one_thread, tmp_path, equalize):  # noqa: F811
    """A network errs as on OpenVINO then, and every planned convolution runs on integers."""
    denoiser = tiny_denoiser(attention=True)
    calibration, _ = recording(denoiser)
    recipe = QuantRecipe(outputs="float", equalize=equalize)
    quantized = quantize(denoiser.network, calibration, recipe)
    export_bundle(denoiser, tmp_path / "b", target="cpu", quantized=quantized)
    session = Session(tmp_path / "b", threads=1)
    assert session.integer_convs() == session.bundle.planned > 0
    x, t = next(calibration.batches(2))
    exact = denoiser.network(x, t).sample
    simulated = quantized.simulating("cpu")(x, t)
    torch.testing.assert_close(simulated, quantized.simulating("openvino")(x, t))
    away = (session.network(x, t) - simulated).norm() / (simulated - exact).norm()
    assert away < 0.6  # of errors elsewhere 1.4: inputs near the middle of two codes go either way


def test_outputs_are_of_two_kinds():
    with pytest.raises(ValueError, match="known: int8, float"):
        QuantRecipe(outputs="uint8")
