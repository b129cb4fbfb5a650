"""Every kind of picture is read as Pillow's ImageCms, ImageOps and alpha_composite read it, on every way in.

Modes × formats × profiles × orientations × backgrounds, within 1 of 255: in `fetch` (sizes kept, stored as PNG),
`encode`, `search --image` and on pages.
"""

import itertools

import numpy as np
import pytest
from PIL import Image

from embedpipe.clip_model.encoder_card import PreprocessSpec
from embedpipe.fetch import resizers
from embedpipe.fetch.download.image import PictureMaker, PictureRules
from embedpipe.images.decode import decode
from embedpipe.images.open import open_upright_srgb
from embedpipe.images.rules import background_rgb, image_rules
from embedpipe.images.sheet import thumbnail
from embedpipe.index.query_model import embed_image
from tests import profiles, shards
from tests.pictures import opened, reading

FORMATS = {
    "RGB": ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "HEIF", "PPM"),
    "RGBA": ("PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "HEIF"),
    "L": ("JPEG", "PNG", "TIFF", "BMP", "GIF", "JPEG2000", "PPM"),
    "LA": ("PNG", "TIFF", "JPEG2000"),
    "P": ("PNG", "GIF", "BMP", "TIFF"),
    "P+transparency": ("PNG", "GIF"),
    "CMYK": ("JPEG", "TIFF"),
    "1": ("PNG", "TIFF", "BMP", "PPM"),
    "I;16": ("PNG", "TIFF", "JPEG2000"),
    "I": ("TIFF",),
    "F": ("TIFF",),
    "RGB+transparency": ("PNG",),
    "L+transparency": ("PNG",),
}
PROFILES = {
    "none": None,
    "p3": profiles.rgb(),
    "adobe": profiles.rgb(profiles.ADOBE_RGB),
    "grey": profiles.grey(),
    "cmyk": profiles.cmyk(),
    "broken": b"no profile at all",
}
WITH_PROFILE = {"JPEG", "PNG", "WEBP", "TIFF", "AVIF"}
WITH_EXIF = {"JPEG", "PNG", "WEBP", "TIFF", "AVIF"}
LOSSLESS = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}, "HEIF": {"quality": -1}}
BACKGROUNDS = ("white", "#20c0ff")


def image_of(mode, seed):
    if mode in ("I", "F"):
        values = np.asarray(shards.pixels(seed, 30, 44, "L")).astype(np.float32)
        return Image.fromarray(values / 255 if mode == "F" else values.astype(np.int32) * 200)
    if mode.endswith("+transparency") and not mode.startswith("P"):
        image = shards.pixels(seed, 30, 44, mode.partition("+")[0])
        image.info["transparency"] = image.getpixel((9, 9))
        return image
    return shards.pixels(seed, 30, 44, mode)


def picture(mode, format, profile, orientation):
    options = dict(LOSSLESS.get(format, {}))
    if PROFILES[profile] is not None:
        options["icc_profile"] = PROFILES[profile]
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    return shards.encoded(image_of(mode, orientation), format, **options)


def cases():
    for mode, formats in FORMATS.items():
        for format, profile, orientation in itertools.product(formats, PROFILES, range(1, 9)):
            if (profile == "none" or format in WITH_PROFILE) and (orientation == 1 or format in WITH_EXIF):
                yield mode, format, profile, orientation


ALL = list(cases())
# Each mode in each format with each profile once, in one orientation after the other.
FEW = [
    tuple(group)[number % len(group)]
    for number, group in enumerate(
        [case for case in ALL if case[:3] == kind] for kind in dict.fromkeys(case[:3] for case in ALL)
    )
]


class Seen:
    """An encoder that keeps the pixels it is given."""

    def __init__(self, rules, height, width):
        self.card = self
        self.rules = rules
        self.preprocess = PreprocessSpec((height, width), (0.0,) * 3, (1.0,) * 3, "bicubic", "squash", 0)

    def images(self, pixels):
        self.pixels = pixels[0].permute(1, 2, 0).numpy()
        self.rows = np.zeros((1, 1), np.float32)
        return self

    def wait(self):
        return self


def ways(data, background, folder):
    """Each way's name and pixels."""
    rules = image_rules(background)
    expected = open_upright_srgb(data, rules)
    yield "open", np.asarray(expected)
    height, width = expected.height, expected.width
    seen = Seen(rules, height, width)
    for how in ("exact", "pillow"):
        yield how, decode(data, seen.preprocess, rules, how=how).pixels.permute(1, 2, 0).numpy()
    (folder / "query").write_bytes(data)
    embed_image(seen, str(folder / "query"))
    yield "search", seen.pixels
    stored = PictureRules(64, "no", True, 0, 0.0, True, "png", background)
    made = PictureMaker(stored, resizers.make_resizer("opencv", stored, 1)).make(data)
    yield "fetch", np.asarray(opened(made.data).convert("RGB"))
    if background == "white":
        yield "pages", np.asarray(thumbnail(data, max(height, width)))


def check(cases, folder):
    for mode, format, profile, orientation in cases:
        data = picture(mode, format, profile, orientation)
        for background in BACKGROUNDS if "A" in mode or "+" in mode else BACKGROUNDS[:1]:
            expected = reading(data, background_rgb(image_rules(background)))
            for way, found in ways(data, background, folder):
                case = (way, mode, format, profile, orientation, background)
                assert found.shape == expected.shape, case
                assert np.abs(found.astype(int) - expected).max() <= 1, case


@pytest.mark.parametrize("mode", FORMATS)
def test_all_ways_see_what_pillow_sees(mode, tmp_path):
    check([case for case in FEW if case[0] == mode], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", FORMATS)
def test_all_ways_see_what_pillow_sees_in_every_combination(mode, tmp_path):
    check([case for case in ALL if case[0] == mode], tmp_path)
