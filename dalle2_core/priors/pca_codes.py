"""Image embeddings as sequences of codes: principal components, each quantized into buckets."""

from __future__ import annotations

import torch
from torch import Tensor

from dalle2_core.errors import ShapeError
from dalle2_core.modules import PreciseBuffers


class PCAQuantizer(PreciseBuffers):
    """[n, d] ↔ k codes: components by falling variance, in buckets of equal width.

    Ramesh et al. 2204.06125, section 2.2.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    width: Tensor
    kept_variance: Tensor

    def __init__(self, dim: int, codes: int, buckets: int) -> None:
        """dim: of the embeddings. codes: k, at most dim. Until `fit`, codes mean nothing."""
        super().__init__()
        self.buckets = buckets
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("components", torch.eye(codes, dim))
        self.register_buffer("low", torch.full((codes,), -1.0))
        self.register_buffer("width", torch.full((codes,), 2.0 / buckets))
        self.register_buffer("kept_variance", torch.zeros(()))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Components and buckets of rows [n, d]. `kept_variance` becomes the share of variance that k components hold.

        Raises ShapeError if there are fewer than 2 rows.
        """
        if len(rows) < 2:
            raise ShapeError(f"{len(rows)} rows have no principal components; give 2 or more")
        rows = rows.double()
        mean = rows.mean(dim=0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
        # eigh gives them rising; the sign of a component is arbitrary, so its largest entry is made positive.
        components = vectors.flip(1)[:, : len(self.low)].T
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        components = components * largest.sign()
        coordinates = (rows - mean) @ components.T
        low, high = coordinates.amin(dim=0), coordinates.amax(dim=0)
        span = high - low
        # A component without variance holds rounding errors alone, which shall not become codes.
        span = span.clamp(min=max(1e-3 * float(span.max()), 1e-12))
        self.mean.copy_(mean)
        self.components.copy_(components)
        self.low.copy_((low + high - span) / 2)
        self.width.copy_(span / self.buckets)
        self.kept_variance.copy_(values.flip(0)[: len(low)].sum() / values.sum().clamp(min=1e-30))

    def encode(self, rows: Tensor) -> Tensor:
        """Codes [n, k] int64; values outside the fitted range get the outermost bucket."""
        coordinates = (rows.to(self.mean.dtype) - self.mean) @ self.components.T
        return ((coordinates - self.low) / self.width).floor().long().clamp(0, self.buckets - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """[n, d] from the centres of the buckets."""
        coordinates = self.low + (codes + 0.5) * self.width
        return coordinates @ self.components + self.mean
