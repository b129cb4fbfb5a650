"""What is left of an embedding shard, and of the indexes and lists beside it."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files, manifest
from ..consent import remember_source
from ..curate.materialise import cut_among
from ..index import IndexConfig, build_index
from ..index.card import folder_of, read_card
from ..manifest import ShardManifest
from ..parquet_tables import read_table
from ..store import open_format
from ..store.rejects import read_rejects
from ..subset import KEPT, UID, UIDS
from ..taken_down import key_digest
from ..types import EmbeddingShard, Reject, SourceShard
from .find import lost_positions
from .outputs import IdentifiedRow, Output, SelectionFolder

_LISTS = (KEPT, "dropped.parquet")
_PAGES = ("pairs.html", "examples.html")
MODALITIES = ("image", "text")


def embedding_shard_without(
    output: Output, entry: ShardManifest, rows: Sequence[IdentifiedRow], place: str
) -> ShardManifest:
    """Write the shard without `rows` below `place`; returns its manifest.

    If the tar that it was made from lost the same samples, the shard becomes what it would be if made from that tar:
    positions and counts are of the tar as it is now. Otherwise the rows count as dropped.
    """
    changes = output.tar_changes(entry)
    lost = lost_positions(changes)
    shard = _kept(output, entry, rows, lost)
    storage = open_format(str(output.run.options.get("format", "npy")))
    written = storage.write(place, shard, entry.source.name, output.run.columns, output.run.shard_digits)
    source, sha256, accounts = entry.source, entry.source_sha256, entry.accounts
    if changes:
        members = sum(change.members for change in changes)
        if accounts is not None:
            accounts = dataclasses.replace(accounts, seen=accounts.seen - members, used=accounts.used - members)
        source, sha256 = _source_now(output, entry), changes[-1].after
    cut = cut_among(entry, shard)
    rows_in = entry.rows_in - len(lost)
    return dataclasses.replace(
        entry,
        source=source,
        source_sha256=sha256,
        accounts=accounts,
        rows_in=rows_in,
        rows_out=len(shard),
        rows_rejected=len(shard.rejects),
        rows_dropped=rows_in - len(shard) - len(shard.rejects),
        rejects=dict(sorted(Counter(reject.error_class for reject in shard.rejects).items())),
        files=written,
        tokens=shard.text_tokens.total if shard.text_tokens is not None else None,
        captions_cut=cut.captions if cut is not None else None,
        tokens_cut=cut.tokens if cut is not None else None,
        timing_s={},
    )


def _source_now(output: Output, entry: ShardManifest) -> SourceShard:
    folder, name = output.source_folder(entry)
    stat = files.stat(files.join(folder, name))
    source = dataclasses.replace(entry.source, bytes=stat.bytes, modified=stat.modified)
    remember_source(folder, [dataclasses.replace(source, name=name)])  # it is still what this user encoded
    return source


def _kept(output: Output, entry: ShardManifest, rows: Sequence[IdentifiedRow], lost: list[int]) -> EmbeddingShard:
    path, digits = output.path, output.run.shard_digits
    gone = {row.place for row in rows if not row.reject}
    refused = {row.place for row in rows if row.reject}
    rejects = tuple(
        Reject(it["key"], _moved(it["src_index"], lost), it["stage"], it["error_class"], it["message"])
        for place, it in enumerate(read_rejects(path, entry, digits).to_pylist())
        if place not in refused
    )
    keep = np.array([place for place in range(entry.rows_out) if place not in gone], np.int64)
    if not len(keep):
        return EmbeddingShard(entry.number, None, None, {"key": []}, rejects)
    reader = open_format(str(output.run.options.get("format", "npy"))).reader
    arrays = {side: reader.embeddings(path, entry, side, digits) for side in MODALITIES}
    tokens = reader.text_tokens(path, entry, digits)
    metadata = reader.metadata(path, entry, digits).take(pa.array(keep)).to_pydict()
    metadata["src_index"] = [_moved(position, lost) for position in metadata["src_index"]]
    image, text = (None if arrays[side] is None else np.asarray(arrays[side])[keep] for side in MODALITIES)
    return EmbeddingShard(
        entry.number, image, text, metadata, rejects, tokens.take(keep) if tokens is not None else None
    )


def _moved(position: int, lost: list[int]) -> int:
    return position - bisect_left(lost, position)


def settle_plan(output: Output) -> None:
    """Plan the input shards as they are now: those that lost samples have another size and change mark."""
    sources = {entry.number: entry.source for entry in output.entries()}
    plan = tuple(sources.get(number, planned) for number, planned in enumerate(output.run.plan))
    run = manifest.with_pending(output.path, dataclasses.replace(output.run, plan=plan))
    if run != output.run:
        output.run = run
        manifest.write_run(output.path, run)


def renew_indexes(output: Output) -> None:
    """Bring the indexes beside the shards up to date: rows that went leave them, with all that was drawn from them."""
    folder = folder_of(output.path)
    rows = sum(entry.rows_out for entry in output.entries())
    for modality in MODALITIES:
        card = read_card(output.path, modality)
        if card is not None and rows:
            kind = "auto" if card.chosen else card.kind
            build_index(output.path, IndexConfig(modality, kind))
            continue
        for name in files.names(folder):
            if name.startswith(f"{modality}-") or name == f"{modality}.json":
                files.remove(files.join(folder, name))


def clear_lists(selection: SelectionFolder, keys: Collection[str], uids: Collection[str]) -> int:
    """Remove rows (digests of their keys) from the lists of a selection; returns how many.

    Its pages, which show pictures, kept or not, go as a whole. The lists are last: while a row is in one, all of this
    is done again.
    """
    if not keys:
        return 0
    files.sweep_temporaries(selection.path)
    for name in _PAGES:
        files.remove(files.join(selection.path, name))
    lists = [(location, left) for location in _lists(selection) if (left := _left_of_list(location, keys)) is not None]
    location = files.join(selection.path, UIDS)
    if lists and files.exists(location):
        with files.reading(location) as stream:
            kept = np.load(stream, allow_pickle=False)
        halves = {(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids}
        stay = np.array([(int(high), int(low)) not in halves for high, low in kept.tolist()], bool)
        with files.writing(location) as sink:
            np.save(sink, kept[stay].astype(UID), allow_pickle=False)
    for location, (left, _) in lists:
        with files.writing(location) as sink:
            pq.write_table(left, sink)
    return sum(lost for _, (_, lost) in lists)


def _lists(selection: SelectionFolder) -> list[str]:
    return [location for name in _LISTS if files.exists(location := files.join(selection.path, name))]


def _left_of_list(location: str, keys: Collection[str]) -> tuple[pa.Table, int] | None:
    """The rows that stay in a list, and how many do not; None if all stay."""
    table = read_table(location)
    if "src_shard" not in table.column_names:
        return None
    pairs = zip(table["src_shard"].to_pylist(), table["key"].to_pylist(), strict=True)
    left = table.filter(
        pa.array([key_digest(source or "", key or "") not in keys for source, key in pairs], pa.bool_())
    )
    return (left, table.num_rows - left.num_rows) if left.num_rows < table.num_rows else None
