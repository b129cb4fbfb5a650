"""The shard plan: a number for each input shard. It is made once and only grows; no number ever changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .types import SourceShard


@dataclass(frozen=True, slots=True)
class PlanChange:
    """What became of a plan when it met the input as it is now.

    shards: the plan, grown. added: how many shards are new. vanished: numbers whose input is no longer there.
    changed: numbers whose input differs from what was planned in size or change mark.
    """

    shards: tuple[SourceShard, ...]
    added: int
    vanished: tuple[int, ...]
    changed: tuple[int, ...]


def grow(planned: Sequence[SourceShard], found: Sequence[SourceShard]) -> PlanChange:
    """Append the shards of `found` that `planned` does not know by name, whatever their names sort like."""
    now = {shard.name: shard for shard in found}
    known = {shard.name for shard in planned}
    fresh = [shard for shard in found if shard.name not in known]
    vanished = tuple(i for i, shard in enumerate(planned) if shard.name not in now)
    changed = tuple(i for i, shard in enumerate(planned) if shard.name in now and now[shard.name] != shard)
    return PlanChange((*planned, *fresh), len(fresh), vanished, changed)
