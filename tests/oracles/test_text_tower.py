"""Cutting captions to their length changes nothing: shown for each family of text towers open_clip has."""

import open_clip
import pytest
import torch

from embedpipe.encode.text_tower import TextTower

CAPTIONS = [
    "a",
    "a photo of a cat",
    "!",
    "two dogs!!!",
    "a " * 100,
    "ein Bild von einem Haus am See",
    "",
    "a photo of a cat",
]

# A small one of each family: CLIP, CustomTextCLIP, CoCa (reads off an appended token), SigLIP (looks both ways).
TOWERS = {
    "clip": ({"context_length": 24, "width": 32, "heads": 2, "layers": 2}, {}, True),
    "custom_text": ({"context_length": 24, "width": 32, "heads": 2, "layers": 2}, {"custom_text": True}, True),
    "coca": (
        {"context_length": 24, "width": 32, "heads": 2, "layers": 2, "embed_cls": True},
        {"custom_text": True},
        False,
    ),
    "siglip": (
        {"context_length": 24, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True, "pool_type": "last"},
        {"custom_text": True},
        False,
    ),
    "last": (
        {"context_length": 24, "width": 32, "heads": 2, "layers": 2, "pool_type": "last"},
        {"custom_text": True},
        False,
    ),
}


def build(text_cfg, more):
    torch.manual_seed(0)
    vision = {"image_size": 16, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    kind = open_clip.CustomTextCLIP if more.get("custom_text") else open_clip.CLIP
    model = kind(embed_dim=16, vision_cfg=vision, text_cfg={"vocab_size": 49408, **text_cfg}).eval()
    # Fresh positions are so small that a shift of them would not show.
    tower = getattr(model, "text", model)
    with torch.no_grad():
        tower.positional_embedding.mul_(50)
    return model


@pytest.mark.parametrize("name", TOWERS)
@torch.inference_mode()
def test_rows_are_those_of_the_full_length(name):
    text_cfg, more, causal = TOWERS[name]
    model = build(text_cfg, more)
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    tower = TextTower(model, tokenizer, "cpu", batch_size=3)
    assert tower.cuts == causal
    positions = getattr(model, "text", model).positional_embedding
    found, _ = tower.embed(CAPTIONS)
    expected = model.encode_text(tokenizer(CAPTIONS), normalize=False)
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert torch.allclose(found.norm(dim=-1), expected.norm(dim=-1), rtol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(found.double(), expected.double())
    assert float((1 - cosine).max()) < 1e-6
    assert getattr(model, "text", model).positional_embedding is positions, "the model is left as it was"


@torch.inference_mode()
def test_a_tower_that_lies_about_itself_keeps_its_full_length(monkeypatch):
    model = build(*TOWERS["clip"][:2])

    # Reads off the last place while it says that it reads off the end token.
    def last(tokens, normalize):
        return torch.nn.functional.one_hot(tokens[:, -1] % 7, 7).float()

    monkeypatch.setattr(model, "encode_text", last)
    assert not TextTower(model, open_clip.SimpleTokenizer(context_length=24), "cpu", 4).cuts
