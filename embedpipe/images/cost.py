"""Whether decoding an encoded image costs no more than the number of its pixels says, judged by a look at its parts.

JPEG, PNG and WebP can be bounded so: libjpeg, libpng and libwebp allocate by the size in the header and take time in
proportion to pixels and bytes, but for what is looked for here: progressive scans (each goes over all pixels, however
few bytes it has), long lists of small parts (walked in Python by Pillow), tags that all point at one large block, and
colour profiles (programs of a kind). Other formats are not judged: their decoders allocate by numbers inside the file.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from ..limited import CallLimits

DEFAULT_MAX_SECONDS = 10.0

_SCANS = 32  # a progressive JPEG has ten or so
_AT_ONCE = 1 << 15  # bytes that are compared without leaving the cache
_PARTS = 256  # segments of a JPEG before its first scan, chunks of a WebP
_BYTES_PER_CHUNK = 1024  # of a PNG, on average
_SMALL = 1 << 16  # a file whose list of parts cannot be long, whatever is wrong with it
_EXIF = 1 << 16  # what a JPEG's segment can hold
_PROFILE = 4096  # those of sRGB, Display P3 and Adobe RGB have 400 to 3,200 bytes
_CANVAS = 16_384**2  # the largest of a WebP
# The beginnings of the other formats that Pillow decodes here; what begins otherwise is refused at once.
_OTHERS = re.compile(
    rb"GIF8|BM|II|MM|P[0-9fFy]|\0\0[\1\2]\0|\xff\x4f\xff\x51|....jP  |....ftyp|[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
_RAW_EXIF = re.compile(rb"Raw profile type (exif|APP1)", re.IGNORECASE)

# What libraries say that do not raise MemoryError; -9 is Pillow's code for it.
_NO_MEMORY = re.compile(r"\bmemory|\balloc|decoder error -9", re.IGNORECASE)
_BASE_BYTES = 1 << 28
_BYTES_PER_PIXEL = 12  # an image with transparency, converted and premultiplied


def limits_for(max_pixels: int, max_seconds: float) -> CallLimits:
    """The limits of decoding one image of at most `max_pixels`, in that many seconds of processor time."""
    return CallLimits(_BASE_BYTES + _BYTES_PER_PIXEL * max_pixels, max_seconds)


def speaks_of_memory(message: str) -> bool:
    """Whether a decoder's error message says that it got no memory."""
    return _NO_MEMORY.search(message) is not None


def is_bounded(data: bytes) -> bool:
    """Whether time and memory of decoding are bounded by the pixels and bytes of the image.

    True for what is no image as well: it is refused by its first bytes.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _is_bounded_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _is_bounded_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _is_bounded_webp(data)
    return _OTHERS.match(data) is None


def _is_bounded_jpeg(data: bytes) -> bool:
    at, exif, profile, components = 2, 0, 0, 0
    for _ in range(_PARTS):
        marker = data[at : at + 2]
        if marker == b"\xff\xda":
            has_one_scan = data[at + 4 : at + 5] == bytes([components])
            return exif <= _EXIF and profile <= _PROFILE and (has_one_scan or _scans(data) <= _SCANS)
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if len(marker) < 2 or marker[0] != 0xFF or not 0xC0 <= marker[1] < 0xFF or size < 2:
            break  # damaged, or padded
        if marker in (b"\xff\xc0", b"\xff\xc1"):  # sequential: a scan of all components is the only one
            components = int.from_bytes(data[at + 9 : at + 10])
        if marker == b"\xff\xe1" and data.startswith(b"Exif", at + 4):
            exif += size
        if marker == b"\xff\xe2" and data.startswith(b"ICC_PROFILE", at + 4):
            profile += size
        at += 2 + size
    return len(data) <= _SMALL and _scans(data) <= _SCANS and b"ICC_PROFILE" not in data


def _scans(data: bytes) -> int:
    """How many scans a JPEG has at most: compressed data never contains the marker, a thumbnail does."""
    array = np.frombuffer(data, np.uint8)  # ten times as fast as bytes.count
    pieces = (array[at : at + _AT_ONCE + 1] for at in range(0, len(array), _AT_ONCE))
    return sum(int(np.count_nonzero((piece[:-1] == 0xFF) & (piece[1:] == 0xDA))) for piece in pieces)


def _is_bounded_png(data: bytes) -> bool:
    at, most = 8, _PARTS + len(data) // _BYTES_PER_CHUNK
    for _ in range(most):
        if at + 8 > len(data):
            return True  # the end, or cut off
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND":
            return True
        if kind == b"eXIf" and size > _EXIF:
            return False
        if kind in (b"tEXt", b"zTXt", b"iTXt") and _RAW_EXIF.match(data, at + 8):
            return False
        if kind == b"iCCP" and not _is_small_profile(data[at + 8 : at + 8 + size]):
            return False
        at += 12 + size
    return False


def _is_small_profile(chunk: bytes) -> bool:
    """Whether the profile in an iCCP chunk (a name, a zero, a method, compressed bytes) is small when unpacked."""
    packed = chunk[chunk.find(b"\0") + 2 :]
    try:
        return len(zlib.decompressobj().decompress(packed, _PROFILE + 1)) <= _PROFILE
    except zlib.error:
        return True  # not read by Pillow either


def _is_bounded_webp(data: bytes) -> bool:
    at = 12
    for _ in range(_PARTS):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 > len(data):
            return True
        if kind == b"VP8X":
            width, height = (1 + int.from_bytes(data[at + start : at + start + 3], "little") for start in (12, 15))
            if data[at + 8] & 2 or width * height > _CANVAS:  # animated, or larger than any
                return False
        if kind in (b"ANIM", b"ANMF") or (kind == b"EXIF" and size > _EXIF) or (kind == b"ICCP" and size > _PROFILE):
            return False
        at += 8 + size + size % 2
    return False
