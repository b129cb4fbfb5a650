"""Tags of six families, with stand-in weights in place of the download, compute what open_clip's table says of them.

The architectures are those of the tables, but for fewer layers and a smaller vocabulary where that only costs time.
What they must compute is written down here once more, by hand.
"""

import copy
import io
import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip.factory import _MODEL_CONFIGS
from open_clip.pretrained import _PRETRAINED
from PIL import Image
from safetensors.torch import save_file

from embedpipe.clip_model.spec import resolve_spec
from embedpipe.encode import EncoderConfig, load_encoder
from embedpipe.encode.model_checks import activations, cleaning, pooling, text_tower
from embedpipe.images.decode import decode
from tests import shards

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)
PLAIN = ((0.0,) * 3, (1.0,) * 3)
# model, tag: activation of image and text tower (None: of another library), mean and std, interpolation, resize mode.
TRAINED = {
    ("ViT-B-32", "openai"): ("quick_gelu", "quick_gelu", CLIP, "bicubic", "shortest"),
    ("ViT-B-32", "laion2b_s34b_b79k"): ("gelu", "gelu", CLIP, "bicubic", "shortest"),
    ("ViT-B-32", "metaclip_400m"): ("quick_gelu", "quick_gelu", CLIP, "bicubic", "shortest"),
    ("ViT-B-32-SigLIP2-256", "webli"): (None, "gelu_tanh", HALF, "bicubic", "squash"),
    ("PE-Core-T-16-384", "meta"): (None, "gelu", HALF, "bilinear", "squash"),
    ("MobileCLIP2-S0", "dfndr2b"): (None, "gelu", PLAIN, "bilinear", "shortest"),
}
CAPTIONS = ["a red bicycle", "An old House, beside a river", "cat_and_dog!"]


def smaller(model):
    config = copy.deepcopy(_MODEL_CONFIGS[model])
    config["text_cfg"]["layers"] = 2
    if isinstance(config["vision_cfg"].get("layers"), int):
        config["vision_cfg"]["layers"] = 2
    if config["text_cfg"].get("vocab_size", 0) > 50_000:
        config["text_cfg"]["vocab_size"] = 1000
    return config


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    """A small tokenizer of Hugging Face's, which every name on the hub leads to."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "bicycle", "old", "house", "cat"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(tmp_path / "tokenizer")
    load = transformers.AutoTokenizer.from_pretrained
    here = str(tmp_path / "tokenizer")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name, **how: load(here, **how))


@pytest.fixture
def stand_in(tmp_path, monkeypatch, tokenizer):
    """Puts random weights of a model in the place of every download; called with the model's name."""

    def prepare(model):
        for name in (model, f"{model}-quickgelu"):
            if name in _MODEL_CONFIGS:
                monkeypatch.setitem(_MODEL_CONFIGS, name, smaller(name))
        torch.manual_seed(0)
        made = open_clip.create_model(model, pretrained=None)
        file = tmp_path / "weights.safetensors"
        save_file({name: value.contiguous().clone() for name, value in made.state_dict().items()}, file)
        monkeypatch.setattr("open_clip.factory.download_pretrained", lambda config, **_: str(file))
        return str(file)

    return prepare


def by_hand(model, tag, quick_gelu, data):
    """(images [n, d], texts [n, d]) as open_clip gives them when it is told the activation."""
    built, _, transform = open_clip.create_model_and_transforms(model, pretrained=tag, force_quick_gelu=quick_gelu)
    built.eval()
    pixels = torch.stack([transform(Image.open(io.BytesIO(one))) for one in data])
    with torch.no_grad():
        image = built.encode_image(pixels, normalize=True)
        text = built.encode_text(open_clip.get_tokenizer(model)(CAPTIONS), normalize=True)
    return image.numpy(), text.numpy()


def ours(encoder, data):
    decoded = [decode(one, encoder.card.preprocess, how="pillow").pixels for one in data]
    return encoder.images(torch.stack(decoded)).wait().rows, encoder.texts(CAPTIONS).rows


def distance(one, other):
    return max(float((1 - (a.astype(np.float64) * b).sum(1)).max()) for a, b in zip(one, other, strict=True))


