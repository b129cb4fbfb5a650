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

# Files that refer to others are written after them: documents, the outermost last.
_LAST = (".json", ".manifest")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which files of a folder belong to a job, by the first component of their path (shell patterns).

    own: nobody else writes these, so leftovers of a killed upload are removed, and those that exist before the first
    commit are adopted. leave: not uploaded. rest: whether to include all other files. name: distinguishes the commits
    of several jobs that share a folder. Hidden files are not uploaded, except for a folder named in `own`.
    """

    own: tuple[str, ...]
    leave: tuple[str, ...] = ()
    rest: bool = True
    name: str = ""

    def owns(self, path: str) -> bool:
        """Whether only this job writes that file."""
        return _matches(path, self.own)

    def holds(self, path: str) -> bool:
        """Whether that file belongs to this job."""
        owned = self.owns(path)
        hidden = any(part.startswith(".") for part in path.split("/")[owned:])
        return (owned or self.rest) and not hidden and not _matches(path, self.leave)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path.partition("/")[0], pattern) for pattern in patterns)


class Mirror:
    """A local folder and its url. Use it with the folder locked."""

    def __init__(self, url: str, folder: str, scope: Scope) -> None:
        self.url = url.rstrip("/")
        self.folder = folder
        self.scope = scope
        self._name = f"{scope.name}-" if scope.name else ""
        self._kept = _Kept(files.join(folder, f".mirror{'-' * bool(scope.name)}{scope.name}.json"), self.url)
        self._last = Commit(-1, {})
        self._swept = False

    def begin(self) -> None:
        """Bring the folder at least to the last commit, to continue from there.

        Raises OutputBusy (another machine starts at that moment), DatasetError (a damaged commit), StorageFailed.
        """
        last = commits.newest_commit(self.url, self._name)
        if last is None:
            last = self._adopt()
        else:
            self._put_in_place(last)
            if last.mark() not in self._kept.marks:
                self._take_over(last)
        self._last = last
        self._kept.note([last.mark()])

    def commit(self) -> None:
        """Upload new files of the folder, and remove deleted ones from the store; a no-op if nothing has changed.

        Raises OutputBusy if another machine has committed since, StorageFailed, OutputUnwritable. The folder is left
        unchanged in these cases.
        """
        now = Commit(self._last.number + 1, self._here())
        if now.files != self._last.files:
            self._upload(now)
            # Both, since the write may succeed although the response is lost.
            self._kept.note([self._last.mark(), now.mark()])
            if not commits.add_commit(self.url, self._name, now):
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
        """Upload the new bytes of a commit, unless another commit intervened."""
        last = commits.newest_commit(self.url, self._name)
        if last is None or last.mark() != self._last.mark():
            raise self._overtaken()
        there = commits.waiting_commits(self.url, self._name)
        for path, written in now.files.items():
            if self._last.files.get(path) != written and there.get(written.sha256) != written.bytes:
                files.upload(files.join(self.folder, path), self._waits_at(written.sha256))
                there[written.sha256] = written.bytes

    def _put_in_place(self, last: Commit) -> None:
        """Copy files of the last commit to their final paths, if not yet done."""
        there = commits.waiting_commits(self.url, self._name)
        for path in sorted((path for path, it in last.files.items() if it.sha256 in there), key=_turn):
            place = files.join(self.url, path)
            try:
                files.copy(self._waits_at(last.files[path].sha256), place)
            except InputError:  # another process was faster
                if not files.has_size(place, last.files[path].bytes):
                    raise
        for written in last.files.values():
            if there.pop(written.sha256, None) is not None:
                files.remove(self._waits_at(written.sha256))

    def _sweep(self) -> None:
        """Remove leftovers of killed commands from the store. Concurrent ones are at this commit, or refused."""
        commits.forget_before(self.url, self._name, self._last.number)
        strays = [path for path in self._owned_there() if path not in self._last.files]
        waiting = commits.waiting_commits(self.url, self._name)
        if not strays and not waiting:
            return
        last = commits.newest_commit(self.url, self._name)
        if last is None or last.mark() != self._last.mark():
            return
        self._remove_there(strays)
        for checksum in waiting:
            files.remove(self._waits_at(checksum))

    def _waits_at(self, checksum: str) -> str:
        return commits.waits_at(self.url, self._name, checksum)

    def _here(self) -> dict[str, Written]:
        """The files of this job in the folder."""
        return {path: self._kept.hashed(self.folder, path) for path in self._paths()}

    def _paths(self) -> list[str]:
        return [path for path in files.walk(self.folder) if self.scope.holds(path)]

    def _adopt(self) -> Commit:
        """The first commit, made from files already in the store, such as a run copied there."""
        there: list[str] = []
        if self._owned_there():
            there = [path for path in files.walk(self.url) if self.scope.holds(path)]
        self._let_go()
        for path in there:
            files.download(files.join(self.url, path), files.join(self.folder, path))
        self._remove_here(path for path in self._paths() if path not in set(there))
        first = Commit(0, self._here())
        if not commits.add_commit(self.url, self._name, first):
            raise self._overtaken()
        return first

    def _take_over(self, last: Commit) -> None:
        """Make the folder match that commit."""
        here = self._here()
        self._let_go()
        self._remove_here(here.keys() - last.files.keys())
        for path, written in last.files.items():
            if here.get(path) != written:
                files.download(files.join(self.url, path), files.join(self.folder, path), written)

    def _let_go(self) -> None:
        """Called before the folder is reset to the store: until that is done, it is based on no commit."""
        if self._kept.marks and self._paths():
            logger.warning(
                "%s: was changed from elsewhere since this machine last wrote to it; work goes on from what is there",
                self.url,
            )
        self._kept.note([])

    def _remove_here(self, paths: Iterable[str]) -> None:
        """Remove files, and folders that become empty."""
        for path in list(paths):
            place = Path(self.folder) / path
            place.unlink()
            with contextlib.suppress(OSError):  # not empty
                os.removedirs(place.parent)

    def _owned_there(self) -> list[str]:
        """The files in the store that only this job writes."""
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
    """The order of copying files to their final paths, and in reverse of removal: none refers to a missing file."""
    return (path.endswith(_LAST), -path.count("/"), path)


class _Kept:
    """The state of a folder's mirror. marks: of the commits that it may be based on."""

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
        """Record these commits durably."""
        self.marks = marks
        content = {"url": self._url, "marks": marks, "seen": self._seen}
        files.write_bytes(self._place, (json.dumps(content) + "\n").encode())

    def hashed(self, folder: str, path: str) -> Written:
        """Size and checksum of a file, which is only read again if it has changed."""
        place = files.join(folder, path)
        stat = files.stat(place)
        seen = self._seen.get(path)
        if seen is None or seen[:2] != [stat.bytes, stat.modified]:
            seen = self._seen[path] = [stat.bytes, stat.modified, files.sha256(place)]
        return Written(seen[0], seen[2])
