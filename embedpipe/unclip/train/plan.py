"""What the commands that train have in common: which rows, on what device, what of a run is left to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dalle2_core.training import TrainConfig
from dalle2_core.training.checkpoint import steps_named
from embedpipe import files
from embedpipe.clip_model.encoder_card import OPEN_CLIP_RULES, ImageRules, PreprocessSpec
from embedpipe.errors import InputError
from embedpipe.images.rules import image_rules
from embedpipe.load import EmbeddingDataset, rows_of_split
from embedpipe.load.images.decoded_cache import PictureOptions, Pictures, count_pictures
from embedpipe.load.split import TRAIN, VALID
from embedpipe.mirror import working_folder

from ..data.row_policy import RowPolicy
from ..runs.extend import Extension, extension, say
from ..runs.resume import newest_checkpoint
from ..runs.split import SplitConfig
from ..runs.trained_rows import write_trained_rows
from .view import TrainingView

if TYPE_CHECKING:
    from dalle2_core.presets.autoencoder import VaeRecipe
    from dalle2_core.presets.clip import ClipRecipe
    from dalle2_core.presets.decoder import DecoderRecipe
    from dalle2_core.presets.prior import PriorRecipe

NOT_FINITE = "not finite"
IMAGE_RULES = "image_rules"


@dataclass(frozen=True, slots=True)
class PictureSource:
    """How DATA is read: see `PictureOptions`. caption_key: None where captions are not needed."""

    input: str
    max_pixels: int
    caption_key: str | None = None

    def options(self, spec: PreprocessSpec, split: SplitConfig, out: str) -> PictureOptions:
        """How DATA becomes what a model takes. out: the run's folder; one that goes on keeps its rules."""
        return PictureOptions(
            spec,
            split.column,
            split.valid_share,
            self.caption_key or "caption",
            self.input,
            max_pixels=self.max_pixels,
            split_by=split.by,
            need_caption=self.caption_key is not None,
            rules=_rules_of_run(out),
        )


@dataclass(frozen=True, slots=True)
class StepsLeft:
    """Of a run: the steps it has in all, those its newest checkpoint has done, and those that are left."""

    steps: int
    done: int
    left: int


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a training would do, as `--dry-run` says it.

    splits: rows by split. left_out: rows or samples that would be left out, by reason. runs: steps by run folder; none
    for what is fitted in closed form. join: of train-decoder, what became of rows and images, see `JoinCounts`.
    recipe: the preset with all that was changed in it. stages: of train-decoder, the numbers of those to train.
    extended: how a run that is there would be extended, by its folder, in words.
    """

    splits: Mapping[str, int]
    left_out: Mapping[str, int]
    runs: Mapping[str, StepsLeft]
    recipe: PriorRecipe | DecoderRecipe | ClipRecipe | VaeRecipe
    join: Mapping[str, int] = field(default_factory=dict)
    stages: tuple[int, ...] = ()
    extended: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _rules_of_run(out: str) -> ImageRules:
    """The rules by which a run decodes pictures: those of new data sets; its own, if it is continued.

    Checkpoints that record none are of the time when open_clip's were the only ones.
    """
    found = newest_checkpoint(out)
    if found is None:
        return image_rules()
    recorded = found["identity"].get(IMAGE_RULES)
    return OPEN_CLIP_RULES if recorded is None else ImageRules(**recorded)


def described_rules(rules: ImageRules) -> dict[str, Any]:
    """What a run's checkpoints record of the rules, which stay the same when it is continued."""
    return {} if rules == OPEN_CLIP_RULES else {IMAGE_RULES: asdict(rules)}


def steps_left(out: str, config: TrainConfig) -> StepsLeft:
    """Of the run `out`, any fsspec url: by the newest checkpoint's name, without reading it."""
    found = steps_named(files.names(files.join(out, "checkpoints")))
    done = min(config.steps, max(found, default=0))
    return StepsLeft(config.steps, done, config.steps - done)


