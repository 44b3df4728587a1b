"""Picture files as people have them: every container and depth is read right, and what a file says
beside its pixels comes back.
"""

import functools
import io
import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
from helpers.commands import restobox
from helpers.data import smooth_picture
from helpers.profiles import GAMUTS, wide_profile
from PIL import (
    Image,
    ImageCms,
    ImageColor,
    ImageDraw,
    ImageFilter,
    ImageFont,
    ImageOps,
    PngImagePlugin,
)
from scipy.ndimage import gaussian_filter

from restoration.io.images import Photo, read_image, read_mask, write_image
from restoration.io.pictures.gamut import gamut_of
from restoration.io.pictures.masks import feathered, grown, looks_inverse
from restoration.io.pictures.notes import Notes
from restoration.photo.defects import found_defects
from solvers.inputs.errors import InputError

RNG = np.random.default_rng(0)
CORNERS = np.zeros((24, 40, 3), np.uint8)
CORNERS[:8, :8] = [255, 0, 0]
CORNERS[:, -4:] = [0, 255, 0]
EXACT = {".png", ".tif", ".bmp"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_orientation_is_applied_once(tmp_path, suffix, orientation):
    path, exif = tmp_path / f"o{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(CORNERS).save(path, exif=exif)
    right = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    got = read_image(path).pixels.transpose(1, 2, 0)
    assert got.shape == right.shape
    assert np.abs(got - right / 255).max() < (1e-6 if suffix in EXACT else 0.1)
    if orientation >= 5:
        assert got.shape == (40, 24, 3)
    # and the output doesn't turn it again
    write_image(tmp_path / "back.png", read_image(path))
    assert Image.open(tmp_path / "back.png").getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_orientation_of_tiffs(tmp_path, dtype, orientation):
    white = 1 if dtype is np.float32 else np.iinfo(dtype).max
    array = (CORNERS / 255 * white).astype(dtype)
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "o.tif", array, photometric="rgb", extratags=tags)
    image = Image.fromarray(CORNERS)
    image.getexif()[0x0112] = orientation
    right = np.asarray(ImageOps.exif_transpose(image)) / 255
    got = read_image(tmp_path / "o.tif").pixels.transpose(1, 2, 0)
    np.testing.assert_allclose(got, right, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_orientation_of_plain_tiffs(tmp_path, mode, orientation):
    """Which Pillow maps into memory: it took the sides of those that are turned by a quarter for
    each other.
    """
    grey = CORNERS[..., 0].astype(np.uint16) * 257
    image = Image.fromarray(grey) if mode == "I;16" else Image.fromarray(CORNERS).convert(mode)
    image.save(tmp_path / "o.tif", tiffinfo={274: orientation})
    image.save(tmp_path / "plain.tif")
    plain = read_image(tmp_path / "plain.tif").pixels
    plain = plain if len(plain) == 3 else np.repeat(plain, 3, 0)
    upright = Image.fromarray(np.rint(255 * plain).astype(np.uint8).transpose(1, 2, 0))
    upright.getexif()[0x0112] = orientation
    right = np.asarray(ImageOps.exif_transpose(upright)) / 255
    got = read_image(tmp_path / "o.tif").pixels.transpose(1, 2, 0)
    assert got.shape[:2] == right.shape[:2]
    np.testing.assert_allclose(np.broadcast_to(got, right.shape), right, atol=1e-6)


def packed(array: np.ndarray, bits: int) -> bytes:
    """Rows of numbers bit by bit."""
    rows = array.reshape(len(array), -1)
    flags = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return b"".join(np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in flags)


def tiff_of(data: bytes, width: int, height: int, bits: int, samples: int) -> bytes:
    """A TIFF with one uncompressed strip."""
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, bits if samples == 1 else 0),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if samples == 3 else 1),
        (273, 4, 1, 8),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
    ]
    place = 8 + len(data) + len(data) % 2
    extra = place + 2 + 12 * len(entries) + 4
    body = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        value = extra if (tag, samples) == (258, 3) else value
        body += struct.pack("<HHII", tag, kind, count, value)
    body += struct.pack("<I", 0) + struct.pack("<3H", bits, bits, bits)
    return b"II*\0" + struct.pack("<I", place) + data + b"\0" * (len(data) % 2) + body


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_tiffs_of_odd_depths(tmp_path, bits, samples):
    array = RNG.integers(0, 2**bits, (7, 5, samples))
    array.reshape(-1)[:2] = 0, 2**bits - 1
    (tmp_path / "p.tif").write_bytes(tiff_of(packed(array, bits), 5, 7, bits, samples))
    found = read_image(tmp_path / "p.tif")
    right = (array / (2**bits - 1)).transpose(2, 0, 1)
    np.testing.assert_allclose(found.pixels, right, atol=1e-6)
    assert found.bits == 16
    # the same numbers in words of 16 bits, whose depth a tag states
    tags = [(281, "H", samples, (2**bits - 1,) * samples, True)]
    kind = "rgb" if samples == 3 else "minisblack"
    words = array.astype(np.uint16) if samples == 3 else array[..., 0].astype(np.uint16)
    tifffile.imwrite(tmp_path / "w.tif", words, photometric=kind, extratags=tags)
    np.testing.assert_allclose(read_image(tmp_path / "w.tif").pixels, right, atol=1e-6)


