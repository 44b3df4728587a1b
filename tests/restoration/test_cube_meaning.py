"""What attributes make of a cube's numbers: ranges, scales, names of axes; NEON and HICO."""

import h5py
import numpy as np
import pytest

from restoration.io.cubes import read_cube, write_cube
from solvers.inputs.errors import InputError

SHAPE = (5, 6, 8)
WAVES = np.linspace(400, 900, 8)
STORED = np.random.default_rng(0).integers(0, 5000, SHAPE).astype(np.int16)
STORED[0, 0, 0], STORED[1, 1, 1], STORED[2, 2, 2] = -500, 20000, -9999
VALID = (STORED >= 0) & (STORED <= 16000)


def netcdf(path, values, axes=("y", "x", "bands"), **attributes):
    """NetCDF 4 is HDF 5 with named axes."""
    with h5py.File(path, "w") as file:
        for name, count in zip(axes, values.shape, strict=True):
            file[name] = np.zeros(count, ">f4")
            file[name].make_scale("This is a netCDF dimension but not a netCDF variable. 8")
        file["radiance"] = values
        for k, name in enumerate(axes):
            file["radiance"].dims[k].attach_scale(file[name])
        file["radiance"].attrs.update(attributes)
    return path


@pytest.mark.parametrize(
    "attributes",
    [
        {"valid_range": np.array([0, 16000], np.int16), "_FillValue": np.int16(-9999)},
        {"valid_min": np.int16(0), "valid_max": np.int16(16000)},
        {"valid_min": np.int16(0), "missing_value": np.int16(20000)},
        {"missing_value": np.array([-500, 20000], np.int16), "_FillValue": np.int16(-9999)},
        {"valid_range": np.array([0, 16000], np.int16), "scale_factor": 1e-4},
        {"valid_range": np.array([0.0, 1.6]), "scale_factor": 1e-4, "add_offset": 0.0},
        {"valid_range": np.array([0, 160], np.int16), "slope": 0.01, "_FillValue": np.int16(-9999)},
    ],
)
def test_ranges_of_valid_numbers(tmp_path, attributes):
    scale = attributes.get("scale_factor", attributes.get("slope", 1.0))
    valid = VALID
    if "slope" in attributes:  # the range counts as the numbers are stored
        valid = (STORED >= 0) & (STORED <= 160)
    cube = read_cube(netcdf(tmp_path / "a.nc", STORED, **attributes))
    np.testing.assert_array_equal(cube.valid(), valid.transpose(2, 0, 1))
    wanted = np.where(valid, STORED * scale, 0).transpose(2, 0, 1)
    np.testing.assert_allclose(np.where(cube.valid(), cube.values, 0), wanted, rtol=1e-6)


def test_what_is_not_valid_comes_back_as_it_was(tmp_path):
    path = netcdf(tmp_path / "a.nc", STORED, valid_range=np.array([0, 16000], np.int16))
    cube = read_cube(path)
    for name in ("b.tif", "b.h5"):
        write_cube(tmp_path / name, cube, lambda rows: 0 * cube.values[:, rows])
        again = read_cube(tmp_path / name)
        np.testing.assert_array_equal(again.values, np.where(cube.valid(), 0, cube.values))
        np.testing.assert_array_equal(again.valid(), cube.valid())


def test_a_range_in_which_nothing_lies_is_refused(tmp_path):
    path = netcdf(tmp_path / "a.nc", STORED, valid_range=np.array([30000, 32000], np.int16))
    with pytest.raises(InputError, match=r"no entry lies in the range .* correct valid_range"):
        read_cube(path)


@pytest.mark.parametrize(("kind", "fill"), [(np.float32, 9.969209968386869e36), (np.int16, -32767)])
def test_what_netcdf_fills_arrays_with_is_missing(tmp_path, kind, fill):
    values = np.ones(SHAPE, kind)
    values[1, 2, 3] = fill
    cube = read_cube(netcdf(tmp_path / "a.nc", values))
    assert np.argwhere(~cube.valid()).tolist() == [[3, 1, 2]]
    assert read_cube(netcdf(tmp_path / "b.nc", np.ones(SHAPE, kind))).no_data is None
    assert read_cube(netcdf(tmp_path / "c.h5", values)).valid().all()


