"""Read a response body within its deadline and a byte budget shared by large bodies.

A body that does not start like an image is dropped after its first bytes. Large bodies share a bounded amount of
memory, so 32 threads do not take 32 times the limit.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ...images.formats import SNIFF_BYTES, format_of
from .. import outcome
from ..outcome import Failure, NotFetched
from .deadline import Deadline

_CHUNK = 1 << 16
_LARGE = 2 << 20
_LARGE_TOGETHER = 128 << 20
_HIGHEST_RATIO = 100  # no image has a higher compression ratio; a decompression bomb does
_PIECE = 1 << 20


class ByteBudget:
    """A byte budget shared by large bodies (over 2 MiB).

    A body requests its maximum size at once and then never waits again, so there is no deadlock.
    """

    def __init__(self, together: int = _LARGE_TOGETHER) -> None:
        self.together = together
        self.free = together
        self.changed = threading.Condition()

    def take(self, size: int, deadline: Deadline) -> int:
        """Wait for `size` bytes of the budget; returns the amount to give back. Raises TimeoutError at the deadline."""
        size = min(size, self.together)
        with self.changed:
            while self.free < size:
                self.changed.wait(deadline.wait_s())
            self.free -= size
        return size

    def give_back(self, size: int) -> None:
        """End one `take`."""
        with self.changed:
            self.free += size
            self.changed.notify_all()


@dataclass(slots=True)
class Body:
    """A body. `held`: its share of the `ByteBudget`, to be given back after use."""

    data: bytes
    held: int


class _Decoder:
    """Decompresses gzip or deflate if the body starts like it, whatever its Content-Encoding.

    Neither is requested, but servers send both anyway, and label plain images with either; a body in another encoding
    does not start like an image.
    """

    def __init__(self) -> None:
        self.start: bytes | None = b""
        self.inflate: zlib._Decompress | None = None
        self.taken = 0  # bytes decoded so far

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The decompressed `data`, a few bytes or up to a mebibyte at a time. Raises NotFetched if it is damaged."""
        if self.start is not None:
            data = self.start + data
            self.start = data if len(data) < 2 else None
            if self.start is not None:
                return
            # No image starts with either; a zlib header is a multiple of 31.
            zipped = data[:2] == b"\x1f\x8b" or (data[:1] == b"\x78" and int.from_bytes(data[:2], "big") % 31 == 0)
            self.inflate = zlib.decompressobj(wbits=47) if zipped else None
        if self.inflate is None:
            self.taken += len(data)
            yield data
            return
        try:
            while data and not self.inflate.eof:
                piece = self.inflate.decompress(data, _PIECE)
                self.taken += len(data) - len(self.inflate.unconsumed_tail)
                data = self.inflate.unconsumed_tail
                yield piece
        except zlib.error as problem:
            raise NotFetched(Failure("decode", f"damaged gzip: {problem}")) from problem


class _Reading:
    """One body being read."""

    def __init__(self, response: http.client.HTTPResponse, most: int, deadline: Deadline, large: ByteBudget) -> None:
        self.response = response
        self.most = most
        self.deadline = deadline
        self.large = large
        self.held = 0
        self.decoder = _Decoder()
        self.data = bytearray()

    def read(self) -> None:
        """The complete body."""
        promised = self.response.length
        if promised is not None and promised > self.most:
            raise NotFetched(too_large(self.most))
        wire = 0
        # read1 returns available bytes; read would wait for all of them, even at a byte per second.
        while chunk := self.response.read1(_CHUNK):
            self.deadline.wait_s()
            wire += len(chunk)
            for piece in self.decoder.pieces(chunk):
                self._add(piece, wire)
        if promised is not None and wire < promised:
            raise NotFetched(Failure("connection", f"closed after {wire} of {promised} bytes"))
        if not wire:
            raise NotFetched(Failure("empty", "no body"))
        self._require_image()

    def let_go(self) -> None:
        """Give back its share of the budget."""
        if self.held:
            self.large.give_back(self.held)

    def _add(self, piece: bytes, wire: int) -> None:
        unsure = len(self.data) < SNIFF_BYTES
        self.data += piece
        if max(wire, len(self.data)) > self.most:
            raise NotFetched(too_large(self.most))
        if unsure and len(self.data) >= SNIFF_BYTES:
            self._require_image()
        if len(self.data) > _LARGE and not self.held:
            if len(self.data) > _HIGHEST_RATIO * self.decoder.taken:
                raise NotFetched(Failure("too_large", f"unpacks to over {_HIGHEST_RATIO} times what was sent"))
            promised = self.response.length
            plain = promised is not None and wire == len(self.data)
            self.held = self.large.take(wire + (promised or 0) if plain else self.most, self.deadline)

    def _require_image(self) -> None:
        start = bytes(self.data[:SNIFF_BYTES])
        if format_of(start) is None:
            raise NotFetched(outcome.of_start(start, self.response.headers.get("Content-Type")))


def read(response: http.client.HTTPResponse, most: int, deadline: Deadline, large: ByteBudget) -> Body:
    """Read the body of an image, at most `most` bytes before and after decompression.

    Raises NotFetched, and the connection's OSError and HTTPException.
    """
    reading = _Reading(response, most, deadline, large)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(reading.let_go)
        reading.read()
        on_failure.pop_all()
        return Body(bytes(reading.data), reading.held)


def read_start(response: http.client.HTTPResponse, most: int) -> bytes:
    """The first `most` bytes of a text body. Raises the connection's errors."""
    data = bytearray()
    while len(data) < most and (chunk := response.read1(_CHUNK)):
        data += chunk
    return bytes(data[:most])


def too_large(most: int) -> Failure:
    """The failure for a body of more than `most` bytes."""
    return Failure("too_large", f"more than {most:,} bytes")
