"""Masks of valid pixels are no bands: what they leave out is no data, and stays. What a file holds
beside its cube, and an output can't keep, is said.
"""

import json

import numpy as np
import pytest
import tifffile
from helpers import commands

from restoration.io.containers.tiff import opened_tiff
from restoration.io.cubes import Cube, check_cube_writable, read_cube, write_cube
from restoration.io.cubes.georeference import tags_of
from restoration.io.cubes.outputs import lost
from restoration.io.images import Photo, read_image, write_image
from restoration.io.scenes import open_scene
from solvers.inputs.errors import InputError

RNG = np.random.default_rng(0)
SHAPE = (4, 20, 30)
VALUES = RNG.integers(1, 1000, SHAPE).astype(np.uint16)
VALID = np.ones(SHAPE[1:], bool)
VALID[3:6, 4:9] = False
PLACE = "UTM, 1.000, 1.000, 500000.0, 4400000.0, 30.0, 30.0, 33, North, WGS-84"
UTM = {"map info": f"{{{PLACE}}}"}


def gdal(path, values, mask, inside=True, **options):
    """A GeoTIFF with a mask as GDAL writes it, in the file or beside it."""
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.Affine(30, 0, 500000, 0, -30, 4400000)
    size = {"count": len(values), "height": values.shape[1], "width": values.shape[2]}
    size |= {"dtype": values.dtype.name, "crs": "EPSG:32633", "transform": place}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside),
        rasterio.open(path, "w", driver="GTiff", **size, **options) as file,
    ):
        file.write(values)
        file.write_mask(mask)
        file.build_overviews([2])
    return path


def nothing(cube):
    """Restored values that are all 0."""
    return lambda rows: 0 * cube.values[:, rows]


@pytest.mark.parametrize("inside", [True, False])
def test_masks_of_gdal(tmp_path, inside):
    rasterio = pytest.importorskip("rasterio")
    path = gdal(tmp_path / "a.tif", VALUES, VALID, inside)
    assert (tmp_path / "a.tif.msk").exists() != inside
    cube = read_cube(path)
    np.testing.assert_array_equal(cube.values, VALUES)
    np.testing.assert_array_equal(cube.valid(), np.broadcast_to(VALID, SHAPE))
    np.testing.assert_array_equal(cube.valid(slice(4, 7))[0], VALID[4:7])
    for name in ("o.tif", "o.h5", "o.npz", "o.mat", "o.nc"):
        write_cube(tmp_path / name, cube, nothing(cube))
        again = read_cube(tmp_path / name)
        np.testing.assert_array_equal(again.valid(), cube.valid())
        np.testing.assert_array_equal(again.values, np.where(VALID, 0, VALUES))
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.count == 4
        np.testing.assert_array_equal(file.read_masks(1) > 0, VALID)
    write_cube(tmp_path / "o.hdr", cube, nothing(cube))
    np.testing.assert_array_equal(read_cube(tmp_path / "o.hdr").values, np.where(VALID, 0, VALUES))
    assert lost("o.hdr", cube) == (
        "o.hdr can't hold the cube's mask of valid pixels; .tif keeps more"
    )


def test_masks_of_pages_and_bands(tmp_path):
    """Pages as bands with a mask behind them; a mask of its own for each band; ENVI's beside the
    raw file.
    """
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(VALUES, photometric="minisblack")
        file.write(VALID, photometric="mask", subfiletype=4)
    cube = read_cube(tmp_path / "a.tif")
    np.testing.assert_array_equal(cube.values, VALUES)
    np.testing.assert_array_equal(cube.valid()[2], VALID)
    each = np.stack([VALID, ~VALID, VALID, VALID])
    tifffile.imwrite(tmp_path / "b.tif.msk", each.astype(np.uint8) * 255, planarconfig="separate")
    tifffile.imwrite(tmp_path / "b.tif", VALUES, photometric="minisblack")
    cube = read_cube(tmp_path / "b.tif")
    np.testing.assert_array_equal(cube.valid(), each)
    for name in ("o.tif", "o.h5", "o.npz", "o.mat", "o.nc"):  # and others may know one of all
        assert lost(tmp_path / name, cube) == ""
        write_cube(tmp_path / name, cube, nothing(cube))
        again = read_cube(tmp_path / name, band_axis=cube.axis)
        np.testing.assert_array_equal(again.valid(), each)
        np.testing.assert_array_equal(again.values, np.where(each, 0, VALUES))
    with opened_tiff(tmp_path / "o.tif") as file:
        masks = [page.asarray() for page in file.pages if page.is_mask]
    np.testing.assert_array_equal(masks, [VALID | ~VALID, *each])
    assert "mask of valid pixels" in lost(tmp_path / "o.hdr", cube)
    cube = Cube(VALUES)
    write_cube(tmp_path / "c.hdr", cube, lambda rows: VALUES[:, rows])
    tifffile.imwrite(tmp_path / "c.raw.msk", VALID.astype(np.uint8))
    np.testing.assert_array_equal(read_cube(tmp_path / "c.hdr").valid()[0], VALID)