def png16(array: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    height, width, samples = array.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[samples], 0, 0, 0)
    rows = array.astype(">u2").reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("samples", [1, 3])
def test_significant_bits_of_pngs(tmp_path, samples):
    array = RNG.integers(0, 4096, (9, 8, samples))
    array.reshape(-1)[:2] = 4095, 1
    stated, right = (b"sBIT", bytes([12] * samples)), (array / 4095).transpose(2, 0, 1)
    # as microscopes write them, and as the standard has it, either way of scaling
    for k, numbers in enumerate((array, array << 4, array << 4 | array >> 8)):
        (tmp_path / f"{k}.png").write_bytes(png16(numbers, stated))
        np.testing.assert_allclose(read_image(tmp_path / f"{k}.png").pixels, right, atol=3e-4)
    # without a statement 16 bits are 16 bits
    (tmp_path / "plain.png").write_bytes(png16(array))
    np.testing.assert_allclose(read_image(tmp_path / "plain.png").pixels, right / 16, atol=1e-4)


@pytest.mark.parametrize("white", [1023, 4095, 65535])
def test_netpbm_of_16_bits(tmp_path, white):
    for kind, samples in ((b"P5", 1), (b"P6", 3)):
        array = RNG.integers(0, white + 1, (6, 5, samples))
        head = kind + b"\n# made by hand\n5 6\n%d\n" % white
        (tmp_path / "p.pnm").write_bytes(head + array.astype(">u2").tobytes())
        found = read_image(tmp_path / "p.pnm")
        np.testing.assert_allclose(found.pixels, (array / white).transpose(2, 0, 1), atol=1e-6)
        assert found.bits == 16
    (tmp_path / "p.pnm").write_bytes(head + array.astype(">u2").tobytes()[:-3])
    with pytest.raises(InputError, match="cut short"):
        read_image(tmp_path / "p.pnm")


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats(tmp_path, order):
    array = RNG.random((6, 5, 3)).astype(np.float32)
    head = b"PF\n5 6\n%d.0\n" % (-1 if order == "<" else 1)
    (tmp_path / "p.pfm").write_bytes(head + array[::-1].astype(f"{order}f4").tobytes())
    tifffile.imwrite(tmp_path / "p.tif", array, photometric="rgb")
    for name in ("p.pfm", "p.tif"):
        found = read_image(tmp_path / name)
        np.testing.assert_array_equal(found.pixels, array.transpose(2, 0, 1))
        write_image(tmp_path / "back.tif", found)
        np.testing.assert_array_equal(read_image(tmp_path / "back.tif").pixels, found.pixels)
    tifffile.imwrite(tmp_path / "hdr.tif", array * 7, photometric="rgb")
    with pytest.raises(InputError, match="divide it by its white"):
        read_image(tmp_path / "hdr.tif")


