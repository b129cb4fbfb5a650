"""Index types that live in memory: rows are added, and the index is saved at intervals."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .. import files
from ..load import EmbeddingDataset
from ..load.row_blocks import row_blocks
from ..progress import Listener, Progress
from ..store.hashed_writer import write_hashed
from .card import index_path
from .ids import ids_of, shard_numbers
from .index_file import open_file
from .library import faiss
from .plan import BuildPlan
from .train import trained_index

CHECKPOINT_EVERY_S = 60.0
_FILE = "whole.faiss"


def write_stream(index: faiss.Index, stream: Any) -> None:
    """Write an index in faiss' format to a binary stream."""
    writer: Any = faiss.PyCallbackIOWriter  # type: ignore[attr-defined]
    faiss.write_index(index, writer(stream.write, 1 << 20))


def add_whole(
    dataset: EmbeddingDataset, home: str, modality: str, plan: BuildPlan, building: str, listen: Listener
) -> Any:
    """The index with all rows, in memory. It is saved to `building` between shards, at most once a minute."""
    index: Any = _begun(dataset, home, modality, plan, building)
    done = set(np.unique(shard_numbers(faiss.vector_to_array(index.id_map))).tolist())
    place_of = {shard.manifest.number: place for place, shard in enumerate(dataset.shards)}
    kept_at = time.monotonic()
    for shard in plan.add:
        if shard.number in done:
            listen(Progress(rows=shard.rows))
            continue
        place = place_of[shard.number]
        for row, rows in row_blocks(dataset, place, modality):
            start = row - dataset.shards[place].start
            index.add_with_ids(rows, ids_of(shard.number, start, start + len(rows)))
            listen(Progress(rows=len(rows)))
        if time.monotonic() - kept_at >= CHECKPOINT_EVERY_S and shard != plan.add[-1]:
            write_hashed(building, _FILE, lambda stream: write_stream(index, stream))
            kept_at = time.monotonic()
    return index


def _begun(dataset: EmbeddingDataset, home: str, modality: str, plan: BuildPlan, building: str) -> faiss.Index:
    """The starting point: an interrupted build, the index being extended, or an empty one."""
    kept = files.join(building, _FILE)
    if files.exists(kept):
        return open_file(kept, lists=False, mapped=False)
    if plan.base is not None:
        return open_file(index_path(home, plan.base), lists=False, mapped=False)
    return faiss.IndexIDMap(trained_index(plan.kind, dataset, modality))
