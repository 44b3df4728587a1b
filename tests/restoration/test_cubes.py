"""Cubes in files: what goes in comes out, in every format; what is wrong is said."""

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from restoration.io.cubes import Cube, read_cube, write_cube
from solvers.inputs.errors import ResourceError

SHAPE = (5, 4, 3)  # bands, lines, samples
WAVELENGTHS = np.array([400.0, 450.5, 500, 620, 900])


def values(dtype="int16"):
    return (
        np.arange(np.prod(SHAPE)).reshape(SHAPE) - (7 if np.dtype(dtype).kind != "u" else 0)
    ).astype(dtype)


def envi(folder, cube=None, interleave="bsq", raw="scene.raw", **fields):
    cube = values() if cube is None else cube
    order = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}[interleave]
    (folder / raw).write_bytes(cube.transpose(order).tobytes())
    fields = {
        "samples": 3,
        "lines": 4,
        "bands": len(cube),
        "data type": 2,
        "interleave": interleave,
        "byte order": 0,
    } | fields
    path = folder / "scene.hdr"
    path.write_text(
        "ENVI\n; a comment\n" + "".join(f"{k} = {v}\n" for k, v in fields.items() if v is not None)
    )
    return path


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize(
    ("code", "dtype"),
    [(1, "u1"), (2, "<i2"), (2, ">i2"), (4, "<f4"), (5, ">f8"), (12, ">u2"), (15, "<u8")],
)
def test_envi_is_read_in_any_order_and_type(tmp_path, interleave, code, dtype):
    path = envi(
        tmp_path,
        values(dtype),
        interleave,
        **{"data type": code, "byte order": int(dtype[0] == ">")},
    )
    cube = read_cube(path)
    np.testing.assert_array_equal(cube.values, values(dtype))
    assert isinstance(cube.values, np.memmap)
    write_cube(tmp_path / "out.hdr", cube, lambda rows: cube.values[:, rows], block=3)
    again = read_cube(tmp_path / "out.hdr")
    np.testing.assert_array_equal(again.values, values(dtype))
    assert again.header["interleave"] == interleave


def test_envi_agrees_with_spectral(tmp_path):
    spectral = pytest.importorskip("spectral.io.envi")
    cube = Cube(values("float32"), WAVELENGTHS, -7.0)
    write_cube(tmp_path / "a.hdr", cube, lambda rows: cube.values[:, rows])
    theirs = spectral.open(tmp_path / "a.hdr", tmp_path / "a.raw")
    np.testing.assert_array_equal(np.array(theirs.load()), cube.values.transpose(1, 2, 0))
    assert theirs.bands.centers == list(WAVELENGTHS)
    for interleave in ("bil", "bip"):
        spectral.save_image(
            str(tmp_path / f"{interleave}.hdr"),
            cube.values.transpose(1, 2, 0),
            interleave=interleave,
            metadata={"wavelength": WAVELENGTHS},
        )
        mine = read_cube(tmp_path / f"{interleave}.hdr")
        np.testing.assert_array_equal(mine.values, cube.values)
        np.testing.assert_array_equal(mine.wavelengths, WAVELENGTHS)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lines": 5}, "bytes"),
        ({"header offset": 8}, "bytes"),
        ({"interleave": "bsx"}, "interleave 'bsx' is unknown; known: bsq, bil, bip"),
        ({"interleave": None}, "interleave"),
        ({"data type": 6}, "data type 6"),
        ({"samples": "many"}, "samples must be a whole number"),
        ({"bands": 0}, "bands must be"),
        ({"samples": None}, "lacks the field 'samples'"),
        ({"byte order": 2}, "byte order"),
        ({"wavelength": "{400, 500}"}, "5 bands but 2 wavelengths"),
        ({"wavelength": "{400, red, 1, 2, 3}"}, "wavelength must be numbers"),
        ({"data ignore value": "none"}, "data ignore value"),
        ({"wavelength": "{400, 500"}, "brace"),
        ({"lines": "4" * 12}, "bytes"),
    ],
)
def test_envi_headers_that_lie_are_refused(tmp_path, fields, words):
    kwargs = (
        {"interleave": fields["interleave"]}
        if fields.get("interleave") in ("bsq", "bil", "bip")
        else {}
    )
    path = envi(tmp_path, **kwargs)
    text = path.read_text()
    for name, value in fields.items():
        text = "".join(
            line + "\n" for line in text.splitlines() if not line.startswith(f"{name} =")
        )
        text += "" if value is None else f"{name} = {value}\n"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_cube(path)


