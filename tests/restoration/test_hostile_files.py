"""Small files that would take the machine, files that hide something, and files that crash a native
reader: each kind is refused, in a moment.
"""

import contextlib
import io
import time
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from scipy.io import loadmat, savemat

from restoration.io.containers.arrays import arrays_of, read_array
from restoration.io.containers.hdf5 import attributes, dataset, opened
from restoration.io.containers.matlab import Matlab, read_variables
from restoration.io.cubes import read_cube
from restoration.io.cubes.envi import read_header
from restoration.io.images import read_image
from restoration.io.mri import read_scan
from restoration.io.scenes import open_scene
from restoration.io.ultrasound import read_clip
from solvers.inputs.errors import InputError, ResourceError, RestoboxError

CUBE = np.arange(60, dtype=np.float32).reshape(5, 4, 3)


# -- NumPy -----------------------------------------------------------------------------------------


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(shape, descr="<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": descr}
    )
    return file.getvalue()


def test_no_array_hides_behind_a_name(tmp_path):
    """NumPy reads the member ``cube`` where it is asked for, not ``cube.npy``."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cube", header((1500, 1500, 1500)))
        archive.writestr("cube.npy", npy(CUBE))
    np.testing.assert_array_equal(read_cube(path).values, np.moveaxis(CUBE, -1, 0))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cube.npy", npy(CUBE[:1]))
    with pytest.raises(InputError, match="two arrays of one name"):
        read_cube(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (header((10**6, 10**6, 3)), "of memory"),
        (header((2**62, 2**62, 2**62)), "of memory"),
        (header((5, 4, 3)) + bytes(100), "by its header"),
        (npy(CUBE) + b"x", "by its header"),
        (header((5, 0, 3)), "empty"),
        (header((5, 4, 3), "|O"), "Python objects"),
        (header((5, 4, 3), "|V0"), "can't be read|by its header"),
        (b"\x93NUMPY\x09\x00", "can't be read"),
        (b"", "can't be read"),
    ],
)
def test_npy_headers_that_lie(tmp_path, content, says):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(RestoboxError, match=says):
        read_array(tmp_path / "a.npy", "cube")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cube.npy", content)
    for read in (lambda p: read_array(p, "cube"), read_cube):
        with pytest.raises(RestoboxError):
            read(tmp_path / "a.npz")


@given(
    hn.arrays(st.sampled_from(["f4", ">f8", "i2", "c8", "?", "U3"]), hn.array_shapes(max_dims=4))
)
def test_arrays_come_as_numpy_wrote_them(tmp_path_factory, array):
    place = tmp_path_factory.getbasetemp()
    for values in (array, np.asfortranarray(array)):
        np.save(place / "one.npy", values)
        np.savez_compressed(place / "one.npz", a=values)
        np.testing.assert_array_equal(read_array(place / "one.npy", "a"), values)
        with arrays_of(place / "one.npz") as arrays:
            np.testing.assert_array_equal(arrays.read("a"), values)


# -- MATLAB ----------------------------------------------------------------------------------------


@given(
    hn.arrays(
        st.sampled_from(["f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "c16", "?"]),
        hn.array_shapes(min_dims=2, max_dims=4),
        elements={"allow_nan": False},
    ),
    st.booleans(),
)
def test_matlab_as_scipy_writes_and_reads_it(tmp_path_factory, array, compressed):
    path = tmp_path_factory.getbasetemp() / "one.mat"
    parameters = {"fs": 5e6, "name": "probe", "TXangle": np.array([0.1, -0.1])}
    savemat(path, {"a": array, "param": parameters, "text": "x", "c": [["a", 1]]},
            do_compression=compressed)  # fmt: skip
    content = Matlab(path)
    np.testing.assert_array_equal(content.read("a"), loadmat(path)["a"])
    assert content.read("a").dtype == loadmat(path)["a"].dtype
    fields = content.read("param")
    assert fields["fs"].item() == 5e6
    np.testing.assert_array_equal(fields["TXangle"].ravel(), [0.1, -0.1])
    assert fields["name"] is None
    assert content.shapes["a"] == array.shape
    with pytest.raises(InputError, match="no array of numbers"):
        content.read("text")


def test_matlab_sizes_that_lie(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"cube": CUBE})
    whole = path.read_bytes()
    shape = whole.index(np.array([5, 4, 3], "<i4").tobytes())
    for sizes, says in (((5, 4, 4), "bytes of"), ((2**30, 2**30, 2**30), "of memory"),
                        ((5, 4, -3), "has the shape")):  # fmt: skip
        path.write_bytes(whole[:shape] + np.array(sizes, "<i4").tobytes() + whole[shape + 12 :])
        with pytest.raises(RestoboxError, match=says):
            read_cube(path)
    # 4 GB of zeros, packed: the announced size alone is read
    packed = zlib.compress(np.array([14, 2**32 - 8], "<u4").tobytes() + whole[136:])
    path.write_bytes(whole[:128] + np.array([15, len(packed)], "<u4").tobytes() + packed)
    with pytest.raises(RestoboxError):
        read_variables(path, ["cube"])


# -- HDF5 ------------------------------------------------------------------------------------------


def hdf5(path, name, kind, dtype):
    values = np.ones((8, 40, 40), dtype)
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["x"] = values
    path.with_name("secret.bin").write_bytes(values.tobytes())
    with h5py.File(path, "w") as file:
        match kind:
            case "plain":
                file[name] = values
            case "external storage":
                secret = (str(path.with_name("secret.bin")), 0, values.nbytes)
                file.create_dataset(name, values.shape, dtype, external=[secret])
            case "virtual":
                layout = h5py.VirtualLayout(values.shape, dtype)
                layout[:] = h5py.VirtualSource(path.with_name("other.h5"), "x", values.shape)
                file.create_virtual_dataset(name, layout)
            case "external link":
                file[name] = h5py.ExternalLink("other.h5", "x")
            case "soft link":
                file["inner"] = values
                file[name] = h5py.SoftLink("/inner")
            case "huge":
                file.create_dataset(name, (100_000, 100_000, 300), dtype, chunks=(8, 100, 100))
            case "never written":
                file.create_dataset(name, (64, 400, 400), dtype, chunks=(1, 100, 100))


SAYS = {
    "external storage": "in another file",
    "virtual": "in another file",
    "external link": "link",
    "soft link": "link",
    "huge": "of memory",
    "never written": "ever written",
}


@pytest.mark.parametrize(
    ("read", "name", "dtype", "special"),
    [
        # links are passed over where a cube is looked for; what a soft one names is in the file
        (read_cube, "cube", "f4", {"external link": "holds no cube", "soft link": ""}),
        (
            lambda p: read_cube(p, key="cube"),
            "cube",
            "f4",
            dict.fromkeys(("external link", "soft link"), "no three-dimensional array 'cube'"),
        ),
        (read_scan, "kspace", "c8", {}),
        # frames are read one by one
        (lambda p: list(read_clip(p)), "data/image", "f4", {"huge": "ever written"}),
    ],
    ids=["cube", "named cube", "scan", "clip"],
)
def test_hdf5_keeps_to_its_own_file_and_to_the_memory(tmp_path, read, name, dtype, special):
    for kind, says in ({"plain": ""} | SAYS | special).items():
        place = tmp_path / kind
        place.mkdir()
        hdf5(place / "a.h5", name, kind, dtype)
        began = time.perf_counter()
        refused = pytest.raises(RestoboxError, match=says) if says else contextlib.nullcontext()
        with refused:
            read(place / "a.h5")
        assert time.perf_counter() - began < 5, kind


# -- text ------------------------------------------------------------------------------------------


def test_long_headers_take_no_longer_than_their_length(tmp_path):
    path = tmp_path / "a.hdr"
    head = "ENVI\nsamples = 2\nlines = 3\nbands = 4\ndata type = 4\ninterleave = bsq\n"
    for filler in (" " * 10**6, "\t \n" * 10**6, "= " * 10**6, "x" * 10**6, "\n" * 10**6):
        path.write_text(head + filler)
        began = time.perf_counter()
        assert read_header(path)["bands"] == "4"
        assert time.perf_counter() - began < 5
    for filler in ("a = {\n" * 10**5, "a = {{}\n" * 10**5, "a = {\n" + "\n}x" * 10**5):
        path.write_text(head + filler)
        began = time.perf_counter()
        with contextlib.suppress(InputError):
            read_header(path)
        assert time.perf_counter() - began < 5
    path.write_text(head + "bands = 5\n")
    with pytest.raises(InputError, match="'bands' twice"):
        read_header(path)
    path.write_text(head + "wavelength = {\n1,\n 2 , 3,4}\nnote = {a = b}\n")
    assert read_header(path)["wavelength"].split(",")[1].strip() == "2"
    assert read_header(path)["note"] == "a = b"


def test_long_scanner_headers(tmp_path):
    from restoration.io.ismrmrd import recon_space

    began = time.perf_counter()
    assert recon_space("<reconSpace>" * 100_000)[0] is None
    assert time.perf_counter() - began < 5


# -- TIFF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("big", [False, True])
def test_a_cut_tiff_is_no_cube_of_fewer_bands(tmp_path, big):
    bands = np.random.default_rng(0).normal(size=(8, 24, 20)).astype(np.float32)
    for size in (slice(None), slice(None, -9), slice(None, -300), slice(None, 9000)):
        tifffile.imwrite(
            tmp_path / "whole.tif", bands, photometric="minisblack", metadata=None, bigtiff=big
        )
        content = (tmp_path / "whole.tif").read_bytes()[size]
        (tmp_path / "a.tif").write_bytes(content)
        try:
            values = read_cube(tmp_path / "a.tif").values
        except InputError:
            assert size.stop is not None
        else:  # nothing of the values was cut
            assert size.stop in (None, -9)
            np.testing.assert_array_equal(values, bands)


@pytest.mark.parametrize("pages", [1, 3])
def test_pages_that_go_round_are_refused(tmp_path, pages):
    """The last page names the first as the next one: pictures, cubes and scenes end."""
    stack = np.random.default_rng(0).integers(0, 2**16, (pages, 20, 24), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page, first = file.pages[-1], file.pages.first.offset
        link = page.offset + 2 + 12 * len(page.tags)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    assert content[link : link + 4] == bytes(4)
    content[link : link + 4] = first.to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(content)
    for read in (read_image, read_cube, open_scene):
        with pytest.raises(InputError, match=f"after {pages} pages it names one of them"):
            read(tmp_path / "a.tif")


def test_pictures_within_the_budget(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb")
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setenv("RESTOBOX_MAX_BYTES", "1000")
    for name in ("a.tif", "a.png"):
        with pytest.raises(ResourceError, match="RESTOBOX_MAX_BYTES"):
            read_image(tmp_path / name)


def test_heaps_without_end_are_refused(tmp_path):
    """HDF5 itself would walk through free space of no size for ever."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["text"] = "words of some length"
        file["numbers"] = np.arange(3)
    content = path.read_bytes()
    heap = content.index(b"GCOL")
    free = heap + 16 + 16 + 24  # behind its head, and the text of 20 bytes with its own
    assert content[free : free + 8] == bytes(8)
    assert int.from_bytes(content[free + 8 : free + 16], "little") > 1000
    with opened(path) as file:
        assert dataset(file, "text", path)[()] == b"words of some length"
    path.write_bytes(content[: free + 8] + bytes(8) + content[free + 16 :])
    with opened(path) as file:
        assert dataset(file, "numbers", path)[()].tolist() == [0, 1, 2]
        with pytest.raises(InputError, match="free space of no size"):
            dataset(file, "text", path)


def test_attributes_of_heaps_without_end_are_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["numbers"] = np.arange(3)
        file["numbers"].attrs.update(unit="words of some length", scale=2.0)
    content = path.read_bytes()
    free = content.index(b"GCOL") + 16 + 16 + 24
    assert int.from_bytes(content[free + 8 : free + 16], "little") > 1000
    with opened(path) as file:
        assert dict(attributes(file["numbers"], path)) == {
            "unit": "words of some length",
            "scale": 2.0,
        }
    path.write_bytes(content[: free + 8] + bytes(8) + content[free + 16 :])
    with opened(path) as file, pytest.raises(InputError, match="free space of no size"):
        attributes(file["numbers"], path)
