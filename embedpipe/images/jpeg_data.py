"""JPEG: what its header says beside the size, and decoding that takes libjpeg's warnings for damage.

libjpeg decodes damaged data as well as it can, and warns; half of such a picture may be wrong. A warning is damage, but
for four kinds of warning without consequence, of which the data are relieved first: bytes between the segments of the
header, an unknown revision of JFIF, no end marker behind complete data, and padding before the end marker.
docs/decisions/0032-pixels.md has the measurements.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg

from .undecodable import Undecodable

START = b"\xff\xd8\xff"
_END = b"\xff\xd9"
_SOI, _SOS, _APP0, _APP1, _APP2, _APP14 = 0xD8, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_EXIF, _XMP, _ICC, _JFIF = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"JFIF\0"
_ORIENTATION, _SHORT = 0x0112, 3
_UNREAD = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
# libjpeg reads a few bytes ahead without a warning. In 3,600 damaged files no longer rest was all of one value.
_LEAST_PADDING = 3
_DEEPER = "precision"  # of twelve or sixteen bits, which no damage makes of eight


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The header of a JPEG. height, width: before it is turned. colorspace: simplejpeg's name.

    data: the file, relieved of what libjpeg would warn about in its header. orientation: EXIF's, 1 to 8; None if it
    takes Pillow to tell. profile: ICC.
    """

    data: bytes
    height: int
    width: int
    colorspace: str
    orientation: int | None
    profile: bytes | None


def read_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG; None for other data, and for what Pillow must tell about."""
    if not data.startswith(START):
        return None
    segments, scan, clean = _segments(data)
    if scan is None:
        return None
    if not clean:
        kept = (data[start:stop] for _, start, stop in segments)
        data = b"".join([START[:2], *map(_known_revision, kept), data[scan:]])
        segments, scan, _ = _segments(data)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return JpegHeader(data, height, width, colorspace, _orientation(data, segments), _profile(data, segments))


def decode_strictly(
    data: bytes, colorspace: str = "RGB", min_height: int = 0, min_width: int = 0
) -> np.ndarray | Undecodable:
    """uint8 [h, w, channels] of an undamaged JPEG. min_height, min_width: decode to a fraction no smaller than that."""
    for _ in range(3):
        try:
            found: np.ndarray = simplejpeg.decode_jpeg(
                data, colorspace, min_height=min_height, min_width=min_width, strict=True
            )
            return found
        except ValueError as problem:
            said = str(problem)
        mended = _mended(data, said)
        if mended is None:
            break
        data = mended
    return Undecodable("image_unsupported" if _DEEPER in said else "image_damaged", f"libjpeg: {said}"[:300])


def _segments(data: bytes) -> tuple[list[tuple[int, int, int]], int | None, bool]:
    """(marker, start, stop) of the header's segments, the place of the first scan, whether libjpeg would not warn."""
    found: list[tuple[int, int, int]] = []
    at, clean, size = 2, True, len(data)
    while at + 4 <= size:
        if data[at] != 0xFF:
            clean = False
            at = data.find(b"\xff", at)
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0 or marker in _WITHOUT_LENGTH:
            clean = clean and marker != 0
            at += 2
        elif marker == _SOS:
            return found, at, clean
        else:
            stop = at + 2 + (data[at + 2] << 8 | data[at + 3])
            if marker == _APP0 and data[at + 4 : at + 9] == _JFIF and data[at + 9 : at + 10] != b"\1":
                clean = False
            found.append((marker, at, stop))
            at = stop
    return found, None, clean


def _known_revision(segment: bytes) -> bytes:
    is_jfif = segment[1] == _APP0 and segment[4:9] == _JFIF
    return segment[:9] + b"\1\1" + segment[11:] if is_jfif else segment


def _mended(data: bytes, said: str) -> bytes | None:
    """The data without the cause of a warning that has no consequence; None for other warnings."""
    if "Premature end of JPEG file" in said and not data.endswith(_END):
        return data.rstrip(b"\xff") + _END
    unread = _UNREAD.search(said)
    if unread:
        count, end = int(unread[1]), data.rfind(_END)
        rest = data[end - count : end]
        if count > _LEAST_PADDING and len(rest) == count and len(set(rest)) == 1:
            return data[: end - count] + data[end:]
    return None


def _orientation(data: bytes, segments: list[tuple[int, int, int]]) -> int | None:
    found = 1
    for marker, start, stop in segments:
        if marker != _APP1:
            continue
        if data.startswith(_EXIF, start + 4):
            value = _of_exif(data[start + 10 : stop]) if found == 1 else None
            if value is None:
                return None
            found = value
        elif data.startswith(_XMP, start + 4) and data.find(b"tiff:Orientation", start, stop) >= 0:
            return None  # counts where EXIF has none
    return found


def _of_exif(tiff: bytes) -> int | None:
    """The orientation in the first directory of EXIF, 1 if there is none; None if the directory is not ordinary."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "L", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(order + "HHLH", tiff, entry)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and values == 1 and 1 <= value <= 8 else None
    except struct.error:
        return None
    return 1


def _profile(data: bytes, segments: list[tuple[int, int, int]]) -> bytes | None:
    """The ICC profile, its parts in order; as in Pillow, None if one is missing."""
    parts = sorted(
        data[start + 16 : stop]
        for marker, start, stop in segments
        if marker == _APP2 and data.startswith(_ICC, start + 4) and stop - start > 18
    )
    if not parts or parts[0][1] != len(parts):
        return None
    return b"".join(part[2:] for part in parts)
