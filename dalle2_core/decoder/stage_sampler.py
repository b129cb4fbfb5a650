"""Sampling one stage: its denoiser, guided and kept in range, under any sampler; inpainting; DDIM inversion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dalle2_core.conditioning import DecoderCondition
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.diffusion.denoiser import clamped
from dalle2_core.diffusion.guidance import branches, guided
from dalle2_core.diffusion.inpainting import repaint
from dalle2_core.diffusion.inversion import ddim_inverse
from dalle2_core.diffusion.posterior import Denoise, Posterior
from dalle2_core.diffusion.samplers import SAMPLERS, Sampler, Step, ddim, ddim_step, ddpm_step, timesteps_for
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.images import as_floats, averaged
from dalle2_core.inputs import check_finite_number
from dalle2_core.keywords import chosen
from dalle2_core.modules import evaluating
from dalle2_core.rng import RNG, normal

ONE_STEP_SAMPLERS = ("ddim", "ddpm")


@dataclass(frozen=True, slots=True)
class StageSamplingConfig:
    """How a stage is sampled; None takes the stage's own setting.

    cond_scale: of guidance, 1 is none. text_cond_scale: the text's own scale; None is the same for both.
    """

    steps: int | None = None
    sampler: str | None = None
    eta: float | None = None
    cond_scale: float = 1.0
    text_cond_scale: float | None = None


@dataclass(frozen=True, slots=True)
class Inpainting:
    """The known pixels, [b, c, h, w] in [0, 1], where mask [b, 1, h, w] is True."""

    images: Tensor
    mask: Tensor
    resample_times: int = 5

    @classmethod
    def checked(cls, images: Tensor, mask: Tensor, resample_times: int, rows: int, channels: int) -> Inpainting:
        """From images [b, channels, h, w] and a mask [b, h, w] or [b, 1, h, w] bool. Raises ShapeError otherwise."""
        if mask.ndim == 3:
            mask = mask[:, None]
        if mask.dtype != torch.bool:
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise ShapeError(f"inpaint_mask is {mask.dtype}; give bool, True where the image is known, or 0 and 1")
            mask = mask != 0
        if images.ndim != 4 or images.shape[1] != channels or images.shape[-1] != images.shape[-2]:
            raise ShapeError(f"inpaint_image {tuple(images.shape)} must be [b, {channels}, h, w], square")
        if mask.shape != (len(images), 1, *images.shape[-2:]):
            raise ShapeError(
                f"inpaint_mask {tuple(mask.shape)} is of another size than inpaint_image {tuple(images.shape)}"
            )
        if len(images) != rows:
            raise ShapeError(f"{len(images)} images to fill in, for {rows} rows")
        images = as_floats(images)
        if not bool(torch.isfinite(images).logical_or(~mask).all()):
            raise ShapeError("inpaint_image holds NaN or infinity where the mask says it is known")
        return cls(images, mask, resample_times)

    def to(self, device: torch.device) -> Inpainting:
        return Inpainting(self.images.to(device), self.mask.to(device), self.resample_times)

    def part(self, start: int, stop: int) -> Inpainting:
        """Rows `start` to `stop`."""
        return Inpainting(self.images[start:stop], self.mask[start:stop], self.resample_times)

    def at(self, size: int) -> tuple[Tensor, Tensor]:
        """Both with `size` pixels a side. A pixel is known where all that it covers is."""
        # What is hidden may hold anything, NaN included; grey stands for it, where an autoencoder looks around a pixel.
        shown = torch.where(self.mask, self.images, 0.5)
        return averaged(shown, size), averaged(self.mask.to(shown.dtype), size) >= 1.0 - 1e-6


class StageSampler:
    """Samples one stage; all settings are checked by the constructor, before the first step."""

    def __init__(
        self, stage: DecoderStage, sampling: StageSamplingConfig, on_step: Callable[[], None] | None = None
    ) -> None:
        """Raises ConfigError if a setting cannot be, or the stage was not trained for the guidance."""
        config = stage.config
        self.stage = stage
        self.name = config.sampler if sampling.sampler is None else sampling.sampler
        chosen(SAMPLERS, self.name, "sampler")
        self.sampler_was_given = sampling.sampler is not None
        self.eta = config.ddim_sampling_eta if sampling.eta is None else sampling.eta
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta is {self.eta}; it must be in [0, 1]")
        steps = config.sampling_steps if sampling.steps is None else sampling.steps
        self.timesteps = timesteps_for(stage.schedule, steps).to(stage.device)
        self._scales = _guidance_scales(stage, sampling)
        self._on_step = on_step

    def evaluations(self, known: Inpainting | None) -> int:
        """Calls of the network for one chunk of rows."""
        # The last step, to clean data, is never taken again.
        return len(self.timesteps) if known is None else (len(self.timesteps) - 1) * known.resample_times + 1

    def check(self, known: Inpainting | None) -> None:
        """Raises ConfigError if the requested sampler cannot inpaint."""
        if known is not None and self.sampler_was_given and self.name not in ONE_STEP_SAMPLERS:
            raise ConfigError(f"inpainting adds noise between steps, which {self.name} cannot; use ddim or ddpm")

    def sample(
        self, condition: DecoderCondition, draws: RNG, rows: int, *, start: Tensor | None, known: Inpainting | None
    ) -> Tensor:
        """Pixels [rows, c, s, s] in [0, 1]. start: x_T in the space the network works in, None draws it."""
        stage = self.stage
        shape = (rows, stage.unet.config.channels, stage.size, stage.size)
        x_T = normal(shape, draws, stage.device) if start is None else start
        with evaluating(stage):
            denoise = self._denoise(condition)
            if known is None:
                x = self._sampler(denoise, stage.schedule, x_T, self.timesteps, draws)
            else:
                x = self._inpaint(denoise, x_T, draws, known)
        pixels = stage.space.out_of(x)
        if known is None:
            return pixels
        images, mask = known.at(stage.config.image_size)
        return torch.where(mask, images, pixels)

    def invert(self, condition: DecoderCondition, pixels: Tensor, refinements: int) -> Tensor:
        """x_T from which ddim makes these pixels [b, c, s, s]."""
        with evaluating(self.stage):
            x0 = self.stage.space.into(pixels)
            return ddim_inverse(self._denoise(condition), self.stage.schedule, x0, self.timesteps, refinements)

    def _inpaint(self, denoise: Denoise, x_T: Tensor, draws: RNG, known: Inpainting) -> Tensor:
        stage = self.stage
        images, _ = known.at(stage.config.image_size)
        _, mask = known.at(stage.size)
        step: Step = ddpm_step if self.name == "ddpm" else partial(ddim_step, eta=self.eta)
        x0, times = stage.space.into(images), known.resample_times
        return repaint(denoise, step, stage.schedule, x_T, self.timesteps, x0, mask, times, draws)

    @property
    def _sampler(self) -> Sampler:
        return partial(ddim, eta=self.eta) if self.name == "ddim" else SAMPLERS[self.name]

    def _denoise(self, condition: DecoderCondition) -> Denoise:
        """The stage's denoiser under this condition, guided, kept in range and counted."""
        branched, weights = guidance_branches(condition, *self._scales)
        denoise = clamped(guided(self.stage.denoiser.given(branched), weights), self.stage.threshold)

        def denoise_counted(x_t: Tensor, t: Tensor, self_cond: Tensor | None) -> Posterior:
            found = denoise(x_t, t, self_cond)
            if self._on_step is not None:
                self._on_step()
            return found

        return denoise_counted


