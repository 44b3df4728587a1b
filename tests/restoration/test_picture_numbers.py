"""What the numbers of picture files mean: depth, white, transparency and colours by each format's
own words, with files made byte by byte.
"""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from restoration.io.images import Photo, read_image, write_image
from restoration.io.pictures.gamut import SRGB, gamut_of, view_of
from solvers.inputs.errors import InputError

RNG = np.random.default_rng(0)
SIZE = (9, 13)


def numbers(white, *channels):
    return RNG.integers(0, white, (*SIZE, *channels), endpoint=True)


def png(path, values, bits, colour, **more):
    """A PNG of whole numbers ``(H, W[, C])``; ``more``: its other chunks."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    shifts = np.arange(bits - 1, -1, -1)
    flags = (values.reshape(len(values), -1, 1) >> shifts & 1).reshape(len(values), -1)
    rows = np.pad(np.packbits(flags.astype(np.uint8), axis=1), ((0, 0), (1, 0)))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *((k.encode(), v) for k, v in more.items())]
    parts += [(b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


# -- PNG -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_that_is_transparent(tmp_path, bits):
    white = 2**bits - 1
    values = numbers(white)
    key = int(values[3, 4])
    photo = read_image(png(tmp_path / "a.png", values, bits, 0, tRNS=struct.pack(">H", key)))
    np.testing.assert_allclose(photo.pixels, values[None] / white, atol=1e-6)
    np.testing.assert_array_equal(photo.alpha, values != key)


@pytest.mark.parametrize(
    ("bits", "counted"), [(16, (10, 10, 10)), (16, (12, 10, 14)), (8, (5, 6, 5))]
)
@pytest.mark.parametrize("stored", ["as they are", "scaled"])
def test_bits_that_count(tmp_path, bits, counted, stored):
    """Of each channel; scaled as the standard has it, or not."""
    depths = np.array(counted)
    white = 2**depths - 1
    values = numbers(1000, 3) % (white + 1)
    written = values
    if stored == "scaled":
        left = bits - depths
        written = values << left | values >> np.maximum(depths - left, 0)
    path = png(tmp_path / "a.png", written, bits, 2, sBIT=bytes(counted))
    right = (values / white).transpose(2, 0, 1)
    close = 1e-6 if stored == "as they are" else 1 / 250 if bits == 8 else 1e-4
    np.testing.assert_allclose(read_image(path).pixels, right, atol=close)


def places(primaries, white=(0.3127, 0.3290)):
    return struct.pack(">8I", *(round(1e5 * v) for p in (white, *primaries) for v in p))


PLAIN = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))  # sRGB
WIDE = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))  # Display P3


def test_linear_numbers_are_restored_in_srgb(tmp_path):
    """A file of gAMA 1 and its place in sRGB; its output says what its numbers are."""
    values = numbers(65535, 3)
    path = png(tmp_path / "a.png", values, 16, 2, gAMA=struct.pack(">I", 100_000))
    photo = read_image(path)
    light = values.transpose(2, 0, 1) / 65535
    np.testing.assert_allclose(photo.pixels, light, atol=1e-6)
    view = view_of(photo.pixels, photo.notes.icc)
    high = ((view.shown + 0.055) / 1.055) ** 2.4
    shown = np.where(view.shown <= 0.04045, view.shown / 12.92, high)
    np.testing.assert_allclose(shown, light, atol=2e-4)  # chromaticities have four digits
    np.testing.assert_allclose(view.back(view.shown), light, atol=1e-4)
    write_image(tmp_path / "b.png", photo)
    again = read_image(tmp_path / "b.png")
    assert again.notes.icc == photo.notes.icc
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    grey = png(tmp_path / "g.png", values[..., 0], 16, 0, gAMA=struct.pack(">I", 100_000))
    assert read_image(grey).notes.icc[16:20] == b"GRAY"


@pytest.mark.parametrize(
    "said",
    [{"gAMA": struct.pack(">I", 45455), "cHRM": places(WIDE)}, {"cICP": bytes([12, 13, 0, 1])}],
)
def test_primaries_that_are_stated(tmp_path, said):
    """Display P3 by chromaticities or by cICP's number: matrix by the published one."""
    photo = read_image(png(tmp_path / "a.png", numbers(255, 3), 8, 2, **said))
    found = gamut_of(photo.notes.icc)
    columns = [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]]
    np.testing.assert_allclose(SRGB @ found.matrix, columns, atol=5e-4)


