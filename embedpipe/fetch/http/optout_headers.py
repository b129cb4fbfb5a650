"""Opt-out response headers: X-Robots-Tag and tdm-reservation.

X-Robots-Tag has no formal grammar; this follows the documentation of search engines. A header is a list of directives
separated by commas. A prefix `otherbot:` restricts its directive, and those after it in the same header, to that agent.
Some directives contain a colon themselves (`max-snippet: 5`, `unavailable_after: 25 Jun 2010 15:00:00 PST`).
"""

from __future__ import annotations

import re
from email.message import Message

AGENT = "embedpipe"
_FORBIDDING = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
_VALUED = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview", "indexifembedded", "content-usage"}
)
# An agent's name before a colon. A time such as "15:00:00" starts with a digit.
_AGENT_NAME = re.compile(r"\*|[a-z][\w.+/* -]*")


def forbidden_by(headers: Message) -> str | None:
    """The header that forbids the use of a response, as `name: value`; None if there is none."""
    for value in headers.get_all("X-Robots-Tag", []):
        word = _forbidding_directive(str(value))
        if word is not None:
            return f"X-Robots-Tag: {word}"
    for value in headers.get_all("tdm-reservation", []):
        if str(value).strip() == "1":
            return "tdm-reservation: 1"
    return None


def _forbidding_directive(value: str) -> str | None:
    """The first directive of one X-Robots-Tag header that applies to us and forbids use."""
    agent = "*"
    for part in value.lower().split(","):
        name, colon, rest = (piece.strip() for piece in part.partition(":"))
        directive = part.strip()
        if colon and name not in _VALUED and _AGENT_NAME.fullmatch(name):
            agent, directive = name.split("/")[0], rest
        if agent in ("*", AGENT) and directive in _FORBIDDING:
            return directive
    return None
