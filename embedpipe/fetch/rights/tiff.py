"""Tags of the first directory of a TIFF, which EXIF is as well."""

from __future__ import annotations

import struct
from collections.abc import Collection

XMP, IPTC, C2PA, COPYRIGHT, ARTIST = 700, 33_723, 52_545, 33_432, 315
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4}
_MOST_TAGS = 1_000


def tags_of(data: bytes, wanted: Collection[int], most_bytes: int) -> dict[int, bytes]:
    """The raw values of the `wanted` tags that are there, of at most `most_bytes` each. Raises struct.error."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    found = {}
    for place in range(at + 2, at + 2 + 12 * min(count, _MOST_TAGS), 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", data, place)
        if tag not in wanted or tag in found:
            continue
        size = values * _SIZES.get(kind, 1)
        start = struct.unpack_from(f"{order}I", data, place + 8)[0] if size > 4 else place + 8
        if size <= most_bytes and start + size <= len(data):
            found[tag] = data[start : start + size]
    return found
