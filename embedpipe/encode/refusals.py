"""Folders that `encode` does not write into: its own input, and what is something else."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .. import files
from ..errors import RunMismatch
from ..folder_kind import EMBEDDINGS, NOTHING, OTHER, what_is
from ..read.locations import root
from ..shard_plan import PlanChange

_REMEDY = "Give another output folder"


def refuse_own_input(data: str, out: str) -> None:
    """Raise RunMismatch if `out` is the folder of `data`, under any name."""
    if _same(root(data), out):
        raise RunMismatch(f"{out}: is the folder of the images themselves", _REMEDY)


def refuse_other_folder(out: str) -> None:
    """Raise RunMismatch if `out` is of embedpipe, but no embeddings: a run, a selection, image shards."""
    found = what_is(out)
    if found.kind not in (EMBEDDINGS, OTHER, NOTHING):
        raise RunMismatch(f"{out}: holds {found.said}", _REMEDY)


def refuse_other_data(out: str, change: PlanChange, planned: int) -> None:
    """Raise RunMismatch if none of the `planned` input shards of `out` is in the input: it is another data set's."""
    if planned and len(change.vanished) == planned and change.added:
        known: Sequence[str] = [change.shards[number].name for number in change.vanished[:3]]
        raise RunMismatch(
            f"{out}: holds other data: none of its {planned} input shards ({', '.join(known)} …) is among those given",
            "Give another output folder, and merge the two data sets",
        )


def _same(one: str, other: str) -> bool:
    if files.is_local(one) != files.is_local(other):
        return False
    if files.is_local(one):
        return os.path.realpath(files.local_path(one)) == os.path.realpath(files.local_path(other))
    return files.absolute(one).rstrip("/") == files.absolute(other).rstrip("/")
