"""DALLE2-pytorch's keywords of a decoder, one value for all stages or one for each, into one config for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from dalle2_core.autoencoders.base import Autoencoder, check_autoencoder
from dalle2_core.decoder.stage_config import LowresConfig, StageConfig
from dalle2_core.errors import ConfigError
from dalle2_core.networks.unet import Unet

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class DecoderKeywords:
    """The keywords with DALLE2-pytorch's defaults. A tuple has one value for each stage, the smallest first.

    image_size: of a single stage; image_sizes: of each stage. channels: of the images.
    timesteps, beta_schedule, loss_type: see StageConfig. beta_schedule None takes cosine, and linear for the last of
    several stages. sample_timesteps: steps of sampling, None means all timesteps.
    sampler: None takes ddim where sample_timesteps is below timesteps, else ddpm.
    predict_x_start, predict_v: what the networks' output means; the noise where neither is True.
    predict_x_start_for_latent_diffusion: x0 for the stages with an autoencoder, the noise for the others.
    learned_variance: shorter tuples are filled with False, so True is the first stage's.
    use_noise_for_lowres_cond, use_blur_for_lowres_cond, use_bsr_for_lowres_cond: corruption of the upsamplers'
    low-resolution image; tuples may leave the first stage out. BSR None is: the last one's, of two upsamplers or
    more.
    use_dynamic_thres, clip_denoised: dynamic thresholding; else clipping; else neither.
    p2_loss_weight_gamma, p2_loss_weight_k: weights of timesteps, 0 for none.
    unconditional: no image embedding and no text at any stage.
    """

    image_size: int | None = None
    image_sizes: tuple[int, ...] | None = None
    channels: int = 3
    timesteps: int | tuple[int, ...] = 1000
    sample_timesteps: int | tuple[int | None, ...] | None = None
    sampler: str | tuple[str | None, ...] | None = None
    image_cond_drop_prob: float = 0.1
    text_cond_drop_prob: float = 0.5
    loss_type: Literal["l2", "l1", "huber"] = "l2"
    beta_schedule: str | tuple[str, ...] | None = None
    predict_x_start: bool | tuple[bool, ...] = False
    predict_v: bool | tuple[bool, ...] = False
    predict_x_start_for_latent_diffusion: bool = False
    random_crop_sizes: int | tuple[int | None, ...] | None = None
    use_noise_for_lowres_cond: bool | tuple[bool, ...] = False
    use_blur_for_lowres_cond: bool | tuple[bool, ...] = True
    use_bsr_for_lowres_cond: bool | tuple[bool, ...] | None = None
    lowres_downsample_first: bool = True
    blur_prob: float = 0.5
    blur_sigma: float | tuple[float, float] = 0.6
    blur_kernel_size: int | tuple[int, int] = 3
    lowres_noise_sample_level: float = 0.2
    clip_denoised: bool = True
    learned_variance: bool | tuple[bool, ...] = True
    learned_variance_constrain_frac: bool = False
    vb_loss_weight: float = 0.001
    unconditional: bool = False
    use_dynamic_thres: bool = False
    dynamic_thres_percentile: float = 0.95
    p2_loss_weight_gamma: float | tuple[float, ...] = 0.0
    p2_loss_weight_k: float = 1.0
    ddim_sampling_eta: float = 0.0

    def sizes(self, count: int) -> tuple[int, ...]:
        """Of `count` stages. Raises ConfigError if they are not said once, or do not grow."""
        if (self.image_size is None) == (self.image_sizes is None):
            raise ConfigError("give image_size for one U-Net, or image_sizes for several, and not both")
        sizes = self.image_sizes if self.image_sizes is not None else (self.image_size or 0,)
        if len(sizes) != count:
            raise ConfigError(f"{count} U-Nets and {len(sizes)} image sizes {sizes}; give one size for each U-Net")
        if list(sizes) != sorted(set(sizes)):
            raise ConfigError(f"image_sizes {sizes} do not grow; order them, and their U-Nets, from small to large")
        return sizes

    def stages(self, unets: Sequence[Unet], vaes: Sequence[Autoencoder | None]) -> list[tuple[Unet, StageConfig]]:
        """Each stage's config, and its network with the channels and conditions of that stage."""
        count = len(unets)
        sizes = self.sizes(count)
        each = _Stages(self, count)
        made = []
        for index, (unet, vae) in enumerate(zip(unets, vaes, strict=True)):
            if vae is not None:
                check_autoencoder(vae)
            config = each.config(index, sizes, latent=vae is not None)
            made.append((self._fitted(unet, config, vae, index, each), config))
        return made

    def _fitted(self, unet: Unet, config: StageConfig, vae: Autoencoder | None, index: int, each: _Stages) -> Unet:
        channels = self.channels if vae is None else vae.latent_channels
        sees_image = unet.config.cond_on_image_embeds
        if sees_image is None:
            # Upsamplers of the paper are conditioned on the low-resolution image alone.
            sees_image = index == 0
        if index == 0 and sees_image and not self.unconditional and unet.config.image_embed_dim is None:
            raise ConfigError(
                "the first U-Net has no image_embed_dim, the width of the image embeddings; give it, "
                "or unconditional=True"
            )
        return unet.fitted(
            channels=channels,
            channels_out=channels * (2 if config.learned_variance else 1),
            lowres_cond=config.lowres is not None,
            lowres_noise_cond=each.noised[index],
            cond_on_image_embeds=sees_image and not self.unconditional,
            cond_on_text_encodings=unet.config.cond_on_text_encodings and not self.unconditional,
        )


