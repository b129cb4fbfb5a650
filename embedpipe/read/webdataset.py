"""Samples from webdataset tars: one tar, a folder, a glob or a brace pattern, on any fsspec path."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

import braceexpand

from .. import files, manifest
from ..errors import EmptyInput, InputError
from ..types import Reject, Sample, SourceShard
from .base import Digest
from .grouping import SampleRules, readable, samples, wanted

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_END_OF_ARCHIVE = 1024  # a tar ends with two zero blocks of 512 bytes


@dataclass(frozen=True, slots=True)
class WebdatasetReader:
    """Reads `data`, a location or pattern. Shard names are paths below the part of `data` that holds no wildcard."""

    data: str
    rules: SampleRules

    @property
    def root(self) -> str:
        """The folder that shard names are relative to."""
        return _fixed_folder(self.data)

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The tars `data` names, sorted by name; in a folder written by `fetch`, the committed ones."""
        found = []
        for location in self._locations():
            stat = files.stat(location)
            found.append(SourceShard(location.removeprefix(self.root).lstrip("/"), stat.bytes, stat.modified))
        if not found:
            raise EmptyInput(
                f"{self.data}: no .tar files", "Give a tar, a folder of tars or a pattern that matches some"
            )
        return found

    def _locations(self) -> list[str]:
        if _has_wildcard(self.data):
            patterns = list(braceexpand.braceexpand(self.data))
            return sorted({place for p in patterns for place in (files.glob(p) if _has_wildcard(p) else [p])})
        if not files.is_folder(self.data):
            if not files.exists(self.data):
                raise InputError(f"{self.data}: no such file or folder", "Check the path")
            return [self.data]
        run = manifest.read_run(self.data)
        if run is not None and run.format == manifest.IMAGE_SHARDS:
            numbers = manifest.committed_numbers(self.data)
            return [files.join(self.data, f"{manifest.shard_name(n, run.shard_digits)}.tar") for n in numbers]
        return [files.join(self.data, n) for n in files.names(self.data) if n.lower().endswith(TAR_SUFFIXES)]

    def read(self, shard: SourceShard, digest: Digest) -> Iterator[Sample | Reject]:
        """The samples of one tar. A tear ends it with a `shard_truncated` reject; what came before is kept."""
        with files.reading(files.join(self.root, shard.name)) as raw:
            yield from samples(_TarMembers(raw, digest, shard.name), self.rules)


class _TarMembers:
    """The wanted files of a tar, in order; damage ends them and is told in `torn`."""

    def __init__(self, raw: BinaryIO, digest: Digest, name: str) -> None:
        self._stream = _HashedStream(raw, digest)
        self._plain = name.lower().endswith(".tar")
        self.torn: str | None = None

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", self._stream), mode="r|*") as archive:
                for entry in archive:
                    if entry.isfile() and wanted(entry.name):
                        yield entry.name, _contents(archive, entry) if readable(entry.name, entry.size) else None
                    # Stream mode still remembers every entry; without this, memory would grow with the tar.
                    archive.members = []  # type: ignore[attr-defined]
        except (tarfile.TarError, EOFError, zlib.error) as problem:
            self.torn = f"the tar is damaged: {problem or 'it ends early'}"
        self._stream.drain()
        if self.torn is None and self._plain and any(self._stream.tail):
            self.torn = "no end-of-archive mark: the tar was cut off between two members"


def _contents(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(entry)
    data = opened.read() if opened is not None else b""
    if len(data) < entry.size:
        raise tarfile.ReadError(f"{entry.name!r} ends after {len(data)} of {entry.size} bytes")
    return data


class _HashedStream:
    """A stream that feeds all it reads to a digest and remembers its last bytes."""

    def __init__(self, raw: BinaryIO, digest: Digest) -> None:
        self._raw = raw
        self._digest = digest
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self._digest.update(data)
        self.tail = (self.tail + data)[-_END_OF_ARCHIVE:] if len(data) < _END_OF_ARCHIVE else data[-_END_OF_ARCHIVE:]
        return data

    def drain(self) -> None:
        """Read to the end, so that the digest covers the whole file."""
        while self.read(1 << 20):
            pass


def _has_wildcard(location: str) -> bool:
    return any(mark in location for mark in "*?[{")


def _fixed_folder(data: str) -> str:
    if _has_wildcard(data):
        first = min(data.index(mark) for mark in "*?[{" if mark in data)
        return data[:first].rpartition("/")[0] or ("/" if data.startswith("/") else ".")
    if data.lower().endswith(TAR_SUFFIXES) and not files.is_folder(data):
        return data.rpartition("/")[0] or "."
    return data.rstrip("/") or "/"
