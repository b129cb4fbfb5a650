"""IPTC-IIM: the data sets of record 2 that tell of rights."""

from __future__ import annotations

_UTF8 = b"\x1b%G"
CREATOR, CREDIT, COPYRIGHT, KEYWORDS, INSTRUCTIONS = 80, 110, 116, 25, 40
_WANTED = (CREATOR, CREDIT, COPYRIGHT, KEYWORDS, INSTRUCTIONS)
_MOST = 500


def read_iptc(data: bytes) -> dict[int, list[str]]:
    """The texts of each wanted data set, in order. What follows damage is not read."""
    found: dict[int, list[str]] = {}
    utf8 = False
    at = 0
    for _ in range(_MOST):
        if at + 5 > len(data) or data[at] != 0x1C:
            break
        record, number, size = data[at + 1], data[at + 2], int.from_bytes(data[at + 3 : at + 5])
        if size & 0x8000:  # extended: the length of the length
            break
        value = data[at + 5 : at + 5 + size]
        at += 5 + size
        if (record, number) == (1, 90):
            utf8 = value == _UTF8
        elif record == 2 and number in _WANTED and len(value) == size:
            found.setdefault(number, []).append(decoded(value, utf8))
    return found


def decoded(value: bytes, utf8: bool = False) -> str:
    """Text in UTF-8, which it mostly is whatever the file says; else in Latin-1, as older programs wrote it."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("utf-8", "replace") if utf8 else value.decode("cp1252", "replace")
