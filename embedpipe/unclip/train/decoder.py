"""`train-decoder`: images and embeddings on disk (`embedpipe`) train the stages of a decoder (`dalle2_core`)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_core.autoencoders.base import Autoencoder
from dalle2_core.autoencoders.registry import load_autoencoder
from dalle2_core.conditioning import DecoderBatch
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.presets.decoder import IN_LATENTS, DecoderRecipe, decoder_preset
from dalle2_core.training import Processes, Run, load_trained, train
from dalle2_core.training.stage_samples import check_stage_guidance
from embedpipe import files
from embedpipe.containment import refuse_outward_links
from embedpipe.errors import InputError, OptionError
from embedpipe.images.open import DEFAULT_MAX_PIXELS
from embedpipe.load import EmbeddingDataset
from embedpipe.load.identity import row_marks
from embedpipe.load.images.loader import ImageLoader
from embedpipe.load.images.source import Images, places_of
from embedpipe.load.split import TRAIN, VALID
from embedpipe.mirror import local_copy, working_folder
from embedpipe.progress import Listener, silent

from ..calls import call_of
from ..data.decoder_batches import DecoderRows, ImageSource, open_embeddings, open_joined_images
from ..data.latents import keep_latents
from ..data.row_policy import RowPolicy
from ..evaluate.decoder_stage import StageJudge
from ..evaluate.image_features import open_features
from ..evaluate.priors import sample_rows
from ..runs.extend import Extension, say
from ..runs.folder import run_folder
from ..runs.record import write_run_record
from ..runs.resume import refusing_another
from ..runs.split import SplitConfig
from ..runs.trained_rows import write_trained_rows
from .decoder_config import DecoderJob, DecoderOutcome, JudgeConfig, StageOutcome
from .decoder_run import (
    STAGE_RUN,
    identity_of,
    keep_autoencoder,
    option_names,
    refuse_neighbours,
    run_record,
    stage_extension,
    stage_is_finished,
    stage_of,
    usual_preset,
)
from .nonfinite import report_rows
from .plan import NOT_FINITE, StepsLeft, TrainingPlan, refuse_few, rows_by_split, rows_per_split, steps_left
from .settings import Values, resolve_config, train_settings
from .view import OnStep, TrainingView, join_training

_MOST_ROWS_TO_WATCH = 512
_MOST_BYTES_TO_WATCH = 256 << 20


def decoder_job(
    data: Images,
    emb: str,
    out: str,
    *,
    images: Images = None,
    preset: str | DecoderRecipe | None = None,
    sizes: Sequence[int] = (),
    dims: Sequence[int] = (),
    timesteps: Sequence[int] = (),
    objectives: Sequence[str] = (),
    text_tokens: bool = False,
    config: str | Path | Values | None = None,
    settings: Values | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    parallel: str | None = None,
    sample_every: int | None = None,
    loggers: Sequence[str] = (),
    stages: Sequence[int] = (),
    vaes: Sequence[str] = (),
    cache_latents: bool = False,
    split_column: str | None = None,
    valid_share: float = 0.05,
    drop_unjoined: bool = False,
    normalise: bool = False,
    drop_nonfinite: bool = False,
    decode_threads: int = 4,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    features: str | None = None,
    score_rows: int = 64,
    cond_scale: float = 1.0,
    trust_old_card: bool = False,
    device: str | None = None,
    on_step: OnStep | None = None,
    listen: Listener = silent,
    view: TrainingView | None = None,
) -> DecoderJob:
    """data, images: where the image shards are, one place or several; None for where they were. emb: their embeddings.
    out: the decoder's folder.

    preset: quick, tiny, tiny-latent, base, paper, or a recipe; None: quick, or tiny where `out` was begun when that was
    the first choice. sizes, dims, timesteps, objectives: see
    `DecoderRecipe.changed`. text_tokens: the first stage reads the states of the captions' tokens, too.
    config, settings: values to put into the recipe, see `resolve_config`: {"stages.1.optim.lr": 1e-4}.
    steps, batch_size, seed, parallel, loggers: short for those of `train`, of every stage; sample_every: of show_every.
    stages, vaes, cache_latents, trust_old_card: see `DecoderJob`. split_column, valid_share: see `SplitConfig`.
    drop_unjoined, decode_threads, max_pixels: see `ImageSource`. normalise, drop_nonfinite: see `RowPolicy`.
    features, score_rows, cond_scale: see `JudgeConfig`. device: None for the first GPU, or the CPU.
    on_step, listen: see `TrainingView.of`; view: in their place.
    """
    preset = preset or usual_preset(out)
    recipe = decoder_preset(preset) if isinstance(preset, str) else preset
    if isinstance(preset, str) and preset in IN_LATENTS and not vaes:
        raise OptionError(f"`preset={preset!r}` works in the latents of an autoencoder", "Give `vaes`")
    recipe = recipe.changed(sizes=sizes, dims=dims, timesteps=timesteps, objectives=objectives)
    changes = dict(settings or {}) | ({"stages.1.text_tokens": True} if text_tokens else {})
    train = {"steps": steps, "batch_size": batch_size, "seed": seed, "parallel": parallel, "show_every": sample_every}
    for number in range(1, len(recipe.stages) + 1):
        short = train_settings(None, loggers, **train)
        changes |= {f"stages.{number}.{name}": value for name, value in short.items()}
    return DecoderJob(
        (*places_of(data), *places_of(images)),
        emb,
        out,
        resolve_config(recipe, config, changes),
        tuple(stages),
        tuple(local_copy(folder) for folder in vaes),
        SplitConfig(split_column, valid_share).continued(stage_of(out, it) for it in range(1, len(recipe.stages) + 1)),
        ImageSource(drop_unjoined, decode_threads, max_pixels, RowPolicy(normalise, drop_nonfinite)),
        JudgeConfig(features, score_rows, cond_scale=cond_scale),
        cache_latents,
        trust_old_card,
        device,
        view or TrainingView.of(on_step, listen),
    )


def plan_decoder(job: DecoderJob) -> TrainingPlan:
    """What `train_decoder` would do: the data are looked at, no weights are made and nothing is written.

    Raises as `train_decoder` does before its first step.
    """
    dataset, stages = _open(job, "cpu", weights=False)
    seen = open_joined_images(job.images, dataset, job.source, _cache(job), keep=False)
    rows, dropped = _rows(job, seen)
    runs: dict[str, StepsLeft] = {}
    extended: dict[str, tuple[str, ...]] = {}
    for number, stage in stages.items():
        folder = stage_of(job.out, number)
        found = stage_extension(job, folder, run_record(job, number, stage, seen, rows), seen, rows)
        extended |= {folder: found.said} if found.said else {}
        runs[folder] = steps_left(folder, job.recipe.part(number).train)
    joined = dataclasses.asdict(seen.join.counts)
    return TrainingPlan(rows_per_split(rows), {NOT_FINITE: dropped}, runs, job.recipe, joined, job.numbers(), extended)


def run_decoder(job: DecoderJob) -> DecoderOutcome | None:
    """Train the stages that `job` names, one after the other; run again, it goes on.

    Under torchrun every process calls it; all but the first return None.

    Raises InputError, DatasetError (images and rows that do not fit, see `JoinCounts`; rows that are not finite or not
    of norm 1), ConfigError (stages that do not fit each other, the data or their autoencoders), RunMismatch,
    CheckpointError (`out` holds another run, the disk is full), NonFiniteLoss (its rows are named in a file).
    """
    job.numbers()
    together, device, view = join_training(job.device, job.view)
    refuse_outward_links(job.out)
    dataset, stages = _open(job, device)
    seen = _join(job, dataset, together, view)
    rows, dropped = _rows(job, seen)

    outcomes = []
    for number in list(stages):
        with view.steps(f"stage {number}", job.recipe.part(number).train) as on_step:
            outcome = _train_stage(job, number, stages.pop(number), seen, rows, device, view, on_step, together)
        if outcome is not None:
            outcomes.append(outcome)
    if not together.is_first:
        return None
    return DecoderOutcome(
        out=job.out,
        complete=stage_is_finished(job.out, len(job.recipe.stages)),
        train_rows=len(rows[TRAIN]),
        valid_rows=len(rows[VALID]),
        dropped=dropped,
        join=seen.join.counts,
        stages=tuple(outcomes),
    )


train_decoder = call_of("train_decoder", decoder_job, run_decoder)
plan_train_decoder = call_of("plan_train_decoder", decoder_job, plan_decoder)


def _open(job: DecoderJob, device: str, weights: bool = True) -> tuple[EmbeddingDataset, dict[int, DecoderStage]]:
    """The embeddings, and new stages by number: checked against them, each other and what lies in `out`.

    weights: whether the stages have any. Without, they cost no memory; those in latents do: their space is measured.
    """
    dataset, token_width = open_embeddings(job.emb, job.recipe)
    vaes = _autoencoders(job, device)
    stages = {}
    for number in job.numbers():
        vae = vaes[number - 1]
        with _making(weights or vae is not None):
            stages[number] = job.recipe.build(number, dataset.card.dim, token_width, vae)
    for number, stage in stages.items():
        check_stage_guidance(stage, job.judge.cond_scale)
        if job.cache_latents and stage.vae is not None:
            stage.refuse_encoded()
        refuse_neighbours(job, number, dataset.card)
    return dataset, stages


def _making(weights: bool) -> AbstractContextManager[Any]:
    """What is made inside has weights, or only their shapes."""
    return contextlib.nullcontext() if weights else torch.device("meta")


def _rows(job: DecoderJob, seen: DecoderRows) -> tuple[dict[str, np.ndarray], int]:
    """The rows of each split that have their image, and how many were left out."""
    rows, dropped = rows_by_split(seen.dataset, job.split, job.source.rows, ("image",), among=seen.join.rows)
    for number in job.numbers():
        batch_size = job.recipe.part(number).train.batch_size
        refuse_few(job.emb, rows_per_split(rows), batch_size, f"stages.{number}.train.batch_size", held_out=2)
    return rows, dropped


def _cache(job: DecoderJob) -> str:
    """Where it is kept which images there are."""
    return files.join(working_folder(job.out), "join")


def _join(job: DecoderJob, dataset: EmbeddingDataset, together: Processes, view: TrainingView) -> DecoderRows:
    """Images and rows; the first process reads what must be read, the others take it from the cache."""
    if not together.is_first:
        together.wait()
        return open_joined_images(job.images, dataset, job.source, _cache(job))
    with view.preparing("join") as listener:
        seen = open_joined_images(job.images, dataset, job.source, _cache(job), listener)
    together.wait()
    return seen


def _train_stage(
    job: DecoderJob,
    number: int,
    stage: DecoderStage,
    seen: DecoderRows,
    rows: dict[str, np.ndarray],
    device: str,
    view: TrainingView,
    on_step: OnStep | None,
    together: Processes,
) -> StageOutcome | None:
    recipe, out = job.recipe.part(number), stage_of(job.out, number)
    size, tokens = stage.config.image_size, stage.unet.config.cond_on_text_encodings
    facts = run_record(job, number, stage, seen, rows)
    with run_folder(out, together) as place:
        folder = place.folder
        found = together.gather(stage_extension(job, folder, facts, seen, rows) if together.is_first else Extension())[
            0
        ]
        run = Run(Path(folder), identity_of(facts), place.commit, found.grown)
        if together.is_first:
            say(out, found)
            write_trained_rows(folder, row_marks(seen.dataset, rows[TRAIN]), bool(found.grown))
        together.wait()
        judge = _judge(job, number, folder, seen, rows[VALID], size, tokens, device) if together.is_first else None
        loader = seen.loader(
            rows[TRAIN], size, recipe.train.batch_size, recipe.train.seed, tokens, together.rank, together.world
        )
        stage.to(device)
        stream = _stream(job, stage, facts["vae"], seen, loader, folder, view, together)
        with refusing_another(folder, option_names(number)), report_rows(folder, seen.dataset, loader.rows, together):
            state = train(
                stage,
                stream,
                run,
                recipe.train,
                recipe.optim,
                evaluate=None if judge is None else judge.evaluate,
                show=None if judge is None else judge.show,
                on_step=on_step,
                processes=together,
            )
        if judge is None:
            return None
        best_step = load_trained(stage, run.checkpoints, "best")
        stage.eval()
        if number <= len(job.vaes):
            keep_autoencoder(Path(job.vaes[number - 1]), Path(folder))
        write_run_record(folder, STAGE_RUN, facts | {"best_step": best_step, "history": state.history})
        write_trained_rows(folder, row_marks(seen.dataset, rows[TRAIN]))
        stage.save(folder)
        metrics = judge.evaluate(stage)
    return StageOutcome(
        stage=number,
        folder=out,
        image_size=size,
        steps=state.step,
        best_step=best_step,
        parameters=sum(weight.numel() for weight in stage.parameters()),
        metrics=metrics,
    )


def _stream(
    job: DecoderJob,
    stage: DecoderStage,
    autoencoder: str | None,
    seen: DecoderRows,
    loader: ImageLoader,
    folder: str,
    view: TrainingView,
    together: Processes,
) -> Callable[[int], Iterator[DecoderBatch]]:
    """(steps done) → this process's batches from there on: images, or their latents where these are kept."""
    if not job.cache_latents or autoencoder is None:
        return lambda step: map(seen.batch, loader.batches(step))
    with view.preparing("latents") as listener:
        return keep_latents(stage, autoencoder, seen, loader, folder, together, listener).batches


