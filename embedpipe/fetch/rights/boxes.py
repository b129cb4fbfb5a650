"""Metadata in files of boxes (ISO base media: AVIF, HEIC; JPEG 2000): items of `meta`, and boxes of a UUID."""

from __future__ import annotations

import struct
from collections.abc import Iterator

EXIF, XMP, C2PA = "exif", "xmp", "c2pa"
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_MOST_BOXES = 1_000


def has_boxes(body: bytes) -> bool:
    """Whether a file begins with a box of these formats."""
    return body[4:8] in (b"ftyp", b"jP  ")


def metadata_of(body: bytes) -> Iterator[tuple[str, bytes]]:
    """(kind, bytes) of each block. Raises struct.error, IndexError or ValueError where the boxes are damaged."""
    for kind, start, stop in _boxes(body, 0, len(body)):
        if kind == b"uuid":
            name = body[start : start + 16]
            if name == _XMP_UUID:
                yield XMP, body[start + 16 : stop]
            elif name == _C2PA_UUID:
                yield C2PA, b""
        elif kind == b"meta":
            yield from _items(body, start + 4, stop)


def _boxes(body: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    for _ in range(_MOST_BOXES):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", body, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", body, start)
            start += 8
        stop = at + size if size else end
        if stop < start:
            raise ValueError("a box that ends before it begins")
        yield kind, start, min(stop, end)
        at = stop


def _items(body: bytes, at: int, end: int) -> Iterator[tuple[str, bytes]]:
    inside = {kind: (start, stop) for kind, start, stop in _boxes(body, at, end)}
    if b"iinf" not in inside or b"iloc" not in inside:
        return
    wanted = dict(_item_kinds(body, *inside[b"iinf"]))
    for item, pieces in _places(body, inside[b"iloc"][0]):
        if item in wanted:
            yield wanted[item], b"".join(body[offset : offset + size] for offset, size in pieces)


def _item_kinds(body: bytes, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """The items that are EXIF or XMP, by their ids."""
    entries = start + (6 if body[start] == 0 else 8)
    for kind, at, end in _boxes(body, entries, stop):
        version = body[at]
        if kind != b"infe" or version < 2:
            continue
        wide = version > 2
        (item,) = struct.unpack_from(">I" if wide else ">H", body, at + 4)
        place = at + (8 if wide else 6) + 2
        said = body[place : place + 4]
        if said == b"Exif":
            yield item, EXIF
        elif said == b"mime" and b"application/rdf+xml" in body[place + 4 : end]:
            yield item, XMP


def _places(body: bytes, at: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Each item with its extents (offset, size) in the file."""
    version = body[at]
    sizes = struct.unpack_from(">H", body, at + 4)[0]
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    at += 6
    count = int.from_bytes(body[at : at + (4 if version == 2 else 2)])
    at += 4 if version == 2 else 2
    for _ in range(min(count, _MOST_BOXES)):
        width = 4 if version == 2 else 2
        item, at = int.from_bytes(body[at : at + width]), at + width
        method = body[at + 1] & 15 if version else 0
        at += (2 if version else 0) + 2
        base, at = int.from_bytes(body[at : at + base_size]), at + base_size
        extents, at = int.from_bytes(body[at : at + 2]), at + 2
        pieces = []
        for _ in range(min(extents, _MOST_BOXES)):
            at += index_size if version else 0
            offset, at = int.from_bytes(body[at : at + offset_size]), at + offset_size
            size, at = int.from_bytes(body[at : at + length_size]), at + length_size
            pieces.append((base + offset, size))
        if method == 0:  # places in the file itself
            yield item, pieces
