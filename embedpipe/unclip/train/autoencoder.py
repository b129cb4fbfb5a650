"""Image shards (`embedpipe`) become batches for an autoencoder (`dalle2_core`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_core.autoencoders.vqgan import VQGanVAE
from dalle2_core.conditioning import DecoderBatch
from dalle2_core.files import sha256
from dalle2_core.presets.autoencoder import VaeRecipe, vae_preset
from dalle2_core.training import Processes, Run
from dalle2_core.training.vqgan_trainer import MOST_IMAGES_TO_MEASURE, VaeTraining
from dalle2_core.training.vqgan_trainer import train_vae as train_vqgan
from embedpipe.clip_model.encoder_card import ImageRules, PreprocessSpec
from embedpipe.errors import OptionError
from embedpipe.images.open import DEFAULT_MAX_PIXELS
from embedpipe.load.images.decoded_cache import PictureOptions, Pictures, batched, open_pictures, pictures_are_decoded
from embedpipe.load.shuffle import batches_from
from embedpipe.load.split import TRAIN, VALID
from embedpipe.progress import Listener, silent

from ..calls import call_of
from ..evaluate.priors import sample_rows
from ..runs.extend import Extension
from ..runs.folder import run_folder
from ..runs.record import write_run_record
from ..runs.resume import refusing_another
from ..runs.split import SplitConfig
from .plan import (
    IMAGE_RULES,
    PictureSource,
    TrainingPlan,
    begin_with_pictures,
    described_rules,
    end_with_pictures,
    picture_cache,
    picture_rows,
    plan_with_pictures,
)
from .settings import Values, recipe_of, train_settings
from .view import OnStep, TrainingView, join_training

VAE_RUN = "vae"
_MOST_ROWS_TO_JUDGE = 500
_ROWS_AT_ONCE = 32
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class VaeJob:
    """What to train, on what, where to. data: pictures; out: the autoencoder's folder.

    vgg: file of VGG16's weights for a perceptual loss, or None.
    """

    data: str
    out: str
    recipe: VaeRecipe
    split: SplitConfig
    source: PictureSource
    vgg: str | None = None
    device: str | None = None
    view: TrainingView = field(default_factory=TrainingView)

    def pictures(self) -> PictureOptions:
        """How DATA becomes what the autoencoder takes. Raises OptionError for channels that no picture has."""
        if self.recipe.vae.channels != 3:
            raise OptionError(
                f"vae.channels is {self.recipe.vae.channels}, but pictures of files have 3", "Leave it at 3"
            )
        size = self.recipe.vae.image_size
        spec = PreprocessSpec((size, size), (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest", 0)
        return self.source.options(spec, self.split, self.out)


@dataclass(frozen=True, slots=True)
class VaeOutcome:
    """What train-vae did. best_step: the checkpoint that was kept; metrics: its evaluation on held-out pictures.

    rejects: samples left out, by reason.
    """

    out: str
    steps: int
    best_step: int
    train_rows: int
    valid_rows: int
    parameters: int
    downsampling: int
    latent_channels: int
    rejects: dict[str, int]
    metrics: dict[str, float]


def vae_job(
    data: str,
    out: str,
    *,
    preset: str | VaeRecipe = "tiny",
    config: str | Path | Values | None = None,
    settings: Values | None = None,
    steps: int | None = None,
    seed: int | None = None,
    loggers: Sequence[str] = (),
    split_column: str | None = None,
    valid_share: float = 0.05,
    vgg: str | None = None,
    input_format: str = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    device: str | None = None,
    on_step: OnStep | None = None,
    listen: Listener = silent,
    view: TrainingView | None = None,
) -> VaeJob:
    """data: image shards or a folder of images. out: the autoencoder's folder.

    preset: tiny, base, or a recipe. config, settings: values to put into it, see `resolve_config`: {"optim.lr": 1e-4,
    "train.batch_size": 64}. steps, seed, loggers: short for those of `train`. split_column, valid_share: see
    `SplitConfig`. vgg: see `VaeJob`. input_format, max_pixels: see `PictureOptions`. device: None for the first GPU, or
    the CPU. on_step, listen: see `TrainingView.of`; view: in their place.
    """
    return VaeJob(
        data,
        out,
        recipe_of(preset, vae_preset, config, train_settings(settings, loggers, steps=steps, seed=seed)),
        SplitConfig(split_column, valid_share).continued([out]),
        PictureSource(input_format, max_pixels),
        vgg,
        device,
        view or TrainingView.of(on_step, listen),
    )


def plan_vae(job: VaeJob) -> TrainingPlan:
    """What `train_vae` would do. Raises as it does."""
    options = job.pictures()

    def describes(fingerprint: str) -> dict[str, Any]:
        return _describes(_facts(job, fingerprint, options.rules))

    return plan_with_pictures(job.data, job.out, options, job.recipe, job.view, describes)


def run_vae(job: VaeJob) -> VaeOutcome | None:
    """Train an autoencoder on pictures into a folder, any fsspec url; run again, it goes on.

    Under torchrun every process calls it; all but the first return None.

    Raises InputError (no data, fewer pictures than a batch), ConfigError, CheckpointError (`out` holds another run),
    NonFiniteLoss.
    """
    recipe, options = job.recipe, job.pictures()
    together, device, view = join_training(job.device, job.view)
    with run_folder(job.out, together) as place:
        torch.manual_seed(recipe.train.seed)
        vae = VQGanVAE.from_config(recipe.vae, job.vgg).to(device)
        pictures = _decoded(job, options, view, together)
        rows = picture_rows(pictures, job.data, recipe.train.batch_size)
        facts = _facts(job, pictures.fingerprint, options.rules)
        mine = Extension()
        if together.is_first:
            mine = begin_with_pictures(place.folder, job.out, _describes(facts), recipe, pictures)
        found = together.gather(mine)[0]
        run = Run(Path(place.folder), _describes(facts), place.commit, found.grown)
        trained = _learn(vae, pictures, rows, run, recipe, view, together)
        if trained is None:
            return None
        outcome = VaeOutcome(
            out=job.out,
            steps=trained.steps,
            best_step=trained.best_step,
            train_rows=len(rows[TRAIN]),
            valid_rows=len(rows[VALID]),
            parameters=sum(weight.numel() for weight in vae.parameters()),
            downsampling=vae.downsampling,
            latent_channels=vae.latent_channels,
            rejects=pictures.rejects,
            metrics=trained.metrics,
        )
        write_run_record(place.folder, VAE_RUN, facts | dataclasses.asdict(outcome) | {"history": trained.history})
        end_with_pictures(place.folder, pictures)
    return outcome


train_vae = call_of("train_vae", vae_job, run_vae)
plan_train_vae = call_of("plan_train_vae", vae_job, plan_vae)


def _learn(
    vae: VQGanVAE,
    pictures: Pictures,
    rows: Mapping[str, np.ndarray],
    run: Run,
    recipe: VaeRecipe,
    view: TrainingView,
    together: Processes,
) -> VaeTraining | None:
    """Train on some of the pictures, judge by others."""
    start, stop = together.share(recipe.train.batch_size)

    def pixels(some: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pictures.pixels[some])

    def stream(step: int) -> Iterator[DecoderBatch]:
        for batch in batches_from(rows[TRAIN], recipe.train.batch_size, recipe.train.seed, step):
            yield DecoderBatch(pixels(batch[start:stop]))

    with refusing_another(str(run.folder)), view.steps("", recipe.train) as on_step:
        return train_vqgan(
            vae,
            stream,
            [pixels(some) for some in batched(sample_rows(rows[VALID], _MOST_ROWS_TO_JUDGE), _ROWS_AT_ONCE)],
            (pixels(some) for some in batched(sample_rows(rows[TRAIN], MOST_IMAGES_TO_MEASURE), _ROWS_AT_ONCE)),
            run,
            recipe.train,
            recipe.optim,
            on_step=on_step,
            processes=together,
        )


def _facts(job: VaeJob, fingerprint: str, rules: ImageRules) -> dict[str, Any]:
    """What the run's run.json says of it, as plain JSON values."""
    return {
        "recipe": dataclasses.asdict(job.recipe),
        "split": job.split.facts(),
        "data": job.data,
        "vgg_sha256": None if job.vgg is None else sha256(Path(job.vgg)),
        "pictures": fingerprint,
        **described_rules(rules),
    }


def _describes(facts: dict[str, Any]) -> dict[str, Any]:
    """What must stay the same for a run to be continued, besides the training settings."""
    names = ("split", "vgg_sha256", "pictures", IMAGE_RULES)
    return {"vae": facts["recipe"]["vae"], **{name: facts[name] for name in names if name in facts}}


def _decoded(job: VaeJob, options: PictureOptions, view: TrainingView, together: Processes) -> Pictures:
    """The pictures, decoded by the first process; the others wait for them."""
    if together.is_first:
        with view.preparing("decode") as listener:
            return open_pictures(job.data, picture_cache(job.out), options, listener)
    # Not by `together.wait`: what processes say to each other has time limits, and decoding may take hours.
    while not pictures_are_decoded(job.data, picture_cache(job.out), options):
        time.sleep(_LOOK_EVERY_S)
    return open_pictures(job.data, picture_cache(job.out), options)
