"""A tiny decoder learns eight coloured shapes by heart, and makes the right one for each embedding."""

import pytest
import torch

from dalle2_core import DecoderBatch, DecoderStage, StageConfig, Unet
from dalle2_core.decoder.decoder import Decoder

SIZE = 16


def shapes():
    """Eight pictures [8, 3, 16, 16]: a disc or a square, in four colours, on grey."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    disc = (x - 7.5) ** 2 + (y - 7.5) ** 2 < 30
    square = (x - 7.5).abs().maximum((y - 7.5).abs()) < 6
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.9, 0.1]])
    pictures = [torch.where(shape, colour[:, None, None], 0.5) for shape in (disc, square) for colour in colours]
    return torch.stack(pictures)


def embeddings():
    """Nearly orthogonal, as those of eight different pictures are."""
    noise = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(torch.eye(8, 16) + 0.05 * noise, dim=-1)


def train(stage, steps, learning_rate=3e-3):
    images, embeds = shapes(), embeddings()
    optimizer = torch.optim.Adam(stage.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
    batch = DecoderBatch(images, embeds)
    log = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
        optimizer.zero_grad()
        loss = stage.loss(batch, torch.Generator().manual_seed(step))
        loss.loss.backward()
        optimizer.step()
        log.append({"loss": loss.loss.item(), **{name: float(it) for name, it in loss.metrics.items()}})
    return log


def right_ones(decoder, **sampling):
    """Of eight samples, how many are nearest to their own picture; and their mean absolute error."""
    made = decoder.sample(image_embed=embeddings(), generator=torch.Generator().manual_seed(1), **sampling)
    apart = (made[:, None] - shapes()[None]).abs().flatten(2).mean(2)
    return int((apart.argmin(1) == torch.arange(8)).sum()), float(apart.diagonal().mean())


def network(**keywords):
    torch.manual_seed(0)
    return Unet(16, image_embed_dim=16, dim_mults=(1, 2), num_resnet_blocks=1, resnet_groups=4, attn_heads=4,
                attn_dim_head=8, init_cross_embed=False, init_conv_kernel_size=3, **keywords)  # fmt: skip


# Colours, seen only where noise is strong, come last by noise.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("predicts", "steps", "learning_rate"), [("v", 220, 6e-3), ("x0", 200, 6e-3), ("noise", 900, 3e-3)]
)
def test_it_makes_the_right_shape_for_each_embedding(predicts, steps, learning_rate):
    stage = DecoderStage(network(), StageConfig(SIZE, timesteps=200, sample_timesteps=20, predicts=predicts))
    train(stage, steps, learning_rate)
    decoder = Decoder.from_stages([stage])
    right, error = right_ones(decoder)
    assert right == 8
    assert error < 0.08
    assert right_ones(decoder, sampler="ddpm", steps=40)[0] == 8
    assert right_ones(decoder, cond_scale=2.0)[0] == 8


@pytest.mark.slow
def test_the_bound_of_a_learned_variance_falls_while_it_trains():
    config = StageConfig(SIZE, timesteps=100, sample_timesteps=20, learned_variance=True)
    log = train(DecoderStage(network(channels_out=6), config), 150)
    first, last = (sum(row["bound_bits"] for row in part) / 30 for part in (log[:30], log[-30:]))
    assert last < 0.7 * first
