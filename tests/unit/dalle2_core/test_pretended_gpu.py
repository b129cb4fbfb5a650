"""Every preset's training step on a GPU that is only pretended: no tensor of the host among the device's, no wait.

On `meta` tensors have a device and a shape and no values: whatever brings one to the host (a length, a finiteness, an
index) raises, and so does a tensor of the host among them. Priors also run forward on a `cuda:0` under FakeTensorMode;
there torch's engine asks the driver for its context, and modules cannot be brought to channels last.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dalle2_core import Decoder, VQGanVAE
from dalle2_core.conditioning import DecoderBatch, DecoderCondition
from dalle2_core.decoder.stage_sampler import StageSampler, StageSamplingConfig
from dalle2_core.diffusion.samplers import SAMPLERS, timesteps_for
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.networks import fused_norm
from dalle2_core.networks.fused_norm import norm_scale_silu
from dalle2_core.presets import DECODER_PRESETS, PRIOR_PRESETS, VAE_PRESETS
from dalle2_core.presets.decoder import IN_LATENTS
from dalle2_core.training.config import TrainConfig
from dalle2_core.training.distributed import join_processes
from dalle2_core.training.ema import make_ema
from dalle2_core.training.optim import OptimConfig, make_optimizer
from dalle2_core.training.state import TrainState
from dalle2_core.training.step import LossPass, take_step
from dalle2_core.types import PriorBatch
from tests.tiny_unet import unet

PLACES = ("cuda:0", "meta")
ROWS, WIDTH = 2, 64


class Pretended:
    """Inside, whatever is made is made on the device."""

    def __init__(self, place):
        self.place = torch.device(place)
        self.modes = [FakeTensorMode(allow_non_fake_inputs=True)] if self.place.type == "cuda" else []
        self.modes.append(self.place)

    def __enter__(self):
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *problem):
        for mode in reversed(self.modes):
            mode.__exit__(*problem)

    def train(self, model, loss):
        assert loss.device == self.place
        if self.place.type == "meta":
            loss.backward()
            assert any(it.grad is not None for it in model.parameters())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("preset", PRIOR_PRESETS)
def test_a_priors_step_never_waits(preset, tokens, place):
    recipe = PRIOR_PRESETS[preset]()
    with Pretended(place) as gpu:
        width = recipe.network.dim or WIDTH
        prior = recipe.build(width).train()
        embeds = (torch.randn(ROWS, width), torch.randn(ROWS, width))
        states = torch.randn(ROWS, 7, width), torch.ones(ROWS, 7, dtype=torch.bool)
        text = states if tokens or recipe.text_tokens else (None, None)
        gpu.train(prior, prior.loss(PriorBatch(*embeds, *text), None).loss)


@pytest.mark.parametrize("preset", sorted(set(DECODER_PRESETS) - IN_LATENTS))
def test_a_decoders_step_never_waits(preset):
    recipe = DECODER_PRESETS[preset]()
    for number in range(1, len(recipe.stages) + 1):
        with Pretended("meta") as gpu:
            stage = recipe.build(number, WIDTH, None, None).train()
            if stage.config.lowres is not None and stage.config.lowres.degradation == "bsr":
                continue  # each row is damaged in its own way, which the host decides
            size = stage.config.image_size
            images = torch.zeros(ROWS, 3, size, size, dtype=torch.uint8)
            embed = torch.randn(ROWS, WIDTH) if stage.unet.config.sees_image_embed else None
            gpu.train(stage, stage.loss(DecoderBatch(images, embed), None).loss)


@pytest.mark.parametrize("preset", VAE_PRESETS)
def test_an_autoencoder_reconstructs_without_a_wait(preset):
    recipe = VAE_PRESETS[preset]()
    with Pretended("meta") as gpu:
        vae = VQGanVAE.from_config(recipe.vae).eval()
        size = vae.config.image_size
        made = vae.decoder(vae.encoder(torch.randn(ROWS, 3, size, size)))
        gpu.train(vae, made.square().mean())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampling_step_never_waits(sampler):
    with torch.device("meta"), torch.no_grad():
        stage = Decoder(unet(), image_size=8, timesteps=20, learned_variance=False).stage(1)
        schedule = NoiseSchedule("cosine", 20)
        x = torch.randn(ROWS, 3, 8, 8)
        condition = DecoderCondition(image_embed=torch.randn(ROWS, 6))
        denoise = StageSampler(stage, StageSamplingConfig(cond_scale=2.0))._denoise(condition)
        made = SAMPLERS[sampler](denoise, schedule, x, timesteps_for(schedule, 5).to("meta"), None)
        assert made.device == torch.device("meta")


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for a device: scalars read, places of True looked for."""

    WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in self.WAITS:
            self.names.append((func._schema.name, args[0].dtype))
        return func(*args, **(kwargs or {}))


def test_a_step_of_training_reads_nothing_one_by_one():
    """The loss, its parts and the gradient's norm come in one piece; the average's count is the host's own."""
    prior = PRIOR_PRESETS["tiny"]().build(WIDTH)
    optim = OptimConfig(lr=1e-3, max_grad_norm=1.0)
    config = TrainConfig(steps=1, batch_size=4, accumulate=2)
    state = TrainState(prior, make_optimizer(prior, optim), make_ema(prior, 0.9))
    batch = PriorBatch(F.normalize(torch.randn(4, WIDTH)), F.normalize(torch.randn(4, WIDTH)))
    for _ in range(2):  # the first step makes the optimizer's state
        with Reads() as reads:
            take_step(state, LossPass(prior), batch, 1e-3, config, optim, join_processes("cpu"))
    # The average's count of updates, and whether it is 0, are read from the host itself.
    assert [it for it in reads.names if it[1] not in (torch.int64, torch.bool)] == []
    assert len(reads.names) <= 3
    assert not state.ema.to("meta").n_averaged.is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_a_gpu_is_group_norm(dtype, monkeypatch):
    """There torch's own kernel refuses channels-last maps before 2.14; put on the CPU, the refusal must not be met."""

    def refusing(x, *arguments):
        raise RuntimeError("Expected X.is_contiguous(memory_format) to be true")

    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 + torch.randn(2, 8, 5, 4)).to(memory_format=torch.channels_last)
    scale_shift = torch.randn(2, 16)

    def run(by_hand):
        with monkeypatch.context() as patch:
            if by_hand:
                patch.setattr(fused_norm, "_torchs_own_is_right", lambda x: False)
                patch.setattr(torch, "native_group_norm", refusing)
            inputs = [it.clone().requires_grad_() for it in (x.to(dtype), scale_shift)]
            out, again = norm_scale_silu(inputs[0], norm, inputs[1])
            out.float().square().sum().backward()
            return [out, again(), *(it.grad for it in inputs)]

    reference = [it.double().clone().requires_grad_() for it in (x.to(dtype), scale_shift)]
    scale, shift = reference[1].chunk(2, dim=1)
    wide = F.group_norm(reference[0], 2, norm.weight.double(), norm.bias.double(), norm.eps)
    wanted = F.silu(wide * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    wanted.square().sum().backward()
    found = run(by_hand=True)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.25, "rtol": 0.06}
    for mine, theirs in zip(found, [wanted, wanted, reference[0].grad, reference[1].grad], strict=True):
        torch.testing.assert_close(mine.double(), theirs, **close)
    if dtype == torch.float32:
        for mine, theirs in zip(found, run(by_hand=False), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
