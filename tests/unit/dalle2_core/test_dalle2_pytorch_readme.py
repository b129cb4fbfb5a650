"""The prior's part of DALLE2-pytorch's README runs after its import line was changed; only sizes are smaller."""

import pytest
import torch

from dalle2_core import CLIP, DiffusionPrior, DiffusionPriorNetwork, OpenClipAdapter
from dalle2_core.errors import ConfigError, ShapeError


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return CLIP(
        dim_text=32,
        dim_image=32,
        dim_latent=32,
        num_text_tokens=100,
        text_enc_depth=1,
        text_seq_len=12,
        text_heads=2,
        visual_enc_depth=1,
        visual_image_size=32,
        visual_patch_size=16,
        visual_heads=2,
    )


def pairs():
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(1, 90, (4, 12), generator=draw)
    # An end token, the largest number, and padding behind it.
    for row, end in enumerate((11, 3, 5, 8)):
        text[row, end], text[row, end + 1 :] = 99, 0
    return text, torch.rand(4, 3, 32, 32, generator=draw)


def network():
    torch.manual_seed(0)
    return DiffusionPriorNetwork(dim=32, depth=2, dim_head=16, heads=2)


def test_training_clip(clip):
    text, images = pairs()
    loss = clip(text, images, return_loss=True)
    loss.backward()
    assert clip.model.visual.proj.grad.abs().sum() > 0
    assert clip(text, images, return_loss=False).shape == (4,)


def test_training_and_sampling_from_texts_and_images(clip):
    text, images = pairs()
    diffusion_prior = DiffusionPrior(net=network(), clip=clip, timesteps=100, sample_timesteps=8, cond_drop_prob=0.2)
    loss = diffusion_prior(text, images)
    loss.backward()
    image_embeds = diffusion_prior.sample(text, num_samples_per_batch=2, cond_scale=1.0)
    assert image_embeds.shape == (4, 32)
    assert diffusion_prior.sample(text, timesteps=5).shape == (4, 32)
    assert not any(name.startswith("clip") for name in diffusion_prior.state_dict())


def test_training_on_embeddings_computed_before(clip):
    text, images = pairs()
    diffusion_prior = DiffusionPrior(
        net=network(), clip=clip, timesteps=100, cond_drop_prob=0.2, condition_on_text_encodings=False
    )
    clip_image_embeds = diffusion_prior.clip.embed_image(images).image_embed
    clip_text_embeds = diffusion_prior.clip.embed_text(text).text_embed
    seeded = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    loss = diffusion_prior(text_embed=clip_text_embeds, image_embed=clip_image_embeds, generator=seeded[0])
    loss.backward()
    assert torch.equal(loss, diffusion_prior(text, images, generator=seeded[1]))


def test_training_without_clip():
    diffusion_prior = DiffusionPrior(
        net=network(), image_embed_dim=32, timesteps=100, cond_drop_prob=0.2, condition_on_text_encodings=False
    )
    clip_text_embeds, clip_image_embeds = torch.randn(2, 4, 32)
    loss = diffusion_prior(text_embed=clip_text_embeds, image_embed=clip_image_embeds)
    loss.backward()


def test_texts_on_the_fly_are_those_given_with_their_states(clip):
    """And token states without a mask count their zero rows as padding, as DALLE2-pytorch stores it."""
    text, images = pairs()
    prior = DiffusionPrior(net=network(), clip=clip, timesteps=10)
    embedded = clip.embed_text(text)
    given = {"text_embed": embedded.text_embed, "image_embed": clip.embed_image(images).image_embed}
    losses = [
        prior(text, images, generator=torch.Generator().manual_seed(0)),
        prior(
            **given,
            text_encodings=embedded.text_encodings,
            text_mask=embedded.text_mask,
            generator=torch.Generator().manual_seed(0),
        ),
        prior(**given, text_encodings=embedded.text_encodings, generator=torch.Generator().manual_seed(0)),
    ]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0] != prior(**given, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_embeddings_are_open_clips(clip):
    text, images = pairs()
    expected = torch.nn.functional.normalize(clip.model.encode_text(text), dim=-1)
    embedded = clip.embed_text(text)
    torch.testing.assert_close(embedded.text_embed, expected)
    assert embedded.text_mask.sum(1).tolist() == [12, 4, 6, 9]
    # The pooled embedding is the projection of the end token's state.
    ends = embedded.text_encodings[torch.arange(4), embedded.text_mask.sum(1) - 1]
    torch.testing.assert_close(torch.nn.functional.normalize(ends @ clip.model.text_projection, dim=-1), expected)
    pixels = (images - clip.mean) / clip.std
    torch.testing.assert_close(
        clip.embed_image(images).image_embed, torch.nn.functional.normalize(clip.model.encode_image(pixels), dim=-1)
    )
    assert clip.embed_image((torch.rand(2, 3, 50, 70) * 255).to(torch.uint8)).image_embed.shape == (2, 32)


def test_a_saved_clip_is_loaded_as_an_adapter(tiny_model, clip):
    adapter = OpenClipAdapter(f"local-dir:{tiny_model}", None)
    tokens = adapter.tokenizer(["a red bicycle", "a cat"])
    embedded = adapter.embed_text(tokens)
    assert embedded.text_mask.sum(1).tolist() == [int(it) for it in (tokens != 0).sum(1)]
    torch.testing.assert_close(embedded.text_embed.norm(dim=1), torch.ones(2))
    with pytest.raises(ConfigError, match="open_clip cannot load 'ViT-Z-1'"):
        OpenClipAdapter("ViT-Z-1", None)


def test_published_names_of_targets():
    named = {"predict_v": "v", "predict_x_start": "x0"}
    for keyword, predicts in named.items():
        assert DiffusionPrior(net=network(), **{keyword: True}).config.predicts == predicts
    assert DiffusionPrior(net=network(), predict_x_start=False).config.predicts == "noise"
    assert DiffusionPrior(net=network(), text_cond_drop_prob=0.3).config.cond_drop_prob == 0.3
    with pytest.raises(TypeError, match="told predicts twice"):
        DiffusionPrior(net=network(), predict_v=True, predicts="v")


def test_mistakes_are_named(clip):
    text, images = pairs()
    prior = DiffusionPrior(net=network(), timesteps=10)
    with pytest.raises(ConfigError, match="made without a clip; give text_embed"):
        prior(text, images)
    with pytest.raises(ConfigError, match="made without a clip"):
        prior.sample(text)
    with pytest.raises(ConfigError, match="give text or text_embed, one of them"):
        prior(image_embed=torch.randn(4, 32))
    with pytest.raises(ConfigError, match="give image or image_embed, one of them"):
        prior(text_embed=torch.randn(4, 32))
    with pytest.raises(TypeError, match="no keyword 'image_cond_drop_prob'; did you mean"):
        DiffusionPrior(net=network(), image_cond_drop_prob=0.1)
    with pytest.raises(TypeError, match="CLIP has no keyword 'dim_txt'; did you mean dim_text"):
        CLIP(dim_txt=3)
    with pytest.raises(ShapeError, match="give integer tokens"):
        clip.embed_text(torch.randn(2, 3))
    with pytest.raises(ShapeError, match=r"give \[b, 3, h, w\]"):
        clip.embed_image(torch.rand(2, 1, 8, 8))
