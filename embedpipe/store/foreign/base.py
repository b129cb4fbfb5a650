"""The description of another tool's data set: the files of each shard, and options for its reader."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pydantic

from ... import files
from ...clip_model.encoder_card import UNKNOWN
from ...errors import DatasetError, did_you_mean
from ..rows import Rows

NOTE = "embedpipe-foreign.json"


@dataclass(frozen=True, slots=True)
class Foreign:
    """How to read another tool's data set. None values are inferred from names.

    layout: a name in LAYOUTS. image, text: the source of that modality's rows: a folder (clip-retrieval, npy,
    parquet_npy), a column (parquet), an array (datacomp). metadata: the folder of the tables, relative to the data set,
    if it is elsewhere. normalise: normalise rows when reading. model: the model that made the rows, if known.
    """

    layout: str | None = None
    image: str | None = None
    text: str | None = None
    metadata: str | None = None
    normalise: bool = False
    model: str = UNKNOWN


def read_note(path: str) -> Foreign:
    """Read `embedpipe-foreign.json` of a data set; all defaults if there is none. Raises DatasetError."""
    location = files.join(path, NOTE)
    if not files.exists(location):
        return Foreign()
    try:
        said = json.loads(files.read_bytes(location))
        found: Foreign = pydantic.TypeAdapter(Foreign).validate_python(said)
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DatasetError(f"{location}: {where}: {first['msg']}", "Correct it, or remove it") from problem
    except ValueError as problem:
        raise DatasetError(f"{location}: not JSON ({problem})", "Correct it, or remove it") from problem
    known = [field.name for field in dataclasses.fields(Foreign)]
    for name in said:
        if name not in known:
            raise DatasetError(f"{location}: no setting {name!r}", did_you_mean(name, known))
    return found


@dataclass(frozen=True, slots=True)
class ForeignFiles:
    """The source of one modality's rows in a shard: a file, and how to open it. `path` is for error messages."""

    path: str
    location: str
    open: Callable[[], Rows]


@dataclass(frozen=True, slots=True)
class ForeignShard:
    """The files of a shard, not yet opened. table: a parquet file of metadata, or None.

    own_columns: columns of the table with embeddings instead of metadata.
    """

    name: str
    sides: dict[str, ForeignFiles]
    table: str | None = None
    own_columns: tuple[str, ...] = ()


Layout = Callable[[str, Foreign, Sequence[str]], list[ForeignShard]]
"""(data set, how to read it, paths of all files in it, sorted) → its shards, in order. Raises DatasetError."""


def source(root: str, path: str, opener: Callable[..., Rows], *arguments: str) -> ForeignFiles:
    """A source for the file `path` of the data set `root`, opened with `opener(location, *arguments)`."""
    location = files.join(root, path)
    return ForeignFiles(path, location, partial(opener, location, *arguments))


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
