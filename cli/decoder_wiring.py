"""`train-decoder`: images and embeddings on disk (`embedpipe`) train the stages of a decoder (`dalle2_core`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from dalle2_core.autoencoder import Autoencoder
from dalle2_core.autoencoders import load_autoencoder
from dalle2_core.conditions import DecoderBatch
from dalle2_core.stage import DecoderStage
from dalle2_core.training import Processes, Run, StepReport, join_processes, load_trained, train
from dalle2_core.training.stage_pictures import check_guidance
from embedpipe import files
from embedpipe.errors import InputError
from embedpipe.load import EmbeddingDataset, rows_of, splits
from embedpipe.load.images import ImageLoader
from embedpipe.load.split import TRAIN, VALID
from embedpipe.mirror import working_folder
from embedpipe.progress import Listener, silent

from .decoder_job import DecoderJob, DecoderOutcome, StageOutcome
from .decoder_rows import DecoderRows, open_embeddings, open_images
from .decoder_runs import (
    STAGE_RUN,
    described,
    facts_of,
    finished,
    keep_autoencoder,
    refuse_another_run,
    refuse_neighbours,
    stage_of,
)
from .decoder_scores import StageJudge
from .image_features import open_features
from .latents import keep_latents
from .nonfinite import naming_rows
from .prior_scores import some_of
from .provenance import write_run
from .run_folder import run_folder

_MOST_ROWS_TO_WATCH = 512
_MOST_BYTES_TO_WATCH = 256 << 20


Training = Callable[[int, int], AbstractContextManager[Callable[[StepReport], None] | None]]
"""(number of a stage, rows of a step) → the display of its steps."""


def train_decoder(
    job: DecoderJob,
    device: str,
    preparing: Callable[[str], AbstractContextManager[Listener]],
    training: Training,
    processes: Processes | None = None,
) -> DecoderOutcome | None:
    """Train the stages that `job` names, one after the other; run again, it goes on.

    Under torchrun every process calls it; all but the first return None.

    Raises InputError, DatasetError (images and rows that do not fit, see `JoinCounts`; rows that are not finite or not
    of norm 1), ConfigError (stages that do not fit each other, the data or their autoencoders), RunMismatch,
    CheckpointError (`out` holds another run, the disk is full), NonFiniteLoss (its rows are named in a file).
    """
    together = processes or join_processes(device)
    if together.world > 1:
        device = str(together.device)
    dataset, token_width = open_embeddings(job.emb, job.recipe)
    vaes = _autoencoders(job, device)
    stages = {
        number: job.recipe.build(number, dataset.card.dim, token_width, vaes[number - 1]) for number in job.numbers()
    }
    for number, stage in stages.items():
        check_guidance(stage, job.judge.cond_scale)
        if job.cache_latents and stage.vae is not None:
            stage.refuse_encoded()
        refuse_neighbours(job, number, dataset.card.fingerprint())

    seen = _join(job, dataset, together, preparing)
    names = splits(dataset, job.split.column, job.split.valid_share)
    there = {name: np.intersect1d(rows_of(names, name, job.emb), seen.join.rows) for name in (TRAIN, VALID)}
    good = job.source.rows.checked(dataset, np.sort(np.concatenate(list(there.values()))), ("image",))
    rows = {name: np.intersect1d(found, good, assume_unique=True) for name, found in there.items()}
    _refuse_few(job, rows)

    outcomes = []
    for number in list(stages):
        with training(number, job.recipe.part(number).train.batch_size) as on_step:
            outcome = _train_stage(job, number, stages.pop(number), seen, rows, device, preparing, on_step, together)
        if outcome is not None:
            outcomes.append(outcome)
    if not together.is_first:
        return None
    return DecoderOutcome(
        out=job.out,
        complete=finished(job.out, len(job.recipe.stages)),
        train_rows=len(rows[TRAIN]),
        valid_rows=len(rows[VALID]),
        dropped=sum(len(there[name]) - len(rows[name]) for name in rows),
        join=seen.join.counts,
        stages=tuple(outcomes),
    )


def _join(
    job: DecoderJob,
    dataset: EmbeddingDataset,
    together: Processes,
    preparing: Callable[[str], AbstractContextManager[Listener]],
) -> DecoderRows:
    """Images and rows; the first process reads what must be read, the others take it from the cache."""
    cache = files.join(working_folder(job.out), "join")
    if not together.is_first:
        together.wait()
        return open_images(job.data, dataset, job.source, cache)
    with preparing("join") as listener:
        seen = open_images(job.data, dataset, job.source, cache, listener)
    together.wait()
    return seen


def _train_stage(
    job: DecoderJob,
    number: int,
    stage: DecoderStage,
    seen: DecoderRows,
    rows: dict[str, np.ndarray],
    device: str,
    preparing: Callable[[str], AbstractContextManager[Listener]],
    on_step: Callable[[StepReport], None] | None,
    together: Processes,
) -> StageOutcome | None:
    recipe, out = job.recipe.part(number), stage_of(job.out, number)
    size, tokens = stage.config.image_size, stage.unet.config.cond_on_text_encodings
    facts = facts_of(job, number, stage, seen, rows)
    with run_folder(out, together) as place:
        run = Run(Path(place.folder), described(facts), place.commit)
        if together.is_first:
            refuse_another_run(place.folder, facts)
        together.wait()
        judge = (
            _judge(job, number, place.folder, seen, rows[VALID], size, tokens, device) if together.is_first else None
        )
        loader = seen.loader(
            rows[TRAIN], size, recipe.train.batch_size, recipe.train.seed, tokens, together.rank, together.world
        )
        stage.to(device)
        stream = _stream(job, stage, facts["vae"], seen, loader, place.folder, preparing, together)
        with naming_rows(place.folder, seen.dataset, loader.rows, together):
            state = train(
                stage,
                stream,
                run,
                recipe.train,
                recipe.optim,
                evaluate=None if judge is None else judge.evaluate,
                show=None if judge is None else judge.show,
                on_step=on_step if together.is_first else None,
                processes=together,
            )
        if judge is None:
            return None
        best_step = load_trained(stage, run.checkpoints, "best")
        stage.eval()
        if number <= len(job.vaes):
            keep_autoencoder(Path(job.vaes[number - 1]), Path(place.folder))
        write_run(place.folder, STAGE_RUN, facts | {"best_step": best_step})
        stage.save(place.folder)
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
    preparing: Callable[[str], AbstractContextManager[Listener]],
    together: Processes,
) -> Callable[[int], Iterator[DecoderBatch]]:
    """(steps done) → this process's batches from there on: images, or their latents where these are kept."""
    if not job.cache_latents or autoencoder is None:
        return lambda step: map(seen.batch, loader.batches(step))
    with preparing("latents") if together.is_first else contextlib.nullcontext(silent) as listener:
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
    batches = list(seen.in_order(some_of(valid, most), size, recipe.train.batch_size, tokens))
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
        raise InputError(f"{len(job.vaes)} autoencoders for {count} stages", "Give --vae once for each latent stage")
    if job.cache_latents and not job.vaes:
        raise InputError("--cache-latents keeps what an autoencoder makes of images", "Give --vae, or leave it out")
    loaded = [load_autoencoder(folder, device) for folder in job.vaes]
    return [*loaded, *[None] * (count - len(loaded))]


def _refuse_few(job: DecoderJob, rows: dict[str, np.ndarray]) -> None:
    for number in job.numbers():
        batch_size = job.recipe.part(number).train.batch_size
        if batch_size > len(rows[TRAIN]):
            raise InputError(
                f"{job.emb}: {len(rows[TRAIN])} training rows are fewer than stage {number}'s batch of {batch_size}",
                f"Give --set stages.{number}.train.batch_size={max(1, len(rows[TRAIN]) // 4)}",
            )
    if len(rows[VALID]) < 2:
        raise InputError(
            f"{job.emb}: {len(rows[VALID])} held-out rows; two or more are needed", "Give a larger --valid-share"
        )
