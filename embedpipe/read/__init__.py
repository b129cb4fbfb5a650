"""Readers: where samples come from. READERS maps a name to its reader."""

from __future__ import annotations

from .. import files
from ..errors import InputError, did_you_mean
from .base import Reader
from .folder import FolderReader
from .grouping import SampleRules
from .webdataset import TAR_SUFFIXES, WebdatasetReader

READERS: dict[str, type[WebdatasetReader] | type[FolderReader]] = {
    "webdataset": WebdatasetReader,
    "folder": FolderReader,
}

__all__ = ["READERS", "Reader", "SampleRules", "open_reader"]


def open_reader(data: str, rules: SampleRules, kind: str = "auto", samples_per_shard: int = 10_000) -> Reader:
    """The reader for `data`. `auto` takes tars where there are any (or a pattern), else a folder of loose images.

    Raises InputError for an unknown kind or when `data` is not there.
    """
    if kind == "auto":
        kind = _guess(data)
    if kind not in READERS:
        raise InputError(f"no input format {kind!r}", did_you_mean(kind, READERS))
    if kind == "folder":
        return FolderReader(data, rules, samples_per_shard)
    return WebdatasetReader(data, rules)


def _guess(data: str) -> str:
    if not files.is_folder(data):
        return "webdataset"
    named_tar = any(name.lower().endswith(TAR_SUFFIXES) for name in files.names(data))
    return "webdataset" if named_tar or files.exists(files.join(data, "embedpipe.json")) else "folder"
