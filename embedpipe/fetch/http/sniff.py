"""Detect the image format from the first bytes of a body, while the rest is still downloading.

A web page, an SVG with a script or megabytes of zeros are dropped at once, whatever their Content-Type, and never reach
a decoder. The number of pixels is read from the complete header later (`download.image`).
"""

from __future__ import annotations

from ..outcome import Failure

BYTES = 32  # enough for every format below

_BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\1\0", "ICO"),
)
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)


def kind_of(start: bytes) -> str | None:
    """The image format that starts with `start` (`BYTES` bytes), None if unsupported."""
    for beginning, kind in _BEGINNINGS:
        if start.startswith(beginning):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[4:8] == b"ftyp" and (b"avif" in start[8:] or b"avis" in start[8:]):
        return "AVIF"
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    return None


def not_an_image(start: bytes, content_type: str | None) -> Failure:
    """The failure for a body with this start."""
    return Failure("not_an_image", f"begins with {str(start[:BYTES])[2:-1]!r}, sent as {content_type or 'no type'}")
