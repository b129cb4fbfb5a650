"""Opening a picture: what counts as damage, what does not, and that nothing a decoder raises gets out."""

import ast
import io
import random
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from embedpipe.clip_model.encoder_card import OPEN_CLIP_RULES
from embedpipe.curate.dedup.image_difference import grey_thumbnail
from embedpipe.errors import OptionError
from embedpipe.fetch import resizers
from embedpipe.fetch.download.image import PictureMaker, PictureRules
from embedpipe.fetch.outcome import Failure
from embedpipe.images import html
from embedpipe.images.decode import DecodedImage, Undecodable, decode
from embedpipe.images.open import open_upright_srgb
from embedpipe.images.rules import image_rules
from embedpipe.images.sheet import thumbnail
from tests import shards
from tests.pictures import reading
from tests.unit.embedpipe.images.test_decode import spec
from tools.house import PACKAGES, sources


def jpeg(**options):
    return shards.encoded(shards.pixels(3, 120, 160), "JPEG", **{"quality": 85, **options})


def fetched(data):
    rules = PictureRules(64, "no", True, 0, 0.0, True, "png")
    return PictureMaker(rules, resizers.make_resizer("opencv", rules, 1)).make(data)


def outcomes(data):
    """The class of encode's reject and of fetch's failure; None for pixels."""
    seen = decode(data, spec())
    made = fetched(data)
    return (
        seen.error_class if isinstance(seen, Undecodable) else None,
        made.error_class if isinstance(made, Failure) else None,
    )


