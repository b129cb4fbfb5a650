"""Resolve a location to shard files: one file, a folder, a glob or a brace pattern, on any fsspec path."""

from __future__ import annotations

from collections import Counter

import braceexpand

from .. import files
from ..errors import EmptyInput, InputError
from ..types import SourceShard

_MANY = 16


def is_pattern(data: str) -> bool:
    """Whether `data` is a wildcard pattern. A folder may be called `photos [2020]`."""
    return files.has_wildcard(data) and not files.exists(data)


def root(data: str) -> str:
    """The folder that shard names are relative to: the part of `data` before any wildcard."""
    if is_pattern(data):
        return files.fixed_folder(data)
    if files.is_folder(data) or not files.exists(data):
        return data.rstrip("/") or "/"
    folder, slash, _ = data.rpartition("/")
    return folder or slash or "."


def locations(data: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files of `data`, sorted; in a folder those that end in one of `suffixes`.

    Raises InputError if `data` is neither a pattern nor exists.
    """
    if is_pattern(data):
        patterns = list(braceexpand.braceexpand(data))
        return sorted({place for p in patterns for place in (files.glob(p) if files.has_wildcard(p) else [p])})
    if files.is_folder(data):
        return [files.join(data, name) for name in files.names(data) if name.lower().endswith(suffixes)]
    if not files.exists(data):
        raise InputError(f"{data}: no such file or folder", "Check the path")
    return [data]


def as_shards(data: str, found: list[str], suffix: str) -> list[SourceShard]:
    """Each file as an input shard, named by its path relative to `root(data)`. Raises EmptyInput if there is none."""
    if not found:
        raise EmptyInput(
            f"{data}: no {suffix} files", f"Give a {suffix} file, a folder of them or a pattern that matches some"
        )
    below = root(data)
    stats = _stats(found)
    return [
        SourceShard(_name(location, below), stat.bytes, stat.modified)
        for location, stat in zip(found, stats, strict=True)
    ]


def _stats(found: list[str]) -> list[files.FileStat]:
    """File stats, from one listing per folder if there are many: remote, one request per file would take minutes."""
    in_folder = Counter(location.rpartition("/")[0] for location in found)
    listed = {folder: files.stats(folder) for folder, count in in_folder.items() if folder and count > _MANY}
    split = (location.rpartition("/") for location in found)
    return [listed.get(folder, {}).get(name) or files.stat(folder + slash + name) for folder, slash, name in split]


def _name(location: str, root: str) -> str:
    return location if root == "." and not location.startswith("./") else location.removeprefix(root).lstrip("/")
