"""Images whose decoding costs more than the pixels in their header say."""

import io
import struct
import zlib

from PIL import Image

from tests import shards


def tiff_of_one_tile(width=30_000, height=60_000, shown=100):
    """A TIFF of `shown`² pixels whose only tile is as large as that: deflated zeros, a few megabytes."""
    packer = zlib.compressobj(1)
    row = bytes(width)
    tile = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    tags = [
        (256, 3, shown),
        (257, 3, shown),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (277, 3, 1),
        (322, 4, width),
        (323, 4, height),
        (324, 4, 8),
        (325, 4, len(tile)),
    ]
    directory = struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        directory += struct.pack("<HHI", tag, kind, 1) + struct.pack("<I" if kind == 4 else "<Hxx", value)
    return b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + directory + bytes(4)


def jpeg_of_scans(side=9_900, scans=2_000):
    """A progressive JPEG whose last, tiny scan comes again and again: each goes over all blocks."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 128).save(stream, "JPEG", progressive=True, quality=50)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + (data[last:-2] * scans) + b"\xff\xd9"


def exif_of_entries(entries, block):
    """EXIF whose entries all point at one block of `block` bytes: read once for each."""
    tags = b"".join(struct.pack("<HHII", 1000 + i, 7, block, 8) for i in range(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + tags + bytes(4) + bytes(block)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks):
    """A small PNG with chunks between its header and its pixels."""
    data = shards.png()
    return data[:33] + b"".join(png_chunk(name, body) for name, body in chunks) + data[33:]


def jpeg_with(*segments):
    """A small JPEG with segments (marker, contents) before its own."""
    data = shards.jpeg()
    return data[:2] + b"".join(marker + struct.pack(">H", len(body) + 2) + body for marker, body in segments) + data[2:]
