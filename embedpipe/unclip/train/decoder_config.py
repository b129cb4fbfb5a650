"""What `train-decoder` is told, and what it says in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from dalle2_core.presets.decoder import DecoderRecipe
from embedpipe.load.images.join import JoinCounts

from ..data.decoder_batches import ImageSource
from ..runs.split import SplitConfig
from .view import TrainingView


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """How stages are judged on the way. features: `encoder`, an encoder's folder or `inception:FILE`; None: no scores.

    scored, shown: rows sampled for scores and for grids. cond_scale: of guidance in sampling.
    """

    features: str | None = None
    scored: int = 64
    shown: int = 8
    cond_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class DecoderJob:
    """What to train, on what, where to.

    images: image shards, none for where they were; emb: their embeddings; out: the decoder's folder. stages:
    numbers of those to train, from 1; empty for all. vaes: folders of autoencoders for the first stages; cache_latents:
    what these make of the images is made once and kept. trust_old_card: stages of version 0.1 may stand beside new ones
    where all that it recorded of their encoder agrees.
    """

    images: tuple[str, ...]
    emb: str
    out: str
    recipe: DecoderRecipe
    stages: tuple[int, ...] = ()
    vaes: tuple[str, ...] = ()
    split: SplitConfig = field(default_factory=SplitConfig)
    source: ImageSource = field(default_factory=ImageSource)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    cache_latents: bool = False
    trust_old_card: bool = False
    device: str | None = None
    view: TrainingView = field(default_factory=TrainingView)

    def numbers(self) -> tuple[int, ...]:
        """The stages to train, in order. Raises ConfigError for one that is not there."""
        for number in self.stages:
            self.recipe.part(number)
        return tuple(sorted(set(self.stages))) or tuple(range(1, len(self.recipe.stages) + 1))


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What the training of one stage did. best_step: the weights that were kept; metrics: of its last evaluation."""

    stage: int
    folder: str
    image_size: int
    steps: int
    best_step: int
    parameters: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class DecoderOutcome:
    """What train-decoder did. complete: all stages are there, so that `out` is a decoder. dropped: not finite rows."""

    out: str
    complete: bool
    train_rows: int
    valid_rows: int
    dropped: int
    join: JoinCounts
    stages: tuple[StageOutcome, ...]
