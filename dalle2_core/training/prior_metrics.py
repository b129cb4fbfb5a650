"""How good predicted image embeddings are, on rows that were not trained on, and which of several is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
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
    norm = _norm(predicted, image, text)
    rows = _row_scores(predicted, image)
    predicted, image, text = (F.normalize(it.double(), dim=-1) for it in (predicted, image, text))
    n = len(predicted)
    unrelated = image[_derangement(n, seed).to(image.device)]
    return PriorScores(
        **{name: float(values.mean()) for name, values in rows.items()},
        cosine_text=float((predicted * text).sum(dim=1).mean()),
        cosine_unrelated=float((predicted * unrelated).sum(dim=1).mean()),
        norm=norm,
        spread=_mean_pairwise_cosine(predicted),
        spread_images=_mean_pairwise_cosine(image),
        n=n,
    )


def _norm(predicted: Tensor, image: Tensor, text: Tensor) -> float:
    """The mean norm of predictions, once they are looked at. Raises ShapeError as `evaluate_prior` does."""
    if not (predicted.shape == image.shape == text.shape) or predicted.ndim != 2 or len(predicted) < 2:
        raise ShapeError(
            f"predicted {tuple(predicted.shape)}, image {tuple(image.shape)} and text {tuple(text.shape)} must all "
            "be the same [n, d], with n of 2 or more"
        )
    if not bool(torch.isfinite(predicted).all()):
        bad = int((~torch.isfinite(predicted).all(dim=1)).sum())
        raise ShapeError(f"{bad} of {len(predicted)} predictions hold NaN or infinity; the prior is broken")
    return float(predicted.double().norm(dim=1).mean())


def _row_scores(predicted: Tensor, image: Tensor) -> dict[str, Tensor]:
    """float64 [n] by the name of each deciding metric, which is its mean."""
    predicted, image = (F.normalize(it.double(), dim=-1) for it in (predicted, image))
    ranks = _ranks(predicted, image)
    recalls = {f"recall_at_{k}": (ranks <= k).double() for k in (1, 5, 10)}
    return {"cosine_image": (predicted * image).sum(dim=1), **recalls}


# Whether a metric is better when high; the others describe and do not decide.
DECIDING: dict[str, bool] = {
    "cosine_image": True,
    "recall_at_1": True,
    "recall_at_5": True,
    "recall_at_10": True,
}


# Two predictors tie where the mean difference of their rows is within so many of its standard errors (95%).
TIE_ERRORS = 1.96


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of several predictors on the same rows.

    winners: metric → the best predictor and all that tie with it: their rows differ by less than sampling explains.
    errors: by predictor, the standard error of each deciding metric. notes: on the rows, in plain words.
    """

    scores: Mapping[str, PriorScores]
    winners: Mapping[str, tuple[str, ...]]
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Plain words: who wins what."""
        wins: dict[tuple[str, ...], list[str]] = {}
        for metric, names in self.winners.items():
            wins.setdefault(names, []).append(metric)
        parts = [
            f"{_listed(names)} {'wins' if len(names) == 1 else 'tie on'} {', '.join(metrics)}"
            for names, metrics in wins.items()
        ]
        rows = next(iter(self.scores.values())).n
        return f"On {rows} held-out rows, {'; '.join(parts)}."

    def table(self) -> list[dict[str, str | float]]:
        """One row for each predictor, for printing or JSON; standard errors as `METRIC_error`."""
        return [
            {"predictor": name, **asdict(scores), **{f"{it}_error": e for it, e in self.errors.get(name, {}).items()}}
            for name, scores in self.scores.items()
        ]


def compare_priors(predictions: Mapping[str, Tensor], image: Tensor, text: Tensor, *, seed: int = 0) -> Comparison:
    """Score named predictions [n, d] on the same rows and say which is best on each deciding metric.

    A predictor ties with the best one where the mean of the differences between their rows is within TIE_ERRORS of its
    standard error: a comparison of pairs, which tells more than the errors of each.
    """
    scores = {name: evaluate_prior(it, image, text, seed=seed) for name, it in predictions.items()}
    rows = {name: _row_scores(it, image) for name, it in predictions.items()}
    winners = {}
    for metric, high in DECIDING.items():
        sign = 1.0 if high else -1.0
        best = max(scores, key=lambda name: sign * getattr(scores[name], metric))
        ahead = {name: sign * (rows[best][metric] - rows[name][metric]) for name in scores}
        winners[metric] = tuple(
            name for name, lead in ahead.items() if float(lead.mean()) <= TIE_ERRORS * _standard_error(lead)
        )
    errors = {name: {it: _standard_error(values) for it, values in found.items()} for name, found in rows.items()}
    return Comparison(scores, winners, errors)


def _listed(names: tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _standard_error(values: Tensor) -> float:
    """Of the mean of [n] values."""
    return float(values.std(correction=1)) / math.sqrt(len(values))


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
