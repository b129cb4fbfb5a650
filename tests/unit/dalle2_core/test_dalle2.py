"""DALLE2: strings, tokens or embeddings go in, images come out, and what cannot be is said before the first step."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dalle2_core import CLIP, DALLE2, Decoder, DiffusionPrior, DiffusionPriorNetwork, EmbeddedText, GenerationConfig
from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.priors.closed_form import MeanImage, Ridge
from tests.tiny_unet import unet

WIDTH = 6


def make_clip(seed=0, tokens=49408):
    torch.manual_seed(seed)
    return CLIP(
        dim_text=8, dim_image=8, dim_latent=WIDTH, num_text_tokens=tokens, text_enc_depth=1, text_seq_len=10,
        text_heads=2, visual_enc_depth=1, visual_image_size=16, visual_patch_size=8, visual_heads=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    return make_clip()


def make_prior(clip=None, width=WIDTH, seed=0):
    torch.manual_seed(seed)
    net = DiffusionPriorNetwork(dim=width, depth=1, dim_head=4, heads=2)
    return DiffusionPrior(net=net, clip=clip, timesteps=5, condition_on_text_encodings=False)


def make_decoder(clip=None, **keywords):
    decoder = Decoder(unet(), image_size=8, **{"timesteps": 20, "sample_timesteps": 3, "clip": clip, **keywords})
    torch.manual_seed(3)
    nn.init.normal_(decoder.stage(1).unet.to_out.weight, std=0.2)
    return decoder


@pytest.fixture(scope="module")
def dalle2(clip):
    return DALLE2(make_prior(clip), make_decoder())


def assert_alike(images, others):
    """Sums over other batches are rounded otherwise, and random weights enlarge that."""
    torch.testing.assert_close(images, others, atol=2e-3, rtol=0)


TEXTS = ["a red bicycle", "a bowl of soup"]


def test_always_several_images_those_of_one_text_together(dalle2):
    assert dalle2("a red bicycle", seed=0).shape == (1, 3, 8, 8)
    images = dalle2(TEXTS, seed=0, num_images=3)
    assert images.shape == (6, 3, 8, 8)
    assert len({it.numpy().tobytes() for it in images}) == 6
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


def test_an_image_depends_on_seed_text_and_place_alone(dalle2):
    images = dalle2(TEXTS, seed=0, num_images=3)
    assert torch.equal(images, dalle2(TEXTS, seed=0, num_images=3))
    assert_alike(images, dalle2(TEXTS, seed=0, num_images=3, max_batch_size=2))
    assert_alike(images[:3], dalle2(TEXTS[:1], seed=0, num_images=3))
    assert not torch.allclose(images, dalle2(TEXTS, seed=1, num_images=3), atol=1e-3)
    torch.manual_seed(9)
    first = dalle2(TEXTS)
    assert not torch.equal(first, dalle2(TEXTS))  # no seed: one is drawn
    torch.manual_seed(9)
    assert torch.equal(first, dalle2(TEXTS))


def test_strings_tokens_and_embeddings_are_the_same(dalle2, clip):
    tokens = clip.tokenizer(TEXTS)
    expected = dalle2(TEXTS, seed=0)
    assert torch.equal(expected, dalle2(tokens, seed=0))
    assert torch.equal(expected, dalle2(clip.embed_text(tokens), seed=0))
    embed = EmbeddedText(clip.embed_text(tokens).text_embed)
    without_clip = DALLE2(make_prior(), make_decoder())
    assert_alike(expected, without_clip(embed, seed=0))


def test_pil_images_are_the_tensor(dalle2):
    images = dalle2(TEXTS, seed=0)
    made = dalle2(TEXTS, seed=0, return_pil_images=True)
    assert all(isinstance(it, Image.Image) for it in made)
    for tensor, picture in zip(images, made, strict=True):
        assert np.abs(np.asarray(picture) / 255 - tensor.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6


def test_the_parts_do_what_they_do_alone(clip):
    """A prior that always says the same, and a decoder that was asked for the same by itself."""
    images = F.normalize(torch.randn(20, WIDTH), dim=-1)
    prior = MeanImage().fit(images, images)
    made = DALLE2(prior, make_decoder(), clip=clip).generate(
        clip.embed_text(clip.tokenizer(TEXTS)), GenerationConfig(seed=4)
    )
    expected = F.normalize(images.double().mean(dim=0), dim=-1).float()
    torch.testing.assert_close(made.image_embed, expected.expand(2, -1))


def test_the_decoders_settings_reach_it(dalle2, monkeypatch):
    seen = {}
    sample = Decoder.sample

    def watched(self, **keywords):
        seen.update(keywords)
        return sample(self, **keywords)

    monkeypatch.setattr(Decoder, "sample", watched)
    dalle2("a cat", cond_scale=2.0, steps=4, sampler="ddim", eta=0.5, max_batch_size=3)
    assert (seen["cond_scale"], seen["steps"], seen["sampler"], seen["eta"]) == (2.0, 4, "ddim", 0.5)
    assert seen["max_batch_size"] == 3


def test_of_many_candidates_the_prior_keeps_the_nearest(clip):
    """More candidates can only come nearer to the text, for the draws of a row are the first ones of more."""
    text = clip.embed_text(clip.tokenizer(TEXTS))
    dalle2 = DALLE2(make_prior(), make_decoder())

    def likeness(count):
        made = dalle2.generate(text, GenerationConfig(seed=0, num_images=8, prior_num_samples=count))
        return float((made.image_embed * text.text_embed.repeat_interleave(8, dim=0)).sum(dim=1).mean())

    assert likeness(1) < likeness(4) < likeness(64)


def test_of_many_images_clip_keeps_the_nearest(dalle2, clip):
    text = clip.embed_text(clip.tokenizer(TEXTS))
    all_of_them = dalle2.generate(text, GenerationConfig(seed=0, num_images=6))
    scores = dalle2.score(all_of_them.images, text.text_embed, all_of_them.text).view(2, 6)
    kept = dalle2.generate(text, GenerationConfig(seed=0, num_images=2, best_of=3))
    assert kept.text == [0, 0, 1, 1]
    torch.testing.assert_close(kept.scores, scores.topk(2).values.flatten(), atol=1e-3, rtol=0)
    for number, row in enumerate(scores.topk(2).indices.tolist()):
        for place, index in enumerate(row):
            assert_alike(kept.images[number * 2 + place], all_of_them.images[number * 6 + index])
            torch.testing.assert_close(
                kept.image_embed[number * 2 + place], all_of_them.image_embed[number * 6 + index]
            )


def test_filling_in_keeps_what_is_known(dalle2):
    picture, mask = torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    made = dalle2(TEXTS, num_images=2, seed=0, inpaint_image=picture, inpaint_mask=mask)
    assert torch.equal(made[:, :, :4], picture[:, :, :4].expand(4, -1, -1, -1))
    with pytest.raises(ShapeError, match="inpaint_image has 3 rows for 2 texts; give one for each, or one for all"):
        dalle2(TEXTS, inpaint_image=torch.rand(3, 3, 8, 8), inpaint_mask=mask)
    with pytest.raises(ShapeError, match=r"inpaint_mask \(1, 1, 4, 4\) is of another size than inpaint_image"):
        dalle2("a cat", inpaint_image=picture, inpaint_mask=mask[:, :4, :4])


def test_progress_is_told_stage_by_stage(dalle2):
    heard = []
    dalle2(TEXTS, max_batch_size=1, on_step=lambda *step: heard.append(step))
    assert heard == [(0, 1, 2), (0, 2, 2), *((1, done, 6) for done in range(1, 7))]


def test_out_of_memory_it_goes_on_with_half(dalle2, monkeypatch):
    stage = dalle2.decoder.stage(1)
    expected, forward, heard, steps = dalle2(TEXTS, seed=0, num_images=4), stage.unet.forward, [], []

    def little_memory(x, *rest):
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x, *rest)

    monkeypatch.setattr(stage.unet, "forward", little_memory)
    made = dalle2(TEXTS, seed=0, num_images=4, on_smaller_batch=heard.append, on_step=lambda *step: steps.append(step))
    assert_alike(made, expected)
    assert heard == [4, 2]
    assert steps[-1] == (1, 12, 12)


def test_what_is_saved_makes_the_same_images(dalle2, clip, tmp_path):
    dalle2.save(tmp_path / "both")
    loaded = DALLE2.load(tmp_path / "both", clip=clip)
    assert torch.equal(loaded(TEXTS, seed=0), dalle2(TEXTS, seed=0))
    with pytest.raises(ConfigError, match="has a clip to embed texts"):
        DALLE2.load(tmp_path / "both")(TEXTS)
    make_prior(width=8).save(tmp_path / "both" / "prior")
    with pytest.raises(CheckpointError, match="both: the prior predicts image embeddings of 8 values"):
        DALLE2.load(tmp_path / "both")


def test_a_prior_of_embeddings_alone_beside_a_decoder_that_reads_tokens(clip):
    told = unet(text_embed_dim=8, cond_on_text_encodings=True)
    torch.manual_seed(0)
    net = DiffusionPriorNetwork(dim=WIDTH, depth=1, dim_head=4, heads=2)  # tokens are 8 wide: it cannot read them
    prior = DiffusionPrior(net=net, timesteps=5)
    decoder = Decoder(told, image_size=8, timesteps=20, sample_timesteps=3)
    torch.nn.init.normal_(decoder.stage(1).unet.to_out.weight, std=0.2)
    dalle2 = DALLE2(prior, decoder, clip=clip, prior_reads_tokens=False)
    embedded = clip.embed_text(clip.tokenizer(TEXTS[:1]))
    other = EmbeddedText(embedded.text_embed, embedded.text_encodings.flip(2), embedded.text_mask)
    made, changed = (dalle2.generate(it, GenerationConfig(seed=0)) for it in (embedded, other))
    assert torch.equal(made.image_embed, changed.image_embed)
    assert not torch.equal(made.images, changed.images)
    with pytest.raises(ShapeError, match="do not fit a prior"):
        DALLE2(prior, decoder, clip=clip)(TEXTS)


def test_parts_that_do_not_belong_together_are_refused(clip):
    with pytest.raises(ConfigError, match="embeddings of 8 values and the decoder takes 6; both must be trained"):
        DALLE2(make_prior(width=8), make_decoder())
    with pytest.raises(ConfigError, match="have different CLIPs"):
        DALLE2(make_prior(clip), make_decoder(make_clip(seed=1)))
    DALLE2(make_prior(clip), make_decoder(copy.deepcopy(clip)))  # the same weights
    with pytest.raises(ConfigError, match="not conditioned on image embeddings"):
        DALLE2(make_prior(), make_decoder(unconditional=True))
    with pytest.raises(ConfigError, match="takes a prior and a decoder, in that order; it was given Decoder and Diff"):
        DALLE2(make_decoder(), make_prior())


def test_mistakes_are_named(dalle2, clip):
    with pytest.raises(TypeError, match="DALLE2 has no keyword 'cond_scal'; did you mean cond_scale"):
        dalle2(TEXTS, cond_scal=2)
    with pytest.raises(ConfigError, match="neither the prior nor the decoder has a clip"):
        DALLE2(make_prior(), make_decoder())("a cat")
    with pytest.raises(ConfigError, match="a text is 3; give strings"):
        dalle2(["a cat", 3])
    with pytest.raises(ShapeError, match="there is no text"):
        dalle2([])
    with pytest.raises(ConfigError, match="num_text_tokens is 100, and strings need the tokenizer's 49408"):
        DALLE2(make_prior(make_clip(tokens=100)), make_decoder())("a cat")
    with pytest.raises(ConfigError, match="num_images is 0; it must be 1 or more"):
        dalle2("a cat", num_images=0)
    with pytest.raises(ConfigError, match="no sampler 'dim'; did you mean ddim"):
        dalle2("a cat", sampler="dim")
    embeds = F.normalize(torch.randn(20, WIDTH), dim=-1)
    ridge = DALLE2(Ridge().fit(embeds, embeds), make_decoder(), clip=clip)
    with pytest.raises(ConfigError, match="a ridge-prior has no prior_steps; leave it out"):
        ridge("a cat", prior_steps=4)
    with pytest.raises(ConfigError, match="best_of ranks images by a clip, and there is none"):
        DALLE2(make_prior(), make_decoder())(EmbeddedText(embeds), best_of=2)


def test_numbers_that_are_not_finite_are_named_by_their_text(dalle2):
    embeds = F.normalize(torch.randn(3, WIDTH), dim=-1)
    broken = embeds.clone()
    broken[1, 2] = torch.nan
    with pytest.raises(ShapeError, match=r"text embeddings hold NaN or infinity for text 1 \(counted from 0\)"):
        dalle2(EmbeddedText(broken))
    sick = DALLE2(make_prior(), make_decoder())
    with torch.no_grad():
        sick.prior.net.causal_transformer.project_out.weight[0, 0] = torch.nan
    with pytest.raises(ShapeError, match="the prior gave NaN or infinity for text 0, 1, 2"):
        sick(EmbeddedText(embeds))
    sick = DALLE2(make_prior(), make_decoder())
    with torch.no_grad():
        sick.decoder.stage(1).unet.to_out.bias[0] = torch.nan
    with pytest.raises(ShapeError, match="the decoder made NaN or infinity for text 0, 1, 2"):
        sick(EmbeddedText(embeds))