def test_several_raw_files_are_no_guess(tmp_path):
    path = envi(tmp_path)
    (tmp_path / "scene.bil").write_bytes((tmp_path / "scene.raw").read_bytes())
    with pytest.raises(ValueError, match=r"several raw files beside it: scene.raw, scene.bil"):
        read_cube(path)


def test_missing_raw_and_wrong_files(tmp_path):
    path = envi(tmp_path)
    (tmp_path / "scene.raw").unlink()
    with pytest.raises(FileNotFoundError, match="no raw file beside"):
        read_cube(path)
    path.write_text("not a header")
    with pytest.raises(ValueError, match="no ENVI header"):
        read_cube(path)
    with pytest.raises(FileNotFoundError):
        read_cube(tmp_path / "none.mat")
    for suffix in ("mat", "npz", "h5", "tif"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=f"bad.{suffix}"):
            read_cube(tmp_path / f"bad.{suffix}")
    with pytest.raises(ValueError, match="cubes end in"):
        read_cube(tmp_path / "scene.raw")


def test_envi_names_of_raw_files_and_units(tmp_path):
    path = envi(
        tmp_path,
        raw="scene.IMG",
        wavelength="{0.4, 0.5, 0.45,\n 0.6, 0.9}",
        **{"wavelength units": "Micrometers"},
    )
    # unsorted stays as the bands are
    np.testing.assert_allclose(read_cube(path).wavelengths, [400, 500, 450, 600, 900])


