"""A codebook: vectors become the nearest of K codes, which follow the vectors by a moving average.

van den Oord et al. 1711.00937, section 3.2 and appendix A.1. Shapes: n vectors, d their width, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.collectives import Collectives
from dalle2_core.rng import RNG, common_seed, integers

# Of each row so many vectors are remembered, for codes to be begun from.
_REMEMBERED_PER_ROW = 32
_KMEANS_ROUNDS = 10
# Distances computed at once: 64 MiB of them.
_DISTANCES_AT_ONCE = 1 << 24


class Quantized(NamedTuple):
    """What a codebook makes of latents [b, d, h, w].

    vectors: [b, d, h, w], the codes; their gradient goes to the latents as it is. codes: [b, h, w] int64.
    commitment: scalar, how far the latents are from their codes; its gradient goes to the latents.
    """

    vectors: Tensor
    codes: Tensor
    commitment: Tensor


@dataclass(slots=True)
class _Seen:
    """What the codes are to follow: of the parts of one step's batch, added up."""

    counts: Tensor
    sums: Tensor
    seed: int
    some: list[Tensor] = field(default_factory=list)


class Codebook(nn.Module):
    """K codes [K, d]. In training mode a forward pass remembers what it saw, and `settle` moves the codes there.

    So a batch may be taken in parts and by several processes: the codes move once a step, by all of it.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    begun: Tensor

    def __init__(
        self, size: int, dim: int, *, decay: float, cosine: bool, kmeans_init: bool, revive_below: float
    ) -> None:
        """A codebook of random codes.

        decay: of the moving averages. cosine: compare directions; latents and codes must have norm 1 (Yu et al.
        2110.04627). kmeans_init: the first batch passes unquantised, and its k-means become the codes.
        revive_below: a code used for less than this share of size⁻¹ of the vectors is put on one of them.
        """
        super().__init__()
        self.decay, self.cosine, self.revive_below = decay, cosine, revive_below
        codes = self._fitting(torch.randn(size, dim))
        self.register_buffer("codes", codes)
        # Moving averages of how many vectors a code stands for, and of their sum.
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("begun", torch.tensor(not kmeans_init))
        self._seen: _Seen | None = None

    def forward(self, latents: Tensor, draws: RNG = None) -> Quantized:
        """latents: [b, d, h, w]. draws: for what is remembered in training."""
        batch, dim, height, width = latents.shape
        # Small differences decide between codes: never in half precision.
        flat = latents.permute(0, 2, 3, 1).reshape(-1, dim).float()
        nearest = self.nearest(flat.detach())
        if self.training and torch.is_grad_enabled():
            self._remember(flat.detach().view(batch, -1, dim), nearest, draws)
        codes = nearest.view(batch, height, width)
        if self.training and not bool(self.begun):
            return Quantized(latents, codes, latents.new_zeros(()))
        vectors = self.vectors(codes).to(latents.dtype)
        commitment = F.mse_loss(latents, vectors)
        return Quantized(latents + (vectors - latents).detach(), codes, commitment)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Numbers [n] of the codes nearest to vectors [n, d]; of equals the first."""
        return _nearest(vectors, self.codes)

    def vectors(self, codes: Tensor) -> Tensor:
        """[b, h, w] numbers of codes → [b, d, h, w]."""
        return F.embedding(codes, self.codes).permute(0, 3, 1, 2)

    @torch.no_grad()
    def after_step(self, together: Collectives) -> None:
        """Move the codes by what was seen since the last call, by all processes; nothing seen, nothing moves."""
        if self._seen is None:
            return
        seen, self._seen = self._seen, None
        counts, sums = together.total(seen.counts), together.total(seen.sums)
        if not bool(self.begun):
            self._begin(_gathered(seen.some, together), seen.seed)
            return
        # 1711.00937, equations 6 to 8.
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        # Of a code that no vector chose both fell by the same factor: it stays, to the bit.
        moved = self.sums / self.counts.clamp(min=1e-20)[:, None]
        self.codes.copy_(torch.where((counts > 0)[:, None], self._fitting(moved), self.codes))
        even_use = float(counts.sum()) / len(self.codes)
        dead = self.counts < self.revive_below * even_use
        if bool(dead.any()):
            self._revive(dead, _gathered(seen.some, together), even_use, seen.seed)

    def _remember(self, rows: Tensor, nearest: Tensor, draws: RNG) -> None:
        """rows: [b, h w, d]."""
        seed = common_seed(draws)
        if self._seen is None:
            self._seen = _Seen(torch.zeros_like(self.counts), torch.zeros_like(self.sums), seed)
        seen = self._seen
        flat = rows.flatten(0, 1)
        seen.counts.index_add_(0, nearest, torch.ones_like(nearest, dtype=seen.counts.dtype))
        seen.sums.index_add_(0, nearest, flat)
        kept = (len(rows), min(rows.shape[1], _REMEMBERED_PER_ROW))
        places = integers(0, rows.shape[1], kept, draws, rows.device)
        seen.some.append(rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2])).flatten(0, 1))

    def _begin(self, vectors: Tensor, seed: int) -> None:
        """k-means (Lloyd) of some vectors [n, d] become the codes."""
        codes = _drawn(vectors, len(self.codes), seed)
        counts = torch.zeros_like(self.counts)
        for _ in range(_KMEANS_ROUNDS):
            nearest = _nearest(vectors, codes)
            counts = torch.bincount(nearest, minlength=len(codes)).to(codes.dtype)
            sums = torch.zeros_like(codes).index_add_(0, nearest, vectors)
            means = self._fitting(sums / counts.clamp(min=1)[:, None])
            codes = torch.where((counts > 0)[:, None], means, codes)
        # As if each had been used evenly so far: what k-means left unused shall not die at once.
        self.codes.copy_(codes)
        self.counts.fill_(float(counts.mean()))
        self.sums.copy_(codes * self.counts[:, None])
        self.begun.fill_(True)

    def _revive(self, dead: Tensor, vectors: Tensor, even_use: float, seed: int) -> None:
        codes = _drawn(vectors, int(dead.sum()), seed)
        self.codes[dead] = codes
        self.counts[dead] = even_use
        self.sums[dead] = codes * even_use

    def _fitting(self, codes: Tensor) -> Tensor:
        return F.normalize(codes, dim=-1) if self.cosine else codes


def _nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    # |v - c|² = |v|² - 2 v·c + |c|², of which |v|² is the same for all codes.
    squares = codes.square().sum(dim=1)
    at_once = max(1, _DISTANCES_AT_ONCE // len(codes))
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.cat(
            [torch.addmm(squares, part, codes.T, alpha=-2).argmin(dim=1) for part in torch.split(vectors, at_once)]
        )


def _gathered(some: list[Tensor], together: Collectives) -> Tensor:
    """Remembered vectors of all processes, in the order of the global batch."""
    mine = torch.cat(some)
    everyones = together.gather(mine.cpu().numpy())
    return torch.cat([torch.from_numpy(it) for it in everyones]).to(mine.device)


def _drawn(vectors: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the vectors at random, each once as long as there are enough."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(vectors), generator=generator) for _ in range(-(-count // len(vectors)))]
    return vectors[torch.cat(orders)[:count].to(vectors.device)]
