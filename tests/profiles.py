"""ICC profiles of every kind that pictures bring, built from their numbers."""

import struct

import numpy as np

# Primaries and white as XYZ adapted to D50, columns red, green, blue.
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
_D50 = (0.9642, 1.0, 0.8249)


def rgb(primaries=DISPLAY_P3, gamma=2.2):
    """A matrix profile."""
    tags = [(name, _xyz(column)) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)]
    return _profile(b"RGB ", b"XYZ ", [*tags, *((name, _curve(gamma)) for name in (b"rTRC", b"gTRC", b"bTRC"))])


def grey(gamma=1.4):
    """A profile of greys."""
    return _profile(b"GRAY", b"XYZ ", [(b"kTRC", _curve(gamma))])


def cmyk():
    """A profile of inks: a table of 16 colours, and interpolation."""
    inks = np.array([[n >> 3 & 1, n >> 2 & 1, n >> 1 & 1, n & 1] for n in range(16)])
    light = 230 - 60 * inks[:, 0] - 70 * inks[:, 1] - 15 * inks[:, 2] - 85 * inks[:, 3]
    across = 128 - 35 * inks[:, 0] + 60 * inks[:, 1] - 5 * inks[:, 2]
    along = 128 - 40 * inks[:, 0] - 5 * inks[:, 1] + 70 * inks[:, 2]
    table = np.stack([light, across, along], 1).clip(0, 255).astype(np.uint8)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + table.tobytes() + 3 * ramp
    return _profile(b"CMYK", b"Lab ", [(b"A2B0", lut)], kind=b"prtr")


def _xyz(values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(space, connection, tags, kind=b"mntr"):
    name = b"a profile of the tests\0"
    tags = [
        (b"desc", b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(79)),
        (b"cprt", b"text\0\0\0\0nobody\0\0"),
        (b"wtpt", _xyz(_D50)),
        *tags,
    ]
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for label, content in tags:
        content += bytes(-len(content) % 4)
        table += label + struct.pack(">II", at + len(body), len(content))
        body += content
    size = at + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, kind, space, connection)
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", *(round(value * 65536) for value in _D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
