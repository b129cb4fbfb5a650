"""VQGanVAE: an autoencoder with a codebook, in whose latents decoder stages can work.

Esser et al. 2012.09841; as the first stage of latent diffusion Rombach et al. 2112.10752, where what is diffused is the
latents before they are quantised, and quantising belongs to the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.autoencoders.adversarial import (
    Balance,
    gradient_penalty,
    hinge_fool,
    hinge_judge,
    logistic_fool,
    logistic_judge,
)
from dalle2_core.autoencoders.perceptual import perceptual_distance, vgg_from
from dalle2_core.collectives import Collectives, SingleProcess
from dalle2_core.conditioning import DecoderBatch
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.images import as_floats
from dalle2_core.inputs import RangeCheck, finite_where_seen
from dalle2_core.keywords import from_keywords
from dalle2_core.modules import CompanionModules
from dalle2_core.networks.codebook import Codebook, Quantized
from dalle2_core.networks.vqgan import Discriminator, vqgan_decoder, vqgan_encoder
from dalle2_core.networks.vqgan_config import VaeConfig
from dalle2_core.rng import RNG, uniform
from dalle2_core.serialization import read_settings, read_weights, settings_of, write_model
from dalle2_core.types import StepLoss

KIND = "vqgan-vae"
# DALLE2-pytorch hands on what begins with `encdec_` to the network; its README leaves that out.
_OF_NETWORK = frozenset(
    (
        "layer_mults",
        "num_resnet_blocks",
        "resnet_groups",
        "first_conv_kernel_size",
        "use_attn",
        "attn_dim_head",
        "attn_heads",
        "attn_dropout",
    )
)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the autoencoder lowers, scalars. made: its images, in [-1, 1]. fooling: None without a discriminator."""

    made: Tensor
    reconstruction: Tensor
    perceptual: Tensor | None
    commitment: Tensor
    fooling: Tensor | None

    @property
    def likeness(self) -> Tensor:
        """Of images and reconstructions."""
        return self.reconstruction if self.perceptual is None else self.reconstruction + self.perceptual


