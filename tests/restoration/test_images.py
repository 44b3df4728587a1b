"""Image files: depths, channels, orientation, limits, damage."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from restoration.io.containers.tiff import lacks_codec
from restoration.io.images import Photo, read_image, read_mask, write_image

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_lossless_round_trip(tmp_path, suffix, bits, channels, alpha):
    codes = RNG.integers(0, 2**bits, size=(channels + alpha, 9, 7))
    values = (codes / (2**bits - 1)).astype(np.float32)
    photo = Photo(values[:channels], values[channels] if alpha else None, bits)
    write_image(tmp_path / f"a{suffix}", photo)
    back = read_image(tmp_path / f"a{suffix}")
    assert back.bits == bits
    np.testing.assert_array_equal(np.rint(back.pixels * (2**bits - 1)), codes[:channels])
    if alpha:
        np.testing.assert_array_equal(np.rint(back.alpha * (2**bits - 1)), codes[channels])
    else:
        assert back.alpha is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_any_size(tmp_path_factory, height, width, channels):
    path = tmp_path_factory.mktemp("sizes") / "x.png"
    pixels = np.linspace(0, 1, channels * height * width, dtype=np.float32).reshape(
        channels, height, width
    )
    write_image(path, Photo(pixels, bits=16))
    np.testing.assert_allclose(read_image(path).pixels, pixels, atol=1 / 65535)


def test_16_bit_png_is_read_by_others(tmp_path):
    codes = RNG.integers(0, 65536, size=(3, 5, 6))
    write_image(tmp_path / "x.png", Photo((codes / 65535).astype(np.float32), bits=16))
    with Image.open(tmp_path / "x.png") as image:
        image.verify()
    from torchvision.io import ImageReadMode, decode_image

    np.testing.assert_array_equal(
        decode_image(str(tmp_path / "x.png"), ImageReadMode.UNCHANGED).to(torch.int64).numpy(),
        codes,
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(tmp_path, orientation):
    from PIL import ImageOps

    pixels = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as image:
        want = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(
        np.rint(read_image(tmp_path / "x.png").pixels.transpose(1, 2, 0) * 255), want
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LA", "RGBA", "YCbCr"])
def test_modes(tmp_path, mode):
    image = Image.fromarray(RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    image.save(path)
    photo = read_image(path)
    assert photo.pixels.shape == (1 if mode in ("1", "L", "LA") else 3, 5, 4)
    assert (photo.alpha is not None) == (mode in ("LA", "RGBA"))
    want = np.asarray(image.convert("L" if photo.pixels.shape[0] == 1 else "RGB")).reshape(5, 4, -1)
    np.testing.assert_array_equal(np.rint(photo.pixels.transpose(1, 2, 0) * 255), want)


def test_masks(tmp_path):
    white = np.zeros((6, 8), np.uint8)
    white[1:3, 2:5] = 255
    Image.fromarray(white).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", 6, 8)
    np.testing.assert_array_equal(mask, (white == 0).astype(np.float32))
    with pytest.raises(ValueError, match="8 x 6 pixels but the image is 6 x 8"):
        read_mask(tmp_path / "m.png", 8, 6)
    Image.fromarray(np.full((6, 8), 255, np.uint8)).save(tmp_path / "all.png")
    with pytest.raises(ValueError, match="every pixel as missing"):
        read_mask(tmp_path / "all.png", 6, 8)
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "none.png")
    with pytest.raises(ValueError, match="nothing as missing"):
        read_mask(tmp_path / "none.png", 6, 8)


@pytest.mark.parametrize("layout", ["separate", "contig", "miniswhite", "lzw"])
def test_tiff_layouts(tmp_path, layout):
    codes = RNG.integers(0, 65536, (3, 6, 5)).astype(np.uint16)
    if layout == "miniswhite":
        tifffile.imwrite(tmp_path / "x.tif", 65535 - codes[0], photometric="miniswhite")
        codes = codes[:1]
    elif layout == "lzw":
        Image.fromarray(codes[0]).save(tmp_path / "x.tif", compression="tiff_lzw")
        codes = codes[:1]
    else:
        pixels = codes if layout == "separate" else codes.transpose(1, 2, 0)
        tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", planarconfig=layout)
    np.testing.assert_array_equal(np.rint(read_image(tmp_path / "x.tif").pixels * 65535), codes)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_greys_in_lzw_are_pillows(tmp_path, dtype):
    grey = (RNG.random((6, 5)) * (1 if dtype == np.float32 else 65535)).astype(dtype)
    Image.fromarray(grey).save(tmp_path / "x.tif", compression="tiff_lzw")
    white = 1 if dtype == np.float32 else 65535
    np.testing.assert_allclose(read_image(tmp_path / "x.tif").pixels[0], grey / white, atol=1e-6)


@pytest.mark.parametrize("error", [ValueError("requires the 'imagecodecs' package"), ImportError()])
def test_codecs_that_are_missing_are_named(tmp_path, error):
    """Also where tifffile looks for what only later versions of Python have."""
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((6, 5), np.uint16), compression="zlib")
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        said = lacks_codec("x.tif", file.pages.first, error)
        assert said == "x.tif: compression ADOBE_DEFLATE needs the package imagecodecs"
        assert lacks_codec("x.tif", file.pages.first, ValueError("corrupted")) == ""


def _deep_png() -> bytes:
    from restoration.io.images import _png16

    return _png16(RNG.integers(0, 65536, (16, 16, 3)).astype(np.uint16))


def damaged():
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    good = buffer.getvalue()
    yield "empty", b""
    yield "text", b"this is no picture"
    yield "cut", good[: len(good) // 2]
    yield "header only", good[:40]
    yield "noise inside", good[:60] + bytes(200) + good[260:]
    deep = _deep_png()
    place = (
        deep.index(b"IDAT")
        + 4
        + int.from_bytes(deep[deep.index(b"IDAT") - 4 : deep.index(b"IDAT")], "big")
    )
    yield "wrong checksum in 16 bits", deep[:place] + bytes([deep[place] ^ 1]) + deep[place + 1 :]
    yield "cut 16 bits", deep[: len(deep) // 2]
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, np.zeros((8, 8), np.uint16))
    yield "cut tiff", tiff.getvalue()[:60]


@pytest.mark.parametrize(
    ("name", "content"), damaged(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_damaged_files(tmp_path, name, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.png"):
        read_image(path)


def test_huge_pictures_are_refused_from_the_header(tmp_path):
    """A file of 100 bytes that claims 40 gigapixels must not be decoded."""
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match="megapixels"):
        read_image(tmp_path / "x.png")


def test_nothing_half_written(tmp_path, monkeypatch):
    photo = Photo(np.zeros((3, 4, 4), np.float32))
    write_image(tmp_path / "x.png", photo)
    before = (tmp_path / "x.png").read_bytes()

    write = Path.write_bytes

    def fail(path, content):
        write(path, content[: len(content) // 2])
        raise OSError("gone")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="gone"):
        write_image(tmp_path / "x.png", photo)
    assert (tmp_path / "x.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("x.bmp", ValueError),
        ("missing/x.png", FileNotFoundError),
        ("folder.png", IsADirectoryError),
    ],
)
def test_bad_outputs(tmp_path, name, error):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(error):
        write_image(tmp_path / name, Photo(np.zeros((3, 4, 4), np.float32)))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "no.png")