@functools.cache  # it holds the time it was made at
def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def camera() -> Image.Exif:
    exif = Image.Exif()
    exif[271], exif[0x0112] = "Maker", 6
    exif.get_ifd(0x8769)[0x829A] = 0.01  # exposure
    return exif


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif"])
def test_what_a_file_says_is_kept(tmp_path, target, bits):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Comment", "sunny – day")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    Image.fromarray(CORNERS).save(
        tmp_path / "a.png", exif=camera(), icc_profile=profile(), dpi=(300, 300), pnginfo=text
    )
    photo = read_image(tmp_path / "a.png")
    assert photo.pixels.shape == (3, 40, 24)
    photo = Photo(photo.pixels, None, bits, photo.notes)
    write_image(tmp_path / f"b{target}", photo)
    back = Image.open(tmp_path / f"b{target}")
    back.load()
    assert back.size == (24, 40)
    assert back.info["icc_profile"] == profile()
    exif = back.getexif()
    assert exif.get(0x0112, 1) == 1
    assert exif[271].strip("\0") == "Maker"
    if target != ".tif":  # whose first directory alone is written
        assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(0.01)
    xmp = back.info.get("xmp") or back.info.get("XML:com.adobe.xmp")
    xmp = xmp if isinstance(xmp, bytes) else str(xmp).encode()
    assert b'tiff:Orientation="1"' in xmp
    if target != ".webp":  # which has no place for it
        assert back.info["dpi"][0] == pytest.approx(300, abs=0.1)
    if target == ".png":
        assert back.text["Comment"] == "sunny – day"
    assert read_image(tmp_path / f"b{target}").bits == (bits if target in EXACT else 8)


def test_resolution_is_turned_with_the_picture(tmp_path):
    picture, exif = Image.fromarray(np.zeros((4, 6, 3), np.uint8)), Image.Exif()
    for orientation, wanted in ((3, (300, 150)), (6, (150, 300))):
        exif[0x0112] = orientation
        picture.save(tmp_path / "a.jpg", dpi=(300, 150), exif=exif)
        assert read_image(tmp_path / "a.jpg").notes.dpi == wanted


def test_a_date_in_another_form_is_kept(tmp_path):
    exif = Image.Exif()
    exif[306] = "3 May 2021, noon"
    Image.fromarray(CORNERS).save(tmp_path / "a.png", exif=exif)
    write_image(tmp_path / "b.tif", read_image(tmp_path / "a.png"))
    assert Image.open(tmp_path / "b.tif").tag_v2[306] == "3 May 2021, noon"


