"""Local read-only copies of remote files: downloaded once, and checked."""

from __future__ import annotations

import json

from .. import files
from ..errors import InputError
from ..files import Written
from ..lock import planning
from .paths import cache_root, folder_for

_KNOWN = ".copied.json"
_NOT_OF_THE_MODEL = ("checkpoints", "cache", "join", "samples", "reconstructions")


def local_file(location: str, wanted: Written) -> str:
    """A local copy of a remote file with known size and checksum; a local location is returned unchanged.

    Stored by content, so that the same bytes are downloaded once. Raises InputError, StorageFailed (its content
    differs), DiskFull, OutputUnwritable.
    """
    if files.is_local(location):
        return location
    place = files.join(cache_root(), "files", wanted.sha256)
    if not files.has_size(place, wanted.bytes):
        files.download(location, place, wanted)
    return place


def local_copy(folder: str, leave: tuple[str, ...] = _NOT_OF_THE_MODEL) -> str:
    """An up-to-date local copy of a remote run folder; a local folder is returned unchanged.

    leave: names of folders in it to skip. Raises InputError if there is nothing.
    """
    if files.is_local(folder):
        return folder
    copy = folder_for(folder, "copies")
    there = [path for path in files.walk(folder) if _wanted(path, leave)]
    if not there:
        raise InputError(f"{folder}: no such folder", "Check the path")
    with planning(copy):  # one process downloads a copy, others wait for it
        place = files.join(copy, _KNOWN)
        known = json.loads(files.read_if_there(place) or b"{}")
        stats = files.each(folder, lambda path: files.stat(files.join(folder, path)), there)
        for path, stat in zip(there, stats, strict=True):
            here = files.join(copy, path)
            mark = [stat.bytes, stat.modified]
            same = stat.modified and known.get(path) == mark and files.has_size(here, stat.bytes)
            if not same:
                files.download(files.join(folder, path), here)
                known[path] = mark
        for path in files.walk(copy):
            if path not in there and not path.startswith("."):
                files.remove(files.join(copy, path))
        files.write_bytes(place, json.dumps(known).encode())
    return copy


def _wanted(path: str, leave: tuple[str, ...]) -> bool:
    parts = path.split("/")
    return not any(part.startswith(".") for part in parts) and not set(parts[:-1]) & set(leave)
