"""The diffusion prior: text embedding → image embedding. Ramesh et al. 2204.06125, section 2.2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.diffusion.denoiser import Denoiser, clamped, first_estimate
from dalle2_core.diffusion.guidance import branches, guided
from dalle2_core.diffusion.parameterization import PARAMETERIZATIONS
from dalle2_core.diffusion.posterior import Denoise
from dalle2_core.diffusion.samplers import SAMPLERS, timesteps_for
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.diffusion.weighting import WEIGHTINGS
from dalle2_core.errors import ConfigError
from dalle2_core.inputs import as_tensor, checked_embeddings, checked_token_states, dtype_of
from dalle2_core.keywords import chosen, from_keywords
from dalle2_core.modules import CompanionModules, evaluating
from dalle2_core.networks.causal_transformer import Memory, PriorNetworkConfig
from dalle2_core.networks.prior_transformer import DiffusionPriorNetwork
from dalle2_core.priors.base import Prior, check_candidates, check_guidance, nearest_to_text
from dalle2_core.priors.config import OF_SAMPLING, PriorConfig, published
from dalle2_core.priors.standardize import Standardizer
from dalle2_core.rng import RNG, integers, normal, uniform
from dalle2_core.types import ClipEncoders, PriorBatch, StepLoss, TextCondition, check_clip_width


class DiffusionPrior(Prior, CompanionModules):
    """Trains on pairs of embeddings and samples image embeddings for text embeddings. Inputs are never changed."""

    KIND = "diffusion-prior"
    CONFIG = PriorConfig

    def __init__(self, net: DiffusionPriorNetwork, *, clip: ClipEncoders | None = None, **keywords: Any) -> None:
        """Keywords: the fields of PriorConfig, and DALLE2-pytorch's names for some of them (`published`).

        clip: embeds texts and images on the fly for those who did not store embeddings. It is not part of the model:
        neither trained nor saved, but moved along. An unknown keyword is a TypeError that names the near ones.
        """
        super().__init__()
        config = from_keywords(PriorConfig, "DiffusionPrior", published(keywords))
        if config.image_embed_dim not in (None, net.embed_dim):
            raise ConfigError(
                f"image_embed_dim is {config.image_embed_dim}, but the network is for {net.embed_dim}; leave it out"
            )
        check_clip_width(clip, net.embed_dim, "the prior")
        self._clip = (clip,)  # in a tuple, so that it is no submodule
        width = net.embed_dim
        self.config = replace(
            config,
            image_embed_dim=width,
            image_embed_scale=config.image_embed_scale or math.sqrt(width),
            text_embed_scale=config.text_embed_scale or math.sqrt(width),
        )
        assert self.config.image_embed_scale is not None
        assert self.config.text_embed_scale is not None
        self.net = net
        self.image_embed_dim = width
        self.schedule = NoiseSchedule(config.beta_schedule, config.timesteps, config.zero_terminal_snr)
        self.image_scaling = Standardizer(width, self.config.image_embed_scale)
        self.text_scaling = Standardizer(width, self.config.text_embed_scale)

    @classmethod
    def from_configs(cls, network: PriorNetworkConfig, config: PriorConfig) -> DiffusionPrior:
        """See `Prior`. `network.dim` must be known."""
        net = DiffusionPriorNetwork.from_config(network)
        return cls(net, **{name: getattr(config, name) for name in config.__dataclass_fields__})

    @property
    def clip(self) -> ClipEncoders | None:
        """Embeds texts and images on the fly, or None."""
        return self._clip[0]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    def companions(self) -> tuple[object, ...]:
        """The CLIP, which is no child."""
        return self._clip

    @property
    def denoiser(self) -> Denoiser[TextCondition | Memory]:
        """The network's output as an estimate of the scaled image embedding."""
        config = self.config
        return Denoiser(
            self.net,
            self.schedule,
            PARAMETERIZATIONS[config.predicts],
            WEIGHTINGS[config.loss_weighting],
            config.loss_type,
            self._to_norm_1 if config.training_clamp_l2norm else None,
        )

    def _to_norm_1(self, scaled: Tensor) -> Tensor:
        """Rescaled so that the embedding has norm 1."""
        unscaled: Tensor = self.image_scaling.inverse(scaled)
        rescaled: Tensor = self.image_scaling(F.normalize(unscaled, dim=-1))
        return rescaled

    def fit(self, text_embed: Tensor, image_embed: Tensor) -> DiffusionPrior:
        """Fit "data" scaling to training rows [n, d], before training; "fixed" scaling stays as it is."""
        if self.config.embed_scaling == "data":
            self.text_scaling.fit(text_embed)
            self.image_scaling.fit(image_embed)
        return self

    fit_scaling = fit  # its name in version 0.1

    def forward(
        self,
        text: Tensor | None = None,
        image: Tensor | None = None,
        *,
        text_embed: Tensor | None = None,
        image_embed: Tensor | None = None,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        generator: RNG = None,
    ) -> Tensor:
        """The training loss, a scalar.

        Args:
            text, image: [b, l] integer tokens and [b, 3, h, w] images, for a prior with a `clip`.
            text_embed, image_embed: [b, d], instead of them. text_encodings: [b, l, w]; text_mask: [b, l] bool.
            generator: of all draws; None means torch's global one.

        Raises ConfigError if a side is given twice or not at all, or needs a CLIP that is not there.
        """
        if text is not None and text_embed is None:
            embedded = self._towers("text").embed_text(text)
            text_embed, text_encodings, text_mask = embedded.text_embed, embedded.text_encodings, embedded.text_mask
        elif text is not None or text_embed is None:
            raise ConfigError("give text or text_embed, one of them")
        if image is not None and image_embed is None:
            image_embed = self._towers("image").embed_image(image).image_embed
        elif image is not None or image_embed is None:
            raise ConfigError("give image or image_embed, one of them")
        text_embed = checked_embeddings(text_embed, self.image_embed_dim, "text_embed", self)
        image_embed = checked_embeddings(image_embed, self.image_embed_dim, "image_embed", self)
        text_encodings, text_mask = checked_token_states(text_encodings, text_mask, len(text_embed), self)
        return self._loss(PriorBatch(text_embed, image_embed, text_encodings, text_mask), generator)

    def _towers(self, what: str) -> ClipEncoders:
        if self.clip is None:
            raise ConfigError(f"this prior was made without a clip; give {what}_embed, or make it with clip=…")
        return self.clip

    def _condition(
        self, embed: Tensor, tokens: Tensor | None, mask: Tensor | None, keep: Tensor | None = None
    ) -> TextCondition:
        if not self.config.condition_on_text_encodings:
            tokens, mask = None, None
        text = TextCondition.of(self.text_scaling(embed), tokens, mask, keep).in_dtype(dtype_of(self.net))
        # The length counts where the padding stays.
        return text if self.net.config.text_padding == "masked" else text.trimmed()

    def loss(self, batch: PriorBatch, draws: RNG) -> StepLoss:
        """The training loss; timesteps, noise and dropped texts are drawn from `draws`."""
        return StepLoss(self._loss(batch, draws))

    def _loss(self, batch: PriorBatch, draws: RNG) -> Tensor:
        x0 = self.image_scaling(batch.image_embed)
        rows, device = len(batch), x0.device
        t = integers(0, self.config.timesteps, (rows,), draws, device)
        noise = normal(x0.shape, draws, device)
        keep = None
        if self.config.cond_drop_prob > 0:
            keep = uniform((rows,), draws, device) >= self.config.cond_drop_prob
        text = self._condition(batch.text_embed, batch.text_tokens, batch.text_mask, keep)

        denoiser = self.denoiser
        self_cond = None
        if self.net.config.self_cond:
            self_cond = first_estimate(denoiser.given(text), denoiser.noisy(x0, t, noise), t, draws)
        return denoiser.loss(x0, t, noise, text, self_cond).error.mean()

    @torch.no_grad()
    def sample(
        self,
        text_embed: Tensor,
        num_samples_per_batch: int = 2,
        cond_scale: float = 1.0,
        timesteps: int | None = None,
        *,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        normalize: bool = True,
        generator: RNG = None,
    ) -> Tensor:
        """Predicted image embeddings [b, d], one for each text.

        Args:
            text_embed: [b, d] embeddings; or [b, l] integer tokens, for a prior with a `clip`.
            text_encodings, text_mask: [b, l, w] and [b, l], for a prior trained with text tokens.
            timesteps, steps: of sampling, under either name; None means the config's.
            sampler: "ddim", "ddpm" or "dpm-solver++"; None means the config's.
            num_samples_per_batch: candidates for each text, of which the one with the largest dot product with
                the text embedding is kept (Ramesh et al., section 2.2, takes 2).
            cond_scale: of classifier-free guidance; 1 is none. It needs a prior trained with cond_drop_prob > 0.
            normalize: bring the result to norm 1; else it has the norm that the sampling gave it.
            generator: on the prior's device; None draws from torch's global one.

        Raises:
            ConfigError: steps, sampler or cond_scale cannot be. ShapeError: a width is not this prior's.
        """
        text_embed = as_tensor(text_embed, "text_embed")
        if not text_embed.is_floating_point():
            embedded = self._towers("text").embed_text(text_embed)
            text_embed, text_encodings, text_mask = embedded.text_embed, embedded.text_encodings, embedded.text_mask
        text_embed = checked_embeddings(text_embed, self.image_embed_dim, "text_embed", self)
        text_encodings, text_mask = checked_token_states(text_encodings, text_mask, len(text_embed), self)
        check_candidates(num_samples_per_batch)
        check_guidance(cond_scale, self.config.cond_drop_prob)
        take = chosen(SAMPLERS, sampler or self.config.sampler, "sampler")
        steps = steps if timesteps is None else timesteps
        steps = steps if steps is not None else self.config.sample_timesteps or self.config.timesteps

        text = self._condition(text_embed, text_encodings, text_mask).repeated(num_samples_per_batch)
        start = normal(text.embed.shape, generator, text_embed.device)
        if self.config.init_image_embed_l2norm:
            start = self._to_norm_1(start)
        with evaluating(self):
            x = take(
                self._denoise(text, cond_scale),
                self.schedule,
                start,
                timesteps_for(self.schedule, steps).to(text_embed.device),
                generator,
            )
        candidates = self.image_scaling.inverse(x)
        normalize = normalize or self.config.sampling_final_clamp_l2norm
        return nearest_to_text(text_embed, F.normalize(candidates, dim=-1) if normalize else candidates)

    def _denoise(self, text: TextCondition, cond_scale: float) -> Denoise:
        """The denoiser of these texts, guided and clamped as the config says. They are read once for all steps."""
        text, weights = branches((text, text.unconditional()), (cond_scale,))
        denoise = guided(self.denoiser.given(self.net.read(text)), weights)
        return clamped(denoise, self._to_norm_1) if self.config.sampling_clamp_l2norm else denoise

    def settings(self) -> dict[str, Any]:
        """The configs of the network and of the prior."""
        return {"network": asdict(self.net.config), "diffusion": asdict(self.config)}

    def training_settings(self) -> dict[str, Any]:
        """See `Prior`."""
        settings = super().training_settings()
        diffusion = settings["diffusion"]
        return settings | {"diffusion": {name: it for name, it in diffusion.items() if name not in OF_SAMPLING}}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> DiffusionPrior:
        """See `Prior`."""
        network = from_keywords(PriorNetworkConfig, "network", settings["network"])
        return cls.from_configs(network, from_keywords(PriorConfig, "diffusion", settings["diffusion"]))