FORMATS = ["a.hdr", "a.mat", "a.npz", "a.h5", "a.tif"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_formats_keep_everything(tmp_path, name, dtype):
    data = values(dtype)
    cube = Cube(data, WAVELENGTHS, 3.0)
    write_cube(tmp_path / name, cube, lambda rows: data[:, rows] + 0.0, block=3)
    again = read_cube(tmp_path / name)
    np.testing.assert_array_equal(again.values, data)
    assert again.values.dtype == dtype
    np.testing.assert_allclose(again.wavelengths, WAVELENGTHS)
    assert again.no_data == 3
    assert sorted(p.suffix for p in tmp_path.iterdir()) == (
        [".hdr", ".raw"] if name == "a.hdr" else [name[1:]]
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bands", [1, 500])
def test_one_band_and_many(tmp_path, name, bands):
    data = np.random.default_rng(0).normal(size=(bands, 4, 3)).astype(np.float32)
    write_cube(tmp_path / name, Cube(data), lambda rows: data[:, rows])
    np.testing.assert_array_equal(read_cube(tmp_path / name).values, data)


def test_missing_entries_stay_as_they_are(tmp_path):
    data = values("float32")
    data[1, 2, 1], data[0, 0, 0], data[2, 1, 1] = np.nan, np.inf, -999
    cube = Cube(data, no_data=-999.0)
    assert (~cube.valid()).sum() == 3
    write_cube(tmp_path / "a.npz", cube, lambda rows: np.full_like(data[:, rows], 5))
    again = read_cube(tmp_path / "a.npz")
    expected = np.where(cube.valid(), np.float32(5), data)
    np.testing.assert_array_equal(again.values, expected)


@given(st.sampled_from(["uint8", "int16", "uint16", "int64"]), st.floats(-1e20, 1e20))
def test_integers_are_rounded_and_clipped(tmp_path_factory, dtype, value):
    path = tmp_path_factory.getbasetemp() / "clip.npz"
    cube = Cube(np.zeros((1, 1, 1), dtype))
    write_cube(path, cube, lambda rows: np.full((1, 1, 1), value))
    limits = np.iinfo(dtype)
    got = int(read_cube(path).values[0, 0, 0])
    assert got == pytest.approx(min(max(round(value), limits.min), limits.max), rel=1e-12)


def test_matlab_versions_and_choice_of_array(tmp_path):
    last = values("float64").transpose(1, 2, 0)
    savemat(tmp_path / "v5.mat", {"scene": last, "mask": np.ones((4, 3))})
    with h5py.File(tmp_path / "v73.mat", "w") as file:
        file["scene"] = last.transpose()  # as MATLAB does
        file["wavelength"] = WAVELENGTHS[None]
    for name in ("v5.mat", "v73.mat"):
        cube = read_cube(tmp_path / name)
        np.testing.assert_array_equal(cube.values, values("float64"))
        assert cube.key == "scene"
    np.testing.assert_array_equal(read_cube(tmp_path / "v73.mat").wavelengths, WAVELENGTHS)
    savemat(tmp_path / "two.mat", {"a": last, "b": last})
    with pytest.raises(ValueError, match=r"several cubes; name the array with key: a \(4, 3, 5\)"):
        read_cube(tmp_path / "two.mat")
    assert read_cube(tmp_path / "two.mat", key="b").values.shape == SHAPE
    with pytest.raises(ValueError, match="no three-dimensional array 'c'"):
        read_cube(tmp_path / "two.mat", key="c")


def test_axis_of_bands(tmp_path):
    data = values("float32")
    # bands first: only that axis has five entries
    np.savez(tmp_path / "a.npz", cube=data, wavelength_nm=WAVELENGTHS)
    np.testing.assert_array_equal(read_cube(tmp_path / "a.npz").values, data)
    np.savez(tmp_path / "b.npz", cube=data)
    np.testing.assert_array_equal(read_cube(tmp_path / "b.npz", band_axis=0).values, data)
    assert read_cube(tmp_path / "b.npz").values.shape == (3, 5, 4)
    with pytest.raises(ValueError, match="band_axis"):
        read_cube(tmp_path / "b.npz", band_axis=3)
    np.savez(tmp_path / "c.npz", cube=data, wavelength_nm=WAVELENGTHS[:2])
    with pytest.raises(ValueError, match="3 bands but 2 wavelengths"):
        read_cube(tmp_path / "c.npz")


def test_channels_of_one_tiff_page_are_bands(tmp_path):
    data = values("uint16")
    tifffile.imwrite(
        tmp_path / "a.tif", data.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig"
    )
    np.testing.assert_array_equal(read_cube(tmp_path / "a.tif").values, data)


def test_sizes_are_checked_from_headers(tmp_path, monkeypatch):
    for name in FORMATS[1:]:
        write_cube(tmp_path / name, Cube(values()), lambda rows: values()[:, rows])
        with monkeypatch.context() as patch:
            patch.setenv("RESTOBOX_MAX_BYTES", "100")
            with pytest.raises(ResourceError, match="at most 100 bytes"):
                read_cube(tmp_path / name)
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("cube", (10**5, 10**5, 300), "f4", chunks=True)
    with pytest.raises(ValueError, match="of memory"):
        read_cube(tmp_path / "huge.h5")


def test_output_places_are_checked(tmp_path):
    cube = read_cube(envi(tmp_path))
    with pytest.raises(ValueError, match="would overwrite"):
        write_cube(tmp_path / "scene.hdr", cube, lambda rows: cube.values[:, rows])
    with pytest.raises(ValueError, match="must end in"):
        write_cube(tmp_path / "out.jpg", cube, lambda rows: cube.values[:, rows])
    with pytest.raises(FileNotFoundError, match="folder"):
        write_cube(tmp_path / "no" / "out.npz", cube, lambda rows: cube.values[:, rows])


def test_no_data_whose_last_digits_are_left_out():
    """As programs write the least number of single precision."""
    values = np.array([[[1, -3.4028235e38, 5]]], np.float32)
    for told in (-3.4028235e38, -3.40282e38, -3.4028234663852886e38):
        np.testing.assert_array_equal(Cube(values, no_data=told).valid()[0, 0], [1, 0, 1])
    assert Cube(values, no_data=3.4028235e38).valid().all()
