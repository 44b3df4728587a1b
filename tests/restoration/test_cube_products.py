"""Cubes as instruments and programs write them: bad bands are left alone and marked, places on the
ground stay, layouts of PRISMA, EnMAP, EMIT, AVIRIS and Hyperion are known.
"""

import h5py
import numpy as np
import pytest
import tifffile

from restoration.io.cubes import Cube, read_cube, write_cube
from restoration.io.cubes.georeference import fields_of
from restoration.io.images import read_image
from solvers.inputs.errors import InputError

RNG = np.random.default_rng(0)
SHAPE = (5, 4, 3)
WAVES = np.array([400.0, 500, 600, 700, 800])
UTM = {"map info": "{UTM, 1.000, 1.000, 500000.0, 4400000.0, 30.0, 30.0, 33, North, WGS-84}"}


def envi(folder, **fields):
    """A header of 5 bands, 4 lines and 3 samples, and its raw file."""
    RNG.integers(1, 1000, SHAPE).astype("<i2").tofile(folder / "scene.raw")
    says = {"samples": 3, "lines": 4, "bands": 5, "data type": 2, "interleave": "bsq"} | fields
    text = "ENVI\n" + "".join(f"{name} = {value}\n" for name, value in says.items())
    (folder / "scene.hdr").write_text(text, encoding="utf-8")
    return folder / "scene.hdr"


def same(cube):
    return lambda rows: cube.values[:, rows]


# -- bad bands -------------------------------------------------------------------------------------


def test_bbl_is_honoured_and_written(tmp_path):
    path = envi(tmp_path, bbl="{1, 0, 1,\n 1, 0}", wavelength="{1, 2, 3, 4, 5}")
    cube = read_cube(path)
    np.testing.assert_array_equal(cube.bad, [False, True, False, False, True])
    assert not cube.valid()[[1, 4]].any()
    assert cube.valid()[[0, 2, 3]].all()
    for name in ("out.hdr", "out.npz", "out.h5", "out.mat", "out.tif", "out.nc"):
        write_cube(tmp_path / name, cube, lambda rows: 0 * cube.values[:, rows])
        again = read_cube(tmp_path / name)
        np.testing.assert_array_equal(again.bad, cube.bad)
        np.testing.assert_array_equal(again.values[[1, 4]], cube.values[[1, 4]])
        assert not again.values[[0, 2, 3]].any()
    for text, words in (("{1, 0}", "5 bands, but"), ("{0,0,0,0,0}", "all of them")):
        with pytest.raises(InputError, match=words):
            read_cube(envi(tmp_path, bbl=text))


# -- units, containers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "wave", "right"),
    [
        ("Nanometers", 45, 45),
        ("Micrometers", 0.45, 450),
        ("µm", 0.45, 450),
        ("Angstroms", 4500, 450),
        ("Wavenumber", 20000, 500),
        ("GHz", 299792.458, 1000),
        ("Unknown", 0.45, 450),
        ("", 450, 450),
        ("Index", 45, None),
    ],
)
def test_units_in_words(tmp_path, units, wave, right):
    path = envi(tmp_path, wavelength="{" + ",".join([str(wave)] * 5) + "}")
    path.write_text(path.read_text() + f"wavelength units = {units}\n", encoding="utf-8")
    found = read_cube(path).wavelengths
    assert found is None if right is None else np.allclose(found, right)


@pytest.mark.parametrize(
    "text",
    ["{ a } b }", "{ a { b }", "{\n a :-}\n b = 7 }", "{\n a { b\n bands: 9 }", "{\n {a} = {b}\n}"],
)
def test_braces_that_nothing_closes(tmp_path, text):
    """In free text, up to the line that ends in one before another field."""
    waves = "{400, 500,\n600, 700, 800}"
    cube = read_cube(envi(tmp_path, description=text, wavelength=waves, **{"data  type": 2}))
    np.testing.assert_array_equal(cube.wavelengths, WAVES)
    (tmp_path / "scene.hdr").write_text("ENVI\nbands = 5\nwavelength = {400, 500\n")
    with pytest.raises(InputError, match="a brace is not closed"):
        read_cube(tmp_path / "scene.hdr")


