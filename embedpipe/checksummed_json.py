"""JSON documents whose last field is a checksum of the whole file.

`self_sha256` is the sha256 of the file with the 64 digits of that field replaced by zeros: it detects a flipped bit in
any field, field name or white space, and can be recomputed with any sha256 tool.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

SEAL = "self_sha256"
_BLANK = "0" * 64


class Unsound(ValueError):
    """The document differs from what was written; `str()` says how."""


def dump(document: dict[str, Any]) -> bytes:
    """`document` as JSON, with its checksum."""
    blank = (json.dumps({**document, SEAL: _BLANK}, indent=1) + "\n").encode()
    head, _, tail = blank.rpartition(_BLANK.encode())
    return head + hashlib.sha256(blank).hexdigest().encode() + tail


def load(data: bytes, known: Collection[str]) -> Any:
    """Parse a document, without its checksum. Raises Unsound when it is not JSON or its checksum does not match.

    A document without a checksum predates checksums. It contains only fields of that time, all of them `known`: any
    other name is a damaged one, perhaps that of the checksum.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise Unsound(f"not JSON ({problem})") from problem
    if not isinstance(document, dict):
        return document
    if SEAL in document:
        if not _holds(data, document.pop(SEAL)):
            raise Unsound("its checksum does not match: its bytes were changed")
    elif strangers := sorted(document.keys() - set(known)):
        raise Unsound(f"no checksum, and unknown fields: {', '.join(strangers)}")
    return document


def _holds(data: bytes, claimed: object) -> bool:
    if not isinstance(claimed, str) or len(claimed) != len(_BLANK) or not claimed.isascii():
        return False
    head, _, tail = data.rpartition(claimed.encode())
    return hashlib.sha256(head + _BLANK.encode() + tail).hexdigest() == claimed