def test_a_jpeg_leaves_out_what_it_has_no_room_for(tmp_path):
    exif = camera()
    exif.get_ifd(0x8769)[0x927C] = bytes(70_000)  # a camera's own notes
    Image.fromarray(CORNERS).save(tmp_path / "a.png", exif=exif, icc_profile=profile())
    done = restobox(
        *("restore", "inpaint", tmp_path / "a.png", "-o", tmp_path / "b.jpg"),
        *("--mask", "random:0.3", "--steps", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert "left out EXIF" in done.stderr
    assert Image.open(tmp_path / "b.jpg").info["icc_profile"] == profile()
    assert read_image(tmp_path / "a.png").notes.exif is not None


def test_what_only_begins_like_netpbm_is_read_as_what_it_is(tmp_path):
    (tmp_path / "a.png").write_bytes(b"P5 this is no picture")
    with pytest.raises(InputError, match=r"a\.png can't be read as an image"):
        read_image(tmp_path / "a.png")
    header = b"P5\n# " + b"a long comment " * 60 + b"\n8 8\n65535\n"
    (tmp_path / "b.pgm").write_bytes(header + np.full((8, 8), 32768, ">u2").tobytes())
    np.testing.assert_allclose(read_image(tmp_path / "b.pgm").pixels, 32768 / 65535, atol=1e-5)


def test_print_colours_become_srgb(tmp_path):
    Image.fromarray(CORNERS).convert("CMYK").save(tmp_path / "c.tif")
    np.testing.assert_allclose(
        read_image(tmp_path / "c.tif").pixels.transpose(1, 2, 0), CORNERS / 255, atol=0.02
    )
    mild = CORNERS // 2 + 60  # Lab holds them in 8 bits
    lab = ImageCms.profileToProfile(
        Image.fromarray(mild),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    lab.save(tmp_path / "l.tif")
    found = read_image(tmp_path / "l.tif")
    np.testing.assert_allclose(found.pixels.transpose(1, 2, 0), mild / 255, atol=0.03)
    assert found.notes.icc is None


def test_one_picture_to_a_file(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), k, np.uint8)) for k in (10, 200)]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match=r"2 (pictures|pages)"):
            read_image(tmp_path / name)
    deep = np.zeros((2, 16, 16), np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="minisblack")
    with pytest.raises(InputError, match="2 pages"):
        read_image(tmp_path / "deep.tif")
    # a smaller copy beside the picture is no second one
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(np.zeros((16, 16, 3), np.uint16), photometric="rgb")
        file.write(np.zeros((8, 8, 3), np.uint16), photometric="rgb", subfiletype=1)
    assert read_image(tmp_path / "pyramid.tif").pixels.shape == (3, 16, 16)


def test_missing_decoders_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    monkeypatch.setitem(__import__("sys").modules, "rawpy", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(InputError, match=r"restobox\[heif\]"):
        read_image(tmp_path / "a.heic")
    (tmp_path / "a.dng").write_bytes(b"II*\0" + b"\0" * 60)
    with pytest.raises(InputError, match=r"restobox\[raw\]"):
        read_image(tmp_path / "a.dng")


def test_grey_with_transparency_and_palettes(tmp_path):
    grey = Image.fromarray(RNG.integers(0, 256, (6, 5, 2)).astype(np.uint8), "LA")
    grey.save(tmp_path / "la.png")
    found = read_image(tmp_path / "la.png")
    assert (found.pixels.shape, found.alpha.shape) == ((1, 6, 5), (6, 5))
    np.testing.assert_array_equal(found.pixels[0], np.asarray(grey)[..., 0] / np.float32(255))
    np.testing.assert_array_equal(found.alpha, np.asarray(grey)[..., 1] / np.float32(255))
    palette = Image.fromarray(CORNERS).quantize(8)
    palette.save(tmp_path / "p.png")
    want = np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").pixels, want)


MASK = np.zeros((24, 40), bool)
MASK[6:14, 10:30] = True


def known(tmp_path, array, mode=None, **options):
    Image.fromarray(array, mode).save(tmp_path / "m.png")
    return read_mask(tmp_path / "m.png", 24, 40, **options)


def test_masks_as_people_make_them(tmp_path):
    white = np.where(MASK, 255, 0).astype(np.uint8)
    right = 1 - MASK.astype(np.float32)
    np.testing.assert_array_equal(known(tmp_path, white), right)
    np.testing.assert_array_equal(known(tmp_path, 255 - white, white="known"), right)
    # painted over the photo
    photo = (smooth_picture(24, 40).transpose(1, 2, 0) * 150).astype(np.uint8)
    red = np.where(MASK[..., None], np.uint8([250, 5, 10]), photo)
    np.testing.assert_array_equal(known(tmp_path, red, colour="red"), right)
    np.testing.assert_array_equal(known(tmp_path, red, colour="#ff0000"), right)
    # a layer that is painted on nothing, in any colour
    layer = np.dstack([np.full((24, 40, 3), 20, np.uint8), white])
    np.testing.assert_array_equal(known(tmp_path, layer), right)
    # soft edges, and those of JPEG
    soft = Image.fromarray(white).filter(ImageFilter.GaussianBlur(1.5))
    assert np.abs(known(tmp_path, np.asarray(soft)) - right).mean() < 0.02
    Image.fromarray(white).save(tmp_path / "m.jpg", quality=60)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg", 24, 40), right)
    # grown by two pixels
    wide = known(tmp_path, white, grow=2)
    assert (wide[4, 15], wide[3, 15], wide[4, 8], wide.sum() < right.sum()) == (0, 1, 1, True)
    with pytest.raises(InputError, match="marks nothing"):
        known(tmp_path, np.zeros_like(white), grow=2)


@pytest.mark.parametrize("colour", ["red", "blue", "lime", "yellow", "magenta", "cyan"])
@pytest.mark.parametrize("ground", [0, 255])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_masks_painted_in_any_colour(tmp_path, colour, ground, suffix):
    """On black and on white; from JPEG, whose colours are coarse, but for their edges."""
    rgb = np.uint8(ImageColor.getrgb(colour))
    picture = np.where(MASK[..., None], rgb, np.uint8(ground)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / f"m{suffix}")
    found = read_mask(tmp_path / f"m{suffix}", 24, 40) == 0
    if suffix == ".png":
        np.testing.assert_array_equal(found, MASK)
    else:
        inner = feathered(MASK, 3)
        assert found[MASK & (feathered(~MASK, 3) == 1)].all()
        assert not found[inner == 1].any()
    both = np.where(np.arange(40)[None, :, None] < 20, 255, picture).astype(np.uint8)
    both[:, 30:] = 0
    if ground == 255:
        with pytest.raises(InputError, match="colours beside black and white"):
            known(tmp_path, both)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_truth_values(tmp_path, dtype):
    """Numbers 0 and 1, as programs write them."""
    missing = np.zeros((40, 50), bool)
    missing[10:20, 15:30] = True
    Image.fromarray(missing.astype(dtype)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 40, 50), ~missing)