def test_cubes_in_structs(tmp_path):
    from scipy.io import savemat

    data = RNG.random((4, 3, 5))
    savemat(tmp_path / "a.mat", {"scene": {"cube": data, "wavelength": WAVES}, "n": 3.0})
    cube = read_cube(tmp_path / "a.mat")
    np.testing.assert_array_equal(cube.values, data.transpose(2, 0, 1))
    np.testing.assert_array_equal(cube.wavelengths, WAVES)
    write_cube(tmp_path / "b.mat", cube, same(cube))
    np.testing.assert_array_equal(read_cube(tmp_path / "b.mat").values, cube.values)


def test_unknown_units_are_named(tmp_path):
    path = envi(tmp_path, wavelength="{1,2,3,4,5}", **{"wavelength units": "furlongs"})
    with pytest.raises(InputError, match=r"'furlongs' are unknown; known: nanometers"):
        read_cube(path)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".he5", ".nc", ".mat"])
def test_the_axis_of_bands_stays(tmp_path, suffix, axis):
    data = RNG.random(SHAPE).astype(np.float32)
    cube = Cube(data, axis=axis, key="cube")
    write_cube(tmp_path / f"a{suffix}", cube, same(cube))
    again = read_cube(tmp_path / f"a{suffix}", band_axis=axis)
    np.testing.assert_array_equal(again.values, data)
    write_cube(tmp_path / f"b{suffix}", again, same(again))
    np.testing.assert_array_equal(read_cube(tmp_path / f"b{suffix}", band_axis=axis).values, data)
    if suffix == ".npy":
        assert np.load(tmp_path / "b.npy").shape == np.moveaxis(data, 0, axis).shape


# -- places ----------------------------------------------------------------------------------------


def test_places_stay_in_tiffs(tmp_path):
    """To the bit, and without a library of geography."""
    data = RNG.integers(0, 1000, SHAPE).astype(np.int16)
    tags = [
        (33550, "d", 3, (30.0, 30.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 5e5, 4.4e6, 0.0), True),
        (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True),
        (42113, "s", 0, "-9999", True),
    ]
    tifffile.imwrite(
        tmp_path / "a.tif", data, photometric="minisblack", planarconfig="separate", extratags=tags
    )
    cube = read_cube(tmp_path / "a.tif")
    np.testing.assert_array_equal(cube.values, data)
    assert cube.no_data == -9999
    write_cube(tmp_path / "b.tif", cube, same(cube))
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert len(file.pages) == 1  # as GDAL has it
        for code, _, _, value, _ in tags[:3]:
            assert file.pages[0].tags[code].value == value
    np.testing.assert_array_equal(read_cube(tmp_path / "b.tif").values, data)
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path / "b.tif") as source:
        assert source.count == 5
        assert source.crs.to_epsg() == 32633
        assert tuple(source.transform)[:6] == (30, 0, 5e5, 0, -30, 4.4e6)
        assert source.nodata == -9999
        np.testing.assert_array_equal(source.read(), data)


