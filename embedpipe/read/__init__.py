"""Readers of image shards, folders and tables. READERS maps a name to its reader."""

from __future__ import annotations

from pathlib import PurePosixPath

from .. import files
from ..errors import OptionError, did_you_mean
from .base import Reader
from .folder import FolderReader
from .image_folder import METADATA_TABLES, metadata_tables
from .image_folder_reader import ImageFolderReader
from .locations import without_query
from .names import IMAGE, Naming
from .sample import SampleRules
from .table import TABLE_SUFFIXES, TableReader
from .webdataset import TAR_SUFFIXES, WebdatasetReader

READERS: dict[str, type[WebdatasetReader] | type[FolderReader] | type[ImageFolderReader] | type[TableReader]] = {
    "webdataset": WebdatasetReader,
    "folder": FolderReader,
    "imagefolder": ImageFolderReader,
    "table": TableReader,
}

__all__ = ["READERS", "FolderReader", "Reader", "SampleRules", "open_reader", "refuse_without_effect"]


def open_reader(data: str, rules: SampleRules, kind: str = "auto", samples_per_shard: int = 10_000) -> Reader:
    """The reader for `data`. `auto` decides by file names: tars, else parquet tables, else a folder of images.

    Raises InputError for an unknown kind or if `data` does not exist.
    """
    if kind == "auto":
        kind = _guess(data)
    if kind not in READERS:
        raise OptionError(f"no input format {kind!r}", did_you_mean(kind, READERS))
    if kind == "folder":
        return FolderReader(data, rules, samples_per_shard)
    if kind == "imagefolder":
        return ImageFolderReader(data, rules, samples_per_shard)
    return READERS[kind](data, rules)


def refuse_without_effect(reader: Reader, rules: SampleRules) -> None:
    """Raise OptionError if a rule is given that is for another kind of input than the reader's."""
    of_kind = {
        "image_column": (TableReader, "a table"),
        "key_column": (TableReader, "a table"),
        "image_member": (WebdatasetReader, "a tar"),
        "caption_member": (WebdatasetReader, "a tar"),
    }
    for name, (kind, of) in of_kind.items():
        if getattr(rules, name) is not None and not isinstance(reader, kind):
            raise OptionError(f"`{name}` is for {of}, and the input is none", f"Drop `{name}`")


def _guess(data: str) -> str:
    if not files.is_folder(data):
        return "table" if without_query(data).lower().endswith(TABLE_SUFFIXES) else "webdataset"
    names = [name for name in files.names(data) if not name.startswith(".")]
    if any(name.lower().endswith(TAR_SUFFIXES) for name in names) or "embedpipe.json" in names:
        return "webdataset"
    # A table beside loose images, or beside a folder of its name (as in img2dataset's output), describes those.
    loose = any(Naming(first_dot=False)(name).kind == IMAGE for name in names)
    tables = any(name.lower().endswith(TABLE_SUFFIXES) and PurePosixPath(name).stem not in names for name in names)
    if tables and not loose and not any(name in METADATA_TABLES for name in names):
        return "table"
    return "imagefolder" if metadata_tables(data) else "table" if tables and not loose else "folder"