def test_masks_that_may_mean_the_opposite():
    """Painted shapes on a wide ground; not scattered pixels, of which few are known."""
    painted = np.zeros((60, 80), np.float32)
    painted[10:30, 20:40] = 1
    assert looks_inverse(painted)
    assert not looks_inverse(1 - painted)
    assert not looks_inverse((RNG.random((60, 80)) < 0.2).astype(np.float32))


def test_shadows_are_not_painted_black(tmp_path):
    """Where the file holds the painted colour itself."""
    photo = np.full((3, 64, 64), 0.6)
    photo[:, :, 40:] = 0.15
    missing = np.zeros((64, 64), bool)
    missing[10:50, 10:20] = True
    painted = np.rint(255 * np.where(missing, 0, photo)).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(painted).save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png", 64, 64, colour="black") == 0
    np.testing.assert_array_equal(found, missing)


def test_open_layers_and_holes_are_masks(tmp_path):
    right = 1 - MASK.astype(np.float32)
    for inside in (0, 255):  # black or white all over, open where it is to be filled
        alpha = np.where(MASK, 0, 255).astype(np.uint8)
        layer = np.dstack([np.full((24, 40, 3), inside, np.uint8), alpha])
        np.testing.assert_array_equal(known(tmp_path, layer), right)
    photo = (smooth_picture(24, 40).transpose(1, 2, 0) * 255).astype(np.uint8)
    np.testing.assert_array_equal(known(tmp_path, np.dstack([photo, alpha])), right)
    np.testing.assert_array_equal(
        known(tmp_path, np.dstack([photo, 255 - alpha]), white="known"), right
    )


