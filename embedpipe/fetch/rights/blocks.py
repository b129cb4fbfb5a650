"""The metadata blocks of an image file: XMP, IPTC, EXIF and C2PA, found in its container without decoding pixels.

JPEG, PNG, WebP, GIF, TIFF, and boxes of ISO base media (AVIF, HEIC, JPEG 2000). A damaged container ends the search:
what was found before counts. Bounded: at most `_MOST_BLOCKS` blocks of at most `MOST_BYTES` each are looked at.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from . import boxes, tiff

XMP, IPTC, EXIF, C2PA, TEXT = "xmp", "iptc", "exif", "c2pa", "text"
MOST_BYTES = 1 << 20
_MOST_BLOCKS = 200

_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_JPEG_EXIF = b"Exif\0\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_IPTC_RESOURCE = 0x0404
_PNG_XMP = b"XML:com.adobe.xmp"
_PNG_TEXTS = (b"Author", b"Copyright")
_PNG_IPTC = b"Raw profile type iptc"  # ImageMagick's way: Photoshop's resources in hexadecimal
_GIF_XMP, _GIF_C2PA = b"XMP DataXMP", b"C2PA_GIF"
_DAMAGE = (struct.error, IndexError, ValueError, zlib.error)


@dataclass(frozen=True, slots=True)
class MetadataBlock:
    """A metadata block: its kind, and its bytes. A TEXT is `keyword NUL text` of a PNG, in UTF-8."""

    kind: str
    data: bytes


def blocks_of(body: bytes) -> list[MetadataBlock]:
    """The metadata blocks of an image file, in its order."""
    found: list[MetadataBlock] = []
    try:
        for block in _walk(body):
            if len(block.data) <= MOST_BYTES:
                found.append(block)
            if len(found) == _MOST_BLOCKS:
                break
    except _DAMAGE:
        pass  # damage in a container is for the decoder to judge
    return found


def _walk(body: bytes) -> Iterator[MetadataBlock]:
    if body.startswith(b"\xff\xd8"):
        return _jpeg(body)
    if body.startswith(b"\x89PNG"):
        return _png(body)
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return _webp(body)
    if body.startswith((b"GIF87a", b"GIF89a")):
        return _gif(body)
    if body.startswith((b"II*\0", b"MM\0*")):
        return _tiff(body)
    return _boxes(body) if boxes.has_boxes(body) else iter(())


def _jpeg(body: bytes) -> Iterator[MetadataBlock]:
    more: dict[bytes, list[tuple[int, bytes]]] = {}
    at = 2
    while body[at] == 0xFF:
        marker = body[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (0xDA, 0xD9):  # the pixels begin: metadata stands before them
            break
        (size,) = struct.unpack_from(">H", body, at + 2)
        start, stop = at + 4, at + 2 + size
        at = stop
        if not 0xE1 <= marker <= 0xED:
            continue
        if marker == 0xE1 and body.startswith(_JPEG_XMP, start):
            yield MetadataBlock(XMP, body[start + len(_JPEG_XMP) : stop])
        elif marker == 0xE1 and body.startswith(_JPEG_MORE_XMP, start):
            _, offset = struct.unpack_from(">II", body, (place := start + len(_JPEG_MORE_XMP)) + 32)
            more.setdefault(body[place : place + 32], []).append((offset, body[place + 40 : stop]))
        elif marker == 0xE1 and body.startswith(_JPEG_EXIF, start):
            yield from _exif(body[start + len(_JPEG_EXIF) : stop])
        elif marker == 0xEB and body.startswith(b"JP", start) and body.find(b"c2pa", start, stop) > 0:
            yield MetadataBlock(C2PA, b"")
        elif marker == 0xED and body.startswith(_PHOTOSHOP, start):
            yield from _photoshop(body[start + len(_PHOTOSHOP) : stop])
    for pieces in more.values():
        yield MetadataBlock(XMP, b"".join(piece for _, piece in sorted(pieces)))


def _photoshop(data: bytes) -> Iterator[MetadataBlock]:
    """The IPTC among Photoshop's image resources, each padded to an even length."""
    at = 0
    while data[at : at + 4] == b"8BIM":
        (kind,) = struct.unpack_from(">H", data, at + 4)
        at += 6
        at += (1 + data[at] + 1) & ~1
        (size,) = struct.unpack_from(">I", data, at)
        at += 4
        if kind == _IPTC_RESOURCE:
            yield MetadataBlock(IPTC, data[at : at + size])
        at += (size + 1) & ~1