class VQGanVAE(CompanionModules):
    """An `Autoencoder`: latents of `vq_codebook_dim` channels, quantised when they are decoded.

    `loss` trains all of it in one step: gradients of the autoencoder's loss reach the autoencoder alone, those of the
    discriminator's loss the discriminator alone. How much fooling the discriminator counts is measured in each step
    and applied in the next, so that a batch can be cut.

    latent_mean, latent_std: [latent_channels]; 0 and 1 until `measure_latents`, saved with the weights.
    """

    latent_mean: Tensor
    latent_std: Tensor
    steps: Tensor

    def __init__(
        self, *, dim: int, image_size: int, vgg: nn.Module | Path | str | None = None, **keywords: Any
    ) -> None:
        """keywords: the fields of VaeConfig, those of the network with or without `encdec_` before them.

        An unknown keyword is a TypeError that names the near ones.

        Args:
            vgg: for a perceptual loss, see `dalle2_core.autoencoders.perceptual.vgg_from`. None: without one. Neither
                trained nor saved.
        """
        for name in _OF_NETWORK & {it.removeprefix("encdec_") for it in keywords if it.startswith("encdec_")}:
            if name in keywords:
                raise TypeError(f"VQGanVAE is given {name} twice, with and without encdec_")
            keywords[name] = keywords.pop(f"encdec_{name}")
        self._set(from_keywords(VaeConfig, "VQGanVAE", {"dim": dim, "image_size": image_size, **keywords}), vgg)

    @classmethod
    def from_config(cls, config: VaeConfig, vgg: nn.Module | Path | str | None = None) -> VQGanVAE:
        """The same as the constructor, of a config that is made already."""
        vae = cls.__new__(cls)
        vae._set(config, vgg)
        return vae

    def _set(self, config: VaeConfig, vgg: nn.Module | Path | str | None) -> None:
        super().__init__()
        if vgg is not None and not config.use_vgg_and_gan:
            raise ConfigError("vgg is given, but use_vgg_and_gan is False; choose one")
        self.config = config
        self._range = RangeCheck()
        self.latent_channels, self.downsampling = config.vq_codebook_dim, config.downsampling
        self.encoder, self.decoder = vqgan_encoder(config), vqgan_decoder(config)
        self.codebook = Codebook(
            config.vq_codebook_size,
            config.vq_codebook_dim,
            decay=config.vq_decay,
            cosine=config.vq_use_cosine_sim,
            kmeans_init=config.vq_kmeans_init,
            revive_below=config.vq_revive_below,
        )
        self.discriminator = Discriminator(config) if config.use_vgg_and_gan else None
        self.balance = Balance()
        # Not a child: its weights are neither trained nor saved.
        self._vgg = () if vgg is None else (vgg_from(vgg),)
        self.register_buffer("latent_mean", torch.zeros(self.latent_channels))
        self.register_buffer("latent_std", torch.ones(self.latent_channels))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, pixels: Tensor) -> Tensor:
        """[b, c, h, w] in [-1, 1], sides multiples of `downsampling` → latents before they are quantised."""
        self._check(pixels)
        latents: Tensor = self.encoder(pixels.contiguous(memory_format=torch.channels_last))
        return F.normalize(latents, dim=1) if self.config.vq_use_cosine_sim else latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents are quantised, then made images in about [-1, 1]."""
        return self._made(self.quantize(latents).vectors)

    def quantize(self, latents: Tensor) -> Quantized:
        """Each pixel of latents [b, d, h, w] becomes its nearest code."""
        if self.config.vq_use_cosine_sim:
            latents = F.normalize(latents, dim=1)
        quantized: Quantized = self.codebook(latents)
        return quantized

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Images in about [-1, 1] from numbers of codes [b, h, w]."""
        return self._made(self.codebook.vectors(codes))

    def loss(self, batch: DecoderBatch, draws: RNG) -> StepLoss:
        """The training loss of autoencoder and discriminator, on images of `image_size`; `settle` ends the step."""
        config = self.config
        pixels = self._training_pixels(batch.images, draws)
        terms = self._terms(pixels, draws)
        loss = terms.likeness + config.vq_commitment_weight * terms.commitment
        parts = {"reconstruction": terms.reconstruction, "commitment": terms.commitment}
        if terms.perceptual is not None:
            parts["perceptual"] = terms.perceptual
        if terms.fooling is not None:
            self._measure(terms, len(pixels))
            judging = self._judging(pixels, terms.made.detach())
            loss = loss + self.balance.weight * terms.fooling + judging
            parts |= {"fooling": terms.fooling, "judging": judging, "fooling_weight": self.balance.weight}
            every = config.apply_grad_penalty_every
            if every and int(self.steps) % every == 0:
                loss = loss + gradient_penalty(self._judge, pixels).mean()
        return StepLoss(loss, {name: float(part.detach()) for name, part in parts.items()})

    @torch.no_grad()
    def after_step(self, together: Collectives) -> None:
        """End a step: the codes follow what was seen, and the weight of fooling is measured. See `Settling`."""
        self.codebook.after_step(together)
        self.balance.after_step(together)
        self.steps += 1

    def forward(
        self,
        img: Tensor,
        return_loss: bool = False,
        return_discr_loss: bool = False,
        return_recons: bool = False,
        add_gradient_penalty: bool = True,
        generator: RNG = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Reconstructions [b, c, h, w], in about [0, 1]; or a loss, for a training loop of one's own.

        Args:
            img: [b, c, h, w], uint8 or float in [0, 1], of `image_size`.
            return_loss: the autoencoder's loss instead, with a weight of fooling measured on this batch; in training
                mode the codes move at once.
            return_discr_loss: the discriminator's loss instead; add_gradient_penalty: with the penalty.
            return_recons: (loss, reconstructions).
            generator: of what is drawn; None draws from torch's global one.
        """
        self._range.see(img)
        pixels = as_floats(img) * 2 - 1
        if not return_loss and not return_discr_loss:
            self._check(pixels, square=True)
            return (self.decode(self.encode(pixels)) + 1) / 2
        if return_loss and return_discr_loss:
            raise ConfigError("return_loss and return_discr_loss exclude each other; call it twice")
        self._check(pixels, square=True)
        if return_loss:
            loss, made = self._own_loss(pixels, generator)
        else:
            loss, made = self._own_judging(pixels, add_gradient_penalty)
        return (loss, (made + 1) / 2) if return_recons else loss

    @property
    def encoded_dim(self) -> int:
        """Channels of the latents."""
        return self.latent_channels

    def get_encoded_fmap_size(self, image_size: int) -> int:
        """Height and width of the latents of images of that size."""
        return image_size // self.downsampling

    def copy_for_eval(self) -> VQGanVAE:
        """A frozen copy in eval mode without discriminator and perceptual loss, on the same device."""
        copied = VQGanVAE.from_config(replace(self.config, use_vgg_and_gan=False))
        own = copied.state_dict()
        copied.load_state_dict({name: it for name, it in self.state_dict().items() if name in own})
        return copied.to(next(self.parameters()).device).eval().requires_grad_(False)

    @torch.no_grad()
    def measure_latents(self, images: Iterable[Tensor]) -> None:
        """Take latent_mean and latent_std from batches of images, uint8 or float in [0, 1].

        Raises ShapeError if there are none.
        """
        count = 0
        sums, squares = (torch.zeros_like(self.latent_mean, dtype=torch.float64) for _ in range(2))
        for batch in images:
            latents = self.encode(as_floats(batch) * 2 - 1).double()
            count += latents.numel() // self.latent_channels
            sums = sums + latents.sum(dim=(0, 2, 3))
            squares = squares + latents.square().sum(dim=(0, 2, 3))
        if not count:
            raise ShapeError("there are no images to measure latents of")
        mean = sums / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.latent_mean.copy_(mean)
        # A channel that never varies is only centred: its rounding errors shall not become noise.
        self.latent_std.copy_(std.clamp(min=1e-3 * float(std.max().clamp(min=1e-8))))

    def save(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors, each whole. Raises CheckpointError if the disk refuses."""
        write_model(folder, KIND, {"vae": asdict(self.config)}, self.state_dict())

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", *, vgg: nn.Module | Path | str | None = None
    ) -> VQGanVAE:
        """Read what `save` wrote. Raises CheckpointError if it is not a whole one of this format."""
        settings = read_settings(folder, KIND, "an autoencoder")
        with settings_of(folder):
            vae = cls.from_config(from_keywords(VaeConfig, "vae", settings["vae"]), vgg)
        read_weights(folder, vae)
        return vae.to(device)

    def companions(self) -> tuple[object, ...]:
        """The network of the perceptual loss, which is no child."""
        return tuple(self._vgg)

    def _made(self, vectors: Tensor) -> Tensor:
        made: Tensor = self.decoder(vectors.contiguous(memory_format=torch.channels_last))
        return made

    def _judge(self, pixels: Tensor) -> Tensor:
        assert self.discriminator is not None
        logits: Tensor = self.discriminator(pixels)
        return logits

    def _terms(self, pixels: Tensor, draws: RNG) -> _Terms:
        quantized: Quantized = self.codebook(self.encode(pixels), draws)
        made = self._made(quantized.vectors)
        error = F.mse_loss if self.config.l2_recon_loss else F.l1_loss
        perceptual = None
        for network in self._vgg:
            perceptual = perceptual_distance(network, (pixels + 1) / 2, (made + 1) / 2)
        fooling = None
        if self.discriminator is not None and int(self.steps) >= self.config.discr_start_step:
            fool = hinge_fool if self.config.use_hinge_loss else logistic_fool
            fooling = fool(self.discriminator.judged(made)).mean()
        return _Terms(made, error(made, pixels), perceptual, quantized.commitment, fooling)

    def _judging(self, real: Tensor, fake: Tensor) -> Tensor:
        judge = hinge_judge if self.config.use_hinge_loss else logistic_judge
        judged_real, judged_fake = self._judge(torch.cat((real, fake))).chunk(2)
        return judge(judged_real, judged_fake).mean()

    def _measure(self, terms: _Terms, rows: int) -> None:
        if self.training and torch.is_grad_enabled() and terms.fooling is not None:
            last: Tensor = self.decoder[-1].weight  # type: ignore[assignment]
            self.balance.measure(terms.likeness, terms.fooling, last, rows)

    def _own_loss(self, pixels: Tensor, draws: RNG) -> tuple[Tensor, Tensor]:
        terms = self._terms(pixels, draws)
        loss = terms.likeness + self.config.vq_commitment_weight * terms.commitment
        self._measure(terms, len(pixels))
        if self.training and torch.is_grad_enabled():
            self.after_step(SingleProcess())
        if terms.fooling is not None:
            loss = loss + self.balance.weight.clone() * terms.fooling
        return loss, terms.made

    def _own_judging(self, pixels: Tensor, add_gradient_penalty: bool) -> tuple[Tensor, Tensor]:
        if self.discriminator is None:
            raise ConfigError("this autoencoder has no discriminator (use_vgg_and_gan=False), so that it has no loss")
        with torch.no_grad():
            made = self.decode(self.encode(pixels))
        loss = self._judging(pixels, made)
        if add_gradient_penalty:
            loss = loss + gradient_penalty(self._judge, pixels).mean()
        return loss, made

    def _training_pixels(self, images: Tensor, draws: RNG) -> Tensor:
        pixels = as_floats(images) * 2 - 1
        self._check(pixels, square=True)
        if not (self.training and self.config.flip_prob):
            return pixels
        flips = uniform((len(pixels),), draws, pixels.device) < self.config.flip_prob
        return torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)

    def _check(self, pixels: Tensor, square: bool = False) -> None:
        """Raises ShapeError for images of other channels or sizes, or that are not finite."""
        config = self.config
        if pixels.ndim != 4 or pixels.shape[1] != config.channels:
            raise ShapeError(f"images {tuple(pixels.shape)} must be [b, {config.channels}, h, w]")
        height, width = pixels.shape[-2:]
        if square and (height, width) != (config.image_size, config.image_size):
            raise ShapeError(f"images of {height} x {width} pixels; this autoencoder is for {config.image_size}")
        if height % self.downsampling or width % self.downsampling:
            raise ShapeError(
                f"images of {height} x {width} pixels; both must be multiples of {self.downsampling}, for "
                f"{config.layers} layers"
            )
        if not finite_where_seen(pixels):
            raise ShapeError("images hold NaN or infinity")
