"""The lint for TensorRT: a graph by the rules passes, and each rule's breach is told."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs.tensorrt import check_tensorrt, faults

HALF = np.float16


def graph(**changes):
    """A convolution on codes in half precision, then a float product; ``changes`` replace its
    tensors, or by ``attribute_NODE`` one's attributes, or by ``cut`` leave a node out.
    """
    tensors = {
        "scale": np.asarray(0.02, HALF),
        "zero": np.asarray(0, np.int8),
        "codes": np.ones((4, 3, 3, 3), np.int8),
        "scales": np.full(4, 0.01, HALF),
        "bias": np.zeros(4, HALF),
        "factor": np.ones((1, 4, 1, 1), np.float32),
    } | {name: value for name, value in changes.items() if isinstance(value, np.ndarray)}
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], "narrow", to=TensorProto.FLOAT16),
        helper.make_node("QuantizeLinear", ["half", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "dq"),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], "w", axis=0),
        helper.make_node("Conv", ["dq", "w", "bias"], ["y"], "conv", pads=[1] * 4),
        helper.make_node("Cast", ["y"], ["single"], "widen", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["single", "factor"], ["out"], "mul"),
    ]
    for node in nodes:
        for name, value in changes.get(f"attribute_{node.name}", {}).items():
            kept = [a for a in node.attribute if a.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(name, value)])
        node.op_type = changes.get(f"type_{node.name}", node.op_type)
        for k, name in changes.get(f"input_{node.name}", {}).items():
            node.input[k] = name
    sizes = ["b", 3, 8, 8], ["b", 4, 8, 8]
    made = helper.make_graph(
        [*changes.get("before", ()), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes[0])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, sizes[1])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opset = helper.make_opsetid("", changes.get("opset", 19))
    return helper.make_model(made, opset_imports=[opset, *changes.get("domains", ())])


def test_a_graph_by_the_rules_passes():
    onnx.checker.check_model(graph(), full_check=True)
    assert faults(graph()) == []
    check_tensorrt(graph())


# a scale that is made by an operator
DOUBLED = helper.make_node("Add", ["scale", "scale"], ["twice"])
ROUNDED_BIAS = [
    helper.make_node("QuantizeLinear", ["bias", "scale", "zero"], ["qb"]),
    helper.make_node("DequantizeLinear", ["qb", "scale", "zero"], ["rounded"]),
]
SMOOTHED = helper.make_node(
    "Resize", ["x", "", "halves"], ["small"], "resize", mode="linear", antialias=1
)
HALVES = np.asarray([1, 1, 0.5, 0.5], np.float32)
COUNTED = [
    helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
    helper.make_node("Range", ["nought", "most", "one"], ["counted"], "range"),
]
ENDS = {"nought": np.asarray(0, np.float32), "one": np.asarray(1, np.float32)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"before": [SMOOTHED], "halves": HALVES},
            "Resize resize: resizes by linear with antialiasing 1",
        ),
        ({"before": COUNTED, **ENDS}, "Range range: a range of floating numbers must be"),
        ({"zero": np.asarray(3, np.int8)}, "the zero point is not 0"),
        ({"zero": np.asarray(0, np.uint8)}, "the codes are UINT8"),
        ({"scale": np.asarray(-0.02, HALF)}, "not positive"),
        ({"before": [DOUBLED], "input_q": {1: "twice"}}, "the scale is no constant"),
        ({"scale": np.full(3, 0.02, HALF), "zero": np.zeros(3, np.int8)}, "several scales"),
        ({"scales": np.full(3, 0.01, HALF), "attribute_w": {"axis": 1}}, "are on axis 0"),
        ({"input_q": {0: "x"}}, "the scale is FLOAT16, the numbers FLOAT"),
        ({"before": ROUNDED_BIAS, "input_conv": {2: "rounded"}}, "the bias is quantized"),
        ({"input_conv": {0: "half"}}, "its input is not"),
        ({"factor": np.ones((1, 4, 1, 1), HALF)}, "FLOAT and FLOAT16 without a Cast"),
        ({"type_mul": "BitShift"}, "doesn't know"),
        ({"opset": 24}, "opset 24"),
        ({"domains": [helper.make_opsetid("com.microsoft", 1)]}, "com.microsoft"),
    ],
)
def test_each_breach_is_told(changes, says, monkeypatch):
    # what the lint is for isn't always valid ONNX, which inference would refuse first
    whole = onnx.shape_inference.infer_shapes
    lenient = lambda model, **_: whole(model, strict_mode=False)  # noqa: E731
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lenient)
    found = faults(graph(**changes))
    assert any(says in fault for fault in found), found
    with pytest.raises(ValueError, match="TensorRT would refuse"):
        check_tensorrt(graph(**changes))


def test_scale_and_output_of_one_type():
    """Half scales with single outputs, which opset 23 can write and Orin refuses."""
    made = graph(opset=23, attribute_dq={"output_dtype": TensorProto.FLOAT})
    assert "DequantizeLinear dq: the scale is FLOAT16, the numbers FLOAT" in faults(made)
