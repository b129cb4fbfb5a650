"""The files of an output, from one listing per folder."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from .. import files
from ..manifest import IMAGE_SHARDS, RunCard, shard_name
from ..store import layout


def stored_files(path: str, run: RunCard) -> dict[str, int]:
    """Path inside the output → bytes, for all files in the folders of shards, including manifests."""
    if run.format == IMAGE_SHARDS:
        in_root = files.sizes(path)
        found = {name: size for name, size in in_root.items() if _of_a_shard(name)}
        folders: Iterable[str] = ("manifest",)
    else:
        found, folders = {}, layout.FOLDERS
    for folder in folders:
        listed = files.sizes(files.join(path, folder))
        found |= {posixpath.join(folder, name): size for name, size in listed.items()}
    return found


def _of_a_shard(name: str) -> bool:
    return name.split(".")[0].isdecimal()


def shard_paths(run: RunCard, number: int) -> set[str]:
    """Every file that the shard with that number may have, including its manifest."""
    name = shard_name(number, run.shard_digits)
    if run.format == IMAGE_SHARDS:
        return {f"{name}.tar", f"{name}.parquet", f"manifest/{name}.json"}
    return {*layout.data_paths(number, run.shard_digits), f"manifest/{name}.json"}
