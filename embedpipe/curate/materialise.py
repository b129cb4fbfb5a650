"""Chosen rows of an embedding data set as a data set of their own, shard by shard, under the same numbers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files, manifest
from ..errors import DatasetError, RunMismatch
from ..index.card import data_digest
from ..load import EmbeddingDataset
from ..manifest import RunCard, ShardManifest
from ..progress import Listener, Progress
from ..store import layout, open_format
from ..types import EmbeddingShard, Reject
from .blocks import in_order

SELECTION = "selection"


def selection_run(dataset: EmbeddingDataset, rows: np.ndarray, made_by: str) -> RunCard:
    """The run card of `rows` of `dataset`: as its own, and by which command, of which data, and which rows."""
    selection = {
        "made_by": made_by,
        "data": data_digest(dataset),
        "rows": len(rows),
        "rows_sha256": hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest(),
    }
    source = files.absolute(dataset.run.source) if dataset.run.source else ""
    return dataclasses.replace(dataset.run, options={**dataset.run.options, SELECTION: selection}, source=source)


def refuse_other_output(dataset: EmbeddingDataset, out: str, run: RunCard | None = None) -> None:
    """Raise RunMismatch where `out` holds a data set already that is no selection, or not the selection `run`."""
    there = manifest.read_run(out)
    if there is None:
        return
    if SELECTION not in there.options:
        itself = files.absolute(out).rstrip("/") == files.absolute(dataset.path).rstrip("/")
        what = "is the data set itself" if itself else f"holds {there.format} already"
        raise RunMismatch(f"{out}: {what}", "Give another output folder")
    if run is not None:
        manifest.refuse_difference(out, there.options, run.options, "selection", "Give another output folder")


def materialise(
    dataset: EmbeddingDataset, rows: np.ndarray, out: str, run: RunCard, threads: int | None, listen: Listener
) -> None:
    """Write `rows` (int64, ascending) of `dataset` into the embedding data set `out`; called again, it goes on.

    run: their `selection_run`, which `refuse_other_output` found to be that of `out`, too. Each shard keeps its number,
    its rejects and its source; one that loses all rows keeps its manifest. Hold the lock of `out`.
    """
    if manifest.read_run(out) is None:
        manifest.write_run(out, run)
    todo = _still_to_do(out, run, dataset)
    listen(Progress(planned=len(todo)))
    write = functools.partial(_write_shard, dataset, rows, out, run)
    for entry, kept in in_order(write, todo, threads):
        manifest.commit(out, kept, run.shard_digits)
        listen(Progress(rows=entry.rows_out, tasks=1))


def _still_to_do(out: str, run: RunCard, dataset: EmbeddingDataset) -> list[ShardManifest]:
    """Shards of `dataset` that `out` lacks, what killed writers left of them swept."""
    for folder in (out, *(files.join(out, name) for name in layout.FOLDERS)):
        files.sweep_temporaries(folder)
    todo = []
    committed = set(manifest.committed_numbers(out))
    for entry in dataset.manifests:
        if entry.number in committed:
            kept = manifest.read_manifest(out, entry.number, run.shard_digits)
            if all(_has_size(files.join(out, record.path), record.bytes) for record in kept.files):
                continue
            manifest.retract(out, entry.number, run.shard_digits)
        todo.append(entry)
    return todo


def _has_size(location: str, size: int) -> bool:
    return files.exists(location) and files.stat(location).bytes == size


def _write_shard(
    dataset: EmbeddingDataset, rows: np.ndarray, out: str, run: RunCard, entry: ShardManifest
) -> ShardManifest:
    """Write one shard's files; its manifest, to be committed."""
    shard = _chosen(dataset, rows, entry)
    format = open_format(str(run.options.get("format", "npy")))
    written = format.write(out, shard, entry.source.name, run.columns, run.shard_digits)
    return dataclasses.replace(
        entry,
        rows_out=len(shard),
        rows_dropped=entry.rows_dropped + entry.rows_out - len(shard),
        files=written,
        tokens=shard.text_tokens.total if shard.text_tokens is not None else None,
        timing_s={},
    )


def _chosen(dataset: EmbeddingDataset, rows: np.ndarray, entry: ShardManifest) -> EmbeddingShard:
    """The chosen rows of one shard, and all of its rejects."""
    rejects = _rejects(dataset, entry)
    place = next((i for i, shard in enumerate(dataset.shards) if shard.manifest is entry), None)
    if place is None:  # it has no rows
        return EmbeddingShard(entry.number, None, None, {"key": []}, rejects)
    shard = dataset.shards[place]
    mine = rows[slice(*np.searchsorted(rows, (shard.start, shard.stop)))] - shard.start
    tokens = dataset.token_states(place).take(mine) if dataset.text_tokens is not None else None
    return EmbeddingShard(
        entry.number,
        np.asarray(dataset.array(place, "image")[mine]) if dataset.image is not None else None,
        np.asarray(dataset.array(place, "text")[mine]) if dataset.text is not None else None,
        dataset.metadata(place).take(pa.array(mine)).to_pydict(),
        rejects,
        tokens,
    )


def _rejects(dataset: EmbeddingDataset, entry: ShardManifest) -> tuple[Reject, ...]:
    path = layout.errors(entry.number, dataset.run.shard_digits)
    if path not in {record.path for record in entry.files}:
        return ()
    try:
        with files.reading(files.join(dataset.path, path)) as stream:
            table = pq.read_table(stream)
    except (OSError, pa.ArrowException) as problem:
        raise DatasetError(f"{dataset.path}/{path}: cannot be read: {problem}", "Run `embedpipe verify`") from problem
    return tuple(
        Reject(row["key"], row["src_index"], row["stage"], row["error_class"], row["message"])
        for row in table.to_pylist()
    )