def test_a_folder_of_bands_with_masks(tmp_path):
    for k in range(3):
        tifffile.imwrite(tmp_path / f"S_B{k + 1:03d}_L1T.TIF", VALUES[k])
    tifffile.imwrite(tmp_path / "S_B002_L1T.TIF.msk", VALID.astype(np.uint8))
    valid = read_cube(tmp_path).valid()
    np.testing.assert_array_equal(valid[1], VALID)
    assert valid[[0, 2]].all()


def test_masks_that_dont_fit_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, VALUES, photometric="minisblack")
    for mask, words in (
        (np.ones((5, 5)), "mask of 5 x 5 pixels for a picture of 30 x 20"),
        (np.zeros(SHAPE[1:]), "no pixel is valid"),
        (np.stack([VALID, ~VALID]), r"mask of valid pixels of shape \(2, 20, 30\)"),
    ):
        tifffile.imwrite(f"{path}.msk", mask.astype(np.uint8), planarconfig="separate")
        with pytest.raises(InputError, match=words):
            read_cube(path)
    (tmp_path / "a.tif.msk").write_bytes(b"x")
    with pytest.raises(InputError, match="can't be read as the mask of valid pixels"):
        read_cube(path)
    tifffile.imwrite(f"{path}.msk", np.ones(SHAPE[1:], np.uint8))
    assert read_cube(path).mask is None


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masked_pictures_are_transparent_there(tmp_path, inside, dtype):
    colours = (VALUES[:3] % 256).astype(dtype) * (257 if dtype == np.uint16 else 1)
    path = gdal(tmp_path / "a.tif", colours.astype(dtype), VALID, inside, photometric="rgb")
    photo = read_image(path)
    np.testing.assert_allclose(photo.pixels, (VALUES[:3] % 256) / 255, atol=1e-6)
    np.testing.assert_array_equal(photo.alpha, VALID)
    for name in ("o.tif", "o.png"):
        write_image(tmp_path / name, photo)
        np.testing.assert_array_equal(read_image(tmp_path / name).alpha, VALID)


def test_dicom_that_begins_like_a_tiff():
    """Both kinds in one file, by the preamble that DICOM leaves free."""
    data = pytest.importorskip("pydicom.data")
    path = data.get_testdata_file("MR_small.dcm", download=False)
    with open(path, "rb") as file:
        assert file.read(4) == b"II*\0"
    assert read_image(path).pixels.shape == (1, 64, 64)


def test_pictures_behind_their_thumbnails(tmp_path):
    for dtype in (np.uint8, np.uint16):
        large = (VALUES[0] % 256).astype(dtype)
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(np.zeros((5, 6), dtype), subfiletype=1)
            file.write(large)
        found = read_image(tmp_path / "a.tif").pixels[0]
        np.testing.assert_allclose(found, large / np.iinfo(dtype).max, atol=1e-6)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for _ in range(2):
            file.write(VALUES[0].astype(np.uint8))
    with pytest.raises(InputError, match="2 pages"):
        read_image(tmp_path / "b.tif")


def test_scenes_refuse_masks(tmp_path, monkeypatch):
    monkeypatch.setattr("restoration.io.scenes.files.MAX_PIXELS", 10)
    for inside in (True, False):
        path = gdal(tmp_path / "a.tif", VALUES[:1], VALID, inside)
        with pytest.raises(InputError, match="mask of valid pixels, which scenes don't take"):
            open_scene(path)


# -- what is left out is said ----------------------------------------------------------------------


def envi(folder, extra=b"", **fields):
    (folder / "a.raw").write_bytes(VALUES.astype("<u2").tobytes() + extra)
    says = {"samples": 30, "lines": 20, "bands": 4, "data type": 12, "interleave": "bsq"} | fields
    text = "".join(f"{name} = {value}\n" for name, value in says.items())
    (folder / "a.hdr").write_text(f"ENVI\n{text}", encoding="utf-8")
    return folder / "a.hdr"


@pytest.mark.parametrize("extra", [1, 512, 2 * VALUES.nbytes - 1])
def test_bytes_after_the_cube(tmp_path, extra):
    cube = read_cube(envi(tmp_path, bytes(extra)))
    np.testing.assert_array_equal(cube.values, VALUES)
    assert f"a.raw has {extra} bytes after the cube" in cube.note
    assert open_scene(tmp_path / "a.hdr").note == cube.note


