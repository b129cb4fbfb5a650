"""How good a decoder's stage is on held-out rows while it trains: its loss, grids to look at, scores of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.conditioning import DecoderBatch
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.training import validation_loss
from dalle2_core.training.fid_kid import frechet_distance, kernel_distance
from dalle2_core.training.stage_samples import smaller_images, stage_samples, true_images
from embedpipe import files
from embedpipe.images.grid import grid_png

from .image_features import ImageFeatures

SAMPLES = "samples"
_IMAGES_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class StageJudge:
    """Judges one stage always on the same rows with the same draws.

    folder: of the stage's run; grids go to samples/ in it. batches: held-out rows. shown: of these, how many are in a
    grid; scored: how many are sampled for scores. features: what scores see; None for no scores. cond_scale: of
    guidance in all sampling.
    """

    folder: str
    batches: Sequence[DecoderBatch]
    shown: int
    scored: int
    seed: int
    features: ImageFeatures | None = None
    cond_scale: float = 1.0

    def evaluate(self, stage: DecoderStage) -> dict[str, float]:
        """Held-out loss; with features the Fréchet and kernel distance of samples to true images besides.

        Where features and embeddings are of one encoder: the mean cosine of a sample to its row's embedding, and that
        of the true image at this size, which is the most to be hoped for.
        """
        found = {"loss": validation_loss(stage, self.batches, stage.device, seed=self.seed)}
        if self.features is None:
            return found
        rows = _first(self.batches, self.scored)
        made = self._features(self._samples(stage, rows))
        true = self._features(torch.cat([true_images(stage, batch) for batch in rows]))
        name = self.features.name
        found |= {f"fid_{name}": frechet_distance(made, true), f"kid_{name}": kernel_distance(made, true)}
        if self.features.same_space:
            stored = torch.cat([batch.image_embed for batch in rows if batch.image_embed is not None])
            found["similarity"] = float(F.cosine_similarity(made, stored).mean())
            found["similarity_true"] = float(F.cosine_similarity(true, stored).mean())
        return found

    def show(self, stage: DecoderStage, step: int) -> None:
        """Leave a grid of true images, what an upsampler starts from, and what the stage makes; once for each step."""
        location = files.join(self.folder, SAMPLES, f"step-{step:09d}.png")
        if files.exists(location):
            return
        rows = _first(self.batches, self.shown)
        true = torch.cat([true_images(stage, batch) for batch in rows])
        smaller = [it for it in (smaller_images(stage, batch) for batch in rows) if it is not None]
        grid = [true, *([torch.cat(smaller)] if smaller else []), self._samples(stage, rows)]
        files.write_bytes(location, grid_png([_bytes(images).numpy() for images in grid], grid_side(stage)))

    def _samples(self, stage: DecoderStage, rows: Sequence[DecoderBatch]) -> Tensor:
        return stage_samples(stage, rows, seed=self.seed, cond_scale=self.cond_scale, max_batch_size=_IMAGES_AT_ONCE)

    def _features(self, images: Tensor) -> Tensor:
        assert self.features is not None
        return torch.cat([self.features.of(part) for part in torch.split(images, _IMAGES_AT_ONCE)])


def grid_side(stage: DecoderStage) -> int:
    """Pixels a side of a picture in a grid: whole multiples, large enough to be seen."""
    size = stage.config.image_size
    return size * max(1, 96 // size)


def _first(batches: Sequence[DecoderBatch], most: int) -> list[DecoderBatch]:
    """The first `most` rows, or all."""
    found, left = [], most
    for batch in batches:
        if left > 0:
            found.append(batch.part(0, min(left, len(batch))))
            left -= len(found[-1])
    return found


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0.0, 1.0) * 255).round().to(torch.uint8)
