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
    """How to read a data set that embedpipe did not write. What is None is found out from names.

    layout: a name in LAYOUTS. image, text: where that side's rows are: a folder (clip-retrieval, npy, parquet_npy), a
    column (parquet), an array (datacomp). metadata: the folder of the tables, from the data set, where it is not in it.
    normalise: bring rows to unit length as they are read. model: which model made the rows, if somebody knows.
    """

    layout: str | None = None
    image: str | None = None
    text: str | None = None
    metadata: str | None = None
    normalise: bool = False
    model: str = UNKNOWN


def read_note(path: str) -> Foreign:
    """What `embedpipe-foreign.json` in a data set says; all defaults where there is none. Raises DatasetError."""
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
    """Where the rows of one side of a shard are: a file, and how it is opened. `path` is as the user knows it."""

    path: str
    location: str
    open: Callable[[], Rows]


@dataclass(frozen=True, slots=True)
class ForeignShard:
    """Files that belong together, none of them looked into yet. table: a parquet file of metadata, or None.

    own_columns: columns of the table that hold embeddings, no metadata.
    """

    name: str
    sides: dict[str, ForeignFiles]
    table: str | None = None
    own_columns: tuple[str, ...] = ()


Layout = Callable[[str, Foreign, Sequence[str]], list[ForeignShard]]
"""(data set, how to read it, paths of all files in it, sorted) → its shards, in order. Raises DatasetError."""


def source(root: str, path: str, opener: Callable[..., Rows], *arguments: str) -> ForeignFiles:
    """The file `path` of the data set `root`, opened with `opener(location, *arguments)`."""
    location = files.join(root, path)
    return ForeignFiles(path, location, partial(opener, location, *arguments))


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
