"""Open other tools' data sets: inspect every file, then present them as if they had manifests."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ... import files
from ...clip_model.encoder_card import UNKNOWN, EncoderCard, unknown_card
from ...errors import DatasetError, InputError
from ...manifest import FileRecord, RunCard, ShardManifest
from ...ragged import RaggedRows
from ...types import SourceShard
from ..rows import HEADERS, Normalised, NpyRows, Rows, whole
from . import find_shards
from .base import Foreign, ForeignShard, some
from .metadata import metadata_types, read_metadata

FOREIGN = "foreign/"
_LOOKING_AT_ONCE = 16
_REMEDY = "These files do not belong together: fetch or write them again"


@dataclass(frozen=True, slots=True)
class _Looked:
    """An inspected shard. arrays: (path, rows, width, dtype) of each modality."""

    shard: ForeignShard
    arrays: dict[str, tuple[str, int, int, str]]
    table_rows: int | None
    schema: pa.Schema | None
    records: tuple[FileRecord, ...]

    @property
    def rows(self) -> int:
        return next(rows for _, rows, _, _ in self.arrays.values())


def open_foreign(
    path: str, how: Foreign, recorded: EncoderCard | None = None
) -> tuple[RunCard, tuple[ShardManifest, ...], ForeignReader]:
    """A synthetic run card and manifests, and the reader. Raises DatasetError naming inconsistent files.

    recorded: the card that was exported with the rows; `how` has precedence.
    """
    layout, shards = find_shards(path, how)
    with ThreadPoolExecutor(_LOOKING_AT_ONCE) as pool:
        looked = list(pool.map(_look, shards))
    _require_equal_counts(path, looked)
    _require_one_kind(path, looked)
    looked = [entry for entry in looked if entry.rows]
    if not looked:
        raise DatasetError(f"{path}: no rows in any of its {len(shards)} shards", "Check the path")
    card = _card(how, looked[0], recorded)
    columns = metadata_types(
        [entry.schema for entry in looked if entry.schema is not None], looked[0].shard.own_columns
    )
    sides = looked[0].arrays.keys()
    run = RunCard(
        format=f"{FOREIGN}{layout}",
        options={"format": layout, "images": "image" in sides, "texts": "text" in sides},
        plan=tuple(_source(entry) for entry in looked),
        columns=columns,
        encoder=card,
    )
    manifests = tuple(_manifest(number, entry, card) for number, entry in enumerate(looked))
    return run, manifests, ForeignReader([entry.shard for entry in looked], columns, how.normalise)


def _look(shard: ForeignShard) -> _Looked:
    arrays, records = {}, []
    for side, source in shard.sides.items():
        rows = source.open()
        rows.close()
        arrays[side] = (source.path, *rows.shape, str(rows.dtype))
        records.append(source.location)
    table_rows, schema = None, None
    if shard.table is not None:
        table_rows, schema = _table(shard.table)
        records.append(shard.table)
    return _Looked(shard, arrays, table_rows, schema, tuple(_record(where) for where in dict.fromkeys(records)))


def _table(location: str) -> tuple[int, pa.Schema]:
    try:
        with files.reading(location) as stream:
            file = pq.ParquetFile(stream)
            return file.metadata.num_rows, file.schema_arrow
    except (OSError, pa.ArrowException, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", "Fetch or write the file again") from problem


def _record(location: str) -> FileRecord:
    """The bytes have not been hashed: the file system's change mark replaces the checksum."""
    stat = files.stat(location)
    return FileRecord(location, stat.bytes, f"not hashed, {stat.modified}")


def _require_equal_counts(path: str, looked: Sequence[_Looked]) -> None:
    wrong = []
    for entry in looked:
        counts = {name: rows for name, rows, _, _ in entry.arrays.values()}
        if entry.table_rows is not None:
            counts[str(entry.shard.table).removeprefix(f"{path.rstrip('/')}/")] = entry.table_rows
        rows = [rows for _, rows, _, _ in entry.arrays.values()] + [entry.table_rows]
        if len({count for count in rows if count is not None}) > 1:
            wrong.append(" but ".join(f"{name} has {count} rows" for name, count in counts.items()))
    if wrong:
        raise DatasetError(f"{path}: {some(wrong)}", _REMEDY)


