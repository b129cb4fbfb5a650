"""The diffusion prior: text embedding → image embedding. Ramesh et al. 2204.06125, section 2.2."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.denoiser import Denoiser
from dalle2_core.draws import Draws, coin, integers, normal, uniform
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.guidance import guided
from dalle2_core.keywords import chosen, from_keywords
from dalle2_core.networks.causal import PriorNetworkConfig
from dalle2_core.networks.prior_transformer import DiffusionPriorNetwork
from dalle2_core.parameterization import PARAMETERIZATIONS
from dalle2_core.prior_base import Prior
from dalle2_core.samplers import SAMPLERS, timesteps_for
from dalle2_core.saved import read_settings, read_weights, settings_of, write_model
from dalle2_core.scaling import Scaling
from dalle2_core.schedules import NoiseSchedule
from dalle2_core.types import PriorBatch, StepLoss, TextCondition
from dalle2_core.weighting import WEIGHTINGS


@dataclass(frozen=True, slots=True)
class PriorConfig:
    """The diffusion around the network.

    image_embed_dim: width of the embeddings; None takes the network's.
    timesteps: T of training. sample_timesteps: steps of sampling unless told otherwise; None means all T.
    cond_drop_prob: share of rows that are trained without their text, for guidance; the image stays.
    predicts: what the network's output means. beta_schedule: how noise grows over the timesteps.
    loss_type, loss_weighting: penalty of an error, and how much each timestep's counts.
    sampler: how sampling steps.
    embed_scaling: "fixed" multiplies embeddings by image_embed_scale and text_embed_scale, None meaning sqrt(dim);
        "data" gives each dimension mean 0 and variance 1 by the statistics that `fit` was given.
    sampling_clamp_l2norm: at each sampling step, bring the estimate of the image embedding to norm 1.
    """

    image_embed_dim: int | None = None
    timesteps: int = 1000
    sample_timesteps: int | None = None
    cond_drop_prob: float = 0.1
    predicts: Literal["x0", "noise", "v"] = "x0"
    beta_schedule: Literal["cosine", "linear", "quadratic", "sigmoid", "jsd"] = "cosine"
    loss_type: Literal["l2", "l1", "huber"] = "l2"
    loss_weighting: Literal["constant", "min-snr", "p2"] = "constant"
    sampler: Literal["ddim", "ddpm"] = "ddim"
    embed_scaling: Literal["fixed", "data"] = "fixed"
    image_embed_scale: float | None = None
    text_embed_scale: float | None = None
    sampling_clamp_l2norm: bool = False

    def __post_init__(self) -> None:
        chosen(PARAMETERIZATIONS, self.predicts, "prediction target")
        chosen(WEIGHTINGS, self.loss_weighting, "loss weighting")
        chosen(SAMPLERS, self.sampler, "sampler")
        chosen({"fixed": None, "data": None}, self.embed_scaling, "embedding scaling")
        if not 0 <= self.cond_drop_prob < 1:
            raise ConfigError(f"cond_drop_prob is {self.cond_drop_prob}; it must be in [0, 1)")
        if self.sample_timesteps is not None and not 1 <= self.sample_timesteps <= self.timesteps:
            raise ConfigError(f"sample_timesteps is {self.sample_timesteps}; choose 1 to timesteps ({self.timesteps})")
        for name in ("image_embed_scale", "text_embed_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0, or None for sqrt(dim)")


class DiffusionPrior(Prior):
    """Trains on pairs of embeddings and samples image embeddings for text embeddings. Inputs are never changed."""

    KIND = "diffusion-prior"

    def __init__(self, net: DiffusionPriorNetwork, **keywords: Any) -> None:
        """Keywords: the fields of PriorConfig. An unknown one is a TypeError that names the near ones."""
        super().__init__()
        config = from_keywords(PriorConfig, "DiffusionPrior", keywords)
        if config.image_embed_dim not in (None, net.embed_dim):
            raise ConfigError(
                f"image_embed_dim is {config.image_embed_dim}, but the network is for {net.embed_dim}; leave it out"
            )
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
        self.schedule = NoiseSchedule(config.beta_schedule, config.timesteps)
        self.image_scaling = Scaling(width, self.config.image_embed_scale)
        self.text_scaling = Scaling(width, self.config.text_embed_scale)

    @classmethod
    def from_configs(cls, network: PriorNetworkConfig, diffusion: PriorConfig) -> DiffusionPrior:
        """A new prior, its weights drawn from torch's global generator. `network.dim` must be known."""
        net = DiffusionPriorNetwork.from_config(network)
        return cls(net, **{name: getattr(diffusion, name) for name in diffusion.__dataclass_fields__})

    @property
    def denoiser(self) -> Denoiser[TextCondition]:
        """The network's output as an estimate of the scaled image embedding."""
        config = self.config
        return Denoiser(
            self.net,
            self.schedule,
            PARAMETERIZATIONS[config.predicts],
            WEIGHTINGS[config.loss_weighting],
            config.loss_type,
        )

    def fit(self, text_embed: Tensor, image_embed: Tensor) -> DiffusionPrior:
        """Set "data" scaling from training rows [n, d], before training; with "fixed" scaling nothing happens."""
        if self.config.embed_scaling == "data":
            self.text_scaling.fit(text_embed)
            self.image_scaling.fit(image_embed)
        return self

    fit_scaling = fit  # its name in version 0.1

    def forward(
        self,
        *,
        text_embed: Tensor,
        image_embed: Tensor,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        generator: Draws = None,
    ) -> Tensor:
        """The training loss, a scalar. Embeddings [b, d]; text_encodings [b, l, w]; text_mask [b, l] bool.

        Without a generator the draws come from torch's global one.
        """
        return self._loss(PriorBatch(text_embed, image_embed, text_encodings, text_mask), generator)

    def loss(self, batch: PriorBatch, draws: Draws) -> StepLoss:
        """The training loss; timesteps, noise and dropped texts are drawn from `draws`."""
        return StepLoss(self._loss(batch, draws))

    def _loss(self, batch: PriorBatch, draws: Draws) -> Tensor:
        x0 = self.image_scaling(batch.image_embed)
        rows, device = len(batch), x0.device
        t = integers(0, self.config.timesteps, (rows,), draws, device)
        noise = normal(x0.shape, draws, device)
        keep = None
        if self.config.cond_drop_prob > 0:
            keep = uniform((rows,), draws, device) >= self.config.cond_drop_prob
        text = TextCondition(self.text_scaling(batch.text_embed), batch.text_tokens, batch.text_mask, keep)

        denoiser = self.denoiser
        self_cond = None
        if self.net.config.self_cond and coin(0.5, draws, device):
            # Half of the steps see their own first estimate. Chen et al. 2208.04202, section 2.2.
            with torch.no_grad():
                self_cond = denoiser(denoiser.noisy(x0, t, noise), t, text)
        return denoiser.loss(x0, t, noise, text, self_cond).mean()

    @torch.no_grad()
    def sample(
        self,
        text_embed: Tensor,
        *,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        steps: int | None = None,
        num_samples_per_batch: int = 2,
        cond_scale: float = 1.0,
        sampler: str | None = None,
        normalize: bool = True,
        generator: Draws = None,
    ) -> Tensor:
        """Predicted image embeddings [b, d], one for each text embedding [b, d].

        Args:
            text_encodings, text_mask: [b, l, w] and [b, l], for a prior trained with text tokens.
            steps: of sampling; None means the config's. sampler: "ddim" or "ddpm"; None means the config's.
            num_samples_per_batch: candidates for each text, of which the one with the largest dot product with
                the text embedding is kept (Ramesh et al., section 2.2, takes 2).
            cond_scale: of classifier-free guidance; 1 is none. It needs a prior trained with cond_drop_prob > 0.
            normalize: bring the result to norm 1; else it has the norm that the sampling gave it.
            generator: on the prior's device; None draws from torch's global one.

        Raises:
            ConfigError: steps, sampler or cond_scale cannot be. ShapeError: a width is not this prior's.
        """
        if text_embed.ndim != 2 or text_embed.shape[1] != self.image_embed_dim:
            raise ShapeError(
                f"text_embed is {tuple(text_embed.shape)}; this prior takes [b, {self.image_embed_dim}]. "
                "Is it from the encoder that the prior was trained with?"
            )
        if num_samples_per_batch < 1:
            raise ConfigError(f"num_samples_per_batch is {num_samples_per_batch}; it must be 1 or more")
        if cond_scale != 1.0 and self.config.cond_drop_prob == 0:
            raise ConfigError(
                f"cond_scale {cond_scale} needs a prior trained with cond_drop_prob above 0; this one was not"
            )
        take = chosen(SAMPLERS, sampler or self.config.sampler, "sampler")
        steps = steps or self.config.sample_timesteps or self.config.timesteps

        rows = len(text_embed)
        text = TextCondition(self.text_scaling(text_embed), text_encodings, text_mask)
        text = text.repeated(num_samples_per_batch)
        timesteps = timesteps_for(self.schedule, steps).to(text_embed.device)
        start = normal(text.embed.shape, generator, text_embed.device)
        denoise = guided(self.denoiser, cond_scale)

        def estimate(x_t: Tensor, t: Tensor, previous: Tensor | None) -> Tensor:
            x0 = denoise(x_t, t, text, previous)
            if self.config.sampling_clamp_l2norm:
                x0 = self.image_scaling(F.normalize(self.image_scaling.inverse(x0), dim=-1))
            return x0

        with _evaluating(self):
            x = take(estimate, self.schedule, start, timesteps, generator)
        candidates: Tensor = self.image_scaling.inverse(x).view(rows, num_samples_per_batch, -1)
        directions = F.normalize(candidates, dim=-1)
        likeness = (directions * text_embed[:, None]).sum(dim=-1)
        best = likeness.argmax(dim=1)[:, None, None].expand(-1, 1, self.image_embed_dim)
        return (directions if normalize else candidates).gather(1, best).squeeze(1)

    def save(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors, each whole. Raises CheckpointError if the disk refuses."""
        settings = {"network": asdict(self.net.config), "diffusion": asdict(self.config)}
        write_model(folder, self.KIND, settings, self.state_dict())

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> DiffusionPrior:
        """Read what `save` wrote. Raises CheckpointError if it is not a whole prior of this format."""
        settings = read_settings(folder, cls.KIND, "a diffusion prior")
        with settings_of(folder):
            network = from_keywords(PriorNetworkConfig, "network", settings["network"])
            diffusion = from_keywords(PriorConfig, "diffusion", settings["diffusion"])
            prior = cls.from_configs(network, diffusion)
        read_weights(folder, prior)
        return prior.to(device)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout inside; the mode is as before afterwards."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
