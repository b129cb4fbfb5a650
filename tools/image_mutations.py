"""Damaged images: small ones of every format that Pillow writes, with bytes, chunks and lengths changed."""

from __future__ import annotations

import io
import random
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

_TIFF_COMPRESSIONS = (None, "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg")
_BILEVEL_COMPRESSIONS = ("group3", "group4", "tiff_ccitt")
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_HEADER_BYTES = 200


@dataclass(frozen=True, slots=True)
class Original:
    """An undamaged image. name: its format and kind."""

    name: str
    data: bytes


def originals() -> list[Original]:
    """One image of every kind."""
    rgb = _picture("RGB")
    grey, rgba, palette = rgb.convert("L"), _picture("RGBA"), rgb.quantize(32)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = [
        ("jpeg", _encoded(rgb, "JPEG", quality=85)),
        ("jpeg with exif", _encoded(rgb, "JPEG", exif=exif, icc_profile=_profile(), comment=b"comment")),
        ("jpeg progressive", _encoded(rgb, "JPEG", progressive=True)),
        ("jpeg grey", _encoded(grey, "JPEG")),
        ("jpeg cmyk", _encoded(rgb.convert("CMYK"), "JPEG")),
        ("jpeg restarts", _encoded(rgb, "JPEG", restart_marker_blocks=4)),
        ("mpo", _encoded(rgb, "MPO", save_all=True, append_images=_frames())),
        ("png", _encoded(rgb, "PNG", exif=exif, icc_profile=_profile())),
        ("png rgba", _encoded(rgba, "PNG")),
        ("png grey", _encoded(grey, "PNG")),
        ("png 16", _encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) * 256), "PNG")),
        ("png palette", _encoded(palette, "PNG", transparency=3)),
        ("png bilevel", _encoded(grey.convert("1"), "PNG")),
        ("png animated", _encoded(rgb, "PNG", save_all=True, append_images=_frames())),
        ("webp", _encoded(rgb, "WEBP", exif=exif, icc_profile=_profile())),
        ("webp rgba", _encoded(rgba, "WEBP")),
        ("webp lossless", _encoded(rgba, "WEBP", lossless=True)),
        ("webp animated", _encoded(rgb, "WEBP", save_all=True, append_images=_frames())),
        ("gif", _encoded(palette, "GIF")),
        ("gif animated", _encoded(rgb, "GIF", save_all=True, append_images=_frames())),
        ("bmp", _encoded(rgb, "BMP")),
        ("bmp palette", _encoded(palette, "BMP")),
        ("dib", _encoded(rgb, "DIB")),
        ("ico", _encoded(rgba, "ICO", sizes=[(16, 16), (32, 32)])),
        ("ico bmp", _encoded(rgba, "ICO", sizes=[(16, 16)], bitmap_format="bmp")),
        ("ppm", _encoded(rgb, "PPM")),
        ("jpeg 2000", _encoded(rgb, "JPEG2000")),
        ("jpeg 2000 rgba", _encoded(rgba, "JPEG2000", irreversible=True)),
        ("avif", _encoded(rgb, "AVIF", exif=exif, max_threads=1)),
        ("avif rgba", _encoded(rgba, "AVIF", max_threads=1)),
        ("avif animated", _timeless(_encoded(rgb, "AVIF", max_threads=1, save_all=True, append_images=_frames()))),
        *((f"tiff {how}", _encoded(rgb, "TIFF", compression=how)) for how in _TIFF_COMPRESSIONS),
        *((f"tiff {how}", _encoded(grey.convert("1"), "TIFF", compression=how)) for how in _BILEVEL_COMPRESSIONS),
        ("tiff cmyk", _encoded(rgb.convert("CMYK"), "TIFF")),
        ("tiff float", _encoded(grey.convert("F"), "TIFF")),
        ("tiff lab", _encoded(rgb.convert("LAB"), "TIFF", icc_profile=None)),
        ("tiff pages", _encoded(rgb, "TIFF", save_all=True, append_images=_frames())),
    ]
    return [Original(name, data) for name, data in made]


