"""Image shards (`embedpipe`) become batches for a CLIP (`dalle2_core`), which becomes a folder for open_clip."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_core.clip.trainable import ClipBatch, ClipScores, TrainableClip, count_cut, evaluate_clip, tokenize
from dalle2_core.presets.clip import ClipRecipe
from dalle2_core.training import Run, load_trained, train
from embedpipe import files
from embedpipe.clip_model.encoder_card import PreprocessSpec
from embedpipe.load import rows_of_split
from embedpipe.load.images.decoded_cache import PictureOptions, Pictures, batched, cached_rows, open_pictures
from embedpipe.load.shuffle import batches_from
from embedpipe.load.split import TRAIN, VALID
from embedpipe.mirror import at_work
from embedpipe.progress import Listener, Progress

from ..runs.folder import TRAINING
from ..runs.record import write_run_record
from ..runs.resume import refusing_another
from .plan import SplitConfig, TrainingPlan, counts, picture_cache, plan_with_pictures, refuse_few
from .view import TrainingView

CLIP_RUN = "clip"

# Recall among a thousand is known to a percent or so; more would only slow training down.
_MOST_ROWS_TO_SCORE = 1000
_ROWS_AT_ONCE = 128
# What fits a core's cache: a trunk takes twice as long for each picture of a batch of 128.
_PICTURES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class PictureSource:
    """How DATA is read: see `PictureOptions`."""

    caption_key: str
    input: str
    max_pixels: int


@dataclass(frozen=True, slots=True)
class ClipJob:
    """What to train, on what, where to. data: pairs of pictures and captions; out: the model's folder."""

    data: str
    out: str
    recipe: ClipRecipe
    split: SplitConfig
    source: PictureSource

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
        split, source = self.split, self.source
        return PictureOptions(
            spec, split.column, split.valid_share, source.caption_key, source.input, max_pixels=source.max_pixels
        )


@dataclass(frozen=True, slots=True)
class ClipOutcome:
    """What train-clip did.

    scores: for each held-out split, recall both ways. captions_cut, tokens_cut: captions longer than the model's
    context, and tokens cut off. metrics: the scores on the split `valid`, flat, and chance beside them. rejects:
    samples left out, by reason.
    """

    out: str
    steps: int
    best_step: int
    train_rows: int
    parameters: int
    trained_parameters: int
    captions_cut: int
    tokens_cut: int
    rejects: dict[str, int]
    scores: dict[str, ClipScores]
    metrics: dict[str, float]


def plan_clip(job: ClipJob, view: TrainingView) -> TrainingPlan:
    """What `train_clip` would do. Raises as it does."""
    return plan_with_pictures(job.data, job.out, job.pictures(), job.recipe.train, view)


def train_clip(job: ClipJob, device: str, view: TrainingView | None = None) -> ClipOutcome:
    """Train a CLIP on pairs of pictures and captions into a folder, any fsspec url; run again, it goes on.

    Raises InputError (no data, no such split), ConfigError, CheckpointError (`out` holds another run), NonFiniteLoss.
    """
    recipe, view = job.recipe, view or TrainingView()
    with at_work(job.out, TRAINING) as place:
        torch.manual_seed(recipe.train.seed)
        model = TrainableClip(recipe.clip).to(device)
        with view.preparing("decode") as listener:
            pictures = open_pictures(job.data, picture_cache(job.out), job.pictures(), listener)
        rows = {name: rows_of_split(pictures.splits, name, job.data) for name in (TRAIN, VALID)}
        refuse_few(job.data, counts(rows), recipe.train.batch_size)
        tokens = tokenize(pictures.captions, recipe.clip)
        with view.preparing("image features") as listener:
            pairs = _Pairs(_image_rows(model, pictures, picture_cache(job.out), device, listener), tokens, device)
        watched = _held_out(pictures, VALID)

        def stream(step: int) -> Iterator[ClipBatch]:
            batches = batches_from(rows[TRAIN], recipe.train.batch_size, recipe.train.seed, step)
            return (pairs.batch(some) for some in batches)

        run = Run(Path(place.folder), _describes(job, pictures), place.commit)
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
            captions_cut=cut.captions,
            tokens_cut=cut.tokens,
            rejects=pictures.rejects,
            scores=scores,
            metrics=scores[VALID].numbers() | {"chance_at_10": scores[VALID].chance(10)},
        )
        facts = {"recipe": dataclasses.asdict(recipe), "split": dataclasses.asdict(job.split), "data": job.data}
        write_run_record(place.folder, CLIP_RUN, facts | dataclasses.asdict(outcome))
    return outcome


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


def _held_out(pictures: Pictures, name: str) -> np.ndarray:
    """Rows of a split, at most as many as are scored, drawn with a fixed seed."""
    rows = np.flatnonzero(pictures.splits == name).astype(np.int64)
    if len(rows) <= _MOST_ROWS_TO_SCORE:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, _MOST_ROWS_TO_SCORE, replace=False))


def _score_all(model: TrainableClip, pairs: _Pairs, pictures: Pictures) -> dict[str, ClipScores]:
    """The scores of every split but the training one that has two rows or more, `valid` first."""
    names = sorted(set(pictures.splits) - {TRAIN}, key=lambda name: (name != VALID, name))
    rows = {name: _held_out(pictures, name) for name in names}
    return {name: pairs.score(model, rows[name]) for name in names if len(rows[name]) > 1}


def _describes(job: ClipJob, pictures: Pictures) -> dict[str, Any]:
    """What must stay the same for a run to be continued, besides the training settings."""
    return {
        "clip": dataclasses.asdict(job.recipe.clip),
        "split": dataclasses.asdict(job.split),
        "pictures": pictures.fingerprint,
    }
