"""The loose files below a folder: those that belong to samples, and those that are passed over."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec

from .. import files
from ..accounts import Ledger
from ..errors import InputError
from ..files import FileStat
from ..images.formats import SNIFF_BYTES
from .names import IMAGE, Name, Naming, printable

_RUN_FILE = "embedpipe.json"


@dataclass(frozen=True, slots=True)
class _Listed:
    """One file. stat: size and change mark. passed: why it is no file to read."""

    path: str
    stat: FileStat
    passed: str | None = None


def list_files(folder: str, naming: Naming, ledger: Ledger) -> dict[str, FileStat]:
    """The files below `folder` that belong to samples: path → size and change mark. All others are passed over.

    Links to files are followed, links to folders are not. A link that leads nowhere belongs to a sample if its name
    says so: reading it gives the reject. Raises InputError if there is no such folder.
    """
    if not files.is_folder(folder):
        raise InputError(f"{folder}: no such folder", "Check the path")
    listed = sorted(_below(folder), key=lambda it: it.path)
    # embedpipe's own outputs below the input (`encode photos photos/emb`).
    ours = tuple(it.path.removesuffix(_RUN_FILE) for it in listed if it.path.endswith(f"/{_RUN_FILE}"))
    names = [(it, naming(it.path)) for it in listed]
    undecided = [it.path for it, name in names if not it.passed and name.passed is None and name.kind is None]
    starts = dict(zip(undecided, files.each(folder, lambda path: _start(folder, path), undecided), strict=True))
    found = {}
    for it, name in names:
        ledger.see()
        reason = "own_output" if ours and it.path.startswith(ours) else it.passed or _reason(name, starts)
        if reason is None:
            ledger.use(printable(it.path))
            found[it.path] = it.stat
        else:
            ledger.pass_over(printable(it.path), reason)
    return found


def any_image_below(folder: str, naming: Naming) -> bool:
    """Whether there is an image at any depth, by name or else by content; as soon as one is found."""
    undecided = []
    for it in _below(folder):
        name = naming(it.path)
        if it.passed is None and name.passed is None:
            if name.kind == IMAGE:
                return True
            undecided += [name] if name.kind is None else []
    return any(name.kind_by(_start(folder, name.path) or b"") for name in undecided)


def _reason(name: Name, starts: dict[str, bytes | None]) -> str | None:
    if name.passed is not None or name.kind is not None:
        return name.passed
    start = starts[name.path]
    if start is None:
        return "unreadable"
    return None if name.kind_by(start) else name.unknown()


def _start(folder: str, path: str) -> bytes | None:
    try:
        return files.read_range(files.join(folder, path), 0, SNIFF_BYTES)
    except (InputError, OSError):
        return None


def _below(folder: str) -> Iterator[_Listed]:
    return _local(folder) if files.is_local(folder) else _remote(folder)


def _remote(folder: str) -> Iterator[_Listed]:
    fs, root = fsspec.core.url_to_fs(folder)
    for path, info in files.ask(folder, lambda: fs.find(root, detail=True)).items():
        mark = info.get("mtime") or info.get("ETag") or info.get("etag") or info.get("LastModified") or ""
        yield _Listed(str(path)[len(root.rstrip("/")) + 1 :], FileStat(int(info["size"]), str(mark)))


def _local(folder: str) -> Iterator[_Listed]:
    root = files.local_path(folder)
    lead = len(str(root).rstrip("/")) + 1
    unlisted: list[OSError] = []
    for place, folders, names in os.walk(root, onerror=unlisted.append):
        here = Path(place)
        for path in (*(here / name for name in names), *(it for it in map(here.joinpath, folders) if it.is_symlink())):
            listed = _look(path, str(path)[lead:] if str(root) != "." else str(path))
            if listed is not None:
                yield listed
    for problem in unlisted:
        yield _Listed(str(problem.filename)[lead:], FileStat(0, ""), "unreadable")


def _look(path: Path, relative: str) -> _Listed | None:
    """None if it vanished meanwhile."""
    try:
        own = path.lstat()
    except OSError:
        return None
    # The change mark is that of earlier versions, which asked fsspec: seconds, of the link itself.
    size, mode, mark = own.st_size, own.st_mode, str(own.st_mtime or "")
    if modes.S_ISLNK(mode):
        try:
            target = path.stat()
        except OSError:
            return _Listed(relative, FileStat(0, mark))
        size, mode = target.st_size, target.st_mode
    if modes.S_ISDIR(mode):
        return _Listed(relative, FileStat(0, ""), "linked_folder")
    return _Listed(relative, FileStat(size, mark), None if modes.S_ISREG(mode) else "special")
