"""One stage of the cascade: a U-Net, the diffusion around it, and its training loss. Ramesh et al. 2204.06125, 2.1."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle2_core.autoencoders.base import Autoencoder, LatentSpace, PixelSpace, Space, frozen
from dalle2_core.conditioning import DecoderBatch, DecoderCondition
from dalle2_core.decoder.degradations import bsr, sometimes_blurred
from dalle2_core.decoder.stage_config import StageConfig, stage_from_json, training_part, without_later
from dalle2_core.diffusion.denoiser import Denoiser, clamped, first_estimate
from dalle2_core.diffusion.learned_variance import LearnedVariance
from dalle2_core.diffusion.parameterization import PARAMETERIZATIONS
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.diffusion.thresholding import Threshold, none, threshold_named
from dalle2_core.diffusion.timestep_sampling import TIMESTEP_SAMPLINGS
from dalle2_core.diffusion.weighting import WEIGHTINGS, Weighting, p2
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.images import as_floats, check_images, random_crops, resized
from dalle2_core.inputs import RangeCheck, dtype_of, finite_where_seen
from dalle2_core.keywords import from_keywords
from dalle2_core.modules import CompanionModules
from dalle2_core.networks.unet import Unet
from dalle2_core.networks.unet_config import UnetConfig
from dalle2_core.rng import RNG, integers, normal, uniform
from dalle2_core.serialization import read_settings, read_weights, settings_of, write_model
from dalle2_core.types import StepLoss

KIND = "decoder-stage"
# Noise levels of an upsampler's low-resolution conditioning. Saharia et al. 2205.11487, section 2.5.
NOISE_LEVELS = 1000


class DecoderStage(CompanionModules):
    """Trains by itself (`loss`), saves by itself, and plugs into any cascade whose sizes fit.

    An autoencoder moves with the stage but is not part of its weights: it is neither trained nor saved here.
    """

    def __init__(self, unet: Unet, config: StageConfig, vae: Autoencoder | None = None) -> None:
        """Raises ConfigError if network, sizes and autoencoder do not fit together."""
        super().__init__()
        self.unet = unet
        self.config = config
        self._frozen = () if vae is None else (frozen(vae),)
        self.space: Space = PixelSpace() if vae is None else LatentSpace(vae)
        self._check(vae)
        self._range = RangeCheck()
        self.schedule = NoiseSchedule(config.beta_schedule, config.timesteps, config.zero_terminal_snr)
        self.lowres_schedule = NoiseSchedule("linear", NOISE_LEVELS) if unet.config.lowres_noise_cond else None

    @property
    def vae(self) -> Autoencoder | None:
        return self._frozen[0] if self._frozen else None

    @property
    def size(self) -> int:
        """Height and width of the network's input: pixels or latents."""
        return self.config.image_size // self.space.factor

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def denoiser(self) -> Denoiser[DecoderCondition]:
        """The network's output as an estimate of x0 and, where it is learned, of the variance."""
        config = self.config
        weighting: Weighting = (
            p2(config.p2_gamma, config.p2_k) if config.loss_weighting == "p2" else WEIGHTINGS[config.loss_weighting]
        )
        variance = None
        if config.learned_variance:
            variance = LearnedVariance(config.learned_variance_constrain_frac, pixels=self.vae is None)
        predicts = PARAMETERIZATIONS[config.predicts]
        return Denoiser(self.unet, self.schedule, predicts, weighting, config.loss_type, variance=variance)

    @property
    def threshold(self) -> Threshold:
        """Keeps an estimate of x0 in range while sampling."""
        if self.vae is not None:
            return none
        return threshold_named(self.config.thresholding, self.config.dynamic_thres_percentile)

    def loss(self, batch: DecoderBatch, draws: RNG) -> StepLoss:
        """The training loss; every draw comes from `draws`. Inputs are never changed.

        With a learned variance `metrics` holds its parts: "simple", and "bound_bits", the variational bound in bits
        per dimension over all timesteps.
        """
        x0, condition = self.training_pair(batch, draws)
        rows, device = len(x0), x0.device
        t = TIMESTEP_SAMPLINGS[self.config.timestep_sampling](self.config.timesteps, rows, draws, device)
        noise = normal(x0.shape, draws, device)
        denoiser = self.denoiser
        self_cond = None
        if self.unet.config.self_cond:
            in_range = clamped(denoiser.given(condition), self.threshold)
            self_cond = first_estimate(in_range, denoiser.noisy(x0, t, noise), t, draws)
        error, bound = denoiser.loss(x0, t, noise, condition, self_cond)
        simple = error.mean()
        if bound is None:
            return StepLoss(simple)
        # A timestep's share times T estimates the whole bound.
        whole = bound.mean() * self.config.timesteps
        metrics = {"simple": simple.detach(), "bound_bits": whole.detach()}
        return StepLoss(simple + self.config.vb_loss_weight * whole, metrics)

    def training_pair(self, batch: DecoderBatch, draws: RNG) -> tuple[Tensor, DecoderCondition]:
        """The target x0 [b, c, s, s] and the condition, from images of any size."""
        config = self.config
        given = DecoderCondition.of(batch.image_embed, batch.text_tokens, batch.text_mask)
        if batch.encoded:
            self.refuse_encoded()
            check_images(batch.images, self.unet.config.channels, self.size, "encoded images")
            if batch.images.shape[-1] != self.size:
                raise ShapeError(f"encoded images are {batch.images.shape[-1]} a side; this stage's are {self.size}")
            return batch.images, self._dropped(self.seen_of(given), draws)
        check_images(batch.images, self.image_channels, config.image_size)
        self._range.see(batch.images)
        images = as_floats(batch.images)
        target = resized(images, config.image_size)
        lowres = None if config.lowres is None else self._corrupted(images, draws)
        if config.random_crop_size is not None:
            kept = [target] if lowres is None else [target, lowres]
            target, *others = random_crops(config.random_crop_size, *kept, draws=draws)
            lowres = others[0] if others else None
        condition = self.seen_of(given)
        if lowres is not None:
            condition = self._with_lowres(condition, lowres, draws, level=None)
        return self.space.into(target), self._dropped(condition, draws)

    def encoded(self, images: Tensor) -> Tensor:
        """The target x0 of images [b, c, h, w], uint8 or float: a function of the images alone, so it can be cached.

        Raises ConfigError where it is not (see `refuse_encoded`), ShapeError as the loss does.
        """
        self.refuse_encoded()
        check_images(images, self.image_channels, self.config.image_size)
        self._range.see(images)
        return self.space.into(resized(as_floats(images), self.config.image_size))

    def refuse_encoded(self) -> None:
        """Raise ConfigError where the target is drawn anew for each step, or is pixels anyway."""
        if self.vae is None:
            raise ConfigError("this stage works in pixels; only latents can be encoded beforehand")
        if self.config.lowres is not None or self.config.random_crop_size is not None:
            raise ConfigError(
                "an upsampler, and a stage trained on random crops (random_crop_size), need the images themselves; "
                "only whole latents can be encoded beforehand"
            )

    def condition_for(self, given: DecoderCondition, lowres: Tensor | None, draws: RNG) -> DecoderCondition:
        """The condition in sampling. lowres: pixels of the previous stage, [b, c, h, w] in [0, 1]."""
        condition = self.seen_of(given)
        if self.config.lowres is None:
            return condition
        assert lowres is not None
        at_once = resized(resized(lowres, self.config.lowres.size), self.config.image_size)
        level = round(self.config.lowres.noise_sample_level * (NOISE_LEVELS - 1))
        return self._with_lowres(condition, at_once, draws, level=level)

    def seen_of(self, given: DecoderCondition) -> DecoderCondition:
        """The conditions of the cascade that this network sees. Raises ShapeError if they are not finite."""
        config = self.unet.config
        seen = given
        if not config.sees_image_embed:
            seen = replace(seen, image_embed=None, image_keep=None)
        if not config.cond_on_text_encodings:
            seen = replace(seen, text_tokens=None, text_mask=None, text_keep=None)
        if seen.image_embed is not None and not finite_where_seen(seen.image_embed):
            raise ShapeError("image_embed holds NaN or infinity")
        tokens, mask = seen.text_tokens, seen.text_mask
        if tokens is not None:
            real = tokens if mask is None else tokens.masked_fill(~mask[:, :, None], 0.0)
            if not finite_where_seen(real):
                raise ShapeError("text_encodings hold NaN or infinity")
        return seen.in_dtype(dtype_of(self.unet))

    def training_settings(self) -> dict[str, Any]:
        """The settings that the weights depend on: all but those of sampling, as plain values."""
        return {"network": without_later(asdict(self.unet.config)), "stage": training_part(self.config)}

    def save(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors, each whole. Raises CheckpointError if the disk refuses."""
        vae = (
            None
            if self.vae is None
            else {"latent_channels": self.vae.latent_channels, "downsampling": self.space.factor}
        )
        settings = {"network": asdict(self.unet.config), "stage": asdict(self.config), "vae": vae}
        write_model(folder, KIND, settings, self.unet.state_dict())

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", *, vae: Autoencoder | None = None
    ) -> DecoderStage:
        """Read what `save` wrote. vae: the autoencoder, for a stage that was trained in its latents.

        Raises CheckpointError if it is not a whole stage of this format, ConfigError if `vae` is missing.
        """
        settings = read_settings(folder, KIND, "a decoder stage")
        if (settings.get("vae") is not None) != (vae is not None):
            works_in = "latents; give its autoencoder as vae" if vae is None else "pixels; leave vae out"
            raise ConfigError(f"{folder}: this stage works in {works_in}")
        with settings_of(folder):
            unet = Unet.from_config(from_keywords(UnetConfig, "network", settings["network"]))
            stage = cls(unet, stage_from_json(settings["stage"]), vae)
        read_weights(folder, unet)
        return stage.to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> DecoderStage:
        """Weights of its own (a moving average is one), and the same autoencoder, which nobody changes."""
        memo.update({id(module): module for module in self._frozen})
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def companions(self) -> tuple[object, ...]:
        """The autoencoder, which is no child."""
        return tuple(self._frozen)

    def _corrupted(self, images: Tensor, draws: RNG) -> Tensor:
        """The low-resolution conditioning in training: downsampled, corrupted and scaled up."""
        lowres = self.config.lowres
        assert lowres is not None
        if lowres.downsample_first:
            images = resized(images, lowres.size)
        if lowres.degradation == "bsr":
            images = bsr(images, draws)
        elif lowres.degradation == "blur":
            images = sometimes_blurred(images, lowres.blur_prob, lowres.sigma_range, lowres.kernel_range, draws)
        return resized(images, self.config.image_size)

    def _with_lowres(
        self, condition: DecoderCondition, pixels: Tensor, draws: RNG, level: int | None
    ) -> DecoderCondition:
        """With the low-resolution image, noised to `level` (None: drawn) where the network is conditioned on it."""
        x, dtype = self.space.into(pixels), dtype_of(self.unet)
        if self.lowres_schedule is None:
            return replace(condition, lowres=x.to(dtype))
        if level is None:
            levels = integers(0, NOISE_LEVELS, (len(x),), draws, x.device)
        else:
            levels = torch.full((len(x),), level, device=x.device)
        alpha, sigma = self.lowres_schedule.at(levels, like=x)
        noisy = alpha * x + sigma * normal(x.shape, draws, x.device, x.dtype)
        return replace(condition, lowres=noisy.to(dtype), lowres_noise=levels)

    def _dropped(self, condition: DecoderCondition, draws: RNG) -> DecoderCondition:
        """With image embeddings and texts of random rows dropped, each drawn by itself."""

        def keep(of: Tensor | None, probability: float) -> Tensor | None:
            if of is None or probability == 0:
                return None
            return uniform((len(of),), draws, of.device) >= probability

        return replace(
            condition,
            image_keep=keep(condition.image_embed, self.config.image_cond_drop_prob),
            text_keep=keep(condition.text_tokens, self.config.text_cond_drop_prob),
        )

    @property
    def image_channels(self) -> int:
        """Channels of the images, outside."""
        return self.unet.config.channels if self.vae is None else 3

    def _check(self, vae: Autoencoder | None) -> None:
        network, config = self.unet.config, self.config
        channels = network.channels if vae is None else vae.latent_channels
        if network.channels != channels:
            raise ConfigError(f"the U-Net has {network.channels} channels, the autoencoder's latents {channels}")
        wanted = channels * (2 if config.learned_variance else 1)
        if network.output_channels != wanted:
            raise ConfigError(
                f"the U-Net gives {network.output_channels} channels; with learned_variance="
                f"{config.learned_variance} it must give {wanted} (channels_out)"
            )
        if network.lowres_cond != (config.lowres is not None):
            raise ConfigError(
                f"the U-Net's lowres_cond is {network.lowres_cond}, but the stage "
                f"{'starts from a smaller image' if config.lowres else 'is the first and has no smaller image'}"
            )
        for name in ("image_size", "random_crop_size"):
            pixels = getattr(config, name)
            if pixels is not None and pixels % (self.space.factor * network.size_multiple):
                raise ConfigError(
                    f"{name} is {pixels}; it must be a multiple of {self.space.factor * network.size_multiple}, for "
                    f"dim_mults {network.dim_mults}" + (f" on latents {self.space.factor} times smaller" if vae else "")
                )