@pytest.mark.parametrize("extra", [-1, VALUES.nbytes, 3 * VALUES.nbytes])
def test_raw_files_of_other_cubes_are_refused(tmp_path, extra):
    """Cut short; or as if each number had twice the bytes."""
    path = envi(tmp_path, bytes(max(extra, 0)))
    if extra < 0:
        (tmp_path / "a.raw").write_bytes((tmp_path / "a.raw").read_bytes()[:extra])
    with pytest.raises(InputError, match=f"but a.raw has {VALUES.nbytes + extra}"):
        read_cube(path)


def test_bytes_between_the_lines_are_refused(tmp_path):
    envi(tmp_path, **{"major frame offsets": "{0, 0}"})
    assert read_cube(tmp_path / "a.hdr").note == ""
    with pytest.raises(InputError, match="major frame offsets"):
        read_cube(envi(tmp_path, bytes(32), **{"major frame offsets": "{8, 0}"}))


def test_the_command_says_what_is_left_out(tmp_path):
    pytest.importorskip("rasterio")
    path = envi(tmp_path, bytes(77), **UTM)
    options = ("--symmetries", "1", "--sigma", "5", "--rank", "2", "--json")
    found = commands.restobox("restore", "hsi", path, "-o", tmp_path / "o.npz", *options)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("\n") == 1
    assert "77 bytes after the cube" in found.stderr
    assert "can't hold the cube's place on the ground; .hdr keeps more" in found.stderr
    assert json.loads(found.stdout)["note"] == found.stderr.strip()


def test_python_warns_of_what_is_left_out(tmp_path):
    import restobox

    path = envi(tmp_path, bytes(77))
    with pytest.warns(UserWarning, match="77 bytes after the cube"):
        found = restobox.hsi(symmetries=1)(path, sigma=5.0, rank=2)
    assert found.rows().shape == read_cube(path).values.shape


def test_places_go_to_hdf5(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    cube = read_cube(envi(tmp_path, **UTM))
    for name in ("o.h5", "o.he5"):
        assert lost(tmp_path / name, cube) == ""
        write_cube(tmp_path / name, cube, nothing(cube))
        again = read_cube(tmp_path / name)
        write_cube(tmp_path / "b.tif", again, nothing(again))
        with rasterio.open(tmp_path / "b.tif") as file:
            assert file.crs.to_epsg() == 32633
            assert file.transform.to_gdal() == (500000, 30, 0, 4400000, 0, -30)


def test_what_outputs_cant_hold(tmp_path):
    pytest.importorskip("rasterio")
    waves, bad = np.arange(4.0) + 400, np.arange(4) == 1
    cube = Cube(VALUES, waves, 0.0, bad=bad, geo=tags_of({"map info": PLACE}))
    names = "place on the ground, wavelengths, list of bad bands and no-data value"
    assert lost("o.npy", cube) == f"o.npy can't hold the cube's {names}; .tif keeps more"
    assert "place on the ground;" in lost("o.mat", cube)
    assert [lost(f"o.{name}", cube) for name in ("tif", "nc", "h5", "hdr")] == [""] * 4
    words = '<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.1</Item></GDALMetadata>'
    assert lost("o.tif", Cube(VALUES, words=words)) == ""
    told = "can't hold the cube's scales and names of bands"
    assert lost("o.nc", Cube(VALUES, words=words)) == f"o.nc {told}; .tif keeps more"
    scaled = Cube(VALUES, header={"reflectance scale factor": "10000", "fwhm": "1, 1, 1, 1"})
    told = "can't hold the cube's reflectance scale factor and fwhm; .hdr keeps more"
    assert lost("o.tif", scaled) == f"o.tif {told}"
    assert lost("o.hdr", scaled) == ""
    nowhere = Cube(VALUES, header={"map info": "Nowhere, 1"})
    assert "place on the ground" in lost("o.h5", nowhere)
    with pytest.raises(InputError, match="names no known projection"):
        check_cube_writable(tmp_path / "o.nc", nowhere)


@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_a_band_of_opacity_is_a_mask(tmp_path, interleave):
    """As gdalwarp -dstalpha adds one."""
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.Affine(30, 0, 500000, 0, -30, 4400000)
    size = {"count": 5, "height": 20, "width": 30, "dtype": "uint16", "interleave": interleave}
    size |= {"crs": "EPSG:32633", "transform": place}
    kinds = rasterio.enums.ColorInterp
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **size) as file:
        file.colorinterp = [kinds.gray, *[kinds.undefined] * 3, kinds.alpha]
        file.write(np.concatenate([VALUES, 65535 * VALID[None].astype(np.uint16)]))
    cube = read_cube(tmp_path / "a.tif")
    np.testing.assert_array_equal(cube.values, VALUES)
    np.testing.assert_array_equal(cube.valid()[3], VALID)
    assert "band 5 of" in cube.note
    write_cube(tmp_path / "b.tif", cube, nothing(cube))
    with rasterio.open(tmp_path / "b.tif") as file:
        assert file.count == 4
        np.testing.assert_array_equal(file.read_masks(2) > 0, VALID)


