"""HEIC, AVIF and cameras' raw files, whose pixels are known by construction."""

import base64
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from helpers.commands import restobox
from helpers.profiles import wide_profile
from PIL import Image

from restoration.io.images import Photo, read_image, write_image
from restoration.io.pictures.gamut import view_of
from restoration.io.pictures.notes import Notes
from solvers.inputs.errors import InputError

SIZE = (48, 64)
GREY = np.linspace(0, 1, SIZE[1])
COLOURS = np.stack(
    [
        np.tile(GREY, (SIZE[0], 1)),
        np.tile(GREY[::-1], (SIZE[0], 1)),
        np.tile(np.linspace(0, 1, SIZE[0])[:, None], (1, SIZE[1])),
    ]
)
CODES = np.rint(255 * COLOURS).astype(np.uint8).transpose(1, 2, 0)


def heic(path, mode="RGB", pixels=CODES, **options):
    heif = pytest.importorskip("pillow_heif")
    height, width = pixels.shape[:2]
    file = heif.from_bytes(mode=mode, size=(width, height), data=pixels.tobytes())
    file.save(path, quality=-1, chroma=444, **options)
    return path


def test_heic_of_8_bits(tmp_path):
    photo = read_image(heic(tmp_path / "a.heic"))
    np.testing.assert_allclose(photo.pixels, CODES.transpose(2, 0, 1) / 255, atol=1.5 / 255)
    assert (photo.bits, photo.notes.icc) == (8, None)
    shown = np.dstack([CODES, CODES[..., 0]])
    photo = read_image(heic(tmp_path / "b.heic", "RGBA", shown))
    np.testing.assert_allclose(photo.alpha, CODES[..., 0] / 255, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB;16", "L;16"])
def test_heic_of_10_bits(tmp_path, mode):
    """White is the largest number of the file's depth, and the low bits count."""
    values = COLOURS.transpose(1, 2, 0) if mode == "RGB;16" else COLOURS[0][..., None]
    codes = np.rint(65535 * values).astype(np.uint16)
    photo = read_image(heic(tmp_path / "a.heic", mode, codes))
    assert photo.bits == 16
    np.testing.assert_allclose(photo.pixels, values.transpose(2, 0, 1), atol=2.1 / 1023)
    assert len(np.unique(np.rint(1023 * photo.pixels[0, 0]))) > 60
    assert np.rint(photo.pixels * 1023).max() == 1023


# 8 x 8 greys of 10 bits, 3 + 16 k, without loss
DEEP_AVIF = (
    "c-muNV30{GsVqn=%S>Yc0uY^>nP!-qnF!*)%uOvxWPkw0jFg-rD4U@mGr5ET4e%9YmgIt2j6f`xnUkLk;<$kLj1W;q"
    "ULb7_#2T5Id1-L9Qb0~B6O@-&W?<-?pOX)^D<iX@r~pWNW)>vp18I@W;(}DDeH>5>w6`J?teFc)@FbQQIyW-JfCPk-"
    "^K**wl5;8;m_V=rC?uX)kPGt>&{-^uOwBAnrhRToVu=s~7pnxv{^S579RY@R?z7)_>(xF!+rl$pZI0WgO{-bd_BMU%"
    "El}S!@7yfg-tu)OYqlKm{U^Nu0EWdxD*"
)


@pytest.mark.parametrize("package", [True, False])
def test_avif_of_ten_bits(tmp_path, monkeypatch, package):
    """All of them, or, without the package that reads them, the high eight and a line that says
    so.
    """
    (tmp_path / "a.avif").write_bytes(zlib.decompress(base64.b85decode(DEEP_AVIF)))
    wanted = (3 + 16 * np.arange(64).reshape(8, 8)) / 1023
    if package:
        pytest.importorskip("imagecodecs")
    else:
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    photo = read_image(tmp_path / "a.avif")
    assert photo.bits == (16 if package else 8)
    off = np.abs(photo.pixels[0] - wanted).max()
    assert off < 1e-6 if package else 1e-4 < off < 0.5 / 255 + 1e-6
    assert ("10 bits, of which 8 are read" in photo.notes.lost) != package


# 8 x 8 colours of 12 bits, 84 + 21 k, without loss
DEEP_JP2 = (
    "c-s5#|38pHp8*6opcn>F`OMsmj1crch=B(vz{tqJ!otA#KZb$DA>n@tgDL}~b5UwyNotBhQl)}_L28~?fUCPgS!z*n"
    "W`3T6k)ElZ$^QuqTwv2C12s-Q|1?A3j+5%v2M10)oKe}}!E%P9MqBMldfQ~X($sg)`Gptw{*`wx=8j8d(h{9@`tQM0"
    "^OENVJ`}#J%ck*!K})Nl!MmAliud%#M`pN{?%U?&_^3=~jd{HJ+0Qli%@5cWF^Dk4EUMi$fq|Km<0_Yghc`$}Fdzg)"
    "?Eg&wWzSGb"
)


def test_jpeg_2000_of_twelve_bits_in_colour(tmp_path, monkeypatch):
    """Pillow would make its white black."""
    (tmp_path / "a.j2k").write_bytes(zlib.decompress(base64.b85decode(DEEP_JP2)))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "imagecodecs", None)
        with pytest.raises(InputError, match=r"JPEG 2000 of 12 bits in colour, .*restobox\[tiff\]"):
            read_image(tmp_path / "a.j2k")
    pytest.importorskip("imagecodecs")
    photo = read_image(tmp_path / "a.j2k")
    wanted = (84 + 21 * np.arange(192)).reshape(8, 8, 3).transpose(2, 0, 1) / 4095
    np.testing.assert_allclose(photo.pixels, wanted, atol=1e-6)
    assert photo.bits == 16


