"""Samples from webdataset tars: one tar, a folder, a glob or a brace pattern, on any fsspec path."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

from .. import files, manifest
from ..tar import TarDamaged, regular_files
from ..types import Reject, Sample, SourceShard
from . import locations
from .base import Digest, NoDigest
from .grouping import SampleRules, Split, printable, readable, samples, split_at_first_dot, wanted

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class WebdatasetReader:
    """Reads `data`, a location or pattern. Shard names are paths relative to the part of `data` before any wildcard."""

    data: str
    rules: SampleRules

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The tars of `data`, sorted by name; in a folder written by `fetch`, the committed ones."""
        return locations.as_shards(self.data, self._locations(), ".tar")

    def _locations(self) -> list[str]:
        if not locations.is_pattern(self.data) and files.is_folder(self.data):
            run = manifest.read_run(self.data)
            if run is not None and run.format == manifest.IMAGE_SHARDS:
                numbers = manifest.committed_numbers(self.data)
                return [files.join(self.data, f"{manifest.shard_name(n, run.shard_digits)}.tar") for n in numbers]
        return locations.locations(self.data, TAR_SUFFIXES)

    def read(self, shard: SourceShard, digest: Digest) -> Iterator[Sample | Reject]:
        """The samples of one tar. A torn tar ends with a `shard_truncated` reject; earlier samples are kept."""
        with files.reading(files.join(locations.root(self.data), shard.name)) as raw:
            yield from samples(_TarMembers(_HashedStream(raw, digest)), self.rules)

    def read_some(self, shard: SourceShard, keys: Container[str]) -> Iterator[Sample | Reject]:
        """See `Selective`. In an uncompressed tar on a local disk, other members are not read."""
        location = files.join(locations.root(self.data), shard.name)
        with files.reading(location) as raw:
            # In a remote one they are: a request after each gap would take longer.
            stored = _SeekingStream(raw, NoDigest()) if files.is_local(location) else _HashedStream(raw, NoDigest())
            yield from samples(_TarMembers(stored, keys), self.rules)


class _TarMembers:
    """The files of a tar, in order; damage ends them and is reported in `torn`."""

    def __init__(self, stored: _HashedStream, keys: Container[str] | None = None) -> None:
        """keys: of the wanted samples; None for all."""
        self._stored = stored
        self._keys = keys
        self.torn: str | None = None
        self.split: Split = split_at_first_dot

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        packed = self._stored.peek(2) == _GZIP_MAGIC
        plain = gzip.GzipFile(fileobj=cast("IO[bytes]", self._stored)) if packed else self._stored
        try:
            yield from regular_files(plain, self._takes)
        except (TarDamaged, gzip.BadGzipFile, EOFError, zlib.error) as problem:
            self.torn = f"the tar is damaged: {problem or 'it ends early'}"
        self._stored.drain()

    def _takes(self, path: str, size: int) -> bool:
        if not wanted(path, self.split) or not readable(path, size):
            return False
        place = self.split(path)
        return self._keys is None or (place is not None and printable(place[0]) in self._keys)


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
            data, self._ahead = self._ahead, b""
            return data
        data = self._raw.read(size)
        self._digest.update(data)
        return data

    def drain(self) -> None:
        """Read to the end, so that the digest covers the whole file."""
        while self.read(1 << 20):
            pass


class _SeekingStream(_HashedStream):
    """A stream without a digest: unwanted bytes are not read."""

    def pass_over(self, size: int) -> None:
        """Skip the next `size` bytes, up to the end of the file."""
        known = min(len(self._ahead), size)
        self._ahead = self._ahead[known:]
        self._raw.seek(size - known, os.SEEK_CUR)