# -- pictures with a place -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("point", [False, True])
def test_pictures_keep_their_place(tmp_path, dtype, point):
    """Enlarged ones cover the same ground; what the file counts as no data is transparent."""
    rasterio = pytest.importorskip("rasterio")
    codes = np.clip(VALUES[:3], 1, 255).astype(dtype)
    codes[:, 2, 3:7] = 0
    codes[0, 5, 5] = 0  # black in one colour alone
    size = {"count": 3, "height": 20, "width": 30, "dtype": codes.dtype.name, "nodata": 0}
    place = rasterio.Affine(30, 0, 500000, 0, -30, 4400000)
    size |= {"crs": "EPSG:32633", "transform": place, "photometric": "rgb"}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **size) as file:
        file.write(codes)
        if point:
            file.update_tags(AREA_OR_POINT="Point")
    photo = read_image(tmp_path / "a.tif")
    assert ((photo.alpha == 0).sum(), photo.alpha[2, 3]) == (4, 0)
    larger = photo.pixels.repeat(2, 1).repeat(3, 2)
    for name, pixels in (("b.tif", photo.pixels), ("c.tif", larger)):
        write_image(tmp_path / name, Photo(pixels, bits=photo.bits, notes=photo.notes))
        with rasterio.open(tmp_path / name) as file:
            assert file.crs.to_epsg() == 32633
            np.testing.assert_allclose(file.bounds, (500000, 4399400, 500900, 4400000))
            assert file.tags().get("AREA_OR_POINT") == ("Point" if point else "Area")
    write_image(tmp_path / "d.png", photo)
    assert read_image(tmp_path / "d.png").notes.place is None


def test_models_of_cameras_stay_in_tiffs(tmp_path):
    """Rational polynomials, as satellites' pictures have in place of a grid."""
    rasterio = pytest.importorskip("rasterio")
    numbers = {"line_off": 9.5, "samp_off": 14.5, "lat_off": 40.0, "long_off": 15.0}
    numbers |= {"height_off": 100.0, "line_scale": 10.0, "samp_scale": 15.0, "lat_scale": 0.1}
    numbers |= {"long_scale": 0.1, "height_scale": 500.0, "err_bias": 0.0, "err_rand": 0.0}
    for name in ("line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff"):
        numbers[name] = [1.0, *[0.5] * 19]
    model = rasterio.rpc.RPC(**numbers)
    size = {"count": 4, "height": 20, "width": 30, "dtype": "uint16", "rpcs": model}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **size) as file:
        file.write(VALUES)
    cube = read_cube(tmp_path / "a.tif")
    write_cube(tmp_path / "b.tif", cube, nothing(cube))
    with rasterio.open(tmp_path / "a.tif") as source, rasterio.open(tmp_path / "b.tif") as file:
        assert file.rpcs.to_gdal() == source.rpcs.to_gdal()
    for name in ("o.hdr", "o.nc", "o.h5"):
        assert "place on the ground" in lost(name, cube)
    with rasterio.open(tmp_path / "c.tif", "w", driver="GTiff", **size | {"count": 1}) as file:
        file.write(VALUES[:1])
    photo = read_image(tmp_path / "c.tif")
    larger = photo.pixels.repeat(2, 1).repeat(3, 2)
    write_image(tmp_path / "d.tif", Photo(larger, bits=16, notes=photo.notes))
    with rasterio.open(tmp_path / "d.tif") as file:
        found = file.rpcs
    assert (found.line_off, found.samp_off) == (19.5, 44.5)
    assert (found.line_scale, found.samp_scale) == (20, 45)


def test_a_place_that_is_left_out_is_said(tmp_path):
    path = gdal(tmp_path / "a.tif", VALUES[:1], VALID)
    for name in ("b.tif", "b.png"):
        options = ("--sigma", "0.05", "--json")
        found = commands.restobox("restore", "denoise", path, "-o", tmp_path / name, *options)
        assert found.returncode == 0, found.stderr
        assert ("left out the place on the ground" in found.stderr) == (name == "b.png")


def test_a_turned_grid_stays_turned(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.Affine(3, 1, 500000, 1, -3, 4400000)
    size = {"count": 1, "height": 20, "width": 30, "dtype": "uint16"}
    size |= {"crs": "EPSG:32633", "transform": place}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **size) as file:
        file.write(VALUES[:1])
    photo = read_image(tmp_path / "a.tif")
    larger = Photo(photo.pixels.repeat(2, 1).repeat(2, 2), bits=16, notes=photo.notes)
    write_image(tmp_path / "b.tif", larger)
    with rasterio.open(tmp_path / "b.tif") as file:
        np.testing.assert_allclose(file.transform[:6], (1.5, 0.5, 500000, 0.5, -1.5, 4400000))