def _png(body: bytes) -> Iterator[MetadataBlock]:
    at = 8
    while at + 8 <= len(body):
        size, kind = struct.unpack_from(">I4s", body, at)
        data, at = body[at + 8 : at + 8 + size] if kind != b"IDAT" else b"", at + 12 + size
        if kind == b"iTXt":
            keyword, _, rest = data.partition(b"\0")
            if keyword == _PNG_XMP or keyword in _PNG_TEXTS:
                text = rest[2:].split(b"\0", 2)[2]
                text = _inflated(text) if rest[0] else text
                yield MetadataBlock(XMP, text) if keyword == _PNG_XMP else MetadataBlock(TEXT, keyword + b"\0" + text)
        elif kind in (b"tEXt", b"zTXt"):
            keyword, _, rest = data.partition(b"\0")
            if keyword in _PNG_TEXTS:
                latin = (_inflated(rest[1:]) if kind == b"zTXt" else rest).decode("latin-1")
                yield MetadataBlock(TEXT, keyword + b"\0" + latin.encode())
            elif keyword == _PNG_IPTC:
                lines = (_inflated(rest[1:]) if kind == b"zTXt" else rest).split(b"\n", 3)
                yield from _photoshop(bytes.fromhex(lines[3].decode("ascii")))
        elif kind == b"eXIf":
            yield from _exif(data)
        elif kind == b"caBX":
            yield MetadataBlock(C2PA, b"")


def _inflated(data: bytes) -> bytes:
    """What zlib packed, up to the limit: more is not looked at."""
    return zlib.decompressobj().decompress(data, MOST_BYTES)


def _webp(body: bytes) -> Iterator[MetadataBlock]:
    at = 12
    while at + 8 <= len(body):
        kind, size = struct.unpack_from("<4sI", body, at)
        if kind == b"XMP ":
            yield MetadataBlock(XMP, body[at + 8 : at + 8 + size])
        elif kind == b"EXIF":
            yield from _exif(body[at + 8 : at + 8 + size].removeprefix(_JPEG_EXIF))
        elif kind == b"C2PA":
            yield MetadataBlock(C2PA, b"")
        at += 8 + size + (size & 1)


def _gif(body: bytes) -> Iterator[MetadataBlock]:
    flags = body[10]
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while body[at] in (0x21, 0x2C):
        if body[at] == 0x2C:  # an image: its descriptor, a table of colours, the size of its codes
            flags = body[at + 9]
            at += 11 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
        elif body[at + 1] == 0xFF and body.startswith(_GIF_XMP, at + 3):
            # XMP lies there in one piece; the 258 bytes behind it lead any reader of sub-blocks to the end.
            stop = body.index(b"\0\0", at) + 2
            yield MetadataBlock(XMP, body[at + 14 : stop - 258])
            at = stop
            continue
        else:
            if body[at + 1] == 0xFF and body.startswith(_GIF_C2PA, at + 3):
                yield MetadataBlock(C2PA, b"")
            at += 2
        while body[at]:
            at += 1 + body[at]
        at += 1


def _tiff(body: bytes) -> Iterator[MetadataBlock]:
    yield MetadataBlock(EXIF, body)
    tags = tiff.tags_of(body, (tiff.XMP, tiff.IPTC, tiff.C2PA), MOST_BYTES)
    for tag, kind in ((tiff.XMP, XMP), (tiff.IPTC, IPTC), (tiff.C2PA, C2PA)):
        if tag in tags:
            yield MetadataBlock(kind, tags[tag])


def _exif(data: bytes) -> Iterator[MetadataBlock]:
    """EXIF is a TIFF, and may hold what a TIFF holds."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        yield from _tiff(data)


def _boxes(body: bytes) -> Iterator[MetadataBlock]:
    for kind, data in boxes.metadata_of(body):
        if kind == boxes.EXIF:
            (skip,) = struct.unpack_from(">I", data)
            yield from _exif(data[4 + skip :])
        elif kind == boxes.XMP:
            yield MetadataBlock(XMP, data)
        else:
            yield MetadataBlock(C2PA, b"")
