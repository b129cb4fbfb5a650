"""robots.txt (RFC 9309): parsed by Protego, cached per origin."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from protego import Protego

from ..outcome import Failure

MAX_BYTES = 500 * 1024  # the RFC's minimum for crawlers; the rest is ignored

_MOST_KEPT = 2_000
_MOST_CHARACTERS = 5_000_000

Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one robots.txt for one agent; without a file everything is allowed.

    size: characters of the file. unreachable: why it could not be read, which forbids everything for now.
    """

    file: Protego | None = None
    agent: str = ""
    size: int = 0
    unreachable: Failure | None = None

    def allow(self, path: str) -> bool:
        """Whether `path` (with its query) may be requested."""
        return self.file is None or bool(self.file.can_fetch(path, self.agent))


ALLOW_ALL = Rules()


def parse_robots(text: str, agent: str) -> Rules:
    """The rules for `agent`: from the groups that name it, else from those that name `*`."""
    # Only the product name counts: "embedpipe/1.0" also matches.
    text = re.sub(r"(?im)^(\s*user-agent\s*:\s*[a-z_-]+)[^a-z_\n#-][^\n]*", r"\1", text)
    return Rules(Protego.parse(text), agent, len(text))


@dataclass(slots=True)
class _Entry:
    asking: threading.Lock = field(default_factory=threading.Lock)
    rules: Rules | None = None

    @property
    def weight(self) -> int:
        return self.rules.size if self.rules else 0


class RobotsCache:
    """A cache of rules per origin: requested once, while other threads wait; the oldest are evicted."""

    def __init__(self, fetch: Callable[[Origin], Rules]) -> None:
        self.fetch = fetch
        self.lock = threading.Lock()
        self.kept: OrderedDict[Origin, _Entry] = OrderedDict()

    def rules(self, origin: Origin) -> Rules:
        """The rules of `origin`."""
        with self.lock:
            entry = self.kept.setdefault(origin, _Entry())
            self.kept.move_to_end(origin)
        with entry.asking:
            if entry.rules is None:
                entry.rules = self.fetch(origin)
                self._forget()
        return entry.rules

    def _forget(self) -> None:
        with self.lock:
            size = sum(entry.weight for entry in self.kept.values())
            while size > _MOST_CHARACTERS or len(self.kept) > _MOST_KEPT:
                size -= self.kept.popitem(last=False)[1].weight
