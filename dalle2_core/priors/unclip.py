"""The priors of Karlo, Kandinsky 2 and ECLIPSE, which drive pretrained decoders. Ramesh et al. 2204.06125, section 2.2.

Pretrained ones take raw embeddings: as CLIP's projections give them, not L2-normalised. In place of a dropped text, and
as what guidance leads away from, they have the empty text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.diffusion.denoiser import PENALTIES, Denoiser, clamped
from dalle2_core.diffusion.guidance import branches, guided
from dalle2_core.diffusion.parameterization import X0
from dalle2_core.diffusion.samplers import SAMPLERS
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.diffusion.weighting import WEIGHTINGS
from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.files import read_tensors
from dalle2_core.inputs import checked_embeddings, checked_token_states, dtype_of
from dalle2_core.keywords import chosen, from_keywords
from dalle2_core.modules import evaluating
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.networks.unclip_transformer import UnclipTransformer, UnclipTransformerConfig
from dalle2_core.priors.base import Prior, check_candidates, check_guidance, nearest_to_text
from dalle2_core.rng import RNG, integers, normal, uniform
from dalle2_core.types import EmbeddedText, PriorBatch, StepLoss, TextCondition

NULL_TEXT = ("null_text_embed", "null_text_tokens")


@dataclass(frozen=True, slots=True)
class UnclipConfig:
    """The diffusion around the network, and the size of a new one.

    timesteps: T of training. sample_timesteps: default steps of sampling. clip_sample_range: estimates are kept within
    it, in standard deviations (Karlo 5, Kandinsky 10); None leaves them. cond_drop_prob: share of rows trained with the
    empty text in place of theirs, where it is known. loss_type, loss_weighting: penalty of an error, and how much each
    timestep's counts. sampler: how sampling steps.
    contrastive_weight, contrastive_temperature: of a second loss, which text of the batch a prediction belongs to
    (ECLIPSE, 2312.04655); for networks that predict in one pass.
    raw: its embeddings are raw, as CLIP's projections give them, which pretrained ones want; else of norm 1, as they
    are stored.
    num_layers, num_attention_heads, attention_head_dim, reads_time, reads_tokens: of a new network, see
    UnclipTransformerConfig.
    """

    timesteps: int = 1000
    sample_timesteps: int = 25
    clip_sample_range: float | None = 10.0
    cond_drop_prob: float = 0.1
    loss_type: Literal["l2", "l1", "huber"] = "l2"
    loss_weighting: Literal["constant", "min-snr", "p2"] = "constant"
    sampler: Literal["ddim", "ddpm", "dpm-solver++"] = "ddpm"
    contrastive_weight: float = 0.0
    contrastive_temperature: float = 0.01
    raw: bool = False
    num_layers: int = 2
    num_attention_heads: int = 4
    attention_head_dim: int = 32
    reads_time: bool = True
    reads_tokens: bool = False

    def __post_init__(self) -> None:
        chosen(PENALTIES, self.loss_type, "loss type")
        chosen(WEIGHTINGS, self.loss_weighting, "loss weighting")
        chosen(SAMPLERS, self.sampler, "sampler")
        if not 2 <= self.sample_timesteps <= self.timesteps:
            raise ConfigError(f"sample_timesteps is {self.sample_timesteps}; choose 2 to timesteps ({self.timesteps})")
        if not 0 <= self.cond_drop_prob < 1:
            raise ConfigError(f"cond_drop_prob is {self.cond_drop_prob}; it must be in [0, 1)")
        for name in ("clip_sample_range", "contrastive_temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"unclip.{name} is {value}; it must be above 0")
        if self.contrastive_weight < 0:
            raise ConfigError(f"unclip.contrastive_weight is {self.contrastive_weight}; it must be 0 or more")

    def network(self, width: int) -> UnclipTransformerConfig:
        """Of a new network for embeddings of `width`."""
        return UnclipTransformerConfig(
            num_attention_heads=self.num_attention_heads,
            attention_head_dim=self.attention_head_dim,
            num_layers=self.num_layers,
            embedding_dim=width,
            num_embeddings=77 if self.reads_tokens else 0,
            encoder_hid_proj_type="linear" if self.reads_tokens else None,
            additional_embeddings=4 if self.reads_time else 3,
            reads_time=self.reads_time,
        )


class UnclipPrior(Prior):
    """Trains on pairs of raw embeddings and samples raw image embeddings; `normalize=True` brings them to norm 1.

    null_text_embed [1, d], null_text_tokens [1, l, d]: what the text tower makes of the empty text, see
    `set_null_text`. Without it no text is dropped in training, and nothing can be guided.
    """

    KIND = "unclip-prior"
    CONFIG = UnclipConfig
    null_text_embed: Tensor | None
    null_text_tokens: Tensor | None
    unchanged: frozenset[str] = frozenset()  # see `unchanged_weights`

    def __init__(self, network: UnclipTransformerConfig, config: UnclipConfig) -> None:
        """Weights are drawn from torch's global generator."""
        super().__init__()
        if network.embedding_dim != network.text_dim or network.embedding_dim != network.output_dim:
            raise ConfigError("a prior's text and image embeddings are of one width; this network's are not")
        check_objective(network, config)
        self.config = config
        self.net = UnclipTransformer(network)
        self.image_embed_dim = network.embedding_dim
        self.schedule = NoiseSchedule("cosine", config.timesteps)
        for name in NULL_TEXT:
            self.register_buffer(name, None)

    @property
    def raw(self) -> bool:
        """See `Prior`."""
        return self.config.raw

    @property
    def compares_rows(self) -> bool:
        """Whether the other texts of a batch are wrong answers."""
        return self.config.contrastive_weight > 0

    @classmethod
    def from_configs(cls, network: PriorNetworkConfig, config: UnclipConfig) -> UnclipPrior:
        """See `Prior`; of `network` the width of the embeddings counts."""
        assert network.embed_dim is not None
        return cls(config.network(network.embed_dim), config)

    def fit(self, text_embed: Tensor, image_embed: Tensor) -> UnclipPrior:
        """Take mean and deviation of image embeddings [n, d] for a new network; a trained one keeps its own.

        A new one of diffusers has zeros for both.
        """
        deviations = self.net.clip_std
        if bool((self.net.clip_mean == 0).all()) and bool((deviations == 1).all() or (deviations == 0).all()):
            deviation = image_embed.std(dim=0, correction=0)
            floor = 1e-3 * float(deviation.max().clamp(min=1e-8))
            with torch.no_grad():
                self.net.clip_mean.copy_(image_embed.mean(dim=0, keepdim=True))
                self.net.clip_std.copy_(deviation.clamp(min=floor)[None])
        return self

    @property
    def knows_null_text(self) -> bool:
        """Whether it was told all that it reads of the empty text."""
        return self.null_text_embed is not None and (self.null_text_tokens is not None or not self.net.reads_tokens)

    def set_null_text(self, text: EmbeddedText) -> None:
        """Take what the text tower makes of the empty text: one row, its embedding raw. Raises ShapeError otherwise."""
        embed = checked_embeddings(text.text_embed, self.image_embed_dim, "text_embed", self)[:1]
        tokens, mask = checked_token_states(text.text_encodings, text.text_mask, len(text.text_embed), self)
        if tokens is not None and mask is not None:
            tokens = tokens[:, : int(mask[0].sum())]
        self.null_text_embed = embed.detach().clone()
        self.null_text_tokens = None if tokens is None else tokens[:1].detach().clone()

    def loss(self, batch: PriorBatch, draws: RNG) -> StepLoss:
        """The error of the predicted x0, standardised; of a network of one pass, that of the raw embedding.

        Timesteps, noise and dropped texts are drawn from `draws`.
        """
        rows, device = len(batch), batch.image_embed.device
        noise = normal(batch.image_embed.shape, draws, device)
        text = self._dropped(self._condition(batch.text_embed, batch.text_tokens, batch.text_mask), draws)
        if not self.net.config.reads_time:
            return self._loss_of_one_pass(batch, noise, text)
        x0 = self._standardized(batch.image_embed.float())
        t = integers(0, self.config.timesteps, (rows,), draws, device)
        return StepLoss(self._denoiser().loss(x0, t, noise, text).error.mean())

    def _loss_of_one_pass(self, batch: PriorBatch, noise: Tensor, text: TextCondition) -> StepLoss:
        """ECLIPSE's objective. Patel et al. 2312.04655, section 3.2: projection loss and contrastive loss.

        L = mean |p_i - x_i|² + λ mean_i -log( exp(<p_i, y_i> / τ) / Σ_j exp(<p_i, y_j> / τ) )

        p_i = f(noise, y_i): predicted; x_i: image embedding; y_i: text embedding; in the second part p and y are of
        norm 1. λ is contrastive_weight (0.2 in the paper), τ contrastive_temperature.
        """
        predicted = self.net(noise.to(dtype_of(self.net)), None, text).float()
        squared = F.mse_loss(predicted, batch.image_embed.float())
        if not self.compares_rows:
            return StepLoss(squared)
        cosines = F.normalize(predicted, dim=-1) @ F.normalize(batch.text_embed.float(), dim=-1).T
        own = torch.arange(len(batch), device=cosines.device)
        contrast = F.cross_entropy(cosines / self.config.contrastive_temperature, own)
        metrics = {"squared_error": squared.detach(), "contrast": contrast.detach()}
        return StepLoss(squared + self.config.contrastive_weight * contrast, metrics)

    @torch.no_grad()
    def sample(
        self,
        text_embed: Tensor,
        num_samples_per_batch: int = 1,
        cond_scale: float = 1.0,
        steps: int | None = None,
        *,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        normalize: bool = True,
        sampler: str | None = None,
        start: Tensor | None = None,
        generator: RNG = None,
    ) -> Tensor:
        """Predicted image embeddings [b, d], of norm 1, or raw with normalize=False.

        text_embed: [b, d], raw. text_encodings, text_mask: [b, l, d] and [b, l], for a network that reads them.
        num_samples_per_batch: candidates for each text, of which the nearest to it is kept. cond_scale: of guidance
        away from the empty text; 1 is none. steps, sampler: None takes the config's. start: x_T, [b * candidates, d];
        None draws it. Raises ShapeError, ConfigError.
        """
        text_embed = checked_embeddings(text_embed, self.image_embed_dim, "text_embed", self)
        text_encodings, text_mask = checked_token_states(text_encodings, text_mask, len(text_embed), self)
        check_candidates(num_samples_per_batch)
        check_guidance(cond_scale, 1.0)
        steps = self.config.sample_timesteps if steps is None else steps
        take = chosen(SAMPLERS, self.config.sampler if sampler is None else sampler, "sampler")
        text = self._condition(text_embed, text_encodings, text_mask).repeated(num_samples_per_batch)
        if start is None:
            start = normal(text.embed.shape, generator, text_embed.device)
        with evaluating(self):
            if not self.net.config.reads_time:
                if cond_scale != 1.0:
                    raise ConfigError(f"cond_scale is {cond_scale}, but a prior of one pass cannot be guided")
                raw = self.net(start.to(dtype_of(self.net)), None, text)
            else:
                times = unclip_timesteps(self.config.timesteps, steps).to(text_embed.device)
                raw = self._raw(take(self._denoise(text, cond_scale), self.schedule, start, times, generator))
        candidates = F.normalize(raw, dim=-1) if normalize else raw
        return nearest_to_text(text_embed, candidates) if num_samples_per_batch > 1 else candidates

    def _denoise(self, text: TextCondition, cond_scale: float) -> Any:
        """The denoiser of these texts, guided and kept in range."""
        if cond_scale != 1.0:
            text, weights = branches(self._beside_null(text), (cond_scale,))
        else:
            weights = (1.0,)
        denoise = guided(self._denoiser().given(text), weights)
        bound = self.config.clip_sample_range
        return denoise if bound is None else clamped(denoise, lambda x0: x0.clamp(-bound, bound))

    def _denoiser(self) -> Denoiser[TextCondition]:
        config = self.config
        return Denoiser(self.net, self.schedule, X0, WEIGHTINGS[config.loss_weighting], config.loss_type)

    def _condition(self, embed: Tensor, tokens: Tensor | None, mask: Tensor | None) -> TextCondition:
        """With left-aligned tokens where the network reads them, and none where it does not."""
        if not self.net.reads_tokens:
            tokens, mask = None, None
        return TextCondition.of(embed, tokens, mask).trimmed().in_dtype(dtype_of(self.net))

    def _beside_null(self, text: TextCondition) -> tuple[TextCondition, TextCondition]:
        """The texts, and as many empty ones, with tokens of one length."""
        embed, tokens = self.null_text_embed, self.null_text_tokens
        if embed is None or not self.knows_null_text:
            raise ConfigError(
                "guidance leads away from the empty text, whose embedding this prior does not know; give it by "
                "set_null_text"
            )
        embed = embed.to(text.embed.dtype).expand(len(text.embed), -1)
        if text.tokens is None or tokens is None:
            return text, TextCondition(embed)
        null_tokens = tokens.to(text.tokens.dtype).expand(len(embed), -1, -1)
        length = max(text.tokens.shape[1], null_tokens.shape[1])
        null = TextCondition(embed, null_tokens, null_tokens.new_ones(null_tokens.shape[:2], dtype=torch.bool))
        return _lengthened(text, length), _lengthened(null, length)

    def _dropped(self, text: TextCondition, draws: RNG) -> TextCondition:
        """With the empty text in place of some, where it is known."""
        if self.config.cond_drop_prob == 0 or not self.knows_null_text:
            return text
        keep = uniform((len(text.embed),), draws, text.embed.device) >= self.config.cond_drop_prob
        text, null = self._beside_null(text)
        if text.tokens is None or null.tokens is None or text.mask is None or null.mask is None:
            return TextCondition(torch.where(keep[:, None], text.embed, null.embed))
        return TextCondition(
            torch.where(keep[:, None], text.embed, null.embed),
            torch.where(keep[:, None, None], text.tokens, null.tokens),
            torch.where(keep[:, None], text.mask, null.mask),
        )

    def _standardized(self, raw: Tensor) -> Tensor:
        return (raw - self.net.clip_mean.float()) / self.net.clip_std.float()

    def _raw(self, standardized: Tensor) -> Tensor:
        return standardized * self.net.clip_std.float() + self.net.clip_mean.float()

    def settings(self) -> dict[str, Any]:
        """The configs of the network and of the prior."""
        return {"network": asdict(self.net.config), "unclip": asdict(self.config)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> UnclipPrior:
        """See `Prior`."""
        network = from_keywords(UnclipTransformerConfig, "network", settings["network"])
        return cls(network, from_keywords(UnclipConfig, "unclip", settings["unclip"]))

    def take_weights(self, folder: Path | str) -> None:
        """See `Prior`; the empty text may be among the weights, or not."""
        tensors = read_tensors(Path(folder) / "model.safetensors")
        for name in NULL_TEXT:
            setattr(self, name, tensors.get(name))
        try:
            self.load_state_dict(tensors)
        except RuntimeError as problem:
            raise CheckpointError(f"{folder}: weights and config.json do not belong together ({problem})") from problem


def check_objective(network: UnclipTransformerConfig, config: UnclipConfig) -> None:
    """Raise ConfigError where a network is to learn what it cannot."""
    if config.contrastive_weight > 0 and network.reads_time:
        raise ConfigError("contrastive_weight is for a network that predicts in one pass: reads_time False")


def unclip_timesteps(timesteps: int, steps: int) -> Tensor:
    """`steps` timesteps, falling from T-1 to 0: i (T-1) / (steps-1), rounded, as Karlo has them; [steps] int64."""
    if not 2 <= steps <= timesteps:
        raise ConfigError(f"{steps} sampling steps of {timesteps} timesteps; choose 2 to {timesteps}")
    ratio = (timesteps - 1) / (steps - 1)
    return (torch.arange(steps, dtype=torch.float64) * ratio).round().flip(0).long()


def _lengthened(text: TextCondition, length: int) -> TextCondition:
    """With padding up to `length` tokens."""
    assert text.tokens is not None
    more = length - text.tokens.shape[1]
    mask = text.mask
    if mask is None:
        mask = torch.ones(text.tokens.shape[:2], dtype=torch.bool, device=text.tokens.device)
    return TextCondition(text.embed, F.pad(text.tokens, (0, 0, 0, more)), F.pad(mask, (0, more)), text.keep)
