"""Random numbers that belong to rows: a row's are the same however its batch is cut over processes and parts.

Models draw through `normal`, `uniform`, `integers` and `coin`, and need not know which of these they were given:

    torch.Generator    as torch draws from it; the numbers depend on the shape of what is drawn
    RowDraws           each row's numbers depend on (seed, place of the row) alone
    None               torch's global generator
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# A generator costs as much as some hundred numbers, and a piece that is cut is drawn whole: a compromise.
_ROWS_PER_PIECE = 16


class PerSampleRNG:
    """Draws for rows `start` to `start + rows` of something larger: a global batch, a shard.

    Rows are drawn in pieces of 16 that lie at fixed places, each from a generator of its own. Every shape that is
    asked for begins with the rows, or with a multiple of them: then each row has so many draws, one behind the other.
    """

    def __init__(self, seed: int, start: int, rows: int, device: torch.device) -> None:
        first = start // _ROWS_PER_PIECE
        pieces = range(first, -(-(start + rows) // _ROWS_PER_PIECE))
        self.rows = rows
        self._offset = start - first * _ROWS_PER_PIECE
        self._pieces = [_seeded(device, seed, "rows", piece) for piece in pieces]
        self._common = _seeded(torch.device("cpu"), seed, "common")

    def of_rows(self, shape: Sequence[int], draw: Callable[[tuple[int, ...], torch.Generator], Tensor]) -> Tensor:
        """A tensor of that shape; `draw(shape, generator)` draws a piece of it."""
        assert shape[0] % self.rows == 0, f"{shape[0]} draws for {self.rows} rows"
        whole = (_ROWS_PER_PIECE, shape[0] // self.rows, *shape[1:])
        drawn = torch.cat([draw(whole, generator) for generator in self._pieces])
        return drawn[self._offset : self._offset + self.rows].reshape(tuple(shape))

    def in_common(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """A draw that all rows share, whichever part of the batch they are in; on the host, where it decides."""
        return draw(self._common)


RNG: TypeAlias = torch.Generator | PerSampleRNG | None


def normal(shape: Sequence[int], draws: RNG, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal; `shape` begins with the rows."""

    def draw(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    return draws.of_rows(shape, draw) if isinstance(draws, PerSampleRNG) else draw(tuple(shape), draws)


def uniform(shape: Sequence[int], draws: RNG, device: torch.device) -> Tensor:
    """Uniform in [0, 1); `shape` begins with the rows."""

    def draw(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    return draws.of_rows(shape, draw) if isinstance(draws, PerSampleRNG) else draw(tuple(shape), draws)


def integers(low: int, high: int, shape: Sequence[int], draws: RNG, device: torch.device) -> Tensor:
    """int64, uniform in [low, high); `shape` begins with the rows."""

    def draw(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, device=device)

    return draws.of_rows(shape, draw) if isinstance(draws, PerSampleRNG) else draw(tuple(shape), draws)


def coin(probability: float, draws: RNG) -> bool:
    """True with that probability: one toss for the whole batch."""

    def draw(generator: torch.Generator | None) -> Tensor:
        return torch.rand((), generator=generator, device=None if generator is None else generator.device)

    tossed = draws.in_common(draw) if isinstance(draws, PerSampleRNG) else draw(draws)
    return float(tossed) < probability


def common_seed(draws: RNG) -> int:
    """A seed in [0, 2^62) that all rows share."""

    def draw(generator: torch.Generator | None) -> Tensor:
        return torch.randint(2**62, (), generator=generator, device=None if generator is None else generator.device)

    return int(draws.in_common(draw) if isinstance(draws, PerSampleRNG) else draw(draws))


def derived_seed(*what: int | str) -> int:
    """A seed in [0, 2^63) that depends on all of these and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _seeded(device: torch.device, *what: int | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(derived_seed(*what))
