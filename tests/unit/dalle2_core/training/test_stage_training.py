"""A decoder's stages in the package's training loop."""

import pytest
import torch
from torch.nn import functional as F

from dalle2_core import DecoderBatch, DecoderStage, LowresConfig, StageConfig
from dalle2_core.rng import PerSampleRNG
from dalle2_core.training import OptimConfig, Run, TrainConfig, load_trained, train
from tests.tiny_unet import unet

DEVICE = torch.device("cpu")


def stages():
    """A first stage and an upsampler with everything that draws."""
    text = {"cond_on_text_encodings": True, "text_embed_dim": 10}
    first = DecoderStage(
        unet(**text, self_cond=True, channels_out=6), StageConfig(8, timesteps=30, learned_variance=True)
    )
    blurred = LowresConfig(8, blur_sigma=(0.4, 0.8), blur_kernel_size=(3, 5))
    spoilt = LowresConfig(8, degradation="bsr")
    upsampler = {"lowres_cond": True, "cond_on_image_embeds": False}
    second = DecoderStage(unet(**upsampler, lowres_noise_cond=True), StageConfig(16, blurred, random_crop_size=8))
    third = DecoderStage(unet(**upsampler), StageConfig(16, spoilt, loss_weighting="min-snr"))
    return {"first": first, "second": second, "third": third}


def batch(rows=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (rows, 3, 16, 16), generator=draw, dtype=torch.uint8)
    embeds = F.normalize(torch.randn(rows, 6, generator=draw), dim=-1)
    tokens = torch.randn(rows, 4, 10, generator=draw)
    return DecoderBatch(images, embeds, tokens, torch.arange(4) < torch.arange(rows)[:, None] % 4 + 1)


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_a_rows_loss_does_not_depend_on_how_its_batch_is_cut(name):
    stage, whole = stages()[name].eval(), batch()
    together = stage.loss(whole, PerSampleRNG(7, 0, 6, DEVICE))
    parts = [
        stage.loss(whole.part(start, stop), PerSampleRNG(7, start, stop - start, DEVICE))
        for start, stop in ((0, 4), (4, 6))
    ]
    torch.testing.assert_close(together.loss, (4 * parts[0].loss + 2 * parts[1].loss) / 6, atol=1e-4, rtol=1e-4)
    for metric, value in together.metrics.items():
        one, other = (float(part.metrics[metric]) for part in parts)
        assert float(value) == pytest.approx((4 * one + 2 * other) / 6, rel=1e-3)


def run(folder, stage, steps, accumulate=1):
    def stream(step):
        while True:
            yield batch(seed=step)
            step += 1

    config = TrainConfig(steps=steps, batch_size=6, log_every=2, save_every=2, ema_decay=0.9, accumulate=accumulate)
    return train(stage, stream, Run(folder), config, OptimConfig(lr=1e-3))


def test_a_stage_is_trained_by_itself_resumed_to_the_bit_and_read_back(tmp_path):
    """Weights lie channels last in memory, files do not: what belongs to which weight must survive that."""
    once = run(tmp_path / "once", stages()["second"], 4)
    run(tmp_path / "twice", stages()["second"], 2)
    twice = run(tmp_path / "twice", stages()["second"], 4)
    for one, other in zip(once.model.parameters(), twice.model.parameters(), strict=True):
        assert torch.equal(one, other)
    fresh = stages()["second"]
    load_trained(fresh, tmp_path / "once" / "checkpoints")
    fresh.save(tmp_path / "stage")
    again = DecoderStage.load(tmp_path / "stage")
    for one, other in zip(again.unet.parameters(), once.averaged.unet.parameters(), strict=True):
        assert torch.equal(one, other)
