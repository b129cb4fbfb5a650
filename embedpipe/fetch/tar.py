"""A tar whose bytes depend on its members alone: no clock, no user, no file mode of the machine that wrote it."""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO

from ..files import Written

_BLOCK = 512
_RECORD = 10_240  # tar's habit: the file's length is a multiple of twenty blocks


class TarWriter:
    """Writes members in the order given to `stream`, hashing on the way."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one file; where its bytes begin."""
        info = tarfile.TarInfo(name)  # mtime 0, uid and gid 0, no names, mode 0644
        info.size = len(data)
        self._put(info.tobuf(tarfile.GNU_FORMAT))
        begins = self.bytes
        self._put(data)
        self._put(bytes(-len(data) % _BLOCK))
        return begins

    def finish(self) -> Written:
        """End the tar."""
        self._put(bytes(2 * _BLOCK))
        self._put(bytes(-self.bytes % _RECORD))
        return Written(self.bytes, self.digest.hexdigest())

    def _put(self, data: bytes) -> None:
        self.stream.write(data)
        self.digest.update(data)
        self.bytes += len(data)