def test_masks_by_what_was_painted_over(tmp_path):
    photo = smooth_picture(24, 40)
    copy = np.where(MASK, 1 - photo.round(), photo)  # in several colours
    codes = np.rint(copy.transpose(1, 2, 0) * 255).astype(np.uint8)
    options = {"colour": "difference", "photo": photo}
    np.testing.assert_array_equal(known(tmp_path, codes, **options), 1 - MASK)
    Image.fromarray(codes).save(tmp_path / "m.png")
    write_image(tmp_path / "p.png", Photo(photo))
    done = restobox(
        *("restore", "inpaint", tmp_path / "p.png", "-m", tmp_path / "m.png", "-o"),
        *(tmp_path / "o.png", "--mask-colour", "difference", "--steps", "1", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["missing"] == pytest.approx(MASK.mean(), abs=1e-3)
    for picture, words in ((photo, "doesn't differ"), (1 - photo.round(), "nearly everywhere")):
        same = np.rint(picture.transpose(1, 2, 0) * 255).astype(np.uint8)
        with pytest.raises(InputError, match=words):
            known(tmp_path, same, **options)


def test_a_photo_is_no_mask(tmp_path):
    photo = (smooth_picture(24, 40).transpose(1, 2, 0) * 255).astype(np.uint8)
    with pytest.raises(InputError, match="looks like a photograph"):
        known(tmp_path, photo)
    with pytest.raises(InputError, match="no pixel of the colour lime"):
        known(tmp_path, np.zeros((24, 40, 3), np.uint8), colour="lime")
    with pytest.raises(InputError, match="such as red"):
        known(tmp_path, photo, colour="no colour")


def test_transparency_is_a_mask(tmp_path):
    photo = (smooth_picture(24, 40).transpose(1, 2, 0) * 255).astype(np.uint8)
    alpha = np.where(MASK, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "p.png")
    done = restobox(
        *("restore", "inpaint", tmp_path / "p.png", "-o", tmp_path / "o.png", "--mask", "alpha"),
        *("--steps", "1", "--json"),
    )
    assert done.returncode == 0, done.stderr
    back = np.asarray(Image.open(tmp_path / "o.png"))
    assert (back[..., 3] == 255).all()
    np.testing.assert_array_equal(back[~MASK][:, :3], photo[~MASK])
    assert json.loads(done.stdout)["missing"] == pytest.approx(MASK.mean(), abs=1e-3)


def test_lossy_outputs_say_so(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "p.png")
    for quality in ("40", "95"):
        done = restobox(
            *("restore", "inpaint", tmp_path / "p.png", "-o", tmp_path / f"{quality}.jpg"),
            *("--mask", "random:0.3", "--steps", "1", "--quality", quality),
        )
        assert done.returncode == 0, done.stderr
        assert "known ones too" in done.stderr
    small, large = ((tmp_path / f"{q}.jpg").stat().st_size for q in ("40", "95"))
    assert small < large


# -- wide gamuts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GAMUTS)
def test_wide_colours_are_those_of_the_colour_management(name):
    """Little CMS agrees inside sRGB; outside it cuts, and ours comes back."""
    icc = wide_profile(name)
    gamut = gamut_of(icc)
    codes = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    pixels = (codes / 255).transpose(2, 0, 1).astype(np.float32)
    ours = gamut.to_srgb(pixels)
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    theirs = ImageCms.profileToProfile(
        Image.fromarray(codes), source, ImageCms.createProfile("sRGB"), renderingIntent=1
    )
    inside = ((ours > 0.01) & (ours < 0.99)).all(0)
    assert 0.1 < inside.mean() < 0.99
    far = np.abs(np.asarray(theirs).transpose(2, 0, 1) / 255 - ours)[:, inside]
    assert far.max() < 2 / 255
    # as light: near black, single precision of the sum of three colours is all there is
    back, gamma = gamut.from_srgb(ours), GAMUTS[name][1]
    np.testing.assert_allclose(back**gamma, pixels**gamma, atol=2e-6)


def test_plain_profiles_are_left_alone():
    assert gamut_of(None) is None
    assert gamut_of(profile()) is None  # sRGB
    assert gamut_of(b"nonsense") is None
    grey = wide_profile("Adobe RGB").replace(b"RGB XYZ", b"GRAYXYZ")
    assert gamut_of(grey) is None


@pytest.mark.parametrize("bits", [8, 16])
def test_wide_pictures_come_back_in_their_own_profile(tmp_path, bits):
    icc, white = wide_profile("ProPhoto"), 2**bits - 1
    colours = smooth_picture(48, 48)
    pixels = gamut_of(icc).from_srgb(colours)
    pixels[:, 30:, 30:] = np.array([0.05, 0.95, 0.05])[:, None, None]  # far outside sRGB
    codes = np.rint(pixels * white)
    write_image(
        tmp_path / "a.png", Photo((codes / white).astype(np.float32), None, bits, Notes(icc=icc))
    )
    mask = np.zeros((48, 48), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    done = restobox(
        *("restore", "inpaint", tmp_path / "a.png", "-m", tmp_path / "m.png"),
        *("-o", tmp_path / "b.png", "--steps", "2", "--sheet", tmp_path / "sheet.png"),
    )
    assert done.returncode == 0, done.stderr
    back = read_image(tmp_path / "b.png")
    assert back.notes.icc == icc
    assert back.bits == bits
    np.testing.assert_array_equal(np.rint(back.pixels * white)[:, mask == 0], codes[:, mask == 0])
    # filled with the colours of the surroundings, not with their numbers in sRGB
    error = np.abs(back.pixels - pixels)[:, mask > 0].mean()
    assert error < 0.03
    assert read_image(tmp_path / "sheet.png").pixels.shape[2] > 3 * 48


def test_other_tasks_keep_what_lies_outside_srgb(tmp_path):
    icc = wide_profile("ProPhoto")
    pixels = np.broadcast_to(np.array([0.05, 0.9, 0.05], np.float32)[:, None, None], (3, 32, 32))
    write_image(tmp_path / "a.png", Photo(np.array(pixels), None, 16, Notes(icc=icc)))
    done = restobox(
        *("restore", "denoise", tmp_path / "a.png", "-o", tmp_path / "b.png", "--sigma", "0.005")
    )
    assert done.returncode == 0, done.stderr
    gamut = gamut_of(icc)
    cut = gamut.from_srgb(gamut.to_srgb(pixels).clip(0, 1))
    assert np.abs(cut - pixels).max() > 0.2
    assert np.abs(read_image(tmp_path / "b.png").pixels - pixels).mean() < 0.01


# -- edges and masks that are found ----------------------------------------------------------------


def test_feathered_edges_are_blends(tmp_path):
    photo = smooth_picture(48, 48)
    write_image(tmp_path / "a.png", Photo(photo, bits=16))
    mask = np.zeros((48, 48), np.uint8)
    mask[20:30, 20:30] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    share = feathered(mask > 0, 3)
    assert share[25, 25] == 0
    np.testing.assert_allclose(share[25, 29:34], [0, 0.25, 0.5, 0.75, 1])
    shared = ("restore", "inpaint", tmp_path / "a.png", "-m", tmp_path / "m.png", "--feather", "3")
    for more in (("b.png", "--steps", "1"), ("c.png", "--steps", "2", "-n", 2, "--write-samples")):
        done = restobox(*shared, "-o", tmp_path / more[0], *more[1:])
        assert done.returncode == 0, done.stderr
    names = ("a.png", "b.png", "c.png", *sorted(p.name for p in tmp_path.glob("c-*")))
    given, back, mean, *samples = (read_image(tmp_path / n).pixels for n in names)
    between = (share > 0) & (share < 1)
    for found in (back, mean, *samples):
        np.testing.assert_array_equal(found[:, share == 1], given[:, share == 1])
        assert np.abs(found - given)[:, between].max() > 0
    assert len(samples) == 2  # each is blended once
    np.testing.assert_allclose(np.mean(samples, axis=0), mean, rtol=0, atol=2 / 65535)


def defective(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture with drawn defects, and where they are."""
    photo = 0.2 + 0.5 * smooth_picture(160, 200)
    canvas = Image.new("L", (200, 160))
    draw = ImageDraw.Draw(canvas)
    if kind == "scratches":
        draw.line([(20, 10), (150, 140)], fill=255, width=2)
        draw.line([(180, 5), (170, 150)], fill=255, width=1)
    elif kind == "dust":
        for x, y, r in ((30, 30, 2), (90, 50, 3), (150, 120, 1.5), (60, 130, 2.5)):
            draw.ellipse([x - r, y - r, x + r, y + r], fill=255)
    else:
        draw.text((30, 100), "12 07 1998", fill=255, font=ImageFont.load_default(24))
    marked = np.asarray(canvas) > 127
    photo[:, marked] = np.array([1.0, 0.95, 0.3])[:, None]
    return photo.astype(np.float32), marked


@pytest.mark.parametrize("kind", ["scratches", "dust", "text"])
def test_defects_are_found(tmp_path, kind):
    photo, marked = defective(kind)
    found = found_defects(photo, kind)
    assert found[marked].mean() > 0.95
    assert found[~grown(marked, 4)].mean() < 0.005
    with pytest.raises(InputError, match=f"finds no {kind}"):
        found_defects(0.2 + 0.5 * smooth_picture(160, 200), kind)
    write_image(tmp_path / "a.png", Photo(photo))
    if kind == "dust":
        done = restobox(
            *("restore", "inpaint", tmp_path / "a.png", "-m", f"auto:{kind}", "--steps", "1"),
            *("-o", tmp_path / "b.png"),
        )
        assert done.returncode == 0, done.stderr
        assert "such detectors miss some" in done.stderr
        error = read_image(tmp_path / "b.png").pixels - (0.2 + 0.5 * smooth_picture(160, 200))
        assert np.abs(error)[:, marked].mean() < 0.05


@pytest.mark.long
def test_fur_is_no_scratch():
    """Lines beside lines; a line away from them is found all the same."""
    rng = np.random.default_rng(0)
    plane = 0.5 + 0.5 * gaussian_filter(rng.normal(size=(400, 500)), 20)
    plane[340:, 60:180:3] += rng.uniform(0.25, 0.4, 40)
    photo = np.repeat(plane[None], 3, 0).clip(0, 1).astype(np.float32)
    photo[:, 50:250, 400] = 1
    found = found_defects(photo, "scratches")
    assert found[50:250, 400].mean() > 0.95
    assert found[340:, 60:180].mean() < 0.05


def test_unknown_defects_are_named():
    with pytest.raises(InputError, match="auto:scratches, auto:dust, auto:text"):
        found_defects(np.zeros((1, 20, 20)), "mould")


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(("channels", "kind"), [(2, 4), (3, 2), (4, 6)])
def test_deep_png_keeps_every_bit(tmp_path, channels, kind, transparent):
    """Written here by the standard: no package at hand writes 16 bits in colour."""
    x = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(">u2")

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 7, 5, 16, kind, 0, 0, 0)
    colour = x[2, 3].tobytes() if transparent and channels == 3 else b""
    rows = b"".join(b"\0" + row.tobytes() for row in x)
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + (chunk(b"tRNS", colour) if colour else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    photo = read_image(tmp_path / "x.png")
    values = x.astype(np.float32) / 65535
    colours = values[..., : channels - 1 + channels % 2].transpose(2, 0, 1)
    np.testing.assert_array_equal(photo.pixels, colours)
    if colour:
        assert [*zip(*np.nonzero(photo.alpha == 0), strict=True)] == [(2, 3)]
    elif channels % 2 == 0:
        np.testing.assert_array_equal(photo.alpha, values[..., -1])
    else:
        assert photo.alpha is None
