"""Small pictures for pages: of every format, and none of what costs too much or crashes."""

import numpy as np
import pytest

from embedpipe.images import thumbnail
from embedpipe.images.html import picture
from embedpipe.images.open import open_upright_srgb
from embedpipe.images.sheet import SheetCell, contact_sheet
from tests import costly, shards


@pytest.mark.parametrize("format", ["JPEG", "GIF", "TIFF"])
def test_a_small_picture_is_the_shrunk_one_wherever_it_is_made(format):
    data = shards.encoded(shards.pixels(2, 90, 120), format)
    expected = open_upright_srgb(data)
    expected.thumbnail((32, 32))
    small = thumbnail.small_picture(data, 32)
    assert small.size == (32, 24)
    assert np.array_equal(np.asarray(small), np.asarray(expected))


def test_pages_show_none_of_what_costs_too_much(monkeypatch):
    monkeypatch.setattr(thumbnail, "DEFAULT_MAX_PIXELS", 1_000_000)
    bomb = costly.tiff_of_one_tile(20_000, 20_000)
    assert thumbnail.small_picture(bomb, 32) is None
    assert picture(bomb) == picture(None) == "<i>no picture</i>"
    assert contact_sheet([SheetCell(bomb, "text")]) == contact_sheet([SheetCell(None, "text")])
