"""How good predicted image embeddings are, on rows that were not trained on, and which of several is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.errors import ShapeError
from dalle2_core.training.seeding import step_draws
from dalle2_core.types import SizedBatch, Trainable

B = TypeVar("B", bound=SizedBatch)


@dataclass(frozen=True, slots=True)
class PriorScores:
    """Means over n held-out rows.

    cosine_image: of the prediction to the row's true image embedding. cosine_text: to its text embedding.
    cosine_unrelated: to the image embedding of another row.
    recall_at_1, _5, _10: share of rows whose true image is among the k held-out images nearest to the prediction.
    norm: of the predictions before they were normalised.
    spread: mean cosine between the predictions of different rows: 1 means they are all the same.
    spread_images: the same of the true images; a good prior comes near it, a mean stays far above.
    n: rows.
    """

    cosine_image: float
    cosine_text: float
    cosine_unrelated: float
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    norm: float
    spread: float
    spread_images: float
    n: int


def evaluate_prior(predicted: Tensor, image: Tensor, text: Tensor, *, seed: int = 0) -> PriorScores:
    """Score predictions [n, d] against the true image and text embeddings [n, d] of the same rows.

    Rank of a row: 1 + the number of *different* images that lie strictly nearer to the prediction than the true one.
    Rows with an equal image embedding thus count once, and an image that ties with the true one does not push it
    down. A constant prediction therefore ranks images by their nearness to it and gains nothing from ties.

    Raises ShapeError if the shapes differ, there are fewer than 2 rows, or a value is not finite.
    """
    if not (predicted.shape == image.shape == text.shape) or predicted.ndim != 2 or len(predicted) < 2:
        raise ShapeError(
            f"predicted {tuple(predicted.shape)}, image {tuple(image.shape)} and text {tuple(text.shape)} must all "
            "be the same [n, d], with n of 2 or more"
        )
    if not bool(torch.isfinite(predicted).all()):
        bad = int((~torch.isfinite(predicted).all(dim=1)).sum())
        raise ShapeError(f"{bad} of {len(predicted)} predictions hold NaN or infinity; the prior is broken")
    norm = float(predicted.double().norm(dim=1).mean())
    predicted, image, text = (F.normalize(it.double(), dim=-1) for it in (predicted, image, text))
    n = len(predicted)
    ranks = _ranks(predicted, image)
    unrelated = image[_derangement(n, seed).to(image.device)]
    return PriorScores(
        cosine_image=float((predicted * image).sum(dim=1).mean()),
        cosine_text=float((predicted * text).sum(dim=1).mean()),
        cosine_unrelated=float((predicted * unrelated).sum(dim=1).mean()),
        recall_at_1=float((ranks <= 1).double().mean()),
        recall_at_5=float((ranks <= 5).double().mean()),
        recall_at_10=float((ranks <= 10).double().mean()),
        norm=norm,
        spread=_mean_pairwise_cosine(predicted),
        spread_images=_mean_pairwise_cosine(image),
        n=n,
    )


# Whether a metric is better when high; the others describe and do not decide.
DECIDING: dict[str, bool] = {
    "cosine_image": True,
    "recall_at_1": True,
    "recall_at_5": True,
    "recall_at_10": True,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of several predictors on the same rows. winners: metric → names that share the best value."""

    scores: Mapping[str, PriorScores]
    winners: Mapping[str, tuple[str, ...]]

    def sentence(self) -> str:
        """Plain words: who wins what."""
        wins: dict[tuple[str, ...], list[str]] = {}
        for metric, names in self.winners.items():
            wins.setdefault(names, []).append(metric)
        parts = [
            f"{' and '.join(names)} {'wins' if len(names) == 1 else 'share'} {', '.join(metrics)}"
            for names, metrics in wins.items()
        ]
        rows = next(iter(self.scores.values())).n
        return f"On {rows} held-out rows, {'; '.join(parts)}."

    def table(self) -> list[dict[str, str | float]]:
        """One row for each predictor, for printing or JSON."""
        return [{"predictor": name, **asdict(scores)} for name, scores in self.scores.items()]


def compare_priors(predictions: Mapping[str, Tensor], image: Tensor, text: Tensor, *, seed: int = 0) -> Comparison:
    """Score named predictions [n, d] on the same rows and say which is best on each deciding metric."""
    scores = {name: evaluate_prior(it, image, text, seed=seed) for name, it in predictions.items()}
    winners = {}
    for metric in (item.name for item in fields(PriorScores) if item.name in DECIDING):
        sign = 1.0 if DECIDING[metric] else -1.0
        values = {name: sign * getattr(score, metric) for name, score in scores.items()}
        best = max(values.values())
        winners[metric] = tuple(name for name, value in values.items() if value == best)
    return Comparison(scores, winners)


def _ranks(predicted: Tensor, image: Tensor, rows_at_once: int = 1024) -> Tensor:
    """Rank of each row's true image, [n] int64. Blocks of rows keep memory at rows_at_once × n."""
    gallery, which = torch.unique(image, dim=0, return_inverse=True)
    ranks = []
    for start in range(0, len(predicted), rows_at_once):
        likeness = predicted[start : start + rows_at_once] @ gallery.T
        true = likeness.gather(1, which[start : start + rows_at_once, None])
        ranks.append(1 + (likeness > true).sum(dim=1))
    return torch.cat(ranks)


def _derangement(n: int, seed: int) -> Tensor:
    """A permutation of n rows that leaves none in its place: each row of a shuffled circle gets the next one."""
    circle = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(circle)
    other[circle] = circle.roll(-1)
    return other


def _mean_pairwise_cosine(rows: Tensor) -> float:
    """Mean over all ordered pairs of different rows; rows [n, d] are normalised."""
    n = len(rows)
    return float((rows.sum(dim=0).square().sum() - n) / (n * (n - 1)))


@torch.no_grad()
def validation_loss(model: Trainable[B], batches: Iterable[B], device: torch.device, *, seed: int = 0) -> float:
    """Mean training loss over the rows of `batches`, with draws that depend on the seed and a row's place alone."""
    total, count = 0.0, 0
    for batch in batches:
        draws = step_draws(seed, 0, count, len(batch), device)
        total += float(model.loss(batch.to(device), draws).loss) * len(batch)
        count += len(batch)
    if count == 0:
        raise ShapeError("there are no rows to validate on")
    return total / count
