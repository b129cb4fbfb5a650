"""Every resizer gives the bytes that img2dataset's gives."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from embedpipe.errors import MissingExtra, OptionError
from embedpipe.fetch import RESIZE_MODES, resizers
from embedpipe.fetch.config import IMAGE_FORMATS
from embedpipe.fetch.download.image import PictureRules
from embedpipe.fetch.resizers import RESIZERS

OTHERS = [name for name in RESIZERS if name != "img2dataset"]
SIZES = [(64, 64), (1, 1), (1, 200), (200, 1), (63, 64), (65, 64), (33, 57), (128, 31), (300, 211), (97, 500), (7, 5)]


def body(mode, width, height, format="PNG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if mode == "L" else pixels).save(stream, format)
    return stream.getvalue()


def both(name, data, image_format, quality, **rules):
    chosen = PictureRules(
        **{"image_size": 64, "min_image_size": 0, "max_aspect_ratio": 0.0, "orient": True, **rules},
        image_format=image_format,
    )
    return [resizers.make_resizer(it, chosen, quality)(io.BytesIO(data), None) for it in ("img2dataset", name)]


@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("name", OTHERS)
def test_the_same_bytes_for_any_size_and_channels(name, mode, only_if_bigger):
    for seed, (width, height) in enumerate(SIZES):
        for channels in ("L", "RGB", "RGBA"):
            data = body(channels, width, height, seed=seed)
            left, right = both(name, data, "png", 1, resize_mode=mode, only_if_bigger=only_if_bigger)
            assert left == right, (width, height, channels)
            assert left[0] is not None


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("name", OTHERS)
def test_the_same_bytes_of_and_as_any_format(name, image_format, format):
    usual, allowed = IMAGE_FORMATS[image_format]
    for quality in (usual, allowed[0], allowed[-1]):
        data = body("RGB", 131, 90, format)
        left, right = both(name, data, image_format, quality, resize_mode="keep_ratio", only_if_bigger=True)
        assert left == right


def test_it_loads_none_of_what_the_resizer_does_not_need():
    """Each download process makes one."""
    program = (
        "import sys; from embedpipe.fetch import resizers; from embedpipe.fetch.download.image import PictureRules\n"
        "resizers.make_resizer('img2dataset', PictureRules(64, 'border', True, 0, 0.0, True, 'jpg'), 95)\n"
        "print({'torch', 'ray', 'wandb', 'pandas'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


@pytest.mark.parametrize("data", [b"", b"no image", body("RGB", 90, 70)[:60]])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_is_said_and_not_raised(name, data):
    left, right = both(name, data, "jpg", 95, resize_mode="keep_ratio", only_if_bigger=True)
    assert right[:5] == left[:5] == (None,) * 5
    assert isinstance(right[5], str)
    assert ("OpenCV" in right[5]) == ("OpenCV" in left[5])


def test_auto_is_the_first_that_is_installed(monkeypatch):
    assert resizers.choose_resizer("auto") == "img2dataset"
    real = resizers.importlib.util.find_spec
    monkeypatch.setattr(
        resizers.importlib.util, "find_spec", lambda name: None if name == "img2dataset" else real(name)
    )
    assert resizers.choose_resizer("auto") == "opencv"
    with pytest.raises(MissingExtra, match=r"with img2dataset, and .* `pip install img2dataset`"):
        resizers.choose_resizer("img2dataset")
    with pytest.raises(OptionError, match="`resizer='openvc'`: no such resizer"):
        resizers.choose_resizer("openvc")
