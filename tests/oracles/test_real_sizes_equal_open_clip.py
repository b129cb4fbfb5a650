"""Models of real size, one of each family, give in fp32 what open_clip gives when it is called by hand."""

import copy
import tarfile

import numpy as np
import open_clip
import pytest
import torch
from open_clip.factory import _MODEL_CONFIGS
from PIL import Image

from embedpipe.encode.job import encode
from embedpipe.load import EmbeddingDataset
from tests import shards
from tests.pictures import reading

MODES = ["RGB", "RGBA", "LA", "L", "P", "P+transparency", "CMYK", "I;16", "1"]
CAPTIONS = ["a dog", "an old house beside a river, seen from far away", "猫 №4", "a very long caption " * 20]


@pytest.fixture
def siglip():
    """ViT-B-16-SigLIP with CLIP's tokenizer: its own would have to be downloaded."""
    config = copy.deepcopy(open_clip.get_model_config("ViT-B-16-SigLIP"))
    for name in ("hf_tokenizer_name", "tokenizer_kwargs"):
        del config["text_cfg"][name]
    config["text_cfg"]["vocab_size"] = 49408
    _MODEL_CONFIGS["test-sigmoid"] = config
    yield
    del _MODEL_CONFIGS["test-sigmoid"]


def members():
    found = []
    for i, mode in enumerate([*MODES, "RGB", "L", "RGB"]):
        format = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
        image = shards.pixels(i, 150 + 60 * (i % 4), 190 + 45 * (i % 5), mode)
        found.append((f"{i:03d}.{format.lower()}", shards.encoded(image, format)))
        found.append((f"{i:03d}.txt", CAPTIONS[i % len(CAPTIONS)].encode()))
    return found


def by_hand(name, place):
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=None)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    pictures, captions = [], []
    with tarfile.open(place) as archive:
        for entry in archive:
            data = archive.extractfile(entry).read()
            if entry.name.endswith(".txt"):
                captions.append(data.decode())
            else:
                pictures.append(transform(Image.fromarray(reading(data))))
    with torch.no_grad():
        image = model.encode_image(torch.stack(pictures), normalize=True)
        text = model.encode_text(tokenizer(captions), normalize=True)
    return image.double().numpy(), text.double().numpy()


@pytest.mark.slow
@pytest.mark.usefixtures("siglip")
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "test-sigmoid", "coca_ViT-B-32", "EVA02-B-16", "convnext_base"])
def test_rows_of_all_modes_are_what_open_clip_gives(name, tmp_path, encode_config):
    """To the bit of the pixels; `exact`, off by one of 255 here and there, shows in a convolutional tower first."""
    place = shards.write_tar(tmp_path / "in.tar", members())
    image, text = by_hand(name, place)
    bounds = {"exact": 3e-6}
    if name in ("RN50", "test-sigmoid"):  # convolutions, and another resizing: what the bits do shows in either
        bounds["pillow"] = 1e-6
    for decode, most in bounds.items():
        out = str(tmp_path / decode)
        model = {"pretrained": "random", "dtype": "float32", "decode": decode}
        encode(place, out, encode_config(name, **model, threads_per_worker=2, stage={"batch_size": 5}))
        dataset = EmbeddingDataset(out)
        assert len(dataset) == 12
        for found, expected, bound in ((dataset.image.read(), image, most), (dataset.text.read(), text, 1e-6)):
            cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
            assert (1 - cosine).max() <= bound