def test_places_go_from_envi_to_tiff_and_back(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    cube = read_cube(envi(tmp_path, **UTM))
    write_cube(tmp_path / "out.tif", cube, same(cube))
    with rasterio.open(tmp_path / "out.tif") as source:
        assert source.crs.to_epsg() == 32633
        assert tuple(source.transform)[:6] == (30, 0, 5e5, 0, -30, 4.4e6)
    again = read_cube(tmp_path / "out.tif")
    write_cube(tmp_path / "back.hdr", again, same(again))
    header = read_cube(tmp_path / "back.hdr").header
    name, *rest = [word.strip() for word in header["map info"].split(",")]
    assert name == "UTM"
    assert [float(v) for v in rest[:6]] == [1, 1, 5e5, 4.4e6, 30, 30]
    assert rest[6:9] == ["33", "North", "WGS-84"]
    assert fields_of(()) == {}
    # the header's own words stay as they are between ENVI files
    write_cube(tmp_path / "same.hdr", cube, same(cube))
    assert read_cube(tmp_path / "same.hdr").header["map info"] == cube.header["map info"]
    strange = read_cube(envi(tmp_path, **{"map info": "{nowhere}"}))
    with pytest.raises(InputError, match="no known projection"):
        write_cube(tmp_path / "no.tif", strange, same(strange))


# -- instruments -----------------------------------------------------------------------------------


def test_prisma(tmp_path):
    """(rows, bands, columns), both cubes scaled, ordered by wavelength, unused bands marked."""
    numbers = {"VNIR": RNG.integers(0, 65535, (6, 3, 7)), "SWIR": RNG.integers(0, 65535, (6, 2, 7))}
    with h5py.File(tmp_path / "PRS_L2D.he5", "w") as file:
        for name, stored in numbers.items():
            place = "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"
            file[f"{place}/{name}_Cube"] = stored.astype(np.uint16)
            file[f"{place}/{name}_PIXEL_L2_ERR"] = np.zeros(stored.shape, np.uint8)
        file.attrs["List_Cw_Vnir"] = np.array([700.0, 500.0, 0.0])
        file.attrs["List_Cw_Vnir_Flags"] = np.array([1, 1, 0])
        file.attrs["List_Cw_Swir"] = np.array([2000.0, 1000.0])
        file.attrs["List_Cw_Swir_Flags"] = np.array([1, 1])
        file.attrs["L2ScaleVnirMin"], file.attrs["L2ScaleVnirMax"] = 0.1, 0.9
        file.attrs["L2ScaleSwirMin"], file.attrs["L2ScaleSwirMax"] = 0.0, 0.5
    cube = read_cube(tmp_path / "PRS_L2D.he5")
    assert cube.values.shape == (5, 6, 7)
    np.testing.assert_array_equal(cube.wavelengths[~cube.bad], [500, 700, 1000, 2000])
    assert cube.bad.sum() == 1
    good = cube.values[~cube.bad]
    np.testing.assert_allclose(good[0], 0.1 + 0.8 * numbers["VNIR"][:, 1] / 65535, rtol=1e-5)
    np.testing.assert_allclose(good[3], 0.5 * numbers["SWIR"][:, 0] / 65535, rtol=1e-5)
    write_cube(tmp_path / "out.he5", cube, same(cube))
    np.testing.assert_array_equal(read_cube(tmp_path / "out.he5").values, cube.values)


def test_emit_and_scaled_netcdf(tmp_path):
    h5netcdf = pytest.importorskip("h5netcdf")
    data = RNG.random((4, 3, 5)).astype(np.float32)
    data[0, 0] = -9999
    with h5netcdf.File(tmp_path / "emit.nc", "w") as file:
        file.dimensions = {"downtrack": 4, "crosstrack": 3, "bands": 5}
        axes = ("downtrack", "crosstrack", "bands")
        file.create_variable("reflectance", axes, data=data, fillvalue=np.float32(-9999))
        group = file.create_group("sensor_band_parameters")
        group.create_variable("wavelengths", ("bands",), data=WAVES.astype(np.float32))
        group.create_variable("good_wavelengths", ("bands",), data=np.array([1, 1, 0, 1, 1.0]))
    cube = read_cube(tmp_path / "emit.nc")
    np.testing.assert_array_equal(cube.values, data.transpose(2, 0, 1))
    np.testing.assert_array_equal(cube.wavelengths, WAVES)
    np.testing.assert_array_equal(cube.bad, WAVES == 600)
    assert cube.no_data == -9999
    assert not cube.valid()[:, 0, 0].any()
    write_cube(tmp_path / "out.nc", cube, same(cube))
    again = read_cube(tmp_path / "out.nc")
    np.testing.assert_array_equal(again.values, cube.values)
    np.testing.assert_array_equal(again.wavelengths, WAVES)
    assert again.no_data == -9999
    with h5netcdf.File(tmp_path / "scaled.nc", "w") as file:
        file.dimensions = {"wavelength": 5, "lines": 4, "samples": 3}  # as AVIRIS-3 orders them
        group = file.create_group("radiance")
        stored = RNG.integers(0, 100, (5, 4, 3)).astype(np.int16)
        stored[2, 1, 1] = -1
        found = group.create_variable(
            "radiance", ("wavelength", "lines", "samples"), data=stored, fillvalue=np.int16(-1)
        )
        found.attrs["scale_factor"], found.attrs["add_offset"] = 0.5, 10.0
        group.create_variable("wavelength", ("wavelength",), data=WAVES)
    cube = read_cube(tmp_path / "scaled.nc")
    assert np.isnan(cube.values[2, 1, 1])
    valid = stored != -1
    np.testing.assert_allclose(cube.values[valid], stored[valid] * 0.5 + 10)


def test_enmap(tmp_path):
    data = RNG.integers(0, 1000, SHAPE).astype(np.int16)
    tifffile.imwrite(
        tmp_path / "ENMAP01-SPECTRAL_IMAGE.TIF",
        data.transpose(1, 2, 0),
        photometric="minisblack",
        planarconfig="contig",
    )
    bands = "".join(
        f'<bandID number="{k}"><wavelengthCenterOfBand>{w}</wavelengthCenterOfBand></bandID>'
        for k, w in enumerate(WAVES)
    )
    (tmp_path / "ENMAP01-METADATA.XML").write_text(f"<a>{bands}</a>")
    cube = read_cube(tmp_path / "ENMAP01-SPECTRAL_IMAGE.TIF")
    np.testing.assert_array_equal(cube.values, data)
    np.testing.assert_array_equal(cube.wavelengths, WAVES)
    (tmp_path / "ENMAP01-METADATA.XML").write_text(f"<a>{bands}{bands}</a>")
    with pytest.raises(InputError, match="10 wavelengths"):
        read_cube(tmp_path / "ENMAP01-SPECTRAL_IMAGE.TIF")
    desis = tmp_path / "DESIS-HSI-L2A-SPECTRAL_IMAGE.tif"  # DLR's too, with names in small letters
    (tmp_path / "ENMAP01-SPECTRAL_IMAGE.TIF").rename(desis)
    (tmp_path / "DESIS-HSI-L2A-METADATA.xml").write_text(f"<a>{bands}</a>")
    np.testing.assert_array_equal(read_cube(desis).wavelengths, WAVES)


@pytest.mark.parametrize(
    ("unit", "nanometres"),
    [("Micrometers", 1e3), ("um", 1e3), ("Nanometers", 1), ("Millimeters", 1e6), (None, 1e3)],
)
def test_wavelengths_of_gdal(tmp_path, unit, nanometres):
    words = "".join(
        f'<Item name="wavelength" sample="{k}">{w / nanometres:.9f}</Item>'
        for k, w in enumerate(WAVES)
    )
    said = "" if unit is None else f'<Item name="wavelength_units">{unit}</Item>'
    words = f"<GDALMetadata>{said}{words}</GDALMetadata>"
    tifffile.imwrite(
        tmp_path / "a.tif",
        RNG.random(SHAPE),
        photometric="minisblack",
        planarconfig="separate",
        metadata=None,
        extratags=[(42112, "s", 0, words, True)],
    )
    np.testing.assert_allclose(read_cube(tmp_path / "a.tif").wavelengths, WAVES, rtol=1e-4)


def test_aviris_names(tmp_path):
    """A raw file without an ending, or with two, and a hint where that is given."""
    data = RNG.random((4, 5, 3)).astype(np.float32)
    text = "ENVI\nsamples = 3\nlines = 4\nbands = 5\ndata type = 4\ninterleave = bil\n"
    for raw in ("ang2019_rdn_img", "f97.a.rfl"):
        data.tofile(tmp_path / raw)
        (tmp_path / f"{raw}.hdr").write_text(text)
        cube = read_cube(tmp_path / f"{raw}.hdr")
        np.testing.assert_array_equal(cube.values, data.transpose(1, 0, 2))
        with pytest.raises(InputError, match=rf"give .*{raw}\.hdr"):
            read_cube(tmp_path / raw)


def test_hyperion(tmp_path):
    """Bands in files of their own; what is not calibrated is bad."""
    for band in (1, 8, 57, 58, 77, 224):
        pixels = np.full((9, 8), band, np.int16)
        tifffile.imwrite(tmp_path / f"EO1H0150_B{band:03d}_L1T.TIF", pixels)
    (tmp_path / "README.txt").write_text("")
    cube = read_cube(tmp_path)
    np.testing.assert_array_equal(cube.values[:, 0, 0], [1, 8, 57, 58, 77, 224])
    np.testing.assert_allclose(cube.wavelengths[[1, 2, 4, 5]], [426.82, 925.41, 912.45, 2395.5])
    np.testing.assert_array_equal(cube.bad, [True, False, False, True, False, False])
    tifffile.imwrite(tmp_path / "EO1H0150_B009_L1T.TIF", np.zeros((7, 8), np.int16))
    with pytest.raises(InputError, match=r"B009.*of shape"):
        read_cube(tmp_path)


# -- places that HDF and NetCDF state --------------------------------------------------------------

GRID = (500000.0, 30.0, 0.0, 4400000.0, 0.0, -30.0)  # of pixels' edges, as GDAL has it


def placed(path):
    """System and transformation of a file by GDAL."""
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(path) as source:
        return source.crs.to_epsg(), source.transform.to_gdal()


@pytest.mark.parametrize("corners", ["centres", "edges"])
def test_prisma_grids_go_to_every_output_with_a_place(tmp_path, corners):
    with h5py.File(tmp_path / "PRS_L2D.he5", "w") as file:
        place = "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"
        for name, bands in (("VNIR", 3), ("SWIR", 2)):
            numbers = RNG.integers(0, 65535, (6, bands, 7)).astype(np.uint16)
            file[f"{place}/{name}_Cube"] = numbers
        file.attrs["List_Cw_Vnir"], file.attrs["List_Cw_Swir"] = WAVES[:3], WAVES[3:]
        half = 15 if corners == "centres" else 0
        file.attrs["Epsg_Code"] = 32633
        file.attrs["Product_ULcorner_easting"] = 500000.0 + half
        file.attrs["Product_ULcorner_northing"] = 4400000.0 - half
        file.attrs["Product_LRcorner_easting"] = 500000.0 + 7 * 30 - half
        file.attrs["Product_LRcorner_northing"] = 4400000.0 - 6 * 30 + half
    cube = read_cube(tmp_path / "PRS_L2D.he5")
    for name, file in (("a.tif", "a.tif"), ("a.hdr", "a.raw")):
        write_cube(tmp_path / name, cube, same(cube))
        assert placed(tmp_path / file) == (32633, GRID)
    write_cube(tmp_path / "a.nc", cube, same(cube))
    again = read_cube(tmp_path / "a.nc")
    assert again.geo == cube.geo
    write_cube(tmp_path / "b.tif", again, same(again))
    assert placed(tmp_path / "b.tif") == (32633, GRID)


def test_places_of_each_pixel_are_kept(tmp_path):
    """PRISMA's and EMIT's scenes before they are laid on a grid."""
    rasterio = pytest.importorskip("rasterio")
    h5netcdf = pytest.importorskip("h5netcdf")
    rows, columns = np.mgrid[0:6, 0:7]
    latitude, longitude = 40 - 0.01 * rows + 0.002 * columns, 10 + 0.01 * columns + 0.003 * rows
    with h5py.File(tmp_path / "PRS_L1.he5", "w") as file:
        place = "HDFEOS/SWATHS/PRS_L1_HCO"
        for name, bands in (("VNIR", 3), ("SWIR", 2)):
            file[f"{place}/Data Fields/{name}_Cube"] = np.ones((6, bands, 7), np.uint16)
        file[f"{place}/Geolocation Fields/Latitude_VNIR"] = latitude
        file[f"{place}/Geolocation Fields/Longitude_VNIR"] = longitude
        file.attrs["List_Cw_Vnir"], file.attrs["List_Cw_Swir"] = WAVES[:3], WAVES[3:]
    with h5netcdf.File(tmp_path / "emit.nc", "w") as file:
        file.dimensions = {"downtrack": 6, "crosstrack": 7, "bands": 5}
        axes = ("downtrack", "crosstrack", "bands")
        file.create_variable("radiance", axes, data=np.ones((6, 7, 5), np.float32))
        # of the grid that the scene is laid on later
        file.attrs["geotransform"] = [10.0, 0.0005, 0, 40.0, 0, -0.0005]
        file.create_group("sensor_band_parameters").create_variable(
            "wavelengths", ("bands",), data=WAVES
        )
        group = file.create_group("location")
        group.create_variable("lat", ("downtrack", "crosstrack"), data=latitude)
        group.create_variable("lon", ("downtrack", "crosstrack"), data=longitude)
    for source in ("PRS_L1.he5", "emit.nc"):
        cube = read_cube(tmp_path / source)
        for name in ("a.nc", "a.h5", "a.npz", "a.mat"):
            write_cube(tmp_path / name, cube, same(cube))
            again = read_cube(tmp_path / name)
            np.testing.assert_array_equal(again.places[0], latitude)
            np.testing.assert_array_equal(again.places[1], longitude)
        for name, file in (("a.tif", "a.tif"), ("a.hdr", "a.raw")):
            write_cube(tmp_path / name, cube, same(cube))
            with rasterio.open(tmp_path / file) as opened:
                points, crs = opened.gcps
            assert file == "a.raw" or crs.to_epsg() == 4326  # ENVI's points name no system
            assert len(points) == 42
            for point in points:
                at = int(point.row), int(point.col)
                assert (point.row, point.col) == (at[0] + 0.5, at[1] + 0.5)
                np.testing.assert_allclose([point.y, point.x], [latitude[at], longitude[at]])


@pytest.mark.parametrize("kind", ["GDAL", "axes", "degrees"])
def test_grids_of_netcdf(tmp_path, kind):
    """By GDAL's words, by coordinates along the axes with a system, by degrees along the axes."""
    rasterio = pytest.importorskip("rasterio")
    h5netcdf = pytest.importorskip("h5netcdf")
    epsg = 4326 if kind == "degrees" else 32633
    step = 0.25 if kind == "degrees" else 30.0
    grid = (10.0, step, 0.0, 40.0, 0.0, -step) if kind == "degrees" else GRID
    x, y = ("lon", "lat") if kind == "degrees" else ("easting", "northing")
    with h5netcdf.File(tmp_path / "a.nc", "w") as file:
        file.dimensions = {"wavelength": 5, y: 4, x: 3}
        group = file.create_group("radiance")
        found = group.create_variable("radiance", ("wavelength", y, x), data=np.ones(SHAPE))
        group.create_variable("wavelength", ("wavelength",), data=WAVES)
        if kind != "degrees":
            found.attrs["grid_mapping"] = "transverse_mercator"
            mapping = file.create_variable("transverse_mercator", (), "S1", data=b"")
            mapping.attrs["spatial_ref"] = rasterio.crs.CRS.from_epsg(epsg).to_wkt()
            if kind == "GDAL":
                mapping.attrs["GeoTransform"] = " ".join(map(str, grid))
        if kind != "GDAL":
            file.create_variable(x, (x,), data=grid[0] + step * (np.arange(3) + 0.5))
            file.create_variable(y, (y,), data=grid[3] - step * (np.arange(4) + 0.5))
    cube = read_cube(tmp_path / "a.nc")
    assert cube.values.shape == SHAPE
    write_cube(tmp_path / "a.tif", cube, same(cube))
    assert placed(tmp_path / "a.tif") == (epsg, pytest.approx(grid))


def geotiff(path, values, **options):
    rasterio = pytest.importorskip("rasterio")
    bands, height, width = values.shape
    place = rasterio.Affine.from_gdal(*GRID)
    size = {"count": bands, "height": height, "width": width, "dtype": values.dtype.name}
    size |= {"crs": "EPSG:32633", "transform": place}
    with rasterio.open(path, "w", driver="GTiff", **size, **options) as file:
        file.write(values)
        yield file


@pytest.mark.parametrize("interleave", ["band", "pixel"])
@pytest.mark.parametrize("kind", ["LZW", "floats", "overviews"])
def test_tiffs_of_gdal(tmp_path, interleave, kind):
    """Codecs that tifffile lacks, and smaller copies behind the picture."""
    data = RNG.integers(0, 99, (5, 20, 18)).astype(np.float32)
    options = {"overviews": {}, "LZW": {"compress": "lzw", "tiled": True, "blockxsize": 16}}
    options["LZW"]["blockysize"] = 16
    options["floats"] = {"compress": "deflate", "predictor": 3}
    for file in geotiff(tmp_path / "a.tif", data, interleave=interleave, **options[kind]):
        if kind == "overviews":
            file.build_overviews([2])
    np.testing.assert_array_equal(read_cube(tmp_path / "a.tif").values, data)


def test_words_of_gdal_are_kept(tmp_path):
    """A scale, without which the numbers mean something else."""
    rasterio = pytest.importorskip("rasterio")
    data = RNG.integers(0, 99, SHAPE).astype(np.int16)
    for file in geotiff(tmp_path / "a.tif", data):
        file.scales, file.offsets = (0.5,) * 5, (3.0,) * 5
        file.descriptions = tuple("abcde")
    cube = read_cube(tmp_path / "a.tif")
    write_cube(tmp_path / "b.tif", cube, same(cube))
    with rasterio.open(tmp_path / "b.tif") as file:
        assert (file.scales, file.offsets) == ((0.5,) * 5, (3.0,) * 5)
        np.testing.assert_array_equal(file.read(), data)


# -- older containers ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("records", [False, True])
def test_netcdf_3(tmp_path, version, records):
    """Bands along an axis that may grow or not, packed numbers, and the units of wavelengths."""
    from scipy.io import netcdf_file

    stored = RNG.integers(-100, 100, SHAPE).astype(np.int16)
    stored[1, 2, 0] = -999
    with netcdf_file(tmp_path / "a.nc", "w", version=version) as file:
        for name, count in zip(("wavelength", "y", "x"), SHAPE, strict=True):
            file.createDimension(name, None if records and name == "wavelength" else count)
        found = file.createVariable("radiance", "i2", ("wavelength", "y", "x"))
        found[:] = stored
        found._FillValue, found.scale_factor, found.add_offset = np.int16(-999), 0.5, 3.0
        waves = file.createVariable("wavelength", "f8", ("wavelength",))
        waves[:] = WAVES * 10
        waves.units = "angstrom"
    cube = read_cube(tmp_path / "a.nc")
    np.testing.assert_allclose(cube.wavelengths, WAVES)
    right = stored * 0.5 + 3
    right[1, 2, 0] = np.nan
    np.testing.assert_allclose(cube.values, right)
    content = (tmp_path / "a.nc").read_bytes()
    (tmp_path / "b.nc").write_bytes(b"CDF\x05" + content[4:])
    with pytest.raises(InputError, match=r"CDF-5, which is not read; convert it: nccopy -k nc4"):
        read_cube(tmp_path / "b.nc")
    (tmp_path / "c.nc").write_bytes(content[:-200])
    with pytest.raises(InputError, match="can't be read as NetCDF 3"):
        read_cube(tmp_path / "c.nc")


def test_unsigned_numbers_of_netcdf(tmp_path):
    """Classic files have none: an attribute says that they are meant."""
    from scipy.io import netcdf_file

    right = RNG.integers(0, 255, SHAPE).astype(np.uint8)
    right[0, 0, 0] = 255
    with netcdf_file(tmp_path / "a.nc", "w") as file:
        for name, count in zip("byx", SHAPE, strict=True):
            file.createDimension(name, count)
        found = file.createVariable("cube", "i1", tuple("byx"))
        found[:] = right.view(np.int8)
        found._Unsigned, found._FillValue = "true", np.int8(-1)
    cube = read_cube(tmp_path / "a.nc", band_axis=0)
    np.testing.assert_array_equal(cube.values, right)
    assert cube.no_data == 255


def test_hyperion_in_hdf_4(tmp_path):
    """L1R: 242 bands between lines and samples, in the file that the USGS gives."""
    sd = pytest.importorskip("pyhdf.SD")
    data = RNG.integers(-5, 3000, (4, 242, 3)).astype(np.int16)
    path = tmp_path / "EO1H0440342002212110PY.L1R"
    file = sd.SD(str(path), sd.SDC.WRITE | sd.SDC.CREATE)
    found = file.create(path.name, sd.SDC.INT16, data.shape)
    found[:] = data
    found.endaccess()
    file.end()
    cube = read_cube(path)
    np.testing.assert_array_equal(cube.values, data.transpose(1, 0, 2))
    np.testing.assert_allclose(cube.wavelengths[[7, 56, 76]], [426.82, 925.41, 912.45])
    assert (~cube.bad).sum() == 198
    path.with_suffix(".hdf").write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="cut short"):
        read_cube(path.with_suffix(".hdf"))


