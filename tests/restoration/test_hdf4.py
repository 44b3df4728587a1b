"""HDF 4: cut, linked and deadly files are refused before the library reads them here."""

import struct

import numpy as np
import pytest

from restoration.io.containers.hdf4 import MAGIC, check_hdf4
from restoration.io.cubes import read_cube
from solvers.inputs.errors import InputError


def block(*descriptors, following=0):
    packed = b"".join(struct.pack(">HHII", *d) for d in descriptors)
    return struct.pack(">HI", len(descriptors), following) + packed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "doesn't begin"),
        (MAGIC, "have no end"),
        (MAGIC + block(following=4), "have no end"),  # the next block is this one
        (MAGIC + block((702, 1, 16, 4))[:-1], "a block of descriptors was cut short"),
        (MAGIC + block((702, 1, 16, 100)), "names data up to byte 116 and has 22"),
        (MAGIC + block((702 | 0x4000, 1, 22, 4)) + b"\x00\x02..", "keeps data in another file"),
    ],
)
def test_descriptors(tmp_path, content, says):
    path = tmp_path / "a.hdf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        check_hdf4(path)


@pytest.fixture
def written(tmp_path):
    """A cube of 4 x 5 x 6, as MODIS' and Hyperion's writers make them."""
    sd = pytest.importorskip("pyhdf.SD")
    path = tmp_path / "cube.hdf"
    values = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    file = sd.SD(str(path), sd.SDC.WRITE | sd.SDC.CREATE)
    one = file.create("cube", sd.SDC.INT16, values.shape)
    one[:] = values
    one.endaccess()
    file.end()
    return path, values


def test_whole_files_are_read(written):
    path, values = written
    assert sorted(read_cube(path).values.ravel()) == sorted(values.ravel())


@pytest.mark.long
def test_cut_files_are_refused(written):
    path, _ = written
    content = path.read_bytes()
    for length in range(4, len(content) - 1, 61):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            read_cube(path)


def test_other_files_are_not_opened(written, tmp_path):
    sd = pytest.importorskip("pyhdf.SD")
    path = tmp_path / "linked.hdf"
    file = sd.SD(str(path), sd.SDC.WRITE | sd.SDC.CREATE)
    one = file.create("cube", sd.SDC.INT16, (4, 5, 6))
    one.setexternalfile(str(tmp_path / "secret"), 0)
    one[:] = np.ones((4, 5, 6), np.int16)
    one.endaccess()
    file.end()
    with pytest.raises(InputError, match="keeps data in another file, which is not opened"):
        read_cube(path)
