"""Images that state rights: packets of XMP, and files with metadata that Exiv2 wrote or that are put together here."""

import io
import struct
import zlib

import pyexiv2
from PIL import Image

pyexiv2.registerNs("http://ns.useplus.org/ldf/xmp/1.0/", "plus")
pyexiv2.registerNs("http://creativecommons.org/ns#", "cc")
pyexiv2.set_log_level(4)

VOCABULARY = "http://ns.useplus.org/ldf/vocab/"
NAMES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "plus": "http://ns.useplus.org/ldf/xmp/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "cc": "http://creativecommons.org/ns#",
    "tdm": "http://www.w3.org/ns/tdmrep#",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
}


def image(format="JPEG", size=(96, 64), **options):
    """A plain file."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(stream, format, **options)
    return stream.getvalue()


def with_metadata(data, xmp=None, iptc=None, exif=None):
    """`data` with metadata, written by Exiv2 under its names: {"Xmp.dc.creator": ["Ann"]} …"""
    with pyexiv2.ImageData(data) as opened:
        opened.modify_exif(exif or {})
        if iptc:
            opened.modify_iptc(iptc)
        opened.modify_xmp(xmp or {})
        return opened.get_bytes()


def packet(inside="", attributes=""):
    """An XMP packet with one description."""
    names = " ".join(f'xmlns:{name}="{url}"' for name, url in NAMES.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {names} {attributes}>{inside}</rdf:Description></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode()


def prohibited(term="DMI-PROHIBITED"):
    """A packet that reserves data mining."""
    return packet(f"<plus:DataMining>{VOCABULARY}{term}</plus:DataMining>")


def jpeg_with(*segments, data=None):
    """A JPEG with further segments (marker, bytes) behind its first two bytes."""
    data = data or image()
    parts = [struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments]
    return data[:2] + b"".join(parts) + data[2:]


def jpeg_xmp(xmp):
    """A JPEG with that packet."""
    return jpeg_with((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp))


def png_with(*chunks):
    """A PNG with further chunks (kind, bytes) before its pixels."""
    data = image("PNG")
    at = 8 + 25  # behind IHDR
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return data[:at] + b"".join(parts) + data[at:]


def png_xmp(xmp, packed=False):
    """A PNG with that packet in an iTXt."""
    body = zlib.compress(xmp) if packed else xmp
    return png_with((b"iTXt", b"XML:com.adobe.xmp\0" + bytes([packed, 0]) + b"\0\0" + body))


def webp_with(*chunks):
    """A WebP with further chunks at its end."""
    data = image("WEBP")
    for kind, body in chunks:
        data += kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def gif_with(name, body):
    """A GIF with an application extension; `body` as it lies there, sub-blocks and all."""
    data = image("GIF")
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    return data[:at] + b"\x21\xff\x0b" + name.ljust(11, b"\0") + body + data[at:]


def gif_xmp(xmp):
    """A GIF with that packet, followed by the bytes that end it for readers of sub-blocks."""
    return gif_with(b"XMP DataXMP", xmp + b"\x01" + bytes(range(255, -1, -1)) + b"\0")


def boxes_with(uuid, body):
    """A JPEG 2000 file with a box of that UUID (hexadecimal)."""
    data = image("JPEG2000")
    content = bytes.fromhex(uuid) + body
    return data + struct.pack(">I4s", 8 + len(content), b"uuid") + content
