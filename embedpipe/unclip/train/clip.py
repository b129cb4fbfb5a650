"""Image shards (`embedpipe`) become batches for a CLIP (`dalle2_core`), which becomes a folder for open_clip."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_core.clip.trainable import ClipBatch, ClipScores, TrainableClip, count_cut, evaluate_clip, tokenize
from dalle2_core.presets.clip import ClipRecipe, clip_preset
from dalle2_core.training import Run, load_trained, train
from embedpipe import files
from embedpipe.clip_model.encoder_card import ImageRules, PreprocessSpec
from embedpipe.images.open import DEFAULT_MAX_PIXELS
from embedpipe.load.images.decoded_cache import PictureOptions, Pictures, batched, cached_rows, open_pictures
from embedpipe.load.shuffle import batches_from
from embedpipe.load.split import TRAIN, VALID
from embedpipe.mirror import at_work
from embedpipe.progress import Listener, Progress, silent

from ..calls import call_of
from ..device import default_device
from ..evaluate.priors import sample_rows
from ..runs.folder import TRAINING
from ..runs.record import write_run_record
from ..runs.resume import refusing_another
from ..runs.split import SplitConfig
from .plan import (
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
from .view import OnStep, TrainingView

CLIP_RUN = "clip"

# Recall among a thousand is known to a percent or so; more would only slow training down.
_MOST_ROWS_TO_SCORE = 1000
_ROWS_AT_ONCE = 128
# What fits a core's cache: a trunk takes twice as long for each picture of a batch of 128.
_PICTURES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ClipJob:
    """What to train, on what, where to. data: pairs of pictures and captions; out: the model's folder."""

    data: str
    out: str
    recipe: ClipRecipe
    split: SplitConfig
    source: PictureSource
    device: str | None = None
    view: TrainingView = field(default_factory=TrainingView)

    def pictures(self) -> PictureOptions:
        """How DATA becomes what the model takes."""
        made, size = self.recipe.clip.preprocess, self.recipe.clip.image_size
        spec = PreprocessSpec(
            size=(size, size),
            mean=tuple(made["mean"]),
            std=tuple(made["std"]),
            interpolation=made["interpolation"],
            resize_mode=made["resize_mode"],
            fill_color=made["fill_color"],
        )
        return self.source.options(spec, self.split, self.out)


@dataclass(frozen=True, slots=True)
class ClipOutcome:
    """What train-clip did.

    scores: for each held-out split, recall both ways. captions_cut, tokens_cut: captions longer than the model's
    context_length, and tokens cut off. metrics: the scores on the split `valid`, flat, and chance beside them. rejects:
    samples left out, by reason.
    """

    out: str
    steps: int
    best_step: int
    train_rows: int
    parameters: int
    trained_parameters: int
    context_length: int
    captions_cut: int
    tokens_cut: int
    rejects: dict[str, int]
    scores: dict[str, ClipScores]
    metrics: dict[str, float]


def clip_job(
    data: str,
    out: str,
    *,
    preset: str | ClipRecipe = "lite0",
    config: str | Path | Values | None = None,
    settings: Values | None = None,
    steps: int | None = None,
    seed: int | None = None,
    loggers: Sequence[str] = (),
    split_column: str | None = None,
    valid_share: float = 0.05,
    caption_key: str = "caption",
    input_format: str = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    device: str | None = None,
    on_step: OnStep | None = None,
    listen: Listener = silent,
    view: TrainingView | None = None,
) -> ClipJob:
    """data: image shards or a folder of images, with captions. out: the model's folder.

    preset: lite0, vit-tiny, or a recipe. config, settings: values to put into it, see `resolve_config`:
    {"optim.lr": 1e-4, "train.batch_size": 64}. steps, seed, loggers: short for those of `train`. split_column,
    valid_share: see `SplitConfig`. caption_key, input_format, max_pixels: see `PictureOptions`. device: None for the
    first GPU, or the CPU. on_step, listen: see `TrainingView.of`; view: in their place.
    """
    return ClipJob(
        data,
        out,
        recipe_of(preset, clip_preset, config, train_settings(settings, loggers, steps=steps, seed=seed)),
        SplitConfig(split_column, valid_share).continued([out]),
        PictureSource(input_format, max_pixels, caption_key),
        device,
        view or TrainingView.of(on_step, listen),
    )


def plan_clip(job: ClipJob) -> TrainingPlan:
    """What `train_clip` would do. Raises as it does."""
    options = job.pictures()

    def describes(fingerprint: str) -> dict[str, Any]:
        return _describes(job, fingerprint, options.rules)

    return plan_with_pictures(job.data, job.out, options, job.recipe, job.view, describes, held_out=2)


