"""Write the selected rows as an embedding data set, shard by shard, with unchanged shard numbers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
import pyarrow as pa

from .. import files, manifest
from ..columns import TEXT_TOKENS_CUT
from ..errors import RunMismatch
from ..execute import in_order
from ..index.card import data_digest
from ..load import EmbeddingDataset
from ..manifest import EMBEDDINGS, RunCard, ShardManifest
from ..plural import plural
from ..progress import CutCaptions, Listener, Progress
from ..store import open_format
from ..store.cleanup import sweep_dataset_temporaries
from ..store.rejects import read_rejects
from ..taken_down import refuse_interrupted
from ..types import EmbeddingShard, Reject

SELECTION = "selection"


def selection_run(dataset: EmbeddingDataset, rows: np.ndarray, made_by: str) -> RunCard:
    """The run card for `rows` of `dataset`: the data set's own, plus the command, the data and a digest of the rows."""
    selection = {
        "made_by": made_by,
        "data": data_digest(dataset),
        "rows": len(rows),
        "rows_sha256": hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest(),
    }
    run, options = dataset.run, {**dataset.run.options, SELECTION: selection}
    source = files.absolute(run.source) if run.source else ""
    if run.format != EMBEDDINGS:  # another tool's data set: the output is embedpipe's
        options |= {"format": "npy", "read_as": run.format}
    return dataclasses.replace(run, format=EMBEDDINGS, options=options, source=source)


def refuse_other_output(dataset: EmbeddingDataset, out: str, run: RunCard | None = None) -> None:
    """Raise RunMismatch if `out` already contains a data set other than the selection `run`."""
    there = manifest.read_run(out)
    if there is None:
        return
    if SELECTION not in there.options:
        itself = files.absolute(out).rstrip("/") == files.absolute(dataset.path).rstrip("/")
        what = "is the data set itself" if itself else f"holds {there.format} already"
        raise RunMismatch(f"{out}: {what}", "Give another output folder")
    if run is not None:
        before, now = there.options[SELECTION], run.options[SELECTION]
        if before != now:
            same = "" if before["data"] == now["data"] else " of other data"
            raise RunMismatch(
                f"{out}: holds another selection: {plural(before['rows'], 'row')}{same}, made by "
                f"`embedpipe {before['made_by']}`; now it would be {now['rows']:,}, by {now['made_by']}",
                "Give another output folder",
            )
        manifest.refuse_difference(out, there.options, run.options, "selection", "Give another output folder")


def materialise(
    dataset: EmbeddingDataset, rows: np.ndarray, out: str, run: RunCard, threads: int | None, listen: Listener
) -> None:
    """Write `rows` (int64, ascending) of `dataset` to the embedding data set `out`; a repeated call resumes.

    run: their `selection_run`, checked against `out` by `refuse_other_output`. Each shard keeps its number, its rejects
    and its source; one that loses all rows keeps its manifest. Call it with `out` locked.
    """
    refuse_interrupted(out)
    todo = _still_to_do(out, run, dataset)
    manifest.write_run(out, manifest.with_pending(out, run))
    listen(Progress(planned=len(todo)))
    write = functools.partial(_write_shard, dataset, rows, out, run)
    for entry, kept in in_order(write, todo, threads):
        manifest.commit(out, kept, run.shard_digits)
        listen(Progress(rows=entry.rows_out, tasks=1))
    manifest.settle(out)


def _still_to_do(out: str, run: RunCard, dataset: EmbeddingDataset) -> list[ShardManifest]:
    """Shards of `dataset` that `out` lacks; leftovers of killed writers are removed."""
    sweep_dataset_temporaries(out)
    todo = []
    committed = set(manifest.committed_numbers(out))
    for entry in dataset.manifests:
        if entry.number in committed:
            kept = manifest.read_manifest(out, entry.number, run.shard_digits)
            if manifest.files_are_there(out, kept):
                continue
            manifest.retract(out, entry.number, run.shard_digits)
        todo.append(entry)
    return todo


def _write_shard(
    dataset: EmbeddingDataset, rows: np.ndarray, out: str, run: RunCard, entry: ShardManifest
) -> ShardManifest:
    """Write one shard's files; returns its manifest, to be committed."""
    shard = _chosen(dataset, rows, entry)
    cut = cut_among(entry, shard)
    format = open_format(str(run.options.get("format", "npy")))
    written = format.write(out, shard, entry.source.name, run.columns, run.shard_digits)
    return dataclasses.replace(
        entry,
        rows_out=len(shard),
        rows_dropped=entry.rows_dropped + entry.rows_out - len(shard),
        files=written,
        tokens=shard.text_tokens.total if shard.text_tokens is not None else None,
        captions_cut=cut.captions if cut is not None else None,
        tokens_cut=cut.tokens if cut is not None else None,
        timing_s={},
    )


def cut_among(entry: ShardManifest, shard: EmbeddingShard) -> CutCaptions | None:
    """Truncated captions among the rows of `shard`, some of `entry`, if known for all rows of the shard."""
    if entry.captions_cut is None:
        return None
    if not len(shard):
        return CutCaptions()
    counts = shard.metadata.get(TEXT_TOKENS_CUT)
    if counts is None or None in counts:
        return None
    return CutCaptions.of(np.array(counts, np.int32))


def _chosen(dataset: EmbeddingDataset, rows: np.ndarray, entry: ShardManifest) -> EmbeddingShard:
    """The selected rows of one shard, and all of its rejects."""
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
    return tuple(
        Reject(row["key"], row["src_index"], row["stage"], row["error_class"], row["message"])
        for row in read_rejects(dataset.path, entry, dataset.run.shard_digits).to_pylist()
    )
