"""What is stored of an image: Pillow and plain arithmetic say what it should be."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from embedpipe.errors import InputError
from embedpipe.execute import Cluster
from embedpipe.fetch import RESIZE_MODES, FetchConfig, resizers
from embedpipe.fetch.config import IMAGE_FORMATS
from embedpipe.fetch.download.image import PictureMaker, PictureRules
from embedpipe.fetch.outcome import ERROR_CLASSES, Failure
from tests import bodies, shards


def maker(image_format="png", quality=1, **rules):
    defaults = {"image_size": 64, "resize_mode": "no", "only_if_bigger": True, "min_image_size": 0}
    chosen = PictureRules(**{**defaults, "max_aspect_ratio": 0.0, "orient": True, **rules}, image_format=image_format)
    return PictureMaker(chosen, resizers.make_resizer("img2dataset", chosen, quality))


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def array(image):
    return np.asarray(image.convert("RGB")).astype(int)


def with_orientation(image, value, format="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(image, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_is_applied_once_as_pillow_applies_it(value, format):
    body = with_orientation(shards.pixels(value, 30, 50), value, format)
    made = maker().make(body)
    expected = ImageOps.exif_transpose(opened(body))
    assert (made.width, made.height) == (made.original_width, made.original_height) == expected.size
    assert made.orientation == (value if value > 1 else None)
    # Two JPEG decoders may differ by a rounding; a turn in the wrong direction is far off.
    assert np.abs(array(opened(made.data)) - array(expected)).mean() < 1
    assert opened(made.data).getexif().get(0x0112) is None  # no viewer turns it again
    again = maker().make(made.data)
    assert (again.orientation, again.data) == (None, made.data)


def test_orientation_can_be_left_alone():
    body = with_orientation(shards.pixels(1, 30, 50), 6)
    made = maker(orient=False).make(body)
    assert (made.width, made.height, made.orientation) == (50, 30, None)


@given(value=st.one_of(st.integers(0, 65535), st.just(None)), size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_any_orientation_tag_ends_in_an_upright_image(value, size):
    image = Image.new("RGB", size, (9, 99, 199))
    body = encoded(image, "PNG") if value is None else with_orientation(image, value)
    made = maker().make(body)
    assert (made.width, made.height) == (size[::-1] if value in (5, 6, 7, 8) else size)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(50, 30), (200, 300), (900, 500), (64, 64)])
def test_sizes_are_what_the_modes_promise(size, mode, only_if_bigger, orientation):
    body = with_orientation(shards.pixels(1, size[1], size[0]), orientation)
    width, height = size if orientation == 1 else size[::-1]
    made = maker(resize_mode=mode, only_if_bigger=only_if_bigger).make(body)
    shorter, longer = min(width, height), max(width, height)
    side = shorter if mode in ("keep_ratio", "center_crop") else longer
    kept = mode == "no" or (only_if_bigger and side <= 64)
    if kept:
        expected = (width, height)
    elif mode in ("center_crop", "border"):
        expected = (64, 64)
    else:
        expected = (width * 64 / side, height * 64 / side)
    assert made.width == pytest.approx(expected[0], abs=1)
    assert made.height == pytest.approx(expected[1], abs=1)
    assert opened(made.data).size == (made.width, made.height)
    assert (made.original_width, made.original_height) == (width, height)


def test_border_is_white():
    made = maker(resize_mode="border", only_if_bigger=False).make(encoded(Image.new("RGB", (100, 20), (200, 0, 0))))
    pixels = array(opened(made.data))
    assert (pixels[0] == 255).all()
    assert (pixels[32] == [200, 0, 0]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P+transparency"])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF"])
def test_what_shows_through_is_white(mode, format):
    if (format, mode) in {("WEBP", "LA"), ("GIF", "LA"), ("WEBP", "P+transparency"), ("GIF", "RGBA")}:
        pytest.skip("no such image")
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    body = shards.encoded(shards.pixels(3, mode=mode), format, **options)
    seen = opened(body).convert("RGBA")
    alpha = np.asarray(seen)[..., 3:].astype(float) / 255
    expected = np.asarray(seen)[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(array(opened(maker().make(body).data)) - expected).max() <= 1


def test_sixteen_bits_keep_their_upper_eight():
    body = shards.encoded(shards.pixels(3, mode="I;16"), "PNG")
    expected = np.asarray(opened(body)).astype(int) >> 8
    assert (array(opened(maker().make(body).data)) == expected[..., None]).all()


def test_inks_become_light():
    body = encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=95)  # magenta and yellow: red
    red, green, blue = array(opened(maker().make(body).data)).mean((0, 1))
    assert red > 220
    assert max(green, blue) < 60


def test_the_first_frame_of_what_moves():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        body = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100, lossless=True)
        assert np.abs(array(opened(maker().make(body).data)) - [255, 0, 0]).max() <= 3, format


def test_colours_are_in_srgb():
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    body = encoded(Image.new("RGB", (20, 20), (120, 200, 40)), "PNG", icc_profile=swapped.tobytes())
    assert np.abs(array(opened(maker().make(body).data)) - [120, 200, 40]).max() <= 1  # a profile of another kind
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = bytearray(srgb)
    for tag in (b"rXYZ", b"gXYZ"):  # red and green change places
        at = wide.index(tag)
        wide[at : at + 4] = b"GXYZ" if tag == b"rXYZ" else b"rXYZ"
    wide[wide.index(b"GXYZ") :][:4] = b"gXYZ"
    wide = bytes(wide).replace(b"GXYZ", b"gXYZ").replace(b"sRGB", b"none").replace(b"s\0R\0G\0B", b"n\0o\0n\0e")
    wide = wide.replace(b"\0s\0R\0G\0B", b"\0n\0o\0n\0e")
    body = encoded(Image.new("RGB", (20, 20), (250, 10, 10)), "PNG", icc_profile=wide)
    red, green, _ = array(opened(maker().make(body).data)).mean((0, 1))
    assert green > 200 > 60 > red
    broken = encoded(Image.new("RGB", (20, 20), (120, 200, 40)), "PNG", icc_profile=b"nonsense")
    assert (array(opened(maker().make(broken).data)) == [120, 200, 40]).all()


@pytest.mark.parametrize(
    ("rules", "size", "kind"),
    [
        ({"min_image_size": 31}, (100, 30), "too_small"),
        ({"min_image_size": 30}, (100, 30), None),
        ({"max_aspect_ratio": 3.0}, (91, 30), "aspect_ratio"),
        ({"max_aspect_ratio": 3.0}, (30, 90), None),
        ({"resize_mode": "keep_ratio", "only_if_bigger": False, "image_size": 300}, (60_000, 1), "too_large"),
        ({"resize_mode": "keep_ratio", "only_if_bigger": False, "image_size": 10}, (60_000, 1), None),
        ({"image_format": "webp"}, (17_000, 3), "too_large"),
        ({"image_format": "jpg", "quality": 90}, (66_000, 3), "too_large"),
        # Reduced on the way to the resizer, it is no smaller than it was.
        ({"min_image_size": 1000, "image_size": 64, "resize_mode": "keep_ratio"}, (1000, 1010), None),
    ],
)
def test_the_header_decides_before_anything_is_decoded(rules, size, kind):
    body = encoded(Image.new("RGBA" if size == (1000, 1010) else "RGB", size))
    if kind is not None:
        body = body[:60]  # there is nothing to decode
    made = maker(**rules).make(body)
    assert (made.error_class if isinstance(made, Failure) else None) == kind


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damage_is_a_failure_with_a_class(format):
    body = encoded(shards.pixels(1, 60, 80), format)
    for end in (0, 1, 10, 30, len(body) // 2):
        made = maker().make(body[:end])
        assert isinstance(made, Failure), end
        assert made.error_class in ERROR_CLASSES
        assert made.message


@given(st.data())
def test_no_bytes_make_it_fall_over(data):
    whole = with_orientation(shards.pixels(1, 20, 30), 6, data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"])))
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    made = maker(resize_mode="keep_ratio", image_size=8).make(bytes(body))
    if isinstance(made, Failure):
        assert made.error_class in ERROR_CLASSES
    else:
        assert opened(made.data).size == (made.width, made.height)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_formats_and_qualities(image_format):
    body = encoded(shards.pixels(1, 60, 80))
    low, high = (
        maker(image_format, quality).make(body).data for quality in ((9, 0) if image_format == "png" else (20, 95))
    )
    assert opened(low).format == {"jpg": "JPEG"}.get(image_format, image_format.upper())
    assert len(low) < len(high)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_format": "jpeg"}, "`image_format='jpeg'`: no such format. Did you mean jpg"),
        ({"quality": 0}, "`quality=0`: for jpg it must be from 1 to 100"),
        ({"image_format": "png", "quality": 95}, "`quality=95`: for png it must be from 0 to 9"),
        ({"max_aspect_ratio": 0.5}, "`max_aspect_ratio=0.5`: must be at least 1"),
        ({"resize_mode": "crop"}, "`resize_mode='crop'`: no such mode"),
        ({"executor": "inline"}, "`executor='inline'`: not for fetch. Known: auto, processes, ray"),
        ({"cluster": Cluster("head:6379")}, "`address` is for `executor='ray'`, not auto"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(InputError, match=words):
        FetchConfig(**options)


def test_a_bomb_is_refused_without_being_unpacked():
    body = bodies.bomb()
    tracemalloc.start()
    made = maker().make(body)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made == Failure("too_large", "20000×20000 is more than 100000000 pixels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("unpacked"))
        assert maker().make(body) == made
    assert peak_bytes < 5_000_000