def run_clip(job: ClipJob) -> ClipOutcome:
    """Train a CLIP on pairs of pictures and captions into a folder, any fsspec url; run again, it goes on.

    Raises InputError (no data, no such split), ConfigError, CheckpointError (`out` holds another run), NonFiniteLoss.
    """
    recipe, view, device = job.recipe, job.view, job.device or default_device()
    with at_work(job.out, TRAINING) as place:
        torch.manual_seed(recipe.train.seed)
        model = TrainableClip(recipe.clip).to(device)
        with view.preparing("decode") as listener:
            options = job.pictures()
            pictures = open_pictures(job.data, picture_cache(job.out), options, listener)
        rows = picture_rows(pictures, job.data, recipe.train.batch_size, held_out=2)
        tokens = tokenize(pictures.captions, recipe.clip)
        with view.preparing("image features") as listener:
            pairs = _Pairs(_image_rows(model, pictures, picture_cache(job.out), device, listener), tokens, device)
        watched = sample_rows(rows[VALID], _MOST_ROWS_TO_SCORE)

        def stream(step: int) -> Iterator[ClipBatch]:
            batches = batches_from(rows[TRAIN], recipe.train.batch_size, recipe.train.seed, step)
            return (pairs.batch(some) for some in batches)

        known = _describes(job, pictures.fingerprint, options.rules)
        found = begin_with_pictures(place.folder, job.out, known, recipe, pictures)
        run = Run(Path(place.folder), known, place.commit, found.grown)
        with refusing_another(place.folder), view.steps("", recipe.train) as on_step:
            state = train(
                model,
                stream,
                run,
                recipe.train,
                recipe.optim,
                evaluate=lambda judged: pairs.score(judged, watched).numbers(),
                on_step=on_step,
            )
        best_step = load_trained(model, run.checkpoints, "best")
        model.eval()
        model.save_open_clip(place.folder)
        scores = _score_all(model, pairs, pictures)
        cut = count_cut(pictures.captions, tokens)
        outcome = ClipOutcome(
            out=job.out,
            steps=state.step,
            best_step=best_step,
            train_rows=len(rows[TRAIN]),
            parameters=sum(weight.numel() for weight in model.parameters()),
            trained_parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            context_length=recipe.clip.model["text_cfg"].get("context_length", 77),
            captions_cut=cut.captions,
            tokens_cut=cut.tokens,
            rejects=pictures.rejects,
            scores=scores,
            metrics=scores[VALID].numbers() | {"chance_at_10": scores[VALID].chance(10)},
        )
        facts: dict[str, Any] = {"recipe": dataclasses.asdict(recipe), "split": job.split.facts(), "data": job.data}
        facts |= {"history": state.history}
        write_run_record(place.folder, CLIP_RUN, facts | dataclasses.asdict(outcome))
        end_with_pictures(place.folder, pictures)
    return outcome


train_clip = call_of("train_clip", clip_job, run_clip)
plan_train_clip = call_of("plan_train_clip", clip_job, plan_clip)


class _Pairs:
    """Image rows (pixels, or a locked trunk's features) and tokens of the same samples, as batches on a device."""

    def __init__(self, images: np.ndarray, tokens: torch.Tensor, device: str) -> None:
        self._images = images
        self._tokens = tokens
        self._device = torch.device(device)

    def batch(self, rows: np.ndarray) -> ClipBatch:
        """The pairs at some rows."""
        return ClipBatch(torch.from_numpy(self._images[rows]), self._tokens[torch.from_numpy(rows)])

    def score(self, model: TrainableClip, rows: np.ndarray) -> ClipScores:
        """Recall among the pairs at some rows."""
        return evaluate_clip(model, (self.batch(part) for part in batched(rows, _ROWS_AT_ONCE)), self._device)


def _image_rows(model: TrainableClip, pictures: Pictures, cache: str, device: str, listener: Listener) -> np.ndarray:
    """What the trained part of the image tower takes in: pixels, or a locked trunk's features (made once and kept)."""
    if not model.config.lock_trunk:
        return pictures.pixels
    made_by = {"trunk": model.config.trunk, "mean": model.config.mean, "std": model.config.std}
    identity = json.dumps([pictures.fingerprint, made_by, dict(model.config.model["vision_cfg"])], sort_keys=True)
    name = f"features-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    shape = (len(pictures), *model.trunk_features(_pixels(pictures.pixels[:1], device)).shape[1:])

    def parts() -> Iterator[np.ndarray]:
        for part in batched(pictures.pixels, _PICTURES_AT_ONCE):
            yield model.trunk_features(_pixels(part, device)).cpu().numpy()
            listener(Progress(rows=len(part)))

    return cached_rows(files.join(cache, name), parts(), shape, "float32")


def _pixels(rows: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.array(rows)).to(device)


def _score_all(model: TrainableClip, pairs: _Pairs, pictures: Pictures) -> dict[str, ClipScores]:
    """The scores of every split but the training one that has two rows or more, `valid` first."""
    names = sorted(set(pictures.splits) - {TRAIN}, key=lambda name: (name != VALID, name))
    rows = {name: sample_rows(np.flatnonzero(pictures.splits == name), _MOST_ROWS_TO_SCORE) for name in names}
    return {name: pairs.score(model, rows[name]) for name in names if len(rows[name]) > 1}


def _describes(job: ClipJob, fingerprint: str, rules: ImageRules) -> dict[str, Any]:
    """What must stay the same for a run to be continued, besides the training settings."""
    return {
        "clip": dataclasses.asdict(job.recipe.clip),
        "split": job.split.facts(),
        "pictures": fingerprint,
        **described_rules(rules),
    }
