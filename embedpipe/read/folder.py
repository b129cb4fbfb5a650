"""Samples from a folder of loose images, with captions (.txt) and metadata (.json) beside them, at any depth."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .. import files
from ..accounts import Ledger
from ..errors import EmptyInput, InputError, StorageFailed
from ..types import Reject, Sample, SourceShard
from .base import Digest, Survey
from .grouping import samples
from .listing import list_files
from .names import IMAGE, Naming, printable
from .sample import Member, SampleRules

_CHUNK = 1 << 20

# What says nothing about the file: it may be read in a moment, so that the shard is tried again.
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Reads the loose files below `data`, divided into numbered shards of `samples_per_shard` keys in path order."""

    unit = "file"

    data: str
    rules: SampleRules
    samples_per_shard: int = 10_000

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The current state of known shards (files with a known key belong to its shard), then new shards."""
        return self.survey(known).shards

    def survey(self, known: Sequence[SourceShard]) -> Survey:
        """See `Reader`."""
        ledger = Ledger(self.unit)
        stats = list_files(self.data, self.naming, ledger)
        if not stats:
            what = "images" if self.rules.need_image else "captions"
            said = ledger.closed().said()
            raise EmptyInput(f"{self.data}: no {what} in it" + f" ({said})" * bool(said), _LOOKED_FOR[what])

        return Survey(self.cut(stats, known), ledger.closed())

    def cut(
        self, stats: Mapping[str, files.FileStat], known: Sequence[SourceShard], name_of: str = "part"
    ) -> list[SourceShard]:
        """Files as shards: those with a key of a known shard belong to it, others to new ones, in path order."""
        by_key: dict[str, list[str]] = {}
        for path in sorted(stats, key=lambda p: (self._key(p), p)):
            by_key.setdefault(self._key(path), []).append(path)
        home = {key: shard.name for shard in known for key in map(self._key, shard.members)}
        cuts: dict[str, list[str]] = {}
        fresh = [key for key in by_key if key not in home]
        for key in by_key:
            if key in home:
                cuts.setdefault(home[key], []).extend(by_key[key])
        for start in range(0, len(fresh), self.samples_per_shard):
            name = f"{name_of}-{len(known) + start // self.samples_per_shard:05d}"
            cuts[name] = [path for key in fresh[start : start + self.samples_per_shard] for path in by_key[key]]
        return [_shard(name, paths, stats) for name, paths in cuts.items()]

    def read(self, shard: SourceShard, digest: Digest, ledger: Ledger | None = None) -> Iterator[Sample | Reject]:
        """The samples of one shard, from its files. One that cannot be read is a reject."""
        ledger = ledger or Ledger(self.unit)
        return samples(LooseMembers(self, shard, digest, ledger), self.rules, ledger)

    def count(self, shard: SourceShard, ledger: Ledger) -> None:
        """See `Counting`."""
        for _ in samples(NamedMembers(self.naming, shard.members, ledger), self.rules, ledger):
            pass

    @property
    def naming(self) -> Naming:
        """The rule for the names of files."""
        return Naming(first_dot=False, reading=self.rules.reading)

    def _key(self, path: str) -> str:
        return self.naming(path).key


_LOOKED_FOR = {
    "images": "Looked for images of any format, by extension and by content",
    "captions": "Looked for .txt and .json",
}


class NamedMembers:
    """Members of a folder by their names alone, all of which were listed: those of unknown kind are images."""

    torn: str | None = None

    def __init__(self, naming: Naming, paths: Sequence[str], ledger: Ledger) -> None:
        self._naming = naming
        self._paths = paths
        self._ledger = ledger

    def __iter__(self) -> Iterator[Member]:
        for path in self._paths:
            self._ledger.see()
            name = self._naming(path)
            yield self.read(Member(name if name.kind else replace(name, kind=IMAGE, passed=None)))

    def read(self, member: Member) -> Member:
        """The member with its contents."""
        return member

    def beside(self, key: str) -> Sequence[str]:
        """None are known."""
        return ()


class LooseMembers(NamedMembers):
    """The files of one shard, in order. Loose files are never torn."""

    def __init__(self, reader: FolderReader, shard: SourceShard, digest: Digest, ledger: Ledger) -> None:
        super().__init__(reader.naming, shard.members, ledger)
        self._folder = reader.data
        self._rules = reader.rules
        self._digest = digest
        self._siblings = Siblings(reader.data, reader.naming)

    def read(self, member: Member) -> Member:
        path = member.name.path
        data = read_loose(self._folder, member, self._rules)
        if isinstance(data, str):
            self._digest.update(f"{path}\0unreadable\0".encode("utf-8", "surrogateescape"))
            return replace(member, problem=data)
        if data is None:
            self._hash_alone(path)
            return member
        self._digest.update(f"{path}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
        self._digest.update(data)
        return replace(member, data=data)

    def _hash_alone(self, path: str) -> None:
        """The digest of a file that is too large to be read at once."""
        location = files.join(self._folder, path)
        with files.reading(location) as stream:
            self._digest.update(f"{path}\0{files.stat(location).bytes}\0".encode("utf-8", "surrogateescape"))
            while chunk := stream.read(_CHUNK):
                self._digest.update(chunk)

    def beside(self, key: str) -> Sequence[str]:
        return self._siblings(key)


def read_loose(folder: str, member: Member, rules: SampleRules) -> bytes | str | None:
    """The contents of a file, why it cannot be read, or None for one that is too large.

    On a local disk that is not read. Raises InputError if the folder is gone, or the failure says nothing about the
    file; StorageFailed.
    """
    path, most = member.name.path, rules.most_bytes(member.name.kind)
    location = files.join(folder, path)
    try:
        if files.is_local(location) and files.stat(location).bytes > most:
            return None
        data = files.read_bytes(location)
        return data if len(data) <= most else None
    except StorageFailed:
        raise
    except (InputError, OSError) as problem:
        said = unreadable(problem, location)
        if not files.is_folder(folder):
            raise InputError(f"{folder}: no such folder", "Check the path") from problem
        return said


def unreadable(problem: InputError | OSError, location: str) -> str:
    """Why a file cannot be read. Raises InputError if that says nothing about the file, which may be read later."""
    if isinstance(problem, OSError) and problem.errno in _PASSING:
        raise InputError(f"{printable(location)}: {problem.strerror}", "Try again") from problem
    said = problem.what if isinstance(problem, InputError) else str(problem.strerror or problem)
    return said.rpartition(": ")[2]


class Siblings:
    """Files that lie beside those of a sample, listed once for each folder."""

    def __init__(self, folder: str, naming: Naming) -> None:
        self._folder = folder
        self._naming = naming
        self._listed: dict[str, dict[str, list[str]]] = {}

    def __call__(self, key: str) -> Sequence[str]:
        """Names of files with this key that belong to no sample."""
        lead = key.rpartition("/")[0]
        if lead not in self._listed:
            by_key: dict[str, list[str]] = {}
            self._listed[lead] = by_key
            for base in files.sizes(files.join(self._folder, lead) if lead else self._folder):
                name = self._naming(f"{lead}/{base}" if lead else base)
                if name.kind is None:
                    by_key.setdefault(printable(name.stem), []).append(printable(base))
        return self._listed[lead].get(key, ())


def _shard(name: str, paths: list[str], stats: Mapping[str, files.FileStat]) -> SourceShard:
    marks = hashlib.sha256()
    for path in paths:
        marks.update(f"{path}\0{stats[path].bytes}\0{stats[path].modified}\0".encode("utf-8", "surrogateescape"))
    total = sum(stats[path].bytes for path in paths)
    return SourceShard(name, total, marks.hexdigest(), tuple(paths))
