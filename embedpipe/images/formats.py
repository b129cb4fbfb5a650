"""The image formats that embedpipe reads, the same for every way in, recognised by their first bytes.

File extensions only find candidates in folders and tars; what a file is, its content says. Imports neither Pillow nor
torch.
"""

from __future__ import annotations

import functools
import importlib.util
import re

SNIFF_BYTES = 512  # enough for every format below; SVG has comments and a document type before its root

# Pillow's name of each format, and the extensions of its files.
EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif",),
    "JPEG2000": ("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"),
    "ICO": ("ico",),
    "HEIF": ("heic", "heif", "hif"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
}
IMAGE_EXTENSIONS = tuple(extension for extensions in EXTENSIONS.values() for extension in extensions)
# Extensions of pictures that are refused by name, see `why_not_read`: a reader should hand them on, not pass them over.
REFUSED_EXTENSIONS = ("svg", "svgz", "jxl", "psd")

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
_NETPBM = re.compile(rb"P[1-6][\s#]")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}

_REFUSED_BEGINNINGS = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"%!PS", "PostScript"),
    (b"%PDF-", "PDF"),
)
# Before its document type or root element stand a byte order mark, an XML declaration, comments. Nothing is tried twice
# (`>`, `+`): hostile text would take for ever.
_SVG = re.compile(
    rb"(?:\xef\xbb\xbf)?(?>\s+|<\?.*?\?>|<!--.*?-->)*+<(?:!DOCTYPE\s+svg|(?:svg:)?svg)[\s/>]", re.DOTALL | re.IGNORECASE
)


def format_of(start: bytes) -> str | None:
    """The format of a file that starts with `start` (`SNIFF_BYTES` bytes), None if it is not in `EXTENSIONS`."""
    for beginning, kind in _BEGINNINGS:
        if start.startswith(beginning):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[4:8] == b"ftyp":
        brands = _brands(start)
        return "AVIF" if brands & _AVIF_BRANDS else "HEIF" if brands & _HEIF_BRANDS else None
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    return "PPM" if _NETPBM.match(start) else None


def _brands(start: bytes) -> set[bytes]:
    """The major and the compatible brands of an ISO base media file."""
    box = start[: int.from_bytes(start[:4], "big")]
    return {box[8:12], *(box[at : at + 4] for at in range(16, len(box) - 3, 4))}


def why_not_read(start: bytes) -> str | None:
    """Why a picture that starts with `start` is not read, though it is one: SVG, say. None for all others."""
    named = next((name for beginning, name in _REFUSED_BEGINNINGS if start.startswith(beginning)), None)
    if named is None and _SVG.match(start):
        return "SVG: a drawing, which has no pixels until it is rendered; convert it to PNG"
    if named is not None:
        return f"{named}: not a format that embedpipe reads"
    if format_of(start) == "HEIF" and not heif_is_installed():
        return 'HEIC: needs the extra heif (pip install "embedpipe[heif]")'
    return None


@functools.cache
def heif_is_installed() -> bool:
    """Whether the package of the extra heif is there."""
    return importlib.util.find_spec("pillow_heif") is not None
