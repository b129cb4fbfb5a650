"""What callers give: any float dtype, NumPy, masks of numbers, images out of range; what cannot be is named."""

import logging

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dalle2_core import CLIP, Decoder, DiffusionPrior, DiffusionPriorNetwork, VQGanVAE
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.inputs import RangeCheck
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.priors.config import PriorConfig
from dalle2_core.priors.registry import PRIORS
from dalle2_core.types import EmbeddedText, PriorBatch
from tests.tiny_unet import unet

WIDTH, ROWS = 16, 6
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def embeds(seed):
    return F.normalize(torch.randn(ROWS, WIDTH, generator=draws(seed)), dim=1)


TEXT, IMAGE = embeds(1), embeds(2)
TOKENS = torch.randn(ROWS, 5, WIDTH, generator=draws(3))


def prior(kind="diffusion"):
    torch.manual_seed(0)
    network = PriorNetworkConfig(dim=WIDTH, depth=1, heads=2, dim_head=8).for_embeddings(WIDTH)
    config = PRIORS[kind].CONFIG
    made = PRIORS[kind].from_configs(network, PriorConfig(timesteps=10) if kind == "diffusion" else config and config())
    return made.fit(TEXT, IMAGE)


def decoder():
    torch.manual_seed(0)
    first = unet(text_embed_dim=WIDTH, cond_on_text_encodings=True, image_embed_dim=WIDTH)
    both = (first, unet(image_embed_dim=WIDTH))
    return Decoder(both, image_sizes=(8, 16), timesteps=10, learned_variance=(True, False),
                   use_noise_for_lowres_cond=True, sample_timesteps=3)  # fmt: skip


@pytest.mark.parametrize("model_dtype", DTYPES)
@pytest.mark.parametrize("kind", list(PRIORS))
def test_a_prior_of_any_dtype_takes_embeddings_of_any_dtype(kind, model_dtype):
    expected = prior(kind).sample(TEXT, text_encodings=TOKENS, generator=draws())
    for given in DTYPES:
        model = prior(kind).to(model_dtype)
        if hasattr(model, "loss"):
            model.loss(PriorBatch(TEXT.to(given), IMAGE.to(given), TOKENS.to(given)), None).loss.backward()
        found = model.sample(TEXT.to(given), text_encodings=TOKENS.to(given), generator=draws())
        assert F.cosine_similarity(found.double(), expected.double()).min() > 0.995, given


@pytest.mark.parametrize("model_dtype", DTYPES)
def test_a_decoder_of_any_dtype_takes_inputs_of_any_dtype(model_dtype):
    images = torch.rand(ROWS, 3, 16, 16, generator=draws(4))
    found = []
    for given in DTYPES:
        model = decoder().to(model_dtype)
        for number in (1, 2):
            loss = model(
                images.to(given), image_embed=IMAGE.to(given), text_encodings=TOKENS.to(given), unet_number=number
            )
            loss.backward()
            assert torch.isfinite(loss)
        found.append(model.sample(image_embed=IMAGE.to(given), text_encodings=TOKENS.to(given), generator=draws()))
        assert model.stage(1).schedule.alphas.dtype in (torch.float32, torch.float64)
    assert all((it.double() - found[2].double()).abs().mean() < 0.05 for it in found)


def test_numpy_and_masks_of_numbers_are_taken_as_tensors():
    torch.manual_seed(0)
    model = DiffusionPrior(DiffusionPriorNetwork(dim=WIDTH, depth=1, heads=2, dim_head=8), timesteps=10)
    mask = torch.arange(5) < torch.arange(ROWS)[:, None] + 1
    named = {"text_embed": TEXT, "image_embed": IMAGE, "text_encodings": TOKENS}
    expected = model(**named, text_mask=mask, generator=draws())
    for other in (mask.int(), mask.float(), mask.numpy()):
        assert model(**named, text_mask=other, generator=draws()) == expected
    arrays = {name: it.numpy() for name, it in named.items()}
    assert model(**arrays, text_mask=mask.numpy(), generator=draws()) == expected
    assert torch.equal(model.sample(TEXT.numpy(), generator=draws()), model.sample(TEXT, generator=draws()))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_mask": torch.ones(ROWS, 3) > 0}, r"text_mask is \[6, 3\]; give \[6, 5\]"),
        ({"text_mask": torch.ones(ROWS, 6) > 0}, r"text_mask is \[6, 6\]; give \[6, 5\]"),
        ({"text_mask": torch.ones(5) > 0}, r"text_mask is \[5\]; give \[6, 5\]"),
        ({"text_embed": TEXT[:, :8]}, r"text_embed is \(6, 8\); this model takes \[b, 16\]"),
        ({"image_embed": IMAGE[:, :8]}, r"image_embed is \(6, 8\); this model takes \[b, 16\]"),
        ({"text_embed": TEXT[0]}, r"text_embed is \(16,\); this model takes \[b, 16\]"),
        ({"text_embed": TEXT[:0], "image_embed": IMAGE[:0]}, r"text_embed is \(0, 16\); this model takes"),
        ({"text_embed": ["a cat"] * ROWS}, "text_embed is a list; give a tensor, or a NumPy array of numbers"),
        ({"image_embed": np.array(["a"] * ROWS)}, "image_embed is a NumPy array of <U1; give a tensor"),
        ({"text_encodings": TOKENS[0]}, r"text_encodings are torch.float32 \(5, 16\); give floats \[6, l, w\]"),
        ({"text_embed": TEXT.long()}, "text_embed is torch.int64; give floats"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_with_what_was_wanted(changes, says):
    model = DiffusionPrior(DiffusionPriorNetwork(dim=WIDTH, depth=1, heads=2, dim_head=8), timesteps=10)
    named = {"text_embed": TEXT, "image_embed": IMAGE, "text_encodings": TOKENS}
    with pytest.raises(ShapeError, match=says):
        model(**named | changes)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), True, "2"])
