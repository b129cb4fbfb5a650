"""A local folder that mirrors a location in a store, commit by commit.

The store is authoritative. The folder is a copy that may be ahead by the work since the last commit, and records the
commit it is based on. If the store's last commit is another one, somebody else continued, or the store was emptied:
then the folder is reset to the store, and its uncommitted work is lost, to be done again.

    FOLDER/.mirror.json    the commit that the folder is based on, and the checksums of files hashed earlier
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..errors import InputError, OutputBusy
from ..files import Written
from . import commits
from .commits import Commit

logger = logging.getLogger(__name__)

# What says that other files are there goes after them: documents, the outermost last of all.
_LAST = (".json", ".manifest")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which files of a folder belong to a piece of work, by their first name below it (patterns as of a shell).

    own: nobody else writes these, so that what a killed upload left of them is removed, and what lies there of them
    before the first commit is taken over. leave: stay on this machine. rest: whether all other files go along, too.
    name: tells the commits of several works apart that share a folder. Hidden files stay on this machine, except for a
    folder that is named in `own`.
    """

    own: tuple[str, ...]
    leave: tuple[str, ...] = ()
    rest: bool = True
    name: str = ""

    def owns(self, path: str) -> bool:
        """Whether nobody else writes that file."""
        return _matches(path, self.own)

    def holds(self, path: str) -> bool:
        """Whether that file is one of this work."""
        owned = self.owns(path)
        hidden = any(part.startswith(".") for part in path.split("/")[owned:])
        return (owned or self.rest) and not hidden and not _matches(path, self.leave)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path.partition("/")[0], pattern) for pattern in patterns)


