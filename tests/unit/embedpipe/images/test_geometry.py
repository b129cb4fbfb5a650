"""Sizes, paddings and crops: those of open_clip's own transforms, told by what they make of images."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
from PIL import Image
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.functional import InterpolationMode

from embedpipe.clip_model.encoder_card import PreprocessSpec
from embedpipe.images.geometry import geometry

sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


def spec(size, resize_mode, interpolation="bicubic", fill=0):
    return PreprocessSpec(size, (0.0,) * 3, (1.0,) * 3, interpolation, resize_mode, fill)


def image(height, width):
    return Image.new("RGB", (width, height), "white")


@given(sizes, st.integers(1, 40))
def test_a_square_of_the_shorter_side_is_torchvisions(stored, side):
    found = geometry(*stored, spec((side, side), "shortest"))
    theirs = Resize(side, InterpolationMode.BICUBIC)(image(*stored))
    assert found.resized == (theirs.height, theirs.width)
    assert found.padding == (0, 0, 0, 0)
    assert found.crop == (side, side)
    assert min(found.resized) == side


@given(sizes, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from(["longest", "shortest"]))
def test_another_frame_is_filled_or_fitted_into_as_open_clip_does(stored, target, mode):
    if mode == "shortest" and target[0] == target[1]:
        return
    found = geometry(*stored, spec(target, mode))
    theirs = ResizeKeepRatio.get_params(image(*stored), target, longest=float(mode == "longest"))
    # open_clip fails where a side shrinks to nothing; one pixel of it stays here.
    assert found.resized == (max(1, theirs[0]), max(1, theirs[1]))
    assert found.crop == target


@given(sizes, st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_padding_brings_what_is_smaller_to_the_frame_around_its_centre(stored, target):
    found = geometry(*stored, spec(target, "longest", fill=9))
    left, top, right, bottom = found.padding
    assert (found.resized[0] + top + bottom, found.resized[1] + left + right) == target
    assert right - left in (0, 1)
    assert bottom - top in (0, 1)
    pads = CenterCropOrPad(target, fill=128)(Image.new("RGB", found.resized[::-1], "white"))
    box = pads.convert("L").point(lambda value: 255 * (value == 255)).getbbox()
    assert box == (left, top, left + found.resized[1], top + found.resized[0])


@given(sizes, st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_squashed_is_the_frame_itself(stored, target):
    found = geometry(*stored, spec(target, "squash"))
    assert found.resized == found.crop == target
    assert found.padding == (0, 0, 0, 0)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_only_what_is_padded_has_a_colour_to_fill_with(mode):
    assert geometry(10, 20, spec((8, 8), mode, fill=127)).fill == (127 if mode == "longest" else 0)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_the_interpolation_is_that_of_the_card(mode):
    for name, meant in (("bicubic", InterpolationMode.BICUBIC), ("bilinear", InterpolationMode.BILINEAR)):
        assert geometry(10, 20, spec((8, 8), mode, name)).interpolation == meant
        # Frames that are not square are filled by open_clip's own bicubic, whatever the card says.
        oblong = geometry(10, 20, spec((8, 9), mode, name)).interpolation
        assert oblong == (InterpolationMode.BICUBIC if mode == "shortest" else meant)
    assert geometry(10, 20, spec((8, 8), mode, "random")).interpolation == InterpolationMode.BICUBIC


def test_by_hand():
    assert geometry(100, 50, spec((20, 20), "shortest")).resized == (40, 20)
    assert geometry(50, 100, spec((20, 20), "shortest")).resized == (20, 40)
    assert geometry(30, 31, spec((20, 20), "shortest")).resized == (20, 20)
    assert geometry(100, 50, spec((20, 20), "longest")).padding == (5, 0, 5, 0)
    assert geometry(50, 100, spec((20, 21), "longest")).resized == (10, 21)
    assert geometry(100, 50, spec((21, 20), "longest")).padding == (5, 0, 5, 0)
    assert geometry(9, 20, spec((20, 20), "longest")).padding == (0, 5, 0, 6)
    assert CenterCrop(20)(image(40, 20)).size == (20, 20)