def rows_by_split(
    dataset: EmbeddingDataset,
    split: SplitConfig,
    policy: RowPolicy,
    sides: Sequence[str],
    among: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], int]:
    """The training and the held-out rows (ascending) that are usable, and how many the policy left out.

    among: of these alone. Raises DatasetError where a split has no rows or the policy refuses some.
    """
    names = split.names(dataset)
    there = {name: rows_of_split(names, name, dataset.path) for name in (TRAIN, VALID)}
    if among is not None:
        there = {name: np.intersect1d(rows, among, assume_unique=True) for name, rows in there.items()}
    good = policy.checked(dataset, np.sort(np.concatenate(list(there.values()))), sides)
    rows = {name: np.intersect1d(found, good, assume_unique=True) for name, found in there.items()}
    return rows, sum(len(there[name]) - len(rows[name]) for name in rows)


def refuse_few(
    data: str,
    rows: Mapping[str, int],
    batch_size: int | None,
    setting: str = "train.batch_size",
    held_out: int = 1,
) -> None:
    """Raise InputError for fewer training rows than a batch, or fewer held-out ones than `held_out`.

    rows: how many there are of each split. batch_size: None for what takes no batches. setting: what --set calls it.
    """
    train, valid = rows[TRAIN], rows[VALID]
    if batch_size is not None and batch_size > train:
        raise InputError(
            f"{data}: {train:,} training rows are fewer than a batch of {batch_size:,}",
            f"Give `{setting}={min(train, max(2, train // 4))}`",
        )
    if valid < held_out:
        raise InputError(f"{data}: {valid} held-out rows; {held_out} or more are needed", "Give a larger `valid_share`")


def rows_per_split(rows: Mapping[str, Sized]) -> dict[str, int]:
    """How many rows each split has."""
    return {name: len(some) for name, some in rows.items()}


def picture_rows(pictures: Pictures, data: str, batch_size: int, held_out: int = 1) -> dict[str, np.ndarray]:
    """The training and the held-out rows. Raises InputError for fewer than a batch, or than `held_out`."""
    rows = {name: rows_of_split(pictures.splits, name, data) for name in (TRAIN, VALID)}
    refuse_few(data, rows_per_split(rows), batch_size, held_out=held_out)
    return rows


def picture_cache(out: str) -> str:
    """The folder of a run's decoded pictures."""
    return files.join(working_folder(out), "cache")


def plan_with_pictures(
    data: str,
    out: str,
    options: PictureOptions,
    recipe: ClipRecipe | VaeRecipe,
    view: TrainingView,
    describes: Callable[[str], Mapping[str, Any]],
    held_out: int = 1,
) -> TrainingPlan:
    """Of a training on pictures: they are counted, none is decoded.

    describes: the pictures' fingerprint → what must stay the same. Raises InputError, EmptyInput, DatasetError,
    RunMismatch.
    """
    with view.preparing("count") as listener:
        found = count_pictures(data, picture_cache(out), options, listener)
    for name in (TRAIN, VALID):
        rows_of_split(np.array(list(found.splits), dtype=object), name, data)
    refuse_few(data, found.splits, recipe.train.batch_size, held_out=held_out)
    said = picture_extension(out, describes(found.fingerprint), recipe, found.marks, found.names).said
    extended = {out: said} if said else {}
    return TrainingPlan(found.splits, found.rejects, {out: steps_left(out, recipe.train)}, recipe, extended=extended)


def picture_extension(
    folder: str,
    describes: Mapping[str, Any],
    recipe: ClipRecipe | VaeRecipe,
    marks: np.ndarray | None,
    names: np.ndarray,
) -> Extension:
    """How a run on pictures is extended, see `extension`. marks, names: of all pictures, and their splits."""
    return extension(folder, describes, recipe.train, recipe.optim, lambda: train_marks(marks, names))


def begin_with_pictures(
    folder: str, out: str, describes: Mapping[str, Any], recipe: ClipRecipe | VaeRecipe, pictures: Pictures
) -> Extension:
    """How the run in `folder`, that of `out` or its working copy, is extended: said, and its rows recorded."""
    found = picture_extension(folder, describes, recipe, pictures.marks, pictures.splits)
    say(out, found)
    write_trained_rows(folder, train_marks(pictures.marks, pictures.splits), bool(found.grown))
    return found


def end_with_pictures(folder: str, pictures: Pictures) -> None:
    """Record the rows of a run that is done."""
    write_trained_rows(folder, train_marks(pictures.marks, pictures.splits))


def train_marks(marks: np.ndarray | None, names: np.ndarray) -> np.ndarray:
    """The marks of the training pictures; none where they are not known."""
    return np.empty(0, np.uint64) if marks is None else marks[names == TRAIN]
