"""robots.txt (RFC 9309): parsed by Protego."""

from __future__ import annotations

import re
from dataclasses import dataclass

from protego import Protego

MAX_BYTES = 500 * 1024  # the RFC's minimum for crawlers; the rest is ignored


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one robots.txt for one agent; without a file everything is allowed.

    size: characters of the file.
    """

    file: Protego | None = None
    agent: str = ""
    size: int = 0

    def allow(self, path: str) -> bool:
        """Whether `path` (with its query) may be requested."""
        return self.file is None or bool(self.file.can_fetch(path, self.agent))


ALLOW_ALL = Rules()


def parse_robots(text: str, agent: str) -> Rules:
    """The rules for `agent`: from the groups that name it, else from those that name `*`."""
    # Only the product name counts: "embedpipe/1.0" also matches.
    text = re.sub(r"(?im)^(\s*user-agent\s*:\s*[a-z_-]+)[^a-z_\n#-][^\n]*", r"\1", text)
    return Rules(Protego.parse(text), agent, len(text))
