"""VQGanVAE: shapes, losses against autograd by hand, what is refused, and its place in a decoder."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from dalle2_core import Decoder, DecoderBatch, VQGanVAE
from dalle2_core.autoencoders.adversarial import adaptive_weight, gradient_penalty
from dalle2_core.autoencoders.base import check_autoencoder
from dalle2_core.autoencoders.perceptual import VggFeatures
from dalle2_core.collectives import SingleProcess
from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.rng import PerSampleRNG
from tests.tiny_unet import unet
from tests.tiny_vae import SMALL, pictures, vae

DEVICE = torch.device("cpu")


def draws(rows=6, start=0, step=0):
    return PerSampleRNG(step, start, rows, DEVICE)


def step_of(model, step=0, images=None):
    """A forward pass and a settling, without an optimizer."""
    images = pictures() if images is None else images
    result = model.loss(DecoderBatch(images), draws(len(images), step=step))
    result.loss.backward()
    model.after_step(SingleProcess())
    return result


def test_it_is_an_autoencoder():
    model = vae()
    check_autoencoder(model)
    pixels = pictures(3) * 2 - 1
    latents = model.encode(pixels)
    assert latents.shape == (3, model.latent_channels, 16 // model.downsampling, 4)
    assert model.decode(latents).shape == pixels.shape
    assert model.encode(torch.rand(1, 3, 8, 24)).shape == (1, 4, 2, 6)  # any sides that divide
    torch.testing.assert_close(model.eval()(pictures(3)), (model.decode(latents) + 1) / 2)


def test_decoding_quantises():
    model = vae().eval()
    latents = model.encode(pictures() * 2 - 1)
    quantized = model.quantize(latents)
    torch.testing.assert_close(quantized.vectors, model.codebook.vectors(quantized.codes))
    torch.testing.assert_close(model.decode(latents), model.decode_codes(quantized.codes))
    torch.testing.assert_close(model.decode(3 * latents), model.decode(latents))  # only directions count


@pytest.mark.parametrize(
    "keywords", [{}, {"use_hinge_loss": False}, {"l2_recon_loss": True, "vq_use_cosine_sim": False}]
)
def test_the_loss_is_the_sum_of_its_parts_and_each_side_gets_its_own_gradient(keywords):
    model = vae(**keywords, apply_grad_penalty_every=0, flip_prob=0.0)
    for step in range(2):  # so that fooling weighs something
        model.zero_grad()
        step_of(model, step)
    model.zero_grad()
    weight = float(model.balance.weight)
    assert weight > 0
    x = pictures() * 2 - 1
    model.loss(DecoderBatch(pictures()), draws(step=2)).loss.backward()
    ours = {name: weights.grad.clone() for name, weights in model.named_parameters()}

    # The same by hand: two losses, two backward passes, each into its own side.
    model.zero_grad()
    latents = model.encode(x)
    codes = model.codebook.vectors(
        model.codebook.nearest(latents.detach().permute(0, 2, 3, 1).reshape(-1, 4)).view(6, 4, 4)
    )
    made = model.decoder(latents + (codes - latents).detach())
    error = (made - x).square().mean() if keywords.get("l2_recon_loss") else (made - x).abs().mean()
    hinge = keywords.get("use_hinge_loss", True)
    fooling = -model.discriminator(made).mean() if hinge else F.softplus(-model.discriminator(made)).mean()
    (error + (latents - codes).square().mean() + weight * fooling).backward()
    of_autoencoder = {name: it.grad.clone() for name, it in model.named_parameters() if "discriminator" not in name}
    model.zero_grad()
    real, fake = model.discriminator(x), model.discriminator(made.detach())
    judging = F.relu(1 - real) + F.relu(1 + fake) if hinge else F.softplus(-real) + F.softplus(fake)
    judging.mean().backward()
    of_judge = {name: it.grad.clone() for name, it in model.named_parameters() if "discriminator" in name}
    for name, gradient in (of_autoencoder | of_judge).items():
        torch.testing.assert_close(
            ours[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_weight_of_fooling_is_the_quotient_of_gradients_by_hand():
    model = vae(flip_prob=0.0)
    step_of(model)
    again = vae(flip_prob=0.0)
    x = pictures() * 2 - 1
    made = again.decoder(again.encode(x))  # the first batch passes unquantised
    last = again.decoder[-1].weight
    (of_error,) = torch.autograd.grad((made - x).abs().mean(), last, retain_graph=True)
    (of_fooling,) = torch.autograd.grad(-again.discriminator(made).mean(), last)
    expected = of_error.square().sum().sqrt() / (of_fooling.square().sum().sqrt() + 1e-6)
    torch.testing.assert_close(model.balance.weight, expected, atol=1e-6, rtol=1e-4)
    assert float(adaptive_weight(torch.ones(3), torch.zeros(3))) == 1e4


def test_the_gradient_penalty_of_a_linear_judge_is_known():
    slope = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.rand(5, 3, 4, 4)
    found = gradient_penalty(lambda x: (x * slope).sum(dim=(1, 2, 3)), images)
    torch.testing.assert_close(found, torch.full((5,), float(10 * (slope.norm() - 1) ** 2)))


def test_a_batch_in_parts_gives_the_loss_and_the_state_of_a_whole_one():
    whole, parts = vae(), vae()
    for step in range(4):
        images = pictures(seed=step)
        whole.zero_grad()
        parts.zero_grad()
        one = step_of(whole, step, images)
        losses = []
        for start, stop in ((0, 4), (4, 6)):
            part = parts.loss(DecoderBatch(images[start:stop]), draws(stop - start, start, step))
            (part.loss * (stop - start) / 6).backward()
            losses.append(float(part.loss.detach()) * (stop - start) / 6)
        parts.after_step(SingleProcess())
        assert sum(losses) == pytest.approx(float(one.loss.detach()), rel=1e-4)
        for name, weights in whole.named_parameters():
            torch.testing.assert_close(dict(parts.named_parameters())[name].grad, weights.grad, atol=1e-5, rtol=1e-2)
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(dict(parts.named_buffers())[name], buffer, atol=1e-4, rtol=1e-3)


def test_the_discriminator_waits_for_its_step():
    model = vae(discr_start_step=2)
    assert "judging" not in step_of(model).metrics
    assert model.discriminator.to_logits.weight.grad is None
    step_of(model, 1)
    assert "judging" in step_of(model, 2).metrics


def test_a_loop_of_ones_own_by_the_published_names():
    model, x = vae(), pictures() * 2 - 1
    codes, weights = model.codebook.codes.clone(), model.decoder[-1].weight.clone()
    loss, made = model(pictures(), return_loss=True, return_recons=True)
    made = made * 2 - 1
    assert float(model.balance.weight) > 0
    by_hand = (made - x).abs().mean() - model.balance.weight * model.discriminator(made).mean()
    torch.testing.assert_close(loss, by_hand)  # the first batch passes unquantised: no commitment
    loss.backward()
    assert model.discriminator.to_logits.weight.grad is None
    torch.optim.Adam(model.parameters()).step()
    assert not torch.equal(model.codebook.codes, codes)
    assert not torch.equal(model.decoder[-1].weight, weights)

    model.zero_grad()
    judging, made = model(pictures(), return_discr_loss=True, add_gradient_penalty=False, return_recons=True)
    real, fake = model.discriminator(x), model.discriminator(made * 2 - 1)
    torch.testing.assert_close(judging, (F.relu(1 - real) + F.relu(1 + fake)).mean())
    judging.backward()
    assert model.decoder[-1].weight.grad is None
    assert float(model.discriminator.to_logits.weight.grad.abs().sum()) > 0
    assert float(model(pictures(), return_discr_loss=True).detach()) > float(judging.detach())
    torch.testing.assert_close(model(pictures()), made)


def test_grey_images_and_a_perceptual_loss(tmp_path):
    seen = nn.Conv2d(3, 2, 3)
    model = vae(channels=1, vgg=seen)
    result = step_of(model, images=pictures(channels=1))
    assert result.metrics["perceptual"] > 0
    assert not any(it.requires_grad for it in seen.parameters())
    assert not any("vgg" in name for name in model.state_dict())
    model.double()
    assert seen.weight.dtype == torch.float64  # it moves along


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_vgg_weights_come_from_a_file(tmp_path, ending):
    with torch.device("meta"):
        theirs = torchvision.models.vgg16(weights=None)
    torch.manual_seed(3)
    network = VggFeatures()
    path = tmp_path / f"vgg16.{ending}"
    (save_file if ending == "safetensors" else torch.save)(network.state_dict(), path)
    shapes = {name: it.shape for name, it in network.state_dict().items()}
    assert shapes.items() <= {name: it.shape for name, it in theirs.state_dict().items()}.items()
    model = vae(vgg=path)
    torch.testing.assert_close(model._vgg[0].features[0].weight, network.features[0].weight)
    assert step_of(model).metrics["perceptual"] > 0


def test_files_that_are_no_vgg_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        vae(vgg=tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pth: cannot be read as weights"):
        vae(vgg=tmp_path / "text.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"weights of vgg16; features\.0\.weight is missing"):
        vae(vgg=tmp_path / "other.safetensors")


def test_latents_are_measured_and_saved(tmp_path):
    model = vae(vq_use_cosine_sim=False)
    images = pictures(20)
    model.measure_latents(images.split(6))
    latents = model.encode(images * 2 - 1)
    torch.testing.assert_close(model.latent_mean, latents.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.latent_std, latents.std(dim=(0, 2, 3), correction=0), atol=1e-5, rtol=1e-4)
    model.eval().save(tmp_path)
    again = VQGanVAE.load(tmp_path).eval()
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(again(images), model(images))
    with pytest.raises(ShapeError, match="no images"):
        model.measure_latents([])
    with pytest.raises(CheckpointError, match="not a decoder's config, but of kind 'vqgan-vae'"):
        Decoder.load(tmp_path)


def latent_decoder(model):
    return Decoder(
        unet=(unet(), unet(seed=1)), image_sizes=(16, 32), vae=(model,), timesteps=20, sample_timesteps=4,
        learned_variance=False,
    )  # fmt: skip


def test_a_decoder_stage_trains_and_samples_in_its_latents_and_rows_stay_apart():
    model = vae()
    step_of(model)
    model.zero_grad()
    model.measure_latents([pictures(20)])
    codes = model.codebook.codes.clone()
    decoder = latent_decoder(model)
    first, images = decoder.stage(1), pictures(6, 32)
    assert (first.unet.config.channels, first.size) == (4, 4)
    embeds = F.normalize(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    x0, _ = first.training_pair(DecoderBatch(pictures(64, 16), torch.zeros(64, 6)), draws(64))
    assert x0.std(dim=(0, 2, 3)).sub(1).abs().max() < 0.3

    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    losses = []
    for step in range(32):
        loss = first.loss(DecoderBatch(images, embeds), draws(step=step % 4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert torch.equal(model.codebook.codes, codes)
    assert all(weights.grad is None for weights in model.encoder.parameters())

    together = decoder.sample(image_embed=embeds, generator=torch.Generator().manual_seed(5))
    apart = decoder.sample(image_embed=embeds, generator=torch.Generator().manual_seed(5), max_batch_size=2)
    assert together.shape == (6, 3, 32, 32)
    # A latent between two codes may fall to either by a rounding: pictures, not bits.
    assert float((together - apart).abs().mean()) < 1e-3
    moved = embeds.clone()
    moved[3:] = embeds[:3]
    other = decoder.sample(image_embed=moved, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(other[:3], together[:3], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("keywords", "problem"),
    [
        ({"vae_type": "vit"}, "vae_type is 'vit'; the vit of ViT-VQGAN is not built here. The one that is: resnet"),
        ({"vae_type": "vqvae2"}, "vae_type is 'vqvae2'; there is no such one"),
        ({"image_size": 18}, "image_size is 18; with 2 layers it must be a multiple of 4"),
        ({"layer_mults": (1, 2, 4)}, "layer_mults has 3 values for 2 layers"),
        ({"resnet_groups": 3}, "dim 8 cannot be cut into resnet_groups 3"),
        ({"discr_layers": 5}, "leaves nothing of an image of 16 pixels; give at most 4"),
        ({"first_conv_kernel_size": 4}, "first_conv_kernel_size is 4; it must be odd"),
        ({"vq_decay": 1.0}, r"vq_decay is 1.0; it must be in \[0, 1\)"),
        ({"vq_codebook_size": 0}, "vq_codebook_size is 0; it must be 1 or more"),
        ({"flip_prob": 1.5}, "flip_prob is 1.5"),
        ({"discr_start_step": -1}, "discr_start_step is -1; it must be 0 or more"),
        ({"use_vgg_and_gan": False, "vgg": nn.Identity()}, "vgg is given, but use_vgg_and_gan is False"),
    ],
)
def test_settings_that_cannot_be_are_refused(keywords, problem):
    with pytest.raises(ConfigError, match=problem):
        vae(**keywords)


def test_an_unknown_keyword_names_the_near_ones():
    with pytest.raises(TypeError, match="VQGanVAE has no keyword 'vq_codebook_sise'; did you mean vq_codebook_size"):
        vae(vq_codebook_sise=3)
    plain = {name: value for name, value in SMALL.items() if name != "layer_mults"}
    assert VQGanVAE(**plain, encdec_layer_mults=(1, 3)).config.widths == (8, 8, 24)
    with pytest.raises(TypeError, match="given layer_mults twice"):
        vae(encdec_layer_mults=(1, 3))
    with pytest.raises(TypeError, match="has no keyword 'encdec_dim'"):
        vae(encdec_dim=3)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: vae()(torch.rand(1, 3, 8, 8)), "8 x 8 pixels; this autoencoder is for 16"),
        (lambda: vae().encode(torch.rand(1, 3, 10, 8)), "10 x 8 pixels; both must be multiples of 4"),
        (lambda: vae()(torch.rand(1, 1, 16, 16)), r"\(1, 1, 16, 16\) must be \[b, 3, h, w\]"),
        (lambda: vae()(torch.full((1, 3, 16, 16), torch.nan)), "NaN or infinity"),
        (lambda: vae(use_vgg_and_gan=False)(pictures(), return_discr_loss=True), "has no discriminator"),
        (lambda: vae()(pictures(), return_loss=True, return_discr_loss=True), "exclude each other"),
    ],
)
def test_images_that_do_not_fit_are_refused(call, problem):
    with pytest.raises((ShapeError, ConfigError), match=problem):
        call()


def test_what_an_autoencoder_lacks_is_named():
    class Halfway(torch.nn.Module):
        """Its latents' statistics are buffers, as they are in every autoencoder here."""

        latent_channels = downsampling = 4

        def __init__(self):
            super().__init__()
            self.register_buffer("latent_mean", torch.zeros(4))
            self.register_buffer("latent_std", torch.ones(4))

        def encode(self, pixels):
            return pixels

    with pytest.raises(ConfigError, match=r"Halfway lacks decode$"):
        check_autoencoder(Halfway())
    Halfway.decode = Halfway.encode
    check_autoencoder(Halfway())
