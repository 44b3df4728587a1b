"""A disk that gets full: one sentence, no crash of a native library, the old file as it was."""

from functools import partial

import numpy as np
import onnx
import pytest
import torch
from helpers.disk import small_disk
from onnx import TensorProto, helper

from export.edge import restobox_edge as edge
from quant.calibration.trajectory import CalibrationSet, Provenance
from restoration.io.cubes import Cube, write_cube
from restoration.io.images import Photo, write_image
from restoration.io.mri_output import write_reconstruction
from restoration.io.ultrasound import write_clip
from solvers.files import replace_file, reserve
from solvers.inputs.errors import ResourceError

MOST = 60_000
RNG = np.random.default_rng(0)
VALUES = RNG.random((8, 64, 64)).astype(np.float32)  # 130 kB, and noise doesn't pack


def cube(path):
    write_cube(path, Cube(VALUES), lambda rows: VALUES[:, rows])


def clip(path):
    write_clip(path, (RNG.random((256, 256)).astype(np.float32) for _ in range(4)), 4)


def scan(path):
    write_reconstruction(path, VALUES.astype(np.complex64), None, VALUES)


def picture(path):
    write_image(path, Photo(RNG.random((3, 240, 240)).astype(np.float32), bits=16))


def calibration(path):
    provenance = Provenance("x", 0, "", 0, "", ())
    CalibrationSet(torch.rand(4, 3, 80, 80), [1.0, 2.0, 3.0, 4.0], provenance).save(path)


def checkpoint(path):
    replace_file(path, partial(torch.save, {"a": torch.rand(200, 200)}))


@pytest.mark.parametrize(
    ("write", "name"),
    [
        *((cube, f"cube{suffix}") for suffix in (".hdr", ".mat", ".npz", ".h5", ".tif")),
        (clip, "clip.h5"),
        *((scan, f"scan{suffix}") for suffix in (".h5", ".nii", ".nii.gz")),
        *((picture, f"picture{suffix}") for suffix in (".png", ".tif")),
        (calibration, "set.safetensors"),
        (checkpoint, "state.pt"),
    ],
)
def test_a_full_disk_is_one_sentence(tmp_path, write, name):
    (tmp_path / name).write_text("old")
    with small_disk(MOST), pytest.raises(ResourceError, match="no room for the output"):
        write(tmp_path / name)
    assert (tmp_path / name).read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [name]
    write(tmp_path / name)  # there is room again
    assert (tmp_path / name).stat().st_size > 100


def small_picture(path):
    write_image(path, Photo(VALUES[:3]))


def edge_picture(path):
    edge.write_picture(path, VALUES[:3])


@pytest.mark.parametrize("write", [small_picture, edge_picture])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_the_last_bytes_of_a_picture_count(tmp_path, write, suffix):
    """Encoders in C write small pictures at once, and take a part of it for all."""
    path = tmp_path / f"a{suffix}"
    write(path)
    size = path.stat().st_size
    path.write_text("old")
    refused = pytest.raises((ResourceError, edge.Refused), match=r"no room|can't be written")
    for most in (size - 1, size // 2):
        with small_disk(most), refused:
            write(path)
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_what_is_reserved_is_there_or_refused(tmp_path):
    reserve(tmp_path / "a", 1000)
    assert (tmp_path / "a").stat().st_size == 1000
    with small_disk(MOST), pytest.raises(OSError, match="large"):
        reserve(tmp_path / "b", MOST + 1)


def test_hdf5_gives_back_what_it_did_not_need(tmp_path):
    write_cube(tmp_path / "a.h5", Cube(VALUES), lambda rows: VALUES[:, rows])
    assert (tmp_path / "a.h5").stat().st_size < VALUES.nbytes + 10_000


def test_a_profile_without_room_is_one_sentence(tmp_path):
    """Of ONNX Runtime, which cuts its file without a word."""
    from export.runtime.providers import count_kernels

    graph = tmp_path / "network.onnx"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    nodes = [helper.make_node("Abs", ["x"], ["y"], "abs")]
    opset = [helper.make_opsetid("", 18)]
    made = helper.make_graph(nodes, "g", [x], [y])
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=9), graph)
    feed = {"x": np.zeros(3, np.float32)}
    with small_disk(500), pytest.raises(ResourceError, match=r"no room for ONNX Runtime's profile"):
        count_kernels(graph, ["CPUExecutionProvider"], feed)
    assert [row.op for row in count_kernels(graph, ["CPUExecutionProvider"], feed)] == ["Abs"]
    runner = edge.Graph(tmp_path, {"target": "float", "graph": "timestep"}, "cpu", 1, {})
    with small_disk(500):
        assert runner(feed).tolist() == [0, 0, 0]
    assert "no room for the profile" in runner.placement
