"""VQGanVAETrainer, what an autoencoder is judged by, and autoencoders of diffusers in its place."""

import json
import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dalle2_core import Decoder, DecoderBatch, VQGanVAE, VQGanVAETrainer, load_autoencoder
from dalle2_core.autoencoders.base import check_autoencoder
from dalle2_core.autoencoders.diffusers_vae import DiffusersAutoencoder
from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.training.vqgan_trainer import judge_reconstructions
from tests.tiny_unet import unet
from tests.tiny_vae import pictures, vae

DEVICE = torch.device("cpu")
BRIEF = {"num_train_steps": 6, "lr": 1e-3, "batch_size": 4, "save_results_every": 3, "save_model_every": 2}


def test_the_trainer_trains_saves_and_goes_on_to_the_same_bits(tmp_path):
    images = pictures(20)
    whole = vae(discr_start_step=2)
    done = VQGanVAETrainer(whole, images, **BRIEF, grad_accum_every=2, results_folder=str(tmp_path / "whole")).train()
    assert done.steps == 6
    assert VQGanVAE.load(tmp_path / "whole").config == whole.config
    assert len(list((tmp_path / "whole" / "reconstructions").glob("*.png"))) == 2
    logged = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in logged} == {"train", "valid", "online"}

    class Stop(Exception):
        pass

    def stop(report):
        if report.step == 5:
            raise Stop

    def trainer():
        return VQGanVAETrainer(
            vae(discr_start_step=2), images, **BRIEF, grad_accum_every=2, results_folder=str(tmp_path / "cut")
        )

    with pytest.raises(Stop):
        trainer().train(stop)
    again = trainer()
    again.train()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.vae.state_dict()[name], tensor), name


def test_what_the_trainer_does_not_take_is_refused(tmp_path):
    with pytest.raises(TypeError, match="reads no folder; for files there is embedpipe train-vae FOLDER OUT"):
        VQGanVAETrainer(vae(), folder=str(tmp_path), **BRIEF)
    with pytest.raises(TypeError, match="VQGanVAETrainer has no keyword 'grad_acum_every'; did you mean"):
        VQGanVAETrainer(vae(), pictures(), grad_acum_every=2, **BRIEF)
    with pytest.raises(ConfigError, match="5 training images are fewer than batch_size times grad_accum_every, 8"):
        VQGanVAETrainer(vae(), pictures(6), grad_accum_every=2, **BRIEF)


def test_reconstructions_are_judged_as_by_hand():
    model, images = vae().eval(), pictures(5)
    found = judge_reconstructions(model, images.split(2))
    with torch.no_grad():
        made = model(images)
        codes = model.quantize(model.encode(images * 2 - 1)).codes.flatten()
    assert found["reconstruction"] == pytest.approx(float((2 * (made - images)).abs().mean()), rel=1e-4)
    squared = (made.clamp(0, 1) - images).square().mean(dim=(1, 2, 3))
    assert found["psnr"] == pytest.approx(float((10 * (1 / squared).log10()).mean()), rel=1e-4)
    counts = torch.bincount(codes, minlength=16)
    assert found["codes_used"] == pytest.approx(int((counts > 0).sum()) / 16)
    shares = [count / len(codes) for count in counts.tolist() if count]
    assert found["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6)


SETTINGS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_a_folder_of_diffusers_takes_its_place(tmp_path, kind):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    more = {"scaling_factor": 0.5} | ({"shift_factor": 0.25} if kind == "AutoencoderKL" else {"num_vq_embeddings": 8})
    model = getattr(diffusers, kind)(**SETTINGS, **more).eval()
    model.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    check_autoencoder(loaded)
    assert (loaded.latent_channels, loaded.downsampling) == (4, 2)
    assert loaded.latent_std.tolist() == [2.0] * 4
    assert loaded.latent_mean.tolist() == [0.25 if kind == "AutoencoderKL" else 0.0] * 4

    pixels = pictures(2) * 2 - 1
    with torch.no_grad():
        encoded = model.encode(pixels)
        latents = encoded.latent_dist.mode() if kind == "AutoencoderKL" else encoded.latents
        torch.testing.assert_close(loaded.encode(pixels), latents)
        torch.testing.assert_close(loaded.decode(latents), model.decode(latents).sample)

    decoder = Decoder(unet=unet(), image_size=16, vae=loaded, timesteps=10, sample_timesteps=2)
    stage, embeds = decoder.stage(1), F.normalize(torch.randn(2, 6), dim=-1)
    x0, _ = stage.training_pair(DecoderBatch(pictures(2), embeds), torch.Generator().manual_seed(0))
    torch.testing.assert_close(x0, (latents - loaded.latent_mean.view(1, 4, 1, 1)) / 2, atol=1e-5, rtol=1e-5)
    assert decoder.sample(image_embed=embeds).shape == (2, 3, 16, 16)


def test_other_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="a Linear of diffusers cannot be used as an autoencoder"):
        DiffusersAutoencoder(nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_autoencoder(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ConfigError, match="holds a UNet2DModel of diffusers; known: AutoencoderKL, VQModel"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(CheckpointError, match="diffusers cannot load it"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "decoder"}')
    with pytest.raises(CheckpointError, match="holds a 'decoder', which is no autoencoder; known: vqgan-vae"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"needs that package \(pip install 'embedpipe\[diffusers\]'\)"):
        load_autoencoder(tmp_path)