def _judge(
    job: DecoderJob,
    number: int,
    folder: str,
    seen: DecoderRows,
    valid: np.ndarray,
    size: int,
    tokens: bool,
    device: str,
) -> StageJudge:
    most = min(_MOST_ROWS_TO_WATCH, max(2, _MOST_BYTES_TO_WATCH // (3 * size * size)))
    recipe = job.recipe.part(number)
    batches = list(seen.in_order(sample_rows(valid, most), size, recipe.train.batch_size, tokens))
    features = None if job.judge.features is None else open_features(job.judge.features, seen.dataset, device)
    return StageJudge(
        folder,
        batches,
        job.judge.shown,
        job.judge.scored,
        recipe.train.seed,
        features,
        job.judge.cond_scale,
    )


def _autoencoders(job: DecoderJob, device: str) -> list[Autoencoder | None]:
    """One for each stage, None where it works in pixels."""
    count = len(job.recipe.stages)
    if len(job.vaes) > count:
        raise InputError(
            f"{len(job.vaes)} autoencoders for {count} stages", "Give one for each latent stage with `vaes`"
        )
    if job.cache_latents and not job.vaes:
        raise OptionError("`cache_latents` keeps what an autoencoder makes of images", "Give `vaes`, or leave it out")
    loaded = [load_autoencoder(folder, device) for folder in job.vaes]
    return [*loaded, *[None] * (count - len(loaded))]
