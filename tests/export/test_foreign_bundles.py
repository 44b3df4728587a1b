"""Bundles from somewhere else: what the manifest says and what the graph holds must agree, and no
corner of the graph may point to another file.
"""

import hashlib
import json
import shutil

import onnx
import pytest
from helpers.data import ROOT
from onnx import TensorProto, helper

from export.bundle import MANIFEST, read_bundle
from solvers.inputs.errors import ModelError

FORMER = ROOT / "tests" / "former"


def edited(name, place, manifest=lambda content: None, graph=lambda model: None):
    """A copy of a bundle with another manifest or graph, whose hash fits."""
    folder = shutil.copytree(FORMER / name, place / "bundle")
    path = next(folder.glob("*.onnx"))
    model = onnx.load(path, load_external_data=False)
    graph(model)
    data = model.SerializeToString()
    path.write_bytes(data)
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][path.name] = {
        "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)
    }  # fmt: skip
    manifest(content)
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["bundle", "restorer"])
def test_a_copy_is_read(name, tmp_path):
    assert read_bundle(edited(name, tmp_path)).channels > 0


def outside() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    return tensor


def constant(**attribute) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], **attribute)


def in_a_function(model):
    model.opset_import.add(domain="mine", version=1)
    model.functions.append(
        helper.make_function(
            "mine", "f", [], ["w"], [constant(value=outside())], model.opset_import
        )
    )


def in_a_graph_of_a_function(model):
    inner = helper.make_graph([constant(value=outside())], "g", [], [])
    branch = helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner)
    model.functions.append(
        helper.make_function("mine", "f", ["c"], ["w"], [branch], model.opset_import)
    )


def in_a_node(model):
    model.graph.node.append(constant(value=outside()))


def in_a_sparse_tensor(model):
    sparse = onnx.SparseTensorProto(values=outside(), dims=[4])
    model.graph.node.append(constant(sparse_value=sparse))


def in_sparse_indices(model):
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(indices=outside(), dims=[4]))


@pytest.mark.parametrize(
    "where",
    [in_a_function, in_a_graph_of_a_function, in_a_node, in_a_sparse_tensor, in_sparse_indices],
)
def test_no_corner_of_a_graph_points_elsewhere(where, tmp_path):
    with pytest.raises(ModelError, match="in another file"):
        read_bundle(edited("bundle", tmp_path, graph=where))


@pytest.mark.parametrize(
    ("name", "change"),
    [("bundle", {"channels": 3}), ("bundle", {"graph": "timestep", "timesteps": []})],
)
def test_the_manifest_says_what_the_graph_takes(name, change, tmp_path):
    with pytest.raises(ModelError, match=r"takes the inputs|contradict"):
        read_bundle(edited(name, tmp_path, lambda content: content.update(change)))


@pytest.mark.parametrize("settings", [{"condition_channels": 3}, {"fold": 1}, {"fold": 3}])
def test_the_settings_fit_the_graphs_outputs(settings, tmp_path):
    with pytest.raises(ModelError, match="condition channels at fold"):
        read_bundle(
            edited("bundle", tmp_path, lambda content: content["settings"].update(settings))
        )


def test_the_runs_inputs_are_the_graphs(tmp_path):
    def other(content):
        content["run"]["draws"] = 0 if content["run"]["draws"] else 1

    with pytest.raises(ModelError, match="takes the inputs"):
        read_bundle(edited("restorer", tmp_path, other))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"multiple": 4096}, "multiple"),
        ({"multiple": 10**9}, "multiple"),
        ({"fold": 10**9}, "fold"),
    ],
)
def test_sizes_that_would_take_the_machine(change, says, tmp_path):
    with pytest.raises(ModelError, match=says):
        read_bundle(edited("bundle", tmp_path, lambda content: content["settings"].update(change)))


def test_a_key_given_twice(tmp_path):
    folder = edited("bundle", tmp_path)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"channels"', '"channels": 1, "channels"', 1))
    with pytest.raises(ModelError, match="'channels' is given twice"):
        read_bundle(folder)
