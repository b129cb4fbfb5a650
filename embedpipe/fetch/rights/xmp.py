"""XMP: the properties of a packet that tell of rights.

Read by expat with every declaration refused: no DTD, no entities, hence no expansion and no outside file.
"""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_LANG = "http://www.w3.org/XML/1998/namespace lang"
_DC = "http://purl.org/dc/elements/1.1/ "
_PLUS = "http://ns.useplus.org/ldf/xmp/1.0/ "
_PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/ "
_RIGHTS = "http://ns.adobe.com/xap/1.0/rights/ "
_TIFF = "http://ns.adobe.com/tiff/1.0/ "

# Properties of the image itself, by the short names under which they are returned.
_PROPERTIES = {
    f"{_DC}creator": "dc:creator",
    f"{_DC}rights": "dc:rights",
    f"{_DC}subject": "dc:subject",
    f"{_TIFF}Artist": "tiff:Artist",
    f"{_TIFF}Copyright": "tiff:Copyright",
    f"{_PHOTOSHOP}Credit": "photoshop:Credit",
    f"{_PHOTOSHOP}Instructions": "photoshop:Instructions",
    f"{_RIGHTS}WebStatement": "xmpRights:WebStatement",
    f"{_RIGHTS}UsageTerms": "xmpRights:UsageTerms",
    "http://creativecommons.org/ns# license": "cc:license",
    "http://web.resource.org/cc/ license": "cc:license",
    "http://purl.org/dc/terms/ license": "dcterms:license",
    f"{_PLUS}DataMining": "plus:DataMining",
    "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ DigitalSourceType": "Iptc4xmpExt:DigitalSourceType",
    "http://www.w3.org/ns/tdmrep# reservation": "tdm:reservation",
    "http://www.w3.org/ns/tdmrep/ reservation": "tdm:reservation",
}
# Fields of structures: read inside the properties of `_STRUCTURES` alone, never of what the image was made from.
_FIELDS = {
    f"{_PLUS}LicensorURL": "plus:LicensorURL",
    f"{_PLUS}ImageCreatorName": "plus:ImageCreatorName",
    f"{_PLUS}CopyrightOwnerName": "plus:CopyrightOwnerName",
}
_STRUCTURES = frozenset(f"{_PLUS}{name}" for name in ("Licensor", "ImageCreator", "CopyrightOwner"))
# A packet without any of these words (in an encoding of single bytes) says nothing of rights: most do not.
_WORDS = tuple(sorted({name.rpartition(" ")[2].encode() for name in (*_PROPERTIES, *_FIELDS)}))
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<", b"\0\0")
_MOST_VALUES = 100

Properties = dict[str, list[str]]


class DeclarationRefused(Exception):
    """A packet that declares a document type or entities."""


def read_xmp(packet: bytes) -> Properties:
    """The properties in a packet, by short name; an Alt has its default language first. Damaged: none at all."""
    if not packet.startswith(_WIDE):
        if not any(word in packet for word in _WORDS):
            return {}
        packet = packet[max(0, packet.find(b"<")) :].rstrip(b"\0")
    reader = _Reader()
    try:
        reader.parser.Parse(packet, True)
    except (expat.ExpatError, DeclarationRefused, ValueError, LookupError):
        return {}
    return reader.found


class _Reader:
    """Handlers of expat that follow RDF: node elements, their properties, and containers of values."""

    def __init__(self) -> None:
        self.found: Properties = {}
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.EntityDeclHandler = self._refuse
        self._path: list[str] = []  # from rdf:RDF on: a node, a property, what is in it
        self._text: list[str] = []
        self._default = False  # whether the value is in the default language of an Alt

    def _refuse(self, *_: Any) -> None:
        raise DeclarationRefused

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._path and name != f"{_RDF}RDF":
            return
        self._path.append(name)
        self._text = []
        self._default = attributes.get(_LANG) == "x-default"
        depth = len(self._path)
        for attribute, value in attributes.items():
            if depth == 2 and attribute in _PROPERTIES:
                self._add(_PROPERTIES[attribute], value)
            elif depth > 2 and attribute in _FIELDS and self._path[2] in _STRUCTURES:
                self._add(_FIELDS[attribute], value)
        resource = attributes.get(f"{_RDF}resource")
        if resource and (told := self._told()):
            self._add(told, resource)

    def _characters(self, text: str) -> None:
        self._text.append(text)

    def _end(self, name: str) -> None:
        if not self._path:
            return
        text = "".join(self._text).strip()
        if text and (told := self._told()):
            self._add(told, text)
        self._text = []
        self._path.pop()

    def _told(self) -> str | None:
        """The property whose value is here, if it is one that is wanted."""
        if len(self._path) < 3:
            return None
        name = self._path[-1]
        if self._path[2] in _STRUCTURES:
            return _FIELDS.get(name)
        is_value = len(self._path) == 3 or name in (f"{_RDF}li", f"{_RDF}value")
        return _PROPERTIES.get(self._path[2]) if is_value else None

    def _add(self, name: str, value: str) -> None:
        values = self.found.setdefault(name, [])
        if len(values) < _MOST_VALUES:
            values.insert(0 if self._default else len(values), value)
