"""What the test server sends: pictures of every kind, and what is none."""

import gzip
import io
import random
import struct
import zlib
from functools import cache

from PIL import Image, ImageDraw

SVG = b"""<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><script>alert(1)</script></svg>
"""
HTML = b"<!doctype html><p>Please log in"


def picture(number):
    """A picture with some structure, 64 to 320 pixels a side, always the same for the same number."""
    dice = random.Random(number)
    image = Image.new("RGB", (dice.randint(64, 320), dice.randint(64, 320)), tuple(dice.choices(range(256), k=3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = dice.randint(0, 320), dice.randint(0, 320), dice.randint(5, 80)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(dice.choices(range(256), k=3)))
    return image


def encoded(image, format, **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


@cache
def photo(number, format="JPEG"):
    """`picture(number)` as a file."""
    return encoded(picture(number), format, quality=90)


@cache
def cmyk(number):
    return encoded(picture(number).convert("CMYK"), "JPEG", quality=90)


@cache
def turned(number, orientation):
    """A JPEG whose EXIF says that the camera was held otherwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(number), "JPEG", quality=90, exif=exif)


@cache
def stated(number, term):
    """A JPEG whose XMP has a creator and a term of PLUS for data mining."""
    xmp = (
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
        ' xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"'
        f' plus:DataMining="http://ns.useplus.org/ldf/vocab/{term}" dc:creator="Ann {number}"/></rdf:RDF>'
    )
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp.encode()
    data = photo(number)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


@cache
def animated(number):
    """A GIF of three frames."""
    frames = [picture(number).resize((80, 60)).convert("P") for number in (number, number + 1, number + 2)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)


@cache
def bomb(side=20_000):
    """A PNG of side × side pixels, black and white, all the same, in a few hundred kilobytes."""
    squeeze = zlib.compressobj(1)
    row = b"\0" * (1 + (side + 7) // 8)
    pixels = squeeze.compress(row * side) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, (b"IHDR", b"IDAT", b"IEND"), (header, pixels, b"")))


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@cache
def gzip_bomb():
    """What begins like a JPEG and unpacks to 60 megabytes of zeros."""
    return gzip.compress(b"\xff\xd8\xff\xe0" + bytes(60_000_000), 1)