@pytest.mark.parametrize(
    "said",
    [
        {"gAMA": struct.pack(">I", 45455)},
        {
            "gAMA": struct.pack(">I", 45455),
            "cHRM": places(((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))),
        },
        {"gAMA": struct.pack(">I", 100_000), "sRGB": b"\0"},
        {"gAMA": struct.pack(">I", 100_000), "cHRM": places(((0.3, 0.3),) * 3)},
        {"cICP": bytes([1, 13, 0, 1])},
    ],
)
def test_colours_of_srgb_need_no_profile(tmp_path, said):
    assert read_image(png(tmp_path / "a.png", numbers(255, 3), 8, 2, **said)).notes.icc is None


def test_high_dynamic_range_is_refused(tmp_path):
    path = png(tmp_path / "a.png", numbers(65535, 3), 16, 2, cICP=bytes([9, 16, 0, 1]))
    with pytest.raises(InputError, match=r"high dynamic range \(PQ\).*convert it"):
        read_image(path)


# -- PGM, PPM, PAM ---------------------------------------------------------------------------------


@pytest.mark.parametrize("white", [1, 100, 255, 256, 1023, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6", "P7"])
def test_netpbm(tmp_path, kind, white):
    channels = {"P2": 1, "P3": 3, "P5": 1, "P6": 3, "P7": 4}[kind]
    values = numbers(white, channels)
    height, width = SIZE
    head = f"{kind}\n# 3 4\n{width} # wide\n{height}\n{white}\n"
    if kind == "P7":
        head = f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH 4\n# c\nMAXVAL {white}\nENDHDR\n"
    if kind in ("P2", "P3"):
        body = "\n".join(map(str, values.ravel())).encode() + b"\n"
    else:
        body = values.astype(">u2" if white > 255 else "u1").tobytes()
    path = tmp_path / "a.pnm"
    path.write_bytes(head.encode() + body)
    photo = read_image(path)
    assert photo.bits == (8 if white < 256 else 16)
    pixels = values.transpose(2, 0, 1) / white
    np.testing.assert_allclose(photo.pixels, pixels[: 3 if channels > 1 else 1], atol=1e-6)
    if kind == "P7":
        np.testing.assert_allclose(photo.alpha, pixels[3], atol=1e-6)
    path.write_bytes(head.encode() + body[: len(body) // 2])
    with pytest.raises(InputError, match="cut short"):
        read_image(path)


def test_netpbm_that_is_no_one_picture(tmp_path):
    one = b"P5\n2 2\n300\n" + np.array([1, 2, 3, 300], ">u2").tobytes()
    for content, words in (
        (one * 2, "holds several pictures"),
        (one.replace(b"\n300", b"\n299"), "holds the number 300, but states a white of 299"),
        (one.replace(b"\n300", b"\n70000"), "white of 70000; 1 to 65535"),
        (b"P2\n2 2\n9\n1 2 x 3\n", "something else than whole numbers"),
        (b"P7\nWIDTH 2\nENDHDR\n", "damaged header"),
    ):
        (tmp_path / "a.pgm").write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_image(tmp_path / "a.pgm")


# -- TIFF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("extra", ["assocalpha", "unassalpha", "unspecified", "padding"])
@pytest.mark.parametrize("colours", [1, 3])
def test_a_channel_beside_the_colours(tmp_path, dtype, extra, colours):
    """Transparency, also one that colours were multiplied by; a channel of no known meaning is
    kept, unless it holds nothing.
    """
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    pixels, alpha = RNG.random((*SIZE, colours)), RNG.uniform(0.5, 1, (*SIZE, 1))
    alpha = np.zeros_like(alpha) if extra == "padding" else alpha
    shown = pixels * alpha if extra == "assocalpha" else pixels
    stored = np.concatenate([shown, alpha], -1) * white
    stored = stored.astype(dtype) if white == 1 else np.rint(stored).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        photometric="rgb" if colours == 3 else "minisblack",
        planarconfig="contig",
        extrasamples=["unspecified" if extra == "padding" else extra],
        metadata=None,
    )
    photo = read_image(tmp_path / "a.tif")
    close = 2.5 / 255 if dtype == np.uint8 else 1e-4
    np.testing.assert_allclose(photo.pixels, pixels.transpose(2, 0, 1), atol=close)
    if extra == "padding":
        assert photo.alpha is None
    else:
        np.testing.assert_allclose(photo.alpha, alpha[..., 0], atol=close)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparency_in_a_plane_of_its_own(tmp_path, colours, kind):
    """Of 8 bits, which Pillow doesn't read."""
    values, alpha = numbers(255, colours).astype(np.uint8), numbers(255).astype(np.uint8) | 128
    stored = np.rint(values * (alpha[..., None] / 255)) if kind == "assocalpha" else values
    planes = np.concatenate([np.moveaxis(stored, -1, 0), alpha[None]]).astype(np.uint8)
    options = {"photometric": "rgb" if colours == 3 else "minisblack", "extrasamples": [kind]}
    tifffile.imwrite(tmp_path / "a.tif", planes, planarconfig="separate", **options)
    photo = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(photo.pixels, np.moveaxis(values, -1, 0) / 255, atol=1 / 255)
    np.testing.assert_allclose(photo.alpha, alpha / 255, atol=1e-6)


@pytest.mark.parametrize("tag", [281, 341])
def test_tags_that_state_white(tmp_path, tag):
    values = numbers(4095).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(tag, "H", 1, 4095, True)])
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").pixels[0], values / 4095, atol=1e-6)


def test_ome_states_the_bits_that_count(tmp_path):
    values = numbers(4095).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"SignificantBits": 12})
    photo = read_image(tmp_path / "a.ome.tif")
    np.testing.assert_allclose(photo.pixels[0], values / 4095, atol=1e-6)


