"""Look at a PNG's chunks without decoding: damage by their checksums, and whether one holds an orientation."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_SIGNATURE_BYTES = 8
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"tRNS"})


def damaged_chunk(data: bytes) -> str | None:
    """The name of the first chunk with pixels or colours whose checksum is wrong, None if all are right."""
    view = memoryview(data)
    for name, start, stop in _chunks(data):
        if name in _CRITICAL and zlib.crc32(view[start - 4 : stop]) != int.from_bytes(data[stop : stop + 4], "big"):
            return name.decode()
    return None


def may_be_turned(data: bytes) -> bool:
    """Whether there is a chunk in which Pillow looks for an orientation: EXIF, or text that may be XMP."""
    return any(name in (b"eXIf", b"iTXt", b"zTXt", b"tEXt") for name, _, _ in _chunks(data))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and stop of the content of every whole chunk."""
    at = _SIGNATURE_BYTES
    while at + 12 <= len(data):
        stop = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if stop + 4 > len(data):
            return
        yield data[at + 4 : at + 8], at + 8, stop
        at = stop + 4
