"""Layouts based on parquet: embedding-reader's parquet, and DataComp's parquet with .npz beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ... import files
from ...errors import DatasetError, InputError, did_you_mean
from ..rows import NpzRows, ParquetRows, npz_headers
from .base import Foreign, ForeignShard, some, source

# embedding-reader's default comes last: it does not name a modality.
_COLUMNS = {"image": ("image_embedding", "img_emb", "embedding"), "text": ("text_embedding", "text_emb")}
_SIDES = {"image": "_img", "text": "_txt"}
_BEST_TOWER = "l14"


def parquet(root: str, how: Foreign, names: Sequence[str]) -> list[ForeignShard]:
    """Shards of one table each, with embeddings as lists, and metadata."""
    tables = [name for name in names if name.endswith(".parquet")]
    if not tables:
        raise DatasetError(f"{root}: no .parquet files in it", "Check the path")
    there = _columns(files.join(root, tables[0]))
    columns = {side: name for side, known in _COLUMNS.items() for name in reversed(known) if name in there}
    asked = {side: name for side, name in (("image", how.image), ("text", how.text)) if name is not None}
    columns = asked or columns
    missing = [name for name in columns.values() if name not in there]
    if missing or not columns:
        what = f"column {missing[0]!r}" if missing else "column of embeddings"
        raise DatasetError(f"{root}: {tables[0]} has no {what}", did_you_mean((missing or ["embedding"])[0], there))
    return [
        ForeignShard(
            name=name.removesuffix(".parquet"),
            sides={side: source(root, name, ParquetRows, column) for side, column in columns.items()},
            table=files.join(root, name),
            own_columns=tuple(name for name, kind in there.items() if name in columns.values() or _is_lists(kind)),
        )
        for name in tables
    ]


def _columns(location: str) -> dict[str, pa.DataType]:
    try:
        with files.reading(location) as stream:
            return {field.name: field.type for field in pq.read_schema(stream)}
    except (OSError, pa.ArrowException, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", "Fetch it again") from problem


def _is_lists(kind: pa.DataType) -> bool:
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(nested and pa.types.is_floating(kind.value_type))


def datacomp(root: str, how: Foreign, names: Sequence[str]) -> list[ForeignShard]:
    """Shards of one table and one .npz of the same name, as in DataComp's metadata."""
    tables = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
    archives = {name.removesuffix(".npz") for name in names if name.endswith(".npz")}
    alone = [f"{stem}.parquet" for stem in sorted(tables - archives)]
    alone += [f"{stem}.npz" for stem in sorted(archives - tables)]
    if alone or not archives:
        what = f"without a partner: {some(alone)}" if alone else "no .npz files in it"
        raise DatasetError(f"{root}: {what}", "Every NAME.parquet needs a NAME.npz: fetch what is missing")
    sides = _arrays(root, how, f"{min(archives)}.npz")
    return [
        ForeignShard(
            name=stem,
            sides={side: source(root, f"{stem}.npz", _npz_rows, array) for side, array in sides.items()},
            table=files.join(root, f"{stem}.parquet"),
        )
        for stem in sorted(archives)
    ]


def _arrays(root: str, how: Foreign, archive: str) -> dict[str, str]:
    """The array of each modality: the requested ones, or those of the larger OpenAI model."""
    asked = {side: name for side, name in (("image", how.image), ("text", how.text)) if name is not None}
    if asked:
        return asked
    there = npz_headers(files.join(root, archive))
    towers = sorted({name.removesuffix(suffix) for name in there for suffix in _SIDES.values() if suffix in name})
    if not towers:
        raise DatasetError(f"{root}: {archive} holds {some(sorted(there))}", "Name the array of image or of text rows")
    tower = _BEST_TOWER if _BEST_TOWER in towers else towers[0]
    return {side: f"{tower}{suffix}" for side, suffix in _SIDES.items() if f"{tower}{suffix}" in there}


def _npz_rows(location: str, array: str) -> NpzRows:
    there = npz_headers(location)
    if array not in there:
        raise DatasetError(f"{location}: has no array {array!r}", did_you_mean(array, there))
    return NpzRows(location, array, there[array])
