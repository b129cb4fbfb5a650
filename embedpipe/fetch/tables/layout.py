"""The columns of a run: chosen when it begins, kept when it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ... import manifest
from ...errors import InputError, RunMismatch
from ...manifest import RunCard
from ...read.tables import table
from ...read.tables.table_file import Surveyed, TableFile
from ...read.tables.type_inference import join_types
from .. import rights
from ..config import DEFAULT_CAPTION_COLUMN, FetchConfig
from . import schema
from .local_paths import hint
from .schema import Layout


def infers_types(previous: RunCard) -> bool:
    """Whether the columns of a run's csv files have types: in plans that do not say so, they have."""
    return bool(previous.options.get("infer_types", True))


def kept_options(previous: RunCard, config: FetchConfig) -> dict[str, Any]:
    """The options of the run so far. One begun before files were read for their rights goes on without."""
    return {"rights": rights.OFF} | {
        name: previous.options[name] for name in config.shaping() if name in previous.options
    }


def continued_layout(out: str, previous: RunCard, config: FetchConfig) -> Layout:
    """The layout of the run so far. Raises RunMismatch if the options have changed."""
    known_table = schema.unpacked_table(previous.options["table_schema"])
    wanted = config.shaping()
    kept = kept_options(previous, config)
    if config.caption_col is None and kept["caption_col"] in (None, DEFAULT_CAPTION_COLUMN):
        wanted["caption_col"] = kept["caption_col"]
    if "infer_types" not in previous.options:
        del wanted["infer_types"]
    manifest.refuse_difference(out, kept, wanted, "set of options", manifest.SAME_OR_ANEW)
    return Layout(config.url_col, wanted["caption_col"], known_table, config.rights != rights.OFF)


def chosen_layout(fresh: Sequence[TableFile], surveyed: dict[str, Surveyed], config: FetchConfig) -> Layout:
    """The layout for the files of a new run. Raises InputError."""
    for file in fresh:
        columns = surveyed[file.name].schema
        otherwise = hint(columns.names)
        schema.choose_columns(columns, config.url_col, config.caption_col, file.location, otherwise)
    kinds: dict[str, pa.DataType] = {}
    for file in fresh:
        for field in surveyed[file.name].schema:
            kinds[field.name] = _joined(kinds.get(field.name), field, file)
    for file in fresh:
        for field in surveyed[file.name].schema:
            if not _keeps(kinds[field.name], field, file, surveyed[file.name]):
                kinds[field.name] = pa.string()
    columns = pa.schema(list(kinds.items()))
    chosen = schema.choose_columns(columns, config.url_col, config.caption_col, fresh[0].location)
    return replace(chosen, with_rights=config.rights != rights.OFF)


def _joined(so_far: pa.DataType | None, field: pa.Field, file: TableFile) -> pa.DataType:
    kind = field.type if so_far is None else join_types(so_far, field.type)
    if kind is None and file.ending in table.TEXTUAL:
        return pa.string()  # any column can be stored as text
    if kind is None:
        raise InputError(f"{file.location}: the column {field.name} holds {field.type}, in earlier files {so_far}")
    return kind


def _keeps(kind: pa.DataType, field: pa.Field, file: TableFile, found: Surveyed) -> bool:
    """Whether a column of a file has its values unchanged in `kind`; of parquet files a later cast tells."""
    if pa.types.is_string(kind) or file.ending not in table.TEXTUAL:
        return True
    return _same_fields(field.type, kind) and _casts(kind, field, file, found)


def _same_fields(left: pa.DataType, right: pa.DataType) -> bool:
    """Whether structs have the same fields: as one type, absent ones would become nulls."""
    if pa.types.is_list(left) and pa.types.is_list(right):
        return _same_fields(left.value_type, right.value_type)
    if not (pa.types.is_struct(left) and pa.types.is_struct(right)):
        return True
    inner = [(left.field(i), right.field(i)) for i in range(min(left.num_fields, right.num_fields))]
    alike = all(ours.name == theirs.name and _same_fields(ours.type, theirs.type) for ours, theirs in inner)
    return left.num_fields == right.num_fields and alike


def _casts(kind: pa.DataType, field: pa.Field, file: TableFile, found: Surveyed) -> bool:
    """Whether all values of a column of a text file are exact in `kind`: large integers are not as doubles."""
    if kind == field.type:
        return True
    try:
        for batch in table.batches(replace(file, dialect=found.dialect), pa.schema([field])):
            batch.column(field.name).cast(kind)
    except pa.ArrowException:
        return False
    return True


def widened_layout(out: str, base: Layout, fresh: Sequence[TableFile], surveyed: dict[str, Surveyed]) -> Layout:
    """`base`, after checking that new files fit it: the columns of finished shards cannot change."""
    for file in fresh:
        found = surveyed[file.name].schema
        schema.choose_columns(found, base.url, base.caption, file.location)
        for field in found:
            if field.name in file.partition and field.name not in base.table.names:
                continue  # the run began when folders' names were no columns
            known = base.table.field(field.name).type if field.name in base.table.names else None
            text = known is not None and pa.types.is_string(known) and file.ending in table.TEXTUAL
            joins = known is not None and join_types(known, field.type) == known
            if not text and not (joins and _keeps(known, field, file, surveyed[file.name])):
                raise RunMismatch(
                    f"{out}: {file.location} has a column {field.name} of {field.type},"
                    f" in the shards so far it is {known or 'absent'}",
                    "Fetch this file to another output folder",
                )
    return base
