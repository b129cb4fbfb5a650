"""The rights that an image file states, as the columns of a shard, and whether they forbid its use."""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from . import blocks, iptc, tiff, xmp
from .blocks import MOST_BYTES, blocks_of

# What fetch does with them: reject images that opt out, only record what they say, or neither.
OBEY, RECORD, OFF = "obey", "record", "off"
MODES = (OBEY, RECORD, OFF)

COLUMNS = pa.schema(
    [
        ("rights_creator", pa.string()),
        ("rights_credit", pa.string()),
        ("rights_copyright", pa.string()),
        ("rights_licence", pa.string()),
        ("rights_terms", pa.string()),
        ("rights_data_mining", pa.string()),
        ("digital_source_type", pa.string()),
        ("has_c2pa", pa.bool_()),
    ]
)
_MOST_CHARACTERS = 2_000
_PROHIBITED = "DMI-PROHIBITED"
# Words of X-Robots-Tag that people write into keywords and instructions.
_NO_AI = re.compile(r"(?<![\w-])(noai|noimageai|noml)(?![\w-])", re.IGNORECASE)
_WORDY = ("dc:subject", "photoshop:Instructions", "xmpRights:UsageTerms")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a file says of itself, null where it says nothing; `opt_out`: the statement that forbids its use, if any.

    Several names of one field are joined by "; ". `rights_licence` is the url of a licence, or of where to get one.
    """

    rights_creator: str | None = None
    rights_credit: str | None = None
    rights_copyright: str | None = None
    rights_licence: str | None = None
    rights_terms: str | None = None
    rights_data_mining: str | None = None
    digital_source_type: str | None = None
    has_c2pa: bool = False
    opt_out: str | None = None

    def columns(self) -> dict[str, str | bool | None]:
        """The values of COLUMNS."""
        return {name: getattr(self, name) for name in COLUMNS.names}


_NOTHING = Rights()


def read_rights(body: bytes) -> Rights:
    """The rights stated in an image file. Never raises for damaged metadata: what cannot be read is null."""
    found = blocks_of(body)
    return _combined(found) if found else _NOTHING


def _combined(found: list[blocks.MetadataBlock]) -> Rights:
    said: xmp.Properties = {}
    for block in found:
        for name, values in _properties(block).items():
            said.setdefault(name, []).extend(values)
    mining = _last_part(_first(said, "plus:DataMining"), "ldf/vocab/")
    return Rights(
        rights_creator=_first(said, "dc:creator", "iptc:creator", "tiff:Artist", "plus:ImageCreatorName", "png:Author"),
        rights_credit=_first(said, "photoshop:Credit", "iptc:credit"),
        rights_copyright=_first(
            said, "dc:rights", "iptc:copyright", "tiff:Copyright", "png:Copyright", "plus:CopyrightOwnerName"
        ),
        rights_licence=_first(said, "cc:license", "dcterms:license", "xmpRights:WebStatement", "plus:LicensorURL"),
        rights_terms=_first(said, "xmpRights:UsageTerms"),
        rights_data_mining=mining,
        digital_source_type=_last_part(_first(said, "Iptc4xmpExt:DigitalSourceType"), "digitalsourcetype/"),
        has_c2pa=any(block.kind == blocks.C2PA for block in found),
        opt_out=_opt_out(said),
    )


def _properties(block: blocks.MetadataBlock) -> xmp.Properties:
    if block.kind == blocks.XMP:
        return xmp.read_xmp(block.data)
    if block.kind == blocks.IPTC:
        names = {
            iptc.CREATOR: "iptc:creator",
            iptc.CREDIT: "iptc:credit",
            iptc.COPYRIGHT: "iptc:copyright",
            iptc.KEYWORDS: "dc:subject",
            iptc.INSTRUCTIONS: "photoshop:Instructions",
        }
        return {names[number]: texts for number, texts in iptc.read_iptc(block.data).items()}
    if block.kind == blocks.TEXT:
        keyword, _, text = block.data.partition(b"\0")
        return {f"png:{keyword.decode()}": [text.decode("utf-8", "replace")]}
    if block.kind == blocks.EXIF:
        return _exif(block.data)
    return {}


def _exif(data: bytes) -> xmp.Properties:
    try:
        tags = tiff.tags_of(data, (tiff.ARTIST, tiff.COPYRIGHT), MOST_BYTES)
    except struct.error:
        return {}
    names = {tiff.ARTIST: "tiff:Artist", tiff.COPYRIGHT: "tiff:Copyright"}
    # A copyright of EXIF is the photographer's, NUL, then the editor's.
    return {names[tag]: [iptc.decoded(part) for part in raw.split(b"\0")] for tag, raw in tags.items()}


def _first(said: xmp.Properties, *names: str) -> str | None:
    """The first of these properties that says something."""
    for name in names:
        values = [text for value in said.get(name, ()) if (text := _cleaned(value))]
        if values:
            # One text in several languages has its default first; names are of several people.
            several = name not in ("dc:rights", "xmpRights:UsageTerms", "plus:DataMining")
            return "; ".join(dict.fromkeys(values))[:_MOST_CHARACTERS] if several else values[0]
    return None


def _cleaned(text: str) -> str:
    """One line without control characters, in composed form, of what UTF-8 can store, of bounded length."""
    plain = " ".join(_CONTROL.sub(" ", text[: 2 * _MOST_CHARACTERS]).split())
    return unicodedata.normalize("NFC", plain).encode("utf-8", "replace").decode()[:_MOST_CHARACTERS]


def _last_part(value: str | None, behind: str) -> str | None:
    """A term of a vocabulary by itself: what follows the vocabulary's url."""
    return value.rpartition(behind)[2].strip("/") or None if value is not None else None


def _opt_out(said: xmp.Properties) -> str | None:
    """The statement that forbids use as training data. Of statements that contradict, the one that forbids counts."""
    for value in _each(said, ("plus:DataMining",)):
        term = _last_part(value, "ldf/vocab/") or ""
        if term.upper().startswith((_PROHIBITED, _PROHIBITED.removeprefix("DMI-"))):
            return f"plus:DataMining: {term[:80]}"
    for value in _each(said, ("tdm:reservation",)):
        if value == "1":
            return "tdm:reservation: 1"
    for name in _WORDY:
        for value in _each(said, (name,)):
            if word := _NO_AI.search(value):
                return f"{name}: {word[1].lower()}"
    return None


def _each(said: xmp.Properties, names: Iterable[str]) -> list[str]:
    return [_cleaned(value) for name in names for value in said.get(name, ())]