HARMLESS = {
    "behind the end": lambda data: data + b"more" * 100,
    "no end marker": lambda data: data[:-2],
    "half an end marker": lambda data: data[:-1],
    "zeros before the end marker": lambda data: data[:-2] + bytes(40) + data[-2:],
    "bytes before the end marker": lambda data: data[:-2] + b"\n" + data[-2:],
    "bytes between the segments": lambda data: data[:20] + b"abc" + data[20:],
    "an unknown revision of JFIF": lambda data: data[:11] + b"\3" + data[12:],
    "all of them": lambda data: data[:11] + b"\3" + data[12:20] + b"abc" + data[20:-2] + bytes(40),
}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("way", HARMLESS)
def test_a_warning_without_consequence_is_tolerated(way, options):
    if way == "bytes before the end marker" and options.get("progressive"):
        pytest.skip("libjpeg warns, as it does of damage: there is no telling")
    whole = jpeg(**options)
    data = HARMLESS[way](whole)
    assert outcomes(data) == (None, None)
    assert np.array_equal(np.asarray(open_upright_srgb(data)), reading(whole))
    assert decode(data, spec()).pixels.equal(decode(whole, spec()).pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_damaged_bytes_of_a_jpeg_are_a_reject_wherever_libjpeg_warns(options):
    rng = random.Random(1)
    whole = jpeg(**options)
    begun = whole.index(b"\xff\xda") + 12
    rejected = 0
    for _ in range(40):
        data = bytearray(whole)
        at = rng.randrange(begun, len(data) - 62)
        data[at : at + 60] = rng.randbytes(60)
        try:
            simplejpeg.decode_jpeg(bytes(data), strict=True)
            warned = False
        except ValueError:
            warned = True
        assert outcomes(bytes(data)) == (("image_damaged", "damaged") if warned else (None, None))
        rejected += warned
    assert rejected > 15


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_truncated_jpeg_is_damaged_however_it_lies(share, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(exif=exif)
    assert outcomes(data[: int(len(data) * share)]) == ("image_damaged", "damaged")


def test_inks_are_checked_too():
    data = bytearray(shards.encoded(shards.pixels(3, 120, 160, "CMYK"), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 60] = bytes(60)
    assert outcomes(bytes(data)) == ("image_damaged", "damaged")


def test_a_wrong_checksum_of_a_png_is_damage():
    data = shards.encoded(shards.pixels(3), "PNG", compress_level=0)  # the pixels themselves: zlib notices little
    at = data.index(b"IDAT") + 300
    assert outcomes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) == ("image_damaged", "damaged")


@pytest.mark.parametrize(
    ("data", "classes", "words"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ("image_unsupported", "unsupported"), "SVG"),
        (b'<?xml version="1.0"?><!-- x --><svg/>', ("image_unsupported", "unsupported"), "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", ("image_unsupported", "unsupported"), "PostScript"),
        (b"<html></html>", ("image_undecodable", "not_an_image"), "<html>"),
    ],
)
def test_other_formats_are_refused_by_name(data, classes, words):
    assert outcomes(data) == classes
    assert words in decode(data, spec()).message
    assert words in fetched(data).message


def avif_that_raises_something_odd():
    """Pillow raises RuntimeError for some damaged AVIFs."""
    rng = random.Random(0)
    whole = shards.encoded(shards.pixels(1, 64, 64), "AVIF")
    for _ in range(2000):
        data = bytearray(whole)
        data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            Image.open(io.BytesIO(bytes(data))).load()
        except (OSError, ValueError, SyntaxError):
            continue
        except RuntimeError:
            return bytes(data)
    raise AssertionError("no such AVIF")


def test_whatever_a_decoder_raises_is_about_its_picture():
    data = avif_that_raises_something_odd()
    assert outcomes(data) == ("image_damaged", "damaged")
    assert isinstance(decode(data, spec(), OPEN_CLIP_RULES), Undecodable)
    assert isinstance(open_upright_srgb(data), Undecodable)
    assert grey_thumbnail(data) is None
    assert html.picture(data) == "<i>no picture</i>"
    assert thumbnail(data, 32).getcolors() == [(32 * 32, (235, 235, 235))]


@pytest.mark.parametrize("problem", [MemoryError, RecursionError, KeyError, ZeroDivisionError])
def test_no_exception_is_an_exception(problem, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: (_ for _ in ()).throw(problem("boo")))
    data = shards.png()
    assert outcomes(data) == ("image_damaged", "damaged")
    assert problem.__name__ in decode(data, spec()).message


@pytest.mark.parametrize("problem", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_damage(problem, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: (_ for _ in ()).throw(problem))
    for way in (lambda: decode(shards.png(), spec()), lambda: fetched(shards.png())):
        with pytest.raises(problem):
            way()


def test_more_pixels_than_pillow_allows_are_allowed_by_the_limit_given():
    data = shards.encoded(Image.new("1", (20_000, 9_000)), "PNG")  # twice the number from which Pillow raises
    assert decode(data, spec()).error_class == "image_too_large"
    found = decode(data, spec((8, 8)), max_pixels=200_000_000)
    assert isinstance(found, DecodedImage)
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("values", ["chartreusish", "", "#12", "rgba(1,2,3,4)", "#11223344"])
def test_a_background_is_a_colour_without_transparency(values):
    with pytest.raises(OptionError, match="background"):
        image_rules(values)


def test_colours_of_one_name_are_one_rule():
    assert image_rules("white") == image_rules("#FFF") == image_rules("rgb(255, 255, 255)") == image_rules()
    assert image_rules("black").transparency == "#000000"


def test_no_picture_is_opened_by_whatever_pillow_knows():
    """`Image.open` without formats would start Ghostscript; its limit of pixels belongs to the user's process."""
    found = []
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                    found += [path] * all(it.arg != "formats" for it in node.keywords)
                if isinstance(node, ast.Attribute) and node.attr in ("MAX_IMAGE_PIXELS", "LOAD_TRUNCATED_IMAGES"):
                    found.append(path)
    assert found == []


def tiff(order, samples, photometric, bits, planes=1, kind=1):
    """An uncompressed TIFF of `samples` [h, w] or [3, h, w], which have the right dtype."""
    height, width = samples.shape[-2:]
    count = samples.size // (height * width)
    at = 8 + 2 + 12 * 12 + 4
    each = samples.nbytes // (count if planes == 2 else 1)
    strips = [at + 20 * count + each * plane for plane in range(count if planes == 2 else 1)]
    columns = [
        (258, "H", [bits] * count),
        (273, "L", strips),
        (279, "L", [each] * len(strips)),
        (339, "H", [kind] * count),
    ]
    single = {256: width, 257: height, 259: 1, 262: photometric, 274: 1, 277: count, 278: height, 284: planes}
    columns += [(tag, "H", [value]) for tag, value in single.items()]
    entries, rest = b"", b""
    for tag, code, values in sorted(columns):
        packed = struct.pack(order + code * len(values), *values)
        if len(packed) > 4:
            packed, rest = struct.pack(order + "L", at + len(rest)), rest + packed
        entries += struct.pack(order + "HHL", tag, 3 if code == "H" else 4, len(values)) + packed.ljust(4, b"\0")
    begin = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "LH", 8, len(columns))
    return (begin + entries + bytes(4) + rest).ljust(at + 20 * count, b"\0") + samples.tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white", [0, 1])
@pytest.mark.parametrize(("kind", "format_of_samples"), [("u2", 1), ("f4", 3), ("u4", 1)])
def test_deep_greys_are_never_negatives(order, white, kind, format_of_samples):
    """Photometric 0: zero is white. Pillow inverts eight bits alone, and refuses some of the rest."""
    values = np.linspace(0, 1, 48).reshape(6, 8)
    stored = values.astype("f4") if kind == "f4" else (values * 65_535).astype("u2").astype(kind)
    data = tiff(order, stored.astype(order + kind), white, 8 * stored.itemsize, kind=format_of_samples)
    found = open_upright_srgb(data)
    if isinstance(found, Undecodable):
        assert order == ">" or (kind, white) == ("u4", 0)
        assert found.error_class == "image_unsupported"
        return
    wanted = values * 255 if white else 255 - values * 255
    assert np.abs(np.asarray(found)[..., 0] - wanted).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_planes_are_read_or_refused(order, kind):
    planes = np.arange(3 * 6 * 8).reshape(3, 6, 8)
    stored = planes.astype(order + kind) * (257 if kind == "u2" else 1)
    found = open_upright_srgb(tiff(order, stored.astype(order + kind), 2, 8 * stored.itemsize, planes=2))
    if kind == "u2":
        assert found == Undecodable("image_unsupported", "TIFF: uncompressed planes of 16 bits")
    else:
        assert (np.asarray(found) == np.moveaxis(planes, 0, 2)).all()


@pytest.mark.parametrize("transparent", [b"", b"\x21\xf9\x04\1\0\0\0\0"])
@pytest.mark.parametrize("palette", [(255, 0, 0, 0, 0, 255), (0, 0, 0, 1, 1, 1)])
def test_what_the_first_picture_of_a_gif_leaves_is_transparent(transparent, palette):
    """As in browsers: 2 x 2 pixels of colour 1 at (1, 1) of a canvas of 4 x 4. transparent: nothing, or colour 0."""
    codes = sum(code << 3 * place for place, code in enumerate((4, 1) * 4 + (5,)))  # no table of strings ever grows
    frame = b"\x2c" + struct.pack("<HHHHB", 1, 1, 2, 2, 0) + b"\x02\x04" + codes.to_bytes(4, "little") + b"\0"
    data = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(palette) + transparent + frame + b"\x3b"
    found = open_upright_srgb(data, image_rules("#00ff00"))
    wanted = np.full((4, 4, 3), (0, 255, 0))
    wanted[1:3, 1:3] = palette[3:]
    assert np.asarray(found).tolist() == wanted.tolist()