@pytest.mark.parametrize("name", ["band", "wavelength", "bands", "wl", "spectral_channel"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_names_tell_the_axis_of_bands(tmp_path, name, axis):
    """As xarray has them, though no wavelengths are told."""
    axes = ["y", "x"]
    axes.insert(axis, name)
    values = np.moveaxis(VALID.astype(np.float32), 2, axis)
    cube = read_cube(netcdf(tmp_path / "a.nc", values, axes))
    np.testing.assert_array_equal(cube.values, VALID.transpose(2, 0, 1))
    assert cube.axis == axis


def neon(path):
    """By NEON's description of its reflectance product."""
    group = "SITE/Reflectance"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(f"{group}/Reflectance_Data", data=STORED)
        data.attrs.update({"Scale_Factor": 10000.0, "Data_Ignore_Value": -9999.0})
        file[f"{group}/Metadata/Spectral_Data/Wavelength"] = WAVES
        file[f"{group}/Metadata/Spectral_Data/FWHM"] = 5 + 0 * WAVES
        file[f"{group}/Metadata/Ancillary_Imagery/Weather_Quality_Indicator"] = np.zeros(
            (*SHAPE[:2], 3), np.uint8
        )
        file[f"{group}/Metadata/Coordinate_System/Map_Info"] = np.bytes_(
            "UTM,  1.000,  1.000,  256000.00,  4113000.0,  1.0, 1.0,  11,  North, WGS-84"
        )
        file[group].attrs["Band_Window_1_Nanometers"] = [465, 560]
        file[group].attrs["Band_Window_2_Nanometers"] = [1790, 1955]
    return path


def test_neon(tmp_path):
    cube = read_cube(neon(tmp_path / "a.h5"))
    wanted = np.where(STORED == -9999, np.nan, STORED / 10000).transpose(2, 0, 1)
    np.testing.assert_allclose(cube.values, wanted, rtol=1e-6)
    np.testing.assert_array_equal(cube.wavelengths, WAVES)
    assert np.flatnonzero(cube.bad).tolist() == [1, 2]
    write_cube(tmp_path / "b.hdr", cube, lambda rows: cube.values[:, rows])
    assert "map info = {UTM,  1.000,  1.000,  256000.00" in (tmp_path / "b.hdr").read_text()


def test_neon_goes_to_its_place(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    cube = read_cube(neon(tmp_path / "a.h5"))
    write_cube(tmp_path / "b.tif", cube, lambda rows: cube.values[:, rows])
    with rasterio.open(tmp_path / "b.tif") as file:
        assert file.crs.to_epsg() == 32611
        assert file.transform.to_gdal() == (256000, 1, 0, 4113000, 0, -1)


def test_wavelengths_of_an_array_itself(tmp_path):
    """As HICO has them, beside pictures in colour."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["products/Lt"] = STORED
        file["products/Lt"].attrs.update({"wavelengths": WAVES, "slope": 0.02, "intercept": 0.0})
        file["images/true_color"] = np.zeros((*SHAPE[:2], 3), np.uint8)
    cube = read_cube(tmp_path / "a.h5")
    np.testing.assert_allclose(cube.values, 0.02 * STORED.transpose(2, 0, 1), rtol=1e-6)
    np.testing.assert_array_equal(cube.wavelengths, WAVES)


@pytest.mark.parametrize("place", ["file", "array", "center_wavelengths", "each column"])
def test_places_where_files_tell_wavelengths(tmp_path, place):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = STORED
        if place in ("file", "array"):
            (file if place == "file" else file["cube"]).attrs["wavelength"] = WAVES
        elif place == "each column":  # of a detector, about the centre
            file["wavelength"] = WAVES + np.linspace(-1, 1, 6)[:, None]
        else:
            file[place] = WAVES
    np.testing.assert_allclose(read_cube(tmp_path / "a.h5").wavelengths, WAVES)
