"""Opening a picture: what counts as damage, what does not, and that nothing a decoder raises gets out."""

import ast
import io
import random

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