class Mirror:
    """One local folder and the url it belongs to. Hold the lock of the folder."""

    def __init__(self, url: str, folder: str, scope: Scope) -> None:
        self.url = url.rstrip("/")
        self.folder = folder
        self.scope = scope
        self._name = f"{scope.name}-" if scope.name else ""
        self._kept = _Kept(files.join(folder, f".mirror{'-' * bool(scope.name)}{scope.name}.json"), self.url)
        self._last = Commit(-1, {})
        self._swept = False

    def begin(self) -> None:
        """Make the folder hold at least what is committed: after this, work goes on from there.

        Raises OutputBusy (another machine begins at this moment), DatasetError (a damaged commit), StorageFailed.
        """
        last = commits.newest(self.url, self._name)
        if last is None:
            last = self._adopt()
        else:
            self._put_in_place(last)
            if last.mark() not in self._kept.marks:
                self._take_over(last)
        self._last = last
        self._kept.note([last.mark()])

    def commit(self) -> None:
        """Upload what is new in the folder, and remove from the store what is gone; nothing to do where they are alike.

        Raises OutputBusy when another machine has committed since, StorageFailed, OutputUnwritable. The folder stays as
        it is then.
        """
        now = Commit(self._last.number + 1, self._here())
        if now.files != self._last.files:
            self._upload(now)
            # Both, since it may be written and the answer not heard.
            self._kept.note([self._last.mark(), now.mark()])
            if not commits.add(self.url, self._name, now):
                raise self._overtaken()
            self._kept.note([now.mark()])
            gone = self._last.files.keys() - now.files.keys()
            self._last = now
            self._put_in_place(now)
            self._remove_there(gone)
            commits.forget_before(self.url, self._name, now.number)
        if not self._swept:
            self._swept = True
            self._sweep()

    def _upload(self, now: Commit) -> None:
        """Upload the bytes that are new in a commit, unless another one came in between."""
        last = commits.newest(self.url, self._name)
        if last is None or last.mark() != self._last.mark():
            raise self._overtaken()
        there = commits.waiting(self.url, self._name)
        for path, written in now.files.items():
            if self._last.files.get(path) != written and there.get(written.sha256) != written.bytes:
                files.upload(files.join(self.folder, path), self._waits_at(written.sha256))
                there[written.sha256] = written.bytes

    def _put_in_place(self, last: Commit) -> None:
        """Give files of the last commit their places, where that was not done yet."""
        there = commits.waiting(self.url, self._name)
        for path in sorted((path for path, it in last.files.items() if it.sha256 in there), key=_turn):
            place = files.join(self.url, path)
            try:
                files.copy(self._waits_at(last.files[path].sha256), place)
            except InputError:  # another process was quicker
                if not files.has_size(place, last.files[path].bytes):
                    raise
        for written in last.files.values():
            if there.pop(written.sha256, None) is not None:
                files.remove(self._waits_at(written.sha256))

    def _sweep(self) -> None:
        """Remove what killed commands left in the store. Others that work there now are at this commit, or refused."""
        commits.forget_before(self.url, self._name, self._last.number)
        strays = [path for path in self._owned_there() if path not in self._last.files]
        waiting = commits.waiting(self.url, self._name)
        if not strays and not waiting:
            return
        last = commits.newest(self.url, self._name)
        if last is None or last.mark() != self._last.mark():
            return
        self._remove_there(strays)
        for checksum in waiting:
            files.remove(self._waits_at(checksum))

    def _waits_at(self, checksum: str) -> str:
        return commits.waits_at(self.url, self._name, checksum)

    def _here(self) -> dict[str, Written]:
        """The files of this work in the folder."""
        return {path: self._kept.hashed(self.folder, path) for path in self._paths()}

    def _paths(self) -> list[str]:
        return [path for path in files.walk(self.folder) if self.scope.holds(path)]

    def _adopt(self) -> Commit:
        """The first commit: of what lies in the store already, such as a run that was copied there."""
        there: list[str] = []
        if self._owned_there():
            there = [path for path in files.walk(self.url) if self.scope.holds(path)]
        self._let_go()
        for path in there:
            files.download(files.join(self.url, path), files.join(self.folder, path))
        self._remove_here(path for path in self._paths() if path not in set(there))
        first = Commit(0, self._here())
        if not commits.add(self.url, self._name, first):
            raise self._overtaken()
        return first

    def _take_over(self, last: Commit) -> None:
        """Make the folder like that commit."""
        here = self._here()
        self._let_go()
        self._remove_here(here.keys() - last.files.keys())
        for path, written in last.files.items():
            if here.get(path) != written:
                files.download(files.join(self.url, path), files.join(self.folder, path), written)

    def _let_go(self) -> None:
        """Before the folder is made like the store: until that is done, it goes on from no commit."""
        if self._kept.marks and self._paths():
            logger.warning(
                "%s: was changed from elsewhere since this machine last wrote to it; work goes on from what is there",
                self.url,
            )
        self._kept.note([])

    def _remove_here(self, paths: Iterable[str]) -> None:
        """Remove files, and the folders that are empty then."""
        for path in list(paths):
            place = Path(self.folder) / path
            place.unlink()
            with contextlib.suppress(OSError):  # one that is not empty
                os.removedirs(place.parent)

    def _owned_there(self) -> list[str]:
        """What lies in the store of the files that nobody else writes."""
        found: list[str] = []
        for name in filter(self.scope.owns, files.names(self.url)):
            below = files.walk(files.join(self.url, name))
            found += [f"{name}/{path}" for path in below] or [name]
        return found

    def _remove_there(self, paths: Iterable[str]) -> None:
        for path in sorted(paths, key=_turn, reverse=True):
            files.remove(files.join(self.url, path))

    def _overtaken(self) -> OutputBusy:
        return OutputBusy(
            f"{self.url}: another machine writes to it: it has committed since this command began",
            "Wait for that one's end. Run again, this one goes on from there",
        )


def _turn(path: str) -> tuple[bool, int, str]:
    """In which order files come to their places, and in reverse go, so that none is announced that is not there."""
    return (path.endswith(_LAST), -path.count("/"), path)


class _Kept:
    """What a folder remembers of its mirror. marks: of the commits that it may go on from."""

    def __init__(self, place: str, url: str) -> None:
        self._place = place
        self._url = url
        content: Any = {}
        with contextlib.suppress(ValueError):
            content = json.loads(files.read_if_there(place) or b"{}")
        if content.get("url") != url:
            content = {}
        self.marks: list[str] = content.get("marks", [])
        self._seen: dict[str, list[Any]] = content.get("seen", {})

    def note(self, marks: list[str]) -> None:
        """Remember these commits, durably."""
        self.marks = marks
        content = {"url": self._url, "marks": marks, "seen": self._seen}
        files.write_bytes(self._place, (json.dumps(content) + "\n").encode())

    def hashed(self, folder: str, path: str) -> Written:
        """Size and checksum of a file, which is read again only where it has changed."""
        place = files.join(folder, path)
        stat = files.stat(place)
        seen = self._seen.get(path)
        if seen is None or seen[:2] != [stat.bytes, stat.modified]:
            seen = self._seen[path] = [stat.bytes, stat.modified, files.sha256(place)]
        return Written(seen[0], seen[2])
