"""Sample a cascade stage by stage, in chunks of rows; check that its stages fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dalle2_core.chunking import OnSmaller, run_in_chunks
from dalle2_core.conditioning import DecoderCondition
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.decoder.stage_sampler import Inpainting, StageSampler, StageSamplingConfig
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.rng import PerSampleRNG, derived_seed

# (number of the stage, calls of its network done, calls in all)
OnStep = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class CascadeRun:
    """One run of a cascade.

    rows: images. numbers: of the stages that run, from 1, rising. given: their conditions. pixels: [b, c, h, w] in
    [0, 1] of the stage before the first that runs, None for the whole cascade. noise: x_T of the first that runs, or
    None. known: what inpainting keeps, or None. settings: one for each stage of the cascade. seed: of all draws.
    """

    rows: int
    numbers: Sequence[int]
    given: DecoderCondition
    settings: Sequence[StageSamplingConfig]
    seed: int
    pixels: Tensor | None = None
    noise: Tensor | None = None
    known: Inpainting | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is carried out; it changes no image. See `Decoder.sample`."""

    max_batch_size: int | None = None
    device: torch.device | str | None = None
    on_step: OnStep | None = None
    on_smaller_batch: OnSmaller | None = None


def sample_cascade(stages: Sequence[DecoderStage], run: CascadeRun, execution: Execution) -> Tensor:
    """Pixels [b, c, h, w] in [0, 1] of the last stage that runs. See `Decoder.sample`."""
    pixels, noise = run.pixels, run.noise
    for number in run.numbers:
        stage = stages[number - 1]
        # Stages outside, rows inside: however many rows there are, weights move once.
        with _stage_on(stage, execution.device):
            pixels, noise = _sample_stage(stage, number, run, execution, pixels, noise), None
    assert pixels is not None
    return pixels


def _sample_stage(
    stage: DecoderStage, number: int, run: CascadeRun, execution: Execution, pixels: Tensor | None, noise: Tensor | None
) -> Tensor:
    """Pixels of one stage, from those of the previous one; the first starts from none."""
    count = _Counter(execution.on_step, number, run.rows, execution.max_batch_size)
    sampler = StageSampler(stage, run.settings[number - 1], count)
    count.calls = sampler.evaluations(run.known)

    def make(start: int, stop: int) -> Tensor:
        count.begin(start, stop)
        draws = PerSampleRNG(derived_seed(run.seed, "stage", number), start, stop - start, stage.device)
        lowres = None if pixels is None else pixels[start:stop].to(stage.device)
        condition = stage.condition_for(run.given.part(start, stop).to(stage.device), lowres, draws)
        x_T = None if noise is None else noise[start:stop].to(stage.device)
        known = None if run.known is None else run.known.part(start, stop).to(stage.device)
        made = sampler.sample(condition, draws, stop - start, start=x_T, known=known)
        count.finished = count.done
        return made

    return run_in_chunks(run.rows, execution.max_batch_size, make, execution.on_smaller_batch)


def check_run(stages: Sequence[DecoderStage], run: CascadeRun, max_batch_size: int | None) -> None:
    """Raises ShapeError or ConfigError if a stage that will run would not take what it is given."""
    given = run.given
    for name, tensor, attribute in (
        ("image_embed", given.image_embed, "sees_image_embed"),
        ("text_encodings", given.text_tokens, "cond_on_text_encodings"),
    ):
        if tensor is not None and not any(getattr(stage.unet.config, attribute) for stage in stages):
            raise ShapeError(f"no stage of this decoder is conditioned on {name}; leave it out")
    for number in run.numbers:
        stage = stages[number - 1]
        stage.unet.condition.check(stage.seen_of(given), run.rows, besides_lowres=True)
        StageSampler(stage, run.settings[number - 1]).check(run.known)
    first = stages[run.numbers[0] - 1]
    shape = (run.rows, first.unet.config.channels, first.size, first.size)
    if run.noise is not None and run.noise.shape != shape:
        raise ShapeError(f"noise is {tuple(run.noise.shape)}; the stage's is {shape}")
    if max_batch_size is not None and max_batch_size < 1:
        raise ConfigError(f"max_batch_size is {max_batch_size}; it must be 1 or more")


def check_cascade(stages: Sequence[DecoderStage]) -> None:
    """Raises ConfigError if a stage does not start from the output of the previous one."""
    if not stages:
        raise ConfigError("a decoder needs one stage or more")
    if stages[0].config.lowres is not None:
        raise ConfigError(
            f"the first stage starts from an image of {stages[0].config.lowres.size} pixels, which no stage makes; "
            "order the stages from small to large"
        )
    for number, (before, stage) in enumerate(pairwise(stages), 2):
        lowres = stage.config.lowres
        if lowres is None or lowres.size != before.config.image_size:
            wants = "none" if lowres is None else f"one of {lowres.size} pixels"
            raise ConfigError(
                f"stage {number} starts from {wants}, and stage {number - 1} makes one of "
                f"{before.config.image_size}; order the stages from small to large, and train each for its place"
            )
        if before.image_channels != stage.image_channels:
            raise ConfigError(
                f"stage {number - 1} makes images of {before.image_channels} channels, stage {number} of "
                f"{stage.image_channels}; all stages need the same"
            )
        widths = [it.unet.config.image_embed_dim for it in (before, stage) if it.unet.config.sees_image_embed]
        if len(set(widths)) > 1:
            raise ConfigError(f"stages {number - 1} and {number} take image embeddings of widths {widths}")


def settings_for(count: int, **settings: Any) -> list[StageSamplingConfig]:
    """One SamplingConfig for each stage, of settings that are one value or one for each."""
    for name, value in settings.items():
        if isinstance(value, (tuple, list)) and len(value) != count:
            raise ConfigError(f"{name} has {len(value)} values for {count} stages; give one, or one for each")
    spread = {name: value if isinstance(value, (tuple, list)) else (value,) * count for name, value in settings.items()}
    return [StageSamplingConfig(**{name: values[index] for name, values in spread.items()}) for index in range(count)]


class _Counter:
    """Counts the calls of a stage's network, for a progress bar; those of a piece that is made again count once.

    calls: for each piece. finished: for the pieces that are made.
    """

    def __init__(self, on_step: OnStep | None, number: int, rows: int, at_once: int | None) -> None:
        self.on_step, self.number = on_step, number
        self.rows, self.at_once = rows, at_once or rows
        self.calls = self.finished = self.done = self.total = 0

    def begin(self, start: int, stop: int) -> None:
        """A piece of rows; after it come others, as large as this one or smaller."""
        self.at_once = stop - start if stop < self.rows else self.at_once
        self.done = self.finished
        self.total = self.finished + self.calls * -(-(self.rows - start) // self.at_once)

    def __call__(self) -> None:
        self.done += 1
        if self.on_step is not None:
            self.on_step(self.number, self.done, self.total)


@contextmanager
def _stage_on(stage: DecoderStage, device: torch.device | str | None) -> Iterator[None]:
    """The stage on `device` inside, and where it was afterwards, whatever happens."""
    home = stage.device
    if device is None or torch.device(device) == home:
        yield
        return
    stage.to(device)
    try:
        yield
    finally:
        stage.to(home)