def _require_one_kind(path: str, looked: Sequence[_Looked]) -> None:
    """Raise DatasetError naming two files if modalities, widths or dtypes differ."""
    first = looked[0]
    name, _, width, dtype = next(iter(first.arrays.values()))
    for entry in looked:
        if entry.arrays.keys() != first.arrays.keys():
            sides = (f"{e.shard.name} has {' and '.join(e.arrays)}" for e in (first, entry))
            raise DatasetError(f"{path}: {', '.join(sides)}", "Read it as the layout clip-retrieval")
        for other, rows, other_width, other_dtype in entry.arrays.values():
            if rows and (other_width, other_dtype) != (width, dtype):
                raise DatasetError(
                    f"{path}: {name} holds rows of {width} {dtype}, {other} rows of {other_width} {other_dtype}: "
                    "not of one model",
                    "Keep what one model made in a folder of its own",
                )


def _card(how: Foreign, first: _Looked, recorded: EncoderCard | None) -> EncoderCard:
    _, _, width, dtype = next(iter(first.arrays.values()))
    if recorded is not None and how == Foreign() and recorded.dim == width:
        return dataclasses.replace(recorded, dtype=dtype)
    if how.model != UNKNOWN:
        identity = how.model
    else:
        # The first row is all that distinguishes unknown models, and it does not change when the data set is moved.
        rows = next(iter(first.shard.sides.values())).open()
        row = np.empty((1, width), dtype)
        rows.read(0, row)
        rows.close()
        identity = hashlib.sha256(row.tobytes()).hexdigest()[:32]
    return unknown_card(width, dtype, how.normalise, identity, how.model)


def _source(entry: _Looked) -> SourceShard:
    return SourceShard(entry.shard.name, sum(record.bytes for record in entry.records), "")


def _manifest(number: int, entry: _Looked, card: EncoderCard) -> ShardManifest:
    return ShardManifest(
        number=number,
        source=_source(entry),
        source_sha256="",
        rows_in=entry.rows,
        rows_out=entry.rows,
        rows_rejected=0,
        rejects={},
        files=entry.records,
        dim=card.dim,
        dtype=card.dtype,
        fingerprint=card.fingerprint(),
    )


class ForeignReader:
    """Reads other tools' shards by number. Has no text tokens."""

    def __init__(self, shards: Sequence[ForeignShard], columns: dict[str, str], normalise: bool) -> None:
        self._shards = shards
        self._columns = columns
        self._normalise = normalise

    def open_rows(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> Rows | None:
        """See `ShardReader`."""
        source = self._shards[manifest.number].sides.get(modality)
        if source is None:
            return None
        rows = source.open()
        if rows.shape != (manifest.rows_out, manifest.dim):
            rows.close()
            raise DatasetError(
                f"{source.location}: {rows.shape[0]} rows, there were {manifest.rows_out}", "Open it again"
            )
        return Normalised(rows) if self._normalise else rows

    def embeddings(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> np.ndarray | None:
        """See `ShardReader`."""
        rows = self.open_rows(root, manifest, modality, digits)
        if rows is None:
            return None
        try:
            if isinstance(rows, NpyRows) and rows.plain and files.is_local(rows.location):
                with HEADERS:
                    mapped: np.ndarray = np.load(files.local_path(rows.location), mmap_mode="r", allow_pickle=False)
                return mapped
            return whole(rows)
        finally:
            rows.close()

    def text_tokens(self, root: str, manifest: ShardManifest, digits: int) -> RaggedRows | None:
        """See `ShardReader`."""
        return None

    def metadata(
        self, root: str, manifest: ShardManifest, digits: int, columns: tuple[str, ...] | None = None
    ) -> pa.Table:
        """See `ShardReader`: the standard columns, mapped from the available ones, and the others."""
        shard = self._shards[manifest.number]
        return read_metadata(shard.table, shard.name, manifest.rows_out, self._columns, columns)
