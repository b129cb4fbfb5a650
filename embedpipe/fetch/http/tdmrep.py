"""/.well-known/tdmrep.json: reservations of text and data mining, as the W3C community group TDMRep describes them.

    [{"location": "/images/*", "tdm-reservation": 1, "tdm-policy": "https://example.org/policy.json"}]

Locations are paths with the wildcards of robots.txt. Of several that match, the most specific counts (the most
characters besides wildcards), and of equal ones a reservation. What is not of that form says nothing, entry by entry:
sites answer any path with a web page, and a file that nobody can read reserves nothing that could be known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

PATH = "/.well-known/tdmrep.json"
MAX_BYTES = 500 * 1024
_MOST_RULES = 10_000
_MOST_STARS = 20


@dataclass(frozen=True, slots=True)
class Reservation:
    """One location: a pattern of paths, whether mining is reserved there, and the url of a policy, if one is named.

    characters: of the location, besides its wildcards.
    """

    pattern: re.Pattern[str]
    characters: int
    reserved: bool
    policy: str | None


@dataclass(frozen=True, slots=True)
class Reservations:
    """The reservations of one host. size: characters of their file."""

    rules: tuple[Reservation, ...] = ()
    size: int = 0

    def of(self, path: str) -> Reservation | None:
        """The reservation of `path` (with its query); None if mining is not reserved there."""
        plain = _plain(path)
        matching = [rule for rule in self.rules if rule.pattern.match(plain)]
        best = max(matching, key=lambda rule: (rule.characters, rule.reserved), default=None)
        return best if best is not None and best.reserved else None


NONE = Reservations()


def parse_tdmrep(data: bytes) -> Reservations:
    """The reservations in a file; entries of another form are left out. Never raises."""
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return NONE
    entries = document if isinstance(document, list) else [document]
    return Reservations(tuple(_rules(entries[:_MOST_RULES])), len(data))


def _rules(entries: list[Any]) -> Iterator[Reservation]:
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(location := entry.get("location"), str):
            continue
        reservation = entry.get("tdm-reservation")
        if isinstance(reservation, bool) or str(reservation) not in ("0", "1"):
            continue
        pattern = _pattern(location.strip())
        if pattern is not None:
            policy = entry.get("tdm-policy")
            characters = len(location.replace("*", ""))
            policy = policy if isinstance(policy, str) else None
            yield Reservation(pattern, characters, str(reservation) == "1", policy)


def _pattern(location: str) -> re.Pattern[str] | None:
    """A path from its start, `*` for any characters, `$` at the end for the end."""
    if not location.startswith(("/", "*")):
        location = f"/{location}"
    ends = location.endswith("$")
    parts = re.split(r"\*+", _plain(location.removesuffix("$")))
    if len(parts) > _MOST_STARS:
        return None
    # Atomic groups: a star takes as little as it can and never tries again, so that no pattern takes long.
    joined = re.escape(parts[0]) + "".join(f"(?>.*?{re.escape(part)})" for part in parts[1:-1])
    if len(parts) > 1:
        joined += f".*{re.escape(parts[-1])}" if ends else f".*?{re.escape(parts[-1])}"
    return re.compile(joined + (r"\Z" if ends else ""), re.DOTALL)


def _plain(path: str) -> str:
    """Percent-encoded in one way, whatever way was chosen."""
    return quote(unquote(path, errors="surrogateescape"), safe="/*?=&:;,+@!'()~$", errors="surrogateescape")
