"""Sampling one stage: its estimate, guided and kept in range, under any sampler; filling in; the way back to noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dalle2_core.conditioning import DecoderCondition
from dalle2_core.decoder.guidance import StageEstimate, guided_estimate
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.diffusion.inpainting import Step, repaint
from dalle2_core.diffusion.inversion import ddim_inverse
from dalle2_core.diffusion.learned_variance import Estimate, learned_step
from dalle2_core.diffusion.samplers import SAMPLERS, ddim, ddim_step, ddpm_step, pairs, timesteps_for
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.images import as_floats, averaged
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
    """What is known of the images: pixels [b, c, h, w] in [0, 1] where mask [b, 1, h, w] is True."""

    images: Tensor
    mask: Tensor
    resample_times: int = 5

    @classmethod
    def checked(cls, images: Tensor, mask: Tensor, resample_times: int, rows: int, channels: int) -> Inpainting:
        """From images [b, channels, h, w] and a mask [b, h, w] or [b, 1, h, w] bool. Raises ShapeError otherwise."""
        if mask.ndim == 3:
            mask = mask[:, None]
        if mask.dtype != torch.bool:
            raise ShapeError(f"inpaint_mask is {mask.dtype}; give bool, True where the image is known")
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
    """One stage, ready to be sampled: everything is checked when it is made, before the first step."""

    def __init__(
        self, stage: DecoderStage, sampling: StageSamplingConfig, on_step: Callable[[], None] | None = None
    ) -> None:
        """Raises ConfigError if a setting cannot be, or the stage was not trained for the guidance."""
        config = stage.config
        self.stage = stage
        self.name = sampling.sampler or config.sampler
        chosen(SAMPLERS, self.name, "sampler")
        self.sampler_was_asked_for = sampling.sampler is not None
        self.eta = config.ddim_sampling_eta if sampling.eta is None else sampling.eta
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta is {self.eta}; it must be in [0, 1]")
        steps = sampling.steps or config.sampling_steps
        self.timesteps = timesteps_for(stage.schedule, steps).to(stage.device)
        _check_guidance(stage, sampling)
        self._estimate = _guided(stage, sampling)
        self._on_step = on_step

    def evaluations(self, known: Inpainting | None) -> int:
        """Calls of the network for one piece of rows."""
        # The last step, to clean data, is never taken again.
        return len(self.timesteps) if known is None else (len(self.timesteps) - 1) * known.resample_times + 1

    def check(self, known: Inpainting | None) -> None:
        """Raises ConfigError if the sampler that was asked for cannot fill in."""
        if known is not None and self.sampler_was_asked_for and self.name not in ONE_STEP_SAMPLERS:
            raise ConfigError(f"inpainting adds noise between steps, which {self.name} cannot; use ddim or ddpm")

    def sample(
        self, condition: DecoderCondition, draws: RNG, rows: int, *, start: Tensor | None, known: Inpainting | None
    ) -> Tensor:
        """Pixels [rows, c, s, s] in [0, 1]. start: x_T in the space the network works in, None draws it."""
        stage = self.stage
        shape = (rows, stage.unet.config.channels, stage.size, stage.size)
        x_T = normal(shape, draws, stage.device) if start is None else start
        with evaluating(stage):
            x = self._fill_in(condition, x_T, draws, known) if known else self._plain(condition, x_T, draws)
        pixels = stage.space.out_of(x)
        if known is None:
            return pixels
        images, mask = known.at(stage.config.image_size)
        return torch.where(mask, images, pixels)

    def invert(self, condition: DecoderCondition, pixels: Tensor, refinements: int) -> Tensor:
        """x_T from which ddim makes these pixels [b, c, s, s]."""
        with evaluating(self.stage):
            denoise = partial(self._x0, condition)
            return ddim_inverse(
                denoise, self.stage.schedule, self.stage.space.into(pixels), self.timesteps, refinements
            )

    def _plain(self, condition: DecoderCondition, x_T: Tensor, draws: RNG) -> Tensor:
        schedule = self.stage.schedule
        if self.name == "ddpm" and self.stage.config.learned_variance:
            step, x, x0 = self._step("ddpm", condition, draws), x_T, None
            for t, s in pairs(self.timesteps):
                x, x0 = step(x, t, s, x0)
            return x
        take = partial(ddim, eta=self.eta) if self.name == "ddim" else SAMPLERS[self.name]
        return take(partial(self._x0, condition), schedule, x_T, self.timesteps, draws)

    def _fill_in(self, condition: DecoderCondition, x_T: Tensor, draws: RNG, known: Inpainting) -> Tensor:
        name = self.name if self.name in ONE_STEP_SAMPLERS else "ddim"
        stage = self.stage
        images, _ = known.at(stage.config.image_size)
        _, mask = known.at(stage.size)
        step = self._step(name, condition, draws)
        return repaint(
            step, stage.schedule, x_T, self.timesteps, stage.space.into(images), mask, known.resample_times, draws
        )

    def _step(self, name: str, condition: DecoderCondition, draws: RNG) -> Step:
        schedule = self.stage.schedule

        def step(x: Tensor, t: Tensor, s: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
            estimate = self._in_range(condition, x, t.expand(len(x)), previous)
            if name == "ddim":
                return ddim_step(x, estimate.x0, schedule, t, s, draws, eta=self.eta), estimate.x0
            if estimate.fraction is not None:
                return learned_step(x, estimate, schedule, t, s, draws), estimate.x0
            return ddpm_step(x, estimate.x0, schedule, t, s, draws), estimate.x0

        return step

    def _x0(self, condition: DecoderCondition, x_t: Tensor, t: Tensor, previous: Tensor | None) -> Tensor:
        return self._in_range(condition, x_t, t, previous).x0

    def _in_range(self, condition: DecoderCondition, x_t: Tensor, t: Tensor, previous: Tensor | None) -> Estimate:
        x0, fraction = self._estimate(x_t, t, condition, previous)
        if self._on_step is not None:
            self._on_step()
        return Estimate(self.stage.threshold(x0), fraction)


def _guided(stage: DecoderStage, sampling: StageSamplingConfig) -> StageEstimate:
    """The stage's estimate, guided by what it is told: a branch that would differ in nothing is not computed."""
    network, text_scale = stage.unet.config, sampling.text_cond_scale
    if not network.cond_on_text_encodings:
        return guided_estimate(stage.estimate, sampling.cond_scale) if network.sees_image_embed else stage.estimate
    if not network.sees_image_embed:
        return guided_estimate(stage.estimate, sampling.cond_scale if text_scale is None else text_scale)
    return guided_estimate(stage.estimate, sampling.cond_scale, text_scale)


def _check_guidance(stage: DecoderStage, sampling: StageSamplingConfig) -> None:
    config, network = stage.config, stage.unet.config
    text_scale = sampling.cond_scale if sampling.text_cond_scale is None else sampling.text_cond_scale
    asked = (
        ("cond_scale", sampling.cond_scale, network.sees_image_embed, "image_cond_drop_prob"),
        ("text_cond_scale", text_scale, network.cond_on_text_encodings, "text_cond_drop_prob"),
    )
    for name, scale, sees, dropped in asked:
        if scale != 1.0 and sees and getattr(config, dropped) == 0:
            raise ConfigError(
                f"{name} {scale} needs a stage of {config.image_size} pixels trained with {dropped} above 0; "
                "this one was not"
            )
