"""One stage of the cascade, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dalle2_core.diffusion.denoiser import PENALTIES
from dalle2_core.diffusion.parameterization import PARAMETERIZATIONS
from dalle2_core.diffusion.samplers import SAMPLERS
from dalle2_core.diffusion.schedules import SCHEDULES
from dalle2_core.diffusion.thresholding import THRESHOLDS
from dalle2_core.diffusion.timestep_sampling import TIMESTEP_SAMPLINGS
from dalle2_core.errors import ConfigError
from dalle2_core.keywords import chosen, from_keywords

LOSS_WEIGHTINGS = ("constant", "min-snr", "p2")
_LATER = {"patch_size": 1, "timestep_sampling": "uniform"}
_OF_SAMPLING = {"sample_timesteps", "sampler", "ddim_sampling_eta", "thresholding", "dynamic_thres_percentile"}
DEGRADATIONS = ("blur", "bsr", "none")


@dataclass(frozen=True, slots=True)
class LowresConfig:
    """The low-resolution image that an upsampler starts from.

    size: height and width of the previous stage, pixels.
    downsample_first: in training, make the image that small first, so that it lacks what it will lack in sampling.
    degradation: the corruption in training: "blur", "bsr" (blur, shrinking, noise and JPEG) or "none".
    blur_prob, blur_sigma, blur_kernel_size: share of rows blurred, deviation and kernel in pixels (a number or a
    range), for "blur".
    noise_sample_level: noise added in sampling, from 0 to 1, where the network is conditioned on it
    (lowres_noise_cond); in training all levels are drawn.
    """

    size: int
    downsample_first: bool = True
    degradation: Literal["blur", "bsr", "none"] = "blur"
    blur_prob: float = 0.5
    blur_sigma: float | tuple[float, float] = 0.6
    blur_kernel_size: int | tuple[int, int] = 3
    noise_sample_level: float = 0.2

    def __post_init__(self) -> None:
        chosen(dict.fromkeys(DEGRADATIONS), self.degradation, "degradation")
        if self.size < 1:
            raise ConfigError(f"lowres.size is {self.size}; it must be 1 or more")
        for name in ("blur_prob", "noise_sample_level"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"lowres.{name} is {getattr(self, name)}; it must be in [0, 1]")
        low, high = self.sigma_range
        if not 0 < low <= high:
            raise ConfigError(f"lowres.blur_sigma is {self.blur_sigma}; above 0, or a range that rises")
        smallest, largest = self.kernel_range
        if smallest < 1 or smallest > largest or not (smallest % 2 and largest % 2):
            raise ConfigError(f"lowres.blur_kernel_size is {self.blur_kernel_size}; odd, or a range of odd numbers")

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.blur_sigma if isinstance(self.blur_sigma, tuple) else (self.blur_sigma, self.blur_sigma)

    @property
    def kernel_range(self) -> tuple[int, int]:
        size = self.blur_kernel_size
        return size if isinstance(size, tuple) else (size, size)


@dataclass(frozen=True, slots=True)
class StageConfig:
    """The diffusion around one U-Net.

    image_size: height and width of what the stage makes, pixels.
    lowres: the low-resolution image it starts from; None for the first stage.
    timesteps: T of training. sample_timesteps: default steps of sampling; None means 50, or all T where
    there are fewer.
    beta_schedule: how noise grows over the timesteps. zero_terminal_snr: at the last one nothing is left of the image.
    predicts: what the network's output means.
    learned_variance: the network also gives the reverse process's variance, which ddpm uses;
    learned_variance_constrain_frac: keep it in bounds. vb_loss_weight: of the variational bound, which trains it.
    loss_type, loss_weighting: penalty of an error, and how much each timestep's counts; p2_gamma, p2_k: of "p2".
    timestep_sampling: how often each timestep is trained: "uniform" or "logit-normal" (the middle ones most).
    image_cond_drop_prob, text_cond_drop_prob: shares of rows trained without, each drawn by itself, for guidance.
    sampler: how sampling steps. ddim_sampling_eta: 0 draws nothing on the way, 1 as much as ddpm.
    thresholding: keeps estimates in the range of pixels: "static" clips, "dynamic" scales by the
    `dynamic_thres_percentile` of each image, "none"; latents have no range and are never clipped.
    random_crop_size: train on random squares of that many pixels; None for the whole image.
    """

    image_size: int
    lowres: LowresConfig | None = None
    timesteps: int = 1000
    sample_timesteps: int | None = None
    beta_schedule: str = "cosine"
    zero_terminal_snr: bool = False
    predicts: Literal["x0", "noise", "v", "flow"] = "v"
    learned_variance: bool = False
    learned_variance_constrain_frac: bool = True
    vb_loss_weight: float = 0.001
    loss_type: Literal["l2", "l1", "huber"] = "l2"
    loss_weighting: Literal["constant", "min-snr", "p2"] = "constant"
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    image_cond_drop_prob: float = 0.1
    text_cond_drop_prob: float = 0.5
    sampler: str = "ddim"
    ddim_sampling_eta: float = 0.0
    thresholding: Literal["static", "dynamic", "none"] = "static"
    dynamic_thres_percentile: float = 0.95
    random_crop_size: int | None = None
    timestep_sampling: Literal["uniform", "logit-normal"] = "uniform"

    @property
    def sampling_steps(self) -> int:
        """sample_timesteps, None resolved."""
        return self.sample_timesteps or min(50, self.timesteps)

    def __post_init__(self) -> None:
        chosen(SCHEDULES, self.beta_schedule, "noise schedule")
        chosen(PARAMETERIZATIONS, self.predicts, "prediction target")
        chosen(SAMPLERS, self.sampler, "sampler")
        chosen(PENALTIES, self.loss_type, "loss type")
        chosen(dict.fromkeys(LOSS_WEIGHTINGS), self.loss_weighting, "loss weighting")
        chosen(dict.fromkeys(THRESHOLDS), self.thresholding, "thresholding")
        chosen(TIMESTEP_SAMPLINGS, self.timestep_sampling, "timestep sampling")
        if self.predicts == "noise" and (self.zero_terminal_snr or self.beta_schedule == "flow"):
            raise ConfigError('predicts "noise" cannot give x0 where nothing is left of it; take "v", "x0" or "flow"')
        if self.image_size < 1:
            raise ConfigError(f"stage.image_size is {self.image_size}; it must be 1 or more")
        if self.lowres is not None and self.lowres.size >= self.image_size:
            raise ConfigError(
                f"a stage of {self.image_size} pixels starts from one of {self.lowres.size}; "
                "stages must grow: order image_sizes (and their U-Nets) from small to large"
            )
        if self.sample_timesteps is not None and not 1 <= self.sample_timesteps <= self.timesteps:
            raise ConfigError(f"sample_timesteps is {self.sample_timesteps}; choose 1 to timesteps ({self.timesteps})")
        for name in ("image_cond_drop_prob", "text_cond_drop_prob", "ddim_sampling_eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"stage.{name} is {getattr(self, name)}; it must be in [0, 1]")
        if not 0 < self.dynamic_thres_percentile <= 1:
            raise ConfigError(f"dynamic_thres_percentile is {self.dynamic_thres_percentile}; it must be in (0, 1]")
        if self.vb_loss_weight < 0:
            raise ConfigError(f"vb_loss_weight is {self.vb_loss_weight}; it must be 0 or more")
        if self.random_crop_size is not None and not 1 <= self.random_crop_size <= self.image_size:
            raise ConfigError(
                f"random_crop_size is {self.random_crop_size}; choose 1 to image_size ({self.image_size})"
            )


def training_part(config: StageConfig) -> dict[str, Any]:
    """The fields that the weights depend on, as plain values: those of sampling may change from use to use."""
    values = {name: value for name, value in asdict(config).items() if name not in _OF_SAMPLING}
    if values["lowres"] is not None:
        del values["lowres"]["noise_sample_level"]
    return without_later(values)


def without_later(values: dict[str, Any]) -> dict[str, Any]:
    """A stage's or its network's settings but for later ones at their defaults: older runs go on without them."""
    return {name: it for name, it in values.items() if name not in _LATER or it != _LATER[name]}


def stage_from_json(values: dict[str, Any]) -> StageConfig:
    """A config from the dict that `dataclasses.asdict` made of one."""
    lowres = values.get("lowres")
    nested = None if lowres is None else from_keywords(LowresConfig, "lowres", lowres)
    return from_keywords(StageConfig, "stage", {**values, "lowres": nested})
