"""Encoded rows are what open_clip gives when it is called by hand: its transform, its tokenizer, its towers."""

import json
import tarfile

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from embedpipe.encode.job import encode
from embedpipe.load import EmbeddingDataset
from tests import shards, tiny_clip
from tests.pictures import reading

MODES = ["RGB", "RGBA", "LA", "L", "P", "P+transparency", "CMYK", "I;16", "1"]


def members():
    found = []
    for i in range(30):
        mode = MODES[i % len(MODES)]
        image = shards.pixels(i, 20 + 13 * (i % 5), 24 + 7 * (i % 7), mode)
        format = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
        found.append((f"{i:03d}.{format.lower()}", shards.encoded(image, format)))
        text = "a very long caption " * 20 if i % 9 == 0 else f"{shards.caption(i)} 猫 №{i % 4}"
        found.append((f"{i:03d}.txt", text.encode()))
    return found


def by_hand(folder, place):
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    images, texts = [], []
    with tarfile.open(place) as archive, torch.no_grad():
        for entry in archive:
            data = archive.extractfile(entry).read()
            if entry.name.endswith(".txt"):
                texts.append(model.encode_text(tokenizer([data.decode()]), normalize=True)[0])
            else:
                images.append(model.encode_image(transform(Image.fromarray(reading(data)))[None], normalize=True)[0])
    return torch.stack(images).double().numpy(), torch.stack(texts).double().numpy()


PREPROCESS = {
    "squash": {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3, "size": 32},
    "longest": {"resize_mode": "longest", "fill_color": 90, "size": [32, 32]},
}


@pytest.mark.parametrize(
    ("architecture", "preprocess"),
    [(name, None) for name in tiny_clip.CONFIGS] + [("vit", name) for name in PREPROCESS],
)
@pytest.mark.parametrize(("decode", "most"), [("pillow", 1e-6), ("exact", 1e-4)])
def test_every_row_is_what_open_clip_gives(architecture, preprocess, decode, most, tmp_path, encode_config):
    """Of the picture as Pillow alone reads it, on white. `exact` may be off by one of 255 in a JPEG: next to nothing at
    224 px, more for these models of 32."""
    folder = tiny_clip.write(tmp_path / "model", tiny_clip.CONFIGS[architecture], preprocess=PREPROCESS.get(preprocess))
    place = shards.write_tar(tmp_path / "in.tar", members())
    out = str(tmp_path / "emb")
    encode(place, out, encode_config(folder, dtype="float32", decode=decode, stage={"batch_size": 7}))
    dataset = EmbeddingDataset(out)
    assert len(dataset) == 30
    image, text = by_hand(folder, place)
    for found, expected in ((dataset.image.read(), image), (dataset.text.read(), text)):
        cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert (1 - cosine).max() <= most
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    told = dataset.column("similarity").to_numpy()
    assert np.abs(told - (image * text).sum(1)).max() < 10 * most**0.5


def test_rows_differ_from_each_other(tmp_path, encode_config, tiny_model):
    encode(shards.write_tar(tmp_path / "in.tar", members()), str(tmp_path / "emb"), encode_config(dtype="float32"))
    image = EmbeddingDataset(str(tmp_path / "emb")).image.read()
    told_apart = image[[MODES[i % len(MODES)] != "I;16" for i in range(30)]]  # 16 bits become white when made RGB
    alike = told_apart @ told_apart.T
    assert (alike[~np.eye(len(alike), dtype=bool)] < 1 - 1e-5).all(), "an oracle over equal rows would prove nothing"


def test_the_card_holds_what_open_clip_says_of_the_model(tmp_path, tiny_encoder, tiny_model):
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tiny_model}")
    config = model.visual.preprocess_cfg
    spec = tiny_encoder.card.preprocess
    assert spec.mean == tuple(config["mean"])
    assert spec.std == tuple(config["std"])
    assert (spec.interpolation, spec.resize_mode) == (config["interpolation"], config["resize_mode"])
    assert tiny_encoder.card.dim == tiny_clip.VIT["embed_dim"]
    assert tiny_encoder.card.context_length == tiny_clip.VIT["text_cfg"]["context_length"]
    assert json.dumps(tiny_encoder.card.facts())