def guidance_branches(
    condition: DecoderCondition, scale: float, text_scale: float
) -> tuple[DecoderCondition, tuple[float, ...]]:
    """Image embedding and text guided each by a scale of its own: nothing, the image alone, both. See `branches`."""
    return branches((condition, condition.without_text(), condition.unconditional()), (text_scale, scale))


def _guidance_scales(stage: DecoderStage, sampling: StageSamplingConfig) -> tuple[float, float]:
    """Scales of image embedding and text: of what the network does not see, the other's, which costs no branch.

    Raises ConfigError if the stage was not trained for them.
    """
    config, network = stage.config, stage.unet.config
    scale = sampling.cond_scale
    text_scale = scale if sampling.text_cond_scale is None else sampling.text_cond_scale
    sees_image, sees_text = network.sees_image_embed, network.cond_on_text_encodings
    for name, value, sees, dropped in (
        ("cond_scale", scale, sees_image, "image_cond_drop_prob"),
        ("text_cond_scale", text_scale, sees_text, "text_cond_drop_prob"),
    ):
        check_finite_number(value, name)
        if value != 1.0 and sees and getattr(config, dropped) == 0:
            raise ConfigError(
                f"{name} {value} needs a stage of {config.image_size} pixels trained with {dropped} above 0; "
                "this one was not"
            )
    if not sees_image and not sees_text:
        return 1.0, 1.0
    return (scale if sees_image else text_scale), (text_scale if sees_text else scale)
