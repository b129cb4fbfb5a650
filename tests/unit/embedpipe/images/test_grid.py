"""Grids of pictures: every pixel is where it should be."""

import io

import numpy as np
from PIL import Image

from embedpipe.images.grid import grid_png


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_pictures_lie_in_rows_and_small_ones_are_enlarged_pixel_by_pixel():
    rng = np.random.default_rng(0)
    large, small = rng.integers(0, 256, (3, 3, 4, 4), np.uint8), rng.integers(0, 256, (2, 3, 2, 2), np.uint8)
    sheet = opened(grid_png([large, small]))
    assert sheet.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    for number, picture in enumerate(large):
        left = 2 + 6 * number
        assert np.array_equal(sheet[2:6, left : left + 4], picture.transpose(1, 2, 0))
    for number, picture in enumerate(small):
        left = 2 + 6 * number
        assert np.array_equal(sheet[8:12, left : left + 4][::2, ::2], picture.transpose(1, 2, 0))
    assert (sheet[8:12, 14:] == 255).all(), "a shorter row ends in white"


def test_one_channel_is_shown_as_grey():
    sheet = opened(grid_png([np.full((1, 1, 2, 2), 90, np.uint8)], side_px=6))
    assert (sheet[2:8, 2:8] == 90).all()