def mutated(originals: list[Original], number: int, seed: int = 0) -> Original:
    """Damaged image number `number`: the same for the same seed and originals."""
    dice = random.Random(f"{seed}:{number}")
    chosen = originals[number % len(originals)]
    data = bytearray(chosen.data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        dice.choice(_CHANGES)(dice, data, dice.choice(originals).data)
        if not data:
            break
    made = bytes(data)
    # Most damage to a PNG would be found by its checksums before it reaches the decoder.
    return Original(chosen.name, _checksummed(made) if dice.random() < 0.7 else made)


def _picture(mode: str) -> Image.Image:
    y, x = np.mgrid[0:48, 0:64]
    planes = np.stack([x * 4, y * 5, (x * y) % 256, 255 - x * 2], -1).astype(np.uint8)
    return Image.fromarray(planes[..., : len(mode)], mode)


def _frames() -> list[Image.Image]:
    return [_picture("RGB").rotate(angle) for angle in (90, 180)]


def _encoded(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.copy().save(stream, format, **options)  # type: ignore[arg-type]  # Pillow notes options in the image
    return stream.getvalue()


def _timeless(avif: bytes) -> bytes:
    """Without the times at which its tracks were made."""
    data = bytearray(avif)
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        if (at := data.find(box)) >= 0:
            width = 16 if data[at + 4] else 8  # by the version of the box
            data[at + 8 : at + 8 + width] = bytes(width)
    return bytes(data)


def _profile() -> bytes:
    from PIL import ImageCms

    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return made[:24] + bytes(12) + made[36:]  # without the time at which it was made


def _place(dice: random.Random, data: bytearray) -> int:
    """Mostly in the header, where damage says the most."""
    return dice.randrange(min(len(data), _HEADER_BYTES) if dice.random() < 0.6 else len(data))


def _piece(dice: random.Random, data: bytearray | bytes) -> tuple[int, int]:
    start = dice.randrange(len(data))
    return start, start + 1 + int(dice.expovariate(1 / 40))


def _flip(dice: random.Random, data: bytearray, other: bytes) -> None:
    data[_place(dice, data)] ^= 1 << dice.randrange(8)


def _set(dice: random.Random, data: bytearray, other: bytes) -> None:
    data[_place(dice, data)] = dice.randrange(256)


def _number(dice: random.Random, data: bytearray, other: bytes) -> None:
    """A length or count becomes one of the numbers at which arithmetic breaks."""
    at, width = _place(dice, data), dice.choice((2, 4))
    value = dice.choice(_NUMBERS) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, dice.choice(("big", "little")))


def _cut(dice: random.Random, data: bytearray, other: bytes) -> None:
    del data[dice.randrange(len(data)) :]


def _remove(dice: random.Random, data: bytearray, other: bytes) -> None:
    start, end = _piece(dice, data)
    del data[start:end]


def _double(dice: random.Random, data: bytearray, other: bytes) -> None:
    start, end = _piece(dice, data)
    data[start:start] = data[start:end] * dice.choice((1, 2, 50))


def _splice(dice: random.Random, data: bytearray, other: bytes) -> None:
    start, end = _piece(dice, other)
    at = _place(dice, data)
    data[at : at + dice.choice((0, end - start))] = other[start:end]


def _swap(dice: random.Random, data: bytearray, other: bytes) -> None:
    (a, b), (c, d) = sorted(_piece(dice, data) for _ in range(2))
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


_CHANGES = (_flip, _flip, _set, _set, _number, _number, _cut, _remove, _double, _splice, _swap)


def _checksummed(data: bytes) -> bytes:
    """A PNG with checksums that match; other data unchanged."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    made, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + size]
        made += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + size
    return b"".join(made) + data[at:]
