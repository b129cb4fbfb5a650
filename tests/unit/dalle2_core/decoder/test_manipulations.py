"""Variations, interpolations and text diffs: section 3 of the unCLIP paper."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dalle2_core import (
    Decoder,
    DecoderStage,
    StageConfig,
    interpolations,
    slerp,
    text_diff,
    text_diff_images,
    variations,
)
from dalle2_core.errors import ConfigError, ShapeError
from tests.tiny_unet import unet


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def smooth_decoder(**told):
    """A first stage that moves little, so that few steps invert it well, and an upsampler."""
    first, second = unet(cond_on_image_embeds=True, **told), unet(seed=1, lowres_cond=True, cond_on_image_embeds=False)
    for net in (first, second):
        torch.nn.init.normal_(net.to_out.weight, std=0.02)
    from dalle2_core import LowresConfig

    return Decoder.from_stages(
        [
            DecoderStage(first, StageConfig(8, timesteps=50, sample_timesteps=12, thresholding="none")),
            DecoderStage(second, StageConfig(16, LowresConfig(8), timesteps=50, sample_timesteps=3)),
        ]
    )


@given(st.integers(0, 1000), st.floats(0, 1))
def test_slerp_turns_evenly_and_keeps_the_norm(seed, share):
    one, other = unit(2, 8, seed=seed)
    between = slerp(one, other, share)
    whole = math.acos(float((one @ other).clamp(-1, 1)))
    assert float(between.norm()) == pytest.approx(1.0, abs=1e-4)
    assert float(torch.dot(one, between).clamp(-1, 1)) == pytest.approx(math.cos(share * whole), abs=1e-3)


def test_slerp_between_equal_and_opposite_vectors_and_other_lengths():
    one = unit(8)
    torch.testing.assert_close(slerp(one, one, 0.3), one)
    assert bool(torch.isfinite(slerp(one, -one, 0.5)).all())
    assert float(slerp(2 * one, 4 * unit(8, seed=1), 0.5).norm()) == pytest.approx(3.0, abs=1e-4)


def test_text_diff_turns_the_embedding_towards_the_difference_of_texts():
    image, text, base = unit(3, 8)
    out = text_diff(image, text, base, [0.0, 0.25, 1.0])
    torch.testing.assert_close(out[0], image)
    torch.testing.assert_close(out[2], F.normalize(text - base, dim=-1))
    direction = F.normalize(text - base, dim=-1)
    assert float(out[1] @ direction) > float(image @ direction)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))
    with pytest.raises(ShapeError, match="are alike"):
        text_diff(image, text, text, [0.1])


def test_variations_share_the_noise_and_go_away_with_eta():
    decoder, image, embed = smooth_decoder(), torch.rand(3, 16, 16), unit(6)
    small = decoder.sample(
        image_embed=embed[None], noise=decoder.invert(image[None], embed[None]), stop_at_unet_number=1
    )
    still = variations(decoder, image, embed, 2, eta=0.0, stop_at_unet_number=1)
    torch.testing.assert_close(still, small.expand(2, -1, -1, -1), atol=1e-5, rtol=0)
    wanted = F.interpolate(image[None], 8, mode="bicubic", antialias=True).clamp(0, 1)
    assert float((still - wanted).abs().max()) < 0.02  # and that is the image
    stirred = variations(decoder, image, embed, 2, eta=1.0, stop_at_unet_number=1)
    assert float((stirred - wanted).abs().mean()) > 0.05
    assert not torch.allclose(stirred[0], stirred[1], atol=0.05)
    assert variations(decoder, image, embed, 1).shape == (1, 3, 16, 16)
    with pytest.raises(ConfigError, match="count is 0"):
        variations(decoder, image, embed, 0)


def test_interpolations_end_at_the_images():
    decoder, images, embeds = smooth_decoder(), torch.rand(2, 3, 8, 8), unit(2, 6)
    way = interpolations(decoder, tuple(images), tuple(embeds), [0.0, 0.5, 1.0], stop_at_unet_number=1)
    assert float((way[[0, 2]] - images).abs().max()) < 0.02
    assert float((way[1] - images).abs().flatten(1).mean(1).min()) > 0.02


def test_text_diff_images_begin_at_the_image():
    decoder, image, (embed, text, base) = smooth_decoder(), torch.rand(3, 8, 8), unit(3, 6)
    way = text_diff_images(decoder, image, embed, text, base, [0.0, 0.5], stop_at_unet_number=1)
    assert float((way[0] - image).abs().max()) < 0.02
    assert not torch.allclose(way[1], image, atol=1e-3)


def test_a_decoder_that_reads_a_text_is_told_one():
    decoder = smooth_decoder(cond_on_text_encodings=True, text_embed_dim=5)
    images, embeds, words = torch.rand(2, 3, 8, 8), unit(2, 6), torch.randn(2, 1, 4, 5)
    mask = torch.ones(1, 4, dtype=torch.bool)
    told = [{"text_encodings": it, "text_mask": mask, "stop_at_unet_number": 1} for it in words]
    still = [variations(decoder, images[0], embeds[0], 2, eta=0.0, **it) for it in told]
    # Inverted and made with the same text, the picture comes back; with another one, the noise was another.
    assert all(float((it - images[0]).abs().max()) < 0.02 for it in still)
    stirred = []
    for it in told:
        torch.manual_seed(0)
        stirred.append(variations(decoder, images[0], embeds[0], 2, **it))
    assert not torch.allclose(*stirred, atol=1e-4)
    way = interpolations(decoder, tuple(images), tuple(embeds), [0.0, 0.5, 1.0], **told[0])
    assert float((way[[0, 2]] - images).abs().max()) < 0.02
