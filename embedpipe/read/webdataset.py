"""Samples from webdataset tars: one tar, a folder, a glob or a brace pattern, on any fsspec path."""

from __future__ import annotations

import gzip
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO, Protocol, cast

from .. import files, manifest
from ..types import Reject, Sample, SourceShard
from . import places
from .base import Digest
from .grouping import SampleRules, Split, readable, samples, split_at_first_dot, wanted

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class WebdatasetReader:
    """Reads `data`, a location or pattern. Shard names are paths below the part of `data` that holds no wildcard."""

    data: str
    rules: SampleRules

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The tars `data` names, sorted by name; in a folder written by `fetch`, the committed ones."""
        return places.as_shards(self.data, self._locations(), ".tar")

    def _locations(self) -> list[str]:
        if not places.is_pattern(self.data) and files.is_folder(self.data):
            run = manifest.read_run(self.data)
            if run is not None and run.format == manifest.IMAGE_SHARDS:
                numbers = manifest.committed_numbers(self.data)
                return [files.join(self.data, f"{manifest.shard_name(n, run.shard_digits)}.tar") for n in numbers]
        return places.locations(self.data, TAR_SUFFIXES)

    def read(self, shard: SourceShard, digest: Digest) -> Iterator[Sample | Reject]:
        """The samples of one tar. A tear ends it with a `shard_truncated` reject; what came before is kept."""
        with files.reading(files.join(places.root(self.data), shard.name)) as raw:
            yield from samples(_TarMembers(raw, digest), self.rules)


class _TarMembers:
    """The wanted files of a tar, in order; damage ends them and is told in `torn`."""

    def __init__(self, raw: BinaryIO, digest: Digest) -> None:
        self._stored = _HashedStream(raw, digest)
        self.torn: str | None = None
        self.split: Split = split_at_first_dot

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        try:
            packed = self._stored.peek(2) == _GZIP_MAGIC
            plain = _PlainStream(gzip.GzipFile(fileobj=cast("IO[bytes]", self._stored)) if packed else self._stored)
            with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r|") as archive:
                for entry in archive:
                    # A sparse file may claim any size without holding a byte.
                    if entry.isreg() and not entry.issparse() and wanted(entry.name, self.split):
                        yield entry.name, _contents(archive, entry) if readable(entry.name, entry.size) else None
                    # Stream mode still remembers every entry; without this, memory would grow with the tar.
                    archive.members = []  # type: ignore[attr-defined]
                plain.drain()
                self.torn = _tear(plain, archive.offset)
        except _DAMAGE as problem:
            self.torn = f"the tar is damaged: {problem or 'it ends early'}"
        self._stored.drain()


# What tarfile and gzip raise on damaged bytes; headers are parsed with int() and struct.
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, OverflowError, struct.error)


def _tear(plain: _PlainStream, end: int) -> str | None:
    """What is wrong behind the last member of a tar, which ends at byte `end`: tarfile stops there without a word."""
    if plain.position <= end:
        return "no end-of-archive mark: the tar was cut off between two members"
    if plain.last_nonzero > end:
        return f"the tar is damaged: what follows byte {end} is no member"
    return None


def _contents(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(entry)
    data = opened.read() if opened is not None else b""
    if len(data) < entry.size:
        raise tarfile.ReadError(f"{entry.name!r} ends after {len(data)} of {entry.size} bytes")
    return data


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _HashedStream:
    """The stored bytes of a shard; feeds all that is read to a digest."""

    def __init__(self, raw: BinaryIO, digest: Digest) -> None:
        self._raw = raw
        self._digest = digest
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """The first `size` bytes, which the next `read` returns again."""
        self._ahead = self.read(size)
        return self._ahead

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; fewer only at the end, or after a `peek`."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        data = self._raw.read(size)
        self._digest.update(data)
        return data

    def drain(self) -> None:
        """Read to the end, so that the digest covers the whole file."""
        while self.read(1 << 20):
            pass


class _PlainStream:
    """The bytes of the tar itself, unpacked. position: bytes read; last_nonzero: where the zeros at the end begin."""

    def __init__(self, stored: _Readable) -> None:
        self._stored = stored
        self.position = 0
        self.last_nonzero = 0

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes."""
        data = self._stored.read(size)
        if filled := len(data.rstrip(b"\0")):
            self.last_nonzero = self.position + filled
        self.position += len(data)
        return data

    def drain(self) -> None:
        """Read to the end."""
        while self.read(1 << 20):
            pass
