"""What is decoded in the process itself, and what is not: by formats, and by the parts that make decoding costly."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from embedpipe.images import cost
from embedpipe.images.cost import is_bounded
from tests import costly, shards
from tests.costly import jpeg_with, png_with

PICTURE = shards.pixels(3, 60, 80)


def encoded(format, image=PICTURE, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encoded("JPEG"),
        encoded("JPEG", progressive=True),
        encoded("JPEG", PICTURE.convert("L")),
        encoded("JPEG", PICTURE.convert("CMYK"), progressive=True),
        encoded("PNG"),
        encoded("PNG", PICTURE.convert("RGBA")),
        encoded("PNG", PICTURE.quantize(16), transparency=0),
        encoded("WEBP"),
        encoded("WEBP", lossless=True),
        encoded("WEBP", PICTURE.convert("RGBA"), exif=b"Exif\0\0" + costly.exif_of_entries(2, 10)),
        jpeg_with((b"\xff\xe1", b"Exif\0\0" + costly.exif_of_entries(5, 60_000)), (b"\xff\xe2", b"ICC_PROFILE\0")),
        png_with((b"tEXt", b"Title\0of a picture"), (b"eXIf", costly.exif_of_entries(2, 10))),
        encoded("PNG", shards.pixels(3, 700, 900)),
        encoded("JPEG", shards.pixels(3, 700, 900), quality=100),
    ],
)
def test_pictures_as_the_web_has_them_are_bounded(data):
    assert is_bounded(data)
    assert is_bounded(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"a caption", b"<svg/>", b"\0" * 1000, b"%!PS-Adobe-3.0", b"8BPS", b"\xff\xd8"])
def test_what_is_no_picture_is_refused_at_once(data):
    assert is_bounded(data)


@pytest.mark.parametrize("format", ["GIF", "BMP", "DIB", "TIFF", "JPEG2000", "ICO", "PPM", "AVIF"])
def test_other_formats_are_not_judged(format):
    assert not is_bounded(encoded(format))


def test_every_format_that_pillow_recognises_is_known():
    """Whatever begins like an image of a format that decoding allows is JPEG, PNG or WebP, or not judged."""
    from embedpipe.images import as_open_clip

    Image.init()
    for beginning in range(1 << 16):
        data = beginning.to_bytes(2, "big") + bytes(14)
        accepted = [name for name in as_open_clip._FORMATS if Image.OPEN[name][1] and Image.OPEN[name][1](data)]
        assert not accepted or accepted == ["JPEG"] or not is_bounded(data), (data, accepted)


SMALL_PROFILE, LARGE_PROFILE = zlib.compress(bytes(3000)), zlib.compress(bytes(1 << 20))


@pytest.mark.parametrize(
    "data",
    [
        costly.jpeg_of_scans(64, 40),
        encoded("WEBP", save_all=True, append_images=[shards.pixels(4, 60, 80)]),
        jpeg_with(*[(b"\xff\xfe", b"")] * 20_000),
        jpeg_with(*[(b"\xff\xe1", b"Exif\0\0" + bytes(60_000))] * 2),
        jpeg_with(*[(b"\xff\xe2", b"ICC_PROFILE\0" + bytes(3000))] * 2),
        jpeg_with((b"\xff\xfe", bytes(10)))[:2] + b"\xff" * 70_000 + shards.jpeg()[2:],
        png_with(*[(b"vpAg", b"")] * 20_000),
        png_with((b"eXIf", bytes(70_000))),
        png_with((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(1 << 20)))),
        png_with((b"iCCP", b"name\0\0" + LARGE_PROFILE)),
    ],
)
def test_costly_parts_are_seen(data):
    assert not is_bounded(data)


def test_scans_are_counted_wherever_they_begin():
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 1 << 15, (1 << 15) + 1, (1 << 15) + 2, 200_000):
        data = rng.choice(np.frombuffer(b"\x00\xff\xda", np.uint8), size).tobytes()
        assert cost._scans(data) == data.count(b"\xff\xda")


def test_a_small_profile_is_bounded():
    assert is_bounded(png_with((b"iCCP", b"name\0\0" + SMALL_PROFILE)))


def test_a_scan_of_some_components_makes_a_sequential_jpeg_one_of_many_scans():
    data = bytearray(shards.jpeg())
    at = data.index(b"\xff\xda")
    data[at + 4] = 1
    assert is_bounded(bytes(data))
    assert not is_bounded(bytes(data[:-2] + data[at:-2] * 40 + data[-2:]))
