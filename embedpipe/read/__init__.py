"""Readers of image shards, folders and tables. READERS maps a name to its reader."""

from __future__ import annotations

from pathlib import PurePosixPath

from .. import files
from ..errors import InputError, OptionError, did_you_mean
from .base import Reader
from .folder import FolderReader
from .image_folder import METADATA_TABLES, metadata_tables
from .image_folder_reader import ImageFolderReader
from .listing import any_image_below
from .locations import without_query
from .names import IMAGE, Naming
from .path_table import LocalPaths, PathTableReader
from .sample import SampleRules
from .table import TABLE_SUFFIXES, TableReader
from .tables.table import TEXTUAL
from .text_file import compression_of
from .webdataset import TAR_SUFFIXES, WebdatasetReader

READERS: dict[str, type[Reader]] = {
    "webdataset": WebdatasetReader,
    "folder": FolderReader,
    "imagefolder": ImageFolderReader,
    "table": TableReader,
    "paths": PathTableReader,
}
_TEXT_TABLES = tuple(f".{ending}" for ending in sorted(TEXTUAL - {"txt", "json"}))

__all__ = ["READERS", "FolderReader", "LocalPaths", "Reader", "SampleRules", "open_reader", "refuse_without_effect"]


def open_reader(
    data: str,
    rules: SampleRules,
    kind: str = "auto",
    samples_per_shard: int = 10_000,
    paths: LocalPaths | None = None,
) -> Reader:
    """The reader for `data`. `auto` decides by file names: tars, else parquet tables, else a folder of images.

    paths: how the local paths of a table are read; they are not read without. Raises InputError for an unknown kind or
    if `data` does not exist.
    """
    if kind not in ("auto", *READERS):
        raise OptionError(f"no input format {kind!r}", did_you_mean(kind, READERS))
    if paths is not None and kind in ("auto", "paths"):
        return PathTableReader(data, rules, paths, samples_per_shard)
    if paths is not None:
        raise OptionError(f"`local_root` is for a table of local paths, not for `input={kind!r}`", "Drop one of them")
    kind = _guess(data) if kind == "auto" else kind
    if kind == "paths":
        raise _needs_root(data)
    if kind == "folder":
        return FolderReader(data, rules, samples_per_shard)
    if kind == "imagefolder":
        return ImageFolderReader(data, rules, samples_per_shard)
    return TableReader(data, rules) if kind == "table" else WebdatasetReader(data, rules)


def _needs_root(data: str) -> InputError:
    return InputError(
        f"{data}: a table, and none with image bytes",
        "If a column holds local paths, give `local_root='DIR'`, below which they are read; urls are for `fetch`",
    )


def refuse_without_effect(reader: Reader, rules: SampleRules) -> None:
    """Raise OptionError if a rule is given that is for another kind of input than the reader's."""
    of_kind: dict[str, tuple[type | tuple[type, ...], str]] = {
        "image_column": (TableReader, "a table"),
        "key_column": ((TableReader, PathTableReader), "a table"),
        "image_member": (WebdatasetReader, "a tar"),
        "caption_member": (WebdatasetReader, "a tar"),
    }
    for name, (kind, of) in of_kind.items():
        if getattr(rules, name) is not None and not isinstance(reader, kind):
            raise OptionError(f"`{name}` is for {of}, and the input is none", f"Drop `{name}`")


def _guess(data: str) -> str:
    if not files.is_folder(data):
        if _is_text_table(without_query(data)):
            return "paths"
        return "table" if without_query(data).lower().endswith(TABLE_SUFFIXES) else "webdataset"
    names = [name for name in files.names(data) if not name.startswith(".")]
    if any(name.lower().endswith(TAR_SUFFIXES) for name in names) or "embedpipe.json" in names:
        return "webdataset"
    # A table beside loose images, or beside a folder of its name (as in img2dataset's output), describes those.
    loose = any(Naming(first_dot=False)(name).kind == IMAGE for name in names)
    tables = any(name.lower().endswith(TABLE_SUFFIXES) and PurePosixPath(name).stem not in names for name in names)
    if tables and not loose and not any(name in METADATA_TABLES for name in names):
        return "table"
    if metadata_tables(data):
        return "imagefolder"
    if tables and not loose:
        return "table"
    text = any(_is_text_table(name) for name in names)
    return "paths" if text and not any_image_below(data, Naming(first_dot=False)) else "folder"


def _is_text_table(name: str) -> bool:
    return compression_of(name)[0].endswith(_TEXT_TABLES)
