"""What a file is, its first bytes say: for every format that Pillow writes, and for text that looks like none."""

import io

import pillow_heif
import pytest
from PIL import Image

from embedpipe.images import formats
from embedpipe.read import names

pillow_heif.register_heif_opener()


@pytest.mark.parametrize("kind", formats.EXTENSIONS)
def test_a_format_is_found_in_what_pillow_writes(kind):
    stream = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert("RGB").save(stream, kind)
    assert formats.format_of(stream.getvalue()[: formats.SNIFF_BYTES]) == kind
    assert formats.why_not_read(stream.getvalue()[: formats.SNIFF_BYTES]) is None


def test_every_format_has_extensions_of_its_own_and_readers_share_the_list():
    assert len(set(formats.IMAGE_EXTENSIONS)) == len(formats.IMAGE_EXTENSIONS)
    assert not set(formats.REFUSED_EXTENSIONS) & set(formats.IMAGE_EXTENSIONS)
    assert names.IMAGE_EXTENSIONS is formats.IMAGE_EXTENSIONS


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1miafavif....", "AVIF"),  # the brand that decides is among the compatible ones
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heicavif", "HEIF"),  # behind the box: data, no brand
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", None),
        (b"P6\n3 2\n255\n", "PPM"),
        (b"P7 is no picture", None),
        (b"P60", None),
        (b"BM and so on, a text of a bookmark", None),
        (b"%!PS-Adobe-3.0 EPSF", None),
        (b"", None),
    ],
)
def test_the_first_bytes_decide(start, kind):
    assert formats.format_of(start) == kind


@pytest.mark.parametrize(
    "start",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"\xef\xbb\xbf\n <svg>",
        b'<?xml version="1.0"?>\n<!-- Generator: -->\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x" [ <!ENTITY',
        b"<!-- a --><!-- b -->\n<svg:svg xmlns:svg='x'>",
    ],
)
def test_svg_is_refused_by_name(start):
    assert formats.format_of(start) is None
    assert formats.why_not_read(start).startswith("SVG")


@pytest.mark.parametrize(
    "start",
    [
        b"<!doctype html><svg>",
        b"<html><body><svg>",
        b"<svgx>",
        b"<!-- <svg> --><html>",
        b"",
        b"<!---->" * 73,  # has 2^73 readings
        b" " * 512,
    ],
)
def test_other_text_is_no_svg(start):
    assert formats.why_not_read(start) is None


@pytest.mark.parametrize(
    ("start", "named"),
    [(b"\xff\x0a\0", "JPEG XL"), (b"8BPS\0\1", "Photoshop"), (b"%!PS-Adobe", "PostScript"), (b"%PDF-1.4", "PDF")],
)
def test_other_formats_are_named(start, named):
    assert formats.why_not_read(start).startswith(named)


def test_heic_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(formats, "heif_is_installed", lambda: False)
    assert "embedpipe[heif]" in formats.why_not_read(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