def test_bits_from_the_low_one_on(tmp_path):
    """FillOrder 2, of which TIFF's writers here know nothing."""
    values = numbers(4095)
    height, width = SIZE
    flags = (values[..., None] >> np.arange(11, -1, -1) & 1).reshape(height, -1).astype(np.uint8)
    data = np.packbits(flags, axis=1, bitorder="little").tobytes()
    says = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 266: 2, 273: 134, 277: 1}
    says |= {278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in says.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(says)) + entries + bytes(4)
    assert len(head) == 134
    (tmp_path / "a.tif").write_bytes(head + data)
    np.testing.assert_allclose(
        read_image(tmp_path / "a.tif").pixels, values[None] / 4095, atol=1e-6
    )


def test_what_kinds_of_tiff_say_beside_their_pixels(tmp_path):
    """Floats in colour, which Pillow doesn't open."""
    options = {"resolution": (118, 118), "resolutionunit": "CENTIMETER", "software": "x"}
    extra = [(700, "B", 5, b"<a/>\n", True), (315, "s", 0, "me", True)]
    pixels = RNG.random((*SIZE, 3)).astype(np.float32)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", metadata=None, extratags=extra, **options
    )
    notes = read_image(tmp_path / "a.tif").notes
    assert notes.dpi == pytest.approx((299.72, 299.72))
    assert notes.xmp == b"<a/>\n"
    exif = Image.Exif()
    exif.load(notes.exif)
    assert (exif[315], exif[305]) == ("me", "x")


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (numbers(99).astype(np.int8), {}, "pixels of type int8"),
        (numbers(99).astype(np.uint64), {}, r"samples of 64 bits \(MINISBLACK, NONE\); grey and"),
        (numbers(99, 5).astype(np.uint8), {"planarconfig": "contig"}, "a TIFF of 5 samples of 8"),
        (numbers(99, 3).astype(np.uint16), {"photometric": "cielab"}, r"16 bits \(CIELAB"),
    ],
)
def test_tiffs_that_are_refused_say_what_they_are(tmp_path, values, options, words):
    options = {"photometric": "minisblack", "metadata": None} | options
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    with pytest.raises(InputError, match=words):
        read_image(tmp_path / "a.tif")


def test_other_kinds_are_named(tmp_path):
    Image.fromarray(numbers(255, 3).astype(np.uint8)).save(tmp_path / "a.jpg")
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    content[content.find(b"\xff\xc0") + 4] = 12
    for data, words in ((content, "a JPEG of 12 bits"), (b"v/1\x01" + bytes(99), "OpenEXR")):
        (tmp_path / "a.jpg").write_bytes(data)
        with pytest.raises(InputError, match=f"is {words}, which is not read; save it as PNG"):
            read_image(tmp_path / "a.jpg")
    deep = b"\x01\xda\0\2" + struct.pack(">4H", 2, 13, 9, 1) + bytes(500 + 2 * 13 * 9)
    (tmp_path / "a.sgi").write_bytes(deep)
    with pytest.raises(InputError, match="SGI picture of 16 bits, which is not read"):
        read_image(tmp_path / "a.sgi")
    photo = Photo(np.zeros((3, *SIZE), np.float32))
    write_image(tmp_path / "b.png", photo)
    assert read_image(tmp_path / "b.png").bits == 8
