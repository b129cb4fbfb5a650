"""Samples from webdataset tars: one tar, a folder, a glob or a brace pattern, on any fsspec path."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from .. import files, manifest, tar
from ..accounts import Ledger
from ..errors import InputError
from ..types import Reject, Sample, SourceShard
from . import locations
from .base import Digest, NoDigest, Survey
from .compression import TAR_SUFFIXES as TAR_SUFFIXES
from .compression import Damaged, decompressed
from .grouping import samples
from .names import Name, Naming, printable
from .sample import LFS_REMEDY, Member, SampleRules, is_lfs_pointer

_KEYS_REMEMBERED = 64
_POINTER_BYTES = 64


@dataclass(frozen=True, slots=True)
class WebdatasetReader:
    """Reads `data`, a location or pattern. Shard names are paths relative to the part of `data` before any wildcard."""

    unit = "member"

    data: str
    rules: SampleRules

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The tars of `data`, sorted by name; in a folder written by `fetch`, the committed ones."""
        return self.survey(known).shards

    def survey(self, known: Sequence[SourceShard]) -> Survey:
        """See `Reader`."""
        found = self._found()
        return Survey(locations.as_shards(self.data, found.locations, ".tar"), found.accounts)

    def _found(self) -> locations.FoundFiles:
        if not locations.is_pattern(self.data) and files.is_folder(self.data):
            run = manifest.read_run(self.data)
            if run is not None and run.format == manifest.IMAGE_SHARDS:
                numbers = manifest.committed_numbers(self.data)
                committed = [f"{manifest.shard_name(n, run.shard_digits)}.tar" for n in numbers]
                return locations.of_names(self.data, committed)
        return locations.locate(self.data, TAR_SUFFIXES)

    def read(self, shard: SourceShard, digest: Digest, ledger: Ledger | None = None) -> Iterator[Sample | Reject]:
        """The samples of one tar. A torn tar ends with a `shard_truncated` reject; earlier samples are kept."""
        location = locations.location_of(self.data, shard.name)
        with files.reading(location) as raw:
            yield from self._samples(location, _HashedStream(raw, digest), ledger, None)

    def read_some(self, shard: SourceShard, keys: Container[str]) -> Iterator[Sample | Reject]:
        """See `Selective`. In an uncompressed tar on a local disk, other members are not read."""
        return self._seeking(shard, keys, None)

    def count(self, shard: SourceShard, ledger: Ledger) -> None:
        """See `Counting`."""
        for _ in self._seeking(shard, (), ledger):
            pass

    def _seeking(self, shard: SourceShard, keys: Container[str], ledger: Ledger | None) -> Iterator[Sample | Reject]:
        location = locations.location_of(self.data, shard.name)
        with files.reading(location) as raw:
            # In a remote one all is read: a request after each gap would take longer.
            stored = _SeekingStream(raw) if files.is_local(location) else _HashedStream(raw, NoDigest())
            yield from self._samples(location, stored, ledger, keys)

    def _samples(
        self, location: str, stored: _HashedStream, ledger: Ledger | None, keys: Container[str] | None
    ) -> Iterator[Sample | Reject]:
        if is_lfs_pointer(stored.peek(_POINTER_BYTES)):
            raise InputError(f"{location}: a pointer of Git LFS, not the file", LFS_REMEDY)
        ledger = ledger or Ledger(self.unit)
        members = _TarMembers(stored, self._naming(), ledger, self.rules, keys)
        yield from samples(members, self.rules, ledger)

    def _naming(self) -> Naming:
        rules = self.rules
        return Naming(True, rules.reading, rules.image_member, rules.caption_member)


class _TarMembers:
    """The files of a tar, in order; damage ends them and is reported in `torn`."""

    def __init__(
        self,
        stored: _HashedStream,
        naming: Naming,
        ledger: Ledger,
        rules: SampleRules,
        keys: Container[str] | None = None,
    ) -> None:
        """keys: of the wanted samples; None for all."""
        self._stored = stored
        self._naming = naming
        self._ledger = ledger
        self._rules = rules
        self._keys = keys
        self._beside: dict[str, list[str]] = {}
        self._name: Name | None = None  # of the member that was asked about last
        self.torn: str | None = None

    def __iter__(self) -> Iterator[Member]:
        try:
            for entry in tar.entries(decompressed(self._stored, self._stored.peek(_POINTER_BYTES)), self._takes):
                self._ledger.see()
                member = self._member(entry)
                if isinstance(member, Member):
                    yield member
                else:
                    self._ledger.pass_over(printable(entry.path), member)
        except (tar.TarDamaged, Damaged) as problem:
            self.torn = f"the tar is damaged: {problem or 'it ends early'}"
        self._stored.drain()

    def _member(self, entry: tar.Entry) -> Member | str:
        """The member, or why it is passed over."""
        if entry.what != tar.FILE:
            return entry.what
        name = self._named(entry.path)
        if name.passed is None and name.kind is None:
            kind = name.kind_by(entry.start)
            name = replace(name, kind=kind, passed=None if kind else name.unknown())
        if name.passed is None:
            return Member(name, entry.data, size=entry.size)
        if name.passed != "hidden":
            self._remember(name)
        return name.passed

    def _remember(self, name: Name) -> None:
        for key in {printable(name.key), printable(name.stem)}:
            self._beside.setdefault(key, []).append(printable(name.base))
        while len(self._beside) > _KEYS_REMEMBERED:
            del self._beside[next(iter(self._beside))]

    def beside(self, key: str) -> Sequence[str]:
        """Names of members with this key that are of no kind; of recent ones only."""
        return self._beside.get(key, ())

    def _named(self, path: str) -> Name:
        if self._name is None or self._name.path != path:
            self._name = self._naming(path)
        return self._name

    def _takes(self, path: str, size: int, start: bytes | None) -> bool | None:
        name = self._named(path)
        if name.passed is not None:
            return False
        kind = name.kind
        if kind is None:
            if start is None:
                return None
            kind = name.kind_by(start)
        if kind is None or size > self._rules.most_bytes(kind):
            return False
        return self._keys is None or printable(name.key) in self._keys or printable(name.stem) in self._keys


class _HashedStream:
    """A stream of a shard's stored bytes that updates a digest with everything read."""

    def __init__(self, raw: BinaryIO, digest: Digest) -> None:
        self._raw = raw
        self._digest = digest
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """Peek at the first `size` bytes, which the next `read` returns again."""
        self._ahead = self.read(size)
        return self._ahead

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; fewer only at the end, or after a `peek`."""
        if self._ahead:
            cut = len(self._ahead) if size < 0 else size
            data, self._ahead = self._ahead[:cut], self._ahead[cut:]
            return data if size >= 0 else data + self.read(size)
        data = self._raw.read(size)
        self._digest.update(data)
        return data

    def drain(self) -> None:
        """Read to the end, so that the digest covers the whole file."""
        while self.read(1 << 20):
            pass


class _SeekingStream(_HashedStream):
    """A stream without a digest: unwanted bytes are not read."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(raw, NoDigest())
        self._end = raw.seek(0, os.SEEK_END)
        raw.seek(0)

    def pass_over(self, size: int) -> bool:
        """Skip the next `size` bytes; False if the file ends before."""
        known = min(len(self._ahead), size)
        self._ahead = self._ahead[known:]
        return self._raw.seek(size - known, os.SEEK_CUR) <= self._end
