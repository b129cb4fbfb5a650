"""The shard plan: a number for each input shard. It is made once and only grows; no number ever changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .accounts import Accounts
from .types import SourceShard


@dataclass(frozen=True, slots=True)
class PlanChange:
    """The result of updating a plan for the current input.

    shards: the grown plan. added: the number of new shards. vanished: numbers of shards whose input no longer exists.
    changed: numbers of shards whose input differs in size or change mark. listing: the files of the input's folder, if
    it is one.
    """

    shards: tuple[SourceShard, ...]
    added: int
    vanished: tuple[int, ...]
    changed: tuple[int, ...]
    listing: Accounts | None = None


def grow_plan(
    planned: Sequence[SourceShard], found: Sequence[SourceShard], listing: Accounts | None = None
) -> PlanChange:
    """Append the shards of `found` with names not in `planned`, whatever their sort order."""
    now = {shard.name: shard for shard in found}
    known = {shard.name for shard in planned}
    fresh = [shard for shard in found if shard.name not in known]
    vanished = tuple(i for i, shard in enumerate(planned) if shard.name not in now)
    changed = tuple(i for i, shard in enumerate(planned) if shard.name in now and now[shard.name] != shard)
    return PlanChange((*planned, *fresh), len(fresh), vanished, changed, listing)
