"""The settings of the diffusion prior, and the names that DALLE2-pytorch has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dalle2_core.diffusion.denoiser import PENALTIES
from dalle2_core.diffusion.parameterization import PARAMETERIZATIONS
from dalle2_core.diffusion.samplers import SAMPLERS
from dalle2_core.diffusion.schedules import SCHEDULES
from dalle2_core.diffusion.weighting import WEIGHTINGS
from dalle2_core.errors import ConfigError
from dalle2_core.keywords import chosen

# Fields that may change from one use of the weights to the next.
OF_SAMPLING = {
    "sample_timesteps",
    "sampler",
    "sampling_clamp_l2norm",
    "sampling_final_clamp_l2norm",
    "init_image_embed_l2norm",
}


@dataclass(frozen=True, slots=True)
class PriorConfig:
    """The diffusion around the network.

    image_embed_dim: width of the embeddings; None takes the network's.
    timesteps: T of training. sample_timesteps: default steps of sampling; None means all T.
    cond_drop_prob: share of rows that are trained without their text, for guidance; the image stays.
    predicts: what the network's output means. beta_schedule: how noise grows over the timesteps.
    zero_terminal_snr: at the last timestep nothing is left of the data; not with "noise", which says nothing there.
    loss_type, loss_weighting: penalty of an error, and how much each timestep's counts.
    sampler: how sampling steps.
    embed_scaling: "fixed" multiplies embeddings by image_embed_scale and text_embed_scale, None meaning sqrt(dim);
        "data" gives each dimension mean 0 and variance 1 by the statistics that `fit` was given.
    condition_on_text_encodings: read text tokens where there are any.
    sampling_clamp_l2norm, training_clamp_l2norm: bring the estimate of the image embedding to norm 1, at each step of
        sampling, and before its loss (which needs "x0").
    sampling_final_clamp_l2norm: bring samples to norm 1, also with normalize=False.
    init_image_embed_l2norm: bring the noise that sampling starts from to the norm of a scaled embedding.
    """

    image_embed_dim: int | None = None
    timesteps: int = 1000
    sample_timesteps: int | None = None
    cond_drop_prob: float = 0.1
    predicts: Literal["x0", "noise", "v", "flow"] = "x0"
    beta_schedule: Literal["cosine", "linear", "quadratic", "sigmoid", "jsd", "flow"] = "cosine"
    zero_terminal_snr: bool = False
    loss_type: Literal["l2", "l1", "huber"] = "l2"
    loss_weighting: Literal["constant", "min-snr", "p2"] = "constant"
    sampler: Literal["ddim", "ddpm", "dpm-solver++"] = "ddim"
    embed_scaling: Literal["fixed", "data"] = "fixed"
    image_embed_scale: float | None = None
    text_embed_scale: float | None = None
    condition_on_text_encodings: bool = True
    sampling_clamp_l2norm: bool = False
    training_clamp_l2norm: bool = False
    sampling_final_clamp_l2norm: bool = False
    init_image_embed_l2norm: bool = False

    def __post_init__(self) -> None:
        chosen(PARAMETERIZATIONS, self.predicts, "prediction target")
        chosen(SCHEDULES, self.beta_schedule, "noise schedule")
        chosen(WEIGHTINGS, self.loss_weighting, "loss weighting")
        chosen(SAMPLERS, self.sampler, "sampler")
        chosen(PENALTIES, self.loss_type, "loss type")
        chosen({"fixed": None, "data": None}, self.embed_scaling, "embedding scaling")
        if not 0 <= self.cond_drop_prob < 1:
            raise ConfigError(f"cond_drop_prob is {self.cond_drop_prob}; it must be in [0, 1)")
        if self.sample_timesteps is not None and not 1 <= self.sample_timesteps <= self.timesteps:
            raise ConfigError(f"sample_timesteps is {self.sample_timesteps}; choose 1 to timesteps ({self.timesteps})")
        if self.predicts == "noise" and (self.zero_terminal_snr or self.beta_schedule == "flow"):
            raise ConfigError('predicts "noise" cannot give x0 where nothing is left of it; take "v", "x0" or "flow"')
        if self.training_clamp_l2norm and self.predicts != "x0":
            raise ConfigError(f'training_clamp_l2norm needs predicts "x0"; it is {self.predicts!r}')
        for name in ("image_embed_scale", "text_embed_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0, or None for sqrt(dim)")


def published(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """DALLE2-pytorch's keywords of DiffusionPrior by the names they have here.

    predict_x_start and predict_v become `predicts`; text_cond_drop_prob is what `cond_drop_prob` means here, where the
    image is never dropped. image_size and image_channels, which are those of the clip's images, say nothing of a prior.
    Raises TypeError if both names of one thing are given.
    """
    named = {name: it for name, it in keywords.items() if name not in ("image_size", "image_channels")}
    if "predict_x_start" in named or "predict_v" in named:
        target = "x0" if named.pop("predict_x_start", True) else "noise"
        _add(named, "predicts", "v" if named.pop("predict_v", False) else target)
    if named.get("text_cond_drop_prob") is not None:
        named.pop("cond_drop_prob", None)  # its default
        _add(named, "cond_drop_prob", named.pop("text_cond_drop_prob"))
    return named


def _add(named: dict[str, Any], name: str, value: Any) -> None:
    if name in named:
        raise TypeError(f"DiffusionPrior is told {name} twice, by two names; give one")
    named[name] = value
