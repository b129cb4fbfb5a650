"""Resolve a location to shard files: one file, a folder, a glob or a brace pattern, on any fsspec path."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import braceexpand

from .. import files
from ..accounts import Accounts, Ledger
from ..errors import EmptyInput, InputError
from ..redact import redacted
from ..types import SourceShard
from .names import Naming, printable

_MANY = 16
_OURS = frozenset({"embedpipe.json", ".lock", ".lock-plan"})


def is_pattern(data: str) -> bool:
    """Whether `data` is a wildcard pattern. A folder may be called `photos [2020]`."""
    return files.has_wildcard(data) and not files.exists(data)


def root(data: str) -> str:
    """The folder that shard names are relative to: the part of `data` before any wildcard."""
    if is_pattern(data):
        return files.fixed_folder(data)
    if files.is_folder(data) or not files.exists(data):
        return data.rstrip("/") or "/"
    folder, slash, _ = without_query(data).rpartition("/")
    return folder or slash or "."


def location_of(data: str, name: str) -> str:
    """Where the shard of that name is; one file behind a signed url is at that url, whatever its shard is called."""
    return data if without_query(data) != data else files.join(root(data), name)


def without_query(data: str) -> str:
    """A url of one file without its parameters; other locations unchanged, whose question marks are wildcards."""
    query = not files.is_local(data) and "?" in data and not is_pattern(data)
    return data.partition("?")[0] if query else data


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The files of an input, sorted, and what became of the others of its folder; None without a folder."""

    locations: list[str]
    accounts: Accounts | None


def locate(data: str, suffixes: tuple[str, ...]) -> FoundFiles:
    """The files of `data`; in a folder those that end in one of `suffixes`. Hidden files are none of them.

    Raises InputError if `data` is neither a pattern nor exists.
    """
    if is_pattern(data):
        fixed = files.fixed_folder(data)
        expanded = braceexpand.braceexpand(files.behind(fixed, data))
        patterns = list(expanded) if fixed == "." else [files.join(fixed, pattern) for pattern in expanded]
        found = {place for p in patterns for place in (_shown(files.glob(p)) if files.has_wildcard(p) else [p])}
        return FoundFiles(sorted(found), None)
    if files.is_folder(data):
        return _of_folder(data, [name for name in files.names(data) if _is_shard(name, suffixes)])
    if not files.exists(data):
        raise InputError(f"{data}: no such file or folder", "Check the path")
    return FoundFiles([data], None)


def of_names(folder: str, names: list[str]) -> FoundFiles:
    """The files of these names, in a folder that embedpipe wrote."""
    return _of_folder(folder, names)


def _is_shard(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")


def _shown(found: list[str]) -> list[str]:
    return [place for place in found if not place.rpartition("/")[2].startswith(".")]


def _of_folder(folder: str, names: list[str]) -> FoundFiles:
    ledger = Ledger("file")
    chosen = set(names)
    stems = {_stem(name) for name in names}
    for name in sorted(chosen.union(files.sizes(folder))):
        ledger.see()
        if name in chosen:
            ledger.use(printable(name))
        else:
            ledger.pass_over(printable(name), _reason(name, stems))
    return FoundFiles([files.join(folder, name) for name in names], ledger.closed())


def _reason(name: str, stems: set[str]) -> str:
    if _stem(name) in stems or name in _OURS:
        return "companion"
    if name.startswith("."):
        return "hidden"
    if name.endswith(".tar"):
        return "uncommitted"
    return Naming(first_dot=False)(name).unknown()


def _stem(name: str) -> str:
    """`00000` of `00000.tar`, `00000.parquet` and img2dataset's `00000_stats.json`."""
    return name.partition(".")[0].removesuffix("_stats")


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
    if root == "." and not location.startswith("./"):
        return location
    name = location.removeprefix(root).lstrip("/")
    return name if files.is_local(location) else redacted(name)