class _Stages:
    """The keywords with a value for each stage, as tuples of one length."""

    def __init__(self, keywords: DecoderKeywords, count: int) -> None:
        self.keywords = keywords
        self.timesteps = _spread("timesteps", keywords.timesteps, count)
        self.sample_timesteps = _spread("sample_timesteps", keywords.sample_timesteps, count)
        self.sampler = _spread("sampler", keywords.sampler, count)
        default = ("cosine",) * (count - 1) + ("linear" if count > 1 else "cosine",)
        self.schedule = _spread("beta_schedule", keywords.beta_schedule or default, count)
        self.predict_x_start = _spread("predict_x_start", keywords.predict_x_start, count)
        self.predict_v = _spread("predict_v", keywords.predict_v, count)
        self.crop = _spread("random_crop_sizes", keywords.random_crop_sizes, count)
        self.p2_gamma = _spread("p2_loss_weight_gamma", keywords.p2_loss_weight_gamma, count)
        learned = keywords.learned_variance
        given: tuple[bool, ...] = learned if isinstance(learned, tuple) else (learned,)
        filled: tuple[bool, ...] = given + (False,) * (count - len(given))
        self.learned: tuple[bool, ...] = _spread("learned_variance", filled, count)
        self.noised = _of_upsamplers("use_noise_for_lowres_cond", keywords.use_noise_for_lowres_cond, count)
        self.blurred = _of_upsamplers("use_blur_for_lowres_cond", keywords.use_blur_for_lowres_cond, count)
        bsr = keywords.use_bsr_for_lowres_cond
        # 2204.06125, section 2.1: blur for the first of two upsamplers, BSR for the second.
        last = (False,) * (count - 1) + (count > 2,)
        self.bsr = _of_upsamplers("use_bsr_for_lowres_cond", last if bsr is None else bsr, count)

    def config(self, index: int, sizes: tuple[int, ...], *, latent: bool) -> StageConfig:
        """Of the stage at `index` of a cascade of those sizes. latent: it draws the latents of an autoencoder."""
        keywords, timesteps, steps = self.keywords, self.timesteps[index], self.sample_timesteps[index]
        steps = timesteps if steps is None else steps
        gamma = self.p2_gamma[index]
        return StageConfig(
            image_size=sizes[index],
            lowres=self._lowres(index, sizes),
            timesteps=timesteps,
            sample_timesteps=steps,
            beta_schedule=self.schedule[index],
            predicts=self._predicts(index, latent),
            learned_variance=self.learned[index],
            learned_variance_constrain_frac=keywords.learned_variance_constrain_frac,
            vb_loss_weight=keywords.vb_loss_weight,
            loss_type=keywords.loss_type,
            loss_weighting="p2" if gamma else "constant",
            p2_gamma=gamma if gamma else 1.0,  # 0 is no weighting
            p2_k=keywords.p2_loss_weight_k,
            image_cond_drop_prob=keywords.image_cond_drop_prob,
            text_cond_drop_prob=keywords.text_cond_drop_prob,
            sampler=self.sampler[index] or ("ddim" if steps < timesteps else "ddpm"),
            ddim_sampling_eta=keywords.ddim_sampling_eta,
            thresholding=self._thresholding(),
            dynamic_thres_percentile=keywords.dynamic_thres_percentile,
            random_crop_size=self.crop[index],
        )

    def _thresholding(self) -> Literal["static", "dynamic", "none"]:
        if not self.keywords.clip_denoised:
            return "none"
        return "dynamic" if self.keywords.use_dynamic_thres else "static"

    def _predicts(self, index: int, latent: bool) -> Literal["x0", "noise", "v"]:
        if self.predict_x_start[index] and self.predict_v[index]:
            raise ConfigError(f"stage {index + 1}: predict_x_start and predict_v exclude each other; choose one")
        if self.predict_v[index]:
            return "v"
        if self.predict_x_start[index] or (latent and self.keywords.predict_x_start_for_latent_diffusion):
            return "x0"
        return "noise"

    def _lowres(self, index: int, sizes: tuple[int, ...]) -> LowresConfig | None:
        if index == 0:
            return None
        keywords = self.keywords
        return LowresConfig(
            size=sizes[index - 1],
            downsample_first=keywords.lowres_downsample_first,
            degradation="bsr" if self.bsr[index] else "blur" if self.blurred[index] else "none",
            blur_prob=keywords.blur_prob,
            blur_sigma=keywords.blur_sigma,
            blur_kernel_size=keywords.blur_kernel_size,
            noise_sample_level=keywords.lowres_noise_sample_level,
        )


def _spread(name: str, value: V | tuple[V, ...], count: int) -> tuple[V, ...]:
    if not isinstance(value, tuple):
        return (value,) * count
    if len(value) != count:
        raise ConfigError(f"{name} has {len(value)} values for {count} stages; give one, or one for each")
    return value


def _of_upsamplers(name: str, value: bool | tuple[bool, ...], count: int) -> tuple[bool, ...]:
    """One for each stage, False for the first, which has no low-resolution image."""
    if not isinstance(value, tuple):
        return (False,) + (value,) * (count - 1)
    spread: tuple[bool, ...] = _spread(name, value if len(value) == count else (False, *value), count)
    if spread[0]:
        raise ConfigError(f"{name}: the first stage has no smaller image; its value must be False")
    return spread


def as_tuple(value: Any) -> tuple[Any, ...]:
    """A tuple of several, or of the one."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def padded(values: tuple[V, ...], count: int, what: str) -> tuple[V | None, ...]:
    """Padded with None to `count`. Raises ConfigError if there are too many."""
    if len(values) > count:
        raise ConfigError(f"{len(values)} {what} for {count} stages")
    return values + (None,) * (count - len(values))