def test_jpeg_2000_of_deep_greys(tmp_path):
    codes = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(codes).save(tmp_path / "a.jp2", irreversible=False)
    photo = read_image(tmp_path / "a.jp2")
    np.testing.assert_allclose(photo.pixels[0], codes / 65535, atol=1e-6)
    assert photo.bits == 16


def test_profiles_of_jpeg_2000(tmp_path):
    """Which Pillow doesn't give."""
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.jp2")
    data, icc = (tmp_path / "a.jp2").read_bytes(), wide_profile("Display P3")
    box = data.index(b"colr") - 4
    new = (11 + len(icc)).to_bytes(4, "big") + b"colr\2\0\0" + icc
    changed = data[:box] + new + data[box + 15 :]  # in place of the one that says sRGB
    head = changed.index(b"jp2h") - 4
    size = int.from_bytes(changed[head : head + 4], "big") + len(new) - 15
    (tmp_path / "b.jp2").write_bytes(changed[:head] + size.to_bytes(4, "big") + changed[head + 4 :])
    assert read_image(tmp_path / "a.jp2").notes.icc is None
    assert read_image(tmp_path / "b.jp2").notes.icc == icc


def test_lines_say_what_is_lost(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    (tmp_path / "a.avif").write_bytes(zlib.decompress(base64.b85decode(DEEP_AVIF)))
    run = restobox(
        "restore", "denoise", tmp_path / "a.avif", "-o", tmp_path / "a.png", "--sigma", 0.01
    )
    assert run.returncode == 0
    assert "10 bits, of which 8 are read without a package" in run.stderr
    Image.fromarray(np.full((16, 16), 3000, np.uint16)).save(tmp_path / "deep.png")
    run = restobox(
        "restore", "denoise", tmp_path / "deep.png", "-o", tmp_path / "a.jpg", "--sigma", 0.01
    )
    assert ".jpg holds 8 bits where the picture has 16 bits; .tif keeps all" in run.stderr
    tifffile.imwrite(tmp_path / "f.tif", np.full((16, 16), 0.5, np.float32))
    run = restobox(
        "restore", "denoise", tmp_path / "f.tif", "-o", tmp_path / "a.png", "--sigma", 0.01
    )
    assert run.stderr.strip() == ".png holds 16 bits where the picture has floats; .tif keeps all"


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_what_colours_mean_is_stated_by_numbers(tmp_path, suffix):
    """High dynamic range is refused; Display P3 is restored in sRGB and comes back."""
    path = tmp_path / f"a{suffix}"

    def state(primaries, curve):
        """In the box that says so, as both containers have it."""
        if suffix == ".heic":
            heic(path)
        else:
            Image.fromarray(CODES).save(path, quality=100, subsampling="4:4:4")
        content = bytearray(path.read_bytes())
        at = content.index(b"colrnclx") + 8
        content[at : at + 4] = primaries.to_bytes(2, "big") + curve.to_bytes(2, "big")
        path.write_bytes(content)
        return path

    for primaries, curve in ((1, 13), (1, 1), (2, 2)):
        assert read_image(state(primaries, curve)).notes.icc is None
    for curve, name in ((16, "PQ"), (18, "HLG")):
        with pytest.raises(InputError, match=f"high dynamic range .{name}."):
            read_image(state(9, curve))
    photo = read_image(state(12, 13))
    view = view_of(photo.pixels, photo.notes.icc)
    # greens of Display P3 that sRGB hasn't
    assert np.abs(view.shown - photo.pixels).max() > 0.02
    np.testing.assert_allclose(view.back(view.shown, None), photo.pixels, atol=1e-4)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_avif_is_turned_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(CODES).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(CODES).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4", exif=exif)
    wanted, found = (read_image(tmp_path / name).pixels for name in ("a.png", "a.avif"))
    np.testing.assert_allclose(found, wanted, atol=5 / 255)


def test_several_pictures_are_refused(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    file = heif.from_pillow(Image.fromarray(CODES))
    file.add_from_pillow(Image.fromarray(CODES[::-1]))
    file.save(tmp_path / "two.heic")
    frames = [Image.fromarray(CODES[::-1])]
    Image.fromarray(CODES).save(tmp_path / "two.avif", save_all=True, append_images=frames)
    for name in ("two.heic", "two.avif"):
        with pytest.raises(InputError, match="holds 2 pictures"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_what_cameras_say_of_their_colours_is_kept(tmp_path, suffix):
    """Adobe RGB by EXIF alone, in a directory within a directory; and what lies beside it."""
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: 65535, 0xA005: {1: "R03", 2: b"0100"}, 0x829A: (1, 250)})
    exif.get_ifd(0x8769).update({0xA002: 64, 0xA003: 48})
    exif.get_ifd(0x8825).update({1: "N", 2: (10.0, 20.0, 30.0)})
    for space in (65535, 1):
        exif.get_ifd(0x8769)[0xA001] = space
        Image.fromarray(CODES).save(tmp_path / "a.jpg", exif=exif, quality=95)
        photo = read_image(tmp_path / "a.jpg")
        write_image(tmp_path / f"b{suffix}", photo)
        with Image.open(tmp_path / f"b{suffix}") as image:
            found = image.getexif()
            assert found.get_ifd(0xA005) == {1: "R03", 2: b"0100"}
            assert found.get_ifd(0x8825) == {1: "N", 2: (10.0, 20.0, 30.0)}
            assert found.get_ifd(0x8769)[0x829A] == (1, 250)
            assert (image.info.get("icc_profile") is None) == (space == 1)
        larger = replace(photo, pixels=photo.pixels.repeat(2, 1).repeat(3, 2))
        write_image(tmp_path / f"c{suffix}", larger)
        with Image.open(tmp_path / f"c{suffix}") as image:
            told = image.getexif().get_ifd(0x8769)
            assert (told[0xA002], told[0xA003]) == image.size == (192, 96)
            assert image.getexif().get_ifd(0xA005)[1] == "R03"
        view = view_of(photo.pixels, photo.notes.icc)
        assert (np.abs(view.shown - photo.pixels).max() > 0.02) == (space == 65535)


def test_comments_of_jpegs_are_kept(tmp_path):
    Image.fromarray(CODES).save(tmp_path / "a.jpg", comment="a lake, näher")
    for name in ("b.jpg", "b.png", "c.jpg"):
        write_image(tmp_path / name, read_image(tmp_path / ("a.jpg" if name < "c" else "b.png")))
        with Image.open(tmp_path / name) as image:
            found = image.info["comment"].decode() if name != "b.png" else image.text["Comment"]
        assert found == "a lake, näher"


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiffs_hold_all_of_exif(tmp_path, bits, channels):
    """Directories behind the pixels, also of kinds that Pillow doesn't read."""
    exif = Image.Exif()
    exif[271] = "Maker"
    exif.get_ifd(0x8769).update({0xA001: 1, 0xA005: {1: "R98"}, 0x829A: (1, 250)})
    exif.get_ifd(0x8825).update({1: "N", 2: (10.0, 20.0, 30.0)})
    shown = COLOURS[0].astype(np.float32)
    for alpha in (None, shown):
        pixels = COLOURS[:channels].astype(np.float32)
        photo = Photo(pixels, alpha, bits, Notes(exif=exif.tobytes()))
        write_image(tmp_path / "a.tif", photo)
        read = read_image(tmp_path / "a.tif")
        np.testing.assert_allclose(read.pixels, pixels, atol=0.6 / 255)
        found = Image.Exif()
        found.load(read.notes.exif)
        assert found[271] == "Maker"
        assert found.get_ifd(0x8769)[0x829A] == (1, 250)
        assert found.get_ifd(0xA005) == {1: "R98"}
        assert found.get_ifd(0x8825)[2] == (10.0, 20.0, 30.0)
    # and of those that other programs write
    kind = {1: "L", 3: "RGB"}[channels]
    Image.fromarray(CODES).convert(kind).save(tmp_path / "b.tif", exif=exif.tobytes())
    found = Image.Exif()
    found.load(read_image(tmp_path / "b.tif").notes.exif)
    assert found.get_ifd(0x8769)[0x829A] == (1, 250)


# -- cameras ---------------------------------------------------------------------------------------

# from XYZ to linear sRGB, which this camera sees
MATRIX = [3.2404542, -1.5371385, -0.4985314, -0.969266, 1.8760108, 0.041556]
MATRIX += [0.0556434, -0.2040259, 1.0572252]


def dng(path, light, orientation=1, neutral=(1, 1, 1), black=512, white=16383):
    """A raw file of red, green, green and blue pixels that saw ``light (H, W, 3)``."""
    sensor = np.empty(light.shape[:2])
    for (y, x), c in {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 2}.items():
        sensor[y::2, x::2] = light[y::2, x::2, c] * neutral[c]

    def shares(numbers):
        return tuple(n for v in numbers for n in (round(v * 10000), 10000))

    tags = [
        *((50706, 1, 4, (1, 4, 0, 0)), (50707, 1, 4, (1, 1, 0, 0)), (50708, 2, 5, "Test\0")),
        *((33421, 3, 2, (2, 2)), (33422, 1, 4, (0, 1, 1, 2)), (50710, 1, 3, (0, 1, 2))),
        *((50714, 3, 1, black), (50717, 3, 1, white), (50721, 10, 9, shares(MATRIX))),
        *((50778, 3, 1, 21), (50728, 5, 3, shares(neutral)), (271, 2, 6, "Maker\0")),
        *((274, 3, 1, orientation), (306, 2, 20, "2024:01:02 03:04:05\0")),
    ]
    codes = np.rint(black + sensor * (white - black)).astype(np.uint16)
    extra = [(*tag, True) for tag in tags]
    tifffile.imwrite(path, codes, photometric="cfa", metadata=None, extratags=extra, software=False)
    return path


@pytest.mark.parametrize("neutral", [(1, 1, 1), (0.5, 1, 0.8)])
def test_raw_files_are_developed_in_srgb(tmp_path, neutral):
    """By the camera's black, white and white balance, on sRGB's curve and no brighter."""
    pytest.importorskip("rawpy")
    light = np.empty((64, 96, 3))
    light[:, :48], light[:, 48:], light[:4] = (0.1, 0.3, 0.6), (0.5, 0.25, 0.05), 0.85
    photo = read_image(dng(tmp_path / "a.dng", light, neutral=neutral))
    curve = np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert (photo.pixels.shape, photo.bits) == ((3, 64, 96), 16)
    for y, x in ((32, 20), (50, 70), (2, 30)):
        np.testing.assert_allclose(photo.pixels[:, y, x], curve[y, x], atol=0.002)
    exif = Image.Exif()
    exif.load(photo.notes.exif)
    assert (exif[271], exif[306], exif.get(274)) == ("Maker", "2024:01:02 03:04:05", None)
    renamed = (tmp_path / "a.dng").rename(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(renamed).pixels, photo.pixels)
    turned = read_image(dng(tmp_path / "b.dng", light, 6, neutral)).pixels
    np.testing.assert_allclose(turned, np.rot90(photo.pixels, -1, (1, 2)), atol=1e-6)
