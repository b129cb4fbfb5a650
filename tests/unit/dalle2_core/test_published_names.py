"""Names of DALLE2-pytorch that cost little: networks called with its keywords, its configs, its small helpers."""

import json
import logging

import pytest
import torch

from dalle2_core import Decoder, DecoderCondition, DiffusionPriorNetwork, DiffusionPriorTrainer, VQGanVAE
from dalle2_core.convert import read_prior_config
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.types import TextCondition
from tests.tiny_unet import condition_for, unet


def test_the_priors_network_takes_the_published_keywords():
    torch.manual_seed(0)
    net = DiffusionPriorNetwork(dim=8, depth=1, heads=2, dim_head=4).eval()
    image, text, tokens, time = torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 3, 8), torch.arange(5)
    condition = TextCondition.of(text, tokens, None)
    told = {"diffusion_timesteps": time, "text_embed": text, "text_encodings": tokens}
    plain, null = net(image, time, condition), net(image, time, condition.unconditional())
    assert torch.equal(net(image, **told), plain)
    assert torch.equal(net(image, **told, text_cond_drop_prob=1.0), null)
    assert torch.equal(net.forward_with_cond_scale(image, **told), plain)
    torch.testing.assert_close(net.forward_with_cond_scale(image, **told, cond_scale=3.0), null + 3 * (plain - null))
    with pytest.raises(ShapeError, match="a text is missing; give text_embed"):
        net(image, time)


def test_the_unet_takes_the_published_keywords():
    net = unet(lowres_cond=True, lowres_noise_cond=True, cond_on_text_encodings=True, text_embed_dim=4).eval()
    condition = condition_for(net, 3)
    x, time = torch.randn(3, 3, 8, 8), torch.arange(3)
    tokens = condition.text_tokens * condition.text_mask[:, :, None]  # zero where it is padding
    told = {"image_embed": condition.image_embed, "text_encodings": tokens, "lowres_cond_img": condition.lowres,
            "lowres_noise_level": condition.lowres_noise}  # fmt: skip
    plain, null = net(x, time, condition), net(x, time, condition.unconditional())
    torch.testing.assert_close(net(x, time, **told), plain)
    torch.testing.assert_close(net(x, time, **told, image_cond_drop_prob=1.0, text_cond_drop_prob=1.0), null)
    torch.testing.assert_close(net.forward_with_cond_scale(x, time, cond_scale=2.0, **told), null + 2 * (plain - null))
    with pytest.raises(TypeError, match="a condition is given, and image_embed besides"):
        net(x, time, DecoderCondition(), image_embed=condition.image_embed)


def test_a_decoder_says_what_it_is():
    decoder = Decoder((unet(), unet(image_embed_dim=None)), image_sizes=(8, 16), timesteps=10, learned_variance=False)
    assert decoder.unets == [stage.unet for stage in decoder.cascade]
    assert decoder.get_unet(2) is decoder.unets[1]
    assert not decoder.unconditional
    assert not decoder.condition_on_text_encodings
    assert decoder.device == torch.device("cpu")
    plain = Decoder(unet(image_embed_dim=None), image_size=8, timesteps=10, unconditional=True, learned_variance=False)
    assert plain.unconditional
    assert plain.sample(batch_size=2, steps=2, one_unet_in_gpu_at_time=True).shape == (2, 3, 8, 8)


def test_a_copy_for_evaluation_reconstructs_the_same_without_what_judges():
    torch.manual_seed(0)
    vae = VQGanVAE(dim=8, image_size=16, layers=1, resnet_groups=4, vq_codebook_dim=4, vq_codebook_size=8).eval()
    copied, images = vae.copy_for_eval(), torch.rand(2, 3, 16, 16)
    assert torch.equal(copied(images), vae(images))
    assert copied.discriminator is None
    assert vae.discriminator is not None
    assert not any(it.requires_grad for it in copied.parameters())
    assert (vae.encoded_dim, vae.get_encoded_fmap_size(16)) == (4, 8)


def test_a_published_config_of_a_prior_is_read(tmp_path, caplog):
    config = {
        "prior": {
            "clip": {"make": "x-clip", "model": "ViT-L/14"},
            "net": {"dim": 16, "depth": 1, "num_timesteps": 10, "num_text_embeds": 2, "dim_head": 4, "heads": 2,
                    "normformer": True, "max_text_len": None},
            "image_embed_dim": 16, "image_size": 224, "image_channels": 3, "timesteps": 10, "cond_drop_prob": 0.2,
            "loss_type": "l2", "predict_x_start": True, "beta_schedule": "cosine", "condition_on_text_encodings": True,
        },
        "data": {"batch_size": 256},
        "train": {"epochs": 1, "lr": 1.1e-4, "wd": 6.02e-2, "max_grad_norm": 0.5, "use_ema": True, "amp": True},
        "tracker": {"tracker_type": "wandb"},
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING, "dalle2_core"):
        published = read_prior_config(path)
    assert published.ignored == ("train.epochs", "data", "tracker", "prior.clip")
    assert "not used here: data, prior.clip, tracker, train.epochs" in caplog.text
    assert published.prior.config.cond_drop_prob == 0.2
    assert published.prior.net.config.normformer
    trainer = DiffusionPriorTrainer(published.prior, **published.trainer)
    assert (trainer.config.lr, trainer.config.wd, trainer.config.precision) == (1.1e-4, 6.02e-2, "bfloat16")
    path.write_text(json.dumps({"prior": config["prior"] | {"cond_drop_probb": 0.1}}))
    with pytest.raises(TypeError, match="DiffusionPrior has no keyword 'cond_drop_probb'; did you mean"):
        read_prior_config(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="no config of a prior"):
        read_prior_config(path)
