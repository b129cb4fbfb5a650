"""The trunk's weights are in their places: with the package's own ImageNet classifier it knows what pictures show."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from resvg_py import svg_to_bytes

from dalle2_core.clip.packaged_weights import PACKAGED_TRUNKS, _locate
from dalle2_core.clip.trainable import TrainableClip
from dalle2_core.presets.clip import clip_preset
from embedpipe.demo.concepts import emoji_drawings

# Code point → ImageNet class.
PICTURES = {
    "1f993": ("flat", 340),  # zebra
    "1fad6": ("flat", 849),  # teapot
    "1fa97": ("flat", 401),  # accordion
    "1f3bb": ("flat", 889),  # violin
    "1f388": ("outlined", 417),  # balloon
    "26bd": ("outlined", 805),  # soccer ball
    "1f3c0": ("outlined", 430),  # basketball
    "1fa9b": ("outlined", 784),  # screwdriver
}


@pytest.fixture(scope="module")
def model():
    return TrainableClip(clip_preset("lite0").clip)


def test_the_right_class_is_among_the_five_best_of_a_thousand(model):
    classifier = torch.load(_locate(PACKAGED_TRUNKS["efficientnet-lite0"]), weights_only=True)
    for code, (style, true_class) in PICTURES.items():
        svg = emoji_drawings(style)[code].read_text()
        png = svg_to_bytes(svg_string=svg, width=96, height=96, background="white", skip_system_fonts=True)
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(bytes(png))).convert("RGB"))).permute(2, 0, 1)[None]
        logits = model.trunk_features(pixels)[0] @ classifier["_fc.weight"].T + classifier["_fc.bias"]
        assert true_class in logits.topk(5).indices, code
