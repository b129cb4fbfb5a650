"""Priors in closed form: nothing to train, and hard to beat on little data.

`fit(text, image)` on training rows [n, d], then `sample(text)` → [m, d]. They draw nothing, and look at the text
embedding alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.files import read_tensors
from dalle2_core.inputs import as_tensor, checked_embeddings
from dalle2_core.keywords import from_keywords
from dalle2_core.modules import PreciseBuffers
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.priors.base import Prior
from dalle2_core.rng import RNG

C = TypeVar("C", bound="ClosedForm")


class ClosedForm(PreciseBuffers, Prior):
    """Base of these priors. A subclass keeps its fitted float64 buffers under the names in FITTED."""

    LEAST = torch.float64
    FITTED: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        for name in self.FITTED:
            self.register_buffer(name, None)

    @classmethod
    def from_configs(cls: type[C], network: PriorNetworkConfig, config: Any) -> C:
        """See `Prior`; there is no network."""
        return cls() if config is None else cls(**asdict(config))

    def fit(self: C, text_embed: Tensor, image_embed: Tensor) -> C:
        """Solve in float64, from rows [n, d]. Raises ShapeError if they do not pair up."""
        text_embed, image_embed = as_tensor(text_embed, "text_embed"), as_tensor(image_embed, "image_embed")
        if len(text_embed) != len(image_embed) or len(text_embed) < 2:
            raise ShapeError(
                f"{len(text_embed)} text rows and {len(image_embed)} image rows; a fit needs 2 or more pairs"
            )
        self._fit(text_embed.double(), image_embed.double())
        return self

    def _fit(self, text: Tensor, image: Tensor) -> None:
        raise NotImplementedError

    def _predict(self, text: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self,
        text_embed: Tensor,
        *,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        cond_scale: float = 1.0,
        normalize: bool = True,
        generator: RNG = None,
    ) -> Tensor:
        """Predicted image embeddings [b, d] in the text's dtype. Text tokens and generator are ignored.

        Raises ConfigError before `fit` or for guidance, ShapeError for another width.
        """
        if cond_scale != 1.0:
            raise ConfigError(f"cond_scale is {cond_scale}, but a prior in closed form cannot be guided; leave it at 1")
        if any(getattr(self, name) is None for name in self.FITTED):
            raise ConfigError(f"this {self.KIND} was not fitted; call fit(text_embed, image_embed) first")
        text_embed = as_tensor(text_embed, "text_embed")
        fitted = [getattr(self, name) for name in self.FITTED]
        width = len(fitted[0]) if fitted else text_embed.shape[-1]
        predicted = self._predict(checked_embeddings(text_embed, width, "text_embed", self).double())
        return (F.normalize(predicted, dim=-1) if normalize else predicted).to(text_embed.dtype)

    def predict(self, text_embed: Tensor) -> Tensor:
        """`sample`, by the name of regressions."""
        return self.sample(text_embed)

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    @classmethod
    def from_settings(cls: type[C], settings: Mapping[str, Any]) -> C:
        """See `Prior`."""
        return cls()

    def take_weights(self, folder: Path | str) -> None:
        """See `Prior`; what is not fitted yet has no shape to load into."""
        tensors = read_tensors(Path(folder) / "model.safetensors")
        if set(tensors) != set(self.FITTED):
            raise CheckpointError(f"{folder}: weights and config.json do not belong together")
        for name, tensor in tensors.items():
            setattr(self, name, tensor)


class TextAsImage(ClosedForm):
    """The text embedding itself: the baseline without a prior."""

    KIND = "text-as-image"

    def _fit(self, text: Tensor, image: Tensor) -> None:
        pass

    def _predict(self, text: Tensor) -> Tensor:
        return text


class MeanImage(ClosedForm):
    """The mean of the training image embeddings, whatever the text."""

    KIND = "mean-prior"
    FITTED = ("mean",)
    mean: Tensor

    def _fit(self, text: Tensor, image: Tensor) -> None:
        self.mean = image.mean(dim=0)

    def _predict(self, text: Tensor) -> Tensor:
        return self.mean.expand(len(text), -1).clone()


@dataclass(frozen=True, slots=True)
class RidgeConfig:
    """penalty: of the squared weights; None chooses the one with the best cosine on a tenth of the rows.

    seed: of that tenth.
    """

    penalty: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.penalty is not None and self.penalty < 0:
            raise ConfigError(f"the ridge penalty is {self.penalty}; it must be 0 or more")


class Ridge(ClosedForm):
    """Ridge regression with an intercept that is not penalised: |Y - XW - b|² + penalty |W|², in closed form.

    A linear prior is no straw man: Kandinsky (Razzhigaev et al. 2310.03502, table 2) had its best FID with one.
    """

    KIND = "ridge-prior"
    CONFIG = RidgeConfig
    FITTED = ("weight", "intercept", "chosen")
    weight: Tensor
    intercept: Tensor
    chosen: Tensor

    # Multiples of the mean eigenvalue of X'X, so that the range does not depend on n or on the embeddings' norm.
    SHARES = tuple(10.0**power for power in (-5, -4.5, -4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 1))
    HELD_OUT = 0.1

    def __init__(self, penalty: float | None = None, seed: int = 0) -> None:
        """The fields of RidgeConfig. `chosen` is the penalty that was used."""
        super().__init__()
        self.config = RidgeConfig(penalty, seed)

    def settings(self) -> dict[str, Any]:
        """The config."""
        return {"ridge": asdict(self.config)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Ridge:
        """See `Prior`."""
        config = from_keywords(RidgeConfig, "ridge", settings["ridge"])
        return cls(config.penalty, config.seed)

    def _fit(self, text: Tensor, image: Tensor) -> None:
        penalty = self._choose(text, image) if self.config.penalty is None else self.config.penalty
        self.weight, self.intercept = _solve(text, image, [penalty])[0]
        self.chosen = torch.tensor(penalty, dtype=torch.float64)

    def _predict(self, text: Tensor) -> Tensor:
        return text @ self.weight + self.intercept

    def _choose(self, x: Tensor, y: Tensor) -> float:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.config.seed)).to(x.device)
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


# What `evaluate` sets beside any prior.
BASELINES: dict[str, type[ClosedForm]] = {
    "text": TextAsImage,
    "mean": MeanImage,
    "ridge": Ridge,
}
