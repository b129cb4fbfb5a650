"""Decoding with limits: the same pixels as without, and costly images are rejected for what they cost."""

import io

import pytest
import torch

from embedpipe.images.cost import is_bounded
from embedpipe.images.decode import DecodedImage, Undecodable, decode
from embedpipe.images.guarded import guarded_decode
from tests import costly, shards
from tests.unit.embedpipe.images.test_decode import spec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "ICO", "PPM", "AVIF")


def encoded(format, **options):
    stream = io.BytesIO()
    shards.pixels(5, 50, 70).save(stream, format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("how", ["exact", "pillow"])
@pytest.mark.parametrize("format", FORMATS)
def test_pixels_are_those_of_decode(format, how):
    data = encoded(format)
    expected = decode(data, spec(), how=how)
    assert isinstance(expected, DecodedImage)
    for careful in (False, True):
        found = guarded_decode(data, spec(), how=how, careful=careful)
        assert torch.equal(found.pixels, expected.pixels)
        assert (found.width, found.height) == (expected.width, expected.height)


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_told_as_decode_tells_it(format):
    data = encoded(format)
    cut = data[: len(data) // 2]
    assert type(guarded_decode(cut, spec(), careful=True)) is type(decode(cut, spec()))
    assert guarded_decode(data, spec(), max_pixels=10, careful=True).error_class == "image_too_large"


@pytest.mark.slow
def test_a_tile_larger_than_the_image_is_not_allocated():
    found = guarded_decode(costly.tiff_of_one_tile(), spec())
    assert isinstance(found, Undecodable)
    assert found.error_class == "too_costly_memory"


def test_memory_is_bounded_by_the_pixels_allowed():
    data = costly.tiff_of_one_tile(20_000, 20_000)  # 400 MB
    assert isinstance(guarded_decode(data, spec()), DecodedImage)
    assert guarded_decode(data, spec(), max_pixels=1_000_000).error_class == "too_costly_memory"


def test_many_scans_are_ended_after_the_time_of_a_sample():
    data = costly.jpeg_of_scans(4_000, 3_000)
    assert not is_bounded(data)
    found = guarded_decode(data, spec(), max_seconds=0.5)
    assert found == Undecodable("too_costly_time", "more than 0.5 s of processor time")


def test_tags_that_point_at_one_large_block_are_bounded():
    data = encoded("TIFF")
    at = int.from_bytes(data[4:8], "little")
    entries, block = 60_000, 1 << 20
    tags = costly.exif_of_entries(entries, block)[10 : 10 + 12 * entries]
    count = int.from_bytes(data[at : at + 2], "little")
    everything = (count + entries).to_bytes(2, "little") + data[at + 2 : at + 2 + 12 * count] + tags
    made = data[:4] + (len(data) + block).to_bytes(4, "little") + data[8:] + bytes(block) + everything + bytes(4)
    found = guarded_decode(made, spec(), max_seconds=5.0)
    assert isinstance(found, DecodedImage) or found.error_class in ("too_costly_memory", "too_costly_time")