# -- stacks ----------------------------------------------------------------------------------------


def test_stacks_that_their_first_page_describes(tmp_path):
    """As ImageJ writes large ones; they are no picture of one plane."""
    stack = RNG.integers(0, 999, SHAPE).astype(np.uint16)
    for options in ({"imagej": True, "metadata": {"axes": "CYX"}}, {"photometric": "minisblack"}):
        tifffile.imwrite(tmp_path / "a.tif", stack, truncate=True, **options)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert len(file.pages) == 1
        np.testing.assert_array_equal(read_cube(tmp_path / "a.tif").values, stack)
        with pytest.raises(InputError, match="holds 5 pages"):
            read_image(tmp_path / "a.tif")
    colours = np.zeros((2, 4, 5, 3), np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", colours, imagej=True, truncate=True)
    with pytest.raises(InputError, match="2 pictures in colour"):
        read_cube(tmp_path / "b.tif")


def test_stacks_along_several_axes_are_refused(tmp_path):
    stack = RNG.integers(0, 999, (2, *SHAPE)).astype(np.uint16)
    for name, options in (
        ("a.ome.tif", {"photometric": "minisblack", "metadata": {"axes": "TCYX"}}),
        ("b.tif", {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    ):
        tifffile.imwrite(tmp_path / name, stack, **options)
        with pytest.raises(InputError, match="a stack along several axes"):
            read_cube(tmp_path / name)
        tifffile.imwrite(tmp_path / name, stack[:1], **options)
        np.testing.assert_array_equal(read_cube(tmp_path / name).values, stack[0])
    volume = np.zeros((16, 16, 16), np.uint16)
    tifffile.imwrite(tmp_path / "c.tif", volume, volumetric=True, tile=(16, 16, 16))
    with pytest.raises(InputError, match="a volume of depth 16 in one page"):
        read_cube(tmp_path / "c.tif")


def test_missing_entries_by_the_words_of_products(tmp_path):
    """As NEON's mosaics name them, in groups of their own."""
    values = RNG.integers(1, 999, SHAPE[::-1]).astype(np.int16)
    values[1, 2, 3] = -9999
    with h5py.File(tmp_path / "a.h5", "w") as file:
        stored = file.create_dataset("SITE/Reflectance/Reflectance_Data", data=values)
        stored.attrs["Data_Ignore_Value"] = -9999.0
        file["SITE/Reflectance/Metadata/Spectral_Data/Wavelength"] = WAVES
    cube = read_cube(tmp_path / "a.h5")
    np.testing.assert_array_equal(cube.wavelengths, WAVES)
    assert (~cube.valid()).sum() == 1
    assert not cube.valid()[3, 1, 2]


def test_arrays_whose_pages_are_rows_are_told(tmp_path):
    """tifffile writes (rows, columns, bands) so, and nothing in the file says it."""
    data = RNG.integers(0, 99, (30, 20, 6)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data)
    cube = read_cube(tmp_path / "a.tif")
    assert "30 pages" in cube.note
    assert "give --band-axis 2" in cube.note
    cube = read_cube(tmp_path / "a.tif", band_axis=2)
    np.testing.assert_array_equal(cube.values, data.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "b.tif", data.transpose(2, 0, 1), photometric="minisblack")
    assert read_cube(tmp_path / "b.tif").note == ""
