"""Readers of image shards, folders and tables. READERS maps a name to its reader."""

from __future__ import annotations

from pathlib import PurePosixPath

from .. import files
from ..errors import OptionError, did_you_mean
from .base import Reader
from .folder import FolderReader
from .grouping import IMAGE_EXTENSIONS, SampleRules
from .table import TABLE_SUFFIXES, TableReader
from .webdataset import TAR_SUFFIXES, WebdatasetReader

READERS: dict[str, type[WebdatasetReader] | type[FolderReader] | type[TableReader]] = {
    "webdataset": WebdatasetReader,
    "folder": FolderReader,
    "table": TableReader,
}

__all__ = ["READERS", "Reader", "SampleRules", "open_reader"]


def open_reader(data: str, rules: SampleRules, kind: str = "auto", samples_per_shard: int = 10_000) -> Reader:
    """The reader for `data`. `auto` decides by file names: tars, else parquet tables, else a folder of loose files.

    Raises InputError for an unknown kind or if `data` does not exist.
    """
    if kind == "auto":
        kind = _guess(data)
    if kind not in READERS:
        raise OptionError(f"no input format {kind!r}", did_you_mean(kind, READERS))
    if kind == "folder":
        return FolderReader(data, rules, samples_per_shard)
    return READERS[kind](data, rules)


def _guess(data: str) -> str:
    if not files.is_folder(data):
        return "table" if data.lower().endswith(TABLE_SUFFIXES) else "webdataset"
    names = files.names(data)
    if any(name.lower().endswith(TAR_SUFFIXES) for name in names) or "embedpipe.json" in names:
        return "webdataset"
    # A table beside loose images, or beside a folder of its name (as in img2dataset's output), describes those.
    loose = any(name.lower().endswith(tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)) for name in names)
    tables = any(name.lower().endswith(TABLE_SUFFIXES) and PurePosixPath(name).stem not in names for name in names)
    return "table" if tables and not loose else "folder"
