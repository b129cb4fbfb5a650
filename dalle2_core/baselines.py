"""Priors in closed form, to measure the trained one against.

Each has `fit(text, image)` on training rows [n, d] and `predict(text)` → [m, d], L2-normalised.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.errors import ConfigError, ShapeError


class Baseline(Protocol):
    def fit(self, text: Tensor, image: Tensor) -> Baseline: ...

    def predict(self, text: Tensor) -> Tensor: ...


class TextAsImage:
    """The text embedding itself: what one has without a prior."""

    def fit(self, text: Tensor, image: Tensor) -> TextAsImage:
        return self

    def predict(self, text: Tensor) -> Tensor:
        return F.normalize(text, dim=-1)


class MeanImage:
    """The mean of the training image embeddings, whatever the text."""

    def fit(self, text: Tensor, image: Tensor) -> MeanImage:
        self.mean = image.double().mean(dim=0)
        return self

    def predict(self, text: Tensor) -> Tensor:
        return F.normalize(self.mean, dim=-1).to(text.dtype).expand(len(text), -1)


class Ridge:
    """Ridge regression with an intercept that is not penalised: |Y - XW - b|² + penalty |W|², in closed form."""

    # Multiples of the mean eigenvalue of X'X, so that the range does not depend on n or on the embeddings' norm.
    SHARES = tuple(10.0**power for power in (-5, -4.5, -4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 1))
    HELD_OUT = 0.1

    def __init__(self, penalty: float | None = None, seed: int = 0) -> None:
        """penalty: None chooses the one with the best cosine on a seeded tenth of the training rows."""
        if penalty is not None and penalty < 0:
            raise ConfigError(f"the ridge penalty is {penalty}; it must be 0 or more")
        self.penalty = penalty
        self.seed = seed

    def fit(self, text: Tensor, image: Tensor) -> Ridge:
        """Solve in float64. Raises ShapeError if the rows do not pair up or are too few to hold some out."""
        if len(text) != len(image) or len(text) < 2:
            raise ShapeError(f"{len(text)} text rows and {len(image)} image rows; ridge needs 2 or more pairs")
        x, y = text.double(), image.double()
        self.chosen = self._choose(x, y) if self.penalty is None else self.penalty
        self.weight, self.intercept = _solve(x, y, [self.chosen])[0]
        return self

    def predict(self, text: Tensor) -> Tensor:
        return F.normalize(text.double() @ self.weight + self.intercept, dim=-1).to(text.dtype)

    def _choose(self, x: Tensor, y: Tensor) -> float:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed)).to(x.device)
        held = max(1, int(self.HELD_OUT * len(x)))
        tried, kept = order[:held], order[held:]
        centred = x[kept] - x[kept].mean(dim=0)
        penalties = [share * float(centred.square().sum()) / x.shape[1] for share in self.SHARES]
        solutions = _solve(x[kept], y[kept], penalties)
        scores = [float(F.cosine_similarity(x[tried] @ w + b, y[tried]).mean()) for w, b in solutions]
        best = max(range(len(scores)), key=scores.__getitem__)
        # The penalty grows with the rows that it is set against.
        return penalties[best] * len(x) / len(kept)


def _solve(x: Tensor, y: Tensor, penalties: list[float]) -> list[tuple[Tensor, Tensor]]:
    """Weight [d, d'] and intercept [d'] for each penalty, from one decomposition of X'X."""
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    values, vectors = torch.linalg.eigh(x.T @ x)
    projected = vectors.T @ (x.T @ y)
    # Directions in which the data has no extent get no weight, also without a penalty.
    floor = float(values[-1]) * 1e-12
    solutions = []
    for penalty in penalties:
        inverse = torch.where(values > floor, 1.0 / (values.clamp(min=floor) + penalty), 0.0)
        weight = vectors @ (inverse[:, None] * projected)
        solutions.append((weight, y_mean - x_mean @ weight))
    return solutions


BASELINES: dict[str, type[TextAsImage] | type[MeanImage] | type[Ridge]] = {
    "text": TextAsImage,
    "mean": MeanImage,
    "ridge": Ridge,
}