def test_a_scale_of_guidance_is_a_finite_number(scale):
    for kind in ("diffusion", "autoregressive"):
        with pytest.raises(ConfigError, match="cond_scale is .*; give a finite number"):
            prior(kind).sample(TEXT, cond_scale=scale)
    with pytest.raises(ConfigError, match="cond_scale is .*; give a finite number"):
        decoder().sample(image_embed=IMAGE, text_encodings=TOKENS, cond_scale=scale)


def test_numbers_are_checked_where_they_are_given():
    with pytest.raises(ConfigError, match="no loss type 'l3'"):
        DiffusionPrior(DiffusionPriorNetwork(dim=WIDTH, depth=1), timesteps=10, loss_type="l3")
    with pytest.raises(ConfigError, match="no loss type 'l3'"):
        Decoder(unet(), image_size=8, loss_type="l3")
    model = decoder()
    for none in (
        {"steps": 0},
        {"batch_size": 0, "image_embed": None},
        {"image_embed": IMAGE[:0]},
        {"max_batch_size": 0},
    ):
        with pytest.raises((ConfigError, ShapeError)):
            model.sample(**{"image_embed": IMAGE, "text_encodings": TOKENS} | none)
    with pytest.raises(ConfigError, match="there is no stage 0"):
        model(torch.rand(ROWS, 3, 16, 16), image_embed=IMAGE, text_encodings=TOKENS, unet_number=0)


def test_a_clip_of_another_width_is_refused_when_the_model_is_made():
    class Clip:
        dim_latent, image_size = 8, 8

        def embed_text(self, text):
            return EmbeddedText(torch.zeros(len(text), 8))

    with pytest.raises(ConfigError, match="the clip makes embeddings of 8 values and the prior takes 16"):
        DiffusionPrior(DiffusionPriorNetwork(dim=WIDTH, depth=1), clip=Clip(), timesteps=10)
    with pytest.raises(ConfigError, match="the clip makes embeddings of 8 values and the decoder takes 6"):
        Decoder(unet(), clip=Clip())
    clip = CLIP(dim_text=32, dim_image=32, dim_latent=24, text_enc_depth=1, text_heads=2, visual_enc_depth=1,
                visual_heads=2, visual_image_size=16, visual_patch_size=8, text_seq_len=9)  # fmt: skip
    assert (clip.dim_latent, clip.image_size, clip.image_channels, clip.max_text_len) == (24, 16, 3, 9)


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 255), (0, 1.5)])
def test_images_out_of_range_are_told_once(low, high, caplog):
    images = torch.rand(ROWS, 3, 16, 16, generator=draws(5)) * (high - low) + low
    named = {"image_embed": IMAGE, "text_encodings": TOKENS, "unet_number": 1}
    model = decoder()
    with caplog.at_level(logging.WARNING, "dalle2_core"):
        for _ in range(3):
            model(images, **named)
        assert [it.getMessage().split(";")[0] for it in caplog.records] == [
            f"images range from {float(images.min()):.4g} to {float(images.max()):.4g}"
        ]
        caplog.clear()
        VQGanVAE(dim=8, image_size=16, layers=1, use_vgg_and_gan=False, resnet_groups=4,
                 vq_codebook_dim=4, vq_codebook_size=8)(images)  # fmt: skip
        assert len(caplog.records) == 1
        caplog.clear()
        decoder()(torch.rand(ROWS, 3, 16, 16), **named)
        decoder()((images.clamp(0, 1) * 255).byte(), **named)
        assert not caplog.records


def test_the_range_is_looked_at_a_few_times_only():
    looks = RangeCheck(looks=2)
    for _ in range(3):
        looks.see(torch.rand(2, 3, 4, 4))
    assert looks._left == 0