PICTURES = [shards.png(1, 300, 420), shards.png(2, 500, 260)]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "tag"), TRAINED)
def test_a_tag_computes_as_it_was_trained(model, tag, stand_in):
    image, text, (mean, std), interpolation, resize_mode = TRAINED[model, tag]
    stand_in(model)
    encoder = load_encoder(EncoderConfig(model, tag, precision="fp32"))
    used, card = encoder.card.preprocess, encoder.card
    assert (used.mean, used.std, used.interpolation, used.resize_mode) == (mean, std, interpolation, resize_mode)
    assert card.image_tower.activation == (image or card.image_tower.activation) != "none"
    assert card.text_tower.activation == text
    assert distance(ours(encoder, PICTURES), by_hand(model, tag, text == "quick_gelu", PICTURES)) < 1e-6


@pytest.mark.slow
def test_openais_weights_are_the_same_model_under_both_names(stand_in):
    file = stand_in("ViT-B-32")
    made = {
        name: load_encoder(EncoderConfig(model, tag, precision="fp32"))
        for name, model, tag in (
            ("bare", "ViT-B-32", "openai"),
            ("named", "ViT-B-32-quickgelu", "openai"),
            ("file", "ViT-B-32-quickgelu", file),
            ("laion", "ViT-B-32", "laion2b_s34b_b79k"),
        )
    }
    rows = {name: ours(encoder, PICTURES) for name, encoder in made.items()}
    prints = {name: encoder.card.fingerprint() for name, encoder in made.items()}
    assert distance(rows["bare"], rows["named"]) < 1e-6
    assert distance(rows["bare"], rows["file"]) < 1e-6
    assert distance(rows["bare"], rows["laion"]) > 1e-5
    assert prints["bare"] == prints["named"] == prints["file"] != prints["laion"]
    old = load_encoder(EncoderConfig("ViT-B-32", "openai", precision="fp32", as_version_0_1=True))
    assert distance(rows["laion"], ours(old, PICTURES)) < 1e-6  # what version 0.1 computed for `openai`


def _without_the_hub(model):
    """Whether a model can be built here: a text tower of transformers needs its configuration from the hub."""
    return "hf_model_name" not in _MODEL_CONFIGS[model]["text_cfg"]


_TOKENIZERS = {}


def tokenizer_of(model):
    """open_clip's tokenizer of a model, a second's work; models whose tables say the same of it share one."""
    text = _MODEL_CONFIGS[model]["text_cfg"]
    names = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "context_length")
    kind = json.dumps([text.get(name) for name in names] + ["siglip" in model.lower()])
    if kind not in _TOKENIZERS:
        _TOKENIZERS[kind] = open_clip.get_tokenizer(model)
    return _TOKENIZERS[kind]


@pytest.mark.slow
@pytest.mark.parametrize("model", list(filter(_without_the_hub, _PRETRAINED)))
def test_the_modules_of_every_tag_are_what_the_tables_say(model, tokenizer):
    made = tokenizer_of(model)
    for spec in {resolve_spec(model, tag).quick_gelu: resolve_spec(model, tag) for tag in _PRETRAINED[model]}.values():
        with torch.device("meta"):
            built = open_clip.create_model(
                model, device="meta", force_quick_gelu=spec.quick_gelu, force_preprocess_cfg=spec.preprocess
            )
            width = built.encode_image(torch.zeros(1, 3, *spec.size)).shape[-1]
        assert width == spec.dim
        found = activations(built.visual), activations(text_tower(built))
        assert "none" not in found
        wanted = spec.image_tower.activation or found[0], spec.text_tower.activation or found[1]
        assert found == wanted
        cfg = built.visual.preprocess_cfg
        size = cfg["size"] if isinstance(cfg["size"], tuple | list) else (cfg["size"],) * 2
        assert tuple(size) == spec.size
        assert {name: cfg[name] for name in spec.preprocess} == spec.preprocess
        assert pooling(built, spec.image_tower, spec.text_tower) == (spec.image_tower.pooling, spec.text_tower.pooling)
        assert cleaning(made) == spec.text_preprocess.clean
        tower = getattr(built, "text", built)
        assert made.context_length == len(made(["a cat"])[0]) == spec.context_length
        # A class token of the tower's own has the last place.
        own = getattr(tower, "cls_emb", None) is not None
        assert len(tower.positional_embedding) == spec.context_length + own
